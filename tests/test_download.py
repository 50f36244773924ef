"""Downloads against a look-alike server with real faults, real kills and a real second process."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.known_files import KnownFile
from pipeline.datasets.sources import (
    ALLJOINED,
    THINGS_EEG2,
    THINGS_EEG2_RAW,
    THINGS_MEG,
    Bucket,
    PublishedFiles,
)
from pipeline.download.copies import open_copies
from pipeline.download.download import Addresses, UserFiles, fetch_dataset, fetch_file
from pipeline.download.remote import Remote
from pipeline.download.transfer import fetch
from pipeline.download.web import Patience
from pipeline.errors import InputError
from tests.osf_server import Server, fault, serve

QUICK = Patience(
    first_attempts=3,
    attempts=4,
    progress=20_000,
    backoff=0.02,
    longest=0.05,
    total=4,
    silence=5,
    slowest=100_000,
)
HASTY = replace(QUICK, silence=0.25)
SIZE = 400_000
CHECKPOINT = "dreamsim_synclr_vitb16_checkpoint.zip"
SYNCLR = f"v0.2.1-checkpoints/{CHECKPOINT}"
# Files of other contents than the published ones: nothing is known of them.
EEG2 = replace(THINGS_EEG2, known_files={})
MEG_FILES = replace(THINGS_MEG, known_files={})
# The same files by three kinds of servers.
KINDS = {
    "osf": EEG2,
    "figshare": replace(THINGS_EEG2_RAW, known_files={}),
    "bucket": replace(EEG2, eeg=Bucket("anp5v/")),
}
LISTED_AS = {"osf": "anp5v", "figshare": "18470912", "bucket": "bucket"}
CLIENT = """
import resource, sys
from pathlib import Path
from pipeline.datasets.sources import *
from pipeline.download.download import Addresses, fetch_dataset
from pipeline.errors import InputError
from pipeline.download.web import Patience
source, addresses, subjects, where, patience, largest_file = eval(sys.argv[1])
if largest_file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
places = [Path(where, name) for name in ("eeg", "images", "image_metadata.npy")]
try:
    fetch_dataset(source, addresses, subjects, *places, patience)
except InputError as error:
    sys.exit(f"InputError: {error}")
