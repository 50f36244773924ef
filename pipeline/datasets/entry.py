"""What a dataset is to the rest of the library: one entry of `DATASETS` in `table.py`.

Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.datasets.image_table import Split
from pipeline.datasets.published import Published
from pipeline.datasets.sources import HumanFiles, Make, MakeHumanFiles, OwnFiles, PublishedFiles
from pipeline.errors import InputError
from pipeline.sections import Preprocess

Modality = Literal["EEG", "MEG"]

# Keys of `preprocess` that only raw recordings allow, and their values that change nothing.
_VALUES_WITHOUT_EFFECT = {
    "sfreq": "published",
    "baseline": "none",
    "mvnn": "none",
    "sessions": "all",
}


@dataclass(frozen=True)
class Layout:
    """The axes that both splits of a recording share.

    * `ch_names`: C channel names.
    * `times`: (T,) float64, seconds from stimulus onset.
    * `sensor_positions`: (C, 2), the sensors on the head seen from above, nose up, the rim of the
      head at distance 1. None where `ch_names` are those of the 10-05 system, which has known
      positions, or where the recording has no positions.
    * `modality`: what was recorded.
    """

    ch_names: tuple[str, ...]
    times: np.ndarray
    sensor_positions: np.ndarray | None = None
    modality: Modality = "EEG"

    @property
    def step(self) -> float:
        """Seconds between two samples."""
        return float(self.times[-1] - self.times[0]) / (len(self.times) - 1)


@dataclass(frozen=True)
class RawEeg:
    """One subject's opened recording.

    * `layout`: the channels and times of both splits.
    * `chunks[split]`: float64 chunks (n, R, C, T), consecutive along N. They can be read once. R is
      1 where a dataset has averaged the training trials itself (`preprocess.average_repetitions`).
    * `caveats`: sentences for every report, on how these recordings were read.
    * `is_z_scored`: whether `preprocess.normalise: session` is done. A dataset that knows no
      sessions leaves it to the preparation.
    * `n_repetitions[split]`: (N,), the repetitions of each image of a split, 0 for one that was not
      shown. None where all images were shown equally often. Where they were not, the chunks hold
      only the images that were shown, and R is the same for all images of a chunk.

    Names, times and checksums can come after the values in a file. Therefore the values of a split
    are right only when its chunks have ended without an error. Raises InputError, while chunks are
    read, where a count, a shape, a type or a value is not as expected.
    """

    layout: Layout
    chunks: Mapping[Split, Iterator[np.ndarray]]
    caveats: tuple[str, ...] = ()
    n_repetitions: Mapping[Split, np.ndarray] | None = None
    is_z_scored: bool = False
    units: str | None = None


def size_of_files(path: Path, preprocess: Preprocess) -> int:
    """Bytes of a file, or of all files in a folder: the memory of a reader that loads all of it."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    Its functions are at the top level of a module, so that the entry can be sent to workers.

    * `source`: where its files come from, or the function that makes them: `source(subjects,
      eeg_folder, images_folder, metadata_file)`, where `subjects` are names or `all`. `OwnFiles`
      are those that the user has.
    * `find_subjects(folder)`: the file of each subject in the folder of raw EEG, {} if there is
      none.
    * `read_metadata(path)`: one table a split, one row an image in the order of the EEG conditions.
      Its columns are `image_ids` (unique over both splits), `concept` (may be numbered within the
      split) and `things_concept` (the same in both splits). An image id is a path whose first
      folder is the name of a zip of images: `a/b.jpg` is in `a.zip`.
    * `open_eeg(file, images, preprocess)`: one subject's EEG. Its conditions are the rows of
      `images`, which `read_metadata` returned. It does the steps of `preprocess` that need raw
      recordings (`sfreq`, `baseline`, `mvnn`, `sessions`, and `normalise: session` if it knows
      sessions). A dataset that was published as epochs refuses the first four with
      `require_as_published`.
    * `units`: the physical unit of the EEG as released, in words.
    * `memory_needed(file, preprocess)`: about the bytes of memory that `open_eeg` and its chunks
      take. It is called for all subjects before any EEG is read. It reads no EEG, and raises
      InputError for what is already wrong with the names and sizes of files.
    * `caveats`: sentences for every report.
    * `may_share_images`: whether a page that holds the images may be passed on.
    * `may_push_eeg`: whether `dvc push` may upload the prepared EEG.
    * `synthetic`: whether all of it was made by this library.
    * `planted`: for each value of `sample.truth`, a sentence for every answer that says what the
      EEG was made of. Empty for data that were recorded.
    * `human`: where the files of how alike people find its concepts come from, or the function
      that makes them: `human(embedding, words, categories)`. None where nobody has published any.
    * `published`: published figures on it, in the order in which reports show them.
    """

    source: PublishedFiles | OwnFiles | Make
    find_subjects: Callable[[Path], dict[str, Path]]
    read_metadata: Callable[[Path], dict[Split, pd.DataFrame]]
    open_eeg: Callable[
        [Path, Mapping[Split, pd.DataFrame], Preprocess], AbstractContextManager[RawEeg]
    ]
    units: str
    memory_needed: Callable[[Path, Preprocess], int] = size_of_files
    caveats: tuple[str, ...] = ()
    may_share_images: bool = False
    may_push_eeg: bool = True
    synthetic: bool = False
    planted: Mapping[str, str] = field(default_factory=dict)
    human: HumanFiles | MakeHumanFiles | None = None
    published: tuple[Published, ...] = ()


def require_as_published(preprocess: Preprocess, prepared_as: str) -> None:
    """For data that were published as epochs: allow no step that needs raw recordings.

    `prepared_as` says in the message how the data were prepared. Raises InputError where
    `preprocess` asks for such a step.
    """
    for key, without_effect in _VALUES_WITHOUT_EFFECT.items():
        value = getattr(preprocess, key)
        if value != without_effect:
            raise InputError(
                f"preprocess.{key} is {value}: only raw recordings (dataset: things-eeg2-raw) "
                f"allow that, and these data were published prepared ({prepared_as}); set it to "
                f"{without_effect}"
            )
