"""The embedding cache: an HDF5 file with one row an image, and what it was made with.

/                          attributes: backbone, encoder, alignment, tokens, preprocessing,
                           precision, batch_size, device, checkpoint, checkpoint_sha256,
                           aligned_by, versions. Some caches also have `caveat`, a sentence for
                           every report, and `only`, why there are no other blocks. An empty cache
                           has `why` alone.
/image_ids (N,)            the path in the image archives, such as
                           `training_images/00001_aardvark/aardvark_01b.jpg`
/embeddings/<block> (N, D) float32, training and test images in one table. <block> is `last`, or the
                           number of a transformer block. Attributes: feature, and its health
                           (`images.health`)
/views/<view>/<block>      the same for each degraded view (`images.views`) in embed.views, such as
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
SEVERAL = ("mean", "draw")  # values of train.views that use all the views in a cache


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of N images, one row an image, training and test images in one table.

    * `values`: (N, D) float32, the gallery, with which EEG is compared. With the block `mix` it is
      (N, K, D), for the K blocks named in `blocks`. The EEG encoder also learns `values`, unless
      there are `targets`.
    * `image_ids`: (N,) str, each once.
    * `blocks`: the names of K blocks, the deepest last; empty without `mix`.
    * `targets`: (N, V, D) float32, or (N, V, K, D) for a mix: V views of each image, of which the
      EEG encoder learns one at a time.
    * `views`, `views_in_gallery`: in words, which views `targets` and `values` are.
    * `file`: its path, for error messages.
    """

    values: np.ndarray
    image_ids: np.ndarray
    blocks: tuple[str, ...] = ()
    targets: np.ndarray | None = None
    views: str = ORIGINAL
    views_in_gallery: str = ORIGINAL
    file: str = "the embedding cache"

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each id: (n,) str -> (n,) int64, in the same order.

        InputError for the first id without a row.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{self.file}: {len(missing)} of the {len(image_ids)} images seen have no "
                f"embedding, first {missing[0]}{self._by_another_name(missing[0])}; {EMBED_AGAIN}"
            )
        return np.array([row_of[image_id] for image_id in image_ids], dtype=np.int64)

    def _by_another_name(self, image_id: str) -> str:
        """Under which name the cache seems to have this image, in words; "" if under none."""
        # The same file in another folder
        file = image_id.rpartition("/")[2]
        similar = next((name for name in self.image_ids if name.rpartition("/")[2] == file), None)
        if not similar:
            return ""
        return (
            f", which is called {similar} there and should be called as in data/fetched/images.csv"
        )


