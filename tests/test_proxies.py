"""Proxies of the environment: used, named where they fail, and not looked at where nothing is fetched."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipeline.download.proxies import find_proxy
from pipeline.download.remote import Remote
from pipeline.download.transfer import fetch
from pipeline.download.web import Patience, read
from pipeline.errors import InputError

IMPATIENT = Patience(first_attempts=2, backoff=0.01, longest=0.02, silence=5)
VARIABLES = (
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))


@contextmanager
def listening(answers: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """A port at which each message of a connection gets the next of these answers, and what was heard there."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    for answer in answers:
                        heard.append(connection.recv(4096))
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)


SOCKS = [
    b"\x05\x00",
    b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50",
    PAGE,
]  # no password; connected; the page


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY"])
def test_a_socks_proxy_is_used(scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(SOCKS) as (port, heard):
        monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{port}/")
        assert read("http://published.example/file", IMPATIENT) == b"hi"
    assert (
        b"published.example" in heard[1]
    )  # the proxy finds the host, which this machine may not know


def test_an_http_proxy_is_used_but_not_for_hosts_of_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening([PAGE]) as (port, heard):
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
        assert read("http://published.example/file", IMPATIENT) == b"hi"
    assert heard[0].startswith(b"GET http://published.example/file")
    monkeypatch.setenv("no_proxy", "published.example")
    assert find_proxy(httpx.URL("http://published.example/file")) is None


CANNOT_BE = {
    "http://proxy:port": "Invalid port: 'port'",
    "ftp://proxy:1": "expected http, https, socks5, socks5h, then ://host:port",
    "http://": "expected http, https, socks5, socks5h, then ://host:port",
}


@pytest.mark.parametrize("setting", CANNOT_BE)
def test_a_proxy_that_cannot_be_is_named_with_its_variable(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", setting)
    with pytest.raises(InputError) as told:
        read("https://published.example/file", IMPATIENT)
    expected = (
        f"HTTPS_PROXY names the proxy {setting!r}, which cannot be one ({CANNOT_BE[setting]})"
    )
    assert str(told.value).startswith(expected)
    assert "`unset HTTPS_PROXY`" in str(told.value)
    monkeypatch.delenv("HTTPS_PROXY")
    assert find_proxy(httpx.URL("https://published.example/file")) is None


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH_9.2\r\n" * 9])
def test_a_proxy_that_fails_is_named_without_its_password(
    scheme: str, answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens, who listens hangs up, or speaks something else."""
    with listening([] if answer is None else [answer]) as (port, _):
        port = 9 if answer is None else port
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:secret@127.0.0.1:{port}")
        with pytest.raises(InputError) as told:
            read("http://published.example/file", IMPATIENT)
    assert f"through the proxy {scheme}://127.0.0.1:{port} (ALL_PROXY)" in str(told.value)
    assert "secret" not in str(told.value)


def test_a_file_of_the_cache_needs_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/key").write_bytes(b"content")
    monkeypatch.setenv("ALL_PROXY", "http://proxy:port")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    fetch({tmp_path / "file": Remote("file", "https://published.example/file", 7, "key")})
    assert (tmp_path / "file").read_bytes() == b"content"
