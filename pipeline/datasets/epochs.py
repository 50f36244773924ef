"""Epochs cut out of a continuous recording, their baseline taken off, at a lower rate.

What a sample at a lower rate is: MNE pads an epoch with its first and last value to a power of two and resamples it by
FFT. The new rate times that length is rounded to a whole number of samples, so that the instants of the new samples are
near the grid tmin, tmin + 1 / sfreq, ..., not on it; the released THINGS-EEG2 is written with the times of the grid,
and so is ours. For 1000 Hz and the two published epochs:
  -0.2 .. 0.8 s at 100 Hz (1001 samples, 2048 with the padding, 205 and then 100 new ones): the sample called -0.2 s is
  the EEG of -0.2035 s, the one called 0.79 s that of 0.7855 s, so 3.5 to 4.5 ms earlier than its name;
  -0.2 .. 1.0 s at 250 Hz (1201, 2048, 512 and then 300): every sample is the EEG 1 ms later than its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mne
import numpy as np

from pipeline.errors import InputError


@dataclass(frozen=True)
class EpochPlan:
    """Epochs from `tmin` to `tmax` s, the mean of `baseline` (first, last) s taken off, then at `sfreq` Hz, then cut.

    Of their samples `keep` stay, whose (T,) `times` in seconds from stimulus onset are those of the nominal grid.
    """

    tmin: float
    tmax: float
    baseline: tuple[float, float] | None
    sfreq: float
    keep: slice
    times: np.ndarray


def plan_epochs(
    sfreq: float,
    window: Sequence[float],
    baseline: Sequence[float] | Literal["none"],
    recorded_sfreq: float,
    where: str,
) -> EpochPlan:
    """Epochs of a recording at `recorded_sfreq` Hz that hold the baseline, and the window with one new sample after it.

    Those samples of the new rate stay that lie in `window` [first, last] s, both included. InputError where the rate is
    above the recorded one, or an interval is none. `where` is what messages call the recording.
    """
    if not 0 < sfreq <= recorded_sfreq:
        raise InputError(
            f"{where}: is recorded at {recorded_sfreq:g} Hz, preprocess.sfreq is {sfreq:g}; choose a lower rate"
        )
    for name, interval in (("window", window), ("baseline", baseline)):
        if interval != "none" and not (
            len(interval) == 2 and np.isfinite(interval).all() and interval[0] <= interval[1]
        ):
            raise InputError(
                f"preprocess.{name} is {interval}, expected its first and last second, in this order"
            )
    (first, last), step = window, 1 / sfreq
    off = None if baseline == "none" else (float(baseline[0]), float(baseline[1]))
    start = round(min(first, off[0] if off else first) * recorded_sfreq) / recorded_sfreq
    tmax = max(last + step, off[1] if off else last)
    grid = np.round(start + np.arange(int((tmax - start) * sfreq) + 1) * step, 9)
    slack = step / 1000
    begin, end = (int(i) for i in np.searchsorted(grid, [first - slack, last + slack]))
    if end - begin < 2:
        raise InputError(
            f"preprocess.window {first} .. {last} s holds {end - begin} samples at {sfreq:g} Hz, "
            "expected at least 2: choose a longer window, or a higher rate (preprocess.sfreq)"
        )
    return EpochPlan(start, tmax, off, sfreq, slice(begin, end), grid[begin:end])


def epoch_bounds(plan: EpochPlan, sfreq: float) -> tuple[int, int]:
    """The first and the last sample of an epoch, counted from its event, in a recording at `sfreq` Hz."""
    return round(plan.tmin * sfreq), round(plan.tmax * sfreq)


def cut_epochs(raw: "mne.io.BaseRaw", events: np.ndarray, plan: EpochPlan) -> np.ndarray:
    """The epochs of `events` (n, 3; sample, 0, id) in any order: (n, C, T) float64 in the unit of `raw`.

    All of an epoch must lie in the recording. About three times the epochs at the recorded rate are in memory.
    """
    order = np.argsort(events[:, 0])  # MNE wants them in the order of time
    epochs = mne.Epochs(
        raw,
        events[order],
        tmin=plan.tmin,
        tmax=plan.tmax,
        baseline=plan.baseline,
        preload=True,
        verbose=False,
    )
    epochs.resample(plan.sfreq, n_jobs=1, verbose=False)
    eeg = np.empty((len(events), len(raw.ch_names), len(plan.times)))
    eeg[order] = epochs.get_data(copy=False)[:, :, plan.keep]
    return eeg
