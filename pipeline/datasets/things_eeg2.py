"""THINGS-EEG2 as released, preprocessed: EEG of 17 channels at 100 Hz.

Published: Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754; https://osf.io/3jk45
(components anp5v and y63gw).
Layout: one zip of EEG a subject with two saved dictionaries, `preprocessed_eeg_training.npy` and
`preprocessed_eeg_test.npy`, of `preprocessed_eeg_data` (N, R, C, T), `ch_names` and `times`; two
zips of images; `image_metadata.npy`, a saved dictionary of the names of images and concepts.
Made of it: a table of images a split, and the EEG in chunks, float64, as it was released.

Nothing read here is believed: sizes come from the metadata and are compared with the arrays, and
channels are taken by name.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import math
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.entry import Layout, RawEeg, require_as_published
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import unreadable
from pipeline.sections import Preprocess
from pipeline.untrusted.archives import find_member, open_member, open_zip
from pipeline.untrusted.pickles import Fields, Streamed, read_npy, stream_npy

# By split
IMAGE_FOLDERS = {"train": "training_images", "test": "test_images"}
EEG_FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
EEG_KEY = "preprocessed_eeg_data"

PREPARED_AS = "epochs at 100 Hz, baseline and noise normalisation applied"
LARGEST_EEG = 4 << 30  # bytes of one EEG file, about four times the largest published
LARGEST_TEST_EEG = 1 << 30  # bytes of the test EEG, kept in memory; the published one has 218 MB
STREAMING_BYTES = 50 << 20  # memory while the training EEG is streamed
CHUNK_ROWS = 256  # conditions in one chunk of an array that had to be read whole


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    """One row an image, in the order of the EEG conditions.

    Columns: `image_ids`, `concept` and `things_concept`. An image id is the path in the image zips,
    such as `training_images/00001_aardvark/aardvark_01b.jpg`, and unique over both splits. The
    number in front of `concept` restarts in each split; only `things_concept` is the same in both.
    Raises InputError where the file is not as published.
    """
    try:
        with path.open("rb") as stream:
            fields = read_npy(stream, str(path))
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read ({error.strerror}); {FETCH_AGAIN}"
        ) from error
    return {split: _read_images(fields, split, path) for split in SPLITS}


def _read_images(fields: Fields, split: Split, path: Path) -> pd.DataFrame:
    keys = [f"{split}_img_{name}" for name in ("concepts", "files", "concepts_THINGS")]
    concepts, files, things_concepts = (_read_names(fields, key, path) for key in keys)
    if not len(concepts) == len(files) == len(things_concepts) > 0:
        raise InputError(
            f"{path}: {', '.join(keys)} have {len(concepts)}, {len(files)} and "
            f"{len(things_concepts)} entries, expected the same number, one an image; {FETCH_AGAIN}"
        )

    # Names become paths in the zips of images: they must not lead elsewhere.
    _check_file_names(concepts, keys[0], path)
    _check_file_names(files, keys[1], path)
    image_ids = [
        f"{IMAGE_FOLDERS[split]}/{concept}/{file}"
        for concept, file in zip(concepts, files, strict=True)
    ]

    n_twice = len(image_ids) - len(set(image_ids))
    if n_twice:
        raise InputError(
            f"{path}: {n_twice} images of the {split} split are listed twice; {FETCH_AGAIN}"
        )
    return pd.DataFrame(
        {"image_ids": image_ids, "concept": concepts, "things_concept": things_concepts}
    )


def _check_file_names(names: list[str], key: str, path: Path) -> None:
    for name in names:
        if "/" in name or "\\" in name or name in (".", ".."):
            raise InputError(
                f"{path}: {key} holds {name!a:.100}, expected the plain name of a folder or file; "
                f"{FETCH_AGAIN}"
            )


def _read_names(fields: Fields, key: str, file: Path | str) -> list[str]:
    """A list or one-dimensional array of printable text."""
    if key not in fields:
        raise InputError(
            f"{file}: has no {key}, it has {_list_keys(fields)}; expected the published file; "
            f"{FETCH_AGAIN}"
        )

    values = fields[key].tolist() if isinstance(fields[key], np.ndarray) else fields[key]
    if not isinstance(values, list | tuple):
        raise InputError(
            f"{file}: {key} is of type {type(values).__name__}, expected a list of names; "
            f"{FETCH_AGAIN}"
        )

    for value in values:
        if not isinstance(value, str) or not value or not value.isprintable():
            is_short = isinstance(value, str | int | float | None)
            text = repr(value)[:100] if is_short else type(value).__name__
            raise InputError(f"{file}: {key} holds {text}, expected names; {FETCH_AGAIN}")
    return [str(value) for value in values]


def _list_keys(fields: Fields) -> str:
    return ", ".join(f"{key!a:.40}" for key in list(fields)[:10]) or "nothing"


def subject_of(path: Path) -> str:
    """`sub-01` from `.../sub-01.zip`."""
    if not re.fullmatch(r"sub-[0-9A-Za-z]+\.zip", path.name):
        raise InputError(
            f"{path}: expected the archive of a subject, named such as sub-01.zip; rename it, or "
            "move it out of the folder"
        )
    return path.stem


def find_subjects(folder: Path) -> dict[str, Path]:
    """The archives in a folder, by subject."""
    return {subject_of(path): path for path in sorted(folder.glob("sub-*.zip"))}


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes: all test EEG, and some training EEG.

    Only the archive's directory is read. Raises InputError where a file is missing, or where
    `preprocess` asks for a step that needs raw recordings.
    """
    require_as_published(preprocess, PREPARED_AS)
    with open_zip(path, LARGEST_EEG) as archive:
        subject = subject_of(path)
        # Of both files: a missing one must be told before any work.
        sizes = {
            split: archive.getinfo(_member_name(archive, subject, split)).file_size
            for split in SPLITS
        }
    return sizes["test"] + STREAMING_BYTES


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG of one subject, see `RawEeg`; of the archive only its two EEG files are read.

    Channel names and times come after the values in a file. Therefore the test file, which is the
    smaller one, is read first and kept in memory at its stored precision (218 MB at full size).
    The training EEG is streamed, with about 8 MiB in memory, unless it was saved in Fortran order
    or as pickle protocol 2 or 5: then it is read whole.
    """
    require_as_published(preprocess, PREPARED_AS)
    subject = subject_of(path)
    with open_zip(path, LARGEST_EEG) as archive:
        layout, test_eeg = _read_test(archive, subject)
        file = _file_name(archive, subject, "test")
        _check_eeg(test_eeg, len(images["test"]), layout, file)

        train_chunks = _train_chunks(archive, subject, len(images["train"]), layout)
        test_chunks = _finite_chunks(test_eeg.chunks, file)
        yield RawEeg(layout, {"train": train_chunks, "test": test_chunks})


def _read_test(archive: zipfile.ZipFile, subject: str) -> tuple[Layout, Streamed]:
    """The layout, and the test EEG with all its chunks in memory.

    The memory of a chunk is freed once the chunk was used.
    """
    file = _file_name(archive, subject, "test")
    # The EEG comes first if it could be streamed, and last if it was read whole.
    for item in _read_file(archive, subject, "test"):
        if isinstance(item, Layout):
            layout = item
            continue

        eeg = item
        size = math.prod(eeg.shape) * eeg.dtype.itemsize
        if size > LARGEST_TEST_EEG:
            raise InputError(
                f"{file}: the EEG has {size} bytes, expected at most {LARGEST_TEST_EEG}, which "
                f"fit in memory; {FETCH_AGAIN}"
            )
        chunks = deque(eeg.chunks)  # read now: the layout comes behind them in the file
    in_memory = (chunks.popleft() for _ in range(len(chunks)))
    return layout, Streamed(eeg.shape, eeg.dtype, in_memory)


def _train_chunks(
    archive: zipfile.ZipFile, subject: str, n_images: int, layout: Layout
) -> Iterator[np.ndarray]:
    file = _file_name(archive, subject, "train")
    for item in _read_file(archive, subject, "train"):
        if not isinstance(item, Layout):
            _check_eeg(item, n_images, layout, file)
            yield from _finite_chunks(item.chunks, file)
            continue

        # Chunks that were streamed are out by now: they are right only if this does not raise.
        same_times = np.allclose(item.times, layout.times, rtol=0, atol=layout.step / 1000)
        if item.ch_names != layout.ch_names or not same_times:
            raise InputError(
                f"{file}: channel names or times differ from those of the other split; "
                f"{FETCH_AGAIN}"
            )


def _read_file(archive: zipfile.ZipFile, subject: str, split: Split) -> Iterator[Streamed | Layout]:
    """The EEG of one file, once, and its layout, in the order in which they come.

    When both have come, the CRC of the file was compared.
    """
    file = _file_name(archive, subject, split)
    eeg: Streamed | None = None
    with open_member(archive, _member_name(archive, subject, split)) as stream:
        for item in stream_npy(stream, file):
            if isinstance(item, dict):
                fields = item
            elif eeg is None:
                eeg = item
                yield eeg
            else:
                raise InputError(
                    f"{file}: holds a second large array, expected only {EEG_KEY}; {FETCH_AGAIN}"
                )

    if EEG_KEY not in fields:
        raise InputError(
            f"{file}: has no {EEG_KEY}, it has {_list_keys(fields)}; expected the published file; "
            f"{FETCH_AGAIN}"
        )
    yield _read_layout(fields, file)

    stored = fields[EEG_KEY]
    if eeg is None and isinstance(stored, np.ndarray):
        # A small array, or one in another order or protocol than published, is not streamed.
        yield Streamed(stored.shape, stored.dtype, _split_array(stored))
    # Another entry of the dictionary may be the array that was streamed.
    elif eeg is None or stored is not eeg:
        raise InputError(f"{file}: {EEG_KEY} is not an array; {FETCH_AGAIN}")


def _split_array(array: np.ndarray) -> Iterator[np.ndarray]:
    n_rows = array.shape[0] if array.shape else 0
    for start in range(0, n_rows, CHUNK_ROWS):
        yield array[start : start + CHUNK_ROWS]


def _member_name(archive: zipfile.ZipFile, subject: str, split: Split) -> str:
    """The name of an EEG file in a subject's archive. Raises InputError where it is missing."""
    name = find_member(archive, EEG_FILES[split], subject)
    if name is None:
        raise InputError(
            f"{archive.filename}: holds no {subject}/{EEG_FILES[split]}; {FETCH_AGAIN}"
        )
    return name


