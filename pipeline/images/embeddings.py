"""The embedding cache: an HDF5 file with one row an image beside the image's id, and what it was made with.

/                          attributes: backbone, encoder, alignment, tokens, preprocessing, precision, batch_size,
                           device, checkpoint, checkpoint_sha256, aligned_by, versions; of some also `caveat`, for
                           every report, and `only`, why there are no other blocks; of an empty cache `why` alone
/image_ids (N,)            the path in the image archives, such as `training_images/00001_aardvark/aardvark_01b.jpg`
/embeddings/<block> (N, D) float32, training and test images in one table; `last`, or the number of a transformer block;
                           attributes: feature, and its health (`images.health`)
/views/<view>/<block>      the same of each degraded view (`images.views`) that was asked for, such as
                           /views/blur-8/last
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from pipeline.errors import EMBED_AGAIN, InputError, suggestion
from pipeline.files import new_hdf5, unreadable

Attributes = Mapping[str, str | int | float]
ORIGINAL = "original"  # the view that every cache has
SEVERAL = ("mean", "draw")  # of all the views in a cache


@dataclass(frozen=True)
class Embeddings:
    """One row an image, training and test images in one table: values (N, D) float32 and the N image ids.

    Of K blocks together, whose names are `blocks`, values are (N, K, D). They are what EEG is compared with; what it
    learns are they too, unless there is `learned` (N, V, D) or (N, V, K, D), V views of which it learns one at a time.
    `views` and `views_in_gallery` say in words which views these and those are. `where` is the file.
    """

    values: np.ndarray
    image_ids: np.ndarray
    blocks: tuple[str, ...] = ()
    learned: np.ndarray | None = None
    views: str = ORIGINAL
    views_in_gallery: str = ORIGINAL
    where: str = "the embedding cache"

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each id, in the order asked for, int64; InputError names the first id that is not there."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{self.where}: {len(missing)} of the {len(image_ids)} images seen have no embedding, first "
                f"{missing[0]}{self._by_another_name(missing[0])}; {EMBED_AGAIN}"
            )
        return np.array([row_of[image_id] for image_id in image_ids], dtype=np.int64)

    def _by_another_name(self, image_id: str) -> str:
        """What the cache seems to call this image, in words; "" where no name is like it."""
        file = image_id.rpartition("/")[2]
        other = next((name for name in self.image_ids if name.rpartition("/")[2] == file), None)
        return (
            f", which is called {other} there and should be called as in data/fetched/images.csv"
            if other
            else ""
        )


def write_embeddings(
    path: Path,
    image_ids: Sequence[str],
    blocks: Iterable[tuple[int | str, np.ndarray, Attributes]],
    made_with: Attributes,
) -> None:
    """Write a cache, block by block: its name, values (N, D) and attributes; the same ones give the same bytes.

    A name is that of a block, or, of a degraded view, `<view>/<block>`.
    """
    with new_hdf5(path) as file:
        file.attrs.update(made_with)
        file.create_group("embeddings")
        file.create_dataset(
            "image_ids", data=np.array(image_ids, dtype=object), dtype=h5py.string_dtype()
        )
        for name, values, attributes in blocks:
            folder = "views" if "/" in str(name) else "embeddings"
            dataset = file.create_dataset(f"{folder}/{name}", data=values, dtype=np.float32)
            dataset.dims[0].label, dataset.dims[1].label = "image", "dimension"
            dataset.attrs.update(attributes)


def write_no_embeddings(path: Path, why: str) -> None:
    """An empty cache, for an encoder that does not exist; reading it raises InputError with this reason."""
    write_embeddings(path, [], [], {"why": why})


def read_embeddings(
    path: Path,
    block: int | Literal["last", "mix"],
    views: str = ORIGINAL,
    views_in_gallery: str = ORIGINAL,
) -> Embeddings:
    """Read one block of a cache, or with `mix` all of them, the deepest last.

    `views` is what an EEG encoder learns: one view by its name, `mean` for the mean embedding of all there are, or
    `draw` for all of them; `views_in_gallery` is what it is compared with, but for `draw`. InputError if it is no
    cache, or has not that block or view, or the original alone for `mean` or `draw`; for `mix` if it has one block only
    or the sizes differ.
    """
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                raise InputError(f"{path}: holds no embeddings: {file.attrs['why']}")
            image_ids = file["image_ids"].asstr()[:]
            _check_ids(path, image_ids)
            there = sorted(_blocks(file), key=lambda name: (name == "last", name.zfill(9)))
            names = there if block == "mix" else [str(block)]
            if names[0] not in there:
                told = f"{path}: train.block is {block}; set it to one that is there, {', '.join(there)}"
                why = (
                    f": {file.attrs['only']}"
                    if "only" in file.attrs
                    else ", or add it to embed.blocks"
                )
                raise InputError(told + why)
            kept = {ORIGINAL: _blocks(file), **file.get("views", {})}
            if views_in_gallery == "draw":
                raise InputError(
                    f"train.views_in_gallery is draw: set it to mean or one of {', '.join(kept)}"
                )
            for key, wanted in (("views", views), ("views_in_gallery", views_in_gallery)):
                _check_views(path, key, wanted, [*kept])
            several = {views, views_in_gallery} & {*SEVERAL}
            used = [view for view in kept if several or view in (ORIGINAL, views, views_in_gallery)]
            tables = {view: [kept[view][name] for name in names] for view in used}
            for table in itertools.chain(*tables.values()):
                _check_rows(path, table, image_ids)
            if block == "mix":
                _check_mix(path, dict(zip(names, tables[ORIGINAL], strict=True)))
            size = tables[ORIGINAL][0].shape[1]
            if any(table.shape[1] != size for table in itertools.chain(*tables.values())):
                raise ValueError("its views differ in size")
            values = _read(path, tables, views_in_gallery, image_ids)[:, 0]
            learned = None if views == views_in_gallery else _read(path, tables, views, image_ids)
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: is not a whole embedding cache ({error}); {EMBED_AGAIN}"
        ) from error
    if block != "mix":
        values, learned = values[:, 0], learned if learned is None else learned[:, :, 0]
    blocks = tuple(names) if block == "mix" else ()
    told, told_in_gallery = (
        f"{wanted} of {', '.join(kept)}" if wanted in SEVERAL else wanted
        for wanted in (views, views_in_gallery)
    )
    return Embeddings(values, image_ids, blocks, learned, told, told_in_gallery, str(path))


def _check_views(path: Path, key: str, wanted: str, kept: Sequence[str]) -> None:
    if wanted in SEVERAL and len(kept) == 1:
        raise InputError(
            f"{path}: train.{key} is {wanted} and the only view there is {ORIGINAL}: add to embed.views"
        )
    if wanted not in (*SEVERAL, *kept):
        raise InputError(
            f"{path}: train.{key} is {wanted}; set it to one that is there, {', '.join(kept)}, or add it to embed.views"
            + suggestion(wanted, (*SEVERAL, *kept))
        )


def _read(
    path: Path, tables: Mapping[str, Sequence[h5py.Dataset]], wanted: str, image_ids: np.ndarray
) -> np.ndarray:
    """(N, V, K, D) float32: all views to draw from, or one, or their mean; InputError for values that are none."""
    views = [*tables.values()] if wanted in SEVERAL else [tables[wanted]]
    values = np.empty(
        (len(views[0][0]), len(views), len(views[0]), views[0][0].shape[1]), np.float32
    )
    for v, k in np.ndindex(values.shape[1:3]):  # one by one, so that all are in memory only once
        values[:, v, k] = views[v][k].astype(np.float32)[:]
        _check_values(path, views[v][k].name, values[:, v, k], image_ids)
    return values.mean(1, keepdims=True) if wanted == "mean" else values


def _check_ids(path: Path, image_ids: np.ndarray) -> None:
    """InputError for the first image that has two rows."""
    row_of: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        if row_of.setdefault(image_id, row) != row:
            raise InputError(
                f"{path}: /image_ids has {image_id} twice, in the rows {row_of[image_id]} and {row}; {EMBED_AGAIN}"
            )


def _check_rows(path: Path, table: h5py.Dataset, image_ids: np.ndarray) -> None:
    """InputError unless it is (N, D) of any floating point type; it is read as float32."""
    if table.ndim != 2 or table.dtype.kind != "f" or len(table) != len(image_ids):
        raise InputError(
            f"{path}: expected a row of numbers an image id, got {table.dtype} {table.shape} of {table.name} for "
            f"{len(image_ids)} ids; {EMBED_AGAIN}"
        )


def _check_values(path: Path, name: str, values: np.ndarray, image_ids: np.ndarray) -> None:
    """InputError for the first row of (N, D) that is not finite, or all zero, as of an image that was left out."""
    finite = np.isfinite(values).all(axis=1)
    for wrong, what in (
        (~finite, "that are not finite"),
        (~values.any(axis=1), "that are all zero"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{path}: {name}: {wrong.sum()} of {len(values)} images have values {what}, the first is "
                f"{image_ids[row]} in row {row}; {EMBED_AGAIN}"
            )


def _check_mix(path: Path, blocks: Mapping[str, h5py.Dataset]) -> None:
    if len(blocks) < 2:
        raise InputError(
            f"{path}: train.block is mix and the only block there is {[*blocks][0]}: add to embed.blocks"
        )
    if len({table.shape[1] for table in blocks.values()}) > 1:
        told = ", ".join(f"{name} has {table.shape[1]}" for name, table in blocks.items())
        raise InputError(
            f"{path}: train.block is mix, which needs blocks of one size, and of the dimensions {told}: "
            "name blocks of one size in embed.blocks, or one of them in train.block"
        )


def read_about(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The attributes of a cache, and of each block, `<view>/<block>` where degraded; InputError if it is no cache."""
    try:
        with h5py.File(path, "r") as file:
            known = {block: _plain(dataset) for block, dataset in _blocks(file).items()}
            for view, blocks in file.get("views", {}).items():
                known |= {f"{view}/{block}": _plain(dataset) for block, dataset in blocks.items()}
            return _plain(file), known
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: is not a whole embedding cache ({error}); {EMBED_AGAIN}"
        ) from error


def read_health(path: Path) -> dict[str, dict[str, int | float]]:
    """What the cache says of each of its blocks; InputError if it is no cache."""
    return {
        block: {name: value for name, value in attributes.items() if isinstance(value, int | float)}
        for block, attributes in read_about(path)[1].items()
    }


def _plain(of: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes without numpy's types."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in of.attrs.items()
    }


def _blocks(file: h5py.File) -> h5py.Group:
    blocks = file["embeddings"]
    if not isinstance(blocks, h5py.Group):
        raise TypeError("/embeddings should be a group of blocks, such as /embeddings/last")
    return blocks
