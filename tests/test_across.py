"""People of one recording train, people of another one of the same images are tested."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.images.embeddings import read_embeddings
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Across, Runs
from pipeline.train.inputs import SecondRecording, find_people
from pipeline.train.model import load_model
from pipeline.train.projection import project
from pipeline.train.protocols import Run, name_recordings, plan_across
from pipeline.train.runs import train_all
from tests.tiny import quick_recipe

pytestmark = pytest.mark.usefixtures("cache")

HERE = Runs(where="local", workers=1)
FIRST = ("sub-01", "sub-02")
SECOND = ("other-sub-01", "other-sub-02", "other-sub-03")


def across(**changes: object) -> Across:
    values = {
        "dataset": "other",
        "subjects": "all",
        "train_on": "first",
        "models": "pooled",
        "test_on": "second",
    }
    return Across(**values | changes)


@pytest.fixture
def second(data, tmp_path) -> Path:
    """A recording of three other people, with another number of test repetitions."""
    folder = tmp_path / "eeg_second"
    folder.mkdir()
    for number, subject in enumerate(SECOND):
        source = data / "eeg" / f"{FIRST[number % 2]}.h5"
        shutil.copy(source, folder / f"{subject}.h5")
        with h5py.File(folder / f"{subject}.h5", "r+") as file:
            file.attrs["subject"] = subject
            rng = np.random.default_rng(number)
            test = file["test/eeg"][:, :2] + rng.standard_normal(file["test/eeg"][:, :2].shape)
            del file["test/eeg"]
            file["test/eeg"] = test.astype(np.float32)
            train = file["train/eeg"]
            train[:] = train[:] + 0.1 * rng.standard_normal(train.shape)
    return folder


def test_who_trains_and_who_is_tested():
    assert plan_across(across(), FIRST, SECOND, [1, 2]) == [
        Run("across", seed, FIRST, SECOND) for seed in (1, 2)
    ]
    back = across(train_on="second", test_on="first")
    assert plan_across(back, FIRST, SECOND, [1]) == [Run("across", 1, SECOND, FIRST)]
    both = across(train_on="both")
    assert plan_across(both, FIRST, SECOND, [1]) == [Run("across", 1, FIRST + SECOND, SECOND)]

    each = across(models="within-subject")
    assert plan_across(each, FIRST, SECOND, [1, 2]) == [
        Run(f"from-{subject}", seed, (subject,), SECOND) for subject in FIRST for seed in (1, 2)
    ]
    with pytest.raises(InputError, match="are both second, which is one recording alone"):
        plan_across(across(train_on="second"), FIRST, SECOND, [1])
    with pytest.raises(InputError, match="by their own model .*; set across.models to pooled"):
        plan_across(across(train_on="both", models="within-subject"), FIRST, SECOND, [1])


def test_the_recordings_of_a_model_by_name():
    assert name_recordings(FIRST, "a", "b", SECOND) == "a"
    assert name_recordings(SECOND, "a", "b", SECOND) == "b"
    assert name_recordings(FIRST + SECOND, "a", "b", SECOND) == "a and b"


def test_a_model_is_that_of_its_training_people_alone(data, second, tmp_path):
    """The same weights, to the last bit, as where there is one recording and it is pooled."""
    inputs = (data / "eeg", data / "embeddings.h5")
    crossed = quick_recipe(protocol="across")
    recording = SecondRecording(second, across())
    [notes] = train_all(*inputs, tmp_path / "a", crossed, 1, HERE, recording)
    assert (notes["trained_on"], notes["tested_on"]) == ([*FIRST], [*SECOND])

    # Nothing of the people who are tested decides it.
    for path in second.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            for split in ("train", "test"):
                file[f"{split}/eeg"][:] = np.random.default_rng(9).standard_normal(
                    file[f"{split}/eeg"].shape
                )
    train_all(*inputs, tmp_path / "b", crossed, 1, HERE, recording)
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("*/*/model.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]


def test_each_training_person_has_a_model_and_both_recordings_can_train(data, second, tmp_path):
    inputs = (data / "eeg", data / "embeddings.h5")
    each = SecondRecording(second, across(models="within-subject"))
    recipe = quick_recipe(protocol="across")
    notes = train_all(*inputs, tmp_path / "each", recipe, 1, HERE, each)
    assert [(run["fold"], run["trained_on"]) for run in notes] == [
        (f"from-{subject}", [subject]) for subject in FIRST
    ]

    both = SecondRecording(second, across(train_on="both"))
    [notes] = train_all(*inputs, tmp_path / "both", recipe, 1, HERE, both)
    assert notes["trained_on"] == [*FIRST, *SECOND]

    # A model reads the test EEG of the other recording.
    model, _ = load_model(tmp_path / "both/across-seed-1")
    test = read_split(second / f"{SECOND[0]}.h5", "test", average=True)
    cache = read_embeddings(data / "embeddings.h5", "last")
    images = cache.values[cache.rows(test.image_ids)]
    eeg_side, image_side = project(model, torch.from_numpy(test.eeg), torch.from_numpy(images))
    assert len(eeg_side) == len(image_side) == 6


def spoil(folder: Path, change: str) -> None:
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            if change == "channels":
                names = file["ch_names"].asstr()[:].tolist()
                file["ch_names"][:] = [names[1], names[0], names[2]]
            elif change == "times":
                file["times"][:] = file["times"][:] + 0.5
            elif change == "images":
                file["test/image_ids"][0] = "test_images/other.jpg"
            else:
                file.attrs[change] = "another"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("channels", "has channels .*; set preprocess.channels to posterior, or to a list"),
        ("times", "has times 100 samples from .*; set one preprocess.sfreq and one preprocess.w"),
        ("units", "has units another, and .*; set preprocess.normalise to session"),
        ("images", "has not the test images of .*: one of them lacks "),
    ],
)
def test_what_two_recordings_must_share(data, second, change, sentence):
    find_people(data / "eeg", "across", SecondRecording(second, across()))
    spoil(second, change)
    with pytest.raises(InputError, match=sentence):
        find_people(data / "eeg", "across", SecondRecording(second, across()))


def test_without_the_protocol_the_second_recording_is_not_looked_at(data, tmp_path):
    people = find_people(data / "eeg", "pooled", SecondRecording(tmp_path / "none", across()))
    assert people.second == {}
    [run] = people.plan("pooled", [1])
    assert run.tested_on == FIRST


def test_the_protocol_wants_a_second_recording(data, second):
    none = SecondRecording(second, across(dataset="none"))
    with pytest.raises(InputError, match="across.dataset is none: name the second recording"):
        find_people(data / "eeg", "across", none)
    with pytest.raises(InputError, match="there is no second recording: name it in"):
        find_people(data / "eeg", "across", None).plan("across", [1])
