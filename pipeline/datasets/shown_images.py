"""The images that a dataset showed, compared with those that are embedded for it.

A dataset that shows the images of another one needs no images of its own. That they are the same is
its authors' word, so it is proved before anything is computed: each picture, byte for byte.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from pipeline.datasets.image_table import SPLITS, Split
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.untrusted.picture_files import PictureFiles, open_picture_files
from pipeline.untrusted.pictures import open_images


def check_shown_images(shown: Path, images_dir: Path, images: Mapping[Split, pd.DataFrame]) -> None:
    """Raises InputError unless `shown` holds the same pictures as the zips in `images_dir`.

    In `shown`, a zip or a folder, a picture is called by its number, in any folder: `00016.jpg`.
    The numbers count from 0, first the rows of the training images and then those of the test
    images. Pictures of other numbers, which are in no split, are left out. `images` are the tables
    of the dataset, with the column `image_ids`.

    Each picture of both is read once, and two of them are in memory.
    """
    image_ids = [image_id for split in SPLITS for image_id in images[split]["image_ids"]]
    with open_picture_files(shown) as pictures, open_images(images_dir, image_ids) as embedded:
        names = _names_by_number(shown, pictures)
        missing = []
        different = []
        rows = tqdm(image_ids, desc="the images that were shown", unit="image", disable=None)
        for number, image_id in enumerate(rows):
            if number not in names:
                missing.append(f"{_file_name(number)} ({image_id})")
            elif pictures.read(names[number]) != embedded.read_bytes(image_id):
                different.append(f"{_file_name(number)} ({image_id})")

    n_wrong = len(missing) + len(different)
    if n_wrong:
        problems = []
        if different:
            problems.append(f"{len(different)} differ, the first is {different[0]}")
        if missing:
            problems.append(f"{len(missing)} are missing, the first is {missing[0]}")
        raise InputError(
            f"{shown.name}: of the {len(image_ids)} images that were shown, compared with those in "
            f"{images_dir}, {' and '.join(problems)}; these embeddings would be of other pictures "
            f"than people saw: {FETCH_AGAIN}; if it stays so, its publisher has replaced pictures, "
            "and they cannot be used together"
        )


def _file_name(number: int) -> str:
    return f"{number:05}.jpg"


def _names_by_number(shown: Path, pictures: PictureFiles) -> dict[int, str]:
    """The names of the pictures by their numbers. Raises InputError where a number comes twice."""
    names: dict[int, str] = {}
    for name in pictures.names:
        path = PurePosixPath(name)
        if not (len(path.stem) == 5 and path.stem.isdecimal() and path.suffix == ".jpg"):
            continue

        number = int(path.stem)
        if number in names:
            raise InputError(
                f"{shown.name}: holds {path.name} twice, as {names[number]!a:.100} and "
                f"{name!a:.100}; {FETCH_AGAIN}"
            )
        names[number] = name
    return names
