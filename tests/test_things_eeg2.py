"""The published layout: what is in it is read as numpy and PIL read it, what is not as published is named."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets.things_eeg2 import find_subjects, memory_needed, open_eeg, read_metadata
from pipeline.errors import InputError
from pipeline.params import read_params
from tests.fuzz import saved, zip_bytes

CH_NAMES = ["Pz", "O1", "Oz"]
TIMES = np.round(np.arange(-20, 80) * 0.01, 2)
SHAPES = {
    "train": (60, 4, 3, 100),
    "test": (8, 5, 3, 100),
}  # the training array is streamed, and so is the test array
IMAGES = {split: pd.DataFrame(index=range(shape[0])) for split, shape in SHAPES.items()}
AS_PUBLISHED = read_params(Path("params.yaml")).preprocess
MEMBERS = {
    "train": "sub-01/preprocessed_eeg_training.npy",
    "test": "sub-01/preprocessed_eeg_test.npy",
}


def make_recording(split: str, seed: int = 0) -> dict:
    data = np.random.default_rng([seed, len(split)]).standard_normal(SHAPES[split])
    return {"preprocessed_eeg_data": data, "ch_names": list(CH_NAMES), "times": TIMES.copy()}


def write_eeg(path: Path, recordings: dict[str, dict], protocol: int | None = None) -> Path:
    """One subject's archive, with the litter that a Mac leaves."""
    subject = path.stem
    members = {
        MEMBERS[split].replace("sub-01", subject): saved(recordings[split], protocol)
        for split in recordings
    }
    litter = {f"__MACOSX/{subject}/._preprocessed_eeg_test.npy": b"\x00\x05\x16\x07"}
    path.write_bytes(zip_bytes({f"{subject}/": b""} | members | litter, zipfile.ZIP_DEFLATED))
    return path


def make_metadata() -> dict:
    metadata = {}
    for split, (n, *_) in SHAPES.items():
        metadata[f"{split}_img_concepts"] = [f"{i // 2 + 1:05d}_thing{i // 2}" for i in range(n)]
        metadata[f"{split}_img_files"] = [f"thing{i // 2}_{i % 2}.jpg" for i in range(n)]
        offset = 0 if split == "train" else 1000
        metadata[f"{split}_img_concepts_THINGS"] = [
            f"{offset + i // 2 + 1:05d}_thing{i // 2}" for i in range(n)
        ]
    return metadata


def write_metadata(path: Path, metadata: dict) -> Path:
    np.save(path, metadata)
    return path


def read(path: Path, split: str) -> np.ndarray:
    """All chunks together."""
    with open_eeg(path, IMAGES, AS_PUBLISHED) as raw:
        return np.concatenate(list(raw.chunks[split]))


@pytest.mark.parametrize("protocol", (None, 2, 3, 4, 5))
def test_reads_the_eeg_as_numpy_does(protocol: int | None, tmp_path: Path) -> None:
    recordings = {split: make_recording(split) for split in SHAPES}
    path = write_eeg(tmp_path / "sub-01.zip", recordings, protocol)
    with open_eeg(path, IMAGES, AS_PUBLISHED) as raw:
        layout = raw.layout
    assert layout.ch_names == tuple(CH_NAMES)
    assert np.array_equal(layout.times, TIMES)
    with zipfile.ZipFile(path) as archive:
        for split in SHAPES:
            data = io.BytesIO(archive.read(MEMBERS[split]))
            peer = np.load(data, allow_pickle=True)
            peer = (peer.item() if protocol is None else peer)["preprocessed_eeg_data"]
            eeg = read(path, split)
            assert eeg.dtype == np.float64
            assert np.array_equal(eeg, peer)


@pytest.mark.parametrize(
    "change",
    (
        np.asfortranarray,
        lambda x: x.astype(">f4"),
        lambda x: x.swapaxes(1, 3).copy().swapaxes(1, 3),
    ),
)
def test_reads_other_orders_and_float_types(change: Callable, tmp_path: Path) -> None:
    recordings = {split: make_recording(split) for split in SHAPES}
    expected = change(recordings["train"]["preprocessed_eeg_data"])
    recordings["train"]["preprocessed_eeg_data"] = expected
    assert np.array_equal(read(write_eeg(tmp_path / "sub-01.zip", recordings), "train"), expected)


