"""The pipeline finds what was planted in the sample, and nothing where nothing was; on the whole sample, for minutes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.planted import words_of
from pipeline.compare.comparison import compare
from pipeline.datasets.sample_contents import CONTENTS
from pipeline.evaluate.similarities import read_similarities
from pipeline.params import read_params
from stages import download, embed, evaluate, preprocess, train, weights

pytestmark = pytest.mark.long
QUICK = {"epochs": 30, "seeds": 3}  # the best epochs are before the 30th


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample's pictures, and with both embeddings of them."""
    folder = tmp_path_factory.mktemp("sample")
    params = write_params(folder, "aligned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNED_EEG_CACHE", str(folder / "cache"))
        download_to(folder, params)
        weights.main(params, "synclr_vitb16", folder / "weights")
        inputs = folder / "images", folder / "images.csv", folder / "weights"
        unaligned = folder / "unaligned.h5"
        embed.main(params, "synclr_vitb16", "none", *inputs, unaligned, unaligned)
        embed.main(params, "synclr_vitb16", "dreamsim", *inputs, unaligned, folder / "aligned.h5")
    return folder


def write_params(folder: Path, truth: str, encoder: str = "unaligned", **changes: object) -> Path:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["encoder"] = encoder
    values["sample"]["truth"] = truth
    values["train"] |= QUICK | changes
    values["train"]["device"] = values["embed"]["device"] = "cpu"
    values["runs"]["workers"] = 1
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def download_to(folder: Path, params: Path) -> None:
    download.main(
        params, folder / "raw", folder / "images", folder / "metadata", folder / "images.csv"
    )


def evaluate_in(folder: Path, images: Path, truth: str, encoder: str, **changes: object) -> Path:
    """Train and evaluate on the EEG in `folder`; details.json and evaluation.h5 of it."""
    params = write_params(folder, truth, encoder, **changes)
    cache, out = images / f"{encoder}.h5", folder / f"{encoder}{len(changes)}"
    train.main(params, folder / "eeg", cache, out / "model")
    evaluate.main(
        params,
        folder / "eeg",
        cache,
        out / "model",
        out / "details.json",
        out / "evaluation.h5",
        [],
    )
    return out


def details(out: Path) -> dict[str, Any]:
    return json.loads((out / "details.json").read_text())


def test_the_table_is_what_the_embeddings_hold(images: Path) -> None:
    """Another machine may round another way, by a letter."""
    for truth in ("aligned", "unaligned"):
        words = words_of(images / f"{truth}.h5", images / "images.csv")
        for split, written in CONTENTS[truth].items():
            letters = [[ord(letter) for letter in word] for word in written.split()]
            made = [[ord(letter) for letter in word] for word in words[split]]
            difference = np.abs(np.array(letters) - np.array(made))
            assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize(
    ("truth", "verdict"),
    [("aligned", "better"), ("unaligned", "worse"), ("nothing", "no difference shown")],
)
def test_the_pipeline_finds_what_was_planted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: str, verdict: str
) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    params = write_params(tmp_path, truth)
    download_to(tmp_path, params)
    preprocess.main(
        params,
        tmp_path / "raw",
        tmp_path / "images.csv",
        tmp_path / "private",
        tmp_path / "eeg",
    )

    sides = [evaluate_in(tmp_path, images, truth, encoder) for encoder in ("unaligned", "aligned")]
    p = read_params(params)
    found = compare(
        *(read_similarities(out / "evaluation.h5") for out in sides), p.evaluate, p.seed
    )
    assert found["verdict"] == verdict, found["answer"]
    assert f"sample.truth: {truth}" in found["answer"]
    is_above = [details(out)["p_above_chance"] <= 0.05 for out in sides]
    assert is_above == [truth != "nothing"] * 2

    if truth == "aligned":
        control = evaluate_in(tmp_path, images, truth, "aligned", control="shuffled")
        assert details(control)["p_above_chance"] > 0.05
