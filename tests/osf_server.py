"""A look-alike of OSF, its storage and DreamSim's releases: own process, loopback, faults that can be switched on.

    with serve({"anp5v": eeg_folder, "y63gw": images_folder}, releases_folder) as server:
        server.api, server.releases                          # for params.yaml: download.osf_api, .dreamsim_releases
        server.set_faults({"sub-01.zip": [fault("drop", at=1000)]})
        server.log()                                         # one dict a request that has been answered
        server.sent()                                        # {file name: bytes of it that were sent}

A node's folder is listed as OSF lists it (pages, folders, hashes); a download link answers 302 to the storage, on
another port, with a token that expires. A fault meets the first `times` requests for that file (-1: all), then the next
fault has its turn. Kinds, and what they take:
    drop (at)  hang (at, seconds)  truncate (at)  flip (at)  trickle (rate, in bytes a second)  longer (by)
    length (by: added to the true Content-Length)  no_range  html (disguised: as application/octet-stream)
    status (code, retry_after: text, or retry_date: seconds from now)  at the storage;  api_status: the same at the link
    expired: the link leads to a token of the past
for a listing, under the name of its node: api_status, html, text (body), and, as long as they stand, no_hashes,
listed (name, and what its attributes shall say), page_loop.
"""

import argparse
import hashlib
import json
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from urllib.request import Request, urlopen

HOST = "127.0.0.1"
PIECE = 2**16
PAGE = b"<!DOCTYPE html>\n<html><head><title>OSF</title></head><body>We are down for maintenance.</body></html>\n"


def fault(kind: str, times: int = 1, **details: object) -> dict[str, object]:
    return {"kind": kind, "times": times, **details}


@dataclass
class Server:
    """The face that tests use; each method asks the server's own process."""

    api: str
    releases: str
    process: subprocess.Popen[str]

    def set_faults(self, faults: Mapping[str, list[dict[str, object]]]) -> None:
        self._ask("/_faults", json.dumps(faults).encode())

    def log(self) -> list[dict[str, object]]:
        """Requests since the last `clear_log`; waits until those under way are answered."""
        return json.loads(self._ask("/_log"))

    def clear_log(self) -> None:
        self._ask("/_clear", b"")

    def sent(self) -> dict[str, int]:
        """Bytes of data sent, by file name; no entry where nothing was."""
        sent: dict[str, int] = {}
        for request in self.log():
            if request["sent"]:
                sent[request["name"]] = sent.get(request["name"], 0) + request["sent"]
        return sent

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        root = "{0.scheme}://{0.netloc}".format(urlsplit(self.api))
        with urlopen(Request(root + path, data=body), timeout=30) as response:
            return response.read()


@contextmanager
def serve(
    osf_nodes: Mapping[str, Path], releases: Path | None = None, *, per_page: int = 3, direct: bool = False
) -> Iterator[Server]:
    """Serve these folders from a process of its own; with `direct` the link's 302 stays on the first port."""
    command = [sys.executable, "-m", "tests.osf_server", f"--per-page={per_page}"]
    command += [f"--node={name}={folder}" for name, folder in osf_nodes.items()]
    command += [f"--releases={releases}"] * (releases is not None) + ["--direct"] * direct
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        first = f"http://{HOST}:{int(process.stdout.readline())}"
        yield Server(f"{first}/v2", f"{first}/releases", process)
    finally:
        process.kill()
        process.communicate()


class State:
    """What the threads of the two ports share."""

    def __init__(self, nodes: dict[str, Path], releases: Path | None, per_page: int, direct: bool) -> None:
        self.nodes, self.releases, self.per_page, self.direct = nodes, releases, per_page, direct
        self.lock = threading.Condition()
        self.faults: dict[str, list[dict]] = {}
        self.log: list[dict] = []
        self.under_way = 0
        self.tokens: dict[str, float] = {}
        self.storage = ""

    def take(self, name: str, kinds: set[str]) -> dict:
        """The fault that this request meets, {} for none; it is used up."""
        with self.lock:
            for fault in self.faults.get(name, []):
                if fault["times"] != 0 and fault["kind"] not in STANDING_FAULTS:
                    if fault["kind"] not in kinds:
                        return {}
                    fault["times"] -= 1
                    return fault
        return {}

    def standing(self, name: str, kind: str) -> list[dict]:
        return [fault for fault in self.faults.get(name, []) if fault["kind"] == kind]

    def token(self, seconds: float) -> str:
        token = secrets.token_hex(8)
        self.tokens[token] = time.time() + seconds
        return token


