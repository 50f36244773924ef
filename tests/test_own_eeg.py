"""One's own EEG: read as a plain program of MNE and NumPy reads it, whatever the kind of file; bad files are named."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.linalg import fractional_matrix_power
from sklearn.discriminant_analysis import _cov

from pipeline.datasets.entry import RawEeg
from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.own import eeg as own_eeg
from pipeline.datasets.own.eeg import find_subjects, memory_needed, open_eeg
from pipeline.datasets.own.recordings import epochs_files, open_epochs, open_raw, pick_data
from pipeline.datasets.own.subject_folder import (
    SubjectFile,
    SubjectFolder,
    read_subject_folder,
    write_subject_folder,
)
from pipeline.datasets.table import THINGS_EEG2
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.preprocess.preparation import link_subjects, prepare_subjects
from pipeline.preprocess.recordings import (
    check_recordings,
    find_recordings,
    read_caveats,
    read_split,
)
from stages import find_linked_files

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
    # At a low rate: scikit-learn takes a covariance at each of the times.
    Options(mvnn="time", mvnn_from="training-and-test", sfreq=20.0),
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
        *(("set", options) for options in EPOCHS_OPTIONS[:4]),
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


# What is told of the recording


def opened(path: Path, options: Options = Options()) -> RawEeg:
    with open_eeg(path, IMAGES, options) as raw:
        return raw


def save_fif(epochs: mne.EpochsArray, folder: Path, subject: str = "sub-01") -> Path:
    """A subject of this one session of epochs."""
    path = folder / f"{subject}-epo.fif"
    epochs.save(path, overwrite=True, verbose="error")
    images = epochs.metadata["image"].tolist()
    trials = trials_of(1, 0, images, [*range(len(images))])
    return write_subject(folder / "subjects" / subject, "epochs", [path], trials)


def test_eye_channels_are_left_out_and_the_unit_is_told(subjects: dict[str, Path]) -> None:
    for kind, options in (("fif", Options()), ("set", Options()), ("bids", Options(**RAW))):
        raw = opened(subjects[kind], options)
        assert raw.layout.ch_names == ("Fz", "Cz", "O1", "Oz")
        assert (raw.layout.modality, raw.units, raw.caveats) == ("EEG", "V", ())
        assert raw.layout.sensor_positions is None  # the 10-05 system knows the names
    assert "no physical unit" in opened(subjects["fif"], Options(mvnn="epochs")).units


def test_sensors_of_other_names_are_where_the_file_has_them(tmp_path: Path) -> None:
    epochs = make_epochs(1, ["A1x", "B1x", "C1x", "D1x", "E1x"])
    without = opened(save_fif(epochs, tmp_path))
    assert without.layout.sensor_positions is None

    positions = 0.1 * np.array([[0, 1, 0], [1, 0, 0], [0, -1, 0], [-1, 0, 0], [0, 0, 1]])
    montage = mne.channels.make_dig_montage(dict(zip(epochs.ch_names, positions, strict=True)))
    path = save_fif(epochs.set_montage(montage, verbose="error"), tmp_path, "sub-02")
    seen = opened(path).layout.sensor_positions
    np.testing.assert_allclose(seen, positions[:, :2] / 0.1, atol=1e-6)


def test_meg_is_used_where_there_is_no_eeg(tmp_path: Path) -> None:
    epochs = make_epochs(1, ["MEG1", "MEG2", "MEG3", "EEG1"])
    epochs.set_channel_types(
        {"MEG1": "mag", "MEG2": "grad", "MEG3": "mag"}, on_unit_change="ignore", verbose="error"
    )
    raw = opened(save_fif(epochs, tmp_path))
    assert raw.layout.ch_names == ("EEG1",)
    assert raw.caveats == ("Of EEG and MEG that were recorded together, the EEG alone was used.",)

    raw = opened(save_fif(epochs.drop_channels("EEG1"), tmp_path))
    assert raw.layout.ch_names == ("MEG1", "MEG2", "MEG3")
    assert (raw.layout.modality, raw.units) == ("MEG", "T (magnetometers) and T/m (gradiometers)")


def test_bad_channels_are_used_and_named(tmp_path: Path) -> None:
    epochs = make_epochs(1)
    epochs.info["bads"] = ["O1", "HEOG"]
    raw = opened(save_fif(epochs, tmp_path))
    assert "O1" in raw.layout.ch_names
    assert raw.caveats == ("sub-01-epo.fif: channels that are marked as bad were used: O1.",)


def test_projections_are_applied_as_mne_does(tmp_path: Path) -> None:
    """To all channels, before some are chosen."""
    epochs = make_epochs(1).set_eeg_reference(projection=True, verbose="error")
    path = save_fif(epochs, tmp_path)
    expected = mne.read_epochs(tmp_path / "sub-01-epo.fif", verbose="error")
    expected = expected["image == 'train_3.jpg'"].get_data(picks=["Oz", "Fz"], copy=True)
    eeg = read(path, Options(channels=("Oz", "Fz")))["train"][3]
    np.testing.assert_array_equal(eeg, expected)


def long_recording() -> mne.EpochsArray:
    """The epochs of a session 70 times, more than a file of 2 MB holds; the last one is another."""
    epochs = make_epochs(1)
    data = np.tile(epochs.get_data(copy=True), (70, 1, 1))
    data[-1] *= -1
    return mne.EpochsArray(data, epochs.info, tmin=-0.2, verbose="error")


def test_a_recording_in_parts_is_read_whole(tmp_path: Path) -> None:
    epochs = long_recording()
    path = tmp_path / "sub-01-epo.fif"
    epochs.save(path, split_size="2MB", verbose="error")
    assert len(epochs_files(path)) > 2 == len(epochs_files(path)[1:3])
    positions = [len(epochs) - 1, 0]
    trials = trials_of(1, 0, [TRAIN[0], TEST[0]], positions)
    eeg = read(write_subject(tmp_path / "a/sub-01", "epochs", [path], trials), Options())
    np.testing.assert_allclose(eeg["train"][0][0], epochs.get_data(copy=True)[-1, :4], rtol=1e-6)


def test_trials_in_bad_segments_are_used_and_counted(
    subjects: dict[str, Path], tmp_path: Path
) -> None:
    subject = read_subject_folder(subjects["bids"])
    original = Path(subject.files[0].path)
    shutil.copytree(original.parents[3], tmp_path / "bids")
    path = tmp_path / "bids" / original.relative_to(original.parents[3])
    events = path.with_name(path.name.replace("_eeg.vhdr", "_events.tsv"))
    table = pd.read_csv(events, sep="\t")
    table.loc[len(table)] = table.iloc[0].to_dict() | {
        "onset": 1.4,
        "duration": 0.8,
        "trial_type": "BAD_muscle",
    }
    table.sort_values("onset").to_csv(events, sep="\t", index=False)

    trials = subject.trials[subject.trials["session"] == 1]
    folder = write_subject(tmp_path / "a/sub-01", "raw", [path], trials)
    # Images at 0.5, 1.25, 2.0 s, with epochs from 0.1 s before to 0.41 s after: the second and third
    raw = opened(folder, Options(**RAW))
    assert raw.caveats == (
        f"2 trials of {path.name} are in segments that are annotated as bad; they were used.",
    )
    eeg = read(folder, Options(**RAW))
    plain_eeg = plain("bids", subjects["bids"].parent.parent, Options(**RAW, sessions=(1,)))
    for ours, theirs in zip(eeg["train"], plain_eeg["train"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Repetitions


def test_all_subjects_get_the_same_test_trials(tmp_path: Path) -> None:
    """The one that lost most trials decides, and what is left out is told."""
    first = save_fif(make_epochs(1), tmp_path)
    second = save_fif(make_epochs(2), tmp_path, "sub-02")
    subject = read_subject_folder(second)
    lost = subject.trials.index[subject.trials["image_ids"] == TEST[0]]
    cut = replace(subject, trials=subject.trials.drop(lost[:2]))
    write_subject_folder(second, cut)

    sentence = (
        "The subjects saw each test image 2 to 4 times. The first 2 trials were used, so that all "
        "images and subjects have as many."
    )
    for path in (first, second):
        assert opened(path).caveats == (sentence,)
        assert [image.shape for image in read(path, Options())["test"]] == [(2, 4, 120)] * 2

    write_subject_folder(second, replace(subject, trials=subject.trials.drop(lost)))
    assert len(read(first, Options())["test"]) == 1
    assert opened(first).n_repetitions["test"].tolist() == [0, 4]
    assert opened(first).caveats == (
        "1 of 2 test images were left out: not all subjects saw them.",
    )


# Prepared, and never pushed


@pytest.fixture(scope="module")
def prepared(subjects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/private_eeg`, and `data/eeg` that leads there."""
    base = tmp_path_factory.mktemp("prepared")
    prepare(subjects["fif"].parent, base, dtype="float16")
    return base


