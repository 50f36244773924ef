"""What a dataset is to the rest of the library: one entry of the table in `datasets`.

Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.image_table import Split
from pipeline.datasets.published import Published
from pipeline.datasets.sources import Make, PublishedFiles
from pipeline.errors import InputError
from pipeline.sections import Preprocess

# The channels that THINGS-EEG2 released, in its order: `preprocess.channels: posterior`.
POSTERIOR = (
    "Pz",
    "P3",
    "P7",
    "O1",
    "Oz",
    "O2",
    "P4",
    "P8",
    "P1",
    "P5",
    "PO7",
    "PO3",
    "POz",
    "PO4",
    "PO8",
    "P6",
    "P2",
)


@dataclass(frozen=True)
class Layout:
    """What both splits of a recording share: C channel names and T times in seconds from stimulus onset, float64.

    `places` (C, 2) are the sensors on the head seen from above, nose up, the rim at 1; None where the names tell them
    (the 10-05 system).
    """

    ch_names: tuple[str, ...]
    times: np.ndarray
    places: np.ndarray | None = None

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
    caveats: tuple[str, ...] = ()  # sentences for every report, on how these recordings were read
    # (N,) of all images of a split, 0: not seen. None: all were seen, as often. Where images differ, the blocks hold
    # only those that were seen, and R is the same within a block.
    n_repetitions: Mapping[Split, np.ndarray] | None = None


def size_of_files(path: Path, preprocess: Preprocess) -> int:
    """The bytes of a file, or of those in a folder: what a reader takes that holds them whole."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@dataclass(frozen=True)
class Dataset:
    """One dataset. Its functions are of a module's top level, so that worker processes can be given the entry.

    `find_subjects(folder)`: the file of each subject in the folder of raw EEG, {} where there is none.
    `read_metadata(path)`: a table a split, one row an image in the order of the EEG conditions; columns `image_ids`
    (unique over both splits), `concept` (may be numbered within the split) and `things_concept` (compares across them).
    An image id is a path whose first folder is the name of a zip among the images: `a/b.jpg` lies in `a.zip`.
    `open_eeg(file, images, preprocess)`: a subject's EEG; its conditions are the rows of `images`, what `read_metadata`
    gave. Of `preprocess` it takes what must be done while the recordings are read (`sfreq`, `baseline`, `mvnn`,
    `sessions`), and refuses what these data do not allow; `require_as_published` refuses all of it.
    `memory_needed(file, preprocess)`: about the bytes of memory that `open_eeg` and its blocks take. It reads no EEG,
    and is asked of all subjects before the first one is read: InputError for what names and sizes of files tell.
    """

    source: PublishedFiles | Make
    find_subjects: Callable[[Path], dict[str, Path]]
    read_metadata: Callable[[Path], dict[Split, pd.DataFrame]]
    open_eeg: Callable[
        [Path, Mapping[Split, pd.DataFrame], Preprocess], AbstractContextManager[RawEeg]
    ]
    units: str  # of the EEG as released, in words
    memory_needed: Callable[[Path, Preprocess], int] = size_of_files
    caveats: tuple[str, ...] = ()  # sentences for every report
    may_share_images: bool = False  # whether a page that holds them may be passed on
    synthetic: bool = False
    published: tuple[Published, ...] = ()  # figures on it, in the order in which they are shown


def require_as_published(preprocess: Preprocess, prepared_as: str) -> None:
    """InputError where `preprocess` asks for what can only be done to raw recordings; `prepared_as` says what was done.

    Of data that were published as epochs.
    """
    for key, as_published in (
        ("sfreq", "published"),
        ("baseline", "none"),
        ("mvnn", "none"),
        ("sessions", "all"),
    ):
        value = getattr(preprocess, key)
        if value != as_published:
            raise InputError(
                f"preprocess.{key} is {value}: only raw recordings (dataset: things-eeg2-raw) allow that, and these "
                f"data were published prepared ({prepared_as}); set it to {as_published}"
            )
