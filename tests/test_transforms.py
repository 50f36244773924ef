import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from pipeline.errors import InputError
from pipeline.train.transforms import ChannelDropout, Smoothing, TimeShift, pick_window

EEG = torch.randn(6, 3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("samples", [0.2, 1, 2.5, 12, 39])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_smoothing_is_that_of_scipy(samples, dtype):
    smoothed = Smoothing(samples / 250, 250.0, 40)(EEG.to(dtype))
    expected = gaussian_filter1d(EEG.numpy(), samples, axis=-1, mode="nearest")
    assert smoothed.dtype == dtype
    np.testing.assert_allclose(
        smoothed.numpy(), expected, atol=1e-12 if dtype == torch.float64 else 1e-5
    )


def test_smoothing_stays_precise_in_mixed_precision():
    with torch.autocast("cpu", torch.bfloat16):
        smoothed = Smoothing(0.01, 100.0, 40)(EEG.float())
    np.testing.assert_allclose(
        smoothed.numpy(), gaussian_filter1d(EEG.numpy(), 1, mode="nearest"), atol=1e-5
    )


def test_a_window_is_cut_by_the_times():
    """Of epochs from -0.2 s at 100 Hz: both ends are in it, and rounding does not lose them."""
    times = -0.2 + np.arange(100) / 100
    for first, last in ((0.0, 0.5), (-0.2, 0.79), (0.3, 0.3), (0.101, 0.209), (0.07, 0.29)):
        inside = (times >= first - 1e-9) & (times <= last + 1e-9)
        assert np.array_equal(times[pick_window([first, last], -0.2, 100.0, 100)], times[inside])
    assert pick_window("all", -0.2, 100.0, 100) == slice(None)


@pytest.mark.parametrize("window", [[-0.3, 0.5], [0, 0.8], [0.5, 0.2], [1, 2]])
def test_a_window_that_does_not_fit_is_told(window):
    told = f"train.eeg_window {window[0]} .. {window[1]} s is no part of the EEG's -0.2 .. 0.79 s: set a first"
    with pytest.raises(InputError, match=told):
        pick_window(window, -0.2, 100.0, 100)
    with pytest.raises(
        InputError, match="no sample of the EEG lies in train.eeg_window 0.101 .. 0.109 s"
    ):
        pick_window([0.101, 0.109], -0.2, 100.0, 100)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            lambda: Smoothing(0.4, 100.0, 40),
            "train.smoothing is 0.4 s: for the 40 samples at 100 Hz .* less than 0.4 s",
        ),
        (lambda: Smoothing(0.001, 100.0, 40), "train.smoothing is 0.001 s: .* at least 0.00125 s"),
        (lambda: TimeShift(0.5, 100.0, 40), "train.time_shift is 0.5 s: .* less than 0.4 s"),
        (lambda: TimeShift(0.005, 100.0, 40), "train.time_shift is 0.005 s: .* at least 0.01 s"),
    ],
)
def test_seconds_without_effect_or_room_are_told(made, told):
    with pytest.raises(InputError, match=told):
        made()


def test_each_sample_is_shifted_on_its_own_and_its_ends_go_on():
    shift = TimeShift(0.03, 100.0, 40)
    eeg = EEG.repeat(200, 1, 1)
    torch.manual_seed(0)
    seen = set()
    for before, after in zip(eeg.numpy(), shift(eeg).numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (3, 3)), mode="edge")
        moves = [
            move for move in range(-3, 4) if np.array_equal(after, padded[:, 3 - move : 43 - move])
        ]
        assert len(moves) == 1
        seen.add(moves[0])
    assert seen == set(range(-3, 4))
    assert shift.eval()(eeg) is eeg


def test_channels_are_dropped_in_each_sample_on_their_own():
    drop, eeg = ChannelDropout(0.25), torch.ones(4000, 3, 2)
    torch.manual_seed(0)
    dropped = drop(eeg)
    kept = dropped[..., 0]
    assert torch.equal(dropped[..., 0], dropped[..., 1]) and set(kept.unique().tolist()) == {
        0.0,
        1.0,
    }
    assert (1 - kept.mean(0) - 0.25).abs().max() < 0.03  # four standard errors
    assert np.abs(np.corrcoef(kept.T) - np.eye(3)).max() < 0.07
    assert drop.eval()(eeg) is eeg
