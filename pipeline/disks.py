"""What is wrong where a file is written or read, in one sentence with what helps; and the room that there is."""

import errno
import os
import pwd
import re
import shutil
import stat
import tempfile
from pathlib import Path

from pipeline.errors import InputError

GB = 1e9
NUMBER_IN_TEXT = re.compile(r"errno = (\d+)|os error (\d+)")  # of HDF5, and of libraries in Rust
IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP}
NOT_WELL = {
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
}
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def error_number(error: BaseException) -> int | None:
    """The `errno` of an error of the system, also where a library gives it only in its text; else None."""
    if isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, RuntimeError) and isinstance(
        error.__context__, OSError
    ):  # torch's, after one of its stream
        return error.__context__.errno
    match = NUMBER_IN_TEXT.search(str(error))
    return int(match[1] or match[2]) if match else None


def disk_fault(error: BaseException, path: Path, cache: Path | None = None) -> InputError | None:
    """What kept `path` from being written or read, and what helps; None if `error` is none of the system.

    `cache` is the folder of ALIGNED_EEG_CACHE if `path` lies in it: another folder can then stand for it.
    """
    number = error_number(error)
    if number is None:
        return None
    reason, remedy = _explain(number, path)
    if cache and number in (errno.ENOSPC, errno.EDQUOT):
        remedy += f", or move {cache} to a larger disk and let ALIGNED_EEG_CACHE name it there"
    elif cache and number in IN_THE_WAY:
        remedy += ", or let ALIGNED_EEG_CACHE name another folder"
    elif cache and number in UNWRITABLE:
        remedy += (
            f", or let ALIGNED_EEG_CACHE name a folder that you can write (what you copy from {cache} into it is not "
            "fetched or computed again)"
        )
    return InputError(f"{path}: {reason} ({os.strerror(number)}): {remedy}; then run it again")


def require_room(folder: Path, n_bytes: int, cache: Path | None = None) -> None:
    """InputError if files of `n_bytes` do not fit into a folder, which need not be there yet."""
    free = shutil.disk_usage(existing(folder)).free
    if n_bytes > free:
        remedy = "make room there"
        if cache:
            remedy += f", or move {cache} to a larger disk and let ALIGNED_EEG_CACHE name it there"
        raise InputError(
            f"{folder}: the files need {n_bytes / GB:.3f} GB more and only {free / GB:.3f} GB are free; "
            f"{remedy}; then run it again"
        )


def require_writable(folder: Path, cache: Path | None = None) -> None:
    """InputError if no file can be written into a folder, which need not be there yet."""
    place = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path)
    )
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise disk_fault(error, folder, cache) or error from error


def existing(path: Path) -> Path:
    """The folder that is there: this one, or the next above it."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _explain(number: int, path: Path) -> tuple[str, str]:
    """Why, and what helps."""
    if number == errno.ENAMETOOLONG:  # first: nothing can be asked about such a path
        return (
            "its name is too long for this disk",
            "give it a shorter one, or work in another folder",
        )
    folder = existing(path if path.is_dir() else path.parent)
    if number == errno.ENOSPC:
        return _full(folder)
    if number == errno.EDQUOT:
        return (
            f"your quota on the disk of {folder} is used up",
            "delete files of yours there, or ask for a larger one",
        )
    if number == errno.EFBIG:
        reason = "a file may not be as large as this one here"
        return (
            reason,
            "raise the limit (`ulimit -f unlimited`), or take a disk whose file system allows it",
        )
    if number == errno.EROFS:
        return (
            f"the disk of {folder} is read-only",
            "mount it so that it can be written, or work in another folder",
        )
    if number in (errno.EACCES, errno.EPERM):
        return _no_right(number, path)
    if number in IN_THE_WAY or number == errno.ENOENT:
        return _in_the_way(number, path)
    if number in NOT_WELL:
        return "the disk fails", "see that it is mounted and well"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "raise the limit (`ulimit -n 4096`)"
    return (
        f"the system refuses it in {folder}",
        "work in another folder, or ask who looks after that disk",
    )


def _full(folder: Path) -> tuple[str, str]:
    room = os.statvfs(folder)
    if room.f_files and not room.f_favail:
        return (
            f"the disk of {folder} takes no more files (all its inodes are used)",
            "delete files there",
        )
    free = room.f_bavail * room.f_frsize / GB
    return (
        f"the disk is full, {free:.3f} GB are free in {folder} without this file",
        "make room there",
    )


def _no_right(number: int, path: Path) -> tuple[str, str]:
    place = path if path.exists() else existing(path.parent)
    about = place.stat()
    try:
        owner = pwd.getpwuid(about.st_uid).pw_name
    except KeyError:  # in a container, users need not have names
        owner = f"user {about.st_uid}"
    if number == errno.EPERM:
        return (
            f"{place} is locked against changes, or its owner {owner} alone may change it",
            "undo that (lsattr shows it, chattr -i undoes it), or ask its owner",
        )
    effective = os.access in os.supports_effective_ids
    readable = os.access(place, os.R_OK, effective_ids=effective)
    verb = "write into" if readable or place != path else "read"
    return (
        f"you have no right to {verb} {place} (it is {owner}'s, {stat.filemode(about.st_mode)})",
        f"give yourself the right with chmod, or ask {owner} for it",
    )


def _in_the_way(number: int, path: Path) -> tuple[str, str]:
    """A file where a folder should be, or the other way round, or a link to nothing."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return (
                f"{place} is a link to {os.readlink(place)}, which is not there",
                "mount that disk, or make it",
            )
    for place in path.parents:
        if place.exists() and not place.is_dir():
            return f"{place} is a file and should be a folder", "move it away"
    if path.is_dir():
        return "it is a folder and should be a file", "move it away"
    if path.exists():
        return "it is a file and should be a folder", "move it away"
    return "it is not there", "run the stage that writes it, or correct the path"
