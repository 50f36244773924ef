"""Epochs: the instants of the new samples are those that the module says."""

import mne
import numpy as np
import pytest

from pipeline.datasets.epochs import cut_epochs, plan_epochs


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
