"""What a dataset is to the rest of the library: one entry of the table in `datasets`.

Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.data.images import Images
from pipeline.data.published import Published
from pipeline.data.sources import Make, PublishedFiles

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class Layout:
    """What both splits of a recording share: C channel names and T times in seconds from stimulus onset, float64."""

    ch_names: tuple[str, ...]
    times: np.ndarray

    @property
    def step(self) -> float:
        """Seconds between two samples."""
        return float(self.times[-1] - self.times[0]) / (len(self.times) - 1)


@dataclass(frozen=True)
class RawEeg:
    """One subject's opened recording. `blocks[split]`: float64 (n, R, C, T), one after the other along N, once.

    What a split gave is right only when its blocks have ended without an error: names, times and checksums may come
    after the values in a file, and are compared then. InputError where count, shape, type or a value is not what it
    should be.
    """

    layout: Layout
    blocks: Mapping[Split, Iterator[np.ndarray]]


@dataclass(frozen=True)
class Dataset:
    """One dataset. Its functions are of a module's top level, so that worker processes can be given the entry.

    `find_subjects(folder)`: the file of each subject in the folder of raw EEG, {} where there is none.
    `read_metadata(path)`: a table a split, one row an image in the order of the EEG conditions; columns `image_ids`
    (unique over both splits), `concept` (may be numbered within the split) and `things_concept` (compares across them).
    `open_eeg(file, n_conditions)`: a subject's EEG, which must have that many conditions in each split.
    `open_images(folder, image_ids)`: these images, each of which must be there.
    """

    source: PublishedFiles | Make
    find_subjects: Callable[[Path], dict[str, Path]]
    read_metadata: Callable[[Path], dict[Split, pd.DataFrame]]
    open_eeg: Callable[[Path, Mapping[Split, int]], AbstractContextManager[RawEeg]]
    open_images: Callable[[Path, Sequence[str]], AbstractContextManager[Images]]
    units: str  # of the EEG as released, in words
    caveats: tuple[str, ...] = ()  # sentences for every report
    may_share_images: bool = False  # whether a page that holds them may be passed on
    synthetic: bool = False
    published: tuple[Published, ...] = ()  # figures on it, in the order in which they are shown
