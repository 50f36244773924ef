"""Test EEG with something taken away: all but a window of time, one channel, or some of the repetitions.

What is masked is not set to zero, which no response looks like, but to the mean of the subject's responses to all test
images at that channel and sample: a value in the range that the model knows, the same for every image, so that it says
nothing about which one was seen. It needs no labels.
"""

import numpy as np


def windows(n_times: int, width: int, step: int) -> list[slice]:
    """The windows of `width` samples that lie whole within `n_times`, one every `step` samples."""
    return [slice(start, start + width) for start in range(0, n_times - width + 1, step)]


def keep_window(eeg: np.ndarray, window: slice) -> np.ndarray:
    """EEG (N, C, T) in which only the samples of the window differ between images."""
    kept = np.broadcast_to(eeg.mean(0), eeg.shape).copy()
    kept[..., window] = eeg[..., window]
    return kept


def mask_channel(eeg: np.ndarray, channel: int) -> np.ndarray:
    """EEG (N, C, T) in which one channel is the same for all images."""
    masked = eeg.copy()
    masked[:, channel] = eeg[:, channel].mean(0)
    return masked


def average_some(eeg: np.ndarray, n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """EEG (N, R, C, T) averaged over `n` repetitions of each image, drawn without replacement: (draws, N, C, T)."""
    n_images, n_repetitions, *shape = eeg.shape
    order = rng.permuted(np.tile(np.arange(n_repetitions), (n_images, draws, 1)), axis=2)
    weights = (order < n).astype(eeg.dtype) / n  # (N, draws, R)
    averaged = weights @ eeg.reshape(n_images, n_repetitions, -1)
    return averaged.swapaxes(0, 1).reshape(draws, n_images, *shape)
