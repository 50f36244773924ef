"""THINGS-MEG as published: prepared epochs.

Published: Hebart et al. 2023, doi 10.7554/eLife.82580; https://openneuro.org/datasets/ds004212,
derivatives/preprocessed and sourcedata. The images are the user's own copy of THINGS.
Layout: four FIF files of epochs a subject, and one table of trials. Trials are `exp` (an image
once), `test` (each of 200 images 12 times) or `catch`. The order of trials differs between
subjects.
Prepared by https://github.com/ViCCo-Group/THINGS-data, MEG/step1_preprocessing.py: 0.1 to 40 Hz,
-0.1 to 1.3 s at 200 Hz, each trial and channel in standard deviations of its own 0.1 s before
onset.
Made of it: a table of images a split, and the MEG in chunks, float64, sorted by image. Which image
a trial showed is read from the metadata in the epochs. MNE stores them as JSON and unpickles
nothing.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np
import pandas as pd

from pipeline.datasets.entry import Layout, RawEeg, require_as_published
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.mne_files import faults_as_input_errors, next_part
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import unreadable
from pipeline.sections import Preprocess

UNITS = (
    "as released: standard deviations of the 0.1 s before onset in the same trial and channel, no "
    "physical unit"
)
PREPARED_AS = "epochs at 200 Hz, in standard deviations of the time before onset"
CAVEATS = (
    "Each training image was shown once: the training data are single trials.",
    "The concepts of the test images were taken out of training, which leaves 1654 of 1854.",
)
N_PARTS = 4  # files of a subject
IMAGES_FOLDER = "things_images"  # the zip that the download makes of the user's copy
MEMORY_BYTES = 300 << 20  # that reading takes, whatever the size of the files
TRIALS_AT_ONCE = 96  # in memory; 58 MB at full size, and 8 test images of 12 repetitions

# `image_path` of a trial, by its `trial_type`. A concept may hold underscores and digits, such as
# coat_rack and bat2.
IMAGE_PATHS = {
    "exp": r"images_meg/(?P<concept>[^/]+)/(?P<file>[^/]+\.jpg)",
    "test": r"images_test_meg/(?P<file>(?P<concept>[^/]+)_\d+[a-z]+\.jpg)",
}
EXAMPLES = {
    "exp": "images_meg/coat_rack/coat_rack_01b.jpg",
    "test": "images_test_meg/coat_rack_13s.jpg",
}
TRIAL_TYPES: dict[Split, str] = {"train": "exp", "test": "test"}


def find_subjects(folder: Path) -> dict[str, Path]:
    """The folders of epochs, by subject (P1 to P4)."""
    return {path.name: path for path in sorted(folder.glob("P*")) if path.is_dir()}


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    """One row an image, sorted by concept, then file.

    Columns: `image_ids`, such as `things_images/coat_rack/coat_rack_13s.jpg`, `concept` and
    `things_concept`, which are the same. `path` is sample_attributes_P1.csv, or that of another
    subject: all saw the same images. Training images are those of `exp` trials whose concept no
    test image shows, test images those of `test` trials. Raises InputError where the file is not as
    published.
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

    exp = _images_of_trials(trials, "exp", str(path))
    test = _images_of_trials(trials, "test", str(path))
    unknown = test.loc[~test["concept"].isin(exp["concept"]), "image_ids"]
    if len(unknown):
        raise InputError(
            f"{path}: the test image {unknown.iloc[0]!a:.100} is of a concept that no exp trial "
            f"has, expected one of those {exp['concept'].nunique()}; {FETCH_AGAIN}"
        )

    train = exp[~exp["concept"].isin(test["concept"])]
    if train.empty:
        raise InputError(
            f"{path}: no concept is left for training, all {exp['concept'].nunique()} have a test "
            f"image; {FETCH_AGAIN}"
        )
    return {"train": _table(train), "test": _table(test)}


