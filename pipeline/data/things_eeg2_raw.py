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
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import mne
import numpy as np
import pandas as pd

from pipeline.data.archives import open_zip
from pipeline.data.entry import Layout, RawEeg
from pipeline.data.epochs import EpochPlan, cut_epochs, epoch_bounds, plan_epochs
from pipeline.data.image_table import SPLITS, Split
from pipeline.data.noise_normalisation import mean_covariance, observations, whitening
from pipeline.data.raw_files import (
    FILES,
    REPETITIONS,
    SESSIONS,
    Channels,
    find_events,
    read_channels,
    read_rows,
)
from pipeline.data.things_eeg2 import find_subjects, subject_of
from pipeline.errors import InputError
from pipeline.sections import Preprocess

__all__ = ["caveats", "find_subjects", "open_eeg"]

LARGEST_RAW = 4 << 30  # bytes of one file, about twice the largest published
TRIALS = 200  # epochs that are cut at once; at 1000 Hz, 63 channels of 1.2 s have 121 MB
BLOCK = 32 << 20  # about so many bytes of prepared EEG are handed on at once


def caveats(preprocess: Preprocess) -> tuple[str, ...]:
    """Sentences that every result of EEG prepared so must carry."""
    if preprocess.mvnn == "none" or preprocess.mvnn_from == "training":
        return ()
    return (
        "The noise normalisation saw the test EEG: its covariance is the mean of that of the training EEG and that of "
        "the test EEG (preprocess.mvnn_from).",
    )


@contextmanager
def open_eeg(path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess) -> Iterator[RawEeg]:
    """The EEG of one subject, see `RawEeg`: in V, or without unit unless `preprocess.mvnn` is "none".

    All sessions are read and cut into epochs when the context is entered, which takes minutes; the epochs wait in the
    folder for temporary files (10 GB for 63 channels at 250 Hz; the environment variable TMPDIR can name another one).
    In memory are the wanted channels of one file, once, and some hundred epochs: 2.2 GB for a full-size subject.
    InputError for a file that is not as published, a channel that it lacks, a session or a repetition that is missing,
    an epoch that reaches beyond the recording, a full disk.
    """
    subject = subject_of(path)
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: holds the EEG as recorded, at 1000 Hz and without epochs, so that preprocess.sfreq and .window "
            "cannot be published; choose both, as params/paper-data or params/release-data do"
        )
    with open_zip(path, LARGEST_RAW) as archive, tempfile.TemporaryDirectory(prefix="aligned-eeg-") as folder:
        names = {(n, split): f"{subject}/ses-{n:02d}/{FILES[split]}" for n in SESSIONS for split in SPLITS}
        absent = [name for name in names.values() if name not in archive.namelist()]
        if absent:
            raise InputError(
                f"{path}: holds no {absent[0]}, expected {len(SESSIONS)} sessions with a {FILES['train']} and a "
                f"{FILES['test']} each; delete it and download it again"
            )
        known = read_channels(archive, names[SESSIONS[0], "test"])
        rows = known.rows(preprocess.channels, str(path))
        plan = plan_epochs(preprocess.sfreq, preprocess.window, preprocess.baseline, known.sfreq, str(path))
        steps = _Steps(known, rows, plan, preprocess.mvnn)
        sessions = []
        for n in SESSIONS:
            parts = {
                split: _epoch_file(
                    archive, names[n, split], split, len(images[split]), steps, Path(folder, f"{n}-{split}")
                )
                for split in SPLITS
            }
            sessions.append(_whiten(parts, preprocess, f"{path}: session {n}"))
        layout = Layout(tuple(known.names[row] for row in rows[:-1]), plan.times)
        blocks = {
            split: _blocks([parts[split] for parts in sessions], len(images[split]), f"{path}: {FILES[split]}")
            for split in SPLITS
        }
        yield RawEeg(layout, blocks, caveats(preprocess))