def spoil(**changes: object) -> Callable[[dict], None]:
    return lambda recording: recording.update(changes)


def eeg(data: object) -> Callable[[dict], None]:
    return spoil(preprocessed_eeg_data=data)


def lack(key: str) -> Callable[[dict], None]:
    return lambda recording: recording.pop(key)


def poison(value: float, at: tuple[int, ...]) -> Callable[[dict], None]:
    return lambda recording: recording["preprocessed_eeg_data"].__setitem__(at, value)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", poison(np.nan, (7, 0, 0, 0)), "training.npy: condition 7 .* holds NaN"),
        ("test", poison(np.inf, (5, 4, 2, 99)), "test.npy: condition 5 .* holds NaN or infinite"),
        ("train", eeg(np.zeros((59, 4, 3, 100))), r"\(59, 4, 3, 100\), expected \(60, rep.*, 3, 100\)"),
        ("train", eeg(np.zeros((60, 4, 2, 100))), r"\(60, 4, 2, 100\), expected \(60, rep.*, 3, 100\)"),
        ("test", eeg(np.zeros((8, 5, 3, 99))), r"\(8, 5, 3, 99\), expected \(8, rep.*, 3, 100\)"),
        ("train", eeg(np.zeros((60, 3, 100))), r"has shape \(60, 3, 100\)"),
        ("train", eeg(np.zeros((60, 0, 3, 100))), r"has shape \(60, 0, 3, 100\)"),
        ("train", eeg(np.zeros((60, 4, 3, 100), int)), "of type int64, expected floating"),
        ("train", eeg([1.0]), "preprocessed_eeg_data is not an array"),
        ("train", eeg(np.array("no")), r"has shape \(\)"),
        ("train", spoil(more=np.zeros(100_000)), "a second large array"),
        ("train", lack("preprocessed_eeg_data"), "has no preprocessed_eeg_data, it has 'ch_names'"),
        ("train", lack("ch_names"), "has no ch_names"),
        ("test", lack("times"), "times is not an array"),
        ("train", spoil(ch_names=["Pz", "Oz", "O1"]), "differ from those of the other split"),
        ("train", spoil(times=TIMES + 0.1), "differ from those of the other split"),
        ("test", spoil(ch_names=["Pz", "O1", "O1"]), "3 channel names are not unique"),
        ("test", spoil(ch_names=["Pz", "O1", 3]), "ch_names holds 3, expected names"),
        ("test", spoil(ch_names="PzO"), "ch_names is of type str, expected a list"),
        ("test", spoil(times=TIMES[::-1].copy()), "not evenly spaced and rising"),
        ("test", spoil(times=TIMES**3), "not evenly spaced"),
        ("test", spoil(times=np.full(100, np.nan)), "not evenly spaced"),
    ],
)  # fmt: skip
def test_refuses_other_eeg(split: str, change: Callable, message: str, tmp_path: Path) -> None:
    recordings = {split: make_recording(split) for split in SHAPES}
    change(recordings[split])
    path = write_eeg(tmp_path / "sub-01.zip", recordings)
    with pytest.raises(InputError, match=message) as error:
        read(path, split)
    assert str(path) in str(error.value)


def test_refuses_the_archive_of_another_subject_or_of_none(tmp_path: Path) -> None:
    path = write_eeg(tmp_path / "sub-01.zip", {split: make_recording(split) for split in SHAPES})
    path.rename(tmp_path / "sub-02.zip")
    with pytest.raises(
        InputError,
        match="sub-02.zip: holds the folder 'sub-01', which is sub-01, not sub-02; rename the",
    ):
        read(tmp_path / "sub-02.zip", "test")
    read((tmp_path / "sub-02.zip").rename(path), "test")  # as told
    path.rename(tmp_path / "sub-01 (copy).zip")
    with pytest.raises(
        InputError, match="named such as sub-01.zip; rename it, or move it out of the folder"
    ):
        find_subjects(tmp_path)
    (tmp_path / "sub-01 (copy).zip").rename(path)
    assert find_subjects(tmp_path) == {"sub-01": path}


