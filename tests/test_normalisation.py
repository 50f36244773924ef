"""The order of averaging and normalising, held against the plain program of AlignVis's ThingsMEG, in NumPy."""

from pathlib import Path
from unittest import mock

import mne
import numpy as np
import pytest
import torch
import yaml

from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.table import DATASETS
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.normalisation import normalise
from pipeline.preprocess.preparation import prepare_subjects
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Preprocess
from pipeline.train.samples import LoadedEeg
from pipeline.train.stack import read_eeg
from tests import meg_files
from tests.meg_files import image_id, make_meg
from tests.preparing import no_other_process

EPS = 1e-8  # that AlignVis adds to the norm


def normalised_by_hand(eeg: np.ndarray) -> np.ndarray:
    centred = eeg - np.mean(eeg, axis=-1, keepdims=True)
    return centred / (np.linalg.norm(eeg, axis=-1, keepdims=True) + EPS)


def test_numpy_and_torch_as_by_hand() -> None:
    """In any unit; a channel without values stays 0, and one that is constant becomes 0."""
    eeg = np.random.default_rng(0).standard_normal((5, 3, 40)) + 2
    eeg[0, 0] = 0
    eeg[0, 1] = 7
    expected = normalised_by_hand(eeg)
    for unit in (1, 1e-6, 1e6):
        np.testing.assert_allclose(normalise(unit * eeg), expected, atol=1e-7)
    in_torch = normalise(torch.from_numpy(eeg)).numpy()
    np.testing.assert_allclose(in_torch, normalise(eeg), rtol=1e-12, atol=1e-15)
    assert normalise(torch.from_numpy(eeg).float()).dtype == torch.float32
    assert not normalise(eeg)[0, :2].any()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, and eeg/P1.h5 prepared by params/meg."""
    folder = tmp_path_factory.mktemp("meg")
    raw = folder / "raw"
    raw.mkdir()
    # Trials that differ: otherwise the order would not show
    rng = np.random.default_rng(0)
    with mock.patch.object(meg_files, "expected", lambda *_: rng.standard_normal((8, 281))):
        make_meg(raw, n_concepts=12, n_images=3, n_test=6)
    words = Path("params/meg").read_text().replace("-S ", "").split()
    values = dict(word.split("=") for word in words)
    dataset = DATASETS[values.pop("dataset")]

    preprocess = yaml.safe_load(Path("params.yaml").read_text())["preprocess"]
    for key, value in values.items():
        preprocess[key.removeprefix("preprocess.")] = yaml.safe_load(value)
    parameters = Preprocess.model_validate(preprocess | {"workers": 1})
    write_image_table(
        folder / "images.csv", dataset.read_metadata(raw / "sample_attributes_P1.csv")
    )
    with no_other_process():
        prepare_subjects(dataset, raw / "eeg", folder / "images.csv", folder / "eeg", parameters)
    return folder


def trials_of(folder: Path) -> dict[str, np.ndarray]:
    """By image id all trials (R, C, T) of it from 0 to 1 s, as MNE reads them."""
    epochs = mne.read_epochs(folder / "raw/eeg/P1/preprocessed_P1-epo.fif", verbose="error")
    epochs = epochs[epochs.metadata["trial_type"] != "catch"].crop(0, 1)
    ids = np.array(["things_images/" + image_id(path) for path in epochs.metadata["image_path"]])
    eeg = epochs.get_data()
    return {image: eeg[ids == image] for image in set(ids)}


def test_meg_is_that_of_the_plain_program(prepared: Path) -> None:
    """Training: single trials. Test: the mean of 12 trials, then normalised; the other order differs."""
    trials = trials_of(prepared)
    path = prepared / "eeg/P1.h5"
    for split, n_repetitions in (("train", 1), ("test", 12)):
        recording = read_split(path, split, average=True)
        of_images = [trials[image] for image in recording.image_ids]
        assert {len(eeg) for eeg in of_images} == {n_repetitions}

        expected = [normalised_by_hand(eeg.mean(axis=0)) for eeg in of_images]
        np.testing.assert_allclose(recording.eeg, expected, atol=1e-7)
        each_first = np.array([normalised_by_hand(eeg).mean(axis=0) for eeg in of_images])
        spread = each_first.std() / recording.eeg.std()
        assert spread < 0.35 if split == "test" else np.isclose(spread, 1)  # noise: 1 / sqrt(12)


def test_training_and_selection_have_the_same_meg(prepared: Path) -> None:
    """What a step takes from the files: single training trials, drawn averages, and the test averages."""
    path = prepared / "eeg/P1.h5"
    ids = np.concatenate([read_split(path, split, True).image_ids for split in ("train", "test")])
    embeddings = Embeddings(np.zeros((len(ids), 4), np.float32), ids)

    train = LoadedEeg([path], "train").samples([path], embeddings)
    test = LoadedEeg([path], "test").samples([path], embeddings)
    assert train.to_normalise and not test.to_normalise
    for samples, split in ((train, "train"), (test, "test")):
        eeg = read_eeg(samples.eeg, torch.arange(len(samples.eeg))[None], torch.float32)[0]
        ready = normalise(eeg) if samples.to_normalise else eeg
        expected = read_split(path, split, average=True).eeg
        np.testing.assert_allclose(ready.numpy(), expected, atol=1e-6)
