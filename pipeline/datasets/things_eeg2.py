"""THINGS-EEG2 as published: one zip of EEG a subject, two zips of images, one file of image metadata.

Data: Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754; https://osf.io/3jk45 (components anp5v and y63gw).
Nothing read here is believed: sizes come from the metadata and are compared with the arrays, channels go by name.
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

IMAGE_FOLDERS = {"train": "training_images", "test": "test_images"}
EEG_FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
EEG_KEY = "preprocessed_eeg_data"

PREPARED_AS = "epochs at 100 Hz, baseline and noise normalisation applied"
LARGEST_EEG = 4 << 30  # bytes of one EEG file, about four times the largest published
# Bytes of the test EEG, which is kept in memory; the published one has 218 MB
LARGEST_TEST_EEG = 1 << 30
BLOCKS = 50 << 20  # bytes of training EEG that are in memory while it goes by
BLOCK_ROWS = 256  # conditions in one piece of an array that had to be read whole


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    """One row an image, in the order of the EEG conditions; columns `image_ids`, `concept` and `things_concept`.

    An image id is the path in the image zips, such as `training_images/00001_aardvark/aardvark_01b.jpg`: unique over
    both splits. The number in front of `concept` restarts in each split; only `things_concept` compares across them.
    """
    try:
        with path.open("rb") as stream:
            fields = read_npy(stream, str(path))
    except OSError as error:
        told = f"{path}: cannot be read ({error.strerror}); {FETCH_AGAIN}"
        raise unreadable(error, path) or InputError(told) from error
    return {split: _read_images(fields, split, path) for split in SPLITS}


def _read_images(fields: Fields, split: Split, path: Path) -> pd.DataFrame:
    keys = [f"{split}_img_{name}" for name in ("concepts", "files", "concepts_THINGS")]
    concepts, files, things_concepts = (_names(fields, key, path) for key in keys)
    if not len(concepts) == len(files) == len(things_concepts) > 0:
        raise InputError(
            f"{path}: {', '.join(keys)} have {len(concepts)}, {len(files)} and "
            f"{len(things_concepts)} entries, expected the same number, one an image; {FETCH_AGAIN}"
        )
    for key, names in zip(keys[:2], (concepts, files), strict=True):
        odd = next(
            (name for name in names if "/" in name or "\\" in name or name in (".", "..")), None
        )
        if odd is not None:
            raise InputError(
                f"{path}: {key} holds {odd!a:.100}, expected the plain name of a folder or file; {FETCH_AGAIN}"
            )
    image_ids = [
        f"{IMAGE_FOLDERS[split]}/{concept}/{file}"
        for concept, file in zip(concepts, files, strict=True)
    ]
    if len(set(image_ids)) != len(image_ids):
        n_twice = len(image_ids) - len(set(image_ids))
        raise InputError(
            f"{path}: {n_twice} images of the {split} split are listed twice; {FETCH_AGAIN}"
        )
    return pd.DataFrame(
        {"image_ids": image_ids, "concept": concepts, "things_concept": things_concepts}
    )


def _names(fields: Fields, key: str, path: Path | str) -> list[str]:
    """A list or one-dimensional array of text that can be shown."""
    if key not in fields:
        raise InputError(
            f"{path}: has no {key}, it has {_keys(fields)}; expected the published file; {FETCH_AGAIN}"
        )
    values = fields[key].tolist() if isinstance(fields[key], np.ndarray) else fields[key]
    if not isinstance(values, list | tuple):
        raise InputError(
            f"{path}: {key} is of type {type(values).__name__}, expected a list of names; {FETCH_AGAIN}"
        )
    for value in values:
        if not isinstance(value, str) or not value or not value.isprintable():
            shown = (
                repr(value)[:100]
                if isinstance(value, str | int | float | None)
                else type(value).__name__
            )
            raise InputError(f"{path}: {key} holds {shown}, expected names; {FETCH_AGAIN}")
    return [str(value) for value in values]


def _keys(fields: Fields) -> str:
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
    """The bytes of memory that `open_eeg` takes: the test EEG is kept, that for training goes by.

    Only the archive's directory is read. InputError where a file is missing, or `preprocess` wants what cannot be done.
    """
    require_as_published(preprocess, PREPARED_AS)
    with open_zip(path, LARGEST_EEG) as archive:
        sizes = {
            split: archive.getinfo(_member(archive, subject_of(path), split)).file_size
            for split in SPLITS
        }
    return sizes["test"] + BLOCKS


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG of one subject, see `RawEeg`; members of the archive other than its two EEG files are never read.

    Channel names and times come after the values in a file, so that the test file, the smaller one, is read first and
    kept at its stored precision (218 MB at full size) until its blocks are asked for. The training EEG is never whole
    in memory (about 8 MiB are), unless it was saved in Fortran order or as pickle protocol 2 or 5.
    """
    require_as_published(preprocess, PREPARED_AS)
    subject = subject_of(path)
    with open_zip(path, LARGEST_EEG) as archive:
        layout, shape, dtype, test = _read_test(archive, subject)
        where = _where(archive, subject, "test")
        _check_eeg(shape, dtype, len(images["test"]), layout, where)
        train = _train_blocks(archive, subject, len(images["train"]), layout)
        yield RawEeg(layout, {"train": train, "test": _finite(test, where)})


