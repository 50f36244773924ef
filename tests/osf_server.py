"""A look-alike of OSF, Figshare, an S3 bucket, Hugging Face, their storage and DreamSim's releases, with faults.

    folders = {"anp5v": eeg_folder, "y63gw": images_folder}
    with serve(folders, releases_folder, articles={18470912: raw_folder}, bucket=bucket_folder, hub=hub) as server:
        server.api, server.figshare, server.bucket, server.hub, server.releases  # for params.yaml, section download
        server.set_faults({"sub-01.zip": [fault("drop", at=1000)]})
        server.log()                                         # one dict a request that has been answered
        server.sent()                                        # {file name: bytes of it that were sent}

It is a process of its own, on loopback. A folder is listed as the real server lists it (pages, hashes; OSF's folders).
`hub` holds <owner>/<repository>, in which a file .large holds the endings of the files that git LFS keeps. A download
link of OSF, Figshare or Hugging Face answers 302 to the storage, on another port, with a token that expires; a bucket's
file is data at once. A fault meets
the first `times` requests for that file (-1: all), then the next fault has its turn. Kinds, and what they take:
    drop (at)  hang (at, seconds)  truncate (at)  flip (at)  trickle (rate, in bytes a second)  longer (by)
    length (by: added to the true Content-Length)  no_range (at: and drops there)
    html (disguised: as application/octet-stream)
    status (code, retry_after: text, or retry_date: seconds from now)  at the data;  api_status: the same at the link
    expired: the link leads to a token of the past
for a listing, under the name of its node, article, "bucket" or "hub": api_status, html, text (body, encoding), and, as
long as they stand, no_hashes, listed (name, and what its attributes shall say: None leaves one out), page_loop, and of
Hugging Face next_page (address: what stands before the query of the link to the next page).
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
from xml.sax.saxutils import escape

HOST = "127.0.0.1"
PIECE = 2**16
PAGE = b"<!DOCTYPE html>\n<html><head><title>OSF</title></head><body>We are down for maintenance.</body></html>\n"


def fault(kind: str, times: int = 1, **details: object) -> dict[str, object]:
    return {"kind": kind, "times": times, **details}


@dataclass
class Server:
    """The face that tests use; each method asks the server's own process."""

    api: str
    figshare: str
    bucket: str
    hub: str
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
    osf_nodes: Mapping[str, Path],
    releases: Path | None = None,
    *,
    articles: Mapping[int, Path] | None = None,
    bucket: Path | None = None,
    hub: Path | None = None,
    per_page: int = 3,
    direct: bool = False,
) -> Iterator[Server]:
    """Serve these folders from a process of its own; with `direct` the link's 302 stays on the first port."""
    folders = {**osf_nodes, **(articles or {}), **({"releases": releases} if releases else {})}
    folders |= {"bucket": bucket} if bucket else {}
    folders |= {"hub": hub} if hub else {}
    command = [sys.executable, "-m", "tests.osf_server", f"--per-page={per_page}"]
    command += [f"--folder={name}={folder}" for name, folder in folders.items()] + [
        "--direct"
    ] * direct
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        first = f"http://{HOST}:{int(process.stdout.readline())}"
        yield Server(
            f"{first}/v2",
            f"{first}/figshare",
            f"{first}/bucket",
            f"{first}/mirrors/hub",
            f"{first}/releases",
            process,
        )
    finally:
        process.kill()
        process.communicate()


class State:
    """What the threads of the two ports share."""

    def __init__(self, folders: dict[str, Path], per_page: int, direct: bool) -> None:
        self.folders, self.per_page, self.direct = folders, per_page, direct
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

    def figshare_files(self) -> dict[int, tuple[str, Path]]:
        """The article and path of each file, by its number."""
        articles = {name: folder for name, folder in self.folders.items() if name.isdecimal()}
        files = [
            (name, path)
            for name in articles
            for path in sorted(articles[name].iterdir())
            if path.is_file()
        ]
        return dict(enumerate(files, 33244238))

    def token(self, seconds: float) -> str:
        token = secrets.token_hex(8)
        self.tokens[token] = time.time() + seconds
        return token