def _images_of_trials(trials: pd.DataFrame, trial_type: str, file: str) -> pd.DataFrame:
    """`image_ids` and `concept` of the trials of a type, each at its index in `trials`."""
    absent = {"trial_type", "image_path"} - set(trials.columns)
    if absent:
        columns = ", ".join(map(str, trials.columns))[:200]
        raise InputError(
            f"{file}: the trials have no {min(absent)}, they have {columns}; {FETCH_AGAIN}"
        )

    paths = trials.loc[trials["trial_type"] == trial_type, "image_path"].astype(str)
    if paths.empty:
        raise InputError(f"{file}: has no trials of type {trial_type}; {FETCH_AGAIN}")

    # \A and \Z: `extract` would also take a match within the path.
    names = paths.str.extract(rf"\A(?:{IMAGE_PATHS[trial_type]})\Z")
    wrong = paths[names["concept"].isna()]
    if len(wrong):
        raise InputError(
            f"{file}: image_path of a trial of type {trial_type} is {wrong.iloc[0]!a:.100}, "
            f"expected such as {EXAMPLES[trial_type]}; {FETCH_AGAIN}"
        )
    image_ids = IMAGES_FOLDER + "/" + names["concept"] + "/" + names["file"]
    return pd.DataFrame({"image_ids": image_ids, "concept": names["concept"]})


def _table(images: pd.DataFrame) -> pd.DataFrame:
    """Each image once, sorted by concept, then file."""
    table = images.drop_duplicates().sort_values(["concept", "image_ids"], ignore_index=True)
    return table.assign(things_concept=table["concept"])


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes.

    Raises InputError where a file is missing, or where `preprocess` asks for a step that needs raw
    recordings.
    """
    require_as_published(preprocess, PREPARED_AS)
    _part_files(path)
    return MEMORY_BYTES


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The MEG of one subject, whose folder is `path`, see `RawEeg`: R is 1 in training, 12 in test.

    `images` as `read_metadata` returns them. The trials of a chunk are read from the disk when the
    chunk is asked for, so that about 0.3 GB are in memory whatever the size of the files.
    """
    require_as_published(preprocess, PREPARED_AS)
    epochs = _open_epochs(path)
    trials = {
        split: _trials_of_images(epochs.metadata, images, split, str(path)) for split in SPLITS
    }

    positions = sensor_positions(epochs.info, str(path))
    layout = Layout(tuple(epochs.ch_names), epochs.times.astype(np.float64), positions, "MEG")
    yield RawEeg(layout, {split: _chunks(epochs, trials[split], path) for split in SPLITS})


def _part_files(folder: Path) -> list[Path]:
    # The names that MNE gives to the parts of a large file: P1-epo.fif, P1-epo-1.fif, ...
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
    parts = _part_files(folder)

    # Each part names the next one, and MNE opens whatever is named: compare before MNE does.
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        with _fif_faults_as_input_errors(part):
            link = next_part(part)
        expected = following.name if following else None
        if link != expected:
            raise InputError(
                f"{part}: says that {link or 'no file'} comes next, expected "
                f"{expected or 'no file'}; it is not this part of this recording; {FETCH_AGAIN}"
            )

    with _fif_faults_as_input_errors(folder):
        # proj=False: the values as published, with no projection applied.
        epochs = mne.read_epochs(parts[0], proj=False, preload=False, verbose="error")
    if epochs.metadata is None:
        raise InputError(
            f"{parts[0]}: the epochs have no metadata that say which image was seen; {FETCH_AGAIN}"
        )
    return epochs


def _fif_faults_as_input_errors(path: Path) -> AbstractContextManager[None]:
    """Turn damage into InputError; `path` is what the message calls the file."""
    return faults_as_input_errors(path, "epochs of MNE", FETCH_AGAIN)


