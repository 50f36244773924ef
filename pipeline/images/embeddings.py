"""The embedding cache: an HDF5 file with one row an image beside the image's id, and what it was made with.

/                          attributes: backbone, encoder, alignment, tokens, preprocessing, precision, batch_size,
                           device, checkpoint, checkpoint_sha256, lora, versions; of an empty cache only `why`
/image_ids (N,)            the path in the image archives, such as `training_images/00001_aardvark/aardvark_01b.jpg`
/embeddings/<block> (N, D) float32, training and test images in one table; `last`, or the number of a transformer block;
                           attributes: feature, and its health (`pipeline.images.health`)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.files import replacing

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Embeddings:
    """One row an image: values (N, D) float32 and the N image ids, training and test images in one table.

    Of all blocks together, values (N, K, D) and the names of the K blocks.
    """

    values: np.ndarray
    image_ids: np.ndarray
    blocks: tuple[str, ...] = ()

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


def read_embeddings(path: Path, block: int | Literal["last", "mix"]) -> Embeddings:
    """Read one block of a cache, or with `mix` all of them, in their order of depth.

    InputError if it is no cache, or has not that block; for `mix` if it has one block only or the sizes differ.
    """
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                raise InputError(f"{path}: holds no embeddings: {file.attrs['why']}")
            blocks, image_ids = _blocks(file), file["image_ids"].asstr()[:]
            if block == "mix":
                return _read_all(path, blocks, image_ids)
            if str(block) not in blocks:
                there = ", ".join(blocks)
                raise InputError(f"{path}: train.block is {block}; set it to one that is there, {there}, or embed it")
            values = blocks[str(block)][:]
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole embedding cache ({error}); run the embed stage again") from error
    _check_rows(path, block, values.shape, values.dtype, image_ids)
    return Embeddings(values.astype(np.float32, copy=False), image_ids)


def _read_all(path: Path, blocks: h5py.Group, image_ids: np.ndarray) -> Embeddings:
    """Every block, the numbered ones first, as (N, K, D); written block by block, so that it is in memory once."""
    names = sorted(blocks, key=lambda name: (name == "last", name.zfill(9)))
    for name in names:
        _check_rows(path, name, blocks[name].shape, blocks[name].dtype, image_ids)
    sizes = {name: blocks[name].shape[1] for name in names}
    if len(names) < 2:
        raise InputError(f"{path}: train.block is mix and the only block there is {names[0]}: add to embed.blocks")
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise InputError(
            f"{path}: train.block is mix, which needs blocks of one size, and of the dimensions {told}: "
            "name blocks of one size in embed.blocks, or one of them in train.block"
        )
    values = np.empty((len(image_ids), len(names), sizes[names[0]]), np.float32)
    for k, name in enumerate(names):
        values[:, k] = blocks[name][:]
    return Embeddings(values, image_ids, tuple(names))


def _check_rows(path: Path, block: object, shape: tuple[int, ...], dtype: np.dtype, image_ids: np.ndarray) -> None:
    if len(shape) != 2 or dtype.kind != "f" or not shape[0] == len(image_ids) == len(set(image_ids)):
        raise InputError(
            f"{path}: expected a row of numbers an image id, got {dtype} {shape} of block {block} for "
            f"{len(set(image_ids))} ids; run the embed stage again"
        )


def read_health(path: Path) -> dict[str, dict[str, int | float]]:
    """What the cache says of each of its blocks; InputError if it is no cache."""
    try:
        with h5py.File(path, "r") as file:
            known = {block: dict(dataset.attrs) for block, dataset in _blocks(file).items()}
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole embedding cache ({error}); run the embed stage again") from error
    return {
        block: {name: value.item() for name, value in attributes.items() if isinstance(value, np.number)}
        for block, attributes in known.items()
    }


def _blocks(file: h5py.File) -> h5py.Group:
    blocks = file["embeddings"]
    if not isinstance(blocks, h5py.Group):
        raise TypeError("it was written by an earlier version")
    return blocks