LINK_FAULTS = {"api_status", "expired"}
DATA_FAULTS = {"drop", "hang", "truncate", "flip", "trickle", "longer", "length", "no_range", "html", "status"}
LISTING_FAULTS = {"api_status", "html", "text"}
STANDING_FAULTS = {"no_hashes", "listed", "page_loop"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, state: State, port_name: str, *rest: object) -> None:
        self.state, self.port_name = state, port_name
        super().__init__(*rest)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.state.lock:
            if self.path == "/_faults":
                self.state.faults = json.loads(body)
            else:
                self.state.log.clear()
        self.reply(200, b"{}", "application/json")

    def answer(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/_log":
            with self.state.lock:
                self.state.lock.wait_for(lambda: self.state.under_way == 0, timeout=10)
                self.reply(200, json.dumps(self.state.log).encode(), "application/json")
            return
        self.entry = {
            "port": self.port_name,
            "method": self.command,
            "path": self.path,
            "name": Path(unquote(url.path)).name,
            "range": self.headers.get("Range"),
            "status": 0,
            "sent": 0,
            "fault": None,
        }
        with self.state.lock:
            self.state.under_way += 1
        try:
            self.route(url.path, parse_qs(url.query))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.state.lock:
                self.state.log.append(self.entry)
                self.state.under_way -= 1
                self.state.lock.notify_all()

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if self.port_name == "api" and parts[:2] == ["v2", "nodes"] and parts[3:5] == ["files", "osfstorage"]:
            self.listing(parts[2], parts[5:], int(query.get("page", ["1"])[0]))
        elif self.port_name == "api" and parts[0] in ("download", "releases") and "token" not in query:
            self.link(path)
        elif parts[0] in ("download", "releases") and "token" in query:
            self.data(self.file(parts), query["token"][0])
        else:
            self.reply(404, b'{"errors": [{"detail": "Not found."}]}', "application/vnd.api+json")

    def file(self, parts: list[str]) -> Path | None:
        root = self.state.releases if parts[0] == "releases" else self.state.nodes.get(parts[1])
        path = root and root.joinpath(*parts[1 if parts[0] == "releases" else 2 :])
        return path if path and path.is_file() else None

    def listing(self, node: str, inside: list[str], page: int) -> None:
        self.entry["name"] = node
        fault = self.take(node, LISTING_FAULTS)
        if fault.get("kind") == "api_status":
            self.status(fault)
        elif fault.get("kind") == "html":
            self.reply(200, PAGE, "text/html; charset=utf-8")
        elif fault.get("kind") == "text":
            self.reply(200, fault["body"].encode(), "application/vnd.api+json")
        elif (root := self.state.nodes.get(node)) is None or not (folder := root.joinpath(*inside)).is_dir():
            self.reply(404, b'{"errors": [{"detail": "Not found."}]}', "application/vnd.api+json")
        else:
            items, size = sorted(folder.iterdir()), self.state.per_page
            here = f"http://{HOST}:{self.server.server_port}" + quote(urlsplit(self.path).path)
            following = f"{here}?page={page + 1}" if page * size < len(items) else None
            if self.state.standing(node, "page_loop"):
                following = f"{here}?page={page}"
            body = {
                "data": [self.item(node, root, path) for path in items[(page - 1) * size : page * size]],
                "links": {"first": None, "last": None, "prev": None, "next": following},
                "meta": {"total": len(items), "per_page": size, "version": "2.0"},
            }
            self.reply(200, json.dumps(body).encode(), "application/vnd.api+json; charset=utf-8")

    def item(self, node: str, root: Path, path: Path) -> dict:
        first, inside = f"http://{HOST}:{self.server.server_port}", quote(str(path.relative_to(root)))
        attributes = {
            "name": path.name,
            "kind": "folder" if path.is_dir() else "file",
            "size": None if path.is_dir() else path.stat().st_size,
            "path": f"/{hashlib.md5(inside.encode()).hexdigest()[:24]}",
            "materialized_path": f"/{path.relative_to(root)}" + "/" * path.is_dir(),
            "date_modified": "2022-05-10T12:00:00.000000Z",
            "extra": {"hashes": {"md5": None, "sha256": None}, "downloads": 1},
        }
        if path.is_file() and not self.state.standing(node, "no_hashes"):
            attributes["extra"]["hashes"] = hashes(path, path.stat().st_mtime_ns)
        for fault in self.state.standing(node, "listed"):
            if fault["name"] == path.name:
                attributes.update(fault["attributes"])
        links: dict[str, object] = {"self": f"{first}/v2/files/{path.name}/", "delete": None, "upload": None}
        relationships = {}
        if path.is_dir():
            content = f"{first}/v2/nodes/{node}/files/osfstorage/{inside}/"
            relationships["files"] = {"links": {"related": {"href": content, "meta": {}}}}
        else:
            links["download"] = f"{first}/download/{node}/{inside}"
        return {"id": attributes["path"][1:], "type": "files", "attributes": attributes} | {
            "links": links,
            "relationships": relationships,
        }

    def link(self, path: str) -> None:
        fault = self.take(self.entry["name"], LINK_FAULTS)
        if fault.get("kind") == "api_status":
            self.status(fault)
        elif self.file([unquote(part) for part in path.strip("/").split("/")]) is None:
            self.reply(404, PAGE, "text/html")
        else:
            token = self.state.token(-1 if fault else 60)
            first = f"http://{HOST}:{self.server.server_port}"
            where = f"{first}{path}?direct&" if self.state.direct else f"{self.state.storage}{path}?"
            self.reply(302, b"", "text/html", {"Location": f"{where}token={token}"})

    def data(self, path: Path | None, token: str) -> None:
        if self.state.tokens.get(token, 0) < time.time():
            self.reply(403, b"<Error><Code>ExpiredToken</Code></Error>", "application/xml")
            return
        if path is None:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            return
        fault = self.take(path.name, DATA_FAULTS)
        kind = fault.get("kind")
        if kind == "status":
            self.status(fault)
        elif kind == "html":
            self.reply(200, PAGE, "application/octet-stream" if fault.get("disguised") else "text/html; charset=utf-8")
        else:
            self.bytes_of(path, fault)

    def bytes_of(self, path: Path, fault: dict) -> None:
        kind, size = fault.get("kind"), path.stat().st_size
        body = path.read_bytes()
        if kind == "flip":
            at = fault["at"]
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        elif kind == "longer":
            body += bytes(fault["by"])
        asked = self.headers.get("Range") if kind != "no_range" else None
        start, status, headers = 0, 200, {}
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            if start >= size:
                self.reply(416, b"", "text/plain", {"Content-Range": f"bytes */{size}"})
                return
            body = body[start : int(last) + 1 if last else None]
            status, headers = 206, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}"}
        cut = max(0, fault["at"] - start) if kind in ("drop", "hang", "truncate") else len(body)
        if kind == "truncate":
            body = body[:cut]
        length = len(body) + (fault["by"] if kind == "length" else 0)
        self.start(status, length, "application/zip", headers | {"Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        body = body[: min(cut, length)]
        rate = fault.get("rate", 0)
        step = max(1, rate // 100) if rate else PIECE
        for at in range(0, len(body), step):
            self.entry["sent"] += self.connection.send(body[at : at + step])
            if rate:
                time.sleep(step / rate)
        if kind == "hang":
            select.select([self.connection], [], [], fault["seconds"])  # until the client goes
        if len(body) != length or kind == "hang":
            self.close_connection = True

    def take(self, name: str, kinds: set[str]) -> dict:
        fault = self.state.take(name, kinds)
        self.entry["fault"] = fault.get("kind")
        return fault

    def status(self, fault: dict) -> None:
        headers = {}
        if "retry_after" in fault:
            headers["Retry-After"] = fault["retry_after"]
        if "retry_date" in fault:
            headers["Retry-After"] = formatdate(time.time() + fault["retry_date"], usegmt=True)
        self.reply(fault["code"], b"no", "text/plain", headers)

    def reply(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.start(status, len(body), content_type, headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self, status: int, length: int, content_type: str, headers: Mapping[str, str]) -> None:
        if hasattr(self, "entry"):
            self.entry["status"] = status
        self.send_response(status)
        for name, value in (("Content-Type", content_type), ("Content-Length", str(length)), *headers.items()):
            self.send_header(name, value)
        self.end_headers()


@cache
def hashes(path: Path, _modified: int) -> dict[str, str]:
    data = path.read_bytes()
    return {"md5": hashlib.md5(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", action="append", default=[], help="NODE=FOLDER")
    parser.add_argument("--releases", type=Path)
    parser.add_argument("--per-page", type=int, default=3)
    parser.add_argument("--direct", action="store_true")
    options = parser.parse_args()
    nodes = {name: Path(folder) for name, folder in (node.split("=", 1) for node in options.node)}
    state = State(nodes, options.releases, options.per_page, options.direct)
    api = ThreadingHTTPServer((HOST, 0), partial(Handler, state, "api"))
    storage = ThreadingHTTPServer((HOST, 0), partial(Handler, state, "storage"))
    state.storage = f"http://{HOST}:{storage.server_port}"
    for server in (api, storage):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(api.server_port, flush=True)
    sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main()
