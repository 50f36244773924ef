"""Pictures that the user has, as a folder or as a zip: both are listed and read alike."""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import files_below, replacing, unreadable
from pipeline.untrusted.archives import ZIP_FAULTS, open_zip, read_member
from pipeline.untrusted.pictures import LARGEST_IMAGE


@dataclass(frozen=True)
class PictureFiles:
    """An opened folder or zip.

    `names` are all its files: of a folder their paths, of a zip the names of its members. `read`
    returns the bytes of a file, `size` the number of its bytes.
    """

    names: Sequence[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]


@contextmanager
def open_picture_files(path: Path) -> Iterator[PictureFiles]:
    """Open a folder or a zip. Raises InputError as `open_zip` does."""
    if path.is_dir():
        names = [name for name in files_below(path) if not _is_macos_metadata(name)]
        yield PictureFiles(names, _read_file, os.path.getsize)
        return

    with open_zip(path, LARGEST_IMAGE) as archive:
        names = [name for name in archive.namelist() if not _is_macos_metadata(name)]
        yield PictureFiles(
            names,
            lambda name: read_member(archive, name),
            lambda name: archive.getinfo(name).file_size,
        )


def write_picture_zip(target: Path, pictures: Iterable[tuple[str, bytes]], n_pictures: int) -> None:
    """Write (image id, bytes of the file) into a new zip, in this order.

    The zip is not compressed, and its dates are fixed, so that the same pictures always make the
    same file.
    """
    with replacing(target) as part, zipfile.ZipFile(part, "w") as archive:
        for image_id, data in tqdm(
            pictures, desc="images", total=n_pictures, unit="image", disable=None
        ):
            archive.writestr(zipfile.ZipInfo(image_id), data)  # dated 1980


def is_encrypted(path: Path) -> bool:
    """Whether this is a zip with members that need a password."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Bit 0: the member needs a password.
            return any(info.flag_bits & 0x1 for info in archive.infolist())
    except (OSError, *ZIP_FAULTS):
        return False  # `open_zip` will say what is wrong with the file


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise unreadable(error, Path(name)) or InputError(
            f"{name}: is not there any more; put it back, and run it again"
        ) from error


def _is_macos_metadata(name: str) -> bool:
    """Whether macOS wrote it beside a file: `__MACOSX/aardvark/._aardvark_01b.jpg` is no image."""
    return PurePosixPath(name).name.startswith("._")
