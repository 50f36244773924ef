"""What lies in the cache folder, how large it is, and since when nobody has used it.

The files in the folder itself are downloads. Each folder in it is a kind of its own: `embedding`
and `training` hold work that was interrupted, `trained` finished trainings, `study` the answers of
finished runs, `slurm` what jobs printed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import try_lock

DOWNLOADS = "downloads"


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache. Deleting it gives back `bytes_to_free` of its `n_bytes`.

    A file that has another name on the disk (a hard link, as in `data/fetched`) gives back nothing.
    """

    kind: str
    path: Path
    n_bytes: int
    bytes_to_free: int
    # s since 1970: read or written; where a disk notes no access times, written
    last_used: float


def read_entries(cache: Path) -> list[Entry]:
    """All that the cache holds but for its locks, which have no content."""
    entries = []
    for path in sorted(cache.iterdir()):
        if path.is_dir():
            entries += [_measure(path.name, entry) for entry in sorted(path.iterdir())]
        else:
            entries.append(_measure(DOWNLOADS, path))

    return [entry for entry in entries if entry.path.suffix != ".lock"]


def remove(entry: Entry) -> bool:
    """Delete the entry, unless a run that holds its lock is at work on it; whether it is gone."""
    with ExitStack() as held:
        # Named after the download, or after the one that this .part or .json belongs to.
        for name in {entry.path.name, entry.path.stem}:
            lock_file = entry.path.with_name(f"{name}.lock")
            # Not every kind has locks.
            if not lock_file.exists():
                continue
            lock = try_lock(lock_file)
            if lock is None:
                return False
            held.callback(lock.release)

        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    return True


def _measure(kind: str, path: Path) -> Entry:
    statuses = [file.stat() for file in _files(path)]
    newest = [max(status.st_mtime, status.st_atime) for status in statuses]
    return Entry(
        kind,
        path,
        n_bytes=sum(status.st_size for status in statuses),
        bytes_to_free=sum(status.st_size for status in statuses if status.st_nlink == 1),
        last_used=max(newest, default=path.stat().st_mtime),  # an empty folder has no files
    )


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files below a folder."""
    if path.is_file():  # of it, os.walk finds nothing
        yield path
    for parent, _, names in os.walk(path):
        for name in names:
            yield Path(parent, name)
