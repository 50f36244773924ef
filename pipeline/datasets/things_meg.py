"""THINGS-MEG as published: prepared epochs in four files a subject, one table of trials, and the user's copy of THINGS.

Data: Hebart et al. 2023, doi 10.7554/eLife.82580; https://openneuro.org/datasets/ds004212, derivatives/preprocessed and
sourcedata. Prepared by https://github.com/ViCCo-Group/THINGS-data, MEG/step1_preprocessing.py: 0.1 to 40 Hz, -0.1 to
1.3 s at 200 Hz, each trial and channel in standard deviations of its own 0.1 s before onset.
Trials are `exp` (an image once), `test` (each of 200 images 12 times) or `catch`. The order of trials differs between
subjects: what was seen in a trial is read from the epochs' own metadata. MNE keeps that as JSON, and unpickles nothing.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mne  # loads itself at the first use, which is why its types stand in quotes here
import numpy as np
import pandas as pd

from pipeline.datasets.entry import Layout, RawEeg, require_as_published
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import unreadable
from pipeline.sections import Preprocess

UNITS = "as released: standard deviations of the 0.1 s before onset in the same trial and channel, no physical unit"
PREPARED_AS = "epochs at 200 Hz, in standard deviations of the time before onset"
CAVEATS = (
    "Each training image was shown once: the training data are single trials.",
    "The concepts of the test images were taken out of training, which leaves 1654 of 1854.",
)
N_PARTS = 4
# The zip that the download makes of the user's copy, and the folder in it
IMAGES_FOLDER = "things_images"
IN_MEMORY = 300 << 20  # bytes that reading takes, whatever the size of the files
# Trials in memory at a time: 58 MB at full size, and 8 test images of 12 repetitions
BLOCK_TRIALS = 96
REF_FILE_NAME = 118  # in FIF: the name of the file that comes next

# `image_path` of a trial, by its `trial_type`; a concept may hold underscores and digits (coat_rack, bat2)
IMAGE_PATHS = {
    "exp": r"images_meg/(?P<concept>[^/]+)/(?P<file>[^/]+\.jpg)",
    "test": r"images_test_meg/(?P<file>(?P<concept>[^/]+)_\d+[a-z]+\.jpg)",
}
TRIAL_TYPES: dict[Split, str] = {"train": "exp", "test": "test"}


def find_subjects(folder: Path) -> dict[str, Path]:
    """The folders of epochs, by subject (P1 to P4)."""
    return {path.name: path for path in sorted(folder.glob("P*")) if path.is_dir()}


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    """One row an image, by concept, then file; columns `image_ids`, `concept` and `things_concept`, which are the same.

    `path` is sample_attributes_P1.csv, or that of another subject: all saw the same images. An image id is such
    as `things_images/coat_rack/coat_rack_13s.jpg`. Training images are those of `exp` trials whose concept no test
    image shows, test images those of `test` trials.
    """
    try:
        trials = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read ({error.strerror}); {FETCH_AGAIN}"
        ) from error
    except ValueError as error:  # also what is no table and what is not UTF-8
        raise InputError(
            f"{path}: is not a table of trials as CSV ({error}); {FETCH_AGAIN}"
        ) from error
    exp, test = (_images(trials, trial_type, str(path)) for trial_type in IMAGE_PATHS)
    unknown = test.loc[~test["concept"].isin(exp["concept"]), "image_ids"]
    if len(unknown):
        raise InputError(
            f"{path}: the test image {unknown.iloc[0]!a:.100} is of a concept that no exp trial has, expected one of "
            f"those {exp['concept'].nunique()}; {FETCH_AGAIN}"
        )
    train = exp[~exp["concept"].isin(test["concept"])]
    if train.empty:
        raise InputError(
            f"{path}: no concept is left for training, all {exp['concept'].nunique()} have a test image; {FETCH_AGAIN}"
        )
    return {"train": _table(train), "test": _table(test)}


def _images(trials: pd.DataFrame, trial_type: str, where: str) -> pd.DataFrame:
    """`image_ids` and `concept` of the trials of a type, each at its index in `trials`."""
    absent = {"trial_type", "image_path"} - set(trials.columns)
    if absent:
        raise InputError(
            f"{where}: the trials have no {min(absent)}, they have {', '.join(map(str, trials.columns))[:200]}; "
            f"{FETCH_AGAIN}"
        )
    paths = trials.loc[trials["trial_type"] == trial_type, "image_path"].astype(str)
    if paths.empty:
        raise InputError(f"{where}: has no trials of type {trial_type}; {FETCH_AGAIN}")
    found = paths.str.extract(rf"\A(?:{IMAGE_PATHS[trial_type]})\Z")
    wrong = paths[found["concept"].isna()]
    if len(wrong):
        expected = {
            "exp": "images_meg/coat_rack/coat_rack_01b.jpg",
            "test": "images_test_meg/coat_rack_13s.jpg",
        }
        raise InputError(
            f"{where}: image_path of a trial of type {trial_type} is {wrong.iloc[0]!a:.100}, "
            f"expected such as {expected[trial_type]}; {FETCH_AGAIN}"
        )
    return pd.DataFrame(
        {
            "image_ids": IMAGES_FOLDER + "/" + found["concept"] + "/" + found["file"],
            "concept": found["concept"],
        }
    )


def _table(seen: pd.DataFrame) -> pd.DataFrame:
    images = seen.drop_duplicates().sort_values(["concept", "image_ids"], ignore_index=True)
    return images.assign(things_concept=images["concept"])


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes.

    InputError where a file is missing, or `preprocess` wants what cannot be done.
    """
    require_as_published(preprocess, PREPARED_AS)
    _parts(path)
    return IN_MEMORY


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The MEG of one subject, whose folder is `path`, see `RawEeg`: R is 1 in training and 12 in the test.

    `images` as `read_metadata` gives them. Trials are read when their block is asked for, each from its place on the
    disk, so that about 0.3 GB are in memory whatever the size of the files.
    """
    require_as_published(preprocess, PREPARED_AS)
    epochs = _open_epochs(path)
    trials = {split: _trials(epochs.metadata, images, split, str(path)) for split in SPLITS}
    yield RawEeg(
        Layout(
            tuple(epochs.ch_names),
            epochs.times.astype(np.float64),
            sensor_positions(epochs.info, str(path)),
        ),
        {split: _blocks(epochs, trials[split], path) for split in SPLITS},
    )


def _parts(folder: Path) -> list[Path]:
    name = f"preprocessed_{folder.name}-epo"
    parts = [folder / f"{name}{f'-{i}' if i else ''}.fif" for i in range(N_PARTS)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: is missing, expected {N_PARTS} files of epochs; {FETCH_AGAIN}"
        )
    return parts


def _open_epochs(folder: Path) -> "mne.BaseEpochs":
    """All parts as one, their values still on the disk."""
    parts = _parts(folder)
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        with _fif_faults(part):
            link = _next_part(part)
        expected = following.name if following else None
        if link != expected:
            raise InputError(
                f"{part}: says that {link or 'no file'} comes next, expected {expected or 'no file'}; it is not this "
                f"part of this recording; {FETCH_AGAIN}"
            )
    with _fif_faults(folder):
        epochs = mne.read_epochs(parts[0], proj=False, preload=False, verbose="error")
    if epochs.metadata is None:
        raise InputError(
            f"{parts[0]}: the epochs have no metadata that say which image was seen; {FETCH_AGAIN}"
        )
    return epochs


def _next_part(part: Path) -> str | None:
    """The file that a part names as the next: MNE would open whatever is named there.

    A FIF file is a chain of tags, each a header of kind, type, size and position of the next (0: at once, -1: none),
    then its value. MNE would follow a chain that turns back for ever. ValueError where it does, or leaves the file.
    """
    with part.open("rb") as file:
        position, length, name = 0, part.stat().st_size, None
        while 0 <= position < length:
            file.seek(position)
            kind, _, size, following = struct.unpack(">iIIi", file.read(16).ljust(16, b"\xff"))
            end = position + 16 + size
            if end > length or 0 < following < end:
                raise ValueError(f"the entry at byte {position} of {length} is damaged or cut")
            if kind == REF_FILE_NAME:
                name = file.read(size).decode("latin-1")
            position = following or end
    return name


@contextmanager
def _fif_faults(path: Path) -> Iterator[None]:
    """Turns damage, met while `path` is read, into InputError."""
    try:
        yield
    except (
        Exception
    ) as error:  # a damaged file makes MNE raise anything, the bare Exception among it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as epochs of MNE ({reason:.200}); {FETCH_AGAIN}"
        ) from error


def _trials(
    metadata: pd.DataFrame, images: Mapping[Split, pd.DataFrame], split: Split, where: str
) -> np.ndarray:
    """The numbers (N, R) of the trials in which each image was seen, in the order of `images`."""
    seen = _images(metadata.reset_index(drop=True), TRIAL_TYPES[split], where)
    if split == "train":
        seen = seen[~seen["concept"].isin(images["test"]["things_concept"])]
    image_ids = pd.Index(images[split]["image_ids"])
    row = image_ids.get_indexer(pd.Index(seen["image_ids"]))
    unknown = seen.loc[row < 0, "image_ids"]
    if len(unknown):
        raise InputError(
            f"{where}: the {split} image {unknown.iloc[0]!a:.100} is not in the table of trials; "
            f"they may be of different releases: {FETCH_AGAIN}"
        )
    counts = np.bincount(row, minlength=len(image_ids))
    n_repetitions = 1 if split == "train" else int(np.bincount(counts[counts > 0]).argmax())
    wrong = np.flatnonzero(counts != n_repetitions)
    if len(wrong):
        raise InputError(
            f"{where}: the {split} image {image_ids[wrong[0]]} is seen {counts[wrong[0]]} times, "
            f"expected {n_repetitions}, and so are {len(wrong) - 1} others; one of its {N_PARTS} "
            f"files may be another subject's: {FETCH_AGAIN}"
        )
    return seen.index.to_numpy()[np.argsort(row, kind="stable")].reshape(
        len(image_ids), n_repetitions
    )


def _blocks(epochs: "mne.BaseEpochs", trials: np.ndarray, path: Path) -> Iterator[np.ndarray]:
    n_conditions = max(1, BLOCK_TRIALS // trials.shape[1])
    for start in range(0, len(trials), n_conditions):
        block = trials[start : start + n_conditions]
        with _fif_faults(path):
            data = epochs.get_data(item=block.ravel(), copy=False, verbose="error")
        wrong = ~np.isfinite(data).all(axis=(1, 2))
        if wrong.any():
            trial = block.ravel()[wrong.argmax()]
            raise InputError(
                f"{path}: trial {trial} (from 0) holds NaN or infinite values; {FETCH_AGAIN}"
            )
        yield data.reshape(*block.shape, *data.shape[1:])


def sensor_positions(info: "mne.Info", where: str) -> np.ndarray:
    """The sensors (C, 2) on the head seen from above, nose up, the lowest at 1 from the middle; float64.

    By the angle from the top of the sphere nearest to the sensors (azimuthal equidistant). InputError names `where`.
    """
    xyz = np.array([channel["loc"][:3] for channel in info["chs"]], dtype=np.float64)
    if not np.isfinite(xyz).all() or np.ptp(xyz, axis=0).min() == 0:
        raise InputError(f"{where}: the sensors have no positions; {FETCH_AGAIN}")
    # |xyz|^2 = 2 xyz . centre + (radius^2 - |centre|^2)
    centre = np.linalg.lstsq(
        np.column_stack([2 * xyz, np.ones(len(xyz))]), (xyz**2).sum(1), rcond=None
    )[0][:3]
    x, y, z = (xyz - centre).T
    flat = np.hypot(x, y)
    angle = np.arctan2(flat, z)
    return np.stack([x, y], 1) * (angle / angle.max() / np.maximum(flat, 1e-9))[:, None]