def write_embeddings(
    path: Path,
    image_ids: Sequence[str],
    blocks: Iterable[tuple[int | str, np.ndarray, Attributes]],
    made_with: Attributes,
) -> None:
    """Write a cache, in place of a file that is there; the same arguments give the same bytes.

    `image_ids` are N, each once. `blocks` gives the name, values (N, D) and attributes of one block
    after another; values are stored as float32. The name is `last`, or the number of a transformer
    block, or `<view>/<block>` for a degraded view. `made_with` are the attributes of the cache.

    Nothing is checked here: `read_embeddings` refuses ids that are there twice, values that are not
    finite, and rows of zeros.
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
            dataset.dims[0].label = "image"
            dataset.dims[1].label = "dimension"
            dataset.attrs.update(attributes)


def write_no_embeddings(path: Path, why: str) -> None:
    """Write an empty cache, for an encoder that does not exist; its reader gets this reason."""
    write_embeddings(path, [], [], {"why": why})


def read_embeddings(
    path: Path,
    block: int | Literal["last", "mix"],
    views: str = ORIGINAL,
    views_in_gallery: str = ORIGINAL,
) -> Embeddings:
    """Read one block of a cache, or with `mix` all of them, the deepest last.

    `block` is `last`, or the number of a transformer block, counted from 1.

    `views` is what an EEG encoder learns: a view by its name, `mean` for the mean embedding of all
    views, or `draw` for all of them, of which one is drawn each time. `views_in_gallery` is what it
    is compared with, and cannot be `draw`.

    InputError if the file is no cache, or lacks the block or view; if an id is there twice, a value
    is not finite, or a row is all zero; for `mean` and `draw` if it has the original alone; for
    `mix` if it has one block only or the sizes differ.
    """
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                raise InputError(f"{path}: holds no embeddings: {file.attrs['why']}")
            image_ids = file["image_ids"].asstr()[:]
            _check_ids(path, image_ids)

            # Look at shapes first: values are read only when all fits together.
            names = _pick_blocks(path, file, block)
            groups = {ORIGINAL: _blocks(file), **file.get("views", {})}
            _check_choice_of_views(path, views, views_in_gallery, [*groups])
            tables = _pick_tables(groups, names, views, views_in_gallery)
            _check_tables(path, tables, names, block, image_ids)

            values = _read(path, tables, views_in_gallery, image_ids)[:, 0]
            targets = None if views == views_in_gallery else _read(path, tables, views, image_ids)
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: is not a whole embedding cache ({error}); {EMBED_AGAIN}"
        ) from error

    if block != "mix":  # no axis K
        values = values[:, 0]
        targets = None if targets is None else targets[:, :, 0]
    return Embeddings(
        values,
        image_ids,
        blocks=tuple(names) if block == "mix" else (),
        targets=targets,
        views=_in_words(views, [*groups]),
        views_in_gallery=_in_words(views_in_gallery, [*groups]),
        file=str(path),
    )


def _pick_blocks(path: Path, file: h5py.File, block: int | Literal["last", "mix"]) -> list[str]:
    """The names of the blocks to read, the deepest last; InputError for an unknown block."""
    # Zeros before the numbers: 12 comes after 3, and last after all.
    available = sorted(_blocks(file), key=lambda name: (name == "last", name.zfill(9)))
    names = available if block == "mix" else [str(block)]
    if names[0] not in available:
        remedy = (
            f": {file.attrs['only']}" if "only" in file.attrs else ", or add it to embed.blocks"
        )
        raise InputError(
            f"{path}: train.block is {block}; set it to one that is there, "
            f"{', '.join(available)}{remedy}"
        )
    return names


def _check_choice_of_views(
    path: Path, views: str, views_in_gallery: str, available: Sequence[str]
) -> None:
    """InputError where the cache lacks a view, or has no others to draw from or average."""
    if views_in_gallery == "draw":
        raise InputError(
            f"train.views_in_gallery is draw: set it to mean or one of {', '.join(available)}"
        )
    for key, choice in (("views", views), ("views_in_gallery", views_in_gallery)):
        if choice in SEVERAL and len(available) == 1:
            raise InputError(
                f"{path}: train.{key} is {choice} and the only view there is {ORIGINAL}: add to "
                "embed.views"
            )
        if choice not in (*SEVERAL, *available):
            near = suggestion(choice, (*SEVERAL, *available))
            raise InputError(
                f"{path}: train.{key} is {choice}; set it to one that is there, "
                f"{', '.join(available)}, or add it to embed.views{near}"
            )


def _pick_tables(
    groups: Mapping[str, h5py.Group], names: Sequence[str], views: str, views_in_gallery: str
) -> dict[str, list[h5py.Dataset]]:
    """For each view that is needed, the tables of these blocks; the original is always needed."""
    if {views, views_in_gallery} & {*SEVERAL}:
        needed = [*groups]
    else:
        needed = [view for view in groups if view in (ORIGINAL, views, views_in_gallery)]
    return {view: [groups[view][name] for name in names] for view in needed}


def _check_tables(
    path: Path,
    tables: Mapping[str, Sequence[h5py.Dataset]],
    names: Sequence[str],
    block: int | Literal["last", "mix"],
    image_ids: np.ndarray,
) -> None:
    """InputError unless all are tables of numbers, and can be mixed where `block` is mix."""
    all_tables = [*itertools.chain(*tables.values())]
    for table in all_tables:
        _check_rows(path, table, image_ids)
    if block == "mix":
        _check_mix(path, dict(zip(names, tables[ORIGINAL], strict=True)))

    size = tables[ORIGINAL][0].shape[1]
    if any(table.shape[1] != size for table in all_tables):
        raise ValueError("its views differ in size")


def _in_words(choice: str, available: Sequence[str]) -> str:
    return f"{choice} of {', '.join(available)}" if choice in SEVERAL else choice


def _read(
    path: Path, tables: Mapping[str, Sequence[h5py.Dataset]], choice: str, image_ids: np.ndarray
) -> np.ndarray:
    """(N, V, K, D) float32: for `draw` all views; else one view, or the mean of all, with V = 1."""
    chosen = [*tables.values()] if choice in SEVERAL else [tables[choice]]
    n_blocks = len(chosen[0])
    n_images, size = chosen[0][0].shape

    # Read one table at a time into its place, so that all are in memory only once.
    values = np.empty((n_images, len(chosen), n_blocks, size), np.float32)
    for v, k in np.ndindex(values.shape[1:3]):
        table = chosen[v][k]
        values[:, v, k] = table.astype(np.float32)[:]
        _check_values(path, table.name, values[:, v, k], image_ids)
    return values.mean(1, keepdims=True) if choice == "mean" else values


def _check_ids(path: Path, image_ids: np.ndarray) -> None:
    """InputError for the first image that has two rows."""
    row_of: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        if row_of.setdefault(image_id, row) != row:
            raise InputError(
                f"{path}: /image_ids has {image_id} twice, in the rows {row_of[image_id]} and "
                f"{row}; {EMBED_AGAIN}"
            )


def _check_rows(path: Path, table: h5py.Dataset, image_ids: np.ndarray) -> None:
    """InputError unless a table is (N, D), of any floating point type; it is read as float32."""
    if table.ndim != 2 or table.dtype.kind != "f" or len(table) != len(image_ids):
        raise InputError(
            f"{path}: expected a row of numbers an image id, got {table.dtype} {table.shape} of "
            f"{table.name} for {len(image_ids)} ids; {EMBED_AGAIN}"
        )


def _check_values(path: Path, name: str, values: np.ndarray, image_ids: np.ndarray) -> None:
    """InputError for the first row of (N, D) that is not finite, or all zero."""
    finite = np.isfinite(values).all(axis=1)
    empty = ~values.any(axis=1)
    for wrong, problem in ((~finite, "that are not finite"), (empty, "that are all zero")):
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{path}: {name}: {wrong.sum()} of {len(values)} images have values {problem}, "
                f"the first is {image_ids[row]} in row {row}; {EMBED_AGAIN}"
            )


def _check_mix(path: Path, blocks: Mapping[str, h5py.Dataset]) -> None:
    if len(blocks) < 2:
        raise InputError(
            f"{path}: train.block is mix and the only block there is {[*blocks][0]}: add to "
            "embed.blocks"
        )
    if len({table.shape[1] for table in blocks.values()}) > 1:
        sizes = ", ".join(f"{name} has {table.shape[1]}" for name, table in blocks.items())
        raise InputError(
            f"{path}: train.block is mix, which needs blocks of one size, and of the dimensions "
            f"{sizes}: name blocks of one size in embed.blocks, or one of them in train.block"
        )


def read_about(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The attributes of a cache, and those of each block by its name.

    The name of a block of a degraded view is `<view>/<block>`. InputError if it is no cache.
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = {name: _plain(dataset) for name, dataset in _blocks(file).items()}
            for view, blocks in file.get("views", {}).items():
                for name, dataset in blocks.items():
                    attributes[f"{view}/{name}"] = _plain(dataset)
            return _plain(file), attributes
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: is not a whole embedding cache ({error}); {EMBED_AGAIN}"
        ) from error


def read_health(path: Path) -> dict[str, dict[str, int | float]]:
    """The health of each block, by its name (`images.health`); InputError if it is no cache."""
    return {
        block: {name: value for name, value in attributes.items() if isinstance(value, int | float)}
        for block, attributes in read_about(path)[1].items()
    }


def _plain(node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Its attributes, without numpy's types."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in node.attrs.items()
    }


def _blocks(file: h5py.File) -> h5py.Group:
    """The blocks of the original view."""
    blocks = file["embeddings"]
    if not isinstance(blocks, h5py.Group):
        raise TypeError("/embeddings should be a group of blocks, such as /embeddings/last")
    return blocks
