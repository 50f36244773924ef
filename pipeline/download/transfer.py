"""Files fetched over HTTP into the cache, and put from there where they are used.

`fetch` plans the downloads, checks that they fit on the disk, and runs several at a time. A
`Download` is one file: `resume` receives the missing bytes, `verify` compares the whole file with
what was published, and `place` puts it where it is used.
"""

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
from tqdm import tqdm

from pipeline.disks import GB
from pipeline.download.cache import CacheEntry, Record, is_cached, lock_entry
from pipeline.download.remote import (
    NewVersion,
    Remote,
    WrongFile,
    check_file,
    file_size,
    new_version,
)
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
from pipeline.files import cache_folder, check_folders, fault_of

FILES_AT_ONCE = 3
# So many failures in a row, and no further file is begun: each takes the whole patience.
FAILURES_IN_A_ROW = 6
FILES_TO_NAME = 20  # before a download; of further files only the number and the sizes are told
RESTARTS = 4  # from the first byte, for a server that cannot send only the missing bytes


def fetch(targets: Mapping[Path, Remote], patience: Patience = PATIENCE) -> None:
    """Put each file at its path, and download before what the cache lacks.

    A file is a hard link to the cache, or a copy where no link is possible. If one file fails, the
    others still come, unless many fail in a row. The bytes that have come stay for the next run.
    Raises InputError.
    """
    asyncio.run(_fetch(targets, patience))


