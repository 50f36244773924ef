"""HTTP with patience: a failure that may pass is tried again, any other is one clear error.

These are tried again, after exponential back-off with jitter or the time that Retry-After names:
    connections that break, send nothing for long, or send too slowly
    the status codes 202, 408, 425, 429 and 5xx
    an HTML page in the place of data
    any refusal after a redirect, because signed links expire
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
    """How long to try. Times are in seconds.

    A file is given up after `attempts` failures in a row that brought fewer than `progress` bytes,
    or when all waits together would be longer than `total`. OSF limits the requests of an hour, so
    `total` is longer than that.
    """

    first_attempts: int = 5  # for listings and sizes, asked for first, while the user is waiting
    attempts: int = 20
    progress: int = 2**20  # bytes
    backoff: float = 1.0  # longest first wait; it doubles at each failure, up to `longest`
    longest: float = 120.0
    total: float = 2 * 3600.0
    silence: float = 60.0  # a connection is dropped if no byte comes in this time,
    slowest: float = 1024.0  # or if fewer bytes a second than this come in that time


PATIENCE = Patience()

# Ends of error texts. A wrong listing needs the second: as long as the folder lacks a file of the
# dataset, the listing is still read.
USE_OWN_COPY = "put the file into a folder and let download.own_copy name that"
USE_OWN_COPIES = "let download.own_copy name a folder in which all files lie"


class TryAgain(Exception):
    """A failure that may pass. `wait` is the time in seconds that the server asks for, if any."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def read(url: str, patience: Patience = PATIENCE) -> bytes:
    """The body of a small answer. It is not cached. Raises InputError."""
    return read_response(url, patience).content


def read_response(url: str, patience: Patience = PATIENCE) -> httpx.Response:
    """A small answer with its headers. It is not cached. Raises InputError."""

    async def attempt(client: httpx.AsyncClient) -> httpx.Response:
        response = await client.get(url)
        refuse(response, response.content, url)
        return response

    return asyncio.run(_ask(url, attempt, patience))


def remote_size(url: str, patience: Patience = PATIENCE) -> int:
    """The size in bytes of the file at `url`. Raises InputError, also if the server tells no size.

    It asks with a GET of the first bytes, because signed links may refuse HEAD.
    """

    async def attempt(client: httpx.AsyncClient) -> int:
        # 64 bytes are enough to see that the answer is an HTML page.
        async with client.stream("GET", url, headers={"Range": "bytes=0-63"}) as response:
            refuse(response, await anext(response.aiter_raw(), b""), url)
            size = announced_size(response)
            if size is None:
                raise InputError(
                    f"{url}: {response.url.host} does not say how large the file is; name a "
                    f"mirror, or {USE_OWN_COPY}"
                )
            return size

    return asyncio.run(_ask(url, attempt, patience))


def announced_size(response: httpx.Response) -> int | None:
    """The size in bytes of the whole file, by an answer with all or a part of it; else None."""
    # 200: the whole file. 206: a part, "bytes 0-63/1000". 416: no such part, "bytes */1000".
    size = ""
    if response.status_code == 200:
        size = response.headers.get("Content-Length", "")
    elif response.status_code in (206, 416):
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None


async def _ask(
    url: str, attempt: Callable[[httpx.AsyncClient], Awaitable[_T]], patience: Patience
) -> _T:
    """The result of `attempt`, with a client of its own and few repetitions. Raises InputError."""
    patience = replace(patience, attempts=patience.first_attempts)
    async with open_client(patience) as client:
        try:
            return await retry(lambda: attempt(client), url, patience)
        except TryAgain as error:
            raise InputError(
                f"{url}: {error}; gave up: run it again when the network or the server is well, or "
                f"{USE_OWN_COPIES}"
            ) from error


