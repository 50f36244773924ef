"""Alljoined-1.6M from a look-alike of Hugging Face with faults, its images from one of OSF, and from a copy."""

import json
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.shown_images import check_shown_images
from pipeline.datasets.sources import ALLJOINED, PublishedFiles
from pipeline.datasets.things_eeg2 import read_metadata
from pipeline.download.copies import open_copies
from pipeline.download.download import Addresses, UserFiles, fetch_dataset
from pipeline.download.web import Patience
from pipeline.errors import InputError
from stages import download
from tests.osf_server import Server, fault, serve

TINY = Size(
    train_concepts=4,
    images_per_concept=2,
    test_concepts=3,
    train_repetitions=2,
    test_repetitions=2,
)
N_IMAGES = 11
QUICK = Patience(first_attempts=2, attempts=3, backoff=0.01, longest=0.02, total=2, silence=5)
REPOSITORY = "Alljoined/Alljoined-1.6M"
SUBJECTS = ("sub-01", "sub-08")
N_BLOCKS = 19
# Of three blocks a session, and of other images than the published ones
SOURCE = replace(
    ALLJOINED,
    files_of_subject=tuple(
        name
        for name in ALLJOINED.files_of_subject
        if name.endswith(("block_01.edf", "block_02.edf", "block_03.edf"))
    ),
    known_files={},
)


@dataclass(frozen=True)
class Published:
    """What the servers have."""

    osf: Path
    repository: Path
    n_blocks: int

    @property
    def hub(self) -> Path:
        return self.repository.parent.parent

    def edf(self, subject: str, session: int, block: int) -> Path:
        folder = self.repository / f"raw_eeg/{subject}/session_{session:02}/block_{block:02}"
        [path] = folder.glob("*.edf")
        return path


def write_edf(folder: Path, number: int) -> None:
    """A file with a name that tells nothing; what it holds is not read here."""
    folder.mkdir(parents=True)
    name = f"Subject 19 #{number}.edf"  # a sign that addresses have a meaning for
    (folder / name).write_bytes(random.Random(str(folder)).randbytes(400))


def publish(base: Path, subjects: tuple[str, ...], n_blocks: int) -> Published:
    """Recordings of these subjects, sub-08 with the session that was recorded again."""
    osf = base / "y63gw"
    make_raw([], base / "eeg", osf, osf / "image_metadata.npy", TINY)
    repository = base / "hub" / REPOSITORY
    for subject in subjects:
        for session in range(1, 5):
            for block in range(1, n_blocks + 1):
                folder = repository / f"raw_eeg/{subject}/session_{session:02}/block_{block:02}"
                write_edf(folder, block)
        (folder / "events.json").write_text("[]")
    write_edf(repository / "raw_eeg/sub-08/session_02 old/block_01", 1)

    write_stimuli(repository / "stimuli.zip", osf)
    (repository / "README.md").write_text("about")
    (repository / ".large").write_text(".edf .zip")
    return Published(osf, repository, n_blocks)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Two subjects, with few blocks."""
    return publish(tmp_path_factory.mktemp("published"), SUBJECTS, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A subject with all blocks."""
    return publish(tmp_path_factory.mktemp("whole"), ("sub-08",), N_BLOCKS)


def write_stimuli(path: Path, osf: Path, first_picture: bytes = b"", n_missing: int = 0) -> None:
    """The pictures by their numbers, and an oddball that no archive of OSF has."""
    tables = read_metadata(osf / "image_metadata.npy")
    image_ids = [*tables["train"]["image_ids"], *tables["test"]["image_ids"]]
    with zipfile.ZipFile(path, "w") as archive:
        for number, image_id in enumerate(image_ids[: N_IMAGES - n_missing]):
            with zipfile.ZipFile(osf / f"{image_id.split('/')[0]}.zip") as images:
                picture = images.read(image_id)
            archive.writestr(f"stimuli/{number:05}.jpg", first_picture or picture)
            first_picture = b""
        archive.writestr(f"stimuli/{N_IMAGES:05}.jpg", b"an oddball")
        archive.writestr("__MACOSX/stimuli/._00001.jpg", b"of macOS")


@pytest.fixture(scope="module")
def shared_server(published: Published) -> Iterator[Server]:
    with serve({"y63gw": published.osf}, hub=published.hub, per_page=30) as server:
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


def get(
    server: Server | None,
    target: Path,
    subjects: list[str] | str = ("sub-01",),
    own_copy: Path | None = None,
    source: PublishedFiles = SOURCE,
) -> None:
    nobody = "http://127.0.0.1:9"
    osf, hub = (server.api, server.hub) if server else (nobody, nobody)
    places = target / "eeg", target / "images", target / "metadata"
    fetch_dataset(
        source,
        Addresses(osf, nobody, nobody, hub),
        subjects if subjects == "all" else list(subjects),
        *places,
        QUICK,
        UserFiles(open_copies(str(own_copy)) if own_copy else None),
        check_shown_images=lambda shown: check_shown_images(
            shown, places[1], read_metadata(places[2])
        ),
    )


