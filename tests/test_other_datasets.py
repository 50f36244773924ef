"""Raw THINGS-EEG2 and THINGS-MEG from their servers, on loopback, through every stage to metrics and report."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from pipeline.datasets.sample import Size, make_raw
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from stages import download, embed, evaluate, preprocess, report, train, weights
from tests.meg_files import make_meg
from tests.osf_server import Server, serve
from tests.raw_eeg import make_raw_subject
from tests.tiny import explain_evaluation

TINY = Size(
    train_concepts=12,
    images_per_concept=2,
    test_concepts=6,
    train_repetitions=2,
    test_repetitions=3,
)
TABLES = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")
QUICK: dict[str, dict[str, Any]] = {
    "embed": {"device": "cpu"},
    "preprocess": {"workers": 1},
    "train": {"epochs": 2, "batch_size": 16, "validation_concepts": 0.25, "device": "cpu"},
    "evaluate": {"resamples": 100, "n_way": [2], "repetitions": [1, 5]},
}


@dataclass(frozen=True)
class Published:
    """What the servers have, and the user's own copy of THINGS."""

    server: Server
    things: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    base = tmp_path_factory.mktemp("published")
    make_raw("all", base / "anp5v", base / "y63gw", base / "y63gw/image_metadata.npy", TINY)
    for subject in ("sub-01", "sub-02"):
        make_raw_subject(base / "raw", {"train": 24, "test": 6}, subject)
    (base / "meg").mkdir()
    make_meg(base / "meg", ("P1", "P2"), n_concepts=12, n_images=4, n_test=6, n_repetitions=6)
    prepared, source = (
        base / "bucket/ds004212/derivatives/preprocessed",
        base / "bucket/ds004212/sourcedata",
    )
    prepared.mkdir(parents=True)
    source.mkdir()
    for path in (base / "meg/eeg").glob("*/*.fif"):
        shutil.move(path, prepared)
    for path in (base / "meg").glob("*.csv"):
        shutil.move(path, source)
    make_checkpoint("synclr_vitb16", base / "releases/v0.2.1-checkpoints", embed_dim=64)
    nodes, releases = {name: base / name for name in ("anp5v", "y63gw")}, base / "releases"
    with serve(
        nodes, releases, articles={18470912: base / "raw"}, bucket=base / "bucket"
    ) as server:
        yield Published(server, base / "meg/object_images")


def settings(published: Published, recipe: str, **preprocess: object) -> dict[str, Any]:
    """params.yaml with a file of params/ and the loopback addresses."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    for word in Path("params", recipe).read_text().split()[1::2] if recipe else ():
        key, _, value = word.partition("=")
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = yaml.safe_load(value)
    server = published.server
    values["download"] |= {
        "osf_api": server.api,
        "figshare_api": server.figshare,
        "openneuro": server.bucket,
    }
    values["download"] |= {
        "dreamsim_releases": server.releases,
        "things_images": str(published.things),
    }
    for section, changes in QUICK.items():
        values[section] |= changes
    values["preprocess"] |= preprocess
    return values


def run(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """All stages in a folder; evaluation.json."""
    folder.mkdir()
    params, raw, eeg, model = (
        folder / "params.yaml",
        folder / "raw",
        folder / "eeg",
        folder / "model",
    )
    params.write_text(yaml.safe_dump(values))
    download.main(params, raw / "eeg", raw / "images", raw / "metadata", raw / "images.csv")
    weights.main(params, values["backbone"], folder / "weights")
    preprocess.main(params, raw / "eeg", raw / "images.csv", eeg.parent / "private", eeg)
    cache = folder / "unaligned.h5"
    inputs = raw / "images", raw / "images.csv", folder / "weights"
    embed.main(params, values["backbone"], "none", *inputs, cache, cache)
    train.main(params, eeg, cache, model)
    found, scored = folder / "evaluation.json", folder / "evaluation.h5"
    tables = [folder / f"{name}.csv" for name in TABLES]
    evaluate.main(params, eeg, cache, model, found, scored, tables)
    tables += explain_evaluation(folder, raw / "images.csv", eeg, [cache] * 3, model)
    curve = Path("reference/learning_curve.csv"), folder / "learning_curves.csv"
    shown = folder / "pictures", folder / "report.html"
    report.main(
        *(params, raw / "images", scored, model / "history.csv", found),
        *(folder / "explanation.json", folder / "comparison.json"),
        *curve,
        *shown,
        tables,
        folder / "baseline.h5",
    )
    return json.loads(found.read_text())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.long
def test_raw_recordings_share_the_images_of_the_release(
    published: Published, tmp_path: Path
) -> None:
    summary = run(tmp_path / "raw", settings(published, "release-data", dtype="float16"))
    assert (summary["dataset"], summary["n_way"], summary["n_subjects"]) == (
        "things-eeg2-raw",
        6,
        2,
    )
    assert "noise normalisation saw the test EEG" in summary["caveats"][0]
    assert summary["caveats"][0] in (tmp_path / "raw/report.html").read_text()
    with h5py.File(tmp_path / "raw/eeg/sub-02.h5") as file:
        assert file["train/eeg"].shape == (24, 17, 100) and file["test/eeg"].shape == (
            6,
            80,
            17,
            100,
        )
        assert (file["train/eeg"].dtype, file.attrs["sfreq"], file.attrs["mvnn"]) == (
            "float16",
            100.0,
            "time",
        )

    params, folder = tmp_path / "params.yaml", tmp_path / "release"
    params.write_text(yaml.safe_dump(settings(published, "") | {"dataset": "things-eeg2"}))
    download.main(
        params, folder / "eeg", folder / "images", folder / "metadata", folder / "images.csv"
    )
    # All that the embed stage reads of a dataset: DVC then finds its embeddings in the cache.
    for name in ("images.csv", "images/training_images.zip", "images/test_images.zip"):
        assert (folder / name).read_bytes() == (tmp_path / "raw/raw" / name).read_bytes()


def test_raw_recordings_need_a_rate(published: Published, tmp_path: Path) -> None:
    values = settings(published, "") | {"dataset": "things-eeg2-raw", "subjects": ["sub-01"]}
    with pytest.raises(
        Exception, match="choose both, as params/paper-data or params/release-data do"
    ):
        run(tmp_path / "raw", values)


@pytest.mark.long
def test_meg_with_places_of_its_own(published: Published, tmp_path: Path) -> None:
    summary = run(tmp_path / "meg", settings(published, "meg"))
    assert (summary["dataset"], summary["n_way"], summary["n_subjects"]) == ("things-meg", 6, 2)
    assert any("single trials" in caveat for caveat in summary["caveats"])
    with h5py.File(tmp_path / "meg/eeg/P2.h5") as file:
        assert file["train/eeg"].shape == (24, 8, 201) and file["test/eeg"].shape == (6, 6, 8, 201)
        assert (round(file["times"][0], 6), round(file["times"][-1], 6), file.attrs["sfreq"]) == (
            0,
            1,
            200,
        )
    assert (tmp_path / "meg/channels.csv").read_text().startswith("ch_name,x,y,")
    page = (tmp_path / "meg/report.html").read_text()
    assert "concept names stand for them" in page and "Published figures" not in page
