"""Some sessions of the raw recordings, from the archives to the metrics: subjects that saw different images."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pipeline.datasets.image_table import read_image_table, write_image_table
from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.table import DATASETS, THINGS_EEG2_RAW
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.preprocess.preparation import UNITS_OF_SESSION, prepare_subjects
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Preprocess, Runs
from pipeline.train.runs import train_all
from stages import evaluate
from tests.preparing import no_other_process
from tests.raw_eeg import make_raw_subject
from tests.tiny import make_embeddings, quick_recipe

SIZE = Size(
    train_concepts=18,
    images_per_concept=2,
    test_concepts=2,
    train_repetitions=2,
    test_repetitions=3,
)


def preprocess(**changes: object) -> Preprocess:
    quick = {
        "sfreq": 100.0,
        "window": [0.0, 0.79],
        "baseline": [-0.2, 0.0],
        "workers": 1,
        "channels": ["O1", "Oz"],
    }
    values = read_params(Path("params.yaml")).preprocess.model_dump() | quick | changes
    return Preprocess(**values)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects; in a session each sees half of the concepts, and not the same ones."""
    base = tmp_path_factory.mktemp("sessions")
    make_raw("all", base / "published", base / "images", base / "image_metadata.npy", SIZE)
    images = THINGS_EEG2_RAW.read_metadata(base / "image_metadata.npy")
    write_image_table(base / "images.csv", images)
    n_conditions = {split: len(table) for split, table in images.items()}
    for shift in (0, 1):
        make_raw_subject(
            base / "raw",
            n_conditions,
            f"sub-0{shift + 1}",
            ch_names=["O1", "Oz"],
            images_per_concept=2,
            shift=shift,
        )
    return base


@pytest.fixture(scope="module")
def one(raw: Path) -> Path:
    """The first session of both subjects, prepared."""
    return prepared(raw, raw / "one", sessions=[1])


def prepared(raw: Path, out: Path, recordings: str = "raw", **changes: object) -> Path:
    with no_other_process():
        prepare_subjects(
            THINGS_EEG2_RAW, raw / recordings, raw / "images.csv", out, preprocess(**changes)
        )
    return out


def test_images_that_were_not_shown_are_left_out(raw: Path, one: Path) -> None:
    images = read_image_table(raw / "images.csv")["train"]
    seen = {}
    for subject in ("sub-01", "sub-02"):
        train = read_split(one / f"{subject}.h5", "train", average=True)
        test = read_split(one / f"{subject}.h5", "test", average=False)
        assert (train.eeg.shape, test.eeg.shape) == ((18, 2, 80), (2, 20, 2, 80))
        assert "only 1 were used" in train.caveats[0]
        row = images.set_index("image_ids").index.get_indexer(train.image_ids)
        assert (np.diff(row) > 0).all() and train.things_concept.tolist() == images[
            "things_concept"
        ][row].tolist()
        seen[subject] = set(train.image_ids)
    assert seen["sub-01"] != seen["sub-02"]


def test_each_session_is_a_z_score_of_its_own(raw: Path, tmp_path: Path) -> None:
    """The dataset has done it: the preparation takes nothing out a second time."""
    (raw / "z-score").mkdir()
    (raw / "z-score/sub-01.zip").symlink_to(raw / "raw/sub-01.zip")
    changes = {"normalise": "session", "average_repetitions": False, "dtype": "float64"}
    both = prepared(raw, tmp_path / "both", "z-score", sessions=[1, 2], **changes)
    for session in (1, 2):
        alone = prepared(raw, tmp_path / str(session), "z-score", sessions=[session], **changes)
        train, test = (
            read_split(alone / "sub-01.h5", split, average=False) for split in ("train", "test")
        )
        np.testing.assert_allclose(train.eeg.mean((0, 1, 3)), 0, atol=1e-9)
        np.testing.assert_allclose(train.eeg.std((0, 1, 3)), 1)

        trials = read_split(both / "sub-01.h5", "test", average=False).eeg
        of_session = trials[:, 20 * (session - 1) : 20 * session]
        np.testing.assert_allclose(of_session, test.eeg, atol=1e-9)
    with h5py.File(both / "sub-01.h5") as file:
        assert "mean" not in file and file.attrs["units"] == UNITS_OF_SESSION


