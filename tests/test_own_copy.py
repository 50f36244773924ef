"""The user's own copy of the images of THINGS, as a folder and as a zip."""

import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline.datasets.sources import THINGS_MEG
from pipeline.datasets.table import DATASETS
from pipeline.download.own_copy import check_images, collect_images, find_own_copy
from pipeline.errors import InputError
from pipeline.untrusted.pictures import decode_image
from stages import download
from tests.osf_server import serve

IMAGES = [
    "aardvark/aardvark_01b.jpg",
    "aardvark/aardvark_02s.jpg",
    "bat1/bat1_01b.jpg",
    "zucchini/zucchini_01b.jpg",
]
WANTED = ["object_images/zucchini/zucchini_01b.jpg", "object_images/aardvark/aardvark_01b.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in IMAGES:
        path = tmp_path / "THINGS/_central/object_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    return tmp_path / "THINGS"


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def encrypted(folder: Path) -> Path:
    """The flag of each member says so, in its header and in the directory."""
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] |= 1
    path.write_bytes(data)
    return path


def test_the_same_zip_from_a_folder_and_from_a_zip(folder: Path, tmp_path: Path) -> None:
    collect_images(folder, WANTED, tmp_path / "images/a.zip")
    os.utime(folder / "_central/object_images" / IMAGES[0], (10**9, 10**9))
    collect_images(zipped(folder), WANTED, tmp_path / "images/b.zip")
    assert (tmp_path / "images/a.zip").read_bytes() == (tmp_path / "images/b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "images/a.zip") as archive:
        assert archive.namelist() == WANTED
        for name in WANTED:
            assert archive.read(name) == name.removeprefix("object_images/").encode() * 10
            info = archive.getinfo(name)
            assert (info.compress_type, info.date_time) == (
                zipfile.ZIP_STORED,
                (1980, 1, 1, 0, 0, 0),
            )


def test_an_image_that_lies_there_twice(folder: Path, tmp_path: Path) -> None:
    other = folder / "backup" / "aardvark/aardvark_01b.jpg"
    other.parent.mkdir(parents=True)
    shutil.copy(folder / "_central/object_images" / IMAGES[0], other)
    for copy in (folder, zipped(folder)):
        collect_images(copy, WANTED, tmp_path / "a.zip")
    other.write_bytes(other.read_bytes()[::-1])
    for copy in (folder, zipped(folder)):
        with pytest.raises(
            InputError,
            match="has 2 different files for the image object_images/aardvark/aardvark_01b",
        ):
            collect_images(copy, WANTED, tmp_path / "images/b.zip")
    assert collected(folder / "_central", tmp_path) == PUBLISHED  # as told
    assert list((tmp_path / "images").iterdir()) == []


def collected(copy: Path, tmp_path: Path) -> dict[str, bytes]:
    """What comes of the copy, after the check that goes before."""
    own_copy = find_own_copy(str(copy))
    check_images(own_copy, WANTED)
    collect_images(own_copy, WANTED, tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


PUBLISHED = {name: name.removeprefix("object_images/").encode() * 10 for name in WANTED}


def told(copy: Path, wanted: list[str] = WANTED) -> str:
    """The sentence that refuses a copy, before anything is copied."""
    with pytest.raises(InputError) as error:
        check_images(copy, wanted)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_and_files_that_are_links_are_followed(folder: Path, tmp_path: Path) -> None:
    images = folder / "_central/object_images"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "object_images").symlink_to(images)
    (linked / "again").symlink_to(images)
    assert collected(linked, tmp_path) == PUBLISHED

    annexed = tmp_path / "annexed"
    for name in IMAGES:
        (annexed / name).parent.mkdir(parents=True, exist_ok=True)
        (annexed / name).symlink_to(images / name)
    assert collected(annexed, tmp_path) == PUBLISHED


def test_links_that_go_round_in_a_circle_end(folder: Path, tmp_path: Path) -> None:
    (folder / "_central/circle").symlink_to(folder)
    (folder / "self").symlink_to("self")
    assert collected(folder, tmp_path) == PUBLISHED


def test_links_to_nothing_are_told_and_fetched_as_told(folder: Path, tmp_path: Path) -> None:
    annexed = tmp_path / "annexed"
    for name in IMAGES[:3]:
        (annexed / name).parent.mkdir(parents=True, exist_ok=True)
        (annexed / name).symlink_to(tmp_path / "annex" / name)
    (annexed / "zucchini").symlink_to(folder / "_central/object_images/zucchini")
    assert (
        "annexed: 1 of 2 images are links whose target is not there, the first is object_images/aardvark/"
        "aardvark_01b.jpg; fetch them first: datalad get, or git annex get, in that folder"
    ) in told(annexed)
    shutil.copytree(folder / "_central/object_images", tmp_path / "annex")  # which is what they do
    assert collected(annexed, tmp_path) == PUBLISHED


def test_names_in_capitals_and_what_macos_adds(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "_central/object_images").rglob("*.jpg"):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        path.rename(path.with_suffix(".JPG"))
    assert collected(folder, tmp_path) == PUBLISHED
    with zipfile.ZipFile(zipped(folder), "a") as archive:
        for name in IMAGES:
            archive.writestr(
                f"__MACOSX/object_images/{Path(name).parent}/._{Path(name).name}", b"\0\5\26\7"
            )
    assert collected(folder.with_suffix(".zip"), tmp_path) == PUBLISHED


def test_the_images_of_things_eeg2_are_told_apart(tmp_path: Path) -> None:
    for name in IMAGES:
        path = tmp_path / "training_images" / f"00001_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert (
        "2 of 2 images are missing, the first is object_images/zucchini/zucchini_01b.jpg; its folders are numbered, "
        "as 00001_aardvark is: it seems to be the image set of THINGS-EEG2"
    ) in told(tmp_path)


