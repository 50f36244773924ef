"""The base class of all EEG encoders, and the dropout layer of those that are trained together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import InputError

# From the numbers of b responses to their features (b, p) and the embeddings of their images (b, D)
ReadPairs = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearFit:
    """A linear map from p features to D dimensions, found in closed form.

    * `weight` (D, p) and `bias` (D,).
    * `penalty`: that on the squared weights.
    * `r2`: the share of the embeddings' variance that is explained on held-out concepts.
    * `predictions` (m, D): of held-out responses, by weights that did not see their concepts.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    r2: float
    predictions: Tensor


class EegEncoder(nn.Module):
    """EEG (B, n_chans, n_times) float32 -> features (B, output_size); a projector follows it.

    The table makes an encoder by `Class(n_chans=, n_times=, sfreq=, dropout=)`, with `sfreq` in
    Hz. The class sets `output_size`.

    `stackable` says whether `forward` computes M models at once, where all weights, and the EEG,
    have a leading axis of M (`layers.py`). Such an encoder draws no random numbers, except in
    `Dropout`.

    The table makes an encoder whose `pretrained` is true with `ch_names` and `frozen` too
    (`pretrained.py`).

    One whose `closed_form` is true is not trained: `fit` finds the weights of the one Linear that
    follows it, as `ridge.fit_ridge` tells. It has no seeds and no epochs.
    """

    output_size: int
    stackable = False
    pretrained = False
    closed_form = False
    caveats: tuple[str, ...] = ()  # sentences that every result with it must say

    @classmethod
    def weight_files(cls, folder: str) -> list[Path]:
        """The files of this folder that a training starts from. Here there are none."""
        return []

    @staticmethod
    def fit(read: ReadPairs, fold: Tensor, probes: Tensor) -> LinearFit:
        """The weights, where `closed_form` is true."""
        raise NotImplementedError

    def load_pretrained(self, folder: str) -> None:
        """Read the weights that a training starts from. Here they stay as they were drawn."""

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the initial weights of a whole model, with projectors, as the published code does.

        Here nothing is drawn: all weights stay as torch drew them.
        """


def require_samples(name: str, n_times: int, least: int) -> None:
    """InputError where the EEG has fewer samples than the encoder called `name` needs."""
    if n_times < least:
        raise InputError(
            f"train.eeg_encoder = {name} needs at least {least} samples, not {n_times}: "
            "widen train.eeg_window or preprocess.window, or choose another encoder"
        )


class Dropout(nn.Module):
    """nn.Dropout for inputs (..., B, ...) with `n_units` values for each sample.

    The input is multiplied by `factors` (..., B, n_units), which are 0 or 1 / (1 - p). The training
    sets them. So each of several models that are trained together drops what it would drop alone.
    Where `factors` is None, torch's global generator draws them.
    """

    factors: Tensor | None

    def __init__(self, p: float, n_units: int) -> None:
        super().__init__()
        self.p = p
        self.n_units = n_units
        self.register_buffer("factors", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x

        factors = self.factors
        if factors is None:
            factors = drop(draw_bits(x.numel(), x.device, [None]), self.p)
        return x * factors.view(x.shape).to(x.dtype)


def draw_bits(n: int, device: torch.device, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Uniform random numbers, n by each generator: (M, n) int16 over the whole range of the type.

    None is torch's global generator. On a CPU this takes a third of the time of drawing n float
    numbers.
    """
    # Each int64 gives four int16.
    numbers = torch.empty(len(generators), -(-n // 4), dtype=torch.int64, device=device)
    for row, generator in zip(numbers, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    return numbers.view(torch.int16)[:, :n]


def drop(bits: Tensor, p: float) -> Tensor:
    """The factors of `Dropout` from uniform int16: float32 of the same shape.

    p is exact to 1 / 65536.
    """
    # In place and without booleans: quicker.
    return bits.float().ge_(round(p * 2**16) - 2**15).mul_(1 / (1 - p))
