"""Files that appear whole or not at all, their hashes, and the folder for what outlives a run."""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil

from pipeline.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    What processes left there that were killed at it is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose process is dead; only those of this machine can be told."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d+)\.tmp")
    for other in path.parent.iterdir():
        written_by = pattern.fullmatch(other.name)
        if written_by and not psutil.pid_exists(int(written_by[1])):
            other.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The platform's user cache folder, or what the environment variable ALIGNED_EEG_CACHE says; made if need be."""
    override = os.environ.get("ALIGNED_EEG_CACHE")
    folder = Path(override).expanduser() if override else platformdirs.user_cache_path("aligned-eeg")
    if not folder.is_absolute():  # an experiment of DVC runs in another working directory
        raise InputError(f"ALIGNED_EEG_CACHE must be an absolute path, got {override!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be the cache ({error.strerror}); let ALIGNED_EEG_CACHE name another folder"
        ) from error
    return folder