LINK_FAULTS = {"api_status", "expired"}
DATA_FAULTS = {
    "drop",
    "hang",
    "truncate",
    "flip",
    "trickle",
    "longer",
    "length",
    "no_range",
    "html",
    "status",
}
LISTING_FAULTS = {"api_status", "html", "text"}
STANDING_FAULTS = {"no_hashes", "listed", "page_loop", "next_page"}


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
        at_api, page = self.port_name == "api", int(query.get("page", ["1"])[0])
        if at_api and parts[:2] == ["v2", "nodes"] and parts[3:5] == ["files", "osfstorage"]:
            self.list_osf(parts[2], parts[5:], page)
        elif at_api and parts[:2] == ["figshare", "articles"] and parts[3:] == ["files"]:
            self.list_figshare(parts[2], page, int(query["page_size"][0]))
        elif at_api and parts == ["bucket"] and query.get("list-type") == ["2"]:
            self.list_bucket(query["prefix"][0], query.get("continuation-token", [""])[0])
        elif at_api and parts[0] == "bucket":
            if fault := self.take(self.entry["name"], {"api_status"}):
                self.status(fault)
            else:
                self.data(self.file(parts))
        elif at_api and parts[:4] == ["mirrors", "hub", "api", "datasets"]:
            self.list_hub(parts[4:6], parts[6:], query)
        elif at_api and parts[:3] == ["mirrors", "hub", "datasets"]:
            assert parts[5:7] == ["resolve", "main"]
            self.link(f"/download/hub/{quote('/'.join(parts[3:5] + parts[7:]))}")
        elif at_api and parts[:3] == ["figshare", "file", "download"]:
            article, file = self.state.figshare_files()[int(parts[3])]
            self.entry["name"] = file.name
            self.link(f"/download/{article}/{quote(file.name)}")
        elif at_api and parts[0] in ("download", "releases") and "token" not in query:
            self.link(path)
        elif "token" not in query:
            self.reply(404, PAGE, "text/html")
        elif self.state.tokens.get(query.get("token", [""])[0], 0) < time.time():
            self.reply(403, b"<Error><Code>ExpiredToken</Code></Error>", "application/xml")
        else:
            self.data(self.file(parts))

    def file(self, parts: list[str]) -> Path | None:
        """What /<folder>/... or /download/<folder>/... names."""
        folder, *inside = parts[parts[0] == "download" :]
        path = (
            self.state.folders[folder].joinpath(*inside) if folder in self.state.folders else None
        )
        return path if path and path.is_file() else None

    def fails(self, name: str, exists: bool, content_type: str) -> bool:
        """Whether a listing meets a fault, or is of nothing; that is answered then."""
        self.entry["name"] = name
        fault = self.take(name, LISTING_FAULTS)
        if fault.get("kind") == "api_status":
            self.status(fault)
        elif fault.get("kind") == "html":
            self.reply(200, PAGE, "text/html; charset=utf-8")
        elif fault.get("kind") == "text":
            self.reply(200, fault["body"].encode(fault["encoding"]), content_type)
        elif not exists:
            self.reply(404, b"Not found.", content_type)
        return bool(fault) or not exists

    def listed(self, name: str, file: Path, attributes: dict) -> dict:
        """A listing's attributes of a file, with what a fault says."""
        for fault in self.state.standing(name, "listed"):
            if fault["name"] == file.name:
                attributes = attributes | fault["attributes"]
        return {key: value for key, value in attributes.items() if value is not None}

    def list_figshare(self, article: str, page: int, page_size: int) -> None:
        files = [
            (number, file)
            for number, (owner, file) in self.state.figshare_files().items()
            if owner == article
        ]
        if self.fails(article, bool(files), "application/json"):
            return
        size = min(page_size, self.state.per_page)
        start = 0 if self.state.standing(article, "page_loop") else (page - 1) * size
        hidden = self.state.standing(article, "no_hashes")
        body = []
        for number, file in files[start : start + size]:
            md5 = "" if hidden else hashes(file, file.stat().st_mtime_ns)["md5"]
            item = {
                "id": number,
                "name": file.name,
                "size": file.stat().st_size,
                "is_link_only": False,
            }
            item |= {
                "download_url": "http://127.0.0.1:1/not to be used",
                "supplied_md5": md5,
                "computed_md5": md5,
            }
            body.append(self.listed(article, file, item | {"mimetype": "application/zip"}))
        self.reply(200, json.dumps(body).encode(), "application/json")

    def list_bucket(self, prefix: str, token: str) -> None:
        root = self.state.folders.get("bucket")
        if self.fails("bucket", root is not None, "application/xml"):
            return
        keys = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        start = int(token.removeprefix("token+/") or 0)
        end = start + self.state.per_page
        following = f"token+/{end}" if end < len(keys) else ""
        if self.state.standing("bucket", "page_loop"):
            following = token or "token+/0"
        text = f"<Name>bucket</Name><IsTruncated>{json.dumps(bool(following))}</IsTruncated>"
        text += f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
        for key in keys[start:end]:
            file = root / key
            md5 = hashes(file, file.stat().st_mtime_ns)["md5"] + "-2" * bool(
                self.state.standing("bucket", "no_hashes")
            )
            item = {"Key": key, "LastModified": "2022-05-10T12:00:00.000Z", "ETag": f'"{md5}"'}
            item = self.listed(
                "bucket", file, item | {"Size": file.stat().st_size, "StorageClass": "STANDARD"}
            )
            fields = (f"<{name}>{escape(str(value))}</{name}>" for name, value in item.items())
            text += f"<Contents>{''.join(fields)}</Contents>"
        start_tag = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n{start_tag}{text}</ListBucketResult>'
        self.reply(200, text.encode(), "application/xml")

    def list_hub(self, repository: list[str], rest: list[str], query: dict[str, list[str]]) -> None:
        root = self.state.folders["hub"].joinpath(*repository)
        is_tree = rest == ["tree", "main"] and query["recursive"] == ["true"]
        if self.fails("hub", is_tree and root.is_dir(), "application/json"):
            return
        files = [path for path in sorted(root.rglob("*")) if path.name != ".large"]
        large = (root / ".large").read_text().split()  # endings of the files that git LFS holds
        start = int(query.get("cursor", ["0"])[0])
        hidden = self.state.standing("hub", "no_hashes")
        body = []
        for path in files[start : start + self.state.per_page]:
            size, modified = path.stat().st_size, path.stat().st_mtime_ns
            name = str(path.relative_to(root))
            item = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            if path.is_file() and path.suffix in large and not hidden:
                lfs = {"oid": hashes(path, modified)["sha256"], "size": size, "pointerSize": 134}
                item = item | {"type": "file", "size": size, "lfs": lfs, "xetHash": "1" * 64}
            elif path.is_file():
                item |= {"type": "file", "size": size, "oid": hashes(path, modified)["git"]}
            body.append(self.listed("hub", path, item))

        here = f"http://{HOST}:{self.server.server_port}{urlsplit(self.path).path}"
        for fault in self.state.standing("hub", "next_page"):
            here = fault["address"]
        end = start + self.state.per_page
        if self.state.standing("hub", "page_loop"):
            end = start
        link = f'<{here}?expand=false&recursive=true&limit=1000&cursor={end}>; rel="next"'
        headers = {"Link": link} if end < len(files) else {}
        self.reply(200, json.dumps(body).encode(), "application/json; charset=utf-8", headers)

    def list_osf(self, node: str, inside: list[str], page: int) -> None:
        root = self.state.folders.get(node)
        folder = root.joinpath(*inside) if root else None
        if self.fails(node, folder is not None and folder.is_dir(), "application/vnd.api+json"):
            return
        items, size = sorted(folder.iterdir()), self.state.per_page
        here = f"http://{HOST}:{self.server.server_port}" + quote(urlsplit(self.path).path)
        following = f"{here}?page={page + 1}" if page * size < len(items) else None
        if self.state.standing(node, "page_loop"):
            following = f"{here}?page={page}"
        body = {
            "data": [
                self.item(node, root, path) for path in items[(page - 1) * size : page * size]
            ],
            "links": {"first": None, "last": None, "prev": None, "next": following},
            "meta": {"total": len(items), "per_page": size, "version": "2.0"},
        }
        self.reply(200, json.dumps(body).encode(), "application/vnd.api+json; charset=utf-8")

    def item(self, node: str, root: Path, path: Path) -> dict:
        first, inside = (
            f"http://{HOST}:{self.server.server_port}",
            quote(str(path.relative_to(root))),
        )
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
        attributes = self.listed(node, path, attributes)
        links: dict[str, object] = {
            "self": f"{first}/v2/files/{path.name}/",
            "delete": None,
            "upload": None,
        }
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
            where = (
                f"{first}{path}?direct&" if self.state.direct else f"{self.state.storage}{path}?"
            )
            self.reply(302, b"", "text/html", {"Location": f"{where}token={token}"})

    def data(self, path: Path | None) -> None:
        if path is None:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            return
        fault = self.take(path.name, DATA_FAULTS)
        kind = fault.get("kind")
        if kind == "status":
            self.status(fault)
        elif kind == "html":
            self.reply(
                200,
                PAGE,
                "application/octet-stream"
                if fault.get("disguised")
                else "text/html; charset=utf-8",
            )
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
            status, headers = (
                206,
                {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}"},
            )
        cuts = kind in ("drop", "hang", "truncate") or (kind == "no_range" and "at" in fault)
        cut = max(0, fault["at"] - start) if cuts else len(body)
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

    def reply(
        self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.start(status, len(body), content_type, headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(
        self, status: int, length: int, content_type: str, headers: Mapping[str, str]
    ) -> None:
        if hasattr(self, "entry"):
            self.entry["status"] = status
        self.send_response(status)
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(length)),
            *headers.items(),
        ):
            self.send_header(name, value)
        self.end_headers()


@cache
def hashes(path: Path, _modified: int) -> dict[str, str]:
    data = path.read_bytes()
    return {
        "md5": hashlib.md5(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "git": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        help="NODE=FOLDER, ARTICLE=, bucket=, hub=, releases=",
    )
    parser.add_argument("--per-page", type=int, default=3)
    parser.add_argument("--direct", action="store_true")
    options = parser.parse_args()
    folders = {
        name: Path(folder) for name, folder in (item.split("=", 1) for item in options.folder)
    }
    state = State(folders, options.per_page, options.direct)
    api = ThreadingHTTPServer((HOST, 0), partial(Handler, state, "api"))
    storage = ThreadingHTTPServer((HOST, 0), partial(Handler, state, "storage"))
    state.storage = f"http://{HOST}:{storage.server_port}"
    for server in (api, storage):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(api.server_port, flush=True)
    sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main()
