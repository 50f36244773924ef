"""The images of THINGS from the user's own copy: their licence stands behind a password, so nothing fetches them.

Images: Hebart et al. 2019, https://doi.org/10.1371/journal.pone.0223792; https://osf.io/jum2f.
"""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.data.archives import ZIP_FAULTS, open_zip, read_member
from pipeline.errors import InputError
from pipeline.files import replacing

LARGEST_IMAGE = 64 << 20  # bytes of one image file; the published ones have about 100 kB


def find_own_copy(setting: str) -> Path:
    """The folder or zip that `download.things_images` names, if it can be read; InputError says where to get one."""
    path = Path(setting).expanduser()
    if not path.is_absolute() or not path.exists():  # an experiment of DVC runs in another working directory
        raise InputError(
            f"download.things_images is {setting!r}: expected the full path of your own copy of THINGS' images; get "
            "images_THINGS.zip (about 12 GB) from https://osf.io/jum2f, accept its licence, whose password unpacks it, "
            "and name the unpacked folder"
        )
    with _open(path):
        return path


def collect_images(own_copy: Path, wanted: Sequence[str], target: Path) -> None:
    """Write the `wanted` images, in their order and by these names, into one uncompressed zip of fixed dates.

    An image such as `object_images/aardvark/aardvark_01b.jpg` is looked for below any folder of the copy, by its last
    two parts. InputError, and no zip, where one is missing or two files of that name differ.
    """
    with _open(own_copy) as (names, read), replacing(target) as part, zipfile.ZipFile(part, "w") as archive:
        found: dict[tuple[str, ...], list[str]] = {_last_two(image_id): [] for image_id in wanted}
        for name in names:
            if (key := _last_two(name)) in found:
                found[key].append(name)
        missing = [image_id for image_id in wanted if not found[_last_two(image_id)]]
        if missing:
            raise InputError(
                f"{own_copy}: {len(missing)} of {len(wanted)} images are missing, the first is {missing[0]}; does "
                "download.things_images name the whole unpacked images_THINGS.zip?"
            )
        for image_id in tqdm(wanted, desc="images", unit="image", disable=None):
            same = found[_last_two(image_id)]
            data = read(same[0])
            if any(read(other) != data for other in same[1:]):
                raise InputError(
                    f"{own_copy}: has {len(same)} different files for the image {image_id}: {', '.join(sorted(same))}; "
                    "leave only the published one there"
                )
            archive.writestr(zipfile.ZipInfo(image_id), data)  # dated 1980


def _last_two(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts[-2:]


@contextmanager
def _open(own_copy: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names of all files in a folder or zip, and what reads one of them."""
    if own_copy.is_dir():
        names = [os.path.join(folder, file) for folder, _, files in os.walk(own_copy) for file in files]
        yield names, lambda name: Path(name).read_bytes()
        return
    if _is_encrypted(own_copy):
        raise InputError(
            f"{own_copy}: is encrypted; unpack it with the password of its licence (https://osf.io/jum2f) and let "
            "download.things_images name the folder"
        )
    with open_zip(own_copy, LARGEST_IMAGE) as archive:
        yield archive.namelist(), lambda name: read_member(archive, name)


def _is_encrypted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(info.flag_bits & 0x1 for info in archive.infolist())
    except (OSError, *ZIP_FAULTS):
        return False  # `open_zip` says what is wrong with it
