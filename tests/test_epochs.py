"""Epochs: the instants of the new samples are those that the module says."""

import mne
import numpy as np
import pytest

from pipeline.datasets.epochs import (
    cut_epochs,
    epoch_bounds,
    plan_epochs,
    resample,
    resampling_matrix,
    take_baseline_off,
)
from pipeline.errors import InputError


@pytest.mark.parametrize(
    ("sfreq", "window", "late"),
    [
        (100.0, (-0.2, 0.79), (-0.0035, -0.0045)),
        (250.0, (0.0, 0.996), (0.001, 0.001)),
        (1000.0, (0.0, 0.5), (0.0, 0.0)),
    ],
)
def test_the_instants_of_the_samples(sfreq: float, window: tuple, late: tuple) -> None:
    """A slow wave tells when a value was recorded: how much later than its name, at the first and the last sample."""
    time = np.arange(-1000, 2000) / 1000
    info = mne.create_info(["late"], 1000, "eeg")
    raw = mne.io.RawArray(np.exp(-(((time - 0.3) / 0.15) ** 2))[None], info, verbose=False)
    plan = plan_epochs(sfreq, window, (-0.2, 0.0), 1000, "raw")
    (wave,) = cut_epochs(raw, np.array([[1000, 0, 1]]), plan)[0]
    named = plan.times
    rise = (named > 0.1) & (named < 0.5) & (np.abs(named - 0.3) > 0.04)
    off = np.exp(-(((time[800:1001] - 0.3) / 0.15) ** 2)).mean()  # the baseline
    recorded = np.interp(named[rise], time, time)
    for i, moment in zip(np.flatnonzero(rise), recorded, strict=True):
        near = np.arange(moment - 0.01, moment + 0.01, 1e-5)
        found = near[np.abs(np.exp(-(((near - 0.3) / 0.15) ** 2)) - off - wave[i]).argmin()]
        share = (moment - named[0]) / (named[-1] - named[0])
        assert found - moment == pytest.approx(late[0] + share * (late[1] - late[0]), abs=1e-4)


def test_epochs_in_any_order() -> None:
    raw = mne.io.RawArray(
        np.random.default_rng(0).standard_normal((3, 5000)),
        mne.create_info(3, 1000, "eeg"),
        verbose=False,
    )
    plan = plan_epochs(100.0, (0.0, 0.5), "none", 1000, "raw")
    events = np.array([[3000, 0, 1], [1000, 0, 2], [2000, 0, 3]])
    together = cut_epochs(raw, events, plan)
    for event, eeg in zip(events, together, strict=True):
        assert np.array_equal(cut_epochs(raw, event[None], plan)[0], eeg)


@pytest.mark.parametrize(
    ("sfreq", "window", "baseline"),
    [
        (250.0, (0.0, 0.996), (-0.2, 0.0)),
        (250.0, (-0.2, 0.996), (-0.2, 0.0)),
        (100.0, (-0.2, 0.79), "none"),
        (250.0, (0.002, 0.5), (-0.1, 0.0)),
        (256.0, (0.0, 0.5), (-0.1, 0.0)),
        (128.0, (0.1, 0.35), (-0.33, -0.1)),
    ],
)
def test_samples_are_named_as_at_another_rate(sfreq: float, window: tuple, baseline: tuple) -> None:
    """At 256 Hz the times are those of a recording at 1000 Hz, and all of them are there; a name is off by 2 ms at most."""
    named = plan_epochs(sfreq, window, baseline, 256.0, "raw", named_at=1000.0)
    at_1000 = plan_epochs(sfreq, window, baseline, 1000.0, "raw")
    assert np.array_equal(named.times, at_1000.times)
    assert abs(named.tmin - at_1000.tmin) <= 0.5 / 256
    assert resampling_matrix(named, 256.0).shape[1] == len(named.times)


@pytest.mark.parametrize(("sfreq", "baseline"), [(250.0, (-0.2, 0.0)), (100.0, "none")])
def test_a_matrix_does_what_mne_does_to_each_epoch(sfreq: float, baseline: tuple) -> None:
    rng = np.random.default_rng(0)
    eeg = 4e-3 + 1e-5 * np.cumsum(rng.standard_normal((3, 5000)), axis=1)
    raw = mne.io.RawArray(eeg, mne.create_info(3, 256, "eeg"), verbose=False)
    plan = plan_epochs(sfreq, (0.0, 0.7), baseline, 256.0, "raw", named_at=1000.0)
    samples = np.array([300, 351, 2000, 4000])
    events = np.column_stack([samples, np.zeros(4, int), np.arange(4)])

    first, last = epoch_bounds(plan, 256.0)
    ours = np.array([eeg[:, sample + first : sample + last + 1] for sample in samples])
    take_baseline_off(ours, plan, 256.0)
    ours = resample(ours, resampling_matrix(plan, 256.0))
    expected = cut_epochs(raw, events, plan)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * expected.std())


def test_the_instants_of_alljoined() -> None:
    """As alljoined.py says: with params/alljoined each sample is the EEG 2.3 ms after its name."""
    plan = plan_epochs(250.0, (-0.2, 0.996), (-0.2, 0.0), 256.0, "raw", named_at=1000.0)
    time = (np.arange(2000) - 1000) / 256
    wave = np.sin(2 * np.pi * 3 * time)  # slow, so that its phase tells the instant
    first, last = epoch_bounds(plan, 256.0)
    epoch = wave[1000 + first : 1000 + last + 1].copy()
    take_baseline_off(epoch, plan, 256.0)
    epoch = resample(epoch, resampling_matrix(plan, 256.0))

    middle = (plan.times > 0.1) & (plan.times < 0.7)  # far from the ends, which are padded
    phases = 2 * np.pi * 3 * plan.times[middle, None]
    design = np.hstack([np.sin(phases), np.cos(phases), np.ones_like(phases)])
    in_phase, ahead, _ = np.linalg.lstsq(design, epoch[middle], rcond=None)[0]
    assert np.arctan2(ahead, in_phase) / (2 * np.pi * 3) == pytest.approx(0.0023, abs=1e-4)


def test_a_baseline_between_two_samples_is_refused() -> None:
    with pytest.raises(InputError, match="baseline 0.001 .. 0.003 s holds no sample of raw"):
        plan_epochs(100.0, (0.0, 0.5), (0.001, 0.003), 256.0, "raw")
    longer = plan_epochs(100.0, (0.0, 0.5), (0.001, 0.004), 256.0, "raw")
    first, last = epoch_bounds(longer, 256.0)
    take_baseline_off(np.ones((2, last - first + 1)), longer, 256.0)
    for at in (0.029, -0.2, 0.0):
        assert plan_epochs(100.0, (0.0, 0.5), (at, at), 1000.0, "raw").baseline == (at, at)
