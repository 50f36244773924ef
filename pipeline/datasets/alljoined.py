"""Alljoined-1.6M, recorded with consumer hardware, made into the same chunks as THINGS-EEG2.

Published: https://huggingface.co/datasets/Alljoined/Alljoined-1.6M; the files and what they hold
are described in `alljoined_files`. The images, and so the metadata, are those of THINGS-EEG2.
Made of it: epochs, baseline and lower rate (see `epochs`), then multivariate noise normalisation in
each session (see `session_steps`), or a z-score of each channel in its place.

The steps are those of the authors (https://github.com/Alljoined/Alljoined-1.6M at 3ed5754,
preprocessing_utils.py). Where the two differ:
- The noise is what is left of a trial once the mean response to its image in that session is taken
  off. An image that the session shows once has nothing left. Here it does not count; there it
  counts as a covariance of zeros, which multiplies all EEG of a session by one number: theirs is
  ours times sqrt(images in the session / images that it shows at least twice).
- The noise covariance is that of the samples that are kept, theirs that of the whole epoch. With
  the window of params/alljoined it is the same, but for the last sample of theirs, 1 s.
- Of a test image the first 80 trials are used (20 for each chosen session), though some are shown
  up to 84 times, or fewer, as many as the rarest image of any subject has: so all subjects have as
  many. Of a training image all are used.
- A time has the name that it would have at 1000 Hz, as in the other raw recordings: 0 s, where
  theirs is 0.0008 s. At 250 Hz from -0.2 s each sample is the EEG 2.3 ms after its name (of THINGS-
  EEG2, 1 ms): 0.8 ms because the recording has no sample at -0.2 s, and 1.6 ms by the resampling.
- Ours are not shuffled: repetitions are in the order of sessions, then of time.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.alljoined_files import (
    CH_NAMES,
    REPETITIONS,
    SFREQ,
    Block,
    BlockFile,
    choose_blocks,
    count_trials,
    read_block,
)
from pipeline.datasets.channels import choose_channels
from pipeline.datasets.entry import Layout, RawEeg
from pipeline.datasets.epochs import (
    EpochPlan,
    epoch_bounds,
    plan_epochs,
    resample,
    resampling_matrix,
    take_baseline_off,
)
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.session_steps import UNITS_OF_WHITENED, split_by_session
from pipeline.datasets.sessions import gather, require_one_normalisation
from pipeline.datasets.things_eeg2_raw import caveats as caveats_of_settings
from pipeline.errors import InputError
from pipeline.sections import Preprocess

UNITS = "V"
NAMED_AT = 1000.0  # Hz: times have the names of THINGS-EEG2 as recorded
READING_BYTES = 400 << 20  # memory for the epochs that are cut at once, and for chunks


def find_subjects(folder: Path) -> dict[str, Path]:
    """The folder of each subject, such as `sub-01`."""
    return {path.name: path for path in sorted(folder.glob("sub-*")) if path.is_dir()}


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes: the EEG of all files, and the epochs cut.

    Raises InputError where a file of a chosen session is missing, or where `preprocess` asks for
    what these recordings do not allow.
    """
    _plan(path, preprocess)
    require_one_normalisation(preprocess)
    files = choose_blocks(path, preprocess.sessions)
    return READING_BYTES + sum(file.path.stat().st_size for file in files)


