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


class Dropout(nn.Dropout):
    """nn.Dropout in a third of the time on a CPU: 16 random bits an element, so that p is exact to 1 / 65536."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape).float().ge_(round(self.p * 2**16) - 2**15)  # quicker than by booleans
        return x * kept.mul_(1 / (1 - self.p)).to(x.dtype)
