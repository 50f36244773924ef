"""Features that a user has computed elsewhere, made into an embedding cache.

Names of pictures are matched with image ids by their last parts: the whole id first, then its last
two parts, and then the file's name alone; each with its extension first, and then without. Upper
and lower case of an extension are the same. Each image needs exactly one row. Rows that no image
needs are passed over.

It is not the rule of `datasets.picture_names`, for a reason. There a name with another folder means
no picture. Here it does, since such files are often made from another copy of the pictures, in
other folders; a line tells of it.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.images import health
from pipeline.images.embedder import read_image_ids
from pipeline.images.embeddings import ORIGINAL, write_embeddings
from pipeline.sections import Embed
from pipeline.untrusted.features import Features, read_features

N_REFERENCE_ROWS = 8  # looked up a second time, without the others
ALL_PARTS = 1 << 30
DEPTHS = (ALL_PARTS, 2, 1)  # so many of the last parts of an image id are compared


def write_cache(
    file: Path, key: str, image_table: Path, target: Path, notes: dict[str, str]
) -> None:
    """Write the embedding cache `target` of the images in the table from a file of features.

    `key` is the parameter that names the user's own file. `notes` (backbone, encoder, alignment)
    are stored in the cache, beside the name and the hash of the file. Raises InputError, and writes
    nothing, where an image has no row or several, or the features are not sound.
    """
    label = f"{file.name} ({key})"
    features = read_features(file, label)
    image_ids = read_image_ids(image_table)
    rows = match_names(features.names, image_ids, label)
    values = features.values[rows]
    check_values(values, image_ids, label)

    measures = _measure(values.astype(np.float32), image_ids, features)
    _check_distinct(measures, label)

    digest = sha256(file)
    file_name = f"{file.name} (sha256 {digest[:12]})"
    caveat = (
        f"The embeddings are features from {file_name}, computed elsewhere: of which model and "
        "layer they are, and how its pictures were prepared, is not known here."
    )
    attributes = notes | {
        "features_file": file_name,
        "features_sha256": digest,
        "caveat": caveat,
        "only": "a file of features holds one block",
    }
    # A CSV file of names decides as much as the file of features.
    names_file = file.with_suffix(".csv")
    if names_file.is_file():
        attributes["features_names_sha256"] = sha256(names_file)
    block = ("last", values, {"feature": "a row of the file of features"} | measures)
    write_embeddings(target, image_ids, [block], attributes)

    n_more = len(features.names) - len(image_ids)
    passed_over = f"; {n_more} more rows are not needed" if n_more else ""
    print(f"{label}: a row for each of the {len(image_ids)} images{passed_over}")
    _tell_other_folders([features.names[row] for row in rows], image_ids, label)


def check_embed(parameters: Embed) -> None:
    """Raises InputError where other blocks or views are asked for than a file of features has."""
    if parameters.blocks != ["last"]:
        raise InputError(
            f"embed.blocks is {parameters.blocks}: a file of features holds one block; set it to "
            "[last], and give each layer a file of its own"
        )
    if parameters.views != [ORIGINAL]:
        raise InputError(
            f"embed.views is {parameters.views}: features of degraded pictures cannot be computed "
            f"here; set it to [{ORIGINAL}], or name another backbone"
        )


def match_names(names: Sequence[str], image_ids: Sequence[str], label: str) -> np.ndarray:
    """The row of each image, (N,) int64.

    Raises InputError where an image has no row, or several, or a name stands for several images.
    """
    tables = {depth: _rows_by_key(names, depth) for depth in DEPTHS}
    candidates = [_find_rows(image_id, tables) for image_id in image_ids]

    missing = [i for i, rows in enumerate(candidates) if not rows]
    if missing:
        raise InputError(
            f"{label}: {len(missing)} of the {len(image_ids)} images have no row, the first is "
            f"{image_ids[missing[0]]}; its names are such as {names[0]}{_describe_doubles(names)}: "
            "add the rows, or write the names as in the column image_ids of data/fetched/images.csv"
        )

    doubled = [i for i, rows in enumerate(candidates) if len(rows) > 1]
    if doubled:
        first, second = candidates[doubled[0]][:2]
        raise InputError(
            f"{label}: {len(doubled)} images have several rows, the first is "
            f"{image_ids[doubled[0]]} with {names[first]} in row {first} and {names[second]} in "
            f"row {second} (from 0): keep one, or write the names as in the column image_ids of "
            "data/fetched/images.csv"
        )

    rows = np.array([rows[0] for rows in candidates], dtype=np.int64)
    _check_each_once(rows, names, image_ids, label)
    return rows


def _describe_doubles(names: Sequence[str]) -> str:
    """Which names are there twice: an image may lack its row because that has another's name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    return f", and {len(twice)} are there twice, the first is {twice[0]}" if twice else ""


