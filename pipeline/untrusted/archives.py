"""Zip archives from elsewhere, read without believing what their directory says.

Nothing is ever unpacked onto the disk: members are read as streams, by a name that the caller chose, and only after the
whole directory has been checked. The CRC of a member is compared when its last byte is read.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import unreadable

# What `zipfile` raises for a damaged archive, at whatever byte it is damaged.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


def open_zip(path: Path, largest_member: int) -> zipfile.ZipFile:
    """Open a zip whose directory has been checked; InputError names the first thing wrong.

    Refused: what is no zip or is cut off, and members that are absolute, climb out with `..`, are links, are encrypted,
    appear twice, use another compression than deflate or declare more than `largest_member` bytes.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be opened ({error.strerror or error}); {FETCH_AGAIN}"
        ) from error
    except ZIP_FAULTS as error:
        raise InputError(f"{path}: is not a whole zip archive ({error}); {FETCH_AGAIN}") from error
    try:
        _check_members(archive, path, largest_member)
    except InputError:
        archive.close()
        raise
    return archive


def _check_members(archive: zipfile.ZipFile, path: Path, largest_member: int) -> None:
    seen = set()
    for info in archive.infolist():
        plain = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if (
            not plain.parts
            or plain.is_absolute()
            or ".." in plain.parts
            or re.search(r"[\\:\0]", info.orig_filename)
        ):
            problem = "has a name that leads out of the archive"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a special file"
        elif info.flag_bits & 0x1:
            problem = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"is compressed by method {info.compress_type}, not by deflate"
        elif info.file_size > largest_member:
            problem = f"declares {info.file_size} bytes, more than the {largest_member} that such a file can have"
        elif info.header_offset < 0:
            problem = "begins before the file"
        elif plain in seen:
            problem = "appears twice"
        else:
            seen.add(plain)
            continue
        raise InputError(f"{path}: member {info.filename!a:.200} {problem}; {FETCH_AGAIN}")


def find_member(archive: zipfile.ZipFile, wanted: str, subject: str) -> str | None:
    """The full name of a subject's member, such as `sub-01/ses-01/raw_eeg_test.npy` for `ses-01/raw_eeg_test.npy`.

    The outer folder may have any name (`sub-01 2`, as a Mac calls a second copy), or be missing; what macOS adds to an
    archive is passed over. None where there is no such member. InputError where there are two of them, or where the
    folder is that of another subject.
    """
    names = [name for name in archive.namelist() if not _added_by_macos(PurePosixPath(name))]
    matching = [name for name in names if f"/{name}".endswith(f"/{wanted}")]
    if not matching:
        return None

    if len(matching) > 1:
        raise InputError(
            f"{archive.filename}: holds {wanted} twice, as {matching[0]!a:.100} and "
            f"{matching[1]!a:.100}; make the archive again with only one of them"
        )
    (name,) = matching
    for folder in PurePosixPath(name.removesuffix(wanted)).parts:
        named = re.match(r"sub-[0-9A-Za-z]+", folder)
        if named and named[0] != subject:
            raise InputError(
                f"{archive.filename}: holds the folder {folder!a:.100}, which is {named[0]}, not {subject}; rename the "
                f"archive to {named[0]}.zip, or rename the folder in it"
            )
    return name


def _added_by_macos(path: PurePosixPath) -> bool:
    """Whether macOS put this member beside the user's files: it holds Finder's notes."""
    return path.parts[:1] == ("__MACOSX",) or path.name.startswith("._") or path.name == ".DS_Store"


@contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """The member as a stream; InputError where it is not in the archive or its header is broken."""
    with zip_faults(f"{archive.filename}: {name}"):
        try:
            stream = archive.open(name)
        except KeyError as error:
            raise InputError(f"{archive.filename}: holds no {name}; {FETCH_AGAIN}") from error
    with stream:
        yield stream


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The whole member, its CRC checked; no more bytes than `open_zip` allowed. InputError if damaged."""
    with open_member(archive, name) as stream, zip_faults(f"{archive.filename}: {name}"):
        return stream.read()


@contextmanager
def zip_faults(name: str) -> Iterator[None]:
    """Turns damage, met while `name` is read, into InputError."""
    try:
        yield
    except ZIP_FAULTS as error:
        raise damaged(name, error) from error


def damaged(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: is damaged ({error}); {FETCH_AGAIN}")
