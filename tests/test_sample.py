import dataclasses
import functools
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import sample, sample_headset
from pipeline.datasets.sample_contents import CONTENTS
from pipeline.datasets.sources import Make
from pipeline.datasets.table import DATASETS, SAMPLE
from pipeline.errors import InputError
from stages import download

TINY = sample.Size(
    train_concepts=6, images_per_concept=2, test_concepts=3, train_repetitions=2, test_repetitions=3
)
N_CONTENTS = sample.N_FEATURES + sample.N_COMPONENTS


def make(directory: Path, subjects: list[str] | str = "all") -> Path:
    sample.make_raw(
        subjects, directory / "eeg", directory / "images", directory / "image_metadata.npy", TINY
    )
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def unpickled(file: Path | io.BytesIO) -> dict:
    array = np.load(file, allow_pickle=True)  # made by this very test
    assert array.shape == ()
    assert array.dtype == object
    return array.item()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("raw"))


def test_metadata_is_as_published(raw: Path) -> None:
    metadata = unpickled(raw / "image_metadata.npy")
    columns = ("img_concepts", "img_files", "img_concepts_THINGS")
    assert set(metadata) == {
        f"{split}_{column}" for split in ("train", "test") for column in columns
    }
    for split, n_concepts, n_images in (("train", 6, 12), ("test", 3, 3)):
        concepts, files, things = (metadata[f"{split}_{column}"] for column in columns)
        assert len(concepts) == len(files) == len(things) == n_images
        assert sorted(set(concepts)) == list(dict.fromkeys(concepts))
        assert sorted({int(name[:5]) for name in concepts}) == list(
            range(1, n_concepts + 1)
        )  # restarts in each split
        assert (
            [name[6:] for name in concepts]
            == [name[6:] for name in things]
            == [name[:12] for name in files]
        )
    assert not set(metadata["train_img_concepts_THINGS"]) & set(
        metadata["test_img_concepts_THINGS"]
    )
    both = metadata["train_img_concepts_THINGS"] + metadata["test_img_concepts_THINGS"]
    assert sorted({int(name[:5]) for name in both}) == list(range(1, 10))


def test_image_archives_hold_a_picture_for_each_row(raw: Path) -> None:
    metadata = unpickled(raw / "image_metadata.npy")
    sizes = set()
    for folder, split in (("training_images", "train"), ("test_images", "test")):
        rows = zip(metadata[f"{split}_img_concepts"], metadata[f"{split}_img_files"], strict=True)
        with zipfile.ZipFile(raw / "images" / f"{folder}.zip") as archive:
            assert archive.namelist() == [f"{folder}/{concept}/{file}" for concept, file in rows]
            for name in archive.namelist():
                with Image.open(io.BytesIO(archive.read(name))) as picture:
                    assert (picture.format, picture.mode) == ("JPEG", "RGB")
                    assert all(480 <= length <= 520 for length in picture.size)
                    sizes.add(picture.size)
    assert len(sizes) > 1


@pytest.mark.parametrize("subject", sample.SUBJECTS)
def test_eeg_archive_is_as_published(raw: Path, subject: str) -> None:
    with zipfile.ZipFile(raw / "eeg" / f"{subject}.zip") as archive:
        assert archive.namelist() == [
            f"{subject}/preprocessed_eeg_{split}.npy" for split in ("training", "test")
        ]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        for split, shape in (("training", (12, 2, 17, 100)), ("test", (3, 3, 17, 100))):
            arrays = unpickled(io.BytesIO(archive.read(f"{subject}/preprocessed_eeg_{split}.npy")))
            assert list(arrays) == ["preprocessed_eeg_data", "ch_names", "times"]
            assert (
                " ".join(arrays["ch_names"])
                == "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2"
            )
            assert type(arrays["ch_names"]) is list
            assert arrays["times"].dtype == arrays["preprocessed_eeg_data"].dtype == np.float64
            np.testing.assert_allclose(arrays["times"], np.linspace(-0.20, 0.79, 100), atol=1e-12)
            assert arrays["preprocessed_eeg_data"].shape == shape
            assert 0.5 < arrays["preprocessed_eeg_data"].std() < 2


