"""Files that appear whole or not at all, their hashes, locks, and the folder for what outlives a run."""

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

TEMPORARY = re.compile(
    r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.tmp"
)  # its machine and process, see `replacing`
# S without a change, after which what another machine was writing is a leftover
LEFT_AFTER = 24 * 3600
NO_LOCKS = {
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
}  # of some network disks


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    All files are written through here. What a full disk, a missing right or the like makes a library raise becomes an
    InputError that says what helps. What was left here by a process that was killed is removed.
    """
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary
        with open(
            temporary, "rb"
        ) as file:  # not to write: it may be a hard link to a file that is protected
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        _discard(temporary)  # first, so that the room that is told is the room without it
        if fault := fault_of(error, path, temporary):
            raise fault from error
        raise
    finally:
        _discard(temporary)


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """`replacing` with an HDF5 file that is open for writing."""
    with replacing(path) as temporary, _FailsOnce(temporary, "w+") as stream:
        try:
            with h5py.File(stream, "w") as file:
                yield file
        except Exception:
            if (
                stream.failure
            ):  # h5py may raise anything after it, such as that the stream has no method
                raise stream.failure from None
            raise


class _FailsOnce(io.FileIO):
    """A file that tells HDF5 of its first fault alone, and then takes all that comes.

    HDF5 has more to write when it closes a file. Where that fails too, h5py prints a traceback for each of its objects,
    and the process dies of a segmentation fault.
    """

    failure: OSError | None = None

    def write(self, data: "Buffer") -> int:
        view, n_written = memoryview(data).cast("B"), 0
        try:
            while n_written < len(view) and not self.failure:
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
    """`numpy.save`, but for the errors: numpy's own do not say why the disk took no more."""
    values = np.ascontiguousarray(values)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
    stream.write(values.data)


def _discard(path: Path) -> None:
    with suppress(OSError):  # of a disk that fails, the reason is told
        path.unlink()


def fault_of(error: BaseException, path: Path, temporary: Path | None = None) -> InputError | None:
    """`disk_fault` of the file that the error names, or else of `path`, for which `temporary` stands."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = path if named is None or Path(named) == temporary else Path(named)
    return disk_fault(error, place, _cache_of(place))


def unreadable(error: BaseException, path: Path) -> InputError | None:
    """`fault_of` a file that is there and cannot be read: writing it anew would be the wrong remedy."""
    return None if error_number(error) == errno.ENOENT else fault_of(error, path)


def check_folders(needs: Mapping[Path, int]) -> None:
    """InputError if one of these folders cannot be written, or a disk lacks room for the bytes that go onto it.

    To be asked before long work. The folders need not be there yet.
    """
    on_disk: dict[int, list[Path]] = {}
    for folder in needs:
        require_writable(folder, _cache_of(folder))
        on_disk.setdefault(existing(folder).stat().st_dev, []).append(folder)

    for folders in on_disk.values():
        require_room(folders[0], sum(needs[folder] for folder in folders), _cache_of(folders[0]))


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder and below the folders that links in it name, also links to nothing.

    Links may go round in circles. InputError for a folder that cannot be listed.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_cannot_list):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue

        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names))


def _cannot_list(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}); give yourself the right with chmod, or ask its owner"
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The platform's user cache folder, or what the environment variable ALIGNED_EEG_CACHE says; made if need be."""
    folder = _cache_path()
    if not folder.is_absolute():  # an experiment of DVC runs in another working directory
        raise InputError(
            f"ALIGNED_EEG_CACHE must be an absolute path, got {os.environ['ALIGNED_EEG_CACHE']!r}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_fault(error, folder, folder) or error from error
    return folder


def try_lock(path: Path) -> BaseFileLock | None:
    """The lock of this name, taken; None while another process has it. InputError if there can be none.

    Where the file system knows no locks, a file that is there while the lock is held stands for it.
    """
    hard = FileLock(
        path, mode=0o666, thread_local=False, fallback_to_soft=False
    )  # 666: for all who share the cache
    locks = [hard, SoftFileLock(_soft(path), thread_local=False)]
    for lock in locks:
        try:
            lock.acquire(blocking=False)
            return lock
        except Timeout:
            return None
        except OSError as error:
            if lock is locks[-1] or error_number(error) not in NO_LOCKS:
                raise fault_of(error, path) or error from error
    raise AssertionError


def waiting_note(path: Path) -> str:
    """What a user should know who waits for a lock."""
    soft = _soft(path)
    return f"waiting for it; if there is none, delete {soft}" if soft.exists() else "waiting for it"


def _soft(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _cache_path() -> Path:
    override = os.environ.get("ALIGNED_EEG_CACHE")
    try:
        return (
            Path(override).expanduser() if override else platformdirs.user_cache_path("aligned-eeg")
        )
    except RuntimeError as error:  # ~name of somebody whom the system does not know
        raise InputError(
            f"ALIGNED_EEG_CACHE is {override!r}: {error}; write the path in full"
        ) from error


def _cache_of(path: Path) -> Path | None:
    """The cache folder if `path` lies in it."""
    cache = _cache_path()
    return cache if path.absolute().is_relative_to(cache.absolute()) else None


def _machine() -> str:
    """Eight digits for where a process number means the same process: the machine, and the container on it."""
    with suppress(OSError):
        return _digits(platform.node(), os.readlink("/proc/self/ns/pid"))
    return _digits(platform.node())


def _digits(*names: str) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()[:8]


def _remove_leftovers(folder: Path) -> None:
    """What processes that are gone were writing here."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process was quicker, or it is another user's
            if _is_left(path):
                path.unlink()


def _is_left(path: Path) -> bool:
    match = TEMPORARY.fullmatch(path.name)
    if not match:  # nothing of ours
        return False

    machine, process = match.groups()
    status = path.stat()
    is_link = status.st_nlink > 1  # whose mtime is that of the file that it is another name of
    changed = status.st_ctime if is_link else status.st_mtime

    if machine != _machine():  # or of an earlier version, which named the process alone
        return time.time() - changed > LEFT_AFTER
    try:
        return (
            psutil.Process(int(process)).create_time() > changed + 1
        )  # another one got that number since
    except psutil.NoSuchProcess:
        return True