@pytest.mark.parametrize("kind", (list, np.array, lambda names: np.array(names, object)))
def test_reads_the_metadata(kind: Callable, tmp_path: Path) -> None:
    metadata = make_metadata()
    images = read_metadata(
        write_metadata(tmp_path / "m.npy", {key: kind(names) for key, names in metadata.items()})
    )
    assert list(images) == ["train", "test"]
    assert images["train"]["image_ids"][2] == "training_images/00002_thing1/thing1_0.jpg"
    assert images["test"]["image_ids"][7] == "test_images/00004_thing3/thing3_1.jpg"
    for split, frame in images.items():
        assert list(frame.columns) == ["image_ids", "concept", "things_concept"]
        assert list(frame["concept"]) == metadata[f"{split}_img_concepts"]
        assert list(frame["things_concept"]) == metadata[f"{split}_img_concepts_THINGS"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_img_files", ["a.jpg"], "have 60, 1 and 60 entries"),
        ("test_img_concepts_THINGS", [], "have 8, 8 and 0 entries"),
        ("test_img_files", ["x.jpg"] * 8, "4 images of the test split are listed twice"),
        ("train_img_files", ["../../x.jpg"] * 60, "holds '../../x.jpg', expected the plain name"),
        ("train_img_concepts", [".."] * 60, "expected the plain name"),
        ("train_img_concepts", ["a\ud800"] * 60, "expected names"),
        ("train_img_concepts", [["a"]] * 60, "holds list, expected names"),
        ("train_img_concepts", 3, "is of type int, expected a list of names"),
    ],
)
def test_refuses_other_metadata(key: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    with pytest.raises(InputError, match=message):
        read_metadata(write_metadata(path, make_metadata() | {key: value}))
    metadata = make_metadata()
    del metadata[key]
    with pytest.raises(InputError, match=f"has no {key}"):
        read_metadata(write_metadata(path, metadata))


def test_refuses_absent_metadata(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.npy: cannot be read"):
        read_metadata(tmp_path / "absent.npy")


def test_an_archive_that_was_made_again_with_another_folder(tmp_path: Path) -> None:
    recordings = {split: make_recording(split) for split in SHAPES}
    expected = read(write_eeg(tmp_path / "sub-01.zip", recordings), "test")
    members = {
        MEMBERS[split].replace("sub-01", "sub-01 2"): saved(recordings[split])
        for split in recordings
    }
    litter = {
        "__MACOSX/sub-01 2/._preprocessed_eeg_test.npy": b"",
        "sub-01 2/._preprocessed_eeg_test.npy": b"",
    }
    (tmp_path / "sub-01.zip").write_bytes(zip_bytes(members | litter, zipfile.ZIP_DEFLATED))
    assert np.array_equal(read(tmp_path / "sub-01.zip", "test"), expected)
    assert memory_needed(tmp_path / "sub-01.zip", AS_PUBLISHED) > expected.nbytes


def test_an_archive_without_eeg_names_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "sub-01.zip").write_bytes(
        zip_bytes({"sub-01/notes.txt": b""}, zipfile.ZIP_DEFLATED)
    )
    message = "sub-01.zip: holds no sub-01/preprocessed_eeg_t.*.npy; fetch it again with `dvc repro --force download`"
    for ask in (lambda path: read(path, "test"), lambda path: memory_needed(path, AS_PUBLISHED)):
        with pytest.raises(InputError, match=message):
            ask(tmp_path / "sub-01.zip")


@pytest.mark.parametrize(
    ("key", "value"),
    [("sfreq", 250.0), ("baseline", [-0.2, 0.0]), ("mvnn", "epochs"), ("sessions", [1])],
)
def test_refuses_what_only_raw_recordings_allow(key: str, value: object, tmp_path: Path) -> None:
    path = write_eeg(tmp_path / "sub-01.zip", {split: make_recording(split) for split in SHAPES})
    with (
        pytest.raises(
            InputError, match=f"preprocess.{key} is .*only raw recordings .* published prepared"
        ),
        open_eeg(path, IMAGES, AS_PUBLISHED.model_copy(update={key: value})),
    ):
        pass