def _read_test(
    archive: zipfile.ZipFile, subject: str
) -> tuple[Layout, tuple[int, ...], np.dtype, Iterator[np.ndarray]]:
    """Channels and times, shape, type and the EEG, all of it in memory; a block is let go once it is used."""
    where = _where(archive, subject, "test")
    for item in _read_file(archive, subject, "test"):
        if isinstance(item, Layout):
            layout = item
            continue
        shape, dtype = item.shape, item.dtype
        size = math.prod(shape) * dtype.itemsize
        if size > LARGEST_TEST_EEG:
            raise InputError(
                f"{where}: the EEG has {size} bytes, expected at most {LARGEST_TEST_EEG}, which "
                f"fit in memory; {FETCH_AGAIN}"
            )
        kept = deque(item.blocks)
    return layout, shape, dtype, (kept.popleft() for _ in range(len(kept)))


def _train_blocks(
    archive: zipfile.ZipFile, subject: str, n: int, layout: Layout
) -> Iterator[np.ndarray]:
    where = _where(archive, subject, "train")
    for item in _read_file(archive, subject, "train"):
        if isinstance(item, Layout):
            same_times = np.allclose(item.times, layout.times, rtol=0, atol=layout.step / 1000)
            if item.ch_names != layout.ch_names or not same_times:
                raise InputError(
                    f"{where}: channel names or times differ from those of the other split; {FETCH_AGAIN}"
                )
        else:
            _check_eeg(item.shape, item.dtype, n, layout, where)
            yield from _finite(item.blocks, where)


def _read_file(archive: zipfile.ZipFile, subject: str, split: Split) -> Iterator[Streamed | Layout]:
    """The EEG of one file, once, and its layout; the archive's CRC has been compared when both have come."""
    where, eeg = _where(archive, subject, split), None
    with open_member(archive, _member(archive, subject, split)) as stream:
        for item in stream_npy(stream, where):
            if isinstance(item, dict):
                fields = item
            elif eeg is None:
                eeg = item
                yield eeg
            else:
                raise InputError(
                    f"{where}: holds a second large array, expected only {EEG_KEY}; {FETCH_AGAIN}"
                )
    if EEG_KEY not in fields:
        raise InputError(
            f"{where}: has no {EEG_KEY}, it has {_keys(fields)}; expected the published file; {FETCH_AGAIN}"
        )
    yield _read_layout(fields, where)
    found = fields[EEG_KEY]
    if eeg is None and isinstance(
        found, np.ndarray
    ):  # it was small, or not stored as the published ones are
        yield Streamed(found.shape, found.dtype, _pieces(found))
    elif eeg is None or found is not eeg:
        raise InputError(f"{where}: {EEG_KEY} is not an array; {FETCH_AGAIN}")


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, array.shape[0] if array.shape else 0, BLOCK_ROWS):
        yield array[start : start + BLOCK_ROWS]


def _member(archive: zipfile.ZipFile, subject: str, split: Split) -> str:
    """The name of a file in a subject's archive."""
    name = find_member(archive, EEG_FILES[split], subject)
    if name is None:
        raise InputError(
            f"{archive.filename}: holds no {subject}/{EEG_FILES[split]}; {FETCH_AGAIN}"
        )
    return name


def _where(archive: zipfile.ZipFile, subject: str, split: Split) -> str:
    return f"{archive.filename}: {_member(archive, subject, split)}"


def _check_eeg(shape: tuple[int, ...], dtype: np.dtype, n: int, layout: Layout, where: str) -> None:
    expected = (n, "repetitions", len(layout.ch_names), len(layout.times))
    if len(shape) != 4 or shape[1] == 0 or (shape[0], *shape[2:]) != (expected[0], *expected[2:]):
        raise InputError(
            f"{where}: the EEG has shape {shape}, expected ({', '.join(map(str, expected))}) from "
            "the image metadata, the channel names and the times; they may be of different "
            f"releases: {FETCH_AGAIN}"
        )
    if dtype.kind != "f":
        raise InputError(
            f"{where}: the EEG is of type {dtype}, expected floating point; {FETCH_AGAIN}"
        )


def _finite(blocks: Iterator[np.ndarray], where: str) -> Iterator[np.ndarray]:
    start = 0
    for block in blocks:
        wrong = ~np.isfinite(block).all(axis=(1, 2, 3))
        if wrong.any():
            condition = start + int(wrong.argmax())
            raise InputError(
                f"{where}: condition {condition} (from 0) holds NaN or infinite values; {FETCH_AGAIN}"
            )
        start += len(block)
        yield block.astype(np.float64, copy=False)


def _read_layout(fields: Fields, where: str) -> Layout:
    ch_names = _names(fields, "ch_names", where)
    if not ch_names or len(set(ch_names)) != len(ch_names):
        raise InputError(
            f"{where}: the {len(ch_names)} channel names are not unique: {', '.join(ch_names)[:200]}; {FETCH_AGAIN}"
        )
    times = fields.get("times")
    if (
        not isinstance(times, np.ndarray)
        or times.ndim != 1
        or times.dtype.kind not in "fiu"
        or len(times) < 2
    ):
        raise InputError(
            f"{where}: times is not an array of at least 2 numbers, one a sample; {FETCH_AGAIN}"
        )
    times = times.astype(np.float64)
    steps = np.diff(times)
    if not np.isfinite(times).all() or steps.min() <= 0 or np.ptp(steps) > 0.01 * steps.mean():
        raise InputError(f"{where}: the times are not evenly spaced and rising; {FETCH_AGAIN}")
    return Layout(tuple(ch_names), times)