async def _fetch(targets: Mapping[Path, Remote], patience: Patience) -> None:
    # Two targets may have the same content: it is downloaded once, and put into both.
    remotes = {remote.key: remote for remote in targets.values()}
    paths: dict[str, list[Path]] = {}
    for path, remote in targets.items():
        paths.setdefault(remote.key, []).append(path)

    missing = [remote for remote in remotes.values() if not is_cached(remote)]
    _announce(len(remotes) - len(missing), missing)
    _check_room(targets, missing)

    bar = tqdm(
        total=_total_size(missing),
        initial=_part_sizes(missing),
        unit="B",
        unit_scale=True,
        disable=None,  # no bar where there is no terminal
    )
    slots = asyncio.Semaphore(FILES_AT_ONCE)
    n_failures_in_a_row = 0
    n_not_begun = 0
    with bar:
        async with open_client(patience) as client:

            async def download(remote: Remote) -> None:
                nonlocal n_failures_in_a_row, n_not_begun
                async with slots:
                    if n_failures_in_a_row >= FAILURES_IN_A_ROW:
                        n_not_begun += 1
                        return

                    try:
                        await Download(remote, client, bar, patience).run(paths[remote.key])
                    except InputError:
                        n_failures_in_a_row += 1
                        raise
                    n_failures_in_a_row = 0

            # Exceptions come back as results, so that one failure does not stop the others.
            results = await asyncio.gather(*map(download, remotes.values()), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    _raise_first(errors, n_not_begun)


def _announce(n_cached: int, missing: list[Remote]) -> None:
    """Print what will be downloaded."""
    cache = cache_folder()
    if not missing:
        print(f"Nothing to download: {n_cached} of {n_cached} files are in {cache}", flush=True)
        return

    free = shutil.disk_usage(cache).free
    print(
        f"To download into {cache}: {len(missing)} file(s), {_total_size(missing) / GB:.3f} GB, "
        f"{_part_sizes(missing) / GB:.3f} GB of it came earlier; {n_cached} more are there whole; "
        f"{free / GB:.3f} GB are free",
        *(
            f"  {remote.size / GB:8.3f} GB  {remote.name}{_no_hash_note(remote)}"
            for remote in missing[:FILES_TO_NAME]
        ),
        sep="\n",
        flush=True,
    )
    others = missing[FILES_TO_NAME:]
    if others:
        print(f"  {_total_size(others) / GB:8.3f} GB  in {len(others)} more files", flush=True)


def _no_hash_note(remote: Remote) -> str:
    if remote.sha256 or remote.md5 or remote.git_sha1 or remote.known_file:
        return ""
    check = "CRCs" if remote.name.endswith(".zip") else "size alone"
    return f"  (no hash is published: checked by its {check})"


def _check_room(targets: Mapping[Path, Remote], missing: list[Remote]) -> None:
    """InputError if a disk is too small for the downloads and the copies, or cannot be written."""
    needs: Counter[Path] = Counter()
    if missing:
        needs[cache_folder()] = _total_size(missing) - _part_sizes(missing)

    # A hard link takes no room, and a copy takes the place of an older file.
    for path, remote in targets.items():
        is_link = CacheEntry(remote.key).can_link(path)
        needs[path.parent] += 0 if is_link else remote.size - file_size(path)
    check_folders(needs)


def _total_size(remotes: list[Remote]) -> int:
    return sum(remote.size for remote in remotes)


def _part_sizes(remotes: list[Remote]) -> int:
    return sum(CacheEntry(remote.key).part_size() for remote in remotes)


def _raise_first(errors: list[BaseException], n_not_begun: int) -> None:
    """Raise an error of the program first. Of several InputErrors, raise one that counts them.

    `n_not_begun` files were not tried after these errors.
    """
    for error in errors:
        if not isinstance(error, InputError) or len(errors) == 1:
            raise error
    if errors:
        others = f"{len(errors) - 1} more failed too"
        if n_not_begun:
            others += f", and the other {n_not_begun} were not begun"
        raise InputError(f"{errors[0]} ({others})")


class Download:
    """One file on its way into the cache, and from there to the paths where it is used."""

    def __init__(
        self, remote: Remote, client: httpx.AsyncClient, bar: tqdm, patience: Patience
    ) -> None:
        self.remote = remote
        self.client = client
        self.bar = bar
        self.patience = patience

        self.entry = CacheEntry(remote.key)
        self.n_other_sizes = 0  # answers that announced another size than the listing
        self.n_restarts = 0  # answers that began at the first byte, not at the first missing one

    async def run(self, paths: list[Path]) -> None:
        """Download the file if the cache lacks it, and put it at `paths`. Raises InputError."""
        try:
            async with lock_entry(self.entry, self.remote) as may_write:
                # In a thread, so that the other downloads go on while this file is hashed.
                if not await asyncio.to_thread(self.is_intact, may_write):
                    await self.complete()
                await asyncio.to_thread(self.place, paths)
        except OSError as error:
            fault = fault_of(error, self.entry.file) or error
            raise InputError(f"{self.remote.name}: {fault}; {self._progress()}") from error

    def is_intact(self, may_write: bool) -> bool:
        """Whether the cache holds the file as it was verified. A damaged file is removed.

        Raises InputError if the file is intact, but a new version that the user has not accepted.
        """
        remote = self.remote
        entry = self.entry
        if not entry.file.exists():
            return False

        # The sha256 of the first check is better than the CRCs or the size that were published.
        record = entry.read_record()
        expected = replace(remote, sha256=remote.sha256 or record.sha256) if record else remote
        try:
            sha256 = check_file(entry.file, expected)
        except WrongFile as problem:
            tell_user(
                f"{remote.name}: the copy in the cache is damaged ({problem}); fetching it again"
            )
            entry.file.unlink()
            return False

        known_file = remote.known_file
        if known_file and sha256 != known_file.sha256:
            difference = f"expected sha256 {known_file.sha256}, got {sha256}"
            raise InputError(new_version(remote.name, difference))

        # The record is missing or damaged.
        if not record and may_write:
            entry.write_record(Record(name=remote.name, size=remote.size, sha256=sha256))
        return True

    async def complete(self) -> None:
        """Resume and verify. A wrong file is dropped and fetched a second time.

        Raises InputError if the file is wrong twice.
        """
        remote = self.remote
        new_sha256 = None  # of the first download, if it seems to be a new version

        for attempt in (1, 2):
            await self.resume()
            try:
                sha256 = await asyncio.to_thread(self.verify)
            except WrongFile as problem:
                # Damage on the way is hardly the same twice, so this is a new version. It stays in
                # the cache, in case that the user accepts it.
                if isinstance(problem, NewVersion) and problem.sha256 == new_sha256:
                    self.entry.finish(remote.name, problem.sha256)
                    raise InputError(new_version(remote.name, problem)) from problem

                self.drop()
                if attempt == 2:
                    raise InputError(
                        f"{remote.name}: what came from {remote.url} is twice not the published "
                        f"file: {problem}; nothing of it is kept: run it again later, name a "
                        f"mirror, or {USE_OWN_COPY}"
                    ) from problem
                if isinstance(problem, NewVersion):
                    new_sha256 = problem.sha256
            else:
                self.entry.finish(remote.name, sha256)
                return
            tell_user(f"{remote.name}: what came is not the published file; fetching it once more")

    async def resume(self) -> None:
        """Receive the missing bytes, in as many requests as patience allows.

        A server may have a longer file: then the part ends with one byte more than expected, and
        `verify` refuses it. Raises InputError when patience is at its end.
        """
        try:
            await retry(self._receive, self.remote.name, self.patience, self.entry.part_size)
        except TryAgain as error:
            raise InputError(
                f"{self.remote.name}: {error}; gave up, {self._progress()}: run it again when the "
                "network or the server is well, and it goes on from there, or "
                f"{USE_OWN_COPY}"
            ) from error

    def verify(self) -> str:
        """Sync the part to the disk, check it, and return its sha256. Raises WrongFile."""
        # Synced, so that after a power cut no name of a whole file stands for less than that.
        with open(self.entry.part, "rb+") as file:
            os.fsync(file.fileno())
        return check_file(self.entry.part, self.remote)

    def place(self, paths: list[Path]) -> None:
        """Put the cached file at each path."""
        for path in paths:
            self.entry.place(path)

    def drop(self) -> None:
        """Remove the bytes that have come, so that the next request starts at the first byte."""
        self.bar.update(-self.entry.part_size())
        self.entry.part.unlink(missing_ok=True)

    def _progress(self) -> str:
        return f"{self.entry.part_size()} of {self.remote.size} bytes are kept"

    async def _receive(self) -> None:
        """Ask once for the missing bytes. Raises TryAgain or InputError if not all of them come."""
        remote = self.remote
        n_received = self.entry.part_size()
        if n_received >= remote.size:
            return

        headers = {"Range": f"bytes={n_received}-"} if n_received else {}
        async with self.client.stream("GET", remote.url, headers=headers) as response:
            host = response.url.host
            if response.status_code == 416:  # Range Not Satisfiable
                self._check_announced_size(response)
                self.drop()
                raise TryAgain(
                    f"{host} has fewer bytes than the {n_received} that came before; from the start"
                )

            # An error page shows at its first bytes, before any of it is written.
            chunks = response.aiter_raw()  # raw, because ranges count the bytes as they are sent
            first_chunk = await anext(chunks, b"")
            refuse(response, first_chunk, f"{remote.name}: {remote.url}")
            self._check_announced_size(response)

            if n_received and self._starts_over(response, n_received):
                self.bar.update(-n_received)
                n_received = 0
            await self._write(n_received, first_chunk, chunks, host)

    def _check_announced_size(self, response: httpx.Response) -> None:
        """InputError if the server's file has another size than the listing says.

        Such a file can never be complete. But one wrong answer may be an accident, so the second
        wrong answer is refused, or the first if the server has no bytes beyond those in the part.
        """
        remote = self.remote
        size = announced_size(response)
        if size is None or size == remote.size:
            return

        self.n_other_sizes += 1
        part_size = self.entry.part_size()
        if self.n_other_sizes > 1 or size == part_size:
            raise InputError(
                f"{remote.name}: the listing says that it has {remote.size} bytes, and "
                f"{response.url.host} has a file of {size}; {part_size} bytes are kept: run it "
                f"again when the server's list is mended, name a mirror, or {USE_OWN_COPIES}"
            )

    def _starts_over(self, response: httpx.Response, n_received: int) -> bool:
        """Whether the answer starts at the first byte, and not after the `n_received` bytes.

        Raises TryAgain for an answer that is neither, InputError after too many restarts.
        """
        remote = self.remote
        host = response.url.host
        if response.status_code == 206:  # Partial Content
            if not response.headers.get("Content-Range", "").startswith(f"bytes {n_received}-"):
                raise TryAgain(f"{host} sent another range than the one asked for")
            return False

        if response.headers.get("Content-Length", str(remote.size)) != str(remote.size):
            raise TryAgain(f"{host} sent something of another size than the file")

        # The whole file again. Each restart costs up to all its bytes, so there are only a few.
        self.n_restarts += 1
        if self.n_restarts > RESTARTS:
            raise InputError(
                f"{remote.name}: {host} breaks off, and begins with the first byte each time "
                f"instead of going on; gave up after {RESTARTS} restarts: name a mirror, or "
                f"{USE_OWN_COPY}"
            )
        return True

    async def _write(
        self, n_received: int, chunk: bytes, chunks: AsyncIterator[bytes], host: str
    ) -> None:
        """Write `chunk` and all `chunks` after it to the part, behind its first `n_received` bytes.

        Raises TryAgain if the server sends too slowly or stops too early.
        """
        remote = self.remote
        patience = self.patience
        period_start = time.monotonic()
        n_at_start = n_received

        with open(self.entry.part, "ab" if n_received else "wb") as file:
            while chunk and n_received <= remote.size:
                # One byte too many is enough to see that the file is longer than it should be.
                chunk = chunk[: remote.size + 1 - n_received]
                file.write(chunk)
                self.bar.update(len(chunk))
                n_received += len(chunk)

                # The timeout of the client only ends connections that send nothing at all.
                if time.monotonic() - period_start > patience.silence:
                    if n_received - n_at_start < patience.slowest * patience.silence:
                        raise TryAgain(
                            f"{host} sends less than {patience.slowest:.0f} bytes a second"
                        )
                    period_start = time.monotonic()
                    n_at_start = n_received
                chunk = await anext(chunks, b"")

        if n_received < remote.size:
            raise TryAgain(f"{host} stopped before the end")
