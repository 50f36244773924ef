"""The cache of downloads, in the cache folder of the user and so outside the repository.

For each file it holds, under a key that names the content:
    <key>.part   the bytes that have come so far; the next run asks for the bytes after them
    <key>        the whole file; it gets this name after it was synced and checked
    <key>.json   its size and sha256, as found at that check
    <key>.lock   locked by the run that works on this file

Files are hard links to the cache where they are used. Whoever writes into one of them also writes
into the cache, so a cached file is hashed again each time before it is used.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.disks import existing
from pipeline.download.remote import Remote, file_size
from pipeline.download.web import tell_user
from pipeline.errors import InputError
from pipeline.files import cache_folder, replacing, try_lock, waiting_note

LOCK_INTERVAL = 0.1  # seconds between two attempts to take a lock


class Record(BaseModel):
    """What <key>.json says of a checked file. The name is for people who look into the cache."""

    name: str
    size: int
    sha256: str


class CacheEntry:
    """The files of one key in the cache. InputError if there can be no cache folder."""

    def __init__(self, key: str) -> None:
        folder = cache_folder()
        self.file = folder / key
        self.part = folder / f"{key}.part"
        self.record = folder / f"{key}.json"
        self.lock = folder / f"{key}.lock"

    def part_size(self) -> int:
        """The number of bytes that have come so far."""
        return file_size(self.part)

    def read_record(self) -> Record | None:
        """None if there is no record, or a damaged one."""
        try:
            return Record.model_validate_json(self.record.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_record(self, record: Record) -> None:
        with replacing(self.record) as temporary:
            temporary.write_text(record.model_dump_json())

    def finish(self, name: str, sha256: str) -> None:
        """Turn the part, which is now the whole file, into the cached file."""
        # In this order, so that a killed run leaves no cached file without its record.
        self.write_record(Record(name=name, size=self.part_size(), sha256=sha256))
        os.replace(self.part, self.file)

    def place(self, target: Path) -> None:
        """Put the cached file at `target`: as a hard link if possible, else as a copy."""
        with replacing(target) as temporary:
            try:
                if self.can_link(target):
                    # resolve(): of a symbolic link, os.link would make one more symbolic link.
                    os.link(self.file.resolve(), temporary)
                    return
            except OSError:  # the file system has no hard links
                pass
            shutil.copyfile(self.file, temporary)

    def can_link(self, target: Path) -> bool:
        """Whether `target` is on the disk of the cache, and the cached file belongs to this user.

        DVC changes the mode of the files that it tracks, and may not do so to the file of another
        user.
        """
        # A file that is still to come will belong to this user.
        if self.file.exists() and self.file.stat().st_uid != os.geteuid():
            return False
        return existing(target.parent).stat().st_dev == cache_folder().stat().st_dev


def is_cached(remote: Remote) -> bool:
    """Whether the cache holds the whole file. Only the size is compared, no byte is read."""
    return file_size(CacheEntry(remote.key).file) == remote.size


def cached_size(key: str) -> int | None:
    """The size in bytes of a cached file, by its record. None if it is not there, or not whole.

    This serves files of which no server publishes a size.
    """
    entry = CacheEntry(key)
    record = entry.read_record()
    return record.size if record and file_size(entry.file) == record.size else None


@asynccontextmanager
async def lock_entry(entry: CacheEntry, remote: Remote) -> AsyncIterator[bool]:
    """Hold the lock of an entry, after any other run has released it. Yields whether it is held.

    Where no lock can be taken, as in a cache that the user may only read, a whole file is used
    without one. Raises InputError if the file is not whole either.
    """
    try:
        lock = try_lock(entry.lock)
    except InputError:
        if not is_cached(remote):
            raise
        yield False
        return

    if lock is None:
        tell_user(f"{remote.name}: another run is fetching it; {waiting_note(entry.lock)}")
    while lock is None:
        await asyncio.sleep(LOCK_INTERVAL)
        lock = try_lock(entry.lock)
    try:
        yield True
    finally:
        lock.release()
