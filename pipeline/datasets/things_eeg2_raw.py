"""THINGS-EEG2 as recorded, made into the same chunks as the released, preprocessed EEG.

Published: Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754; Figshare+ 18470912.
Layout: one zip a subject, 63 EEG channels at 1000 Hz in four sessions (see `raw_files`).
Made of it: epochs, baseline and lower rate (see `epochs`), then multivariate noise normalisation
in each session (see `noise_normalisation`), or a z-score of each channel in its place, as in
SAMGA (arXiv 2604.17782, https://github.com/LinJiang8/SAMGA, preprocess_eeg.py).

The steps are those of https://github.com/gifale95/eeg_encoding (02_eeg_preprocessing), which made
the release, and of https://github.com/eeyhsong/NICE-EEG (preprocessing), which made the 63 channels
at 250 Hz. Where the two differ, or differ from ours:
- The noise covariance is that of the samples that are kept. NICE-EEG first cuts off the samples
  before the image; the release keeps the whole epoch.
- An image counts twice (training) or 20 times (test) in a session that shows it, though some are
  shown more often. We take the first ones. NICE-EEG and the release draw them at random.
- The z-score is by the mean and standard deviation of the training EEG of the session, over trials
  and times that are kept, for its test EEG too. SAMGA takes a standard deviation of 1e-8 V for any
  that is lower. Here a channel without any spread is only centred.
- Ours are not shuffled: repetitions are in the order of sessions, then of time. Averages over
  them are the same.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import mne
import numpy as np
import pandas as pd

from pipeline.datasets.entry import Layout, RawEeg
from pipeline.datasets.epochs import EpochPlan, cut_epochs, epoch_bounds, plan_epochs
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.noise_normalisation import mean_covariance, observations
from pipeline.datasets.raw_files import (
    FILES,
    REPETITIONS,
    SESSIONS,
    Channels,
    Members,
    choose_sessions,
    find_events,
    read_channels,
    read_rows,
)
from pipeline.datasets.scratch import Scratch
from pipeline.datasets.session_steps import UNITS_OF_WHITENED
from pipeline.datasets.sessions import (
    ChannelStep,
    SessionEpochs,
    StoredEpochs,
    gather,
    require_one_normalisation,
    whitening_caveats,
    whitening_step,
    z_score_step,
)
from pipeline.datasets.things_eeg2 import find_subjects, subject_of
from pipeline.errors import InputError
from pipeline.sections import Preprocess
from pipeline.untrusted.archives import open_zip

__all__ = ["UNITS", "caveats", "find_subjects", "memory_needed", "open_eeg"]

UNITS = "V"
LARGEST_RAW = 4 << 30  # bytes of one file, about twice the largest published
EPOCHS_AT_ONCE = 200  # cut together; at 1000 Hz, 63 channels of 1.2 s have 121 MB
CUTTING_BYTES = 400 << 20  # memory while these are cut
TRAINING_IMAGES_IN_A_SESSION = 0.5  # share of them; a session shows all test images


def caveats(preprocess: Preprocess) -> tuple[str, ...]:
    """Sentences that every result of EEG with this preparation must carry."""
    sentences = list(whitening_caveats(preprocess))
    if not _uses_all_sessions(preprocess):
        sessions = ", ".join(map(str, sorted(preprocess.sessions)))
        sentences.append(
            f"Of the {len(SESSIONS)} sessions of each subject only {sessions} were used "
            "(preprocess.sessions): there are fewer repetitions, and training images may be "
            "missing."
        )
    return tuple(sentences)


def _uses_all_sessions(preprocess: Preprocess) -> bool:
    return preprocess.sessions == "all" or set(preprocess.sessions) == set(SESSIONS)


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes: one file of EEG as float64, and the epochs cut.

    Only the archive's directory is read. Raises InputError where a session is missing, or where
    `preprocess` leaves rate or window as published, or normalises each session twice.
    """
    _require_rate_and_window(path, preprocess)
    require_one_normalisation(preprocess)
    with open_zip(path, LARGEST_RAW) as archive:
        members = choose_sessions(archive, preprocess.sessions, subject_of(path))
        # Files are read one after the other: the largest one decides.
        largest = max(archive.getinfo(name).file_size for name in members.values())
    return largest + CUTTING_BYTES