def check(published: Published, target: Path, subjects: tuple[str, ...] = ("sub-01",)) -> None:
    """Just the files of these subjects, under the names by which they are read, byte for byte."""
    for subject in subjects:
        for session in range(1, 5):
            for block in range(1, published.n_blocks + 1):
                path = target / f"eeg/{subject}/session_{session:02}_block_{block:02}.edf"
                expected = published.edf(subject, session, block)
                assert path.read_bytes() == expected.read_bytes()
    files = [path for path in (target / "eeg").rglob("*") if path.is_file()]
    assert len(files) == 4 * published.n_blocks * len(subjects)
    images = sorted(path.name for path in (target / "images").iterdir())
    assert images == ["test_images.zip", "training_images.zip"]


def test_by_folders_and_nothing_twice(
    server: Server, published: Published, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    get(server, tmp_path / "a", "all")
    check(published, tmp_path / "a", SUBJECTS)
    pages = [entry for entry in server.log() if "/tree/main" in entry["path"]]
    assert len(pages) == 3  # 71 files and folders
    output = capfd.readouterr()
    assert "  0.000 GB  sub-01/session_01_block_02.edf\n" in output.out
    assert "  0.000 GB  in 4 more files\n" in output.out and output.err == ""

    server.clear_log()
    get(server, tmp_path / "b", "all")
    check(published, tmp_path / "b", SUBJECTS)
    assert server.log() == []


def test_again_without_a_network(published: Published, tmp_path: Path) -> None:
    with serve({"y63gw": published.osf}, hub=published.hub, per_page=1000) as server:
        get(server, tmp_path / "a")
    get(server, tmp_path / "b")  # the server is gone
    check(published, tmp_path / "b")


def test_a_mirror_is_not_left_after_the_first_page(
    server: Server, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf-mirror.com sends the link of the Hub itself; and settings of huggingface_hub count for nothing."""
    address = f"http://127.0.0.1:9/api/datasets/{REPOSITORY}/tree/main"
    server.set_faults({"hub": [fault("next_page", -1, address=address)]})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(replace(server, hub=f"{server.hub}/"), tmp_path / "a", ["sub-08"])
    check(published, tmp_path / "a", ("sub-08",))


DROP = fault("drop", at=150)
FAULTS = {
    "a cut transfer that goes on": [DROP],
    "cut, and the link has expired": [DROP, fault("expired")],
    "one flipped byte": [fault("flip", at=200)],
    "429": [fault("api_status", code=429, retry_after="0")],
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_that_passes(name: str, server: Server, published: Published, tmp_path: Path) -> None:
    file = published.edf("sub-01", 1, 3).name
    server.set_faults({file: FAULTS[name]})
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")
    assert server.sent()[file] == (5 if name == "one flipped byte" else 4) * 400  # of 4 sessions


def test_a_hash_of_git_is_compared_where_git_holds_the_file(
    server: Server, published: Published, tmp_path: Path
) -> None:
    file = published.edf("sub-01", 1, 3).name
    hidden = fault("no_hashes", -1)
    server.set_faults({"hub": [hidden], file: [fault("flip", 8, at=200)]})
    with pytest.raises(
        InputError,
        match=r"^sub-01/session_01_block_03.edf: .* twice not the .* of git, got .* \(3 more failed",
    ):
        get(server, tmp_path / "a")
    server.set_faults({"hub": [hidden]})
    get(server, tmp_path / "a")
    check(published, tmp_path / "a")


def test_a_server_that_is_gone_is_not_asked_for_each_of_the_files(
    server: Server, published: Published, tmp_path: Path
) -> None:
    names = {path.name for path in published.repository.rglob("*.edf")}
    server.set_faults({name: [fault("api_status", -1, code=503)] for name in names})
    with pytest.raises(
        InputError, match=r"answered 503.* \(\d more failed too, and the other \d were"
    ):
        get(server, tmp_path / "a")
    server.set_faults({})
    get(server, tmp_path / "a")  # "run it again when the network or the server is well"
    check(published, tmp_path / "a")


def answer(body: object) -> dict[str, object]:
    return fault("text", -1, body=json.dumps(body), encoding="utf-8")


def relisted(file: str, **attributes: object) -> dict[str, object]:
    return fault("listed", -1, name=file, attributes=attributes)


WRONG = [{"type": "file", "path": "a.edf", "oid": "../../x", "size": 1}]
LISTINGS = {
    "an HTML page": (fault("html", -1), "HTML page"),
    "gated, 401": (fault("api_status", -1, code=401), "answered 401.*let download.own_copy name"),
    "gated, 403": (fault("api_status", -1, code=403), "answered 403.*still public"),
    "404": (fault("api_status", -1, code=404), "answered 404"),
    "no list": (
        answer({"error": "Repository not found"}),
        f"expected the file listing of Hugging Face repository {REPOSITORY}, got .*valid array",
    ),
    "a strange hash": (answer(WRONG), "got something else .0.oid String should match"),
    "a strange hash of LFS": (
        answer([WRONG[0] | {"oid": "0" * 40, "lfs": {"oid": "../../x"}}]),
        "got something else .0.lfs.oid String should match",
    ),
    "nothing": (answer([]), "no subject sub-01; there are none: name a mirror"),
    "a page that leads to itself": (fault("page_loop", -1), "leads back to itself.*name a mirror"),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_listing_that_is_none(name: str, server: Server, tmp_path: Path) -> None:
    wrong, message = LISTINGS[name]
    server.set_faults({"hub": [wrong]})
    with pytest.raises(InputError, match=f"(?s)^[^\n]*{message}[^\n]*$"):
        get(server, tmp_path / "a")
    assert server.sent() == {} and not (tmp_path / "a").exists()


@pytest.fixture
def changed(published: Published, tmp_path: Path) -> Published:
    """A copy that a test may change."""
    shutil.copytree(published.repository, tmp_path / "hub" / REPOSITORY)
    return replace(published, repository=tmp_path / "hub" / REPOSITORY)


def refuse(changed: Published, target: Path, message: str) -> None:
    """What is published so is refused with this message, and no recording is fetched."""
    with (
        serve({"y63gw": changed.osf}, hub=changed.hub, per_page=1000) as server,
        pytest.raises(InputError, match=message),
    ):
        get(server, target)
    assert not list(target.rglob("*.edf")) and not list(target.rglob("stimuli.zip"))


def test_a_file_is_missing_and_what_helps(
    changed: Published, server: Server, tmp_path: Path
) -> None:
    shutil.rmtree(changed.edf("sub-01", 2, 3).parent)
    message = (
        "sub-01: expected 12 files such as session_01_block_01.edf, each once, got 11: "
        "session_02_block_03.edf is missing; name a mirror, leave the subject out"
    )
    refuse(changed, tmp_path / "a", message)
    with serve({"y63gw": changed.osf}, hub=changed.hub, per_page=1000) as incomplete:
        get(incomplete, tmp_path / "b", ["sub-08"])  # "leave the subject out"
    check(changed, tmp_path / "b", ("sub-08",))
    get(server, tmp_path / "a")  # "name a mirror"
    assert (tmp_path / "a/eeg/sub-01/session_02_block_03.edf").exists()


def test_two_recordings_in_a_block(changed: Published, tmp_path: Path) -> None:
    first = changed.edf("sub-01", 2, 3)
    shutil.copy(first, first.with_name("again.edf"))
    block = "raw_eeg/sub-01/session_02/block_03"
    message = (
        f"got 13: session_02_block_03.edf is there as {block}/Subject 19 #3.edf and as "
        f"{block}/again.edf; name a mirror"
    )
    refuse(changed, tmp_path / "a", message)


def test_no_images_to_compare_with(changed: Published, tmp_path: Path) -> None:
    (changed.repository / "stimuli.zip").unlink()
    message = "expected one file stimuli.zip, got 0 by that name; it lists .* more: name a mirror"
    refuse(changed, tmp_path / "a", message)


def test_other_images_than_those_that_were_shown(changed: Published, tmp_path: Path) -> None:
    """Nothing of the EEG comes; with the right pictures all is well again."""
    stimuli = changed.repository / "stimuli.zip"
    write_stimuli(stimuli, changed.osf, first_picture=b"another one", n_missing=2)
    message = (
        "^stimuli.zip: of the 11 images that were shown, .*, 1 differ, the first is 00000.jpg "
        r"\(training_images/00001_.*\) and 2 are missing, the first is 00009.jpg \(test_images/"
    )
    refuse(changed, tmp_path / "a", message)
    write_stimuli(stimuli, changed.osf)
    with serve({"y63gw": changed.osf}, hub=changed.hub, per_page=1000) as server:
        get(server, tmp_path / "a")
    check(changed, tmp_path / "a")


def test_a_number_that_comes_twice(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "stimuli.zip"
    write_stimuli(path, published.osf)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("old/00003.jpg", b"another one")
    tables = read_metadata(published.osf / "image_metadata.npy")
    with pytest.raises(InputError, match="holds 00003.jpg twice, as 'stimuli/.*' and 'old/"):
        check_shown_images(path, published.osf, tables)

    with zipfile.ZipFile(published.repository / "stimuli.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    check_shown_images(tmp_path / "unpacked", published.osf, tables)


def own_copy_of(published: Published, folder: Path) -> Path:
    """As `hf download` makes it, with the images of OSF in another folder."""
    shutil.copytree(published.repository, folder / "Alljoined-1.6M")
    shutil.copytree(published.osf, folder / "things eeg2/images")
    # What `hf download` and macOS write beside the files
    block = "raw_eeg/sub-08/session_01/block_01"
    notes = folder / "Alljoined-1.6M/.cache/huggingface/download" / block
    notes.mkdir(parents=True)
    (notes / "Subject 19 #1.edf.metadata").write_text("notes")
    (folder / "Alljoined-1.6M" / block / "._Subject 19 #1.edf").write_text("of macOS")
    return folder


def test_own_copy_without_a_network(published: Published, tmp_path: Path) -> None:
    """Of a hundred files with one name, each is found by its folders."""
    own_copy = own_copy_of(published, tmp_path / "lab")
    get(None, tmp_path / "a", SUBJECTS, own_copy)
    check(published, tmp_path / "a", SUBJECTS)
    first = own_copy / "Alljoined-1.6M/raw_eeg/sub-08/session_03/block_02/Subject 19 #2.edf"
    assert os.path.samefile(tmp_path / "a/eeg/sub-08/session_03_block_02.edf", first)
    assert (own_copy / "Alljoined-1.6M/stimuli.zip").exists()


def test_own_copy_that_lacks_a_file_or_has_two(
    server: Server, published: Published, tmp_path: Path
) -> None:
    own_copy = own_copy_of(published, tmp_path / "lab")
    block = own_copy / "Alljoined-1.6M/raw_eeg/sub-01/session_04/block_03"
    (block / "Subject 19 #3.edf").rename(block / "a.edf")  # names tell nothing
    shutil.copy(block / "a.edf", block / "b.edf")
    with pytest.raises(InputError, match="holds 2 files where one is published: .*a.edf, .*b.edf;"):
        get(None, tmp_path / "a", own_copy=own_copy)
    (block / "b.edf").unlink()  # "leave there only the one of this dataset"
    get(None, tmp_path / "a", own_copy=own_copy)
    check(published, tmp_path / "a")

    (block / "a.edf").unlink()
    with pytest.raises(
        InputError,
        match=r"holds image_metadata.npy, .*block_02.edf, .* and 7 more; of the rest: http",
    ):
        get(None, tmp_path / "b", own_copy=own_copy)
    get(server, tmp_path / "b", own_copy=own_copy)
    check(published, tmp_path / "b")
    assert server.sent() == {"Subject 19 #3.edf": 400}


def settings(server: Server, folder: Path, **of_download: object) -> Path:
    """params.yaml as a user has it, with the loopback addresses."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values |= {"dataset": "alljoined", "subjects": ["sub-08"]}
    values["download"] |= {"osf_api": server.api, "hugging_face": server.hub, **of_download}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_stage_asks_for_the_licence_and_fetches_76_files(
    whole: Published, tmp_path: Path, quick_programs: str
) -> None:
    outs = [tmp_path / name for name in ("eeg", "images", "metadata", "images.csv")]
    with serve({"y63gw": whole.osf}, hub=whole.hub, per_page=100) as server:
        refused = subprocess.run(
            ["python3", "-m", "stages.download", str(settings(server, tmp_path)), *map(str, outs)],
            env={**os.environ, "PATH": f"{quick_programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert (
            f"read its terms at https://huggingface.co/datasets/{REPOSITORY}, and if you accept "
            "them, set download.accept_alljoined_licence to true"
        ) in " ".join(refused.stderr.split())
        assert server.log() == [] and not any(out.exists() for out in outs)

        download.main(settings(server, tmp_path, accept_alljoined_licence=True), *outs)
    check(whole, tmp_path, ("sub-08",))
    assert len(list((tmp_path / "eeg/sub-08").iterdir())) == 76
    assert len(outs[3].read_text().splitlines()) == 1 + N_IMAGES


def test_the_stage_finds_the_copy_that_own_copy_names(
    server: Server, whole: Published, tmp_path: Path
) -> None:
    own_copy = own_copy_of(whole, tmp_path / "lab")
    outs = [tmp_path / name for name in ("eeg", "images", "metadata", "images.csv")]
    accepted = {"accept_alljoined_licence": True, "accept_new_versions": True}
    download.main(settings(server, tmp_path, own_copy=str(own_copy), **accepted), *outs)
    check(whole, tmp_path, ("sub-08",))
    assert server.log() == []