def _plan(path: Path, preprocess: Preprocess) -> EpochPlan:
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: holds the EEG as recorded, at {SFREQ:g} Hz and without epochs, so that "
            "preprocess.sfreq and .window cannot be published; choose both, as params/alljoined "
            "does"
        )
    return plan_epochs(
        preprocess.sfreq,
        preprocess.window,
        preprocess.baseline,
        SFREQ,
        str(path),
        named_at=NAMED_AT,
    )


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG of one subject, whose folder is `path`, see `RawEeg`: in V, or whitened.

    When the context is entered, the chosen sessions are read, as 16 bits: 0.4 GB. Epochs are cut
    out of them when they are asked for. All together would have 6 GB, since they overlap and are
    float64. Where training trials are averaged, a chunk has the averages.

    Raises InputError for a file that is missing, damaged or not as published, for a channel,
    session, interval or rate that the recordings do not have, and for a session without noise to
    normalise by.
    """
    plan = _plan(path, preprocess)
    require_one_normalisation(preprocess)
    ch_names = choose_channels(CH_NAMES, preprocess.channels, str(path))
    files = choose_blocks(path, preprocess.sessions)

    n_images = {split: len(images[split]) for split in SPLITS}
    n_test, caveats_of_counts = _choose_test_repetitions(path, preprocess, n_images, plan)

    source, trials, caveats_of_files = _read_blocks(files, ch_names, n_images, plan)
    used = trials[(trials["split"] == "train") | (_number_in_image(trials) < n_test)]
    sessions = split_by_session(used, source, preprocess, path, residuals=True)

    counts = {split: _count_repetitions(used, split, n_images[split]) for split in SPLITS}
    chunks = {
        split: gather([session[split] for session in sessions], counts[split]) for split in SPLITS
    }
    if preprocess.average_repetitions and preprocess.normalise != "trial":
        # Before the rate is lowered, which is linear: once an image, and not once a trial.
        chunks["train"] = (chunk.mean(axis=1, keepdims=True) for chunk in chunks["train"])

    is_whitened = preprocess.mvnn != "none"
    yield RawEeg(
        Layout(tuple(ch_names), plan.times),
        {split: map(source.finish, chunks[split]) for split in SPLITS},
        (*caveats_of_settings(preprocess), *caveats_of_counts, *caveats_of_files),
        counts,
        is_z_scored=preprocess.normalise == "session",
        units=UNITS_OF_WHITENED if is_whitened else UNITS,
    )


@dataclass(frozen=True)
class _CutEpochs:
    """The epochs of all trials, cut out of the recordings when they are read: an `EpochSource`.

    Their baseline is taken off when they are read, and the last step lowers the rate.

    `matrix`: that of `resampling_matrix`.
    `block_rows`, `samples` (n,): the block of each trial, and the sample of its image there.
    """

    blocks: Sequence[Block]
    block_rows: np.ndarray
    samples: np.ndarray
    plan: EpochPlan
    matrix: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.blocks[0].digital), len(self.matrix)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        first, _ = epoch_bounds(self.plan, SFREQ)
        starts = (self.samples[numbers] + first).tolist()
        block_rows = self.block_rows[numbers].tolist()

        eeg = np.empty((len(numbers), *self.shape))
        for epoch, row, start in zip(eeg, block_rows, starts, strict=True):
            block = self.blocks[row]
            digital = block.digital[:, start : start + len(self.matrix)]
            np.multiply(digital, block.gain, out=epoch)
            epoch += block.offset
        take_baseline_off(eeg, self.plan, SFREQ)
        return eeg

    def finish(self, eeg: np.ndarray) -> np.ndarray:
        return resample(eeg, self.matrix)


def _read_blocks(
    files: Sequence[BlockFile],
    ch_names: Sequence[str],
    n_images: Mapping[Split, int],
    plan: EpochPlan,
) -> tuple[_CutEpochs, pd.DataFrame, list[str]]:
    """The epochs of all files, in the order of files, then of time.

    Returns also a row for each, with the columns `session`, `split` and `image_row`, and caveats.
    """
    blocks: list[Block] = []
    tables: list[pd.DataFrame] = []
    n_left_out = 0
    flat: list[str] = []
    for file in files:
        block = read_block(file, ch_names, n_images, epoch_bounds(plan, SFREQ))
        columns = {"session": file.session, "split": file.split, "image_row": block.image_rows}
        columns |= {"block_row": len(blocks), "sample": block.samples}
        tables.append(pd.DataFrame(columns))
        blocks.append(block)
        n_left_out += block.n_left_out
        flat += [f"{name} in {file.path.name}" for name in block.flat]

    trials = pd.concat(tables, ignore_index=True)
    block_rows, samples = trials.pop("block_row").to_numpy(), trials.pop("sample").to_numpy()
    source = _CutEpochs(blocks, block_rows, samples, plan, resampling_matrix(plan, SFREQ))
    caveats = _caveats_of_files(files[0].path.parent.name, len(trials), n_left_out, flat)
    return source, trials, caveats


def _caveats_of_files(
    subject: str, n_trials: int, n_left_out: int, flat: Sequence[str]
) -> list[str]:
    caveats = []
    if n_left_out:
        caveats.append(
            f"{subject}: {n_left_out} of {n_trials + n_left_out} trials were left out: their epoch "
            "is not all recorded, or another image appears at the same sample."
        )
    if flat:
        more = f" and {len(flat) - 3} more" if len(flat) > 3 else ""
        caveats.append(
            f"{subject}: channels that have the same value all the time were used: "
            f"{', '.join(flat[:3])}{more}."
        )
    return caveats


def _choose_test_repetitions(
    path: Path, preprocess: Preprocess, n_images: Mapping[Split, int], plan: EpochPlan
) -> tuple[int, list[str]]:
    """How many trials of each test image are used, the same for all subjects; and caveats.

    As many as planned, or as the rarest test image of any subject has.
    """
    bounds = epoch_bounds(plan, SFREQ)
    least: dict[str, int] = {}
    for subject, folder in find_subjects(path.parent).items():
        files = choose_blocks(folder, preprocess.sessions)
        of_blocks = [count_trials(file, n_images, bounds) for file in files if file.split == "test"]
        counts = np.sum(of_blocks, axis=0)
        # An image that was not shown at all is missing, and not rare.
        least[subject] = int(counts[counts > 0].min(initial=np.iinfo(int).max))

    n_planned = REPETITIONS["test"] * len({file.session for file in files})
    rarest = min(least, key=lambda subject: least[subject])
    if least[rarest] >= n_planned:
        return n_planned, []
    return least[rarest], [
        f"Of each test image {least[rarest]} trials were used and not the {n_planned} that were "
        f"planned: the rarest one of {rarest} has no more."
    ]


def _number_in_image(trials: pd.DataFrame) -> pd.Series:
    """The number of each trial among those of its image, from 0, in the order of time."""
    return trials.groupby(["split", "image_row"]).cumcount()


def _count_repetitions(trials: pd.DataFrame, split: Split, n_images: int) -> np.ndarray:
    """The repetitions of each image, (n_images,)."""
    return np.bincount(trials.loc[trials["split"] == split, "image_row"], minlength=n_images)
