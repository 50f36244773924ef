"""Epochs cut out of a continuous recording, their baseline taken off, at a lower rate.

What a sample at a lower rate is: MNE pads an epoch with its first and last value to a power of two,
and resamples it by FFT. The new rate times the padded length is rounded to a whole number of
samples. Therefore the new samples are taken near the grid tmin, tmin + 1 / sfreq, ..., not on it.
The released THINGS-EEG2 is written with the times of the grid, and so is ours. For 1000 Hz and the
two published epochs:
- -0.2 .. 0.8 s at 100 Hz (1001 samples, 2048 with the padding, of which 205 and then 100 new ones
  are made): the sample called -0.2 s is the EEG of -0.2035 s, the one called 0.79 s is that of
  0.7855 s. So each is the EEG 3.5 to 4.5 ms before its name.
- -0.2 .. 1.0 s at 250 Hz (1201, 2048, 512 and then 300): each sample is the EEG 1 ms after its
  name.

A recording at 256 Hz has no sample at -0.2 s. Its times can be named as if it had been recorded at
1000 Hz (`plan_epochs`, `named_at`), so that it can be used together with one that was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mne
import numpy as np

from pipeline.errors import InputError


@dataclass(frozen=True)
class EpochPlan:
    """How epochs are cut, in this order.

    `tmin`, `tmax`: first and last second of the epoch, from stimulus onset.
    `baseline`: first and last second of the interval whose mean is taken off; None takes none off.
    `sfreq`: the new rate in Hz.
    `keep`: the samples at the new rate that stay.
    `times` (T,): seconds from stimulus onset of the samples that stay, those of the nominal grid.
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
    file: str,
    *,
    named_at: float | None = None,
) -> EpochPlan:
    """Plan epochs at `sfreq` Hz of a recording at `recorded_sfreq` Hz.

    The epochs hold the baseline, and the window with one new sample after it. The samples in
    `window` [first, last] s stay, both ends included. `file` is what messages call the recording.
    Raises InputError where the rate is above the recorded one, or an interval is not valid.

    With `named_at` the samples have the names that they would have in a recording at that rate
    (Hz). Where the epoch begins is the nearest sample of either recording, so that a name is off by
    at most half a sample of both together: 2.5 ms for 256 Hz and 1000 Hz, and 2 ms where the epoch
    begins at a whole millisecond. What resampling adds to that stands above.
    """
    if not 0 < sfreq <= recorded_sfreq:
        raise InputError(
            f"{file}: is recorded at {recorded_sfreq:g} Hz, preprocess.sfreq is {sfreq:g}; choose "
            "a lower rate"
        )
    _check_interval("window", window)
    first, last = window
    step = 1 / sfreq

    start = first
    # One new sample more, as in the published epochs: their last sample is 0.79 s, their end 0.8 s.
    end = last + step
    baseline_interval = None
    if baseline != "none":
        _check_interval("baseline", baseline)
        baseline_interval = (float(baseline[0]), float(baseline[1]))
        # Rounded, because 0.029 s times 1000 Hz is 29.000000000000004.
        from_sample, to_sample = np.round(np.array(baseline_interval) * recorded_sfreq, 6)
        if np.ceil(from_sample) > np.floor(to_sample):
            raise InputError(
                f"preprocess.baseline {baseline[0]} .. {baseline[1]} s holds no sample of {file}, "
                f"which is recorded at {recorded_sfreq:g} Hz; choose a longer interval"
            )
        start = min(first, baseline_interval[0])
        end = max(end, baseline_interval[1])

    # The epoch begins at a sample of the recording; the new samples count from there.
    tmin = round(start * recorded_sfreq) / recorded_sfreq
    named_tmin = tmin if named_at is None else round(start * named_at) / named_at
    # Rounded, so that a time is 0.3 and not 0.30000000000000004.
    grid = np.round(named_tmin + np.arange(int((end - named_tmin) * sfreq) + 1) * step, 9)

    slack = step / 1000  # so that rounding never drops a sample at an end of the window
    keep_from, keep_to = np.searchsorted(grid, [first - slack, last + slack]).tolist()
    # One sample alone has no step (`Layout.step`).
    if keep_to - keep_from < 2:
        raise InputError(
            f"preprocess.window {first} .. {last} s holds {keep_to - keep_from} samples at "
            f"{sfreq:g} Hz, expected at least 2: choose a longer window, or a higher rate "
            "(preprocess.sfreq)"
        )
    times = grid[keep_from:keep_to]
    return EpochPlan(tmin, end, baseline_interval, sfreq, slice(keep_from, keep_to), times)


def _check_interval(key: str, interval: Sequence[float]) -> None:
    if len(interval) != 2 or not np.isfinite(interval).all() or interval[0] > interval[1]:
        raise InputError(
            f"preprocess.{key} is {interval}, expected its first and last second, in this order"
        )


def epoch_bounds(plan: EpochPlan, sfreq: float) -> tuple[int, int]:
    """The first and the last sample of an epoch, counted from its event, at `sfreq` Hz."""
    return round(plan.tmin * sfreq), round(plan.tmax * sfreq)


def cut_epochs(raw: "mne.io.BaseRaw", events: np.ndarray, plan: EpochPlan) -> np.ndarray:
    """The epochs of `events` (n, 3; sample, 0, id) in any order: (n, C, T) float64, unit of `raw`.

    All of an epoch must lie in the recording. About three times the epochs at the recorded rate are
    in memory.
    """
    order = np.argsort(events[:, 0])  # MNE wants events in the order of time
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

    # Back in the order of `events`.
    eeg = np.empty((len(events), len(raw.ch_names), len(plan.times)))
    eeg[order] = epochs.get_data(copy=False)[:, :, plan.keep]
    return eeg


def take_baseline_off(epochs: np.ndarray, plan: EpochPlan, recorded_sfreq: float) -> None:
    """As MNE does it, in place. `epochs` (..., samples as recorded)."""
    first, last = epoch_bounds(plan, recorded_sfreq)
    times = np.arange(first, last + 1) / recorded_sfreq
    mne.baseline.rescale(epochs, times, plan.baseline, copy=False, verbose=False)


def resampling_matrix(plan: EpochPlan, recorded_sfreq: float) -> np.ndarray:
    """MNE's resampling of an epoch as one matrix (samples as recorded, T), float64.

    Resampling and the choice of samples are linear, so that an epoch (C, samples as recorded) times
    this matrix is what MNE makes of it. MNE itself makes the matrix, of an impulse at each sample.
    It pays where a recording has tens of thousands of epochs: MNE's own way takes some ten times as
    long.
    """
    first, last = epoch_bounds(plan, recorded_sfreq)
    n_samples = last - first + 1
    impulses = mne.EpochsArray(
        np.eye(n_samples)[:, None],
        mne.create_info(1, recorded_sfreq, "eeg"),
        tmin=plan.tmin,
        verbose=False,
    )
    impulses.resample(plan.sfreq, n_jobs=1, verbose=False)
    return np.ascontiguousarray(impulses.get_data(copy=False)[:, 0, plan.keep])


def resample(epochs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Epochs (..., samples as recorded) at the lower rate of `resampling_matrix`, (..., T)."""
    # One large product is several times as quick as one for each epoch.
    resampled = epochs.reshape(-1, len(matrix)) @ matrix
    return resampled.reshape(*epochs.shape[:-1], -1)
