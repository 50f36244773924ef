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
    """EEG (M, C, T) float32 or float16; of each sample the row of its image's embedding, subject, THINGS concept.

    `start` is the time of the first of T, in seconds from stimulus onset.
    """

    eeg: Tensor
    target: Tensor
    subject: np.ndarray
    things_concept: np.ndarray
    sfreq: float
    start: float = 0.0

    def take(self, rows: np.ndarray) -> "Samples":
        parts = self.eeg[rows], self.target[rows], self.subject[rows], self.things_concept[rows]
        return Samples(*parts, self.sfreq, self.start)

    def to(self, device: torch.device) -> "Samples":
        return replace(self, eeg=self.eeg.to(device), target=self.target.to(device))


def read_samples(
    paths: Sequence[Path], split: Literal["train", "test"], embeddings: Embeddings
) -> Samples:
    """One split of these subjects, see `Shelf`."""
    return Shelf(paths, split).samples(paths, embeddings)


class Shelf:
    """One split of these subjects' EEG, in memory once for all runs of a process, each read when a run first needs it.

    Where the training repetitions were kept, each is a sample; those of the test are averaged. Training EEG that is
    stored in half precision stays in it. All of it is one tensor, so that no run copies its subjects together; memory
    into which nothing was read yet takes no room.
    """

    def __init__(self, paths: Sequence[Path], split: Literal["train", "test"]) -> None:
        self._split: Literal["train", "test"] = split
        self._average = split == "test"
        shapes, dtypes = zip(
            *(read_shape(path, split, self._average) for path in paths), strict=True
        )
        self._folder = paths[0].parent
        if len({shape[-2:] for shape in shapes}) != 1:
            raise self._differ()
        sizes = [math.prod(shape[:-2]) for shape in shapes]
        half = split == "train" and all(dtype == np.float16 for dtype in dtypes)
        self._eeg = torch.empty(
            sum(sizes), *shapes[0][-2:], dtype=torch.float16 if half else torch.float32
        )
        ends = np.cumsum(sizes)
        self._rows = {
            path: np.arange(end - n, end) for path, end, n in zip(paths, ends, sizes, strict=True)
        }
        self._shapes = dict(zip(paths, shapes, strict=True))
        self._read: dict[Path, Recording] = {}

    def samples(self, paths: Sequence[Path], embeddings: Embeddings) -> Samples:
        """The samples of the whole shelf, and all of these subjects'.

        Of other subjects only the room is there: no name, no embedding (row -1), no EEG that was not read before.
        """
        for path in paths:
            if path not in self._read:
                self._fill(path)
        n = len(self._eeg)
        target, subject, things_concept = (
            np.full(n, -1),
            np.full(n, "", object),
            np.full(n, "", object),
        )
        for path in paths:
            rows, recording = self._rows[path], self._read[path]
            repetitions = len(rows) // len(recording.image_ids)
            target[rows] = embeddings.rows(recording.image_ids).repeat(repetitions)
            things_concept[rows] = recording.things_concept.repeat(repetitions)
            subject[rows] = recording.subject
        first = self._read[paths[0]]
        return Samples(
            self._eeg,
            torch.from_numpy(target),
            subject,
            things_concept,
            first.sfreq,
            start=float(first.times[0]),
        )

    def _fill(self, path: Path) -> None:
        rows = self._rows[path]
        out = self._eeg[rows[0] : rows[-1] + 1].view(self._shapes[path]).numpy()
        recording = read_split(path, self._split, self._average, out)
        for other in self._read.values():
            if (recording.ch_names, *recording.times) != (other.ch_names, *other.times):
                raise self._differ()
        self._read[path] = recording

    def _differ(self) -> InputError:
        return InputError(
            f"{self._folder}: the subjects' channels or times differ; {PREPARE_AGAIN}"
        )
