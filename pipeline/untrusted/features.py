"""Features of pictures that a user has computed elsewhere, read without running code.

A file holds a row of numbers a picture, and the picture's name:

.npz           an array of names (N,), text, and an array of features (N, D)
.npy           the features; the names are in a CSV file of the same stem beside it
.h5, .hdf5     as an .npz, as two datasets; or an embedding cache of this project
.safetensors   a tensor of features; the names are a list in JSON in its metadata, or a CSV file

Arrays may have any names if there is only one of each kind. Else `names` and `features` are taken.
Of a CSV file the column `image` is taken, else the first; it may lack the line with the titles.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import safetensors
import torch

from pipeline.errors import InputError
from pipeline.files import unreadable
from pipeline.untrusted.archives import open_zip, read_member

WITH_CSV = (".npy", ".safetensors")  # their names may be in a CSV file beside them
ENDINGS = (".npz", ".h5", ".hdf5", *WITH_CSV)
LARGEST_MEMBER = 2**34  # bytes of an array in an .npz file

# How two arrays are told apart from others in the same file
NAMES = ("names", "image_ids")
FEATURES = ("features", "embeddings/last")

HOW_TO_WRITE = (
    "write it by numpy.savez('features.npz', names=names, features=features), with the names (N,) "
    "as text and the features (N, D) as floats, a row a picture"
)


@dataclass(frozen=True)
class Features:
    """The features of N pictures: `names` (N,) str, and `values` (N, D) of float16, 32 or 64."""

    names: list[str]
    values: np.ndarray


def check_setting(value: str, key: str) -> Path:
    """The path that a parameter names; `key` is the parameter, for messages.

    Raises InputError where it is no full path of a kind of file that is read here. Whether there is
    such a file is not looked at.
    """
    path = Path(value).expanduser()
    if value == "none" or not path.is_absolute():
        reason = "" if value == "none" else ", which is no full path"
        raise InputError(
            f"{key} is {value}{reason}: set it to the full path of your file of features, a row a "
            f"picture ({', '.join(ENDINGS)})"
        )
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f"{key} is {value}: expected a file that ends in {', '.join(ENDINGS)}; {HOW_TO_WRITE}"
        )
    return path


def features_files(value: str, key: str) -> list[Path]:
    """The file that a parameter names, and the CSV file beside it if its names are in one.

    Raises InputError as `check_setting`, and where one of them is missing.
    """
    path = check_setting(value, key)
    if not path.is_file():
        raise InputError(f"{key} is {value}: there is no such file; see how it is spelt")
    if path.suffix.lower() not in WITH_CSV:
        return [path]

    names = path.with_suffix(".csv")
    if names.is_file():
        return [path, names]
    if path.suffix.lower() == ".npy":
        raise InputError(
            f"{key} is {value}: its pictures have no names; put them into {names}, one a line in "
            "the order of the rows"
        )
    return [path]


def read_features(path: Path, label: str) -> Features:
    """The features in a file, and the names of their pictures; `label` is its name in messages.

    Raises InputError where the file is damaged, holds no features or several, has no names or not
    one a row, or would run code.
    """
    readers = {".npz": _read_npz, ".npy": _read_npy, ".safetensors": _read_safetensors}
    reader = readers.get(path.suffix.lower(), _read_hdf5)
    try:
        names, values = reader(path, label)
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{label}: cannot be read ({error}); put a whole file in its place"
        ) from error

    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"{label}: the features are {values.shape}, and expected is (N, D), a row a picture"
            f"{_how_to_flatten(values)}"
        )
    if len(names) != len(values):
        raise InputError(
            f"{label}: has {len(names)} names and {len(values)} rows of features, and expected is "
            "a name a row, in the same order; save both again from one list of pictures"
        )
    return Features(names, values)


def _how_to_flatten(values: np.ndarray) -> str:
    """What to do with features of more axes, such as (concepts, images, D); "" with other ones."""
    if values.ndim < 3 or 0 in values.shape:
        return ""
    n_rows = int(np.prod(values.shape[:-1]))
    return (
        f"; if the first axes count pictures, save features.reshape(-1, {values.shape[-1]}) with "
        f"{n_rows} names in that order, and if not, average or join those of a picture first"
    )


def _read_npz(path: Path, label: str) -> tuple[list[str], np.ndarray]:
    with open_zip(path, LARGEST_MEMBER) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        # Other arrays are not read if these two are there.
        if members.keys() >= {"names", "features"}:
            members = {name: members[name] for name in ("names", "features")}

        arrays = {
            name: _parse_array(read_member(archive, member), f"{label}: {name}")
            for name, member in members.items()
        }
    return _pick(arrays, label)


def _read_npy(path: Path, label: str) -> tuple[list[str], np.ndarray]:
    values = _parse_array(path.read_bytes(), label)
    if values.dtype.kind != "f":
        raise InputError(
            f"{label}: holds {values.dtype} {values.shape}, and expected are floats (N, D); if "
            "that is what they are, save features.astype('float32')"
        )
    return _read_csv(path.with_suffix(".csv"), len(values)), values


def _parse_array(data: bytes, label: str) -> np.ndarray:
    """An array in numpy's format; InputError where it is none, or holds objects."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{label} holds Python objects, which could run code and are not read; if you "
                "trust it, save text as names.astype(str) and numbers as features.astype('float32')"
            ) from error
        raise InputError(
            f"{label} is not a whole array of numpy ({error}); {HOW_TO_WRITE}"
        ) from error


