"""Errors of the disk as one sentence with what helps, and checks of room and rights before work."""

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
# HDF5 writes "errno = 28", libraries in Rust "os error 28".
NUMBER_IN_TEXT = re.compile(r"errno = (\d+)|os error (\d+)")

# A file where a folder should be, or the other way round
IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP}
# A broken, unmounted or unreachable disk
DISK_FAILS = {
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
    """The `errno` of an error of the system; None for any other error.

    Some libraries name it only in the text of the error.
    """
    if isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # torch raises a RuntimeError after an OSError of the stream that it writes to.
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__.errno
    match = NUMBER_IN_TEXT.search(str(error))
    return int(match[1] or match[2]) if match else None


def disk_fault(error: BaseException, path: Path, cache: Path | None = None) -> InputError | None:
    """Why `path` could not be written or read, and what helps; None if the disk is not the reason.

    `cache` is the cache folder if `path` lies in it: the user may then choose another folder.
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
            f", or let ALIGNED_EEG_CACHE name a folder that you can write (what you copy from "
            f"{cache} into it is not fetched or computed again)"
        )
    return InputError(f"{path}: {reason} ({os.strerror(number)}): {remedy}; then run it again")


def require_room(folder: Path, n_bytes: int, cache: Path | None = None) -> None:
    """InputError if `n_bytes` do not fit on the disk of a folder. It need not exist yet."""
    free = shutil.disk_usage(existing(folder)).free
    if n_bytes > free:
        remedy = "make room there"
        if cache:
            remedy += f", or move {cache} to a larger disk and let ALIGNED_EEG_CACHE name it there"
        raise InputError(
            f"{folder}: the files need {n_bytes / GB:.3f} GB more and only {free / GB:.3f} GB are "
            f"free; {remedy}; then run it again"
        )


def require_writable(folder: Path, cache: Path | None = None) -> None:
    """InputError if no file can be written into a folder. It need not exist yet."""
    paths = (folder.absolute(), *folder.absolute().parents)
    nearest = next(path for path in paths if os.path.lexists(path))  # also a link to nothing
    try:
        # A try is surer than the mode bits, which a read-only mount or a server may overrule.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise disk_fault(error, folder, cache) or error from error


def existing(path: Path) -> Path:
    """The nearest folder that exists: this one, or one above it."""
    paths = (path.absolute(), *path.absolute().parents)
    # os.path, because Path raises where a folder above may not be entered.
    return next(folder for folder in paths if os.path.isdir(folder))


def _explain(number: int, path: Path) -> tuple[str, str]:
    """The reason for an error number, and what helps."""
    # First, because nothing can be asked about such a path.
    if number == errno.ENAMETOOLONG:
        reason = "its name is too long for this disk"
        return reason, "give it a shorter one, or work in another folder"

    # The disk or its limits
    folder = existing(path if os.path.isdir(path) else path.parent)
    if number == errno.ENOSPC:
        return _full(folder)
    if number == errno.EDQUOT:
        reason = f"your quota on the disk of {folder} is used up"
        return reason, "delete files of yours there, or ask for a larger one"
    if number == errno.EFBIG:
        reason = "a file may not be as large as this one here"
        return (
            reason,
            "raise the limit (`ulimit -f unlimited`), or take a disk whose file system allows it",
        )
    if number == errno.EROFS:
        reason = f"the disk of {folder} is read-only"
        return reason, "mount it so that it can be written, or work in another folder"

    # The path itself
    if number in (errno.EACCES, errno.EPERM):
        return _no_right(number, path)
    if number in IN_THE_WAY or number == errno.ENOENT:
        return _in_the_way(path)

    # The machine
    if number in DISK_FAILS:
        return "the disk fails", "see that it is mounted and well"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "raise the limit (`ulimit -n 4096`)"
    reason = f"the system refuses it in {folder}"
    return reason, "work in another folder, or ask who looks after that disk"


def _full(folder: Path) -> tuple[str, str]:
    """A full disk: no inode is free, or no byte."""
    disk = os.statvfs(folder)
    # Some file systems, such as btrfs, count no inodes: f_files is 0.
    if disk.f_files and not disk.f_favail:
        reason = f"the disk of {folder} takes no more files (all its inodes are used)"
        return reason, "delete files there"

    free = disk.f_bavail * disk.f_frsize / GB
    reason = f"the disk is full, {free:.3f} GB are free in {folder} without this file"
    return reason, "make room there"


def _no_right(number: int, path: Path) -> tuple[str, str]:
    """A missing right (EACCES), or a file that is locked against all changes (EPERM)."""
    place = path if os.path.exists(path) else existing(path.parent)
    status = place.stat()
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:  # in a container, a user may have no name
        owner = f"user {status.st_uid}"

    if number == errno.EPERM:
        reason = f"{place} is locked against changes, or its owner {owner} alone may change it"
        return reason, "undo that (lsattr shows it, chattr -i undoes it), or ask its owner"

    # The rights of the effective user count, where the system can be asked for them.
    effective = os.access in os.supports_effective_ids
    readable = os.access(place, os.R_OK, effective_ids=effective)
    # A file that can be read has failed at writing.
    verb = "write into" if readable or place != path else "read"
    if place.is_dir() and not os.access(place, os.X_OK, effective_ids=effective):
        verb = "enter"
    mode = stat.filemode(status.st_mode)
    return (
        f"you have no right to {verb} {place} (it is {owner}'s, {mode})",
        f"give yourself the right with chmod, or ask {owner} for it",
    )


def _in_the_way(path: Path) -> tuple[str, str]:
    """A file where a folder should be, or the other way round, or a link to nothing."""
    # First, because Path.exists() is False for a link to nothing as for no file at all.
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            reason = f"{place} is a link to {os.readlink(place)}, which is not there"
            return reason, "mount that disk, or make it"

    for place in path.parents:
        if place.exists() and not place.is_dir():
            return f"{place} is a file and should be a folder", "move it away"

    if path.is_dir():
        return "it is a folder and should be a file", "move it away"
    if path.exists():
        return "it is a file and should be a folder", "move it away"
    return "it is not there", "run the stage that writes it, or correct the path"
