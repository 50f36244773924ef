"""Prepared EEG joined to cached embeddings: what a model is trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PREPARE_AGAIN, InputError
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.recordings import Recording, read_shape, read_split


@dataclass(frozen=True)
class Samples:
    """M responses, each with the image, the subject and the concept that it belongs to."""

    eeg: Tensor  # (M, C, T) float32 or float16
    image_row: Tensor  # (M,) int64: the row of the image in the embedding cache
    subject: np.ndarray  # (M,) str
    things_concept: np.ndarray  # (M,) str
    sfreq: float  # Hz
    start: float = 0.0  # time of the first of T, in s from stimulus onset
    to_normalise: bool = False  # each response, after repetitions are averaged: see `Recording`
    ch_names: tuple[str, ...] = ()  # C names, or none if no EEG encoder needs them

    def take(self, rows: np.ndarray) -> "Samples":
        return Samples(
            self.eeg[rows],
            self.image_row[rows],
            self.subject[rows],
            self.things_concept[rows],
            self.sfreq,
            self.start,
            self.to_normalise,
            self.ch_names,
        )

    def to(self, device: torch.device) -> "Samples":
        """With the EEG on this device; what says which rows are used stays on the CPU."""
        return replace(self, eeg=self.eeg.to(device))


def read_samples(
    paths: Sequence[Path], split: Literal["train", "test"], embeddings: Embeddings
) -> Samples:
    """One split of these subjects, as `LoadedEeg` has it."""
    return LoadedEeg(paths, split).samples(paths, embeddings)


class LoadedEeg:
    """One split of the subjects' EEG, in memory once for all runs of a process.

    A subject is read when a run first needs it. Training repetitions are samples of their own where
    they are in the file; those of the test are averaged. Training EEG that is stored in half
    precision stays in it.

    All EEG is one tensor, so that no run needs a copy. torch.empty only reserves addresses: a
    subject that is not read takes no memory.
    """

    def __init__(self, paths: Sequence[Path], split: Literal["train", "test"]) -> None:
        self._split: Literal["train", "test"] = split
        self._average = split == "test"
        self._folder = paths[0].parent
        self._recordings: dict[Path, Recording] = {}

        self._shapes = {}
        dtypes = []
        for path in paths:
            self._shapes[path], dtype = read_shape(path, split, self._average)
            dtypes.append(dtype)
        shapes = list(self._shapes.values())  # (conditions, C, T), or (conditions, R, C, T)
        if len({shape[-2:] for shape in shapes}) != 1:
            raise self._differ()

        # The subjects lie one after the other
        sizes = [math.prod(shape[:-2]) for shape in shapes]
        ends = np.cumsum(sizes)
        self._rows = {
            path: np.arange(end - n, end) for path, end, n in zip(paths, ends, sizes, strict=True)
        }
        is_half = split == "train" and all(dtype == np.float16 for dtype in dtypes)
        precision = torch.float16 if is_half else torch.float32
        self._eeg = torch.empty(sum(sizes), *shapes[0][-2:], dtype=precision)

    def samples(self, paths: Sequence[Path], embeddings: Embeddings) -> Samples:
        """Samples with a row for every subject of the constructor, filled in for these subjects.

        Rows of other subjects are placeholders: subject and concept "", image row -1, and EEG that
        may never have been read.
        InputError where an image has no embedding, or the subjects' channels or times differ.
        """
        for path in paths:
            if path not in self._recordings:
                self._read(path)

        n = len(self._eeg)
        image_row = np.full(n, -1)
        subject = np.full(n, "", object)
        things_concept = np.full(n, "", object)
        for path in paths:
            rows = self._rows[path]
            recording = self._recordings[path]
            n_repetitions = len(rows) // len(recording.image_ids)
            image_row[rows] = embeddings.rows(recording.image_ids).repeat(n_repetitions)
            things_concept[rows] = recording.things_concept.repeat(n_repetitions)
            subject[rows] = recording.subject

        first = self._recordings[paths[0]]
        return Samples(
            self._eeg,
            torch.from_numpy(image_row),
            subject,
            things_concept,
            first.sfreq,
            start=float(first.times[0]),
            to_normalise=first.to_normalise,
            ch_names=first.ch_names,
        )

    def _read(self, path: Path) -> None:
        """Read a subject's EEG into its rows."""
        rows = self._rows[path]
        out = self._eeg[rows[0] : rows[-1] + 1].view(self._shapes[path]).numpy()
        recording = read_split(path, self._split, self._average, out)

        for present in self._recordings.values():
            same_channels = recording.ch_names == present.ch_names
            if not same_channels or [*recording.times] != [*present.times]:
                raise self._differ()
        self._recordings[path] = recording

    def _differ(self) -> InputError:
        return InputError(
            f"{self._folder}: the subjects' channels or times differ; {PREPARE_AGAIN}"
        )
