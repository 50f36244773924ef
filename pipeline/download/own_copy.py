"""The images of THINGS from the user's own copy: their licence stands behind a password, so nothing fetches them.

Images: Hebart et al. 2019, https://doi.org/10.1371/journal.pone.0223792; https://osf.io/jum2f.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import files_below, replacing, unreadable
from pipeline.untrusted.archives import ZIP_FAULTS, open_zip, read_member
from pipeline.untrusted.pictures import LARGEST_IMAGE

Key = tuple[str, ...]  # the last two parts of a path, with the suffix in lower case
Places = Mapping[str, Sequence[str]]  # of each image id, the files of that name in the copy


@dataclass(frozen=True)
class _Copy:
    """An opened folder or zip: the names of all its files, and what reads one of them or its size in bytes."""

    names: Sequence[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]


def find_own_copy(setting: str) -> Path:
    """The folder or zip that `download.things_images` names, if it can be read; InputError says where to get one."""
    path = Path(setting).expanduser()
    if (
        not path.is_absolute() or not path.exists()
    ):  # an experiment of DVC runs in another working directory
        raise InputError(
            f"download.things_images is {setting!r}: expected the full path of your own copy of THINGS' images; get "
            "images_THINGS.zip (about 12 GB) from https://osf.io/jum2f, accept its licence, whose password unpacks it, "
            "and name the unpacked folder"
        )
    with _open(path):
        return path


def check_images(own_copy: Path, wanted: Sequence[str]) -> None:
    """InputError if the copy lacks one of the `wanted` images, or has two of other sizes; no image is read."""
    with _open(own_copy) as copy:
        _find_images(own_copy, copy, wanted)


def collect_images(own_copy: Path, wanted: Sequence[str], target: Path) -> None:
    """Write the `wanted` images, in their order and by these names, into one uncompressed zip of fixed dates.

    An image such as `object_images/aardvark/aardvark_01b.jpg` is looked for below any folder of the copy, by its last
    two parts. InputError, and no zip, where one is missing or two files of that name differ.
    """
    with _open(own_copy) as copy:
        places = _find_images(own_copy, copy, wanted)

        with replacing(target) as part, zipfile.ZipFile(part, "w") as archive:
            for image_id in tqdm(wanted, desc="images", unit="image", disable=None):
                data = _read_one(own_copy, image_id, places[image_id], copy)
                archive.writestr(zipfile.ZipInfo(image_id), data)  # dated 1980


def _find_images(own_copy: Path, copy: _Copy, wanted: Sequence[str]) -> Places:
    """The files of each wanted image; InputError if it has none, a link to nothing, or several of other sizes."""
    places: dict[Key, list[str]] = {_key(image_id): [] for image_id in wanted}
    for name in copy.names:
        if (key := _key(name)) in places:
            places[key].append(name)

    found = {image_id: places[_key(image_id)] for image_id in wanted}
    missing = [image_id for image_id in wanted if not found[image_id]]
    if missing:
        raise InputError(
            f"{own_copy}: {len(missing)} of {len(wanted)} images are missing, the first is {missing[0]}; "
            f"{_what_it_is(copy.names, len(missing) == len(wanted))}"
        )

    if own_copy.is_dir():
        _check_links(own_copy, found)
    for image_id, names in found.items():
        if len(names) > 1 and len(set(map(copy.size, names))) > 1:
            raise _differ(own_copy, image_id, names)
    return found


def _key(name: str) -> Key:
    """Cameras and Windows write .JPG for .jpg."""
    *folders, file = PurePosixPath(name).parts[-2:]
    stem, dot, suffix = file.rpartition(".")
    return (*folders, f"{stem}{dot}{suffix.lower()}")


def _what_it_is(names: Sequence[str], all_missing: bool) -> str:
    """What a copy without the images seems to be, and what is wanted."""
    folders = {PurePosixPath(name).parent.name for name in names}
    if all_missing and any(re.fullmatch(r"\d{5}_.+", folder) for folder in folders):
        return (
            "its folders are numbered, as 00001_aardvark is: it seems to be the image set of THINGS-EEG2, and the MEG "
            "showed other images of THINGS; let download.things_images name the unpacked images_THINGS.zip "
            "(https://osf.io/jum2f), with folders such as aardvark"
        )
    if all_missing:
        return (
            "let download.things_images name the whole unpacked images_THINGS.zip (https://osf.io/jum2f), in which "
            "each concept has a folder"
        )
    return "unpack images_THINGS.zip (https://osf.io/jum2f) again and whole, or copy those that are missing into it"


def _check_links(own_copy: Path, found: Places) -> None:
    """InputError if images are links to nothing, as datalad and git-annex leave them before the files are fetched."""
    broken = [image_id for image_id, names in found.items() if not all(map(os.path.exists, names))]
    if broken:
        raise InputError(
            f"{own_copy}: {len(broken)} of {len(found)} images are links whose target is not there, the first is "
            f"{broken[0]}; fetch them first: datalad get, or git annex get, in that folder"
        )


def _read_one(own_copy: Path, image_id: str, names: Sequence[str], copy: _Copy) -> bytes:
    """The image, which may lie there several times if all are the same; InputError if they differ."""
    data = copy.read(names[0])
    if any(copy.read(other) != data for other in names[1:]):
        raise _differ(own_copy, image_id, names)
    return data


def _differ(own_copy: Path, image_id: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"{own_copy}: has {len(names)} different files for the image {image_id}: "
        f"{', '.join(sorted(names))}; {'' if own_copy.is_dir() else 'unpack it, and '}let "
        "download.things_images name the folder of the published ones alone"
    )


@contextmanager
def _open(own_copy: Path) -> Iterator[_Copy]:
    if own_copy.is_dir():
        names = [name for name in files_below(own_copy) if not _is_of_macos(name)]
        yield _Copy(names, _read_file, os.path.getsize)
        return

    if _is_encrypted(own_copy):
        raise InputError(
            f"{own_copy}: is encrypted; unpack it with the password of its licence (https://osf.io/jum2f) and let "
            "download.things_images name the folder"
        )
    with open_zip(own_copy, LARGEST_IMAGE) as archive:
        names = [name for name in archive.namelist() if not _is_of_macos(name)]
        yield _Copy(
            names,
            lambda name: read_member(archive, name),
            lambda name: archive.getinfo(name).file_size,
        )


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise unreadable(error, Path(name)) or InputError(
            f"{name}: is not there any more; put it back, and run it again"
        ) from error


def _is_of_macos(name: str) -> bool:
    """Whether it holds what macOS keeps beside a file: `__MACOSX/aardvark/._aardvark_01b.jpg` is no image."""
    return PurePosixPath(name).name.startswith("._")


def _is_encrypted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(info.flag_bits & 0x1 for info in archive.infolist())
    except (OSError, *ZIP_FAULTS):
        return False  # `open_zip` says what is wrong with it
