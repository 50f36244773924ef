"""One's own EEG: read as a plain program of MNE and NumPy reads it, whatever the kind of file; bad files are named."""

from dataclasses import dataclass
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.linalg import fractional_matrix_power
from sklearn.discriminant_analysis import _cov

from pipeline.datasets.own.eeg import open_eeg
from pipeline.datasets.own.subject_folder import SubjectFile, SubjectFolder, write_subject_folder

CH_NAMES = ["Fz", "Cz", "O1", "Oz", "HEOG"]
SFREQ = 200.0
TRAIN = [f"train_{i}.jpg" for i in range(6)]
TEST = ["test_0.jpg", "test_1.jpg"]
IMAGES = {
    split: pd.DataFrame({"image_ids": names, "concept": names, "things_concept": names})
    for split, names in {"train": TRAIN, "test": TEST}.items()
}


@dataclass(frozen=True)
class Options:
    """The keys of the section `preprocess` that are used."""

    channels: str | tuple[str, ...] = "all"
    sfreq: float | str = "published"
    window: tuple[float, float] | str = "published"
    baseline: tuple[float, float] | str = "none"
    mvnn: str = "none"
    mvnn_from: str = "training"
    sessions: str | tuple[int, ...] = "all"
    normalise: str = "none"


RAW = {"sfreq": 100.0, "window": (0.0, 0.4), "baseline": (-0.1, 0.0)}


def shown(rng: np.random.Generator) -> list[str]:
    """What a session shows: training images two or three times, test images four times."""
    return rng.permutation(TRAIN * 2 + TRAIN[:2] + TEST * 4).tolist()


def make_epochs(seed: int, names: list[str] = CH_NAMES) -> mne.EpochsArray:
    """A session of pink noise on an offset; the metadata say which image was shown."""
    rng = np.random.default_rng(seed)
    images = shown(rng)
    types = ["eog" if "EOG" in name else "eeg" for name in names]
    noise = np.cumsum(rng.standard_normal((len(images), len(names), 120)), axis=2)
    data = 1e-6 * (noise + 20 * rng.standard_normal((1, len(names), 1)))
    info = mne.create_info(names, SFREQ, types)
    events = np.column_stack(
        [200 * np.arange(len(images)), np.zeros(len(images), int), np.ones(len(images), int)]
    )
    metadata = pd.DataFrame({"image": images})
    return mne.EpochsArray(data, info, events, tmin=-0.2, metadata=metadata, verbose="error")


def make_raw(seed: int, path: mne_bids.BIDSPath) -> list[int]:
    """Write a session as BrainVision in BIDS, an image every 150 samples; returns at which samples."""
    rng = np.random.default_rng(seed)
    images = shown(rng)
    samples = [100 + 150 * i for i in range(len(images))]
    data = 1e-6 * np.cumsum(rng.standard_normal((len(CH_NAMES), 100 + 150 * len(images))), axis=1)
    info = mne.create_info(CH_NAMES, SFREQ, ["eeg"] * 4 + ["eog"])
    raw = mne.io.RawArray(data - data.mean(1, keepdims=True), info, verbose="error")
    raw.set_annotations(mne.Annotations(np.array(samples) / SFREQ, 0, images))
    mne_bids.write_raw_bids(raw, path, format="BrainVision", allow_preload=True, verbose="error")
    return samples


def write_subject(folder: Path, kind: str, files: list[Path], trials: pd.DataFrame) -> Path:
    write_subject_folder(
        folder, SubjectFolder(kind, tuple(SubjectFile(str(p), "0" * 64) for p in files), trials)
    )
    return folder


