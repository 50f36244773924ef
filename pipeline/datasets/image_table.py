"""The images of a dataset as a table, `data/fetched/images.csv`.

It has the same columns for every dataset:

    split, image_ids, concept, things_concept

One row an image, in the order of the EEG conditions of its split. What needs only the images, such
as the embedding cache, reads this table and does not depend on the EEG.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import replacing, unreadable

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
COLUMNS = ["split", "image_ids", "concept", "things_concept"]


def write_image_table(path: Path, images: Mapping[Split, pd.DataFrame]) -> None:
    """Write what a dataset's `read_metadata` returns."""
    table = pd.concat([images[split].assign(split=split) for split in SPLITS])
    with replacing(path) as temporary:
        table[COLUMNS].to_csv(temporary, index=False)


def without_split(images: Mapping[Split, pd.DataFrame]) -> dict[Split, pd.DataFrame]:
    """The same images as one split without concepts, sorted by their ids.

    Another split, or other concepts, give the same table.
    """
    image_ids = sorted(pd.concat([images[split]["image_ids"] for split in SPLITS]))
    table = pd.DataFrame({"image_ids": image_ids, "concept": "", "things_concept": ""})
    return {"train": table, "test": table[:0]}


def read_image_table(path: Path) -> dict[Split, pd.DataFrame]:
    """A table a split, with the columns `image_ids`, `concept` and `things_concept`.

    Raises InputError where the file is not such a table.
    """
    try:
        # All as text: pandas would read a concept called "null" as missing, and "007" as 7.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as a table of images ({error}); {FETCH_AGAIN}"
        ) from error

    if list(table.columns) != COLUMNS or table["image_ids"].duplicated().any():
        raise InputError(
            f"{path}: expected the columns {', '.join(COLUMNS)} and each image once, got "
            f"{', '.join(table.columns)}; {FETCH_AGAIN}"
        )

    images: dict[Split, pd.DataFrame] = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        # Numbered anew, so that row i of a split is its condition i.
        images[split] = rows.drop(columns="split").reset_index(drop=True)
    return images