def prepare(subjects: Path, base: Path, **changes: object) -> None:
    dataset = replace(
        THINGS_EEG2,
        find_subjects=own_eeg.find_subjects,
        open_eeg=own_eeg.open_eeg,
        memory_needed=own_eeg.memory_needed,
        units=own_eeg.UNITS,
        may_push_eeg=False,
    )
    write_image_table(base / "images.csv", IMAGES)
    parameters = read_params(Path("params.yaml")).preprocess
    parameters = parameters.model_copy(update={"workers": 1} | changes)
    prepare_subjects(dataset, subjects, base / "images.csv", base / "private_eeg", parameters)
    link_subjects(base / "private_eeg", base / "eeg")


def test_what_leads_there_is_read_like_any_other_file(prepared: Path) -> None:
    [path] = find_recordings(prepared / "eeg").values()
    check_recordings([path])
    for split in ("train", "test"):
        ours = read_split(path, split, average=True)
        theirs = read_split(prepared / "private_eeg/sub-01.h5", split, average=True)
        np.testing.assert_array_equal(ours.eeg, theirs.eeg)
        assert ours.ch_names == theirs.ch_names and len(ours.image_ids) == len(IMAGES[split])
    assert read_caveats(path) == ()
    assert path.stat().st_size < 20_000 < (prepared / "private_eeg/sub-01.h5").stat().st_size


