"""The proxy that the environment names for an address, and HTTP through it.

The variables are those of curl: HTTP_PROXY, HTTPS_PROXY and ALL_PROXY; names in lower case come
first. Hosts in NO_PROXY are asked directly. If no variable is set, the settings of macOS count.
Nothing is read before the first request: who has all files needs no proxy.
"""

import os
import ssl
import urllib.request
from dataclasses import dataclass
from functools import cache

import httpx
import socksio

from pipeline.errors import InputError

SCHEMES = ("http", "https", "socks5", "socks5h")
GNOMES_SOCKS = "socks"  # how GNOME's settings write socks5


@dataclass(frozen=True)
class Proxy:
    """A proxy and the variable that names it."""

    url: httpx.URL
    variable: str

    def __str__(self) -> str:
        """Its address without user and password, and the variable."""
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.url.scheme}://{self.url.host}{port} ({self.variable})"


def find_proxy(url: httpx.URL) -> Proxy | None:
    """The proxy for an address; None for a direct connection.

    Raises InputError if the environment names something that cannot be a proxy.
    """
    if urllib.request.proxy_bypass(url.host):
        return None

    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (url.scheme, "all") if proxies.get(kind)), None)
    if kind is None:
        return None

    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), "the settings of this system")
    return _parse(proxies[kind], variable)


def _parse(text: str, variable: str) -> Proxy:
    """A proxy by its text in a variable; without a scheme it is an HTTP proxy."""
    with_scheme = text if "://" in text else f"http://{text}"
    try:
        url = httpx.URL(with_scheme)
    except httpx.InvalidURL as error:
        raise _unusable(text, variable, str(error)) from error

    if url.scheme == GNOMES_SOCKS:
        url = url.copy_with(scheme="socks5")
    if url.scheme not in SCHEMES or not url.host:
        raise _unusable(text, variable, f"expected {', '.join(SCHEMES)}, then ://host:port")
    return Proxy(url, variable)


def _unusable(text: str, variable: str, problem: str) -> InputError:
    _, _, address = text.rpartition("@")  # without user and password
    return InputError(
        f"{variable} names the proxy {address!r}, which cannot be one ({problem}): correct it, or "
        f"`unset {variable}`"
    )


class ProxyTransport(httpx.AsyncBaseTransport):
    """Sends each request through the proxy that the environment names for its address."""

    def __init__(self) -> None:
        self._transports: dict[Proxy | None, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = find_proxy(request.url)
        # Redirects may lead to another scheme or host, and so to another proxy.
        if proxy not in self._transports:
            proxy_url = proxy.url if proxy else None
            self._transports[proxy] = httpx.AsyncHTTPTransport(verify=_tls(), proxy=proxy_url)

        try:
            return await self._transports[proxy].handle_async_request(request)
        except socksio.ProtocolError as error:  # httpx does not turn it into an error of its own
            raise httpx.ProxyError(f"it does not speak SOCKS ({error})", request=request) from error

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


@cache
def _tls() -> ssl.SSLContext:
    """Cached, because reading all certificates takes time."""
    return httpx.create_ssl_context()
