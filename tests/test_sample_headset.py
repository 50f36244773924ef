"""The second recording of the sample's pictures: a consumer headset on other people."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import sample, sample_headset
from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.table import DATASETS, SAMPLE, SAMPLE_HEADSET
from pipeline.errors import InputError
from tests.tiny import shipped_params

TINY = sample.Size(
    train_concepts=6, images_per_concept=2, test_concepts=3, train_repetitions=2, test_repetitions=3
)
N_IMAGES = {"training": 12, "test": 3}


def make(folder: Path, make_raw, truth: str = "aligned", subjects: list[str] | str = "all") -> Path:
    paths = folder / "eeg", folder / "images", folder / "image_metadata.npy"
    make_raw(subjects, *paths, TINY, truth)
    return folder


@pytest.fixture(scope="module")
def headset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("headset"), sample_headset.make_raw)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("laboratory"), sample.make_raw)


def read(folder: Path, subject: str, split: str) -> dict:
    with zipfile.ZipFile(folder / "eeg" / f"{subject}.zip") as archive:
        file = io.BytesIO(archive.read(f"{subject}/preprocessed_eeg_{split}.npy"))
    return np.load(file, allow_pickle=True).item()  # made by this very test


def eeg_of(folder: Path, subject: str, split: str) -> np.ndarray:
    return read(folder, subject, split)["preprocessed_eeg_data"]


def test_pictures_and_metadata_are_those_of_the_sample(headset: Path, laboratory: Path) -> None:
    for name in ("images/training_images.zip", "images/test_images.zip", "image_metadata.npy"):
        assert (headset / name).read_bytes() == (laboratory / name).read_bytes()
    assert SAMPLE_HEADSET.read_metadata is SAMPLE.read_metadata


def test_the_reader_of_the_release_reads_it(headset: Path) -> None:
    images = SAMPLE_HEADSET.read_metadata(headset / "image_metadata.npy")
    files = SAMPLE_HEADSET.find_subjects(headset / "eeg")
    assert list(files) == ["sub-01", "sub-02", "sub-03"]

    opened = SAMPLE_HEADSET.open_eeg(files["sub-03"], images, shipped_params().preprocess)
    with opened as recording:
        assert " ".join(recording.layout.ch_names) == (
            "Cz FCz AFz Fp1 F5 F1 CP5 CP3 CP1 P1 P3 P5 P7 PO7 PO3 O1 Pz POz Oz O2 PO4 PO8 P8 P6 P4 "
            "P2 CP2 CP4 CP6 F2 F6 Fp2"
        )
        assert set(POSTERIOR) < set(recording.layout.ch_names)
        np.testing.assert_array_equal(recording.layout.times, sample.TIMES)
        train, test = (np.concatenate(list(recording.chunks[split])) for split in images)
    assert train.shape == (12, 2, 32, 100)
    assert test.shape == (3, 3, 32, 100)


def test_the_whole_recording_has_fewer_repetitions_of_the_same_pictures() -> None:
    headset, laboratory = sample_headset.SIZE, sample.Size()
    assert (headset.train_repetitions, headset.test_repetitions) == (2, 12)
    for key in ("train_concepts", "images_per_concept", "test_concepts"):
        assert getattr(headset, key) == getattr(laboratory, key)


def test_its_people_are_others(headset: Path, laboratory: Path) -> None:
    """Where both recordings call somebody sub-01, no trial of one is in the other."""
    channels = [sample_headset.CH_NAMES.index(name) for name in sample.CH_NAMES]
    here = [
        eeg_of(headset, subject, "training")[:, :, channels] for subject in sample_headset.SUBJECTS
    ]
    there = [eeg_of(laboratory, subject, "training") for subject in sample.SUBJECTS]
    trials = [eeg.reshape(24, -1) for eeg in (*here, *there)]

    correlations = np.corrcoef(np.concatenate(trials))
    assert abs(correlations[np.triu_indices(len(correlations), 1)]).max() < 0.3


def test_a_subject_alone_has_the_same_bytes(headset: Path, tmp_path: Path) -> None:
    make(tmp_path, sample_headset.make_raw, subjects=["sub-02"])
    assert [path.name for path in (tmp_path / "eeg").iterdir()] == ["sub-02.zip"]
    alone = (tmp_path / "eeg/sub-02.zip").read_bytes()
    assert alone == (headset / "eeg/sub-02.zip").read_bytes()


def test_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    sentence = "sample-headset has sub-01, sub-02, sub-03, not 'sub-3'; is it sub-03[?]$"
    with pytest.raises(InputError, match=sentence):
        make(tmp_path, sample_headset.make_raw, subjects=["sub-3"])
    assert not list(tmp_path.iterdir())


def mean_kernel(module) -> np.ndarray:
    """What all people share, (F, C, 100): the mean over many of them."""
    return np.mean([module.draw_kernel(np.random.default_rng(i)) for i in range(40)], axis=0)


def test_people_of_both_recordings_respond_alike_at_the_channels_of_one_name() -> None:
    laboratory, headset = mean_kernel(sample), mean_kernel(sample_headset)
    correlations = np.array(
        [
            [np.corrcoef(laboratory[:, i].ravel(), headset[:, j].ravel())[0, 1] for j in range(32)]
            for i in range(17)
        ]
    )

    # A row for each channel of the sample: the one of its name stands out.
    same_name = [sample_headset.CH_NAMES.index(name) for name in sample.CH_NAMES]
    assert correlations.argmax(1).tolist() == same_name
    of_one_name = correlations[np.arange(17), same_name]
    assert of_one_name.mean() == pytest.approx(sample_headset.IN_COMMON, abs=0.05)

    others = np.delete(correlations, same_name, axis=1)
    assert abs(others.mean()) < 0.05

    # Weaker responses; the noise is compared trial by trial in the next test.
    assert sample_headset.RESPONSE < 1 < sample_headset.NOISE
    ratio = headset.std() / laboratory.std()
    assert ratio == pytest.approx(sample_headset.RESPONSE, rel=0.05)


def noise_of(subject: str) -> dict[str, np.ndarray]:
    """The noise of a subject's trials alone, `NOISE` times as strong as in the sample."""
    rng = sample.draws("eeg of the headset", sample_headset.SUBJECTS.index(subject))
    kernel = sample_headset.draw_kernel(rng)
    noise = {}
    for split, n_images in N_IMAGES.items():
        no_contents = np.zeros((n_images, len(kernel)))
        n_repetitions = {"training": 2, "test": 3}[split]
        noise[split] = sample.simulate_eeg(
            no_contents, kernel, n_repetitions, rng, sample_headset.NOISE
        )
    return noise