def test_it_changes_where_the_eeg_does(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "private_eeg", tmp_path / "private_eeg")
    link_subjects(tmp_path / "private_eeg", tmp_path / "eeg")
    same = (prepared / "eeg/sub-01.h5").read_bytes()
    assert (tmp_path / "eeg/sub-01.h5").read_bytes() == same
    with h5py.File(tmp_path / "private_eeg/sub-01.h5", "r+") as file:
        file["test/eeg"][0, 0, 0, 0] += 1
    link_subjects(tmp_path / "private_eeg", tmp_path / "eeg")
    assert (tmp_path / "eeg/sub-01.h5").read_bytes() != same


def test_dvc_may_link_both_into_its_cache(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a reader has resolved the link; training does."""
    for name in ("eeg", "private_eeg"):
        (tmp_path / f"cache/{name}").mkdir(parents=True)
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(prepared / name / "sub-01.h5", tmp_path / f"cache/{name}/0123")
        (tmp_path / "data" / name / "sub-01.h5").symlink_to(tmp_path / f"cache/{name}/0123")
    path = tmp_path / "data/eeg/sub-01.h5"
    expected = read_split(prepared / "eeg/sub-01.h5", "test", average=False)
    np.testing.assert_array_equal(read_split(path, "test", average=False).eeg, expected.eeg)

    monkeypatch.setenv("HDF5_EXT_PREFIX", "/nowhere")
    find_linked_files([path.parent, tmp_path / "cache", "a text"])
    resolved = read_split(path.resolve(), "test", average=False)
    np.testing.assert_array_equal(resolved.eeg, expected.eeg)


def test_missing_eeg_is_one_sentence(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "eeg", tmp_path / "eeg")
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "eeg/sub-01.h5", "test", average=False)
    assert str(caught.value) == (
        f"{tmp_path}/eeg/sub-01.h5: leads to the EEG in {tmp_path}/private_eeg/sub-01.h5, which is "
        "missing, because `dvc push` never uploads EEG that may not be passed on; where the "
        "recordings are, make it again with `dvc repro --force preprocess` (of a "
        "second recording: preprocess_second)"
    )


@pytest.mark.long
def test_meg_is_named_in_the_file(tmp_path: Path, prepared: Path) -> None:
    epochs = make_epochs(1, ["MEG1", "MEG2", "MEG3"])
    names = dict.fromkeys(epochs.ch_names, "mag")
    epochs.set_channel_types(names, on_unit_change="ignore", verbose="error")
    save_fif(epochs, tmp_path)
    prepare(tmp_path / "subjects", tmp_path, dtype="float32")
    with h5py.File(tmp_path / "eeg/sub-01.h5") as file:
        assert file.attrs["modality"] == "MEG"
        assert file.attrs["units"] == "T (magnetometers) and T/m (gradiometers)"
    with h5py.File(prepared / "eeg/sub-01.h5") as file:
        assert "modality" not in file.attrs


# Wrong input: what is wrong, where, what was expected, what helps


def other_channels(folder: Path) -> Path:
    """The second file has a channel less than the first."""
    files = []
    for i, epochs in enumerate((make_epochs(1), make_epochs(2).drop_channels("O1"))):
        files.append(folder / f"{i}-epo.fif")
        epochs.save(files[-1], verbose="error")
    trials = [trials_of(1, i, TRAIN + TEST, [*range(8)]) for i in (0, 1)]
    return write_subject(folder / "a/sub-01", "epochs", files, pd.concat(trials))


def other_rate(folder: Path) -> Path:
    files = []
    for i, epochs in enumerate((make_epochs(1), make_epochs(2).decimate(2, verbose="error"))):
        files.append(folder / f"{i}-epo.fif")
        epochs.save(files[-1], verbose="error")
    trials = [trials_of(1, i, TRAIN + TEST, [*range(8)]) for i in (0, 1)]
    return write_subject(folder / "a/sub-01", "epochs", files, pd.concat(trials))


def test_a_window_makes_files_of_other_lengths_fit(tmp_path: Path) -> None:
    files = []
    for i, epochs in enumerate((make_epochs(1), make_epochs(2).crop(-0.1, 0.3, verbose="error"))):
        files.append(tmp_path / f"{i}-epo.fif")
        epochs.save(files[-1], fmt="double", verbose="error")
    trials = [trials_of(1, i, TRAIN + TEST, [*range(8)]) for i in (0, 1)]
    path = write_subject(tmp_path / "a/sub-01", "epochs", files, pd.concat(trials))
    with pytest.raises(InputError, match="has 81 samples from -0.1 to 0.3 s, and .* has 120"):
        read(path, Options())

    options = Options(window=(0.0, 0.3))
    np.testing.assert_allclose(opened(path, options).layout.times, np.arange(61) / 200, atol=1e-9)
    expected = make_epochs(1).get_data(copy=True)[3, :4, 40:101]
    np.testing.assert_array_equal(read(path, options)["train"][3][0], expected)


def test_the_first_trials_are_those_of_the_first_sessions(tmp_path: Path) -> None:
    """Whatever the order of the files."""
    files = []
    for i in (0, 1):
        files.append(tmp_path / f"{i}-epo.fif")
        make_epochs(i).save(files[-1], fmt="double", verbose="error")
    first, second = (trials_of(2 - i, i, TRAIN + TEST, [*range(8)]) for i in (0, 1))
    both = pd.concat([second, first])
    path = write_subject(tmp_path / "a/sub-01", "epochs", files, both)
    write_subject(tmp_path / "a/sub-02", "epochs", files, second)
    expected = make_epochs(1).get_data(copy=True)[6, :4]
    np.testing.assert_array_equal(read(path, Options())["test"][0], expected[None])


def fewer_epochs(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    make_epochs(1)[:5].save(folder / "sub-01-epo.fif", overwrite=True, verbose="error")
    return path


def not_a_number(folder: Path) -> Path:
    epochs = make_epochs(1)
    epochs._data[7, 0, 3] = np.nan
    return save_fif(epochs, folder)


def cut(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    file = folder / "sub-01-epo.fif"
    file.write_bytes(file.read_bytes()[:-5000])
    return path


def part_of_another_folder(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    file = folder / "sub-01-epo.fif"
    long_recording().save(file, split_size="2MB", overwrite=True, verbose="error")
    file.write_bytes(file.read_bytes().replace(b"sub-01-epo-1.fif", b"../../passwd.fif"))
    return path


def training_alone(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    subject = read_subject_folder(path)
    trials = subject.trials[subject.trials["image_ids"].str.startswith("train")]
    write_subject_folder(path, replace(subject, trials=trials))
    return path


def shown_once(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    subject = read_subject_folder(path)
    trials = subject.trials.drop_duplicates("image_ids")
    write_subject_folder(path, replace(subject, trials=trials))
    return path


def other_session_for_test_images(folder: Path) -> Path:
    path = save_fif(make_epochs(1), folder)
    subject = read_subject_folder(path)
    session = np.where(subject.trials["image_ids"].isin(TEST), 2, 1)
    write_subject_folder(path, replace(subject, trials=subject.trials.assign(session=session)))
    return path


def fine(folder: Path) -> Path:
    return save_fif(make_epochs(1), folder)


def stimuli_only(folder: Path) -> Path:
    epochs = make_epochs(1)
    epochs.set_channel_types(
        dict.fromkeys(epochs.ch_names, "misc"), on_unit_change="ignore", verbose="error"
    )
    return save_fif(epochs, folder)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (
            other_channels,
            Options(),
            "1-epo.fif: has not the channels of .*0-epo.fif: only one of "
            "them has O1; name the channels that all have",
        ),
        (other_rate, Options(), "1-epo.fif: has 60 samples from -0.2 to 0.39 s, and .* has 120"),
        (fewer_epochs, Options(), "epo.fif: has 5 epochs, and the table of trials has one in row"),
        (not_a_number, Options(), "epo.fif: the epoch 7 .from 0. holds NaN"),
        (cut, Options(), "epo.fif: cannot be read as epochs .*damaged or cut.*write it anew"),
        (part_of_another_folder, Options(), "says that '../../passwd.fif' comes next"),
        (training_alone, Options(), "no test image was shown to all 1 subjects|no test trial"),
        (stimuli_only, Options(), "no EEG and no MEG channel, its channels are of type misc"),
        (shown_once, Options(mvnn="time"), "session 1: shows no image twice, so that"),
        (
            other_session_for_test_images,
            Options(mvnn="epochs"),
            "session 2: has no train trials, from which preprocess.mvnn would take its measure",
        ),
        (fine, Options(channels=("Oz", "Qz")), "epo.fif: has no channel 'Qz'"),
        (
            fine,
            Options(sfreq=500.0),
            "has epochs at 200 Hz, preprocess.sfreq is 500; choose a lower",
        ),
        (fine, Options(baseline=(-0.5, 0.0)), "preprocess.baseline -0.5 .. 0.0 s is no part of"),
        (fine, Options(sessions=(3,)), "has no session 3 .preprocess.sessions., it has 1; choose"),
        (fine, Options(mvnn="epochs", normalise="session"), "set one of them to none"),
    ],
)
def test_a_wrong_file_is_named(
    make: Callable[[Path], Path], options: Options, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        read(make(tmp_path), options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(), "preprocess.sfreq and .window cannot be published; choose both"),
        (Options(**RAW | {"sfreq": 500.0}), "is recorded at 200 Hz, preprocess.sfreq is 500"),
        (Options(**RAW | {"window": (0.0, 9.0)}), "is not all recorded; choose a shorter"),
    ],
)
def test_a_raw_recording_asks_for_what_it_needs(
    options: Options, sentence: str, subjects: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match=sentence):
        read(subjects["bids"], options)


def test_missing_files_are_seen_before_any_is_read(tmp_path: Path) -> None:
    path = fine(tmp_path)
    assert find_subjects(path.parent) == {"sub-01": path}
    assert memory_needed(path, Options()) < 1e9
    (tmp_path / "sub-01-epo.fif").unlink()
    with pytest.raises(InputError, match="sub-01-epo.fif: is missing; put it back"):
        memory_needed(path, Options())


def test_opened_files_have_data_channels(subjects: dict[str, Path]) -> None:
    for kind, open_file in (("fif", open_epochs), ("set", open_epochs), ("bids", open_raw)):
        recording = open_file(Path(read_subject_folder(subjects[kind]).files[0].path))
        assert [recording.ch_names[i] for i in pick_data(recording.info)] == CH_NAMES[:4]
    with pytest.raises(InputError, match="expected .fif .MNE. or .set"):
        open_epochs(Path("params.yaml"))