@pytest.mark.long
def test_repetitions_that_differ(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean is of all that an image has; an array of single repetitions has as many of each."""
    (raw / "first").mkdir()
    (raw / "first/sub-01.zip").symlink_to(raw / "raw/sub-01.zip")
    prepared(raw, tmp_path / "mean", "first", sessions=[1, 2, 3], dtype="float64")
    out = capsys.readouterr().out
    assert (
        "sub-01: of 36 training images 0 are missing, 18 have 2 repetitions and 18 have 4 repetitions\n"
        in out
    )
    assert "sub-01: of 2 test images 0 are missing, 2 have 60 repetitions\n" in out
    prepared(
        raw,
        tmp_path / "single",
        "first",
        sessions=[1, 2, 3],
        dtype="float64",
        average_repetitions=False,
    )
    out = capsys.readouterr().out
    assert "; only the first 2 are taken, because preprocess.average_repetitions is false" in out

    def train(name: str) -> dict[str, np.ndarray]:
        recording = read_split(tmp_path / name / "sub-01.h5", "train", average=False)
        return dict(zip(recording.image_ids, recording.eeg, strict=True))

    mean, single = train("mean"), train("single")
    assert all(eeg.shape == (2, 2, 80) for eeg in single.values())
    of_four = [
        image_id
        for image_id in mean
        if np.abs(mean[image_id] - single[image_id].mean(0)).max() > 1e-12
    ]
    assert len(of_four) == 18


@pytest.mark.parametrize("protocol", ["pooled", "within-subject", "leave-one-subject-out"])
def test_from_one_session_to_the_metrics(
    raw: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    ids = [
        image_id
        for table in read_image_table(raw / "images.csv").values()
        for image_id in table["image_ids"]
    ]
    make_embeddings(tmp_path / "embeddings.h5", np.array(ids, object), seed=0)
    recipe = quick_recipe(protocol=protocol, validation_concepts=0.4)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values |= {"dataset": "things-eeg2-raw", "train": recipe.model_dump()}
    values["evaluate"] |= {"top_k": [1], "resamples": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    inputs, model = (one, tmp_path / "embeddings.h5"), tmp_path / "model"
    notes = train_all(*inputs, model, recipe, 1, Runs(where="local", workers=1))
    assert len(notes) == (1 if protocol == "pooled" else 2)
    metrics = tmp_path / "metrics.json"
    evaluate.main(
        tmp_path / "params.yaml", *inputs, model, metrics, tmp_path / "similarities.h5", []
    )
    summary = json.loads(metrics.read_text())
    assert summary["n_subjects"] == 2
    assert any("only 1 were used" in caveat for caveat in summary["caveats"])


def test_sessions_of_what_is_no_raw_recording(tmp_path: Path) -> None:
    for name in ("sample", "things-eeg2", "things-meg"):
        published = preprocess(sfreq="published", window="published", baseline="none", sessions=[1])
        with pytest.raises(
            InputError, match=r"preprocess.sessions is \[1\]: only raw .*; set it to all"
        ):
            DATASETS[name].memory_needed(tmp_path / "sub-01.zip", published)


def test_all_subjects_are_looked_at_before_one_is_read(raw: Path, tmp_path: Path) -> None:
    """The archive of the second lacks a session: the first is not read for nothing."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/sub-01.zip").symlink_to(raw / "raw/sub-01.zip")
    data = (raw / "raw/sub-02.zip").read_bytes()
    (tmp_path / "raw/sub-02.zip").write_bytes(data.replace(b"ses-04/", b"ses-09/"))
    with pytest.raises(InputError, match="sub-02.zip: session 4 is not there") as error:
        prepare_subjects(
            THINGS_EEG2_RAW, tmp_path / "raw", raw / "images.csv", tmp_path / "out", preprocess()
        )
    assert not (tmp_path / "out").exists()

    [left] = re.findall(r"'preprocess.sessions=(.*?)'", str(error.value))
    chosen = preprocess(sessions=yaml.safe_load(left))
    assert chosen.sessions == [1, 2, 3]
    for path in THINGS_EEG2_RAW.find_subjects(tmp_path / "raw").values():
        assert THINGS_EEG2_RAW.memory_needed(path, chosen) > 0