def _rows_by_key(names: Sequence[str], depth: int) -> dict[str, list[int]]:
    """The rows of each name, of which only the last parts count."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(_last_parts(name, depth), []).append(row)
    return rows


def _find_rows(image_id: str, tables: dict[int, dict[str, list[int]]]) -> list[int]:
    """All rows that fit an image equally well; none if there is none."""
    without_extension = str(PurePosixPath(image_id).with_suffix(""))
    for depth, rows_by_key in tables.items():
        for candidate in (image_id, without_extension):
            rows = rows_by_key.get(_last_parts(candidate, depth))
            if rows:
                return rows
    return []


def _last_parts(name: str, depth: int) -> str:
    """The last parts of a path, as they are compared."""
    path = PurePosixPath(*_parts(name)[-depth:])
    return str(path.with_suffix(path.suffix.lower())) if path.suffix else str(path)


def _parts(name: str) -> tuple[str, ...]:
    # Windows writes backslashes, and macOS an accent as a character of its own.
    return PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/"))).parts


def _check_each_once(
    rows: np.ndarray, names: Sequence[str], image_ids: Sequence[str], label: str
) -> None:
    """Raises InputError where one row stands for several images."""
    _, first_use, uses = np.unique(rows, return_index=True, return_counts=True)
    if (uses > 1).any():
        row = rows[first_use[uses > 1].min()]
        first, second = np.flatnonzero(rows == row)[:2]
        raise InputError(
            f"{label}: {(uses > 1).sum()} names fit several images, the first is {names[row]} in "
            f"row {row} (from 0), which fits {image_ids[first]} and {image_ids[second]}: write the "
            "names as in the column image_ids of data/fetched/images.csv"
        )


def _tell_other_folders(names: Sequence[str], image_ids: Sequence[str], label: str) -> None:
    """Print how many names have the file's name of their image, and another folder."""
    others = [
        i
        for i, name in enumerate(names)
        if len(_parts(name)) > 1 and _parts(name)[-2:-1] != _parts(image_ids[i])[-2:-1]
    ]
    if others:
        print(
            f"{label}: {len(others)} names are in another folder than their image, such as "
            f"{names[others[0]]} for {image_ids[others[0]]}: matched by the file's name alone"
        )


def check_values(values: np.ndarray, image_ids: Sequence[str], label: str) -> None:
    """Raises InputError for the first row of (N, D) that is not finite in float32, or all zero."""
    with np.errstate(over="ignore"):
        as_stored = values.astype(np.float32)
    problems = {
        "are not finite": ~np.isfinite(values).all(axis=1),
        "are larger than float32 can hold": ~np.isfinite(as_stored).all(axis=1),
        "are all zero": ~as_stored.any(axis=1),
    }
    for problem, wrong in problems.items():
        if wrong.any():
            raise InputError(
                f"{label}: the features of {wrong.sum()} of {len(values)} images {problem}, the "
                f"first is {image_ids[int(wrong.argmax())]}: compute them again, and save the file "
                "under the same name"
            )


def _measure(values: np.ndarray, image_ids: Sequence[str], features: Features) -> health.Health:
    """The health of the cache; its reference are some rows that are looked up again."""
    rows = np.unique(np.linspace(0, len(values) - 1, N_REFERENCE_ROWS).astype(int))
    few_ids = [image_ids[row] for row in rows]
    reference = features.values[match_names(features.names, few_ids, "")]
    return health.measure(values, rows, reference)


def _check_distinct(measures: health.Health, label: str) -> None:
    """Raises InputError where the features hardly tell pictures apart."""
    if measures["duplicates"] > health.MOST_DUPLICATES * measures["rows"]:
        raise InputError(
            f"{label}: the features of {measures['duplicates']} of {measures['rows']} images "
            f"repeat those of another one, expected at most {health.MOST_DUPLICATES:.0%}: see that "
            "each picture went through the model, and each row has its own name"
        )
    if not measures["median_cosine"] <= health.MOST_ALIKE:
        raise InputError(
            f"{label}: the features of different images are nearly the same (median cosine "
            f"{measures['median_cosine']:.4f}, expected at most {health.MOST_ALIKE}): take another "
            "layer, or subtract their mean over the training images from all rows"
        )
