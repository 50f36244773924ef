"""NICE and its variant in the reference recipe, layer by layer as published.

`plain` runs the published layers one after the other. `forward` returns the same features and
is much faster: `fast_nice.py` says how. To understand the encoders, that file is not needed.

Axes: B samples, C channels, T times, F filters, T' positions of the temporal window.
"""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.encoder import Dropout, EegEncoder, require_samples
from pipeline.eeg_encoders.fast_nice import compose_average, compose_chain, fast_forward

INITIAL_SD = 0.02  # of the weights that `draw_normal_weights` draws


class _NiceLayers(EegEncoder):
    """The layers that both encoders share: all that follow the temporal ones.

    BatchNorm, ELU, a spatial convolution over all channels, BatchNorm, ELU, dropout, a 1 x 1
    convolution. A subclass adds the temporal layers. `WINDOW` is the number of EEG samples that
    these turn into one value, and the next value comes from the window `STEP` samples later.
    """

    stackable = True
    NAME: str
    WINDOW: int
    STEP: int

    def __init__(
        self, n_chans: int, n_times: int, dropout: float, n_filters: int, spatial_bias: bool
    ) -> None:
        super().__init__()
        require_samples(self.NAME, n_times, self.WINDOW)
        n_windows = (n_times - self.WINDOW) // self.STEP + 1
        self.output_size = n_windows * n_filters

        # Trained models are stored by these names, and random weights are drawn in this order.
        self.norm = nn.BatchNorm2d(n_filters)
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1), bias=spatial_bias)
        self.norm_2 = nn.BatchNorm2d(n_filters)
        self.dropout = Dropout(dropout, self.output_size)
        self.pointwise = nn.Conv2d(n_filters, n_filters, (1, 1))

    @abstractmethod
    def temporal_layers(self, eeg: Tensor) -> Tensor:
        """(B, 1, C, T) -> (B, F, C, T')."""

    @abstractmethod
    def composed_filters(self) -> tuple[Tensor, Tensor]:
        """The temporal layers as one convolution: filters (..., F, WINDOW) and bias (..., F)."""

    def plain(self, eeg: Tensor) -> Tensor:
        """The published layers one after the other; the tests compare `forward` with this."""
        x = self.temporal_layers(eeg[:, None])  # (B, F, C, T')
        x = self.spatial(F.elu(self.norm(x)))  # (B, F, 1, T')
        x = self.pointwise(self.dropout(F.elu(self.norm_2(x))))  # (B, F, 1, T')
        return x.squeeze(2).transpose(1, 2).flatten(1)  # (B, T' * F)

    def forward(self, eeg: Tensor) -> Tensor:
        """(..., B, C, T) -> (..., B, T' * F); with an axis of M models, if the weights have it."""
        return fast_forward(self, eeg)


class Nice(_NiceLayers):
    """NICE: EEG (B, C, T) float -> features (B, T' * F); a temporal convolution, then an average.

    Paper: Song et al., arXiv 2308.13234.
    Code: https://github.com/eeyhsong/NICE-EEG, nice_stand.py.
    Shapes: T' = (T - 75) // 5 + 1 and F = 40. 63 channels and 250 samples give 36 * 40 = 1440
    features, as published.

    Deliberate differences from the published code:

    * The spatial filters span all C channels of the data, not always 63.
    * Only the encoder is here. The projector of the EEG is in `train/model.py`.
    * `forward` computes the layers in another order, so results differ by rounding errors.

    InputError where T < 75.
    """

    NAME = "nice"
    KERNEL = 25  # samples
    POOL = 51  # samples that are averaged
    WINDOW = KERNEL + POOL - 1
    STEP = 5

    def __init__(
        self, n_chans: int, n_times: int, sfreq: float, dropout: float, n_filters: int = 40
    ) -> None:
        super().__init__(n_chans, n_times, dropout, n_filters, spatial_bias=True)
        self.temporal = nn.Conv2d(1, n_filters, (1, self.KERNEL))

    def temporal_layers(self, eeg: Tensor) -> Tensor:
        return F.avg_pool2d(self.temporal(eeg), (1, self.POOL), (1, self.STEP))

    def composed_filters(self) -> tuple[Tensor, Tensor]:
        return compose_average(self.temporal, self.POOL)

    def draw_weights(self, model: nn.Module) -> None:
        draw_normal_weights(model, zero_biases=False)


class NiceRecipe(_NiceLayers):
    """The recipe's NICE: EEG (B, C, T) float -> features (B, T' * F); two temporal convolutions.

    Paper: arXiv 2502.03081, whose encoder is NICE.
    Code: the reference recipe, a public re-implementation of that paper (see the README). A second
    temporal convolution stands in the place of NICE's average.
    Shapes: T' = T - 64 and F = 40. 17 channels and 100 samples give 36 * 40 = 1440 features.

    Deliberate differences from the published code: those of `Nice`.

    InputError where T < 65.
    """

    NAME = "nice-recipe"
    KERNELS = (25, 41)  # samples
    WINDOW = sum(KERNELS) - 1
    STEP = 1

    def __init__(
        self, n_chans: int, n_times: int, sfreq: float, dropout: float, n_filters: int = 40
    ) -> None:
        super().__init__(n_chans, n_times, dropout, n_filters, spatial_bias=False)
        self.temporal = nn.Conv2d(1, n_filters, (1, self.KERNELS[0]))
        self.temporal_2 = nn.Conv2d(n_filters, n_filters, (1, self.KERNELS[1]), bias=False)

    def temporal_layers(self, eeg: Tensor) -> Tensor:
        return self.temporal_2(self.temporal(eeg))

    def composed_filters(self) -> tuple[Tensor, Tensor]:
        return compose_chain(self.temporal, self.temporal_2)

    def draw_weights(self, model: nn.Module) -> None:
        draw_normal_weights(model, zero_biases=True)


def draw_normal_weights(model: nn.Module, zero_biases: bool) -> None:
    """Draw convolution and Linear weights from N(0, 0.02), and those of BatchNorm from N(1, 0.02).

    0.02 is the standard deviation. NICE's code does so for the encoder and both projectors. The
    recipe's code does so too, and sets the biases of convolutions to zero (`zero_biases`). Other
    biases stay as torch drew them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, INITIAL_SD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, INITIAL_SD)

        if isinstance(module, nn.Conv2d) and module.bias is not None and zero_biases:
            nn.init.zeros_(module.bias)