@dataclass(frozen=True)
class _Steps:
    """What is done with each file: these rows of it, of which the stim channel is the last, cut into epochs."""

    known: Channels
    rows: Sequence[int]
    plan: EpochPlan
    mvnn: Literal["none", "time", "epochs"]


@dataclass(frozen=True)
class _Part:
    """Epochs of one session and split in a file, float64 (len(images), R, C, T); images are rows from 0, rising."""

    images: np.ndarray
    shape: tuple[int, int, int]
    file: Path
    covariance: np.ndarray  # (C, C) of the noise; 0 unless it is asked for
    whitener: np.ndarray | None = None

    def read(self, begin: int, end: int) -> np.ndarray:
        """Those of images[begin:end], whitened."""
        size = math.prod(self.shape)
        eeg = np.fromfile(self.file, np.float64, (end - begin) * size, offset=begin * size * 8)
        eeg = eeg.reshape(end - begin, *self.shape)
        return eeg if self.whitener is None else self.whitener @ eeg


def _epoch_file(archive: zipfile.ZipFile, name: str, split: Split, n_images: int, steps: _Steps, out: Path) -> _Part:
    """Write the epochs of one recording to `out`, by image and then by time."""
    where, known, plan, repetitions = f"{archive.filename}: {name}", steps.known, steps.plan, REPETITIONS[split]
    recording = read_rows(archive, name, known, steps.rows)
    events = find_events(recording[-1], known.sfreq, n_images, repetitions, where)
    _check_bounds(events, plan, known.sfreq, recording.shape[1], where)
    info = mne.create_info([known.names[row] for row in steps.rows[:-1]], known.sfreq, "eeg")
    raw = mne.io.RawArray(recording[:-1], info, verbose=False)  # not a copy
    shape = (repetitions, len(raw.ch_names), len(plan.times))
    covariance = np.zeros((shape[1], shape[1]))
    trials = max(1, TRIALS // repetitions) * repetitions  # whole images
    try:
        with out.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, len(events) * shape[1] * shape[2] * 8)  # a full disk is told now
            for start in range(0, len(events), trials):
                eeg = cut_epochs(raw, events[start : start + trials], plan)
                eeg.tofile(file)
                if steps.mvnn != "none":
                    sets = observations(eeg.reshape(-1, *shape), steps.mvnn)
                    covariance += mean_covariance(sets) * (len(eeg) / len(events))
    except OSError as error:
        raise InputError(
            f"{out.parent}: the epochs of {where} cannot be written ({error.strerror}); let the environment variable "
            "TMPDIR name a folder with more room"
        ) from error
    return _Part(events[::repetitions, 2] - 1, shape, out, covariance)


def _check_bounds(events: np.ndarray, plan: EpochPlan, sfreq: float, n_samples: int, where: str) -> None:
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


def _blocks(parts: Sequence[_Part], n: int, where: str) -> Iterator[np.ndarray]:
    """The EEG of n images, all sessions together, in blocks (images, R, C, T)."""
    counts = np.zeros(n, int)
    for part in parts:
        counts[part.images] += part.shape[0]
    if counts.min() != counts.max():
        raise InputError(
            f"{where}: image {counts.argmin() + 1} (from 1) has {counts.min()} repetitions in all sessions together, "
            f"others have {counts.max()}, expected as many of each; is a session of another subject among them?"
        )
    return _gather(parts, n, counts.max())


def _gather(parts: Sequence[_Part], n: int, repetitions: int) -> Iterator[np.ndarray]:
    shape = (repetitions, *parts[0].shape[1:])
    step = max(1, BLOCK // (math.prod(shape) * 8))
    for start in range(0, n, step):
        block = np.empty((min(step, n - start), *shape))
        filled = np.zeros(len(block), int)
        for part in parts:
            begin, end = np.searchsorted(part.images, [start, start + step])
            if begin < end:
                at = part.images[begin:end] - start
                block[at[:, None], filled[at, None] + np.arange(part.shape[0])] = part.read(begin, end)
                filled[at] += part.shape[0]
        yield block
