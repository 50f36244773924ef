"""THINGS-EEG2 as recorded: 63 EEG channels at 1000 Hz, made into the same blocks as the released, preprocessed EEG.

Data: Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754; Figshare+ 18470912 (the layout: see `raw_files`).
The steps are those of https://github.com/gifale95/eeg_encoding (02_eeg_preprocessing), which made the release, and of
https://github.com/eeyhsong/NICE-EEG (preprocessing), which made the 63 channels at 250 Hz: epochs, baseline and lower
rate (see `epochs`), then multivariate noise normalisation in each session (see `noise_normalisation`). As there,
- the noise covariance is of the samples that are kept: NICE-EEG cuts off what is before the image first, and the
  release keeps all of an epoch;
- an image counts twice (training) or 20 times (test) in a session in which it is shown, though some are shown more
  often. Ours are the first ones, NICE-EEG and the release draw them at random.
Ours do not shuffle: repetitions stand in the order of sessions, then of time. Averages over them are the same.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import math
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
from pipeline.datasets.noise_normalisation import mean_covariance, observations, whitening
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
from pipeline.datasets.things_eeg2 import find_subjects, subject_of
from pipeline.errors import InputError
from pipeline.sections import Preprocess
from pipeline.untrusted.archives import open_zip

__all__ = ["caveats", "find_subjects", "memory_needed", "open_eeg"]

LARGEST_RAW = 4 << 30  # bytes of one file, about twice the largest published
TRIALS = 200  # epochs that are cut at once; at 1000 Hz, 63 channels of 1.2 s have 121 MB
CUTTING = 400 << 20  # bytes in memory while so many are cut
BLOCK = 32 << 20  # about so many bytes of prepared EEG are handed on at once
TRAINING_IMAGES_IN_A_SESSION = 0.5  # share of them; a session shows all test images


def caveats(preprocess: Preprocess) -> tuple[str, ...]:
    """Sentences that every result of EEG prepared so must carry."""
    sentences = []
    if preprocess.mvnn != "none" and preprocess.mvnn_from != "training":
        sentences.append(
            "The noise normalisation saw the test EEG: its covariance is the mean of that of the training EEG and that "
            "of the test EEG (preprocess.mvnn_from)."
        )
    if not _is_complete(preprocess):
        used = ", ".join(map(str, sorted(preprocess.sessions)))
        sentences.append(
            f"Of the {len(SESSIONS)} sessions of each subject only {used} were used (preprocess.sessions): there are "
            "fewer repetitions, and training images may be missing."
        )
    return tuple(sentences)


def _is_complete(preprocess: Preprocess) -> bool:
    return preprocess.sessions == "all" or set(preprocess.sessions) == set(SESSIONS)


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes: one file of EEG as float64, and epochs that are cut.

    Only the archive's directory is read. InputError for what it tells already: `preprocess` lacks what raw recordings
    need, or a session is missing.
    """
    _chosen_grid(path, preprocess)
    with open_zip(path, LARGEST_RAW) as archive:
        members = choose_sessions(archive, preprocess.sessions, subject_of(path))
        return max(archive.getinfo(name).file_size for name in members.values()) + CUTTING