def trials_of(session: int, file: int, images: list[str], positions: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {"image_ids": images, "session": session, "file": file, "position": positions}
    )


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the same kind of subject in each format: two sessions, a file each."""
    base = tmp_path_factory.mktemp("own")
    trials = {"fif": [], "set": [], "bids": []}
    files = {"fif": [], "set": [], "bids": []}
    for session in (1, 2):
        epochs = make_epochs(session)
        images = epochs.metadata["image"].tolist()
        for kind in ("fif", "set"):
            path = base / f"s{session}{'-epo' if kind == 'fif' else ''}.{kind}"
            if kind == "fif":
                epochs.save(path, fmt="double", verbose="error")
            else:
                epochs.export(path, verbose="error")
            files[kind].append(path)
            trials[kind].append(trials_of(session, session - 1, images, [*range(len(images))]))

        path = mne_bids.BIDSPath(
            root=base / "bids", subject="01", session=str(session), task="x", datatype="eeg"
        )
        samples = make_raw(session, path)
        files["bids"].append(path.fpath)
        images = shown(np.random.default_rng(session))
        trials["bids"].append(trials_of(session, session - 1, images, samples))

    return {
        kind: write_subject(
            base / kind / "sub-01",
            "raw" if kind == "bids" else "epochs",
            files[kind],
            pd.concat(trials[kind]),
        )
        for kind in trials
    }


def read(path: Path, options: Options) -> dict[str, list[np.ndarray]]:
    """Of each split, the EEG (R, C, T) of each image that was shown."""
    with open_eeg(path, IMAGES, options) as raw:
        return {
            split: [image for chunk in chunks for image in chunk]
            for split, chunks in raw.chunks.items()
        }


# The plain program: all in memory, one image and one covariance at a time.


def plain(kind: str, base: Path, options: Options) -> dict[str, list[np.ndarray]]:
    names = ["Fz", "Cz", "O1", "Oz"] if options.channels == "all" else list(options.channels)
    merged = {name: [] for name in TRAIN + TEST}
    for session in (1, 2) if options.sessions == "all" else options.sessions:
        eeg = plain_epochs(kind, base, session, names, options)
        whitener = np.eye(len(names))
        centre, sd = 0.0, 1.0
        if options.mvnn != "none":
            covariance = plain_noise(eeg, TRAIN, options.mvnn)
            if options.mvnn_from == "training-and-test":
                covariance = (covariance + plain_noise(eeg, TEST, options.mvnn)) / 2
            whitener = fractional_matrix_power(covariance, -0.5)
        if options.normalise == "session":
            trials = np.concatenate([eeg[name] for name in TRAIN])
            centre, sd = trials.mean((0, 2))[:, None], trials.std((0, 2))[:, None]
        for name, of_image in eeg.items():
            merged[name] += [(whitener @ epoch - centre) / sd for epoch in of_image]
    return {
        split: [np.array(merged[name]) for name in names_of]
        for split, names_of in {"train": TRAIN, "test": TEST}.items()
    }


def plain_noise(eeg: dict[str, np.ndarray], images: list[str], mvnn: str) -> np.ndarray:
    covariances = []
    for name in images:
        x = eeg[name]  # (R, C, T)
        sets = [x[:, :, t] for t in range(x.shape[2])] if mvnn == "time" else [e.T for e in x]
        with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
            covariances.append(np.mean([_cov(s, shrinkage="auto") for s in sets], axis=0))
    return np.mean(covariances, axis=0)


def plain_epochs(
    kind: str, base: Path, session: int, names: list[str], options: Options
) -> dict[str, np.ndarray]:
    """By image, (R, C, T)."""
    if kind == "bids":
        path = mne_bids.BIDSPath(
            root=base / "bids", subject="01", session=str(session), task="x", datatype="eeg"
        )
        raw = mne_bids.read_raw_bids(path, verbose="error")
        events, event_id = mne.events_from_annotations(raw, verbose="error")
        epochs = mne.Epochs(
            raw, events, event_id, -0.1, 0.41, options.baseline, preload=True, verbose="error"
        )
        epochs.pick(names).resample(options.sfreq, verbose="error")
        keep = slice(10, 51)  # 0 to 0.4 s
        return {name: epochs[name].get_data()[:, :, keep] for name in TRAIN + TEST}

    if kind == "fif":
        epochs = mne.read_epochs(base / f"s{session}-epo.fif", verbose="error")
    else:
        epochs = mne.read_epochs_eeglab(base / f"s{session}.set", verbose="error")
        epochs.metadata = make_epochs(session).metadata
    if options.baseline != "none":
        epochs.apply_baseline(options.baseline, verbose="error")
    if options.sfreq != "published":
        epochs.resample(options.sfreq, verbose="error")
    return {
        name: epochs[f"image == {name!r}"].get_data(picks=names, copy=True) for name in TRAIN + TEST
    }


EPOCHS_OPTIONS = [
    Options(),
    Options(channels=("Oz", "Fz")),
    Options(sfreq=50.0, baseline=(-0.2, 0.0)),
    Options(mvnn="epochs", baseline=(-0.1, 0.0)),
    Options(mvnn="time", mvnn_from="training-and-test"),
    Options(normalise="session"),
    Options(sessions=(2,), mvnn="epochs", mvnn_from="training-and-test"),
]
RAW_OPTIONS = [
    Options(**RAW),
    Options(**RAW, channels=("Oz", "Fz"), mvnn="time"),
    Options(**RAW, normalise="session", sessions=(1,)),
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("fif", options) for options in EPOCHS_OPTIONS),
        *(("set", options) for options in EPOCHS_OPTIONS),
        *(("bids", options) for options in RAW_OPTIONS),
    ],
)
def test_it_is_as_a_plain_program_prepares_it(
    kind: str, options: Options, subjects: dict[str, Path]
) -> None:
    expected = plain(kind, subjects[kind].parent.parent, options)
    eeg = read(subjects[kind], options)
    for split in expected:
        assert len(eeg[split]) == len(expected[split])
        for ours, theirs in zip(eeg[split], expected[split], strict=True):
            # MVNN of few repetitions is near singular: its inverse root costs some digits.
            scale = np.abs(theirs).max()
            tolerance = 1e-12 if options.mvnn == "none" else 1e-9
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