async def retry(
    attempt: Callable[[], Awaitable[_T]],
    name: str,
    patience: Patience,
    n_received: Callable[[], int] = lambda: 0,
) -> _T:
    """The result of the first attempt that succeeds.

    `n_received` counts the bytes that all attempts have brought. Raises the last TryAgain when
    patience is at its end, and InputError for an address that cannot be one.
    """
    backoff = wait_random_exponential(
        multiplier=patience.backoff, max=patience.longest, min=patience.backoff / 2
    )
    n_at_reset = n_received()  # the bytes when the failures in a row were last set back

    async def attempt_once() -> _T:
        try:
            return await attempt()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(
                f"{name}: cannot be fetched from such an address ({error}); correct it under "
                "`download` in params.yaml"
            ) from error
        except httpx.RequestError as error:
            raise TryAgain(_no_connection(error)) from error

    # tenacity calls `after` before `wait` and `stop`: both see such a failure as the first one.
    def forget_failures_that_brought_bytes(state: RetryCallState) -> None:
        nonlocal n_at_reset
        if n_received() - n_at_reset >= patience.progress:
            n_at_reset = n_received()
            state.attempt_number = 1

    def wait(state: RetryCallState) -> float:
        retry_after = _failure(state).wait
        if retry_after is None:
            return backoff(state)
        # Some random time more, so that not all users come back at the same moment.
        return retry_after + backoff(state) / 10

    def stop(state: RetryCallState) -> bool:
        # Before the wait: nobody should wait for an attempt that will not be made.
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
    return await retrying(attempt_once)


def _no_connection(error: httpx.RequestError) -> str:
    """The error text for a connection that failed, with the proxy if there is one."""
    url = error.request.url
    proxy = find_proxy(url)
    through = f" through the proxy {proxy}" if proxy else ""
    text = f": {error}" if str(error) else ""
    return f"no good connection to {url.host}{through} ({type(error).__name__}{text})"


def _failure(state: RetryCallState) -> TryAgain:
    """The failure of an attempt that will be repeated."""
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, TryAgain)
    return failure


def open_client(patience: Patience) -> httpx.AsyncClient:
    """A client that follows redirects, and sends a Range header to each address on the way.

    It asks for no compression, because ranges count the bytes of the file itself.
    """
    return httpx.AsyncClient(
        transport=ProxyTransport(),
        follow_redirects=True,
        timeout=patience.silence,
        headers={"Accept-Encoding": "identity"},
    )


def refuse(response: httpx.Response, start: bytes, name: str) -> None:
    """Do nothing if the answer is data; raise TryAgain or InputError for any other answer.

    `start` is the start of its body, `name` is what was asked for.
    """
    host = response.url.host
    status = response.status_code
    if status in (200, 206):
        is_page = start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
        is_html = "html" in response.headers.get("Content-Type", "")
        # Bytes from the middle of a file (206) may look like a page by chance.
        if is_html or (is_page and status == 200):
            raise TryAgain(f"{host} sent an HTML page, not data (a login or a maintenance page?)")
        return

    answer = f"{host} answered {status} {response.reason_phrase}"
    retry_after = response.headers.get("Retry-After")
    if status == 202:  # firewalls send it, for instance, to programs that are no browser
        raise TryAgain(f"{answer}, which is no data (a check for robots?)")

    if status in (408, 425, 429) or status >= 500:
        note = f", Retry-After {retry_after}" if retry_after else ""
        raise TryAgain(answer + note, _seconds(retry_after))
    if response.history:  # the next attempt starts at the first link, and gets a new signed one
        raise TryAgain(f"{answer}, as for a link that has expired")
    raise InputError(
        f"{name}: {answer}; check the address under `download` in params.yaml and whether the file "
        f"is still public; if it is not, {USE_OWN_COPIES}"
    )


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a Retry-After header asks for; None if there is no header, or nonsense.

    The header holds a number of seconds or an HTTP date.
    """
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)

    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    # HTTP dates are in UTC; one with the zone -0000 is read without a zone.
    date = date.replace(tzinfo=date.tzinfo or UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def tell_user(text: str) -> None:
    """Print a line to stderr without damage to a progress bar."""
    tqdm.write(text, file=sys.stderr)