def _require_rate_and_window(path: Path, preprocess: Preprocess) -> tuple[float, Sequence[float]]:
    """Rate in Hz and window in s. Raises InputError where they are left as published."""
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: holds the EEG as recorded, at 1000 Hz and without epochs, so that "
            "preprocess.sfreq and .window cannot be published; choose both, as params/paper-data "
            "or params/release-data do"
        )
    return preprocess.sfreq, preprocess.window


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG of one subject, see `RawEeg`: in V, or without unit if each session is normalised.

    When the context is entered, the chosen sessions are read and cut into epochs, which takes
    minutes. The epochs wait in the folder for temporary files (10 GB for 63 channels at 250 Hz, see
    `Scratch`); nothing stays there. In memory are the chosen channels of one file and some hundred
    epochs: 2.2 GB for a full-size subject.

    Raises InputError for a file that is not as published, a missing channel, session or repetition,
    an epoch that reaches beyond the recording, or too little room in that folder.
    """
    sfreq, window = _require_rate_and_window(path, preprocess)
    require_one_normalisation(preprocess)
    uses_all_sessions = _uses_all_sessions(preprocess)

    with open_zip(path, LARGEST_RAW) as archive:
        members = choose_sessions(archive, preprocess.sessions, subject_of(path))
        first_session = min(session for session, _ in members)
        # Names come behind the EEG in a file, and the test file is the smaller one.
        channels = read_channels(archive, members[first_session, "test"])
        rows = channels.rows(preprocess.channels, str(path))
        plan = plan_epochs(sfreq, window, preprocess.baseline, channels.sfreq, str(path))
        is_z_scored = preprocess.normalise == "session"
        steps = _Steps(channels, rows, plan, preprocess.mvnn, is_z_scored)

        n_chans = len(rows) - 1  # the last row is the stim channel
        epoch_bytes = n_chans * len(plan.times) * 8
        n_bytes = _count_epochs(images, members) * epoch_bytes
        with Scratch(n_bytes, f"the epochs of {path.name}") as scratch:
            sessions = _read_sessions(archive, members, images, steps, preprocess, scratch)

            counts = {
                split: _count_repetitions(
                    sessions[split],
                    len(images[split]),
                    # A session shows all test images, and only some of the training images.
                    must_be_equal=split == "test" or uses_all_sessions,
                    file=f"{path}: {FILES[split]}",
                )
                for split in SPLITS
            }
            chunks = {split: gather(sessions[split], counts[split]) for split in SPLITS}

            layout = Layout(tuple(channels.names[row] for row in rows[:-1]), plan.times)
            n_repetitions = None if uses_all_sessions else counts
            is_whitened = preprocess.mvnn != "none"
            yield RawEeg(
                layout,
                chunks,
                caveats(preprocess),
                n_repetitions,
                is_z_scored,
                units=UNITS_OF_WHITENED if is_whitened else UNITS,
            )


@dataclass(frozen=True)
class _Steps:
    """What is done with each file: take these rows, the last of them the stim channel, and cut."""

    channels: Channels
    rows: Sequence[int]
    plan: EpochPlan
    mvnn: Literal["none", "time", "epochs"]
    z_score: bool


@dataclass(frozen=True)
class _Part:
    """The epochs of one session and split, sorted by image, and what was measured of them.

    `covariance` (C, C): of the noise; 0 if there is no noise normalisation.
    `mean`, `mean_square` (C, 1): of each channel, over epochs and times; 0 without z-score.
    """

    epochs: SessionEpochs
    covariance: np.ndarray
    mean: np.ndarray
    mean_square: np.ndarray


def _count_epochs(images: Mapping[Split, pd.DataFrame], members: Members) -> int:
    """About how many epochs these files hold, from what the experiment showed in a session."""
    n_training_images = len(images["train"]) * TRAINING_IMAGES_IN_A_SESSION
    epochs_in_a_session = {
        "train": n_training_images * REPETITIONS["train"],
        "test": len(images["test"]) * REPETITIONS["test"],
    }
    return round(sum(epochs_in_a_session[split] for _, split in members))


def _read_sessions(
    archive: zipfile.ZipFile,
    members: Members,
    images: Mapping[Split, pd.DataFrame],
    steps: _Steps,
    preprocess: Preprocess,
    scratch: Scratch,
) -> dict[Split, list[SessionEpochs]]:
    """The epochs of each session, written to `scratch` one session after the other."""
    sessions: dict[Split, list[SessionEpochs]] = {split: [] for split in SPLITS}
    for session in sorted({session for session, _ in members}):
        parts: dict[Split, _Part] = {}
        for split in SPLITS:
            name = members[session, split]
            parts[split] = _write_epochs(archive, name, split, len(images[split]), steps, scratch)

        step = _channel_step(parts, preprocess, f"{archive.filename}: session {session}")
        for split in SPLITS:
            sessions[split].append(replace(parts[split].epochs, step=step))
    return sessions


def _write_epochs(
    archive: zipfile.ZipFile,
    name: str,
    split: Split,
    n_images: int,
    steps: _Steps,
    scratch: Scratch,
) -> _Part:
    """Write the epochs of one recording, sorted by image, then by time."""
    file = f"{archive.filename}: {name}"
    channels = steps.channels
    plan = steps.plan
    n_repetitions = REPETITIONS[split]

    recording = read_rows(archive, name, channels, steps.rows)
    events = find_events(recording[-1], channels.sfreq, n_images, n_repetitions, file)
    _check_bounds(events, plan, channels.sfreq, recording.shape[1], file)

    ch_names = [channels.names[row] for row in steps.rows[:-1]]
    info = mne.create_info(ch_names, channels.sfreq, "eeg")
    raw = mne.io.RawArray(recording[:-1], info, verbose=False)  # not a copy

    # Whole images are cut at once, so that each has all its repetitions in one piece.
    shape = (n_repetitions, len(ch_names), len(plan.times))
    n_at_once = max(1, EPOCHS_AT_ONCE // n_repetitions) * n_repetitions
    covariance = np.zeros((len(ch_names), len(ch_names)))
    mean = np.zeros((len(ch_names), 1))
    mean_square = np.zeros((len(ch_names), 1))
    stored = StoredEpochs(scratch, shape[1:])
    first_number = scratch.end // stored.epoch_bytes
    for start in range(0, len(events), n_at_once):
        eeg = cut_epochs(raw, events[start : start + n_at_once], plan)
        scratch.append(eeg)

        share = len(eeg) / len(events)
        if steps.mvnn != "none":
            sets = observations(eeg.reshape(-1, *shape), steps.mvnn)
            # Each piece counts by its epochs: together they make the mean over all sets.
            covariance += mean_covariance(sets) * share
        if steps.z_score:
            mean += eeg.mean((0, 2))[:, None] * share
            mean_square += np.square(eeg).mean((0, 2))[:, None] * share

    # `find_events` sorted by image, and counts rows from 1.
    image_rows = events[:, 2] - 1
    numbers = first_number + np.arange(len(events))
    epochs = SessionEpochs(image_rows, numbers, stored)
    return _Part(epochs, covariance, mean, mean_square)


def _check_bounds(
    events: np.ndarray, plan: EpochPlan, sfreq: float, n_samples: int, file: str
) -> None:
    """Raise InputError where an epoch reaches beyond the recording."""
    first, last = epoch_bounds(plan, sfreq)
    beyond = (events[:, 0] + first < 0) | (events[:, 0] + last >= n_samples)
    if beyond.any():
        sample, _, image = events[beyond.argmax()]
        raise InputError(
            f"{file}: image {image} (from 1) appears at sample {sample} of {n_samples}, so that "
            f"its epoch of {plan.tmin:g} .. {plan.tmax:g} s is not all recorded; choose a shorter "
            "preprocess.window or .baseline"
        )


def _channel_step(
    parts: Mapping[Split, _Part], preprocess: Preprocess, session_name: str
) -> ChannelStep:
    """What is done to the channels of both splits of a session."""
    if preprocess.mvnn != "none":
        noise = {split: part.covariance for split, part in parts.items()}
        return whitening_step(noise, preprocess, session_name)

    if preprocess.normalise == "session":
        train = parts["train"]
        variance = np.maximum(train.mean_square - np.square(train.mean), 0)
        return z_score_step(train.mean, variance)
    return ChannelStep()


def _count_repetitions(
    sessions: Sequence[SessionEpochs], n_images: int, must_be_equal: bool, file: str
) -> np.ndarray:
    """The repetitions of each image in all sessions together, (n_images,).

    Raises InputError where they differ between images and `must_be_equal`.
    """
    image_rows = np.concatenate([session.image_rows for session in sessions])
    counts = np.bincount(image_rows, minlength=n_images)

    if must_be_equal and counts.min() != counts.max():
        raise InputError(
            f"{file}: image {counts.argmin() + 1} (from 1) has {counts.min()} repetitions in all "
            f"sessions together, others have {counts.max()}, expected as many of each; a session "
            "may be missing or be that of another subject: preprocess.sessions can leave it out, "
            "such as -S 'preprocess.sessions=[1,2]'"
        )
    return counts
