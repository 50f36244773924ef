"""Published files that the user brought along: used before any server is asked, checked, and never changed or lost."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.known_files import KnownFile
from pipeline.datasets.sources import THINGS_EEG2, THINGS_MEG, PublishedFiles
from pipeline.download.copies import find_copies, open_copies
from pipeline.download.download import Addresses, UserFiles, fetch_dataset, fetch_file
from pipeline.download.web import Patience
from pipeline.errors import InputError
from tests.osf_server import Server, serve
from tests.test_download import make_zip

QUICK = Patience(first_attempts=2, attempts=2, backoff=0.01, longest=0.02)
NOBODY = Addresses("http://127.0.0.1:9/v2", *["http://127.0.0.1:9"] * 3)
NAMES = ["sub-01.zip", "sub-02.zip", "training_images.zip", "test_images.zip", "image_metadata.npy"]
PLACES = (
    [f"eeg/{name}" for name in NAMES[:2]] + [f"images/{name}" for name in NAMES[2:4]] + ["metadata"]
)
# A dataset of two subjects, of whose files nothing is known.
SOURCE = replace(THINGS_EEG2, subjects=("sub-01", "sub-02"), known_files={})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """What a colleague brought, in folders of his own."""
    folder = tmp_path / "disk"
    for name in NAMES[:2]:
        make_zip(folder / "THINGS EEG/preprocessed" / name, 4000)
    for name in NAMES[2:4]:
        make_zip(folder / "images" / name, 3000)
    (folder / "images/image_metadata.npy").write_bytes(b"\x93NUMPY, the names")
    return folder


@pytest.fixture
def server(disk: Path, tmp_path: Path) -> Iterator[Server]:
    """The same files, published."""
    shutil.copytree(disk, tmp_path / "published")
    nodes = {"anp5v": tmp_path / "published/THINGS EEG", "y63gw": tmp_path / "published/images"}
    with serve(nodes) as server:
        yield server


def get(
    target: Path,
    own_copy: Path | None = None,
    addresses: Addresses = NOBODY,
    source: PublishedFiles = SOURCE,
    left_in: Path | None = None,
    accept: bool = False,
) -> None:
    brought = UserFiles(open_copies(str(own_copy) if own_copy else "none"), left_in, accept)
    places = (target / "eeg", target / "images", target / "metadata")
    fetch_dataset(source, addresses, "all", *places, QUICK, brought)


def at(server: Server) -> Addresses:
    return Addresses(server.api, server.figshare, server.bucket, server.hub)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(target: Path, disk: Path) -> None:
    """All of the dataset is in place, byte for byte."""
    assert sorted(
        str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()
    ) == sorted(PLACES)
    expected = contents(disk)
    for place, name in zip(PLACES, NAMES, strict=True):
        assert (target / place).read_bytes() == expected[name]


def known(disk: Path) -> dict[str, KnownFile]:
    return {
        name: KnownFile(len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents(disk).items()
    }


def test_without_a_network(disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    get(tmp_path / "a", disk)
    check(tmp_path / "a", disk)
    assert f"From {disk}: 5 file(s), 0.000 GB, 5 of them as links\n" in capfd.readouterr().out
    assert os.path.samefile(
        tmp_path / "a/eeg/sub-01.zip", disk / "THINGS EEG/preprocessed/sub-01.zip"
    )


def test_on_another_disk_they_are_copied(disk: Path, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        get(Path(other, "a"), disk)
        check(Path(other, "a"), disk)
    assert contents(disk).keys() == set(NAMES)


def test_behind_links_also_one_that_leads_back(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/images").symlink_to(disk / "images")
    (tmp_path / "links/eeg").symlink_to(disk / "THINGS EEG")
    (disk / "images/back").symlink_to(disk / "images")
    get(tmp_path / "a", tmp_path / "links")
    check(tmp_path / "a", disk)


def test_what_they_lack_is_fetched(disk: Path, server: Server, tmp_path: Path) -> None:
    (disk / "THINGS EEG/preprocessed/sub-02.zip").unlink()
    (disk / "images/test_images.zip").unlink()
    get(tmp_path / "a", disk, at(server))
    check(tmp_path / "a", tmp_path / "published")
    assert server.sent().keys() == {"sub-02.zip", "test_images.zip"}


def test_what_they_lack_without_a_network_is_told(disk: Path, tmp_path: Path) -> None:
    brought_later = (disk / "THINGS EEG/preprocessed/sub-02.zip").rename(tmp_path / "sub-02.zip")
    with pytest.raises(InputError) as told:
        get(tmp_path / "a", disk)
    holds = "image_metadata.npy, sub-01.zip, test_images.zip, training_images.zip"
    assert f"{disk} (download.own_copy) holds {holds}; of the rest: http://127.0.0.1:9/" in str(
        told.value
    )
    assert not (tmp_path / "a").exists()
    shutil.copy(brought_later, disk)  # what the sentence says: a folder in which all files lie
    get(tmp_path / "a", disk)
    check(tmp_path / "a", disk)


def test_one_that_is_damaged_is_named_and_stays(disk: Path, server: Server, tmp_path: Path) -> None:
    damaged = disk / "THINGS EEG/preprocessed/sub-02.zip"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        InputError,
        match=f"^{damaged}: is not the published file sub-02.zip: .*wrong CRC.*; copy it",
    ):
        get(tmp_path / "a", disk)
    assert damaged.read_bytes() == content and not (tmp_path / "a/eeg/sub-02.zip").exists()
    damaged.unlink()  # "or take it away to have it fetched"
    get(tmp_path / "a", disk, at(server))
    check(tmp_path / "a", tmp_path / "published")


def test_one_that_is_not_the_known_file_needs_a_key(disk: Path, tmp_path: Path) -> None:
    source = replace(SOURCE, known_files=known(disk))
    get(tmp_path / "a", disk, source=source)
    for size in (4000, 5000):  # as long as the known one, and longer
        make_zip(tmp_path / "new.zip", size)
        (disk / "THINGS EEG/preprocessed/sub-01.zip").unlink()
        shutil.copy(tmp_path / "new.zip", disk / "THINGS EEG/preprocessed/sub-01.zip")
        with pytest.raises(
            InputError, match="sub-01.zip: is not the file that was published.*accept_new_versions"
        ):
            get(tmp_path / f"b{size}", disk, source=source)
        get(tmp_path / f"c{size}", disk, source=source, accept=True)
        check(tmp_path / f"c{size}", disk)


def test_two_of_a_name(disk: Path, server: Server, tmp_path: Path) -> None:
    """The raw and the prepared recordings of a subject are archives of the same name."""
    make_zip(disk / "raw/sub-01.zip", 9000)
    with pytest.raises(
        InputError, match=r"own_copy holds 2 files of the same name: .*; leave there only the one"
    ):
        get(tmp_path / "a", disk)
    get(
        tmp_path / "b",
        disk,
        source=replace(
            SOURCE, known_files={"sub-01.zip": known(disk / "THINGS EEG")["sub-01.zip"]}
        ),
    )
    get(tmp_path / "c", disk / "THINGS EEG", at(server))  # "or name its folder"
    assert "sub-01.zip" not in server.sent()
    (disk / "raw").rename(tmp_path / "raw")
    get(tmp_path / "a", disk)
    for target in ("a", "b", "c"):
        check(tmp_path / target, disk)


def test_files_left_where_nobody_asked_for_them(disk: Path, server: Server, tmp_path: Path) -> None:
    """In data/raw, say: noticed before anything is fetched, with both ways on."""
    before = contents(disk)
    with pytest.raises(InputError) as told:
        get(tmp_path / "a", addresses=at(server), left_in=disk)
    assert "and 4 more: a file of yours has the name of one that would be fetched" in str(
        told.value
    )
    assert f"-S download.own_copy={disk})" in str(told.value)
    assert server.sent() == {} and contents(disk) == before

    get(tmp_path / "a", disk, left_in=disk)  # to use them
    disk.rename(tmp_path / "elsewhere")
    get(tmp_path / "b", addresses=at(server), left_in=disk)  # to fetch them all the same
    for target in ("a", "b"):
        check(tmp_path / target, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(disk)
    get(tmp_path / "c", addresses=at(server), left_in=disk)  # all is in the cache


def test_metadata_comes_first_where_it_is_checked(
    disk: Path, server: Server, tmp_path: Path
) -> None:
    places = (tmp_path / "eeg", tmp_path / "images", tmp_path / "metadata")

    def refuse(metadata: Path) -> None:
        assert metadata.read_bytes() == contents(disk)["image_metadata.npy"]
        raise InputError("a picture is missing")

    with pytest.raises(InputError, match="a picture is missing"):
        fetch_dataset(SOURCE, at(server), "all", *places, QUICK, check_metadata=refuse)
    assert server.sent().keys() == {"image_metadata.npy"}
    fetch_dataset(SOURCE, at(server), "all", *places, QUICK, check_metadata=lambda _: None)
    assert (tmp_path / "eeg/sub-02.zip").exists()


def test_meg_in_parts(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for part in ("", "-1", "-2", "-3"):
        (disk / f"preprocessed_P1-epo{part}.fif").write_bytes(f"part{part}".encode())
    (disk / "sample_attributes_P1.csv").write_text("trial_type,image_path\n")
    get(tmp_path / "a", disk, source=replace(THINGS_MEG, subjects=("P1",), known_files={}))
    assert {path.name for path in (tmp_path / "a/eeg/P1").iterdir()} == {
        path.name for path in disk.glob("*.fif")
    }


def test_checkpoints_by_their_name_or_by_where_they_are_published(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/clip/visual/transform.npz"
    make_zip(tmp_path / "disk/gLocal/transforms/clip/visual/transform.npz", 2000)
    make_zip(tmp_path / "disk/gLocal/transforms/dino/visual/transform.npz", 3000)
    own = UserFiles(find_copies(tmp_path / "disk"))
    fetch_file(
        url, tmp_path / "a", "glocal_clip.npz", None, QUICK, "clip/visual/transform.npz", own
    )
    whole = (tmp_path / "disk/gLocal/transforms/clip/visual/transform.npz").read_bytes()
    assert (tmp_path / "a/glocal_clip.npz").read_bytes() == whole

    digest = hashlib.sha256(whole).hexdigest()
    shutil.copytree(tmp_path / "a", tmp_path / "other")
    fetch_file(
        url,
        tmp_path / "b",
        "glocal_clip.npz",
        digest,
        QUICK,
        "",
        UserFiles(find_copies(tmp_path / "other")),
    )
    with pytest.raises(
        InputError, match="glocal_clip.npz: is not the published file .*expected sha256 0000"
    ):
        fetch_file(
            url,
            tmp_path / "c",
            "glocal_clip.npz",
            "0000",
            QUICK,
            "",
            UserFiles(find_copies(tmp_path / "other")),
        )

    left = UserFiles(left_in=tmp_path / "other")
    with pytest.raises(
        InputError, match="a file of yours has the name of one that would be fetched"
    ):
        fetch_file(url, tmp_path / "d", "glocal_clip.npz", None, QUICK, "", left)


@pytest.mark.parametrize("setting", ["here", "/nowhere", __file__])
def test_no_folder(setting: str) -> None:
    with pytest.raises(
        InputError, match=f"download.own_copy is '{setting}': expected the full path of a folder"
    ):
        open_copies(setting)
