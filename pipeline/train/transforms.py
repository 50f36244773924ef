"""What is done to EEG (B, C, T) before an encoder sees it.

Window and smoothing are for all EEG; time shift and channel dropout are random, in training only.

Sources: SUPA-EEG (github.com/RTae/SUPA-EEG) chooses a window and smooths by a Gaussian, at random
and in training only; NeuroBridge (arXiv 2511.06836) shifts in time and drops channels, as
braindecode.augmentation can. Different here: smoothing is for all EEG, and a shift repeats the
value at the end in place of what left at the other end.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.preprocess.windows import find_window

CUT = 4  # standard deviations after which the Gaussian is cut, as scipy does


def pick_window(
    window: list[float] | Literal["all"], start: float, sfreq: float, n_times: int
) -> slice:
    """The samples within a window (s), of EEG whose first of `n_times` samples is at `start`.

    A thousandth of a sample is allowed for rounding. InputError where the EEG does not have the
    whole window.
    """
    if window == "all":
        return slice(None)
    first, last = window
    times = start + np.arange(n_times) / sfreq
    samples = find_window(times, 1 / sfreq, window)
    if samples is None:
        raise InputError(
            f"train.eeg_window {first} .. {last} s is no part of the EEG's "
            f"{times[0]:g} .. {times[-1]:g} s: "
            "set a first and a later last time within it"
        )
    if samples.start == samples.stop:
        raise InputError(
            f"no sample of the EEG lies in train.eeg_window {first} .. {last} s: widen it"
        )
    return samples


class Smoothing(nn.Module):
    """EEG (..., B, C, T) smoothed along T by a Gaussian; `seconds` is its standard deviation.

    As scipy.ndimage.gaussian_filter1d(mode="nearest"), in the precision of the EEG: beyond both
    ends the end value goes on. A product with `matrix` (T, T): column t has the weights of time t.
    """

    matrix: Tensor

    def __init__(self, seconds: float, sfreq: float, n_times: int) -> None:
        super().__init__()
        sd = _in_samples("smoothing", seconds, sfreq, n_times, least=0.5 / CUT)
        radius = int(CUT * sd + 0.5)
        shifts = np.arange(-radius, radius + 1)
        kernel = np.exp(-((shifts / sd) ** 2) / 2)

        matrix = np.zeros((n_times, n_times))
        for t in range(n_times):
            np.add.at(matrix[:, t], (t + shifts).clip(0, n_times - 1), kernel / kernel.sum())
        self.register_buffer("matrix", torch.from_numpy(matrix), persistent=False)

    def forward(self, eeg: Tensor) -> Tensor:
        with torch.autocast(eeg.device.type, enabled=False):
            smoothed = eeg.flatten(-3, -2) @ self.matrix.to(eeg.dtype)  # (..., B * C, T)
            return smoothed.view(eeg.shape)


class TimeShift(nn.Module):
    """In training, each response moved along T by a random number of samples, up to `seconds`."""

    def __init__(self, seconds: float, sfreq: float, n_times: int) -> None:
        super().__init__()
        self.most = round(_in_samples("time_shift", seconds, sfreq, n_times, least=1))

    def forward(self, eeg: Tensor) -> Tensor:
        if not self.training:
            return eeg
        shift = torch.randint(-self.most, self.most + 1, (len(eeg), 1), device=eeg.device)

        n_times = eeg.shape[2]
        moved = torch.arange(n_times, device=eeg.device) - shift  # (B, T)
        times = moved.clamp(0, n_times - 1)
        return eeg.gather(2, times[:, None].expand_as(eeg))


class ChannelDropout(nn.Module):
    """In training, each channel of each response set to zero with probability `share`.

    The other channels stay as they are, without a factor.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, eeg: Tensor) -> Tensor:
        if not self.training:
            return eeg
        return eeg * (torch.rand(*eeg.shape[:2], 1, device=eeg.device) >= self.share)


def _in_samples(key: str, seconds: float, sfreq: float, n_times: int, least: float) -> float:
    """Seconds in samples; InputError where that has no effect, or is as long as the EEG."""
    samples = seconds * sfreq
    if not least <= samples + 1e-9 < n_times:
        raise InputError(
            f"train.{key} is {seconds} s: for the {n_times} samples at {sfreq:g} Hz that the "
            f"encoder sees it should be at least {least / sfreq:g} s and less than "
            f"{n_times / sfreq:g} s"
        )
    return samples