def _trials_of_images(
    metadata: pd.DataFrame, images: Mapping[Split, pd.DataFrame], split: Split, file: str
) -> np.ndarray:
    """The numbers (N, R) of the trials that showed each image, in the order of `images`."""
    trials = _images_of_trials(metadata.reset_index(drop=True), TRIAL_TYPES[split], file)
    if split == "train":
        # As in `read_metadata`: concepts of test images are not in training.
        trials = trials[~trials["concept"].isin(images["test"]["things_concept"])]

    image_ids = pd.Index(images[split]["image_ids"])
    row = image_ids.get_indexer(pd.Index(trials["image_ids"]))  # of the image of each trial
    unknown = trials.loc[row < 0, "image_ids"]
    if len(unknown):
        raise InputError(
            f"{file}: the {split} image {unknown.iloc[0]!a:.100} is not in the table of trials; "
            f"they may be of different releases: {FETCH_AGAIN}"
        )

    # Test images: as many repetitions as most images have.
    counts = np.bincount(row, minlength=len(image_ids))
    n_repetitions = 1 if split == "train" else int(np.bincount(counts[counts > 0]).argmax())
    wrong = np.flatnonzero(counts != n_repetitions)
    if len(wrong):
        raise InputError(
            f"{file}: the {split} image {image_ids[wrong[0]]} is seen {counts[wrong[0]]} times, "
            f"expected {n_repetitions}, and so are {len(wrong) - 1} others; one of its {N_PARTS} "
            f"files may be another subject's: {FETCH_AGAIN}"
        )

    # Stable, so that the repetitions of an image stay in the order of the trials.
    by_image = trials.index.to_numpy()[np.argsort(row, kind="stable")]
    return by_image.reshape(len(image_ids), n_repetitions)


def _chunks(epochs: "mne.BaseEpochs", trials: np.ndarray, path: Path) -> Iterator[np.ndarray]:
    """The MEG of `trials` (N, R) in chunks (n, R, C, T)."""
    n_conditions = max(1, TRIALS_AT_ONCE // trials.shape[1])
    for start in range(0, len(trials), n_conditions):
        numbers = trials[start : start + n_conditions]
        with _fif_faults_as_input_errors(path):
            data = epochs.get_data(item=numbers.ravel(), copy=False, verbose="error")

        wrong = ~np.isfinite(data).all(axis=(1, 2))
        if wrong.any():
            trial = numbers.ravel()[wrong.argmax()]
            raise InputError(
                f"{path}: trial {trial} (from 0) holds NaN or infinite values; {FETCH_AGAIN}"
            )
        yield data.reshape(*numbers.shape, *data.shape[1:])  # (n, R, C, T)


def sensor_positions(info: "mne.Info", file: str) -> np.ndarray:
    """The sensors (C, 2) on the head seen from above, nose up, the lowest at distance 1; float64.

    The distance is the angle from the top of the sphere that fits the sensors best (azimuthal
    equidistant projection). Raises InputError, naming `file`, where sensors have no positions.
    """
    xyz = np.array([channel["loc"][:3] for channel in info["chs"]], dtype=np.float64)
    # A recording without positions has NaN, or the same place for all sensors.
    if not np.isfinite(xyz).all() or np.ptp(xyz, axis=0).min() == 0:
        raise InputError(f"{file}: the sensors have no positions; {FETCH_AGAIN}")

    # Fit the sphere: |xyz|^2 = 2 xyz . centre + (radius^2 - |centre|^2), linear in both unknowns.
    design = np.column_stack([2 * xyz, np.ones(len(xyz))])
    centre = np.linalg.lstsq(design, (xyz**2).sum(1), rcond=None)[0][:3]

    x, y, z = (xyz - centre).T
    horizontal = np.hypot(x, y)
    angle = np.arctan2(horizontal, z)
    # 1e-9: a sensor at the very top has no direction.
    scale = angle / angle.max() / np.maximum(horizontal, 1e-9)
    return np.stack([x, y], 1) * scale[:, None]
