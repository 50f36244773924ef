"""Epochs of several sessions: whitened or z-scored session by session, gathered image by image.

Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.datasets.image_table import Split
from pipeline.datasets.noise_normalisation import whitening
from pipeline.datasets.scratch import Scratch
from pipeline.errors import InputError
from pipeline.sections import Preprocess

CHUNK_BYTES = 32 << 20  # about the size of one chunk of prepared EEG


@dataclass(frozen=True)
class ChannelStep:
    """What is done to the channels of a session when they are read: one or none of these.

    `whitener` (C, C): to multiply them with.
    `centre`, `sd` (C, 1): to take out of them, and then to divide them by.
    """

    whitener: np.ndarray | None = None
    centre: np.ndarray | None = None
    sd: np.ndarray | None = None

    def apply(self, eeg: np.ndarray) -> np.ndarray:
        """The EEG (..., C, T) after the step."""
        if self.whitener is not None:
            # (C, C) @ (..., C, T): every sample of every epoch is a vector of channels.
            return self.whitener @ eeg
        if self.centre is not None:
            standardised: np.ndarray = (eeg - self.centre) / self.sd
            return standardised
        return eeg


class EpochSource(Protocol):
    """What has the epochs of a subject. The last step of making them is a call of its own.

    That step is linear, concerns times alone, and leaves a constant as it is. So it may come after
    all that is done to channels, and after a mean over trials, when it has less to do.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(C, S) of an epoch before its last step."""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The epochs of these numbers, from 0, but for the last step: (n, C, S) float64."""

    def finish(self, eeg: np.ndarray) -> np.ndarray:
        """The last step: (..., C, S) becomes (..., C, T)."""


@dataclass(frozen=True)
class StoredEpochs:
    """Epochs (C, T) that wait on the disk, one after the other: an `EpochSource`."""

    scratch: Scratch
    shape: tuple[int, int]

    @property
    def epoch_bytes(self) -> int:
        """The size of one."""
        return math.prod(self.shape) * 8

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """See `EpochSource`."""
        eeg = np.empty((len(numbers), *self.shape))
        for epoch, number in zip(eeg, numbers.tolist(), strict=True):
            epoch[:] = self.scratch.read(number * self.epoch_bytes, self.shape)
        return eeg

    def finish(self, eeg: np.ndarray) -> np.ndarray:
        """Nothing is left to be done."""
        return eeg


@dataclass(frozen=True)
class SessionEpochs:
    """The n epochs of one session and split.

    `image_rows` (n,): the image that each shows, as its row in the table of images.
    `numbers` (n,): its number in `source`.
    `step`: what is done to its channels.
    """

    image_rows: np.ndarray
    numbers: np.ndarray
    source: EpochSource
    step: ChannelStep = ChannelStep()

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """Epochs of this session, chosen by their place in it from 0: (n, C, S), see `source`."""
        return self.step.apply(self.source.read(self.numbers[chosen]))


def gather(sessions: Sequence[SessionEpochs], counts: np.ndarray) -> Iterator[np.ndarray]:
    """The EEG of the images that were shown, all sessions together, in chunks (n, R, C, S).

    The last step of its source is still to come. `counts` (N,) are the repetitions of each image. R
    is the same for all images of a chunk. The repetitions of an image are in the order of the
    sessions, then of their epochs.
    """
    shape = sessions[0].source.shape
    image_rows = np.concatenate([session.image_rows for session in sessions])
    numbers = np.concatenate([np.arange(len(session.image_rows)) for session in sessions])
    session_of = np.repeat(
        np.arange(len(sessions)), [len(session.image_rows) for session in sessions]
    )

    by_image = np.argsort(image_rows, kind="stable")  # so that repetitions stay in order
    ends = np.cumsum(counts)
    shown = np.flatnonzero(counts)
    n_at_once = max(1, CHUNK_BYTES // (int(counts.max()) * math.prod(shape) * 8))
    for start in range(0, len(shown), n_at_once):
        images = shown[start : start + n_at_once]
        epochs = by_image[ends[images[0]] - counts[images[0]] : ends[images[-1]]]

        eeg = np.empty((len(epochs), *shape))
        for i, session in enumerate(sessions):
            of_session = np.flatnonzero(session_of[epochs] == i)
            if len(of_session):
                eeg[of_session] = session.read(numbers[epochs[of_session]])

        # Split where the number of repetitions changes, so that a chunk has only one.
        repetitions = counts[images]
        changes = np.flatnonzero(np.diff(repetitions)) + 1
        pieces = np.split(eeg, np.cumsum(repetitions)[changes - 1])
        for piece, of_images in zip(pieces, np.split(repetitions, changes), strict=True):
            yield piece.reshape(len(of_images), of_images[0], *shape)


def whitening_step(
    noise: Mapping[Split, np.ndarray], preprocess: Preprocess, session_name: str
) -> ChannelStep:
    """What whitens the channels, by the covariance (C, C) of the noise of each split.

    That of the test EEG is used only if `preprocess.mvnn_from` says so. `session_name` is what the
    message calls the session. Raises InputError where the covariance has no inverse.
    """
    covariance = noise["train"]
    if preprocess.mvnn_from == "training-and-test":
        # The mean of the two, although there are fewer test images: so does the release's code.
        covariance = (covariance + noise["test"]) / 2

    whitener = whitening(covariance)
    if whitener is None:
        raise InputError(
            f"{session_name}: the noise covariance of the channels has no inverse, because some of "
            "them are sums of others; leave channels out (preprocess.channels), or set "
            "preprocess.mvnn to none"
        )
    return ChannelStep(whitener=whitener)


def z_score_step(mean: np.ndarray, variance: np.ndarray) -> ChannelStep:
    """What makes z-scores of channels of this mean and variance, (C, 1) both.

    A channel without any spread is only centred.
    """
    return ChannelStep(centre=mean, sd=np.sqrt(np.where(variance > 0, variance, 1)))


def require_one_normalisation(preprocess: Preprocess) -> None:
    """Raises InputError where each session would be whitened and z-scored."""
    if preprocess.normalise == "session" and preprocess.mvnn != "none":
        raise InputError(
            f"preprocess.normalise is session, which is a z-score in the place of preprocess.mvnn, "
            f"and preprocess.mvnn is {preprocess.mvnn}: set one of them to none"
        )


def whitening_caveats(preprocess: Preprocess) -> tuple[str, ...]:
    """What every result must say of the noise normalisation."""
    if preprocess.mvnn == "none" or preprocess.mvnn_from == "training":
        return ()
    return (
        "The noise normalisation saw the test EEG: its covariance is the mean of that of the "
        "training EEG and that of the test EEG (preprocess.mvnn_from).",
    )
