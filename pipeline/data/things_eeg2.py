"""THINGS-EEG2 as published: one zip of EEG a subject, two zips of images, one file of image metadata.

Data: Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754; https://osf.io/3jk45 (components anp5v and y63gw).
Nothing read here is believed: sizes come from the metadata and are compared with the arrays, channels go by name.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from pipeline.data.untrusted import open_member, open_zip, read_npy
from pipeline.errors import InputError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

IMAGE_FOLDERS = {"train": "training_images", "test": "test_images"}
EEG_FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
EEG_KEYS = ("preprocessed_eeg_data", "ch_names", "times")

LARGEST_EEG = 4 << 30  # bytes of one EEG file, about four times the largest published
LARGEST_IMAGE = 64 << 20  # bytes of one image file; the published ones have about 100 kB
BLOCK_ROWS = 256  # conditions in one piece of an array that had to be read whole

Consume = Callable[[tuple[int, int, int, int], Iterator[np.ndarray]], None]


@dataclass(frozen=True)
class Layout:
    """What both splits of a recording share: C channel names and T times in seconds from stimulus onset, float64."""

    ch_names: tuple[str, ...]
    times: np.ndarray

    @property
    def step(self) -> float:
        """Seconds between two samples."""
        return float(self.times[-1] - self.times[0]) / (len(self.times) - 1)


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    """One row an image, in the order of the EEG conditions; columns `image_ids`, `concept` and `things_concept`.

    An image id is the path in the image zips, such as `training_images/00001_aardvark/aardvark_01b.jpg`: unique over
    both splits. The number in front of `concept` restarts in each split; only `things_concept` compares across them.
    """
    try:
        with path.open("rb") as stream:
            fields = read_npy(stream, str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run the download again") from error
    return {split: _read_images(fields, split, path) for split in SPLITS}


def _read_images(fields: dict, split: Split, path: Path) -> pd.DataFrame:
    keys = [f"{split}_img_{name}" for name in ("concepts", "files", "concepts_THINGS")]
    concepts, files, things_concepts = (_names(fields, key, path) for key in keys)
    if not len(concepts) == len(files) == len(things_concepts) > 0:
        raise InputError(
            f"{path}: {', '.join(keys)} have {len(concepts)}, {len(files)} and {len(things_concepts)} entries, "
            "expected the same number, one an image"
        )
    for key, names in zip(keys[:2], (concepts, files), strict=True):
        odd = next((name for name in names if "/" in name or "\\" in name or name in (".", "..")), None)
        if odd is not None:
            raise InputError(f"{path}: {key} holds {odd!a:.100}, expected the plain name of a folder or file")
    image_ids = [f"{IMAGE_FOLDERS[split]}/{concept}/{file}" for concept, file in zip(concepts, files, strict=True)]
    if len(set(image_ids)) != len(image_ids):
        raise InputError(f"{path}: {len(image_ids) - len(set(image_ids))} images of the {split} split are listed twice")
    return pd.DataFrame({"image_ids": image_ids, "concept": concepts, "things_concept": things_concepts})


def _names(fields: dict, key: str, path: Path | str) -> list[str]:
    """A list or one-dimensional array of text that can be shown."""
    if key not in fields:
        raise InputError(f"{path}: has no {key}, it has {_keys(fields)}; is it the published file?")
    values = fields[key].tolist() if isinstance(fields[key], np.ndarray) else fields[key]
    if not isinstance(values, list | tuple):
        raise InputError(f"{path}: {key} is of type {type(values).__name__}, expected a list of names")
    for value in values:
        if not isinstance(value, str) or not value or not value.isprintable():
            shown = repr(value)[:100] if isinstance(value, str | int | float | None) else type(value).__name__
            raise InputError(f"{path}: {key} holds {shown}, expected names")
    return [str(value) for value in values]


def _keys(fields: dict) -> str:
    return ", ".join(f"{key!a:.40}" for key in list(fields)[:10]) or "nothing"


def subject_of(path: Path) -> str:
    """`sub-01` from `.../sub-01.zip`."""
    if not re.fullmatch(r"sub-[0-9A-Za-z]+\.zip", path.name):
        raise InputError(f"{path}: expected the archive of a subject, named such as sub-01.zip")
    return path.stem


def open_eeg_zip(path: Path) -> zipfile.ZipFile:
    """The archive of one subject, checked; members other than its two EEG files are never read."""
    return open_zip(path, LARGEST_EEG)


def read_layout(archive: zipfile.ZipFile, subject: str) -> Layout:
    """Channel names and times, from the test file because it is the smaller one; the EEG in it is passed over."""
    return _read_recording(archive, subject, "test", lambda shape, dtype, blocks: None)[0]


def read_eeg(
    archive: zipfile.ZipFile, subject: str, split: Split, n_conditions: int, layout: Layout, consume: Consume
) -> None:
    """Call `consume(shape, blocks)` once: shape (N, R, C, T), blocks float64 (n, R, C, T), one after the other along N.

    The whole array is never in memory (about 8 MiB are), unless it was saved in Fortran order or as pickle protocol 2
    or 5. What `consume` was given is right only once this returns: channel names, times and the archive's CRC come
    after the values. InputError where count, shape, type, channels, times or a value is not what it should be.
    """
    where = _where(archive, subject, split)
    done = object()

    def take(shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> object:
        expected = (n_conditions, "repetitions", len(layout.ch_names), len(layout.times))
        fits = len(shape) == 4 and shape[1] > 0 and (shape[0], *shape[2:]) == (expected[0], *expected[2:])
        if not fits:
            raise InputError(
                f"{where}: the EEG has shape {shape}, expected ({', '.join(map(str, expected))}) from the image "
                "metadata, the channel names and the times; do both files come from the same release?"
            )
        if dtype.kind != "f":
            raise InputError(f"{where}: the EEG is of type {dtype}, expected floating point")
        consume(shape, _finite(blocks, where))
        return done

    found, data = _read_recording(archive, subject, split, take)
    if found.ch_names != layout.ch_names or not np.allclose(found.times, layout.times, rtol=0, atol=layout.step / 1000):
        raise InputError(f"{where}: channel names or times differ from those of the other split")
    if isinstance(data, np.ndarray):
        data = take(data.shape, data.dtype, _pieces(data))
    if data is not done:
        raise InputError(f"{where}: {EEG_KEYS[0]} is not an array")


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), BLOCK_ROWS):
        yield array[start : start + BLOCK_ROWS]


def _where(archive: zipfile.ZipFile, subject: str, split: Split) -> str:
    return f"{archive.filename}: {subject}/{EEG_FILES[split]}"


def _finite(blocks: Iterator[np.ndarray], where: str) -> Iterator[np.ndarray]:
    start = 0
    for block in blocks:
        wrong = ~np.isfinite(block).all(axis=(1, 2, 3))
        if wrong.any():
            raise InputError(f"{where}: condition {start + int(wrong.argmax())} (from 0) holds NaN or infinite values")
        start += len(block)
        yield block.astype(np.float64, copy=False)


def _read_recording(archive: zipfile.ZipFile, subject: str, split: Split, take: Callable) -> tuple[Layout, object]:
    """Layout and EEG of one file; the EEG is an array where it was small, else what `take` returned."""
    where = _where(archive, subject, split)
    taken = []

    def once(shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> object:
        if taken:
            raise InputError(f"{where}: holds a second large array, expected only {EEG_KEYS[0]}")
        taken.append(take(shape, dtype, blocks))
        return taken[0]

    with open_member(archive, f"{subject}/{EEG_FILES[split]}") as stream:
        fields = read_npy(stream, where, once)
    if EEG_KEYS[0] not in fields:
        raise InputError(f"{where}: has no {EEG_KEYS[0]}, it has {_keys(fields)}; is it the published file?")
    return _read_layout(fields, where), fields[EEG_KEYS[0]]


def _read_layout(fields: dict, where: str) -> Layout:
    ch_names = _names(fields, "ch_names", where)
    if not ch_names or len(set(ch_names)) != len(ch_names):
        raise InputError(f"{where}: the {len(ch_names)} channel names are not unique: {', '.join(ch_names)[:200]}")
    times = fields.get("times")
    if not isinstance(times, np.ndarray) or times.ndim != 1 or times.dtype.kind not in "fiu" or len(times) < 2:
        raise InputError(f"{where}: times is not an array of at least 2 numbers, one a sample")
    times = times.astype(np.float64)
    steps = np.diff(times)
    if not np.isfinite(times).all() or steps.min() <= 0 or np.ptp(steps) > 0.01 * steps.mean():
        raise InputError(f"{where}: the times are not evenly spaced and rising")
    return Layout(tuple(ch_names), times)


def open_image_zip(path: Path, image_ids: Sequence[str]) -> zipfile.ZipFile:
    """One of the two image archives, checked to hold every image id; InputError names the first that is missing."""
    archive = open_zip(path, LARGEST_IMAGE)
    held = set(archive.namelist())
    missing = [image_id for image_id in image_ids if image_id not in held]
    if missing:
        archive.close()
        raise InputError(
            f"{path}: {len(missing)} of {len(image_ids)} images are missing, the first is {missing[0]}; "
            "delete the archive and download it again"
        )
    return archive


def decode_image(data: bytes, image_id: str) -> Image.Image:
    """The picture as RGB, converted as PIL does it; InputError if it is no JPEG or PNG, is damaged or is a bomb."""
    try:
        # Only these formats: some of the others that PIL knows start programs.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise InputError(
                    f"{image_id}: has {image.width} x {image.height} pixels, more than the {Image.MAX_IMAGE_PIXELS} "
                    "that are taken for a picture; get the archive from its source again"
                )
            return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{image_id}: unpacks to far too many pixels ({error}); get the archive again") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{image_id}: cannot be decoded as JPEG or PNG ({error}); get the archive again") from error
