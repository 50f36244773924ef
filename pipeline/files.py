"""Files that appear whole or not at all; their hashes; locks; and the cache folder."""

import errno
import hashlib
import io
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import h5py
import numpy as np
import platformdirs
import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pipeline.disks import disk_fault, error_number, existing, require_room, require_writable
from pipeline.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Names that `replacing` gives: machine and process. Older versions named the process only.
TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.tmp")
# Seconds without a change, after which the temporary file of another machine is removed
LEFT_AFTER = 24 * 3600
# What some network disks answer when they have no locks
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`.

    All files are written through here. On failure the temporary file is removed. Errors of the
    disk, such as no room or no right, become an InputError that says what helps. Temporary files of
    processes that were killed are removed as well.
    """
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary

        # Opened for reading only: it may be a hard link to a file that is write-protected.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave an empty file
        os.replace(temporary, path)
    except Exception as error:
        # Remove it first: the error text tells how much room is free without it.
        _discard(temporary)
        if fault := fault_of(error, path, temporary):
            raise fault from error
        raise
    # Ctrl-C is no Exception and comes here too. After a success there is nothing left to remove.
    finally:
        _discard(temporary)


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file for writing, that appears at `path` as with `replacing`."""
    with replacing(path) as temporary, _FailsOnce(temporary, "w+") as stream:
        try:
            with h5py.File(stream, "w") as file:
                yield file
        except Exception:
            # After a fault of the disk h5py may raise anything. The fault itself is the reason.
            if stream.failure:
                raise stream.failure from None
            raise


class _FailsOnce(io.FileIO):
    """A file that raises its first fault, and after that accepts all writes and ignores them.

    HDF5 writes more when it closes a file. If that fails too, h5py prints a traceback for each of
    its objects, and the process dies of a segmentation fault.
    """

    failure: OSError | None = None

    def write(self, data: "Buffer") -> int:
        view = memoryview(data).cast("B")  # of whatever type: cut and counted in bytes
        n_written = 0
        try:
            while n_written < len(view) and not self.failure:
                # The system may take only a part of the bytes at once.
                n_written += super().write(view[n_written:])
        except OSError as error:
            self.failure = error
            raise
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.tell() if self.failure else super().truncate(size)
        except OSError as error:
            self.failure = error
            raise


def save_array(stream: BinaryIO, values: np.ndarray) -> None:
    """`numpy.save` with errors that say why the disk took no more; numpy's own do not say it."""
    values = np.ascontiguousarray(values)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
    stream.write(values.data)


def _discard(path: Path) -> None:
    with suppress(OSError):  # the error that is under way says more
        path.unlink()


def fault_of(error: BaseException, path: Path, temporary: Path | None = None) -> InputError | None:
    """`disk_fault` of the file that the error names; of `path` if it names none, or `temporary`."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    file = path if name is None or Path(name) == temporary else Path(name)
    return disk_fault(error, file, _cache_of(file))


def unreadable(error: BaseException, path: Path) -> InputError | None:
    """`fault_of` a file that cannot be read; None for a missing file, which must be made first."""
    return None if error_number(error) == errno.ENOENT else fault_of(error, path)


def check_folders(needs: Mapping[Path, int]) -> None:
    """InputError if a folder cannot be written, or its disk has no room for all the bytes.

    `needs` maps folders to bytes. The folders need not exist yet. Call it before long work.
    """
    on_disk: dict[int, list[Path]] = {}
    for folder in needs:
        require_writable(folder, _cache_of(folder))
        on_disk.setdefault(existing(folder).stat().st_dev, []).append(folder)

    # Folders on the same disk share its room.
    for folders in on_disk.values():
        require_room(folders[0], sum(needs[folder] for folder in folders), _cache_of(folders[0]))


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder, sorted within each folder; also links to nothing.

    Links to folders are followed; they may lead round in circles. InputError for a folder that
    cannot be listed.
    """
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_cannot_list):
        # A folder that was visited before, by another link: do not go into it.
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue

        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names))


def _cannot_list(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}); give yourself the right with "
        "chmod, or ask its owner"
    )


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The folder that ALIGNED_EEG_CACHE names, else the user cache folder of the platform.

    It is made if it does not exist. InputError if it cannot be.
    """
    folder = _cache_path()
    # `dvc exp run` works in another folder, so a relative path would lead elsewhere.
    if not folder.is_absolute():
        raise InputError(
            f"ALIGNED_EEG_CACHE must be an absolute path, got {os.environ['ALIGNED_EEG_CACHE']!r}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_fault(error, folder, folder) or error from error
    return folder


def try_lock(path: Path) -> BaseFileLock | None:
    """Take the lock of this name; None while another process has it. InputError on other failures.

    On a disk without locks, a file that exists as long as the lock is taken serves as one.
    """
    # Mode 666: all who share the cache must be able to take it.
    # filelock's own fallback is off: it knows ENOSYS alone of NO_LOCKS.
    hard_lock = FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)
    soft_lock = SoftFileLock(_soft_path(path), thread_local=False)

    locks: list[BaseFileLock] = [hard_lock, soft_lock]
    for lock in locks:  # the soft lock only if the disk has no hard ones
        try:
            lock.acquire(blocking=False)
            return lock
        except Timeout:
            return None
        except OSError as error:
            if lock is soft_lock or error_number(error) not in NO_LOCKS:
                raise fault_of(error, path) or error from error
    raise AssertionError  # never reached: the soft lock returns or raises


def waiting_note(path: Path) -> str:
    """The text for a user who waits for a lock. A killed process leaves the file of a soft lock."""
    soft = _soft_path(path)
    return f"waiting for it; if there is none, delete {soft}" if soft.exists() else "waiting for it"


def _soft_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _cache_path() -> Path:
    override = os.environ.get("ALIGNED_EEG_CACHE")
    if not override:
        return platformdirs.user_cache_path("aligned-eeg")
    try:
        return Path(override).expanduser()
    except RuntimeError as error:  # it begins with ~name, of an unknown user
        raise InputError(
            f"ALIGNED_EEG_CACHE is {override!r}: {error}; write the path in full"
        ) from error


def _cache_of(path: Path) -> Path | None:
    """The cache folder if `path` lies in it."""
    cache = _cache_path()
    return cache if path.absolute().is_relative_to(cache.absolute()) else None


def _machine() -> str:
    """Eight digits for the machine and the container. A process number is unique within these."""
    with suppress(OSError):
        return _digits(platform.node(), os.readlink("/proc/self/ns/pid"))
    return _digits(platform.node())  # macOS has no /proc


def _digits(*names: str) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()[:8]


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that do not run any more."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process was quicker, or it belongs to another user
            # Only names of the form that `replacing` gives: other programs write .tmp files too.
            if _is_leftover(path):
                path.unlink()


def _is_leftover(path: Path) -> bool:
    match = TEMPORARY.fullmatch(path.name)
    if not match:
        return False

    # A hard link has the mtime of the file that it links to, so its ctime counts.
    machine, process = match.groups()
    status = path.stat()
    is_link = status.st_nlink > 1
    changed = status.st_ctime if is_link else status.st_mtime

    # The processes of another machine cannot be seen from here.
    if machine != _machine():
        return time.time() - changed > LEFT_AFTER

    # A process that started after the last change has got an old number again.
    try:
        return psutil.Process(int(process)).create_time() > changed + 1
    except psutil.NoSuchProcess:
        return True