def _chosen_grid(path: Path, preprocess: Preprocess) -> tuple[float, Sequence[float]]:
    """Rate and window; InputError where they are left as published, which raw recordings are not."""
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: holds the EEG as recorded, at 1000 Hz and without epochs, so that preprocess.sfreq and .window "
            "cannot be published; choose both, as params/paper-data or params/release-data do"
        )
    return preprocess.sfreq, preprocess.window


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG of one subject, see `RawEeg`: in V, or without unit unless `preprocess.mvnn` is "none".

    The wanted sessions are read and cut into epochs when the context is entered, which takes minutes; the epochs wait
    in the folder for temporary files (10 GB for 63 channels at 250 Hz; see `Scratch`), of which nothing stays.
    In memory are the wanted channels of one file, once, and some hundred epochs: 2.2 GB for a full-size subject.
    InputError for a file that is not as published, a channel that it lacks, a session or a repetition that is missing,
    an epoch that reaches beyond the recording, too little room in that folder.
    """
    sfreq, window = _chosen_grid(path, preprocess)
    with open_zip(path, LARGEST_RAW) as archive:
        members = choose_sessions(archive, preprocess.sessions, subject_of(path))
        sessions = sorted({session for session, _ in members})
        known = read_channels(archive, members[sessions[0], "test"])
        rows = known.rows(preprocess.channels, str(path))
        plan = plan_epochs(sfreq, window, preprocess.baseline, known.sfreq, str(path))
        steps = _Steps(known, rows, plan, preprocess.mvnn)

        epoch_bytes = (len(rows) - 1) * len(plan.times) * 8
        n_bytes = _count_epochs(images, members) * epoch_bytes
        with Scratch(n_bytes, f"the epochs of {path.name}") as scratch:
            parts = _read_sessions(archive, members, images, steps, preprocess, scratch)
            layout = Layout(tuple(known.names[row] for row in rows[:-1]), plan.times)
            counts = {
                split: _count_repetitions(
                    parts[split],
                    len(images[split]),
                    alike=split == "test" or _is_complete(preprocess),
                    where=f"{path}: {FILES[split]}",
                )
                for split in SPLITS
            }
            blocks = {split: _gather(parts[split], counts[split]) for split in SPLITS}
            yield RawEeg(
                layout, blocks, caveats(preprocess), None if _is_complete(preprocess) else counts
            )


@dataclass(frozen=True)
class _Steps:
    """What is done with each file: these rows of it, of which the stim channel is the last, cut into epochs."""

    known: Channels
    rows: Sequence[int]
    plan: EpochPlan
    mvnn: Literal["none", "time", "epochs"]


@dataclass(frozen=True)
class _Part:
    """Epochs of one session and split on the disk, float64 (len(images), R, C, T); images are rows from 0, rising."""

    images: np.ndarray
    shape: tuple[int, int, int]
    scratch: Scratch
    begin: int  # their first byte in it
    covariance: np.ndarray  # (C, C) of the noise; 0 unless it is asked for
    whitener: np.ndarray | None = None

    def read(self, begin: int, end: int) -> np.ndarray:
        """Those of images[begin:end], whitened."""
        image_bytes = math.prod(self.shape) * 8
        eeg = self.scratch.read(self.begin + begin * image_bytes, (end - begin, *self.shape))
        return eeg if self.whitener is None else self.whitener @ eeg


def _count_epochs(images: Mapping[Split, pd.DataFrame], members: Members) -> int:
    """About how many epochs these files hold, from what the experiment showed in a session."""
    in_a_session = {
        "train": len(images["train"]) * TRAINING_IMAGES_IN_A_SESSION * REPETITIONS["train"],
        "test": len(images["test"]) * REPETITIONS["test"],
    }
    return round(sum(in_a_session[split] for _, split in members))


def _read_sessions(
    archive: zipfile.ZipFile,
    members: Members,
    images: Mapping[Split, pd.DataFrame],
    steps: _Steps,
    preprocess: Preprocess,
    scratch: Scratch,
) -> dict[Split, list[_Part]]:
    """The epochs of each session, written to `scratch` one after the other."""
    parts: dict[Split, list[_Part]] = {split: [] for split in SPLITS}
    for session in sorted({session for session, _ in members}):
        of_session = {
            split: _write_epochs(
                archive, members[session, split], split, len(images[split]), steps, scratch
            )
            for split in SPLITS
        }
        whitened = _whiten(of_session, preprocess, f"{archive.filename}: session {session}")
        for split in SPLITS:
            parts[split].append(whitened[split])
    return parts


def _write_epochs(
    archive: zipfile.ZipFile,
    name: str,
    split: Split,
    n_images: int,
    steps: _Steps,
    scratch: Scratch,
) -> _Part:
    """Write the epochs of one recording, by image and then by time."""
    where, known, plan, repetitions = (
        f"{archive.filename}: {name}",
        steps.known,
        steps.plan,
        REPETITIONS[split],
    )
    recording = read_rows(archive, name, known, steps.rows)
    events = find_events(recording[-1], known.sfreq, n_images, repetitions, where)
    _check_bounds(events, plan, known.sfreq, recording.shape[1], where)
    info = mne.create_info([known.names[row] for row in steps.rows[:-1]], known.sfreq, "eeg")
    raw = mne.io.RawArray(recording[:-1], info, verbose=False)  # not a copy
    shape = (repetitions, len(raw.ch_names), len(plan.times))
    covariance = np.zeros((shape[1], shape[1]))
    trials = max(1, TRIALS // repetitions) * repetitions  # whole images
    begin = scratch.end
    for start in range(0, len(events), trials):
        eeg = cut_epochs(raw, events[start : start + trials], plan)
        scratch.append(eeg)
        if steps.mvnn != "none":
            sets = observations(eeg.reshape(-1, *shape), steps.mvnn)
            covariance += mean_covariance(sets) * (len(eeg) / len(events))
    return _Part(events[::repetitions, 2] - 1, shape, scratch, begin, covariance)


def _check_bounds(
    events: np.ndarray, plan: EpochPlan, sfreq: float, n_samples: int, where: str
) -> None:
    first, last = epoch_bounds(plan, sfreq)
    beyond = (events[:, 0] + first < 0) | (events[:, 0] + last >= n_samples)
    if beyond.any():
        sample, _, image = events[beyond.argmax()]
        raise InputError(
            f"{where}: image {image} (from 1) appears at sample {sample} of {n_samples}, so that its epoch of "
            f"{plan.tmin:g} .. {plan.tmax:g} s is not all recorded; choose a shorter preprocess.window or .baseline"
        )


def _whiten(parts: dict[Split, _Part], preprocess: Preprocess, where: str) -> dict[Split, _Part]:
    """The parts of a session, to be whitened when they are read."""
    if preprocess.mvnn == "none":
        return parts
    covariance = parts["train"].covariance
    if preprocess.mvnn_from == "training-and-test":
        covariance = (covariance + parts["test"].covariance) / 2
    whitener = whitening(covariance)
    if whitener is None:
        raise InputError(
            f"{where}: the noise covariance of the channels has no inverse, because some of them are sums of others; "
            "leave channels out (preprocess.channels), or set preprocess.mvnn to none"
        )
    return {split: replace(part, whitener=whitener) for split, part in parts.items()}


def _count_repetitions(
    parts: Sequence[_Part], n_images: int, alike: bool, where: str
) -> np.ndarray:
    """The repetitions of each image in all sessions together, (n_images,); `alike`: they must be as many of each."""
    counts = np.zeros(n_images, int)
    for part in parts:
        counts[part.images] += part.shape[0]
    if alike and counts.min() != counts.max():
        raise InputError(
            f"{where}: image {counts.argmin() + 1} (from 1) has {counts.min()} repetitions in all sessions together, "
            f"others have {counts.max()}, expected as many of each; a session may be missing or be that of another "
            "subject: preprocess.sessions can leave it out, such as -S 'preprocess.sessions=[1,2]'"
        )
    return counts


def _gather(parts: Sequence[_Part], counts: np.ndarray) -> Iterator[np.ndarray]:
    """The EEG of the images that were seen, all sessions together, in blocks (images, R, C, T) of the same R."""
    seen = np.flatnonzero(counts)
    shape = (counts.max(), *parts[0].shape[1:])
    step = max(1, BLOCK // (math.prod(shape) * 8))
    for start in range(0, len(seen), step):
        images = seen[start : start + step]
        block = np.empty((len(images), *shape))
        filled = np.zeros(len(images), int)
        for part in parts:
            begin, end = np.searchsorted(part.images, [images[0], images[-1] + 1])
            if begin < end:
                at = np.searchsorted(images, part.images[begin:end])
                block[at[:, None], filled[at, None] + np.arange(part.shape[0])] = part.read(
                    begin, end
                )
                filled[at] += part.shape[0]

        # Images with fewer repetitions than others are handed on apart.
        changes = np.flatnonzero(np.diff(filled)) + 1
        for eeg, n_repetitions in zip(
            np.split(block, changes), np.split(filled, changes), strict=True
        ):
            yield eeg[:, : n_repetitions[0]]