def test_responses_follow_the_stimulus_and_differ_between_images() -> None:
    features = 0.03 * np.random.default_rng(0).standard_normal((4, N_CONTENTS))
    kernel = sample.draw_kernel(np.random.default_rng(1))
    eeg = sample.simulate_eeg(features, kernel, 400, np.random.default_rng(2))
    noise = eeg.std(axis=1, keepdims=True).mean() / 20  # of a mean over 400 repetitions
    evoked = eeg.mean(axis=1)
    before, after = evoked[..., sample.TIMES < 0.08], evoked[..., sample.TIMES > 0.15]
    assert before.std() == pytest.approx(noise, rel=0.3)
    assert after.std() > 3 * noise
    assert abs(np.corrcoef(after.reshape(4, -1))[np.triu_indices(4, 1)]).max() < 0.6


def test_noise_is_pink() -> None:
    eeg = sample.simulate_eeg(
        np.zeros((20, N_CONTENTS)), np.zeros((N_CONTENTS, 17, 100)), 20, np.random.default_rng(0)
    )
    power = (np.abs(np.fft.rfft(eeg)) ** 2).mean(axis=(0, 1, 2))
    slope = np.polyfit(np.log(np.arange(1, 50)), np.log(power[1:50]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    assert eeg.mean(axis=-1).std() < 1e-3


def test_bytes_are_the_same_in_another_process_with_another_number_of_threads(
    raw: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.datasets import sample; d = Path(sys.argv[1])\n"
        f"sample.make_raw('all', d / 'eeg', d / 'images', d / 'image_metadata.npy', sample.{TINY!r})\n"
    )
    environment = {
        "PYTHONPATH": ".",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "7",
    }
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env=environment)
    assert contents(tmp_path) == contents(raw)


def test_one_subject_alone_has_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    alone, both = contents(make(tmp_path, ["sub-02"])), contents(raw)
    assert set(both) - set(alone) == {"eeg/sub-01.zip"}
    assert all(both[name] == data for name, data in alone.items())
    assert both["eeg/sub-01.zip"] != both["eeg/sub-02.zip"]


def test_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sub-01, sub-02.*'sub-03'"):
        make(tmp_path, ["sub-01", "sub-03"])
    with pytest.raises(InputError, match="not 'sub-1'; is it sub-01[?]$"):
        make(tmp_path, ["sub-1"])
    assert contents(tmp_path) == {}


def test_fewer_images_are_some_of_those_of_the_sample(raw: Path, tmp_path: Path) -> None:
    fewer = sample.Size(2, 1, 2, 1, 1)
    sample.make_raw([], tmp_path / "eeg", tmp_path / "images", tmp_path / "metadata", fewer)
    for folder, rows in (("training_images", [0, 2]), ("test_images", [0, 1])):
        few, more = (zipfile.ZipFile(base / "images" / f"{folder}.zip") for base in (tmp_path, raw))
        with few, more:
            pictures = [more.read(name) for name in more.namelist()]
            assert [few.read(name) for name in few.namelist()] == [pictures[row] for row in rows]


def planted(truth: str) -> dict[str, np.ndarray]:
    """What the EEG is made of, of what the embeddings hold alone, by split: (N, components)."""
    return {
        split: sample.eeg_contents(np.zeros((n, 60)), truth, split, sample.Size())
        for split, n in (("train", 400), ("test", 50))
    }


def responses(truth: str) -> dict[str, np.ndarray]:
    """Noise-free responses of a subject to that, by split: (N, C x T)."""
    kernel = sample.draw_kernel(np.random.default_rng(1))
    return {
        split: np.tensordot(values, kernel, 1).reshape(len(values), -1)
        for split, values in planted(truth).items()
    }


def held_by(embeddings: str) -> dict[str, np.ndarray]:
    """The words of `sample_contents` as numbers, by split: (N, components)."""
    return {
        split: np.array([[ord(letter) for letter in word] for word in words.split()])
        - float(ord("m"))
        for split, words in CONTENTS[embeddings].items()
    }


@pytest.mark.parametrize("truth", ["aligned", "unaligned", "nothing"])
def test_the_eeg_holds_what_the_truth_says(truth: str) -> None:
    """By least squares from the EEG to what either embeddings hold; top-1 of 50, noise added."""
    eeg = responses(truth)
    rng = np.random.default_rng(0)
    noisy = {
        split: np.c_[values + 0.2 * rng.standard_normal(values.shape), np.ones(len(values))]
        for split, values in eeg.items()
    }
    top1 = {}
    for embeddings in ("aligned", "unaligned"):
        targets = held_by(embeddings)
        gram = noisy["train"] @ noisy["train"].T + 10 * np.eye(400)
        answers = noisy["test"] @ noisy["train"].T @ np.linalg.solve(gram, targets["train"])
        cosine = np.linalg.norm(answers, axis=1)[:, None] * np.linalg.norm(targets["test"], axis=1)
        similarity = answers @ targets["test"].T / cosine
        top1[embeddings] = (similarity.argmax(1) == np.arange(50)).mean()

    if truth == "nothing":
        # Not of the responses: a matrix product may round each of its rows in another way.
        contents = planted(truth)
        assert (contents["test"] == contents["train"][0]).all()
        assert (contents["train"] == contents["train"][0]).all()
        assert max(top1.values()) < 0.12
    else:
        other = {"aligned": "unaligned", "unaligned": "aligned"}[truth]
        assert top1[truth] > top1[other] + 0.3 > 0.32


def test_the_truth_changes_the_eeg_and_no_picture(raw: Path, tmp_path: Path) -> None:
    for truth in ("unaligned", "nothing"):
        folder = tmp_path / truth
        paths = (folder / "eeg", folder / "images", folder / "image_metadata.npy")
        sample.make_raw("all", *paths, TINY, truth)
        changed, default = contents(folder), contents(raw)
        assert changed.keys() == default.keys()
        differing = {name for name, data in changed.items() if default[name] != data}
        assert differing == {f"eeg/{subject}.zip" for subject in sample.SUBJECTS}


def test_each_truth_says_what_was_planted() -> None:
    assert SAMPLE.planted.keys() == {"aligned", "unaligned", "nothing"}
    for truth, sentence in SAMPLE.planted.items():
        assert f"sample.truth: {truth}" in sentence and sentence.endswith(".")


@pytest.mark.parametrize(
    ("name", "make_raw"), [("sample", sample.make_raw), ("sample-headset", sample_headset.make_raw)]
)
def test_the_download_stage_makes_the_truth_that_params_yaml_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make_raw: Make
) -> None:
    make_tiny = functools.partial(make_raw, size=TINY)
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], source=make_tiny))
    params = tmp_path / "params.yaml"
    text = Path("params.yaml").read_text()
    for shipped, chosen in (
        ("\n  truth: aligned\n", "\n  truth: nothing\n"),
        ("\ndataset: sample\n", f"\ndataset: {name}\n"),
    ):
        assert shipped in text
        text = text.replace(shipped, chosen)
    params.write_text(text)

    names = ("eeg", "images", "metadata", "images.csv")
    download.main(params, *(tmp_path / "stage" / name for name in names))
    expected = tmp_path / "expected"
    make_tiny("all", expected / "eeg", expected / "images", expected / "metadata", truth="nothing")
    made = contents(tmp_path / "stage")
    assert {name: made[name] for name in contents(expected)} == contents(expected)