def test_a_resized_copy_beside_the_published_one(folder: Path, tmp_path: Path) -> None:
    small = folder / "_central/object_images_224"
    for name in IMAGES:
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_bytes(b"small")
    for copy in (folder, zipped(folder)):
        assert "let download.things_images name the folder of the published ones alone" in told(
            copy
        )
    assert ".zip: has 2 different files" in told(folder.with_suffix(".zip"))
    assert "; unpack it, and let download" in told(folder.with_suffix(".zip"))
    shutil.unpack_archive(folder.with_suffix(".zip"), tmp_path / "unpacked")
    for copy in (folder, tmp_path / "unpacked"):
        assert collected(copy / "_central/object_images", tmp_path) == PUBLISHED  # as told


def test_an_image_that_is_missing(folder: Path, tmp_path: Path) -> None:
    missing = "object_images/aardvark/bat1_01b.jpg"
    message = (
        f"1 of 3 images are missing, the first is {missing}; "
        "unpack images_THINGS.zip .* copy those that are missi"
    )
    assert re.search(message, told(folder, [*WANTED, missing]))
    with pytest.raises(InputError, match=message):
        collect_images(folder, [*WANTED, missing], tmp_path / "images/a.zip")
    assert not (tmp_path / "images").exists()
    (folder / "aardvark").mkdir()
    (folder / "aardvark/bat1_01b.jpg").write_bytes(b"copied into it")  # as told
    check_images(folder, [*WANTED, missing])
    assert "2 of 2 images are missing" in told(
        tmp_path / "THINGS/_central", ["a/b/c.jpg", "a/b/d.jpg"]
    )


def test_a_picture_that_cannot_be_used_is_replaced_as_told(folder: Path, tmp_path: Path) -> None:
    for name in IMAGES:
        Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(
            folder / "_central/object_images" / name, "PNG"
        )
    collect_images(folder, WANTED, tmp_path / "things_images.zip")
    ids = [name.replace("object_images", "things_images") for name in WANTED]
    with zipfile.ZipFile(tmp_path / "things_images.zip") as archive:
        data = archive.read(WANTED[0])
    with pytest.raises(
        InputError,
        match="put an RGB picture of what was seen in its place, .*folder that you have it",
    ):
        decode_image(data, ids[0])
    Image.new("RGB", (8, 8)).save(folder / "_central/object_images" / IMAGES[3], "PNG")
    collect_images(
        folder, WANTED, tmp_path / "things_images.zip"
    )  # which `dvc repro --force download` does
    with zipfile.ZipFile(tmp_path / "things_images.zip") as archive:
        assert decode_image(archive.read(WANTED[0]), ids[0]).mode == "RGB"


def test_nothing_is_read_before_it_is_collected(folder: Path) -> None:
    """A pipe would wait for ever."""
    path = folder / "_central/object_images" / IMAGES[0]
    path.unlink()
    os.mkfifo(path)
    check_images(folder, WANTED)


def test_a_copy_that_cannot_be_used_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    assert find_own_copy(str(folder)) == folder
    for setting in ("none", "THINGS", str(tmp_path / "elsewhere")):
        with pytest.raises(
            InputError, match=f"things_images is '{setting}': expected .*https://osf.io/jum2f"
        ):
            find_own_copy(setting)
    with pytest.raises(
        InputError, match="is encrypted; unpack it with the password .* name the folder"
    ):
        find_own_copy(str(encrypted(folder)))
    (tmp_path / "THINGS.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a whole zip archive"):
        find_own_copy(str(tmp_path / "THINGS.zip"))


def test_the_stage_fetches_meg_and_collects_its_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    for name in (
        "derivatives/preprocessed/preprocessed_P1-epo.fif",
        "sourcedata/sample_attributes_P1.csv",
    ):
        (bucket / "ds004212" / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / "ds004212" / name).write_text("data")
    for part in (1, 2, 3):
        (bucket / f"ds004212/derivatives/preprocessed/preprocessed_P1-epo-{part}.fif").write_text(
            f"data {part}"
        )
    tables = {
        split: pd.DataFrame({"image_ids": [name], "concept": "a", "things_concept": "a"})
        for split, name in zip(("train", "test"), WANTED, strict=True)
    }
    things_meg = replace(
        DATASETS["things-eeg2"], source=THINGS_MEG, read_metadata=lambda path: tables
    )
    monkeypatch.setitem(DATASETS, "things-meg", things_meg)
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-meg"}
    places = (
        tmp_path / "eeg",
        tmp_path / "images",
        tmp_path / "metadata.csv",
        tmp_path / "images.csv",
    )
    with serve({}, bucket=bucket) as server:
        values["download"]["openneuro"] = server.bucket
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(InputError, match="download.things_images is 'none'"):
            download.main(tmp_path / "params.yaml", *places)
        assert server.log() == []
        values["download"]["things_images"] = str(folder)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        assert download.main(tmp_path / "params.yaml", *places).startswith("1 subjects")
    assert (
        sorted(path.name for path in (tmp_path / "eeg/P1").iterdir())[-1]
        == "preprocessed_P1-epo.fif"
    )
    with zipfile.ZipFile(tmp_path / "images/things_images.zip") as archive:
        assert archive.namelist() == WANTED
