"""The user's own recordings and pictures, put where the files of a published dataset are.

Of the recordings only their paths and trials are put there (`subject_folder`): they stay where they
are. The pictures go into one zip.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.datasets.image_table import SPLITS, read_image_table
from pipeline.datasets.own.pictures import FOLDER, open_pictures, relative_name
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.untrusted.picture_files import PictureFiles, write_picture_zip

CHECK_AGAIN = "look again with `dvc repro --force check_own`"


def place_own_files(
    found: Path,
    pictures: str,
    subjects: Sequence[str] | Literal["all"],
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
) -> None:
    """Put the folder of each subject, the zip of pictures and the table of images in place.

    `found` is the output of the stage check_own, `pictures` is `own.images`. Raises InputError
    where the pictures are not there any more.
    """
    table = found / "images.csv"
    images = read_image_table(table)
    # Sorted, so that another split makes the same zip.
    image_ids = sorted(image_id for split in SPLITS for image_id in images[split]["image_ids"])

    for folder in sorted((found / "subjects").iterdir()):
        if subjects == "all" or folder.name in subjects:
            _copy_folder(folder, eeg_dir / folder.name)
    _copy_file(table, metadata)

    with open_pictures(pictures) as (path, files):
        by_id = {f"{FOLDER}/{relative_name(path, name)}": name for name in files.names}
        missing = [image_id for image_id in image_ids if image_id not in by_id]
        if missing:
            raise InputError(
                f"{path}: the picture {missing[0].removeprefix(FOLDER + '/')} is not there any "
                f"more; put it back, or {CHECK_AGAIN}"
            )
        contents = _read_all(image_ids, by_id, files)
        write_picture_zip(images_dir / f"{FOLDER}.zip", contents, len(image_ids))


def _read_all(
    image_ids: Sequence[str], by_id: dict[str, str], files: PictureFiles
) -> Iterator[tuple[str, bytes]]:
    for image_id in image_ids:
        yield image_id, files.read(by_id[image_id])


def _copy_folder(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        _copy_file(path, target / path.name)


def _copy_file(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
