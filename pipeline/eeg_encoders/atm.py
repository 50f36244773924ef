"""ATM: attention over the channels, then NICE's convolutions.

Paper: Li et al., arXiv 2403.07721; the variant with the ShallowNet-like convolution.
Code: https://github.com/ncclab-sustech/EEG_Image_decode, Retrieval/ATMS_retrieval.py of the branch
main as it is since 24 December 2025 (commit 61fc9c3). `params/atm` has the recipe of that file.
Shapes: EEG (B, C, T) -> features (B, 1440) for 250 samples, as published.
Deliberate differences: in the docstring of `AtmS`.
"""

import math

import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.encoder import EegEncoder, require_samples
from pipeline.eeg_encoders.nice import Nice


class AtmS(EegEncoder):
    """EEG (B, C, T) float -> features (B, output_size).

    One transformer layer, whose tokens are the channels, and NICE's convolutions after it. A fixed
    sinusoid marks the position of the channel in each token, as in the paper; the code adds it
    since commit 61fc9c3. The weights start as torch draws those of the published layers, in which
    query, key, value and output of the attention are a Linear each.

    Deliberate differences from the published code:

    * The MLP projector is not part of this encoder.
    * Nothing belongs to one subject, so that the encoder can be applied to a subject who was not in
      training. The code puts a token of the subject before those of the 63 channels, and hands the
      first 63 of these 64 tokens to the convolutions: its last channel acts through the attention
      alone. Its two Linears of a subject (125,500 parameters) are never called.
    * The width of a token is the number of samples, rounded up to a multiple of the number of
      heads. Published: a width of 250 for 250 samples, and heads of 62. For 63 channels and 250
      samples that makes 553,000 parameters; published are 549,680, of which some are not used.
    * `dropout` is that of the convolutions, and half of it that of the transformer. Published: 0.5
      and 0.25.

    InputError where T < 75.
    """

    HEADS = 4
    HIDDEN = 256  # units of the transformer's feedforward layer

    def __init__(self, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        require_samples("atm-s", n_times, Nice.WINDOW)
        width = math.ceil(n_times / self.HEADS) * self.HEADS

        self.embed = nn.Linear(n_times, width)
        self.register_buffer("positions", sinusoids(n_chans, width), persistent=False)
        self.dropout = nn.Dropout(dropout / 2)
        self.attend = nn.TransformerEncoderLayer(
            width, self.HEADS, self.HIDDEN, dropout / 2, activation="gelu", batch_first=True
        )
        # As nn.Linear draws them: torch's attention would draw weights that are 22 % larger, and
        # biases of 0
        for parameter in self.attend.self_attn.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        self.norm = nn.LayerNorm(width)

        # To the convolutions, a token looks like the EEG of a channel.
        self.convolutions = Nice(n_chans, width, sfreq, dropout)
        self.output_size = self.convolutions.output_size

    def plain(self, eeg: Tensor) -> Tensor:
        """The published layers one after the other; the tests compare `forward` with this."""
        return self.convolutions.plain(self.attended(eeg))

    def forward(self, eeg: Tensor) -> Tensor:
        return self.convolutions(self.attended(eeg))

    def attended(self, eeg: Tensor) -> Tensor:
        """The transformer's output: (B, C, T) -> (B, C, width)."""
        tokens = self.dropout(self.embed(eeg) + self.positions)
        return self.norm(self.attend(tokens))


def sinusoids(n_positions: int, width: int) -> Tensor:
    """The fixed positions of arXiv 1706.03762: (n_positions, width) float32.

    Even columns are sines and odd columns cosines; their frequency falls from column to column.
    """
    rate = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(n_positions)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
