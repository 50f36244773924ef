"""The embedding cache: an HDF5 file with one row an image beside the image's id, and what it was made with.

/                          attributes: backbone, encoder, alignment, tokens, preprocessing, precision, batch_size,
                           device, checkpoint, checkpoint_sha256, aligned_by, versions; of some also `caveat`, for
                           every report, and `only`, why there are no other blocks; of an empty cache `why` alone
/image_ids (N,)            the path in the image archives, such as `training_images/00001_aardvark/aardvark_01b.jpg`
/embeddings/<block> (N, D) float32, training and test images in one table; `last`, or the number of a transformer block;
                           attributes: feature, and its health (`pipeline.images.health`)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.files import replacing

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Embeddings:
    """One row an image: values (N, D) float32 and the N image ids, training and test images in one table."""

    values: np.ndarray
    image_ids: np.ndarray

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each id, in the order asked for, int64; InputError names the first id that is not there."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(image_ids)} images seen have no embedding, first {missing[0]}: "
                "were EEG and embeddings made from the same dataset? Run the preprocess and embed stages again"
            )
        return np.array([row_of[image_id] for image_id in image_ids], dtype=np.int64)


def write_embeddings(
    path: Path,
    image_ids: Sequence[str],
    blocks: Iterable[tuple[int | Literal["last"], np.ndarray, Attributes]],
    made_with: Attributes,
) -> None:
    """Write a cache, block by block: its name, values (N, D) and attributes; the same ones give the same bytes."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(made_with)
        file.create_group("embeddings")
        file.create_dataset("image_ids", data=np.array(image_ids, dtype=object), dtype=h5py.string_dtype())
        for block, values, attributes in blocks:
            dataset = file.create_dataset(f"embeddings/{block}", data=values, dtype=np.float32)
            dataset.dims[0].label, dataset.dims[1].label = "image", "dimension"
            dataset.attrs.update(attributes)


def write_no_embeddings(path: Path, why: str) -> None:
    """An empty cache, for an encoder that does not exist; reading it raises InputError with this reason."""
    write_embeddings(path, [], [], {"why": why})


def read_embeddings(path: Path, block: int | Literal["last"]) -> Embeddings:
    """Read one block of a cache; InputError if it is no cache, or has not that block."""
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                raise InputError(f"{path}: holds no embeddings: {file.attrs['why']}")
            blocks = _blocks(file)
            if str(block) not in blocks:
                there = f"{path}: train.block is {block}; set it to one that is there, {', '.join(blocks)}"
                raise InputError(f"{there}: {file.attrs['only']}" if "only" in file.attrs else f"{there}, or embed it")
            values, image_ids = blocks[str(block)][:], file["image_ids"].asstr()[:]
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole embedding cache ({error}); run the embed stage again") from error
    fits = values.ndim == 2 and values.dtype.kind == "f" and len(values) == len(image_ids) == len(set(image_ids))
    if not fits:
        raise InputError(
            f"{path}: expected a row of numbers an image id, got {values.dtype} {values.shape} of block {block} for "
            f"{len(set(image_ids))} ids; run the embed stage again"
        )
    return Embeddings(values.astype(np.float32, copy=False), image_ids)


def read_about(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The attributes of a cache, and of each of its blocks; InputError if it is no cache."""
    try:
        with h5py.File(path, "r") as file:
            known = {block: _plain(dataset) for block, dataset in _blocks(file).items()}
            return _plain(file), known
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole embedding cache ({error}); run the embed stage again") from error


def read_health(path: Path) -> dict[str, dict[str, int | float]]:
    """What the cache says of each of its blocks; InputError if it is no cache."""
    return {
        block: {name: value for name, value in attributes.items() if isinstance(value, int | float)}
        for block, attributes in read_about(path)[1].items()
    }


def _plain(of: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes without numpy's types."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in of.attrs.items()}


def _blocks(file: h5py.File) -> h5py.Group:
    blocks = file["embeddings"]
    if not isinstance(blocks, h5py.Group):
        raise TypeError("it was written by an earlier version")
    return blocks
