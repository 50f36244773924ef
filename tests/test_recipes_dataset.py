"""A dataset in another format, added from outside the library: download and preprocess take its entry as it is."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline.data.datasets import DATASETS
from pipeline.data.entry import SPLITS, Dataset, Layout, RawEeg
from pipeline.data.images import Images
from pipeline.eeg.recordings import read_split
from pipeline.errors import InputError
from stages import preprocess

# The recipe, 24 lines of code up to and with the entry: one .npz a subject, a folder of PNGs, a table of images.
# docs/adding.md shows it, from the next line to the mark of its end.
# --8<-- [start:dataset]


def make(subjects: list[str] | str, eeg_dir: Path, images_dir: Path, metadata: Path) -> None:
    table = pd.DataFrame({"image_ids": [f"{i}.png" for i in range(16)], "split": ["train"] * 10 + ["test"] * 6})
    table["concept"] = table["things_concept"] = [f"thing {i}" for i in range(16)]
    for folder in (eeg_dir, images_dir):
        folder.mkdir(parents=True)
    table.to_csv(metadata, index=False)
    rng = np.random.default_rng(0)
    for name in table["image_ids"]:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(images_dir / name)
    eeg = {"train": rng.random((10, 2, 4, 10)), "test": rng.random((6, 5, 4, 10))}
    np.savez(eeg_dir / "anna.npz", ch_names=["O1", "Oz", "O2", "Pz"], times=np.arange(10) / 10, **eeg)


def read_metadata(path: Path) -> dict[str, pd.DataFrame]:
    return {split: rows.drop(columns="split") for split, rows in pd.read_csv(path).groupby("split", sort=False)}


@contextmanager
def open_eeg(path: Path, n_conditions: Mapping[str, int]) -> Iterator[RawEeg]:
    with np.load(path) as file:
        yield RawEeg(Layout(tuple(file["ch_names"]), file["times"]), {split: iter([file[split]]) for split in SPLITS})


@contextmanager
def open_images(folder: Path, image_ids: Sequence[str]) -> Iterator[Images]:
    contents = {image_id: (folder / image_id).read_bytes() for image_id in image_ids}
    yield Images(contents.__getitem__, lambda name: (name, len(contents[name]), zlib.crc32(contents[name])))


def find_subjects(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.npz"))}


TINY = Dataset(make, find_subjects, read_metadata, open_eeg, open_images, units="microvolt")
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
    from stages import download  # not above: it takes seconds, and preprocess's worker imports this file for the recipe

    download.main(params, tmp_path / "raw/eeg", tmp_path / "raw/images", tmp_path / "raw/images.csv")
    return tmp_path / "raw"


def test_from_download_to_prepared_eeg(params: Path, raw: Path, tmp_path: Path) -> None:
    preprocess.main(params, raw / "eeg", raw / "images.csv", tmp_path / "eeg")
    train = read_split(tmp_path / "eeg/anna.h5", "train", average=True)
    test = read_split(tmp_path / "eeg/anna.h5", "test", average=False)
    with np.load(raw / "eeg/anna.npz") as file:
        expected = file["train"][:, :, [1, 3], 2:6].mean(axis=1)
    assert np.array_equal(train.eeg, expected.astype(np.float32))
    assert (test.eeg.shape, test.subject, test.ch_names) == ((6, 5, 2, 4), "anna", ("Oz", "Pz"))
    assert list(test.image_ids) == [f"{i}.png" for i in range(10, 16)]


def test_the_images_are_read_by_id(raw: Path) -> None:
    with TINY.open_images(raw / "images", ["3.png"]) as images:
        assert images.read("3.png").getpixel((0, 0)) == Image.open(raw / "images/3.png").getpixel((0, 0))
        assert images.fingerprint("3.png")[0] == "3.png"


def test_eeg_that_lacks_a_condition_is_refused(params: Path, raw: Path, tmp_path: Path) -> None:
    text = (raw / "images.csv").read_text()
    (raw / "images.csv").write_text(text + "16.png,test,thing 16,thing 16\n")
    with pytest.raises(InputError, match="the test EEG has 6 conditions, the metadata 7 images"):
        preprocess.main(params, raw / "eeg", raw / "images.csv", tmp_path / "eeg")
