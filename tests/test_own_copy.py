"""The user's own copy of the images of THINGS, as a folder and as a zip."""

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.data.datasets import DATASETS
from pipeline.data.sources import THINGS_MEG
from pipeline.errors import InputError
from pipeline.fetch.own_copy import collect_images, find_own_copy
from stages import download
from tests.osf_server import serve

IMAGES = ["aardvark/aardvark_01b.jpg", "aardvark/aardvark_02s.jpg", "bat1/bat1_01b.jpg", "zucchini/zucchini_01b.jpg"]
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
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))


def test_an_image_that_lies_there_twice(folder: Path, tmp_path: Path) -> None:
    other = folder / "backup" / "aardvark/aardvark_01b.jpg"
    other.parent.mkdir(parents=True)
    shutil.copy(folder / "_central/object_images" / IMAGES[0], other)
    for copy in (folder, zipped(folder)):
        collect_images(copy, WANTED, tmp_path / "a.zip")
    other.write_bytes(b"another picture")
    for copy in (folder, zipped(folder)):
        with pytest.raises(InputError, match="has 2 different files for the image object_images/aardvark/aardvark_01b"):
            collect_images(copy, WANTED, tmp_path / "images/b.zip")
    assert list((tmp_path / "images").iterdir()) == []


def test_an_image_that_is_missing(folder: Path, tmp_path: Path) -> None:
    message = "1 of 3 images are missing, the first is object_images/aardvark/bat1_01b.jpg"
    with pytest.raises(InputError, match=message):
        collect_images(folder, [*WANTED, "object_images/aardvark/bat1_01b.jpg"], tmp_path / "images/a.zip")
    assert list((tmp_path / "images").iterdir()) == []


def test_a_copy_that_cannot_be_used_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    assert find_own_copy(str(folder)) == folder
    for setting in ("none", "THINGS", str(tmp_path / "elsewhere")):
        with pytest.raises(InputError, match=f"things_images is '{setting}': expected .*https://osf.io/jum2f"):
            find_own_copy(setting)
    with pytest.raises(InputError, match="is encrypted; unpack it with the password .* name the folder"):
        find_own_copy(str(encrypted(folder)))
    (tmp_path / "THINGS.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a whole zip archive"):
        find_own_copy(str(tmp_path / "THINGS.zip"))


def test_the_stage_fetches_meg_and_collects_its_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    for name in ("derivatives/preprocessed/preprocessed_P1-epo.fif", "sourcedata/sample_attributes_P1.csv"):
        (bucket / "ds004212" / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / "ds004212" / name).write_text("data")
    for part in (1, 2, 3):
        (bucket / f"ds004212/derivatives/preprocessed/preprocessed_P1-epo-{part}.fif").write_text(f"data {part}")
    tables = {
        split: pd.DataFrame({"image_ids": [name], "concept": "a", "things_concept": "a"})
        for split, name in zip(("train", "test"), WANTED, strict=True)
    }
    things_meg = replace(DATASETS["things-eeg2"], source=THINGS_MEG, read_metadata=lambda path: tables)
    monkeypatch.setitem(DATASETS, "things-meg", things_meg)
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-meg"}
    places = (tmp_path / "eeg", tmp_path / "images", tmp_path / "metadata.csv", tmp_path / "images.csv")
    with serve({}, bucket=bucket) as server:
        values["download"]["openneuro"] = server.bucket
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(InputError, match="download.things_images is 'none'"):
            download.main(tmp_path / "params.yaml", *places)
        assert server.log() == []
        values["download"]["things_images"] = str(folder)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        assert download.main(tmp_path / "params.yaml", *places).startswith("1 subjects")
    assert sorted(path.name for path in (tmp_path / "eeg/P1").iterdir())[-1] == "preprocessed_P1-epo.fif"
    with zipfile.ZipFile(tmp_path / "images/things_images.zip") as archive:
        assert archive.namelist() == WANTED
