"""What every EEG encoder is, and what they share."""

import torch
from torch import Tensor, nn

from pipeline.errors import InputError


class EegEncoder(nn.Module):
    """Turns EEG (B, n_chans, n_times) float32 into features (B, output_size), which a projector then maps further.

    A class of the table is made by `Class(n_chans=, n_times=, sfreq=, dropout=)`, with `sfreq` in Hz, and sets
    `output_size`.
    """

    output_size: int
    # Torch.func.vmap can compute many at once, and nothing is random but `Dropout`
    stackable = False
    stacked = False  # it does

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the first weights of a whole model, projectors included, as the encoder's published code does.

        Here: nothing is drawn anew, all weights stay as torch drew them.
        """


def require_samples(name: str, n_times: int, least: int) -> None:
    if n_times < least:
        raise InputError(
            f"train.eeg_encoder = {name} needs at least {least} samples, not {n_times}: "
            "widen train.eeg_window or preprocess.window, or choose another encoder"
        )


class Dropout(nn.Module):
    """nn.Dropout for inputs (B, ...) of `n_units` values each: x times `factors` (B, n_units), 0 or 1 / (1 - p).

    Whoever trains sets the factors, so that models that are trained together drop what each would drop alone; where
    they are None, torch's global generator draws them.
    """

    factors: Tensor | None

    def __init__(self, p: float, n_units: int) -> None:
        super().__init__()
        self.p, self.n_units = p, n_units
        self.register_buffer("factors", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        factors = (
            drop(draw_bits(x.numel(), x.device), self.p) if self.factors is None else self.factors
        )
        return x * factors.view(x.shape).to(x.dtype)


def draw_bits(n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """(n,) int16, all values alike often; in a third of the time of drawing n float numbers on a CPU."""
    four = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
    return four.random_(-(2**63), None, generator=generator).view(torch.int16)[:n]


def drop(bits: Tensor, p: float) -> Tensor:
    """Of int16 the factors of `Dropout`, float32 of the same shape: p is exact to 1 / 65536."""
    return bits.float().ge_(round(p * 2**16) - 2**15).mul_(1 / (1 - p))  # quicker than by booleans
