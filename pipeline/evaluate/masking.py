"""Test EEG with a part masked: all but one window of time, one channel, or some repetitions.

The masked part is not set to zero, because no real response is zero. It is set to the subject's
mean response over all test images, at each channel and sample. The model knows values of this
range, and they are the same for every image: they tell nothing about the image that was seen.
Masking needs no labels.

Axes: N images, R repetitions, C channels, T samples.
"""

import numpy as np


def windows(n_times: int, width: int, step: int) -> list[slice]:
    """All windows of `width` samples within `n_times`, one every `step` samples."""
    return [slice(start, start + width) for start in range(0, n_times - width + 1, step)]


def keep_window(eeg: np.ndarray, window: slice) -> np.ndarray:
    """EEG (N, C, T) masked outside the window: only samples of the window differ among images."""
    # The mean response of all images, (C, T), stands for each of them.
    masked = np.broadcast_to(eeg.mean(0), eeg.shape).copy()
    masked[..., window] = eeg[..., window]
    return masked


def mask_channel(eeg: np.ndarray, channel: int) -> np.ndarray:
    """EEG (N, C, T) in which one channel is the same for all images."""
    masked = eeg.copy()
    masked[:, channel] = eeg[:, channel].mean(0)
    return masked


def average_some(eeg: np.ndarray, n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `n` repetitions of each image, drawn without replacement.

    From EEG (N, R, C, T) to (draws, N, C, T), of the same dtype.
    """
    return average_groups(eeg, n, 1, draws, rng)[0]


def average_groups(
    eeg: np.ndarray, n: int, n_groups: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """The same of several groups of `n` repetitions, which share none: (groups, draws, N, C, T).

    The first group is what `average_some` draws.
    """
    n_images, n_repetitions, *shape = eeg.shape

    # Each draw and image has its own random order of the repetitions: the first n are averaged,
    # for the next group the next n.
    order = rng.permuted(np.tile(np.arange(n_repetitions), (n_images, draws, 1)), axis=2)
    group = np.arange(n_groups)[:, None, None, None]
    weights = (order // n == group).astype(eeg.dtype) / n  # (groups, N, draws, R)

    averaged = weights @ eeg.reshape(n_images, n_repetitions, -1)  # (groups, N, draws, C * T)
    return averaged.swapaxes(1, 2).reshape(n_groups, draws, n_images, *shape)
