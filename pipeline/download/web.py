"""HTTP with patience: what may pass is tried again, what will not is one clear error.

Tried again with exponential back-off and jitter, or when Retry-After says: connections that break, fall silent or
crawl, 202, 408, 425, 429 and 5xx, HTML pages in the place of data, and any refusal after a redirect, because signed
links expire.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tqdm import tqdm

from pipeline.download.proxies import ProxyTransport, find_proxy
from pipeline.errors import InputError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server; times in seconds.

    A file is given up after `attempts` failures that brought less than `progress` bytes, or when all waits together
    would exceed `total`, which outlasts the hour of OSF's request limit.
    """

    first_attempts: int = 5  # before a server has answered at all: fail fast, a user is waiting
    attempts: int = 20
    progress: int = 2**20  # bytes
    backoff: float = 1.0  # bound of the first wait, doubled at each failure up to `longest`
    longest: float = 120.0
    total: float = 2 * 3600.0
    silence: float = 60.0  # a connection that says nothing for so long is dropped,
    slowest: float = 1024.0  # and so is one that brings fewer bytes a second over that time


PATIENCE = Patience()

# A listing is still asked for where the folder lacks a file, so that a listing that is wrong needs the second.
USE_OWN_COPY = "put the file into a folder and let download.own_copy name that"
USE_OWN_COPIES = "let download.own_copy name a folder in which all files lie"


class TryAgain(Exception):
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def read(url: str, patience: Patience = PATIENCE) -> bytes:
    """The body of a small answer, not cached. Raises InputError."""

    async def attempt(client: httpx.AsyncClient) -> bytes:
        response = await client.get(url)
        refuse(response, response.content, url)
        return response.content

    return asyncio.run(_ask(url, attempt, patience))


def remote_size(url: str, patience: Patience = PATIENCE) -> int:
    """The size in bytes of the file at `url`, asked for with a GET of its first bytes: signed links may refuse HEAD."""

    async def attempt(client: httpx.AsyncClient) -> int:
        async with client.stream("GET", url, headers={"Range": "bytes=0-63"}) as response:
            refuse(response, await anext(response.aiter_raw(), b""), url)
            size = announced_size(response)
            if size is None:
                raise InputError(
                    f"{url}: {response.url.host} does not say how large the file is; name a mirror, or {USE_OWN_COPY}"
                )
            return size

    return asyncio.run(_ask(url, attempt, patience))


def announced_size(response: httpx.Response) -> int | None:
    """The size in bytes of the whole file of which an answer is all or a part; None if it does not say."""
    size = ""
    if response.status_code == 200:
        size = response.headers.get("Content-Length", "")
    elif response.status_code in (206, 416):
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None


async def _ask(
    url: str, attempt: Callable[[httpx.AsyncClient], Awaitable[_T]], patience: Patience
) -> _T:
    patience = replace(patience, attempts=patience.first_attempts)
    async with open_client(patience) as client:
        try:
            return await retry(lambda: attempt(client), url, patience)
        except TryAgain as error:
            raise InputError(
                f"{url}: {error}; gave up: run it again when the network or the server is well, or {USE_OWN_COPIES}"
            ) from error


async def retry(
    attempt: Callable[[], Awaitable[_T]],
    name: str,
    patience: Patience,
    received: Callable[[], int] = lambda: 0,
) -> _T:
    """The result of the first attempt that succeeds; raises the last TryAgain when patience is at its end."""
    backoff = wait_random_exponential(
        multiplier=patience.backoff, max=patience.longest, min=patience.backoff / 2
    )
    most = received()

    async def once() -> _T:
        try:
            return await attempt()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(
                f"{name}: cannot be fetched from such an address ({error}); correct it under `download` in params.yaml"
            ) from error
        except httpx.RequestError as error:
            raise TryAgain(_no_connection(error)) from error

    def forget_failures_that_brought_bytes(state: RetryCallState) -> None:
        nonlocal most
        if received() - most >= patience.progress:
            most = received()
            state.attempt_number = 1

    def wait(state: RetryCallState) -> float:
        asked = _failure(state).wait
        return (
            backoff(state) if asked is None else asked + backoff(state) / 10
        )  # not all at the same moment

    def stop(state: RetryCallState) -> bool:
        return (
            state.attempt_number >= patience.attempts
            or state.idle_for + state.upcoming_sleep > patience.total
        )

    def tell(state: RetryCallState) -> None:
        tell_user(f"{name}: {_failure(state)}; again in {state.upcoming_sleep:.1f} s")

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(TryAgain),
        after=forget_failures_that_brought_bytes,
        wait=wait,
        stop=stop,
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(once)


def _no_connection(error: httpx.RequestError) -> str:
    url = error.request.url
    proxy = find_proxy(url)
    through = f" through the proxy {proxy}" if proxy else ""
    text = f": {error}" if str(error) else ""
    return f"no good connection to {url.host}{through} ({type(error).__name__}{text})"


def _failure(state: RetryCallState) -> TryAgain:
    """Why the attempt failed, where it is to be made again."""
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, TryAgain)
    return failure


def open_client(patience: Patience) -> httpx.AsyncClient:
    """A client that follows redirects; a Range header goes along."""
    identity = {
        "Accept-Encoding": "identity"
    }  # ranges count bytes of the file, so it must not come compressed
    return httpx.AsyncClient(
        transport=ProxyTransport(),
        follow_redirects=True,
        timeout=patience.silence,
        headers=identity,
    )


def refuse(response: httpx.Response, start: bytes, name: str) -> None:
    """Raise unless the answer is data; `start` is the start of its body, `name` what was asked for."""
    host, status = response.url.host, response.status_code
    if status in (200, 206):
        page = start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
        if "html" in response.headers.get("Content-Type", "") or (page and status == 200):
            raise TryAgain(f"{host} sent an HTML page, not data (a login or a maintenance page?)")
        return
    said = f"{host} answered {status} {response.reason_phrase}"
    asked = response.headers.get("Retry-After")
    if status == 202:  # a firewall's answer to what is no browser, for instance
        raise TryAgain(f"{said}, which is no data (a check for robots?)")
    if status in (408, 425, 429) or status >= 500:
        raise TryAgain(said + (f", Retry-After {asked}" if asked else ""), _seconds(asked))
    if response.history:  # the next attempt starts at the first link and is given a new one
        raise TryAgain(f"{said}, as for a link that has expired")
    raise InputError(
        f"{name}: {said}; check the address under `download` in params.yaml and whether the file "
        f"is still public; if it is not, {USE_OWN_COPIES}"
    )


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or the time until an HTTP date; None if it says neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def tell_user(text: str) -> None:
    """A line on stderr that leaves a progress bar whole."""
    tqdm.write(text, file=sys.stderr)
