"""The images of THINGS, taken from the user's own copy.

They are not fetched, because their archive needs a password, which stands for their licence.

Images: Hebart et al. 2019, https://doi.org/10.1371/journal.pone.0223792; https://osf.io/jum2f.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError
from pipeline.untrusted.picture_files import (
    PictureFiles,
    is_encrypted,
    open_picture_files,
    write_picture_zip,
)

Key = tuple[str, ...]  # the last two parts of a path, with the suffix in lower case
Matches = Mapping[str, Sequence[str]]  # image id -> the files of that name in the copy


def find_own_copy(setting: str) -> Path:
    """The folder or zip that `download.things_images` names.

    Raises InputError if it cannot be read, and then says where to get one.
    """
    # `dvc exp run` works in another folder, so a relative path would lead elsewhere.
    path = Path(setting).expanduser()
    if not path.is_absolute() or not path.exists():
        raise InputError(
            f"download.things_images is {setting!r}: expected the full path of your own copy of "
            "THINGS' images; get images_THINGS.zip (about 12 GB) from https://osf.io/jum2f, accept "
            "its licence, whose password unpacks it, and name the unpacked folder"
        )
    with _open(path):
        return path  # it can be opened: that was all to find out


def check_images(own_copy: Path, image_ids: Sequence[str]) -> None:
    """InputError if the copy lacks an image, or has files of different size for it.

    No image is read.
    """
    with _open(own_copy) as copy:
        _find_images(own_copy, copy, image_ids)


def collect_images(own_copy: Path, image_ids: Sequence[str], target: Path) -> None:
    """Write the images into a new zip, in the order and under the names of their ids.

    An image such as `object_images/aardvark/aardvark_01b.jpg` is found in any folder of the copy,
    by the last two parts of its path. The zip is not compressed, and its dates are fixed, so that
    the same images always make the same file. Raises InputError, and writes no zip, if an image is
    missing or if two files of its name differ.
    """
    with _open(own_copy) as copy:
        matches = _find_images(own_copy, copy, image_ids)

        pictures = (
            (image_id, _read_image(own_copy, image_id, matches[image_id], copy))
            for image_id in image_ids
        )
        write_picture_zip(target, pictures, len(image_ids))


def _find_images(own_copy: Path, copy: PictureFiles, image_ids: Sequence[str]) -> Matches:
    """The files of each image.

    Raises InputError if an image has no file, a link to nothing, or files of different size.
    """
    # One pass over the copy, which may hold many more files than are asked for.
    names_by_key: dict[Key, list[str]] = {_key(image_id): [] for image_id in image_ids}
    for name in copy.names:
        key = _key(name)
        if key in names_by_key:
            names_by_key[key].append(name)

    matches = {image_id: names_by_key[_key(image_id)] for image_id in image_ids}
    missing = [image_id for image_id in image_ids if not matches[image_id]]
    if missing:
        raise InputError(
            f"{own_copy}: {len(missing)} of {len(image_ids)} images are missing, the first is "
            f"{missing[0]}; {_remedy(copy.names, len(missing) == len(image_ids))}"
        )

    # Files of different size differ. Files of the same size are compared when they are read.
    if own_copy.is_dir():
        _check_links(own_copy, matches)
    for image_id, names in matches.items():
        if len(names) > 1 and len(set(map(copy.size, names))) > 1:
            raise _differ(own_copy, image_id, names)
    return matches


def _key(name: str) -> Key:
    """The suffix is in lower case, because cameras and Windows write .JPG for .jpg."""
    *folders, file = PurePosixPath(name).parts[-2:]
    stem, dot, suffix = file.rpartition(".")
    return (*folders, f"{stem}{dot}{suffix.lower()}")


def _remedy(names: Sequence[str], all_missing: bool) -> str:
    """The end of the error text for missing images: what the copy seems to be, and what to do."""
    folders = {PurePosixPath(name).parent.name for name in names}
    if all_missing and any(re.fullmatch(r"\d{5}_.+", folder) for folder in folders):
        return (
            "its folders are numbered, as 00001_aardvark is: it seems to be the image set of "
            "THINGS-EEG2, and the MEG showed other images of THINGS; let download.things_images "
            "name the unpacked images_THINGS.zip (https://osf.io/jum2f), with folders such as "
            "aardvark"
        )

    if all_missing:
        return (
            "let download.things_images name the whole unpacked images_THINGS.zip "
            "(https://osf.io/jum2f), in which each concept has a folder"
        )

    # Some images are there, so it is the right copy, and not a whole one.
    return (
        "unpack images_THINGS.zip (https://osf.io/jum2f) again and whole, or copy those that are "
        "missing into it"
    )


def _check_links(own_copy: Path, matches: Matches) -> None:
    """InputError if images are links to nothing.

    datalad and git-annex make such links, and fetch the files only when they are asked to.
    """
    broken = [
        image_id for image_id, names in matches.items() if not all(map(os.path.exists, names))
    ]
    if broken:
        raise InputError(
            f"{own_copy}: {len(broken)} of {len(matches)} images are links whose target is not "
            f"there, the first is {broken[0]}; fetch them first: datalad get, or git annex get, in "
            "that folder"
        )


def _read_image(own_copy: Path, image_id: str, names: Sequence[str], copy: PictureFiles) -> bytes:
    """The bytes of an image; InputError if the files of its name differ."""
    data = copy.read(names[0])
    if any(copy.read(name) != data for name in names[1:]):
        raise _differ(own_copy, image_id, names)
    return data


def _differ(own_copy: Path, image_id: str, names: Sequence[str]) -> InputError:
    first_step = "" if own_copy.is_dir() else "unpack it, and "
    return InputError(
        f"{own_copy}: has {len(names)} different files for the image {image_id}: "
        f"{', '.join(sorted(names))}; {first_step}let download.things_images name the folder of "
        "the published ones alone"
    )


@contextmanager
def _open(own_copy: Path) -> Iterator[PictureFiles]:
    """InputError if it is an encrypted zip, or no whole zip."""
    if not own_copy.is_dir() and is_encrypted(own_copy):
        raise InputError(
            f"{own_copy}: is encrypted; unpack it with the password of its licence "
            "(https://osf.io/jum2f) and let download.things_images name the folder"
        )
    with open_picture_files(own_copy) as copy:
        yield copy
