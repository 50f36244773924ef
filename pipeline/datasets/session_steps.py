"""What is done to the channels of each session of a recording, by its training trials.

The noise covariance is the mean over images of what `noise_normalisation` computes of each, so that
an image counts once, however often it was shown. With `mvnn: time` only images count that a session
showed at least twice.
Axes: C channels, T samples.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.noise_normalisation import Observations, mean_covariance, observations
from pipeline.datasets.scratch import Scratch
from pipeline.datasets.sessions import (
    ChannelStep,
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
    shape: tuple[int, int],
    scratch: Scratch,
    preprocess: Preprocess,
    path: Path,
) -> list[dict[Split, SessionEpochs]]:
    """The epochs of each session, in the order of sessions, with what is done to its channels."""
    begins = np.arange(len(trials)) * math.prod(shape) * 8  # as `read_files` wrote them
    sessions = []
    for session, of_session in trials.groupby("session"):
        epochs: dict[Split, SessionEpochs] = {}
        for split in SPLITS:
            rows = of_session[of_session["split"] == split]
            epochs[split] = SessionEpochs(
                rows["image_row"].to_numpy(), begins[rows.index], shape, scratch
            )

        step = _channel_step(epochs, preprocess, f"{path}: session {session}")
        sessions.append({split: replace(epochs[split], step=step) for split in SPLITS})
    return sessions


def _channel_step(
    epochs: Mapping[Split, SessionEpochs], preprocess: Preprocess, session_name: str
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
    noise["train"] = _noise_covariance(epochs["train"], preprocess.mvnn, session_name)
    if with_test:
        noise["test"] = _noise_covariance(epochs["test"], preprocess.mvnn, session_name)
    return whitening_step(noise, preprocess, session_name)


def _noise_covariance(epochs: SessionEpochs, of: Observations, session_name: str) -> np.ndarray:
    """The mean over images of the noise covariance (C, C) of each."""
    total = np.zeros((epochs.shape[0], epochs.shape[0]))
    n_images = 0
    for eeg in gather([epochs], np.bincount(epochs.image_rows)):
        if of == "epochs" or eeg.shape[1] > 1:
            total += mean_covariance(observations(eeg, of)) * len(eeg)
            n_images += len(eeg)

    if not n_images:
        raise InputError(
            f"{session_name}: shows no image twice, so that preprocess.mvnn: time has nothing to "
            "compare; set it to epochs"
        )
    return total / n_images


def _mean_and_variance(epochs: SessionEpochs) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, over trials and times, (C, 1) both."""
    n_trials = 0
    mean = np.zeros((epochs.shape[0], 1))
    squares = np.zeros((epochs.shape[0], 1))  # sum over trials, mean over times
    for chunk in gather([epochs], np.bincount(epochs.image_rows)):
        eeg = chunk.reshape(-1, *epochs.shape)
        # Chunk by chunk after Chan et al.: exact also for an offset far above the deviations.
        of_chunk = eeg.mean(axis=(0, 2))[:, None]
        difference = of_chunk - mean
        n_all = n_trials + len(eeg)
        squares += np.square(eeg - of_chunk).mean(axis=2).sum(axis=0)[:, None]
        squares += np.square(difference) * n_trials * len(eeg) / n_all
        mean = mean + difference * len(eeg) / n_all
        n_trials = n_all
    return mean, squares / n_trials
