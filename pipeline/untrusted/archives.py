"""Zip archives from strangers, read without believing what their directory says.

Nothing is unpacked onto the disk. Members are read as streams, by a name that the caller chooses,
and only after the whole directory was checked. `zipfile` compares the CRC of a member when its
last byte is read.
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

# What `zipfile` raises for a damaged archive, at whatever byte the damage is.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)
_ENCRYPTED = 0x1  # bit of `ZipInfo.flag_bits`


def open_zip(path: Path, largest_member: int) -> zipfile.ZipFile:
    """Open a zip whose directory was checked.

    Raises InputError where the file is no zip or is cut off, or where a member is absolute, climbs
    out with `..`, is a link, is encrypted, appears twice, uses another compression than deflate or
    declares more than `largest_member` bytes.
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
    names: set[PurePosixPath] = set()
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        problem = _problem_of(member, name, largest_member)
        if problem is None and name in names:
            problem = "appears twice"
        if problem is not None:
            raise InputError(f"{path}: member {member.filename!a:.200} {problem}; {FETCH_AGAIN}")
        names.add(name)


def _problem_of(member: zipfile.ZipInfo, name: PurePosixPath, largest_member: int) -> str | None:
    """What is wrong with a member by itself, as the verb of a sentence; None if nothing is."""
    # zipfile cuts a name at a zero byte. The whole name stands in orig_filename.
    climbs_out = name.is_absolute() or ".." in name.parts
    if not name.parts or climbs_out or re.search(r"[\\:\0]", member.orig_filename):
        return "has a name that leads out of the archive"

    # The upper half is the mode of Unix. An archive of Windows has 0 there.
    file_type = stat.S_IFMT(member.external_attr >> 16)
    if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"

    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type}, not by deflate"

    if member.file_size > largest_member:
        return (
            f"declares {member.file_size} bytes, more than the {largest_member} that such a file "
            "can have"
        )
    if member.header_offset < 0:
        return "begins before the file"
    return None


def find_member(archive: zipfile.ZipFile, path: str, subject: str) -> str | None:
    """The full name of a subject's member whose name ends with `path`; None where there is none.

    For the path `ses-01/raw_eeg_test.npy` it is such as `sub-01/ses-01/raw_eeg_test.npy`. The outer
    folder may have any name (`sub-01 2`, as a Mac calls a second copy), or be missing. What macOS
    adds to an archive is ignored. Raises InputError where two members match, or where the folder is
    that of another subject.
    """
    names = [name for name in archive.namelist() if not _added_by_macos(PurePosixPath(name))]
    matching = [name for name in names if f"/{name}".endswith(f"/{path}")]
    if not matching:
        return None

    if len(matching) > 1:
        raise InputError(
            f"{archive.filename}: holds {path} twice, as {matching[0]!a:.100} and "
            f"{matching[1]!a:.100}; make the archive again with only one of them"
        )

    (name,) = matching
    # The folders around `path`, which may have names such as "sub-01 2".
    for folder in PurePosixPath(name.removesuffix(path)).parts:
        match = re.match(r"sub-[0-9A-Za-z]+", folder)
        if match and match[0] != subject:
            raise InputError(
                f"{archive.filename}: holds the folder {folder!a:.100}, which is {match[0]}, not "
                f"{subject}; rename the archive to {match[0]}.zip, or rename the folder in it"
            )
    return name


def _added_by_macos(path: PurePosixPath) -> bool:
    """Whether macOS put this member beside the user's files: it holds notes of the Finder."""
    return path.parts[:1] == ("__MACOSX",) or path.name.startswith("._") or path.name == ".DS_Store"


@contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A member as a stream. Raises InputError where it is absent or its header is broken."""
    with zip_faults_as_input_errors(f"{archive.filename}: {name}"):
        try:
            stream = archive.open(name)
        except KeyError as error:
            raise InputError(f"{archive.filename}: holds no {name}; {FETCH_AGAIN}") from error

    # Outside of that block: an error of whoever reads the stream is no damage of the archive.
    with stream:
        yield stream


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A whole member, its CRC checked; no more bytes than `open_zip` allowed.

    Raises InputError where it is absent or damaged.
    """
    file = f"{archive.filename}: {name}"
    with open_member(archive, name) as stream, zip_faults_as_input_errors(file):
        return stream.read()


@contextmanager
def zip_faults_as_input_errors(name: str) -> Iterator[None]:
    """Turn damage into InputError; `name` is what the message calls the file."""
    try:
        yield
    except ZIP_FAULTS as error:
        raise damage_error(name, error) from error


def damage_error(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: is damaged ({error}); {FETCH_AGAIN}")
