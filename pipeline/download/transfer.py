"""Files fetched over HTTP into a cache outside the repository, and put from there where they are wanted.

The cache holds for each file, under a key that names its content:
    <key>.part   the bytes that have come so far; the next run asks for the rest
    <key>        the whole file: it gets this name when it has been synced and checked
    <key>.json   its size and sha256, taken at that check
    <key>.lock   held by the run that works on this file

A new file must have the published size and sha256, else md5, else the sha256 that this project knows of it, else (a
zip, as files of torch and numpy are) the CRC of each member. A file of none of these is known by its size alone. A
cached file is hashed again each time it is put in place: the places are hard links to it, and what is written into one
of them is written into the cache.
"""

import asyncio
import hashlib
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from pipeline.datasets.known_files import KnownFile
from pipeline.disks import existing
from pipeline.download.web import (
    PATIENCE,
    USE_OWN_COPIES,
    USE_OWN_COPY,
    Patience,
    TryAgain,
    announced_size,
    open_client,
    refuse,
    retry,
    tell_user,
)
from pipeline.errors import InputError
from pipeline.files import cache_folder, check_folders, fault_of, replacing, try_lock, waiting_note

FILES_AT_ONCE = 3
POLLED = 0.1  # s between two looks at a lock
RESTARTS = 4  # of a file from its first byte, by a server that cannot send the rest alone
GB = 1e9


@dataclass(frozen=True)
class Remote:
    """A file that a server offers; `key` names its content in the cache.

    Hashes are lower-case hex; of `sha256` the first digits do, where no more of them are published.
    """

    name: str
    url: str
    size: int
    key: str
    sha256: str | None = None
    md5: str | None = None
    known: KnownFile | None = (
        None  # what this project knows of the file, where the server names no hash
    )


class _Record(BaseModel):
    name: str  # for people who look into the cache
    size: int
    sha256: str


class WrongFile(Exception):
    """A file is not what was published; the text says expected and got."""


class NewVersion(WrongFile):
    """A file is another one than this project knows; the publisher may have replaced it."""


def fetch(wanted: Mapping[Path, Remote], patience: Patience = PATIENCE) -> None:
    """Put each file at its path, a hard link into the cache (else a copy), downloading first what the cache lacks.

    One file's failure does not stop the others; what has come is kept for the next run. Raises InputError.
    """
    asyncio.run(_fetch(wanted, patience))


def is_cached(remote: Remote) -> bool:
    """Whether the cache holds the whole file, judged by its size; `fetch` looks at each byte."""
    return _size(_entry(remote.key)) == remote.size


def cached_size(key: str) -> int | None:
    """The size in bytes of a cached file whose size nobody publishes, None if it is not there whole."""
    record = _read_record(_entry(key))
    return record.size if record and _size(_entry(key)) == record.size else None