"""


def make_zip(path: Path, size: int) -> None:
    noise = random.Random(path.name).randbytes
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first", noise(size // 2))
        archive.writestr("second", noise(size // 2))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """anp5v with two pages and a folder, y63gw with one archive in a folder, MEG, and DreamSim's releases."""
    root = tmp_path_factory.mktemp("published")
    for number in range(1, 6):
        make_zip(root / f"anp5v/sub-{number:02}.zip", SIZE)
    (root / "anp5v/about").mkdir()
    (root / "anp5v/about/read me.txt").write_text("about")
    make_zip(root / "y63gw/training_images.zip", SIZE)
    make_zip(root / "y63gw/the test set/test_images.zip", SIZE // 4)
    (root / "y63gw/image_metadata.npy").write_bytes(b"\x93NUMPY" + random.Random(1).randbytes(1000))
    (root / "y63gw/LICENSE.txt").write_text("licence")
    make_zip(root / "two words+/sub-77.zip", SIZE // 4)
    for part in (
        "P1-epo",
        "P1-epo-1",
        "P1-epo-2",
        "P1-epo-3",
        "P2-epo",
        "P2-epo-1",
        "P2-epo-2",
        "P2-epo-3",
    ):
        path = root / f"ds004212/derivatives/preprocessed/preprocessed_{part}.fif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(part).randbytes(SIZE // 4))
    (root / "ds004212/derivatives/preprocessed/README").write_text("about")
    (root / "ds004212/sourcedata").mkdir()
    (root / "ds004212/sourcedata/sample_attributes_P1.csv").write_text("trial_type,image_path\n")
    make_zip(root / "releases/v0.2.1-checkpoints" / CHECKPOINT, SIZE)
    return root


def serve_all(published: Path, direct: bool = False) -> AbstractContextManager[Server]:
    nodes = {"anp5v": published / "anp5v", "y63gw": published / "y63gw"}
    articles = {18470912: published / "anp5v"}
    return serve(nodes, published / "releases", articles=articles, bucket=published, direct=direct)


@pytest.fixture(scope="module")
def shared_server(published: Path) -> Iterator[Server]:
    with serve_all(published) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.set_faults({})
    shared_server.log()
    shared_server.clear_log()
    return shared_server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def addresses(server: Server) -> Addresses:
    return Addresses(server.api, server.figshare, server.bucket, server.hub)


def get(
    server: Server,
    where: Path,
    subjects: list[str] | str = ("sub-01",),
    patience: Patience = QUICK,
    source: PublishedFiles = EEG2,
) -> None:
    chosen = subjects if subjects == "all" else list(subjects)
    places = (where / "eeg", where / "images", where / "image_metadata.npy")
    fetch_dataset(source, addresses(server), chosen, *places, patience)


def originals(published: Path) -> dict[str, Path]:
    return {path.name: path for path in published.rglob("*") if path.is_file()}


def check(
    published: Path, where: Path, subjects: list[str] | tuple[str, ...] = ("sub-01",)
) -> None:
    """Just the files that were asked for are in place, byte for byte."""
    expected = {f"eeg/{subject}.zip" for subject in subjects}
    expected |= {"images/training_images.zip", "images/test_images.zip", "image_metadata.npy"}
    got = {str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()}
    assert got == expected
    for name in got:
        assert (where / name).read_bytes() == originals(published)[Path(name).name].read_bytes(), (
            name
        )


def sizes(published: Path, *names: str) -> dict[str, int]:
    return {name: originals(published)[name].stat().st_size for name in names}


REST = ("training_images.zip", "test_images.zip", "image_metadata.npy")


def test_fetches_what_is_asked_for_and_nothing_twice(
    server: Server, published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    get(server, tmp_path / "a", ["sub-02", "sub-05"])
    check(published, tmp_path / "a", ["sub-02", "sub-05"])
    assert server.sent() == sizes(published, "sub-02.zip", "sub-05.zip", *REST)
    output = capfd.readouterr()
    assert "5 file(s), 0.001 GB" in output.out and "sub-05.zip" in output.out
    assert output.err == ""  # no progress bar into a pipe

    server.clear_log()
    get(server, tmp_path / "b", ["sub-02", "sub-05"])  # another clone
    check(published, tmp_path / "b", ["sub-02", "sub-05"])
    assert server.log() == []
    assert (
        os.stat(tmp_path / "a/eeg/sub-02.zip").st_ino
        == os.stat(tmp_path / "b/eeg/sub-02.zip").st_ino
    )

    get(server, tmp_path / "c", ["sub-02", "sub-03"])  # another list of subjects
    check(published, tmp_path / "c", ["sub-02", "sub-03"])
    assert server.sent() == sizes(published, "sub-03.zip")


def test_all_subjects_then_offline(published: Path, tmp_path: Path) -> None:
    everyone = [f"sub-{number:02}" for number in range(1, 6)]
    with serve_all(published, direct=True) as server:
        get(server, tmp_path / "a", "all")
        fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "weights", CHECKPOINT, patience=QUICK)
    check(published, tmp_path / "a", everyone)
    get(server, tmp_path / "b", "all")  # the server is gone
    check(published, tmp_path / "b", everyone)
    fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "again", CHECKPOINT, patience=QUICK)
    assert (tmp_path / "again" / CHECKPOINT).read_bytes() == originals(published)[
        CHECKPOINT
    ].read_bytes()
    with pytest.raises(InputError, match="no good connection to 127.0.0.1"):
        get(server, tmp_path / "c", ["sub-06"])


def relisted(name: str = "sub-01.zip", /, **attributes: object) -> dict[str, object]:
    return fault("listed", -1, name=name, attributes=attributes)


DROP = fault("drop", at=150_000)
FAULTS = {
    "connection dropped midway": ([DROP], 1),
    "dropped three times": ([fault("drop", at=at) for at in (1, 150_000, 399_000)], 1),
    "truncated body": ([fault("truncate", at=150_000)], 1),
    "one flipped byte": ([fault("flip", at=200_000)], 2),
    "flipped byte, no hashes": ([fault("flip", at=200_000)], 2),
    "no hashes": ([], 1),
    "429 with Retry-After in seconds": ([fault("status", code=429, retry_after="1")], 1),
    "503 with Retry-After as a date": ([fault("status", code=503, retry_date=2)], 1),
    "429 at the link": ([fault("api_status", code=429, retry_after="1")], 1),
    "202 and no data, as a firewall answers": ([fault("api_status", code=202)], 1),
    "429 whose Retry-After says nothing": ([fault("status", code=429, retry_after="soon")], 1),
    "burst of 5xx": ([fault("status", code=code) for code in (500, 502, 503)], 1),
    "expired link": ([fault("expired")], 1),
    "expired link after a drop": ([DROP, fault("expired")], 1),
    "HTML page instead of data": ([fault("html")], 1),
    "HTML page under another type, after a drop": ([DROP, fault("html", disguised=True)], 1),
    "slow trickle": ([fault("trickle", rate=60_000)], None),
    "silence": ([fault("hang", at=150_000, seconds=20)], 1),
    "Content-Length too large": ([fault("length", by=1000)], 1),
    "Content-Length too small": ([fault("length", by=-1000)], 1),
    "Range ignored after a drop": ([DROP, fault("no_range")], None),
    "a longer body": ([fault("longer", by=1000)], None),
}


def with_kinds(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each fault at each kind of server, but for what a bucket has not: links that expire."""
    no_link = [name for name in names if "expired" not in name]
    return [(kind, name) for kind in KINDS for name in (no_link if kind == "bucket" else names)]


@pytest.mark.parametrize(("kind", "name"), with_kinds(FAULTS))
def test_fault_that_passes(
    kind: str, name: str, server: Server, published: Path, tmp_path: Path
) -> None:
    faults, times_sent = FAULTS[name]
    hidden = [fault("no_hashes", times=-1)] if "no hashes" in name else []
    server.set_faults({"sub-01.zip": faults, LISTED_AS[kind]: hidden, "y63gw": hidden})
    start = time.monotonic()
    patience = HASTY if name in ("silence", "slow trickle") else QUICK
    get(server, tmp_path / "a", patience=patience, source=KINDS[kind])
    assert time.monotonic() - start > ("Retry-After in" in name or "Retry-After as" in name)
    check(published, tmp_path / "a")
    met = [request["fault"] for request in server.log() if request["fault"]]
    assert met == [item["kind"] for item in faults]
    if times_sent:
        assert (
            server.sent()["sub-01.zip"] == times_sent * sizes(published, "sub-01.zip")["sub-01.zip"]
        )
    server.clear_log()
    get(server, tmp_path / "b", source=KINDS[kind])
    check(published, tmp_path / "b")
    assert server.log() == []


LASTING = {
    "connection dropped at one place": (
        fault("drop", -1, at=150_000),
        "no good connection.*150000 of",
        150_000,
    ),
    "truncated body": (
        fault("truncate", -1, at=150_000),
        "stopped before the end.*150000 of",
        150_000,
    ),
    "one flipped byte": (fault("flip", -1, at=200_000), "expected (sha256|md5) .*, got .*", 0),
    "flipped byte, no hashes": (fault("flip", -1, at=200_000), "wrong CRC in its member", 0),
    "a longer body": (
        fault("longer", -1, by=1000),
        "the listing says that it has 400.* bytes, and 127.0.0.1 has a file of 401",
        0,
    ),
    "429, patience ends": (
        fault("status", -1, code=429, retry_after="3600"),
        "429 .*Retry-After 3600",
        0,
    ),
    "503 at the link": (fault("api_status", -1, code=503), "127.0.0.1 answered 503", 0),
    "403 at the link": (fault("api_status", -1, code=403), "answered 403.*check the address", 0),
    "links always expired": (fault("expired", -1), "403.*as for a link that has expired", 0),
    "HTML page instead of data": (fault("html", -1), "HTML page, not data", 0),
    "silence": (fault("hang", -1, at=150_000, seconds=20), "ReadTimeout", 150_000),
}


@pytest.mark.parametrize(("kind", "name"), with_kinds(LASTING))
def test_fault_that_lasts(
    kind: str, name: str, server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    lasting, message, kept = LASTING[name]
    hidden = [fault("no_hashes", times=-1)] if "no hashes" in name else []
    server.set_faults({"sub-01.zip": [lasting], LISTED_AS[kind]: hidden})
    with pytest.raises(InputError, match=f"(?s)^[^\n]*sub-01.zip: [^\n]*{message}[^\n]*$"):
        get(
            server,
            tmp_path / "a",
            ["sub-01", "sub-02"],
            HASTY if name == "silence" else QUICK,
            KINDS[kind],
        )
    assert not (tmp_path / "a/eeg/sub-01.zip").exists()
    assert sum(path.stat().st_size for path in cache.glob("*.part")) == kept
    server.set_faults({LISTED_AS[kind]: hidden})
    server.log()
    server.clear_log()
    get(server, tmp_path / "a", ["sub-01", "sub-02"], source=KINDS[kind])
    check(published, tmp_path / "a", ["sub-01", "sub-02"])
    assert server.sent() == {"sub-01.zip": sizes(published, "sub-01.zip")["sub-01.zip"] - kept}


MEG = [f"P1/preprocessed_P1-epo{part}.fif" for part in ("", "-1", "-2", "-3")]


@pytest.mark.parametrize("hidden", [[], [fault("no_hashes", -1)]], ids=["hashes", "no hashes"])
def test_a_listing_that_promises_more_bytes_than_the_file_has(
    hidden: list[dict[str, object]], server: Server, published: Path, tmp_path: Path
) -> None:
    """The file is fetched once; with the listing mended, or another file of the same listing, not again."""
    size = sizes(published, "sub-01.zip")["sub-01.zip"]
    server.set_faults({"anp5v": [*hidden, relisted(size=size + 1000)]})
    told = (
        f"the listing says that it has {size + 1000} bytes, "
        f"and 127.0.0.1 has a file of {size}; {size} bytes are kept"
    )
    with pytest.raises(InputError, match=f"^sub-01.zip: {told}"):
        get(server, tmp_path / "a")
    assert server.sent()["sub-01.zip"] == size
    server.clear_log()
    with pytest.raises(InputError, match=f"^sub-01.zip: {told}"):
        get(server, tmp_path / "a")
    assert server.sent().get("sub-01.zip", 0) == 0
    places = (tmp_path / "b/eeg", tmp_path / "b/images", tmp_path / "b/image_metadata.npy")
    (tmp_path / "own").mkdir()
    for file in ("sub-01.zip", *REST):
        shutil.copy(originals(published)[file], tmp_path / "own")
    brought = UserFiles(open_copies(str(tmp_path / "own")))
    fetch_dataset(
        EEG2, addresses(server), ["sub-01"], *places, QUICK, brought
    )  # a folder in which all files lie
    check(published, tmp_path / "b")
    if not hidden:  # the hash says that it is the same file
        server.set_faults({})
        get(server, tmp_path / "a")
        check(published, tmp_path / "a")
        assert server.sent().get("sub-01.zip", 0) == 0


def test_a_server_that_drops_each_time_and_begins_anew(
    server: Server, published: Path, tmp_path: Path
) -> None:
    """Later and later: each try brings bytes."""
    server.set_faults(
        {"sub-01.zip": [fault("no_range", at=at) for at in range(50_000, 400_000, 30_000)]}
    )
    with pytest.raises(
        InputError,
        match="127.0.0.1 breaks off, and begins with the first byte each time.*4 restarts",
    ):
        get(server, tmp_path / "a")
    requests = [
        request
        for request in server.log()
        if request["name"] == "sub-01.zip" and request["port"] == "storage"
    ]
    assert len(requests) == 1 + 4 + 1
    (tmp_path / "own").mkdir()
    shutil.copy(originals(published)["sub-01.zip"], tmp_path / "own")  # what the sentence says
    places = (tmp_path / "a/eeg", tmp_path / "a/images", tmp_path / "a/image_metadata.npy")
    brought = UserFiles(open_copies(str(tmp_path / "own")))
    fetch_dataset(EEG2, addresses(server), ["sub-01"], *places, QUICK, brought)
    check(published, tmp_path / "a")


def test_a_mirror_or_the_file_helps_where_a_server_sends_another_one(
    server: Server, published: Path, tmp_path: Path
) -> None:
    server.set_faults({"sub-01.zip": [fault("flip", -1, at=200_000)]})
    with pytest.raises(
        InputError,
        match="twice not the published file: .* name a mirror, or put the file into a fol",
    ):
        get(server, tmp_path / "a")
    (tmp_path / "own").mkdir()
    shutil.copy(originals(published)["sub-01.zip"], tmp_path / "own")
    places = (tmp_path / "a/eeg", tmp_path / "a/images", tmp_path / "a/image_metadata.npy")
    brought = UserFiles(open_copies(str(tmp_path / "own")))
    fetch_dataset(EEG2, addresses(server), ["sub-01"], *places, QUICK, brought)
    check(published, tmp_path / "a")
    with serve_all(published) as mirror:
        get(mirror, tmp_path / "b")
    check(published, tmp_path / "b")


LISTINGS_THAT_LACK = {
    "no size": ("osf", {"size": None}, "has no size"),
    "a link to elsewhere": ("figshare", {"is_link_only": True}, "a link to elsewhere"),
    "no such subject": ("osf", {"name": "other.zip"}, "no subject sub-01; there are sub-02"),
    "no metadata": (
        "osf",
        {"name": "other.npy"},
        "expected one file image_metadata.npy, got 0 by that name; it lists",
    ),
}


@pytest.mark.parametrize("name", LISTINGS_THAT_LACK)
def test_what_a_listing_lacks_is_brought_as_told(
    name: str, server: Server, published: Path, tmp_path: Path
) -> None:
    kind, attributes, message = LISTINGS_THAT_LACK[name]
    lacks = "image_metadata.npy" if name == "no metadata" else "sub-01.zip"
    server.set_faults(
        {"y63gw" if name == "no metadata" else LISTED_AS[kind]: [relisted(lacks, **attributes)]}
    )
    remedy = (
        "choose of these"
        if name == "no such subject"
        else "name a mirror, or let download.own_copy name a folder"
    )
    with pytest.raises(InputError, match=f"{message}.*{remedy}"):
        get(server, tmp_path / "a", source=KINDS[kind])
    (tmp_path / "own").mkdir()
    for file in ("sub-01.zip", *REST):
        shutil.copy(originals(published)[file], tmp_path / "own")
    places = (tmp_path / "a/eeg", tmp_path / "a/images", tmp_path / "a/image_metadata.npy")
    brought = UserFiles(open_copies(str(tmp_path / "own")))
    fetch_dataset(KINDS[kind], addresses(server), ["sub-01"], *places, QUICK, brought)
    check(published, tmp_path / "a")


def known_meg(published: Path) -> dict[str, KnownFile]:
    whole = {name: originals(published)[name].read_bytes() for name in map(os.path.basename, MEG)}
    return {
        name: KnownFile(len(content), hashlib.sha256(content).hexdigest())
        for name, content in whole.items()
    }


def test_a_known_hash_checks_what_no_server_hashes(
    server: Server, published: Path, tmp_path: Path
) -> None:
    """One flipped bit in a file that was stored in parts."""
    name = "preprocessed_P1-epo-2.fif"
    source = replace(MEG_FILES, known_files=known_meg(published))
    server.set_faults({"bucket": [fault("no_hashes", -1)], name: [fault("flip", at=60_000)]})
    get(server, tmp_path / "a", ["P1"], source=source)
    assert (tmp_path / "a/eeg/P1" / name).read_bytes() == originals(published)[name].read_bytes()
    assert server.sent()[name] == 2 * SIZE // 4


def test_a_file_that_was_published_anew_needs_a_key(
    server: Server, published: Path, tmp_path: Path
) -> None:
    """The same twice is no damage; it is kept, and taken when the user says so, without another download."""
    name = "preprocessed_P1-epo-2.fif"
    source = replace(MEG_FILES, known_files=known_meg(published))
    server.set_faults({"bucket": [fault("no_hashes", -1)], name: [fault("flip", 2, at=60_000)]})
    refused = (
        f"^{name}: is not the file that was published .*expected sha256 .*, "
        "set download.accept_new_versions to true"
    )
    with pytest.raises(InputError, match=refused):
        get(server, tmp_path / "a", ["P1"], source=source)
    server.clear_log()
    with pytest.raises(InputError, match=refused):
        get(server, tmp_path / "a", ["P1"], source=source)
    places = (tmp_path / "a/eeg", tmp_path / "a/images", tmp_path / "a/image_metadata.npy")
    fetch_dataset(
        source, addresses(server), ["P1"], *places, QUICK, UserFiles(accept_new_versions=True)
    )
    assert (tmp_path / "a/eeg/P1" / name).read_bytes()[60_000] == originals(published)[
        name
    ].read_bytes()[60_000] ^ 1
    assert server.sent() == {}


def test_two_downloads_that_differ_are_damage_and_no_new_version(
    server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    name = "preprocessed_P1-epo-2.fif"
    source = replace(MEG_FILES, known_files=known_meg(published))
    flips = [fault("flip", at=60_000), fault("flip", at=70_000)]
    server.set_faults({"bucket": [fault("no_hashes", -1)], name: flips})
    with pytest.raises(InputError, match=f"^{name}: what came from .* twice not the published"):
        get(server, tmp_path / "a", ["P1"], source=source)
    assert not list(cache.glob(f"*{name}*.part")) and not (tmp_path / "a/eeg/P1" / name).exists()

    get(server, tmp_path / "a", ["P1"], source=source)
    assert (tmp_path / "a/eeg/P1" / name).read_bytes() == originals(published)[name].read_bytes()


def test_a_size_that_is_not_the_known_one_is_told_before_the_download(
    server: Server, published: Path, tmp_path: Path
) -> None:
    server.set_faults({"anp5v": [fault("no_hashes", -1)]})
    source = replace(EEG2, known_files={"sub-01.zip": KnownFile(7, "0" * 64)})
    with pytest.raises(
        InputError, match="^sub-01.zip: is not the file .*expected 7 bytes, got 400"
    ):
        get(server, tmp_path / "a", source=source)
    assert server.sent() == {}
    places = (tmp_path / "a/eeg", tmp_path / "a/images", tmp_path / "a/image_metadata.npy")
    fetch_dataset(
        source, addresses(server), ["sub-01"], *places, QUICK, UserFiles(accept_new_versions=True)
    )
    check(published, tmp_path / "a")


def test_the_known_files_are_those_of_the_sources() -> None:
    """Each has a name that its source wants; sizes and hashes were published, so that a slip of a digit shows here."""
    sources = ((THINGS_EEG2, 13), (THINGS_EEG2_RAW, 3), (ALLJOINED, 3), (THINGS_MEG, 17))
    for source, n_files in sources:
        assert len(source.known_files) == n_files
        named = {source.metadata_file, *source.image_files}
        subjects = {
            match[1]
            for name in source.known_files
            if (match := re.fullmatch(source.subject_file, name))
        }
        assert subjects in (set(source.subjects), set())
        assert all(
            name in named or re.fullmatch(source.subject_file, name) for name in source.known_files
        )
        assert all(
            re.fullmatch("[0-9a-f]{64}", file.sha256) for file in source.known_files.values()
        )
        assert len({file.sha256 for file in source.known_files.values()}) == n_files


def test_slow_but_steady_is_left_alone(server: Server, published: Path, tmp_path: Path) -> None:
    """It takes twice the silence that is borne."""
    server.set_faults({"sub-01.zip": [fault("trickle", rate=200_000)]})
    get(server, tmp_path / "a", patience=replace(QUICK, silence=1))
    check(published, tmp_path / "a")
    assert (
        sum(
            request["port"] == "storage" and request["name"] == "sub-01.zip"
            for request in server.log()
        )
        == 1
    )


def test_many_drops_that_bring_bytes_are_no_reason_to_give_up(
    server: Server, published: Path, tmp_path: Path
) -> None:
    server.set_faults(
        {"sub-01.zip": [fault("drop", at=at) for at in range(40_000, 400_000, 40_000)]}
    )
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    assert server.sent()["sub-01.zip"] == sizes(published, "sub-01.zip")["sub-01.zip"]


def client(
    server: Server,
    where: Path,
    subjects: list[str],
    patience: Patience = QUICK,
    largest_file: int = 0,
    source: PublishedFiles = EEG2,
) -> subprocess.Popen[str]:
    arguments = repr((source, addresses(server), subjects, str(where), patience, largest_file))
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def cached(cache: Path) -> int:
    """Bytes of data in the cache; a file that gets its final name while they are counted is looked for again."""
    while True:
        try:
            return sum(
                path.stat().st_size
                for path in cache.glob("[!.]*")
                if path.suffix not in (".json", ".lock")
            )
        except FileNotFoundError:
            continue


SUBJECTS = ["sub-01", "sub-02", "sub-03"]


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        pytest.param("osf", 0, marks=pytest.mark.long),
        pytest.param("osf", 50_000, marks=pytest.mark.long),
        ("osf", 1_100_000),
        pytest.param("osf", 1_500_000, marks=pytest.mark.long),
        ("figshare", 600_000),
        ("bucket", 600_000),
    ],
)
def test_killed_midway_only_the_rest_is_fetched(
    kind: str, point: int, server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    names = [f"{subject}.zip" for subject in SUBJECTS] + list(REST)
    server.set_faults({name: [fault("trickle", -1, rate=1_000_000)] for name in names})
    process = client(server, tmp_path / "a", SUBJECTS, source=KINDS[kind])
    wait_until(lambda: cache.exists() and cached(cache) >= point)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == originals(published)[path.name].read_bytes()
    kept = cached(cache)
    assert point <= kept < sum(sizes(published, *names).values())
    server.set_faults({})
    server.log()
    server.clear_log()
    get(server, tmp_path / "a", SUBJECTS, source=KINDS[kind])
    check(published, tmp_path / "a", SUBJECTS)
    assert sum(server.sent().values()) == sum(sizes(published, *names).values()) - kept


def test_interrupted_while_the_server_is_silent(
    server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    silent = fault("hang", -1, at=150_000, seconds=20)
    server.set_faults({"sub-01.zip": [silent], "training_images.zip": [silent]})
    process = client(server, tmp_path / "a", ["sub-01"], replace(QUICK, silence=60))
    wait_until(
        lambda: cache.exists() and len(list(cache.glob("*.part"))) == 2 and cached(cache) > 400_000
    )
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate()
    assert process.returncode != 0 and time.monotonic() - start < 15
    kept = cached(cache)
    server.set_faults({})
    server.log()
    server.clear_log()
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    assert sum(server.sent().values()) == sum(sizes(published, "sub-01.zip", *REST).values()) - kept


def test_killed_between_the_last_byte_and_the_name(
    server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    get(server, tmp_path / "a")
    for entry in [path for path in cache.iterdir() if path.suffix == ""]:
        entry.rename(f"{entry}.part")
    server.clear_log()
    get(server, tmp_path / "b")
    check(published, tmp_path / "b")
    assert server.sent() == {}


def test_two_runs_at_once_fetch_each_file_once(
    server: Server, published: Path, tmp_path: Path
) -> None:
    names = [f"{subject}.zip" for subject in SUBJECTS] + list(REST)
    server.set_faults({name: [fault("trickle", -1, rate=1_000_000)] for name in names})
    processes = [client(server, tmp_path / where, SUBJECTS) for where in ("a", "b")]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert any("another run is fetching it" in error for _, error in outputs)
    for where in ("a", "b"):
        check(published, tmp_path / where, SUBJECTS)
    assert server.sent() == sizes(published, *names)


def test_a_file_that_cannot_grow_is_kept_and_finished_later(
    server: Server, published: Path, tmp_path: Path
) -> None:
    process = client(server, tmp_path / "a", ["sub-01"], largest_file=250_000)
    error = process.communicate()[1]
    assert process.returncode == 1 and error.count("InputError") == 1, error
    assert "File too large" in error and "250000 of 400" in error
    assert "Traceback" not in error
    server.clear_log()
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    expected = {
        name: size - 250_000
        for name, size in sizes(published, "sub-01.zip", "training_images.zip").items()
    }
    assert server.sent() == expected


def test_what_is_missing_is_said_and_must_fit(
    server: Server, published: Path, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    get(server, tmp_path / "a", source=KINDS["figshare"])
    server.log()
    server.clear_log()
    server.set_faults(
        {"18470912": [relisted(f"sub-0{number}.zip", size=10**16) for number in range(2, 6)]}
    )
    started = (
        cache
        / f"md5-{hashlib.md5(originals(published)['sub-02.zip'].read_bytes()).hexdigest()}.part"
    )
    started.touch()
    os.truncate(started, 10**10)  # takes no room
    with pytest.raises(
        InputError, match=r"cache: the files need 39999990.000 GB more and only .* GB are free"
    ):
        get(server, tmp_path / "b", "all", source=KINDS["figshare"])
    said = r"4 file\(s\), 40000000.000 GB, 10.000 GB of it came earlier; 4 more are there whole; [0-9.]+ GB are free"
    assert re.search(said, capfd.readouterr().out)
    assert server.sent() == {}
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_is_noticed(
    damage: str, server: Server, published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.set_faults({node: [fault("no_hashes", -1)] for node in ("anp5v", "y63gw")})
    get(server, tmp_path / "a")
    # A hard link into the cache, as DVC holds one, read-only
    metadata = tmp_path / "a/image_metadata.npy"
    data = metadata.read_bytes()
    metadata.write_bytes(
        {"flip": data[:50] + b"\x00\x01" + data[52:], "cut": data[:50], "empty": b""}[damage]
    )
    for path in (tmp_path / "a").rglob("*.*"):
        path.chmod(0o444)
    server.clear_log()
    get(server, tmp_path / "b")
    check(published, tmp_path / "b")
    assert server.sent() == sizes(published, "image_metadata.npy")
    assert "the copy in the cache is damaged (expected" in capfd.readouterr().err


def test_damaged_partial_and_lost_records(
    server: Server, published: Path, tmp_path: Path, cache: Path
) -> None:
    server.set_faults({"sub-01.zip": [fault("drop", -1, at=150_000)]})
    with pytest.raises(InputError):
        get(server, tmp_path / "a")
    (part,) = cache.glob("*.part")
    part.write_bytes(bytes(150_000))
    for record in cache.glob("*.json"):
        record.write_text("{")
    server.set_faults({})
    server.log()
    server.clear_log()
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    size = sizes(published, "sub-01.zip")["sub-01.zip"]
    assert server.sent() == {"sub-01.zip": size - 150_000 + size}


@pytest.fixture
def other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        monkeypatch.setenv("ALIGNED_EEG_CACHE", name)
        yield Path(name)


def test_copies_where_hard_links_cannot_be(
    server: Server, published: Path, tmp_path: Path, other_disk: Path
) -> None:
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    assert os.stat(tmp_path / "a/eeg/sub-01.zip").st_nlink == 1


def test_room_for_copies_is_counted_for_the_whole_disk(tmp_path: Path, other_disk: Path) -> None:
    size = int(shutil.disk_usage(tmp_path).free * 0.6)
    wanted = {}
    for name in ("eeg", "images"):
        (other_disk / name).touch()
        os.truncate(other_disk / name, size)  # takes no room
        (tmp_path / name).mkdir()
        wanted[tmp_path / name / "a.zip"] = Remote("a.zip", "http://127.0.0.1:1/", size, name)
    with pytest.raises(InputError, match=f"need {2 * size / 1e9:.3f} GB more and only"):
        fetch(wanted, QUICK)


XML = '<?xml version="1.0"?>'
BOMB = f'{XML}<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><ListBucketResult>&b;</ListBucketResult>'
READS = f'{XML}<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><ListBucketResult>&a;</ListBucketResult>'
CUT = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"


def answer(body: str, encoding: str = "utf-8") -> dict[str, object]:
    return fault("text", -1, body=body, encoding=encoding)


LISTINGS = {
    ("osf", "an HTML page"): (fault("html", -1), "HTML page"),
    ("osf", "no JSON"): (
        answer("{"),
        "expected the file listing of OSF node anp5v, got .*Invalid JSON",
    ),
    ("osf", "other JSON"): (
        answer('{"data": [{"id": 1}]}'),
        "got something else .data.0.attributes.kind Field required",
    ),
    ("osf", "nothing"): (
        answer('{"data": [], "links": {"next": null}}'),
        "no subject sub-01; there are none",
    ),
    ("osf", "5xx"): (fault("api_status", -1, code=502), "answered 502"),
    ("osf", "404"): (fault("api_status", -1, code=404), "answered 404"),
    ("osf", "no size"): (relisted(size=None), "sub-01.zip has no size"),
    ("osf", "a strange hash"): (
        relisted(extra={"hashes": {"sha256": "../../x"}}),
        "sha256 String should match",
    ),
    ("osf", "two of a name"): (
        relisted("sub-02.zip", name="sub-01.zip"),
        "sub-01: expected 1 file such as .*got 2: ",
    ),
    ("figshare", "an HTML page"): (fault("html", -1), "HTML page"),
    ("figshare", "a firewall"): (fault("api_status", -1, code=202), "answered 202"),
    ("figshare", "404"): (fault("api_status", -1, code=404), "answered 404"),
    ("figshare", "no JSON"): (
        answer("[}"),
        "expected the file listing of Figshare article 18470912, .*Invalid JSON",
    ),
    ("figshare", "other JSON"): (
        answer('{"message": "gone"}'),
        "got something else .Input should be a valid array",
    ),
    ("figshare", "nothing"): (answer("[]"), "no subject sub-01; there are none"),
    ("figshare", "no size"): (relisted(size=None), "got something else .0.size Field required"),
    ("figshare", "a size below 0"): (relisted(size=-1), "0.size .*greater than or equal to 0"),
    ("figshare", "a strange hash"): (relisted(computed_md5="../x"), "0.computed_md5"),
    ("figshare", "a link to elsewhere"): (
        relisted(is_link_only=True),
        "sub-01.zip has no address .*a link to elsewhere",
    ),
    ("figshare", "two of a name"): (
        relisted("sub-02.zip", name="sub-01.zip"),
        "expected 1 file such as .*got 2: ",
    ),
    ("bucket", "an HTML page"): (fault("html", -1), "HTML page"),
    ("bucket", "403"): (fault("api_status", -1, code=403), "answered 403.*still public"),
    ("bucket", "no XML"): (
        answer("{}"),
        "expected the file listing of bucket folder anp5v/, got .*not well-formed",
    ),
    ("bucket", "cut XML"): (
        answer("<ListBucketResult><Contents>"),
        "got something else .no element found",
    ),
    ("bucket", "other XML"): (
        answer("<Error><Code>NoSuchBucket</Code></Error>"),
        "got something else .it begins with Error",
    ),
    ("bucket", "XML that grows, hidden"): (
        answer(BOMB, "utf-16"),
        "got something else .*can't decode",
    ),
    ("bucket", "XML that grows"): (answer(BOMB), "got something else .it declares something"),
    ("bucket", "XML that reads files"): (
        answer(READS),
        "got something else .it declares something",
    ),
    ("bucket", "cut off without a token"): (
        answer(CUT),
        "cut off and does not say where it goes on",
    ),
    ("bucket", "nothing"): (answer("<ListBucketResult/>"), "no subject sub-01; there are none"),
    ("bucket", "no key"): (relisted(Key=None), "Key Field required"),
    ("bucket", "no size"): (relisted(Size=None), "Size Field required"),
    ("bucket", "a size that is none"): (
        relisted(Size="many"),
        "Size Input should be a valid integer",
    ),
    ("bucket", "two of a name"): (
        relisted("sub-02.zip", Key="anp5v/more/sub-01.zip"),
        "expected 1 file .*got 2: ",
    ),
}


@pytest.mark.parametrize(("kind", "name"), LISTINGS)
def test_listing_that_is_none(kind: str, name: str, server: Server, tmp_path: Path) -> None:
    bad, message = LISTINGS[kind, name]
    server.set_faults({LISTED_AS[kind]: [bad]})
    with pytest.raises(InputError, match=f"(?s)^[^\n]*{message}[^\n]*$"):
        get(server, tmp_path / "a", source=KINDS[kind])
    assert server.sent() == {}
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_listing_faults_that_pass_and_a_page_that_names_itself(
    kind: str, server: Server, published: Path, tmp_path: Path
) -> None:
    passing = [
        fault("api_status", code=429, retry_after="0"),
        fault("html"),
        fault("api_status", code=503),
    ]
    server.set_faults({LISTED_AS[kind]: passing[:2], "y63gw": passing[2:]})
    get(server, tmp_path / "a", source=KINDS[kind])
    check(published, tmp_path / "a")
    server.set_faults({LISTED_AS[kind]: [fault("page_loop", -1)]})
    with pytest.raises(InputError, match="sub-05"):
        get(server, tmp_path / "a", ["sub-05"], source=KINDS[kind])


def test_meg_in_parts_each_subject_in_a_folder(
    server: Server, published: Path, tmp_path: Path
) -> None:
    get(server, tmp_path / "a", "all", source=MEG_FILES)
    names = [*MEG, *(name.replace("P1", "P2") for name in MEG)]
    assert sorted(
        str(path.relative_to(tmp_path / "a/eeg")) for path in (tmp_path / "a/eeg").rglob("*.*")
    ) == sorted(names)
    for name in names:
        assert (tmp_path / "a/eeg" / name).read_bytes() == originals(published)[
            Path(name).name
        ].read_bytes()
    assert (tmp_path / "a/image_metadata.npy").read_text() == "trial_type,image_path\n"
    assert not (tmp_path / "a/images").exists()
    server.clear_log()
    get(server, tmp_path / "b", ["P2"], source=MEG_FILES)
    assert server.log() == []


def test_meg_without_a_part(server: Server, tmp_path: Path) -> None:
    server.set_faults(
        {
            "bucket": [
                relisted("preprocessed_P2-epo-2.fif", Key="ds004212/derivatives/preprocessed/x.fif")
            ]
        }
    )
    with pytest.raises(
        InputError,
        match="P2: expected 4 files such as preprocessed_P2-epo-1.fif, each once, got 3: ",
    ):
        get(server, tmp_path / "a", "all", source=MEG_FILES)
    twice = "ds004212/derivatives/preprocessed/old/preprocessed_P2-epo.fif"
    server.set_faults({"bucket": [relisted("preprocessed_P2-epo-2.fif", Key=twice)]})
    with pytest.raises(InputError, match="P2: expected 4 files such as .*, each once, got 4: "):
        get(server, tmp_path / "a", "all", source=MEG_FILES)
    assert server.sent() == {}
    get(server, tmp_path / "a", ["P1"], source=MEG_FILES)
    assert len(list((tmp_path / "a/eeg/P1").iterdir())) == 4


def test_meg_that_was_stored_in_parts_has_no_hash(
    server: Server, published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "preprocessed_P1-epo.fif"
    drop = fault("drop", -1, at=50_000)
    server.set_faults({"bucket": [fault("no_hashes", -1)], name: [drop]})
    with pytest.raises(InputError, match=f"{name}: .*50000 of 100000"):
        get(server, tmp_path / "a", ["P1"], source=MEG_FILES)
    assert f"{name}  (no hash is published: checked by its size alone)" in capfd.readouterr().out
    server.clear_log()
    changed = relisted(
        name, ETag=f'"{"0" * 32}-2"'
    )  # another content of that size: what has come is no part of it
    server.set_faults({"bucket": [fault("no_hashes", -1), changed]})
    get(server, tmp_path / "a", ["P1"], source=MEG_FILES)
    assert server.sent() == {name: SIZE // 4}
    assert (tmp_path / "a/eeg" / MEG[0]).read_bytes() == originals(published)[name].read_bytes()


def test_a_key_with_signs_that_addresses_have_a_meaning_for(
    server: Server, published: Path, tmp_path: Path
) -> None:
    get(server, tmp_path / "a", ["sub-77"], source=replace(EEG2, eeg=Bucket("two words+/")))
    check(published, tmp_path / "a", ["sub-77"])


def test_only_an_md5(server: Server, published: Path, tmp_path: Path) -> None:
    wrong = {"extra": {"hashes": {"md5": "0" * 32, "sha256": None}}}
    server.set_faults({"anp5v": [fault("listed", -1, name="sub-01.zip", attributes=wrong)]})
    with pytest.raises(InputError, match=f"expected md5 {'0' * 32}, got "):
        get(server, tmp_path / "a")
    server.set_faults({})
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")


def test_subjects_that_are_not_there(server: Server, tmp_path: Path) -> None:
    message = "no subject sub-17, ../x; there are sub-01, sub-02, sub-03, sub-04, sub-05"
    with pytest.raises(InputError, match=message):
        get(server, tmp_path / "a", ["sub-01", "sub-17", "../x"])
    with pytest.raises(
        InputError, match="no subject sub-1; there are sub-01, .*; is it sub-01[?]$"
    ):
        get(server, tmp_path / "a", ["sub-1"])
    with pytest.raises(InputError, match="no subject was chosen"):
        get(server, tmp_path / "a", [])
    get(server, tmp_path / "a", ["sub-01"])  # "choose of these"


def test_addresses_and_folders_that_cannot_be(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for api in ("api.osf.io/v2", "ftp://127.0.0.1/v2", "http://[", "", "http://127.0.0.1:1/v2"):
        with pytest.raises(
            InputError, match="correct it under `download` in params.yaml|no good connection"
        ):
            get(replace(server, api=api), tmp_path / "a")
    (tmp_path / "file").write_text("")
    for folder in ("here", str(tmp_path / "file"), str(tmp_path / "file/below")):
        monkeypatch.setenv("ALIGNED_EEG_CACHE", folder)
        with pytest.raises(InputError, match="ALIGNED_EEG_CACHE"):
            get(server, tmp_path / "a")


def test_dreamsim(server: Server, published: Path, tmp_path: Path) -> None:
    whole = originals(published)[CHECKPOINT]
    server.set_faults(
        {CHECKPOINT: [fault("html"), fault("expired"), DROP, DROP, fault("flip", at=200_000)]}
    )
    fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "a", CHECKPOINT, patience=QUICK)
    assert (tmp_path / "a" / CHECKPOINT).read_bytes() == whole.read_bytes()
    server.clear_log()
    fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "b", CHECKPOINT, patience=QUICK)
    assert (tmp_path / "b" / CHECKPOINT).read_bytes() == whole.read_bytes()
    assert server.log() == []
    (tmp_path / "own").mkdir()
    shutil.copy(whole, tmp_path / "own/vgg.zip")
    with pytest.raises(InputError, match="answered 404.*check the address"):
        fetch_file(
            f"{server.releases}/v0.2.1-checkpoints/vgg.zip",
            tmp_path / "a",
            "vgg.zip",
            patience=QUICK,
        )
    brought = UserFiles(open_copies(str(tmp_path / "own")))  # as told
    fetch_file(
        f"{server.releases}/v0.2.1-checkpoints/vgg.zip",
        tmp_path / "a",
        "vgg.zip",
        None,
        QUICK,
        "",
        brought,
    )
    assert (tmp_path / "a/vgg.zip").read_bytes() == whole.read_bytes()


def test_the_first_digits_of_a_hash_are_enough(
    server: Server, published: Path, tmp_path: Path
) -> None:
    url = f"{server.releases}/{SYNCLR}"
    digits = hashlib.sha256(originals(published)[CHECKPOINT].read_bytes()).hexdigest()[:8]
    fetch_file(url, tmp_path / "a", "a.pt", digits, QUICK)
    assert (tmp_path / "a/a.pt").read_bytes() == originals(published)[CHECKPOINT].read_bytes()
    with pytest.raises(InputError, match="expected sha256 00000000, got"):
        fetch_file(url, tmp_path / "b", "b.pt", "00000000", QUICK)
    assert not (tmp_path / "b").exists()


def test_a_zip_by_another_name_is_checked_by_its_crcs(server: Server, tmp_path: Path) -> None:
    """As files of torch are."""
    server.set_faults({CHECKPOINT: [fault("flip", at=200_000)] * 4})
    with pytest.raises(InputError, match="wrong CRC in its member|cannot be read"):
        fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "a", "model.pth", patience=QUICK)


def test_dreamsim_resumes(server: Server, published: Path, tmp_path: Path) -> None:
    size = originals(published)[CHECKPOINT].stat().st_size
    server.set_faults({CHECKPOINT: [fault("drop", -1, at=150_000)]})
    with pytest.raises(InputError, match=f"150000 of {size} bytes are kept"):
        fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "a", CHECKPOINT, patience=QUICK)
    server.set_faults({})
    server.log()
    server.clear_log()
    fetch_file(f"{server.releases}/{SYNCLR}", tmp_path / "a", CHECKPOINT, patience=QUICK)
    assert server.sent() == {CHECKPOINT: 64 + size - 150_000}
    assert (tmp_path / "a" / CHECKPOINT).read_bytes() == originals(published)[
        CHECKPOINT
    ].read_bytes()