def _read_hdf5(path: Path, label: str) -> tuple[list[str], np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                raise InputError(f"{label}: is an empty embedding cache: {file.attrs['why']}")
            return _pick(_datasets_in(file), label)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{label}: is not a whole HDF5 file ({error}); {HOW_TO_WRITE}") from error


def _datasets_in(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets by their names, those in groups too; links to other files are not followed."""
    datasets: dict[str, h5py.Dataset] = {}

    def collect(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            datasets[name] = node

    file.visititems(collect)
    return datasets


def _read_safetensors(path: Path, label: str) -> tuple[list[str], np.ndarray]:
    try:
        # By torch: numpy has no bfloat16 and no float8.
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: _as_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{label}: is not a whole safetensors file ({error}); {HOW_TO_WRITE}"
        ) from error

    values = tensors[_pick_features(tensors, label)]
    csv = path.with_suffix(".csv")
    if not csv.is_file():
        return _names_in(metadata, label), values

    # Which of the two is meant, nobody can tell.
    if "names" in metadata:
        raise InputError(
            f"{label}: names are in its metadata and in {csv.name} beside it; give that file "
            "another name, or take the names out of the metadata"
        )
    return _read_csv(csv, len(values)), values


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if tensor.is_floating_point() and not known else tensor).numpy()


def _names_in(metadata: Mapping[str, str], label: str) -> list[str]:
    """The one list of names in the metadata of a safetensors file; the key `names` comes first."""
    lists = {}
    for key, text in metadata.items():
        try:
            value = json.loads(text)
        except ValueError:
            continue  # other notes, in plain words
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            lists[key] = value

    if "names" in lists:
        return lists["names"]
    if len(lists) != 1:
        raise InputError(
            f"{label}: {len(lists)} lists of names are in its metadata, and expected is one; save "
            "it with metadata={'names': json.dumps(names)}, or put the names into a CSV file of "
            "the same stem beside it"
        )
    return next(iter(lists.values()))


def _read_csv(path: Path, n_rows: int) -> list[str]:
    """The names in a CSV file beside features of so many rows."""
    try:
        # As text, with the first line: whether that is one of titles, the number of lines tells.
        table = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path.name}: cannot be read as CSV in UTF-8 ({error}); write a name a line"
        ) from error

    if len(table) == n_rows:
        return table[0].tolist()
    if len(table) == n_rows + 1:
        titles = table.iloc[0].tolist()
        column = titles.index("image") if "image" in titles else 0
        return table[column].tolist()[1:]
    raise InputError(
        f"{path.name}: has {len(table)} lines, and the features beside it have {n_rows} rows: "
        "expected is a line a row in the same order, and maybe one of titles before"
    )


def _pick(
    arrays: Mapping[str, np.ndarray | h5py.Dataset], label: str
) -> tuple[list[str], np.ndarray]:
    """The one array of names among these, and the one of features."""
    features = _pick_features(arrays, label)
    texts = [name for name, array in arrays.items() if array.ndim == 1 and _is_text(array.dtype)]
    names = _pick_one(texts, NAMES, "names (N,), text", arrays, label)
    return _as_text(arrays[names], label), arrays[features][:]


def _pick_features(arrays: Mapping[str, Any], label: str) -> str:
    """What the one array of features is called."""
    # Of three axes too: the sentence about them is another.
    tables = [name for name, array in arrays.items() if array.ndim > 1 and array.dtype.kind == "f"]
    return _pick_one(tables, FEATURES, "features (N, D), floats", arrays, label)


def _pick_one(
    candidates: Sequence[str],
    preferred: Sequence[str],
    what: str,
    arrays: Mapping[str, Any],
    label: str,
) -> str:
    for name in preferred:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]

    contents = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    raise InputError(
        f"{label}: {len(candidates)} arrays could be the {what}, and expected is one; it holds "
        f"{contents or 'nothing'}; {HOW_TO_WRITE}"
    )


def _is_text(dtype: np.dtype) -> bool:
    return dtype.kind in "SU" or h5py.check_string_dtype(dtype) is not None


def _as_text(array: np.ndarray | h5py.Dataset, label: str) -> list[str]:
    values = array[:]
    try:
        # HDF5 and numpy's S keep bytes.
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{label}: a name is not text in UTF-8 ({error.reason}); save the names as UTF-8"
        ) from error