def test_the_truth_nothing_holds_nothing_of_the_pictures(headset: Path, tmp_path: Path) -> None:
    make(tmp_path, sample_headset.make_raw, truth="nothing", subjects=["sub-01"])
    noise = noise_of("sub-01")
    rounding = 2 / 4096  # of values and noise

    responses = {
        truth: {
            split: eeg_of(folder, "sub-01", split).mean(1) - noise[split].mean(1)
            for split in N_IMAGES
        }
        for truth, folder in (("nothing", tmp_path), ("aligned", headset))
    }
    first = responses["nothing"]["training"][0]
    assert np.ptp(first) > 0.01
    for of_split in responses["nothing"].values():
        assert abs(of_split - first).max() <= rounding

    # The default truth differs from picture to picture, and after the stimulus alone.
    differences = responses["aligned"]["training"] - responses["aligned"]["training"][0]
    assert abs(differences[..., sample.TIMES > 0.1]).max() > 0.1
    assert abs(differences[..., sample.TIMES < 0.08]).max() <= rounding


def test_all_that_is_made_here_says_so_by_its_name() -> None:
    """`stages.train` tells by the name, so that no table of datasets decides a training."""
    synthetic = {name for name, dataset in DATASETS.items() if dataset.synthetic}
    assert synthetic == {name for name in DATASETS if name.startswith("sample")}
    assert SAMPLE_HEADSET.planted == SAMPLE.planted
