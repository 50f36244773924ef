import numpy as np
import pytest

from pipeline.evaluate.masking import average_some, keep_window, mask_channel, windows


@pytest.fixture
def eeg() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((7, 3, 20))


def test_windows_lie_whole_within_the_epoch():
    assert windows(10, 4, 3) == [slice(0, 4), slice(3, 7), slice(6, 10)]
    assert windows(10, 10, 1) == [slice(0, 10)]


def test_outside_of_the_window_all_images_have_the_mean_response(eeg):
    kept = keep_window(eeg, slice(5, 9))
    assert (kept[..., 5:9] == eeg[..., 5:9]).all()
    outside = np.delete(kept, np.s_[5:9], axis=2)
    assert np.ptp(outside, axis=0).max() == 0
    assert outside[0] == pytest.approx(np.delete(eeg.mean(0), np.s_[5:9], axis=1))


def test_a_masked_channel_is_the_mean_response_and_the_others_stay(eeg):
    masked = mask_channel(eeg, 1)
    assert masked[:, 1] == pytest.approx(np.broadcast_to(eeg[:, 1].mean(0), (7, 20)))
    assert (masked[:, [0, 2]] == eeg[:, [0, 2]]).all()


def test_the_input_stays_as_it_was(eeg):
    before = eeg.copy()
    keep_window(eeg, slice(0, 5)), mask_channel(eeg, 0)
    assert (eeg == before).all()


def test_some_repetitions_are_averaged_without_replacement():
    """Repetition r is 2**r, so that a sum tells which were taken; every draw and image takes its own."""
    eeg = np.broadcast_to(2.0 ** np.arange(6)[:, None, None], (40, 6, 2, 3))
    sums = 3 * average_some(eeg, 3, 5, np.random.default_rng(0))
    assert sums.shape == (5, 40, 2, 3)
    taken = [bin(int(round(value))).count("1") for value in sums[..., 0, 0].ravel()]
    assert set(taken) == {3}
    assert len(np.unique(np.rint(sums[..., 0, 0]))) == 20  # every choice of 3 of 6 occurs


def test_all_repetitions_give_the_mean():
    eeg = np.random.default_rng(0).standard_normal((4, 6, 2, 3))
    averaged = average_some(eeg, 6, 2, np.random.default_rng(0))
    assert averaged == pytest.approx(np.broadcast_to(eeg.mean(1), averaged.shape))