def _file_name(archive: zipfile.ZipFile, subject: str, split: Split) -> str:
    """What error messages call an EEG file."""
    return f"{archive.filename}: {_member_name(archive, subject, split)}"


def _check_eeg(eeg: Streamed, n_images: int, layout: Layout, file: str) -> None:
    """Raise InputError where shape or type of the EEG are not those of images and layout."""
    # The number of repetitions is free: its name stands for it in the message.
    expected = (n_images, "repetitions", len(layout.ch_names), len(layout.times))
    fixed = (expected[0], *expected[2:])
    shape = eeg.shape
    if len(shape) != 4 or shape[1] == 0 or (shape[0], *shape[2:]) != fixed:
        raise InputError(
            f"{file}: the EEG has shape {shape}, expected ({', '.join(map(str, expected))}) from "
            "the image metadata, the channel names and the times; they may be of different "
            f"releases: {FETCH_AGAIN}"
        )
    if eeg.dtype.kind != "f":
        raise InputError(
            f"{file}: the EEG is of type {eeg.dtype}, expected floating point; {FETCH_AGAIN}"
        )


def _finite_chunks(chunks: Iterator[np.ndarray], file: str) -> Iterator[np.ndarray]:
    """The chunks as float64. Raises InputError at a value that is not finite."""
    start = 0
    for chunk in chunks:
        # (n,): True for a condition with a value that is not finite.
        wrong = ~np.isfinite(chunk).all(axis=(1, 2, 3))
        if wrong.any():
            condition = start + int(wrong.argmax())
            raise InputError(
                f"{file}: condition {condition} (from 0) holds NaN or infinite values; "
                f"{FETCH_AGAIN}"
            )
        start += len(chunk)
        yield chunk.astype(np.float64, copy=False)


def _read_layout(fields: Fields, file: str) -> Layout:
    ch_names = _read_names(fields, "ch_names", file)
    if not ch_names or len(set(ch_names)) != len(ch_names):
        raise InputError(
            f"{file}: the {len(ch_names)} channel names are not unique: "
            f"{', '.join(ch_names)[:200]}; {FETCH_AGAIN}"
        )

    times = fields.get("times")
    if (
        not isinstance(times, np.ndarray)
        or times.ndim != 1
        or times.dtype.kind not in "fiu"
        or len(times) < 2
    ):
        raise InputError(
            f"{file}: times is not an array of at least 2 numbers, one a sample; {FETCH_AGAIN}"
        )

    times = times.astype(np.float64)
    steps = np.diff(times)
    if not np.isfinite(times).all() or steps.min() <= 0 or np.ptp(steps) > 0.01 * steps.mean():
        raise InputError(f"{file}: the times are not evenly spaced and rising; {FETCH_AGAIN}")
    return Layout(tuple(ch_names), times)
