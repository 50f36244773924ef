"""What is done to the channels of each session of a recording, by its training trials.

The noise covariance is the mean over images of what `noise_normalisation` computes of each, so that
an image counts once, however often it was shown. With `mvnn: time` only images count that a session
showed at least twice, and so it is with `mvnn: epochs` of residuals.
Axes: N images, R repetitions, C channels, T samples.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.noise_normalisation import Observations, mean_covariance, observations
from pipeline.datasets.sessions import (
    ChannelStep,
    EpochSource,
    SessionEpochs,
    gather,
    whitening_step,
    z_score_step,
)
from pipeline.errors import InputError
from pipeline.sections import Preprocess

CHOOSE_SESSIONS = "choose other sessions (preprocess.sessions)"
UNITS_OF_WHITENED = "whitened (multivariate noise normalisation), no physical unit"


def split_by_session(
    trials: pd.DataFrame,
    source: EpochSource,
    preprocess: Preprocess,
    path: Path,
    *,
    residuals: bool = False,
) -> list[dict[Split, SessionEpochs]]:
    """The epochs of each session, in the order of sessions, with what is done to its channels.

    `trials` has the columns `session`, `split` and `image_row`, and its index has the number of
    each trial in `source`. `path` is what messages call the recording. With `residuals` the mean
    response to each image in the session is taken off before its noise is measured over the times
    of an epoch (`mvnn: epochs`). Raises InputError where a session has no trials that tell its
    noise, or where their covariance has no inverse.
    """
    sessions = []
    for session, of_session in trials.groupby("session"):
        epochs: dict[Split, SessionEpochs] = {}
        for split in SPLITS:
            rows = of_session[of_session["split"] == split]
            numbers = rows.index.to_numpy()
            epochs[split] = SessionEpochs(rows["image_row"].to_numpy(), numbers, source)

        step = _channel_step(epochs, preprocess, residuals, f"{path}: session {session}")
        sessions.append({split: replace(epochs[split], step=step) for split in SPLITS})
    return sessions


def _channel_step(
    epochs: Mapping[Split, SessionEpochs],
    preprocess: Preprocess,
    residuals: bool,
    session_name: str,
) -> ChannelStep:
    """What is done to the channels of a session."""
    if preprocess.mvnn == "none" and preprocess.normalise != "session":
        return ChannelStep()

    key = "mvnn" if preprocess.mvnn != "none" else "normalise"
    with_test = preprocess.mvnn != "none" and preprocess.mvnn_from == "training-and-test"
    for split in SPLITS if with_test else SPLITS[:1]:
        if not len(epochs[split].image_rows):
            raise InputError(
                f"{session_name}: has no {split} trials, from which preprocess.{key} would take "
                f"its measure; set it to none, or {CHOOSE_SESSIONS}"
            )

    if preprocess.mvnn == "none":
        return z_score_step(*_mean_and_variance(epochs["train"]))
    noise: dict[Split, np.ndarray] = {}
    for split in SPLITS if with_test else SPLITS[:1]:
        noise[split] = _noise_covariance(epochs[split], preprocess.mvnn, residuals, session_name)
    return whitening_step(noise, preprocess, session_name)


def _noise_covariance(
    epochs: SessionEpochs, of: Observations, residuals: bool, session_name: str
) -> np.ndarray:
    """The mean over images of the noise covariance (C, C) of each."""
    counts = np.bincount(epochs.image_rows)
    if of == "time" or residuals:
        # An image that was shown once does not differ from its own mean.
        is_used = counts[epochs.image_rows] > 1
        counts[counts == 1] = 0
        epochs = replace(
            epochs, image_rows=epochs.image_rows[is_used], numbers=epochs.numbers[is_used]
        )

    n_images = np.count_nonzero(counts)
    if not n_images:
        remedy = "set it to none" if residuals else "set it to epochs"
        raise InputError(
            f"{session_name}: shows no image twice, so that preprocess.mvnn: {of} has nothing to "
            f"compare; {remedy}"
        )

    n_chans, _ = epochs.source.shape
    covariance = np.zeros((n_chans, n_chans))
    for eeg in gather([epochs], counts):
        if of == "epochs" and residuals:
            eeg -= eeg.mean(axis=1, keepdims=True)
            if eeg.shape[1] == 2:
                eeg = eeg[:, :1]  # the other one is the same but for its sign
        sets = observations(epochs.source.finish(eeg), of)
        covariance += mean_covariance(sets) * (len(eeg) / n_images)
    return covariance


def _mean_and_variance(epochs: SessionEpochs) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, over trials and times, (C, 1) both."""
    n_trials = 0
    n_chans, _ = epochs.source.shape
    mean = np.zeros((n_chans, 1))
    squares = np.zeros((n_chans, 1))  # sum over trials, mean over times
    for chunk in gather([epochs], np.bincount(epochs.image_rows)):
        finished = epochs.source.finish(chunk)
        eeg = finished.reshape(-1, *finished.shape[2:])
        # Chunk by chunk after Chan et al.: exact also for an offset far above the deviations.
        of_chunk = eeg.mean(axis=(0, 2))[:, None]
        difference = of_chunk - mean
        n_all = n_trials + len(eeg)
        squares += np.square(eeg - of_chunk).mean(axis=2).sum(axis=0)[:, None]
        squares += np.square(difference) * n_trials * len(eeg) / n_all
        mean = mean + difference * len(eeg) / n_all
        n_trials = n_all
    return mean, squares / n_trials