async def _fetch(wanted: Mapping[Path, Remote], patience: Patience) -> None:
    remotes = {remote.key: remote for remote in wanted.values()}
    missing = [remote for remote in remotes.values() if not is_cached(remote)]
    _plan(wanted, missing)
    free = asyncio.Semaphore(FILES_AT_ONCE)
    started = sum(_size(_part(remote.key)) for remote in missing)
    with tqdm(
        total=sum(remote.size for remote in missing),
        initial=started,
        unit="B",
        unit_scale=True,
        disable=None,
    ) as bar:
        async with open_client(patience) as client:

            async def obtain(remote: Remote) -> None:
                async with free:
                    places = [path for path, other in wanted.items() if other.key == remote.key]
                    await _obtain(client, remote, places, patience, bar)

            results = await asyncio.gather(*map(obtain, remotes.values()), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not isinstance(error, InputError) or len(errors) == 1:
            raise error
    if errors:
        raise InputError(f"{errors[0]} ({len(errors) - 1} more failed too)")


def _plan(wanted: Mapping[Path, Remote], missing: list[Remote]) -> None:
    """Say what will be fetched, and raise InputError if it cannot fit."""
    cache = cache_folder()
    here = len({remote.key for remote in wanted.values()}) - len(missing)
    if not missing:
        print(f"Nothing to download: {here} of {here} files are in {cache}", flush=True)
    else:
        started = sum(_size(_part(remote.key)) for remote in missing)
        size = sum(remote.size for remote in missing)
        print(
            f"To download into {cache}: {len(missing)} file(s), {size / GB:.3f} GB, {started / GB:.3f} GB of it "
            f"came earlier; {here} more are there whole; {shutil.disk_usage(cache).free / GB:.3f} GB are free",
            *(
                f"  {remote.size / GB:8.3f} GB  {remote.name}{_no_hash_note(remote)}"
                for remote in missing
            ),
            sep="\n",
            flush=True,
        )
    needs = {cache: size - started} if missing else {}
    for path, remote in wanted.items():
        copied = 0 if _can_link(_entry(remote.key), path) else remote.size - _size(path)
        needs[path.parent] = needs.get(path.parent, 0) + copied
    check_folders(needs)


def _no_hash_note(remote: Remote) -> str:
    if remote.sha256 or remote.md5 or remote.known:
        return ""
    return f"  (no hash is published: checked by its {'CRCs' if remote.name.endswith('.zip') else 'size alone'})"


async def _obtain(
    client: httpx.AsyncClient, remote: Remote, places: list[Path], patience: Patience, bar: tqdm
) -> None:
    """Make sure of the cached file, fetching it if need be, and put it in place."""
    entry = _entry(remote.key)
    try:
        async with _locked(entry, remote) as may_write:
            if not await asyncio.to_thread(_intact, entry, remote, may_write):
                await _complete(_Transfer(client, remote, _part(remote.key), patience, bar))
            for place in places:
                await asyncio.to_thread(_place, entry, place)
    except OSError as error:
        fault = fault_of(error, entry) or error
        raise InputError(
            f"{remote.name}: {fault}; {_size(_part(remote.key))} of {remote.size} bytes are kept"
        ) from error


@asynccontextmanager
async def _locked(entry: Path, remote: Remote) -> AsyncIterator[bool]:
    """Yields whether the lock is held: of a cache that others fill, a whole file can be read without it."""
    lock_file = entry.with_name(f"{entry.name}.lock")
    try:
        lock = try_lock(lock_file)
    except InputError:
        if not is_cached(remote):
            raise
        yield False
        return
    if lock is None:
        tell_user(f"{remote.name}: another run is fetching it; {waiting_note(lock_file)}")
    while lock is None:
        await asyncio.sleep(POLLED)
        lock = try_lock(lock_file)
    try:
        yield True
    finally:
        lock.release()


def _intact(entry: Path, remote: Remote, may_write: bool) -> bool:
    """Whether the cached file is still the one that was checked; a damaged one is removed."""
    if not entry.exists():
        return False
    record = _read_record(entry)
    try:
        sha256 = check_file(
            entry, replace(remote, sha256=remote.sha256 or record.sha256) if record else remote
        )
        if remote.known and sha256 != remote.known.sha256:
            raise InputError(
                new_version(remote.name, f"expected sha256 {remote.known.sha256}, got {sha256}")
            )
    except WrongFile as problem:
        tell_user(f"{remote.name}: the copy in the cache is damaged ({problem}); fetching it again")
        entry.unlink()
        return False
    if not record and may_write:
        _write_record(entry, _Record(name=remote.name, size=remote.size, sha256=sha256))
    return True


@dataclass
class _Transfer:
    """One file on its way into `part`."""

    client: httpx.AsyncClient
    remote: Remote
    part: Path
    patience: Patience
    bar: tqdm
    n_other_sizes: int = 0  # answers that announced another size than the listing
    n_restarts: int = 0  # answers that began at the first byte although the rest was asked for


async def _complete(transfer: _Transfer) -> None:
    """Fetch the rest of a file, check it, give it its name; one that is wrong is fetched once more from the start."""
    remote, part = transfer.remote, transfer.part
    entry = _entry(remote.key)
    first_sha256 = None

    for attempt in (1, 2):
        await _receive(transfer)
        try:
            sha256 = await asyncio.to_thread(_sync_and_check, part, remote)
        except NewVersion as problem:
            sha256 = _digest(part, "sha256")
            if sha256 == first_sha256:  # twice the same: no damage on the way, another file
                _keep(part, entry, remote, sha256)
                raise InputError(new_version(remote.name, problem)) from problem
            first_sha256 = sha256
        except WrongFile as problem:
            if attempt == 2:
                _drop(transfer)
                raise InputError(
                    f"{remote.name}: what came from {remote.url} is twice not the published file: {problem}; "
                    f"nothing of it is kept: run it again later, name a mirror, or {USE_OWN_COPY}"
                ) from problem
        else:
            _keep(part, entry, remote, sha256)
            return
        _drop(transfer)
        tell_user(f"{remote.name}: what came is not the published file; fetching it once more")


def _keep(part: Path, entry: Path, remote: Remote, sha256: str) -> None:
    """Give a whole file its name in the cache."""
    _write_record(entry, _Record(name=remote.name, size=_size(part), sha256=sha256))
    os.replace(part, entry)


def _drop(transfer: _Transfer) -> None:
    """Begin again with nothing."""
    transfer.bar.update(-_size(transfer.part))
    transfer.part.unlink(missing_ok=True)


async def _receive(transfer: _Transfer) -> None:
    """Add to the part until it has the file's size (or a byte more, where the server has a longer one)."""
    remote, part = transfer.remote, transfer.part
    try:
        await retry(
            lambda: _receive_rest(transfer), remote.name, transfer.patience, lambda: _size(part)
        )
    except TryAgain as error:
        raise InputError(
            f"{remote.name}: {error}; gave up, {_size(part)} of {remote.size} bytes are kept: run it again when the "
            f"network or the server is well, and it goes on from there, or {USE_OWN_COPY}"
        ) from error


async def _receive_rest(transfer: _Transfer) -> None:
    remote, have = transfer.remote, _size(transfer.part)
    if have >= remote.size:
        return

    headers = {"Range": f"bytes={have}-"} if have else {}
    async with transfer.client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == 416:
            _check_announced_size(transfer, response)
            _drop(transfer)
            raise TryAgain(
                f"{response.url.host} has fewer bytes than the {have} that came before; from the start"
            )

        chunks = response.aiter_raw()
        first_chunk = await anext(chunks, b"")
        refuse(response, first_chunk, f"{remote.name}: {remote.url}")
        _check_announced_size(transfer, response)
        if have and _begins_anew(transfer, response, have):
            transfer.bar.update(-have)
            have = 0
        await _append(transfer, have, first_chunk, chunks, response.url.host)


def _check_announced_size(transfer: _Transfer, response: httpx.Response) -> None:
    """InputError where the server's file has another size than the listing says: it can never be complete.

    Said once it may be a slip on the way, and the bytes are worth having; unless all of them are here already.
    """
    announced = announced_size(response)
    if announced is None or announced == transfer.remote.size:
        return

    transfer.n_other_sizes += 1
    if transfer.n_other_sizes > 1 or announced == _size(transfer.part):
        remote = transfer.remote
        raise InputError(
            f"{remote.name}: the listing says that it has {remote.size} bytes, and "
            f"{response.url.host} has a file of {announced}; {_size(transfer.part)} bytes are "
            "kept: run it again when the server's list is mended, name a mirror, or "
            f"{USE_OWN_COPIES}"
        )


def _begins_anew(transfer: _Transfer, response: httpx.Response, have: int) -> bool:
    """Whether the answer begins at the first byte; TryAgain where it is of neither kind."""
    remote, host = transfer.remote, response.url.host
    if response.status_code == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise TryAgain(f"{host} sent another range than the one asked for")
        return False

    if response.headers.get("Content-Length", str(remote.size)) != str(remote.size):
        raise TryAgain(f"{host} sent something of another size than the file")
    transfer.n_restarts += 1
    if transfer.n_restarts > RESTARTS:
        raise InputError(
            f"{remote.name}: {host} breaks off, and begins with the first byte each time instead of going on; gave up "
            f"after {RESTARTS} restarts: name a mirror, or {USE_OWN_COPY}"
        )
    return True


async def _append(
    transfer: _Transfer, have: int, chunk: bytes, chunks: AsyncIterator[bytes], host: str
) -> None:
    """Write what comes behind the first `have` bytes; TryAgain where it is too slow or ends too early."""
    remote, patience = transfer.remote, transfer.patience
    checked = time.monotonic()
    had = have

    with open(transfer.part, "ab" if have else "wb") as file:
        while chunk and have <= remote.size:
            chunk = chunk[: remote.size + 1 - have]
            file.write(chunk)
            transfer.bar.update(len(chunk))
            have += len(chunk)
            if time.monotonic() - checked > patience.silence:
                if have - had < patience.slowest * patience.silence:
                    raise TryAgain(f"{host} sends less than {patience.slowest:.0f} bytes a second")
                checked = time.monotonic()
                had = have
            chunk = await anext(chunks, b"")

    if have < remote.size:
        raise TryAgain(f"{host} stopped before the end")


def _sync_and_check(part: Path, remote: Remote) -> str:
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    return check_file(part, remote)


def check_file(path: Path, remote: Remote) -> str:
    """The sha256 of a file that is as published; raises WrongFile otherwise."""
    if (size := _size(path)) != remote.size:
        raise WrongFile(
            f"expected {remote.size} bytes, got {'more' if size > remote.size else size}"
        )
    sha256 = _digest(path, "sha256")
    if remote.sha256:
        if not sha256.startswith(remote.sha256):
            raise WrongFile(f"expected sha256 {remote.sha256}, got {sha256}")
    elif remote.md5:
        if (md5 := _digest(path, "md5")) != remote.md5:
            raise WrongFile(f"expected md5 {remote.md5}, got {md5}")
    elif remote.known:
        if sha256 != remote.known.sha256:
            raise NewVersion(f"expected sha256 {remote.known.sha256}, got {sha256}")
    elif remote.name.endswith((".zip", ".npz")) or zipfile.is_zipfile(path):
        _check_zip(path)
    return sha256


def new_version(file: object, problem: object) -> str:
    """What to say of a file that is another one than this project knows."""
    return (
        f"{file}: is not the file that was published when this was written ({problem}), and no server names a "
        "hash of it; its publisher may have replaced it: if you have made sure of that, set "
        "download.accept_new_versions to true"
    )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise WrongFile(f"expected a whole zip, got one that cannot be read ({error})") from error
    if damaged:
        raise WrongFile(f"expected a whole zip, got a wrong CRC in its member {damaged}")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _place(entry: Path, place: Path) -> None:
    with replacing(place) as temporary:
        try:
            if _can_link(entry, place):
                os.link(entry.resolve(), temporary)
                return
        except OSError:  # a file system without hard links
            pass
        shutil.copyfile(entry, temporary)


def _can_link(entry: Path, place: Path) -> bool:
    """Whether the place is on the cache's disk, and the file ours: DVC changes the mode of what it has as a link."""
    if entry.exists() and entry.stat().st_uid != os.geteuid():
        return False
    return existing(place.parent).stat().st_dev == cache_folder().stat().st_dev


def _entry(key: str) -> Path:
    return cache_folder() / key


def _part(key: str) -> Path:
    return cache_folder() / f"{key}.part"


def _read_record(entry: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(entry.with_name(f"{entry.name}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_record(entry: Path, record: _Record) -> None:
    with replacing(entry.with_name(f"{entry.name}.json")) as temporary:
        temporary.write_text(record.model_dump_json())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
