"""A dataset in another format, added from outside the library: download and preprocess take its entry as it is."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline.datasets.entry import Dataset, Layout, RawEeg
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.table import DATASETS
from pipeline.errors import InputError
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Preprocess
from stages import preprocess

# The recipe, 24 lines of code up to and with the entry: one .npz a subject, a zip of PNGs, a table of images.
# docs/adding.md shows it: tests/test_docs.py compares the code between the two marks with the page.
# --8<-- [start:dataset]


def make(subjects: list[str] | str, eeg_dir: Path, images_dir: Path, metadata: Path) -> None:
    table = pd.DataFrame(
        {
            "image_ids": [f"pictures/{i}.png" for i in range(16)],
            "split": ["train"] * 10 + ["test"] * 6,
        }
    )
    table["concept"] = table["things_concept"] = [f"thing {i}" for i in range(16)]
    for folder in (eeg_dir, images_dir):
        folder.mkdir(parents=True)
    table.to_csv(metadata, index=False)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(images_dir / "pictures.zip", "w") as archive:
        for name in table["image_ids"]:
            with archive.open(name, "w") as file:
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    np.savez(
        eeg_dir / "anna.npz",
        ch_names=["O1", "Oz", "O2", "Pz"],
        times=np.arange(10) / 10,
        train=rng.random((10, 2, 4, 10)),  # conditions, repetitions, channels, samples
        test=rng.random((6, 5, 4, 10)),
    )


def read_metadata(path: Path) -> dict[Split, pd.DataFrame]:
    table = pd.read_csv(path)
    return {split: table[table["split"] == split].drop(columns="split") for split in SPLITS}


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    with np.load(path) as file:
        yield RawEeg(
            Layout(tuple(file["ch_names"]), file["times"]),
            {split: iter([file[split]]) for split in SPLITS},
        )


def find_subjects(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.npz"))}


TINY = Dataset(make, find_subjects, read_metadata, open_eeg, units="microvolt")
# --8<-- [end:dataset]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(DATASETS, "tiny", TINY)
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "tiny"}
    values["preprocess"] |= {"window": [0.2, 0.5], "channels": ["Oz", "Pz"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "params.yaml"


@pytest.fixture
def raw(params: Path, tmp_path: Path) -> Path:
    """A folder with eeg/, images/ and images.csv, as downloaded."""
    from stages import (
        download,  # not above: it takes seconds, and preprocess's worker imports this file for the recipe
    )

    raw = tmp_path / "raw"
    download.main(params, raw / "eeg", raw / "images", raw / "metadata", raw / "images.csv")
    return raw


def test_from_download_to_prepared_eeg(params: Path, raw: Path, tmp_path: Path) -> None:
    preprocess.main(params, raw / "eeg", raw / "images.csv", tmp_path / "private", tmp_path / "eeg")
    train = read_split(tmp_path / "eeg/anna.h5", "train", average=True)
    test = read_split(tmp_path / "eeg/anna.h5", "test", average=False)
    with np.load(raw / "eeg/anna.npz") as file:
        expected = file["train"][:, :, [1, 3], 2:6].mean(axis=1)
    assert np.array_equal(train.eeg, expected.astype(np.float32))
    assert (test.eeg.shape, test.subject, test.ch_names) == ((6, 5, 2, 4), "anna", ("Oz", "Pz"))
    assert list(test.image_ids) == [f"pictures/{i}.png" for i in range(10, 16)]


def test_eeg_that_lacks_a_condition_is_refused(params: Path, raw: Path, tmp_path: Path) -> None:
    table = raw / "images.csv"
    table.write_text(table.read_text() + "test,pictures/16.png,thing 16,thing 16\n")
    with pytest.raises(InputError, match="the test EEG has 6 conditions, the metadata 7 images"):
        preprocess.main(params, raw / "eeg", table, tmp_path / "private", tmp_path / "eeg")
