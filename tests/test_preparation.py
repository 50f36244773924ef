"""Preprocessing: the values are those of numpy, the bytes are the same each time, memory stays bounded."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.entry import Layout, RawEeg
from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.table import THINGS_EEG2
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.params import read_params
from pipeline.preprocess import preparation
from pipeline.preprocess.preparation import pick_channels, pick_samples, prepare_subjects
from pipeline.preprocess.recordings import check_recordings, find_recordings, read_shape, read_split
from stages import preprocess
from tests.preparing import no_other_process
from tests.test_things_eeg2 import (
    CH_NAMES,
    SHAPES,
    TIMES,
    make_metadata,
    make_recording,
    write_eeg,
    write_metadata,
)

REFERENCE = read_params(Path("params.yaml")).preprocess


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects and the metadata."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, subject in enumerate(("sub-01", "sub-02")):
        recordings = {split: make_recording(split, seed) for split in SHAPES}
        recordings["train"]["preprocessed_eeg_data"][0, 1, 2] = 0  # a channel that was switched off
        recordings["train"]["preprocessed_eeg_data"][1, 1, 2] = -329
        write_eeg(folder / f"{subject}.zip", recordings)
    write_images(folder)
    return folder


def write_images(folder: Path, metadata: dict | None = None) -> None:
    """images.csv as the download writes it."""
    path = write_metadata(folder / "image_metadata.npy", metadata or make_metadata())
    write_image_table(folder / "images.csv", THINGS_EEG2.read_metadata(path))


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(raw, tmp_path_factory.mktemp("eeg"), workers=2)


def run(raw: Path, out: Path, **changes: object) -> Path:
    """In this process, unless `changes` give a number of workers."""
    parameters = REFERENCE.model_copy(update={"workers": 1} | changes)
    with nullcontext() if "workers" in changes else no_other_process():
        prepare_subjects(THINGS_EEG2, raw, raw / "images.csv", out, parameters)
    return out


def released(raw: Path, subject: str, split: str) -> np.ndarray:
    """The EEG as plain numpy reads it."""
    name = {"train": "training", "test": "test"}[split]
    with (
        zipfile.ZipFile(raw / f"{subject}.zip") as archive,
        archive.open(f"{subject}/preprocessed_eeg_{name}.npy") as file,
    ):
        return np.load(file, allow_pickle=True).item()["preprocessed_eeg_data"]


def test_values_names_and_ids(raw: Path, prepared: Path) -> None:
    assert sorted(path.name for path in prepared.iterdir()) == ["sub-01.h5", "sub-02.h5"]
    metadata = make_metadata()
    for subject in ("sub-01", "sub-02"):
        train = read_split(prepared / f"{subject}.h5", "train", average=True)
        test = read_split(prepared / f"{subject}.h5", "test", average=False)
        assert np.array_equal(
            train.eeg, released(raw, subject, "train").mean(axis=1).astype(np.float32)
        )
        assert np.array_equal(test.eeg, released(raw, subject, "test").astype(np.float32))
        for recording, split, folder in (
            (train, "train", "training_images"),
            (test, "test", "test_images"),
        ):
            assert (recording.subject, recording.ch_names, recording.sfreq) == (
                subject,
                tuple(CH_NAMES),
                100.0,
            )
            assert np.array_equal(recording.times, TIMES)
            names = zip(
                metadata[f"{split}_img_concepts"], metadata[f"{split}_img_files"], strict=True
            )
            assert list(recording.image_ids) == [
                f"{folder}/{concept}/{file}" for concept, file in names
            ]
            assert list(recording.concept_in_split) == metadata[f"{split}_img_concepts"]
            assert list(recording.things_concept) == metadata[f"{split}_img_concepts_THINGS"]


def test_average_of_stored_repetitions(prepared: Path) -> None:
    every = read_split(prepared / "sub-01.h5", "test", average=False).eeg
    mean = read_split(prepared / "sub-01.h5", "test", average=True).eeg
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, every.mean(axis=1, dtype=np.float64), rtol=1e-6)


def test_a_neuroscientist_opens_it_without_us(prepared: Path) -> None:
    with h5py.File(prepared / "sub-01.h5") as file:
        assert [axis.label for axis in file["train/eeg"].dims] == ["condition", "channel", "time"]
        assert [axis.label for axis in file["test/eeg"].dims] == [
            "condition",
            "repetition",
            "channel",
            "time",
        ]
        for split in SHAPES:
            condition, *_, channel, moment = file[split]["eeg"].dims
            scales = [condition[0], channel[0], moment[0]]
            assert [scale.name for scale in scales] == [
                f"/{split}/image_ids",
                "/ch_names",
                "/times",
            ]
        assert file["times"].attrs["units"] == "s"
        assert "no physical unit" in file["train/eeg"].attrs["units"]
        attributes = dict(file.attrs)
    for name in (
        "average_repetitions",
        "channels",
        "window",
        "baseline",
        "mvnn",
        "normalise",
        "dtype",
    ):
        assert attributes[name] == getattr(REFERENCE, name)
    assert (attributes["source"], len(attributes["source_sha256"])) == ("sub-01.zip", 64)
    assert attributes["h5py_version"] == h5py.__version__
    assert attributes["numpy_version"] == np.__version__


def test_mne_opens_it_as_the_documentation_says(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", Path("docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/eeg").symlink_to(prepared)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    test = read_split(prepared / "sub-01.h5", "test", average=False)
    assert names["epochs"].get_data(copy=False).shape == SHAPES["train"][:1] + SHAPES["train"][2:]
    np.testing.assert_allclose(names["evoked"].data, test.eeg[0].mean(axis=0), rtol=1e-5)
    assert names["evoked"].ch_names == CH_NAMES
    assert names["evoked"].nave == SHAPES["test"][1]
    assert names["evoked"].comment == test.image_ids[0]


def test_same_bytes_each_time(raw: Path, prepared: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # HDF5 time stamps have whole seconds
    again = run(raw, tmp_path, workers=1)
    for name in ("sub-01.h5", "sub-02.h5"):
        assert (again / name).read_bytes() == (prepared / name).read_bytes()


def test_channels_window_and_repetitions(raw: Path, tmp_path: Path) -> None:
    run(
        raw,
        tmp_path,
        channels=["Oz", "Pz"],
        window=[0.1, 0.3],
        average_repetitions=False,
        dtype="float64",
    )
    for split in SHAPES:
        recording = read_split(tmp_path / "sub-02.h5", split, average=False)
        expected = released(raw, "sub-02", split)[
            :, :, [CH_NAMES.index("Oz"), CH_NAMES.index("Pz")], 30:51
        ]
        assert recording.eeg.dtype == np.float64
        assert np.array_equal(recording.eeg, expected)
        assert recording.ch_names == ("Oz", "Pz")
        assert (recording.times[0], recording.times[-1], recording.sfreq) == (0.1, 0.3, 100.0)
        mean = read_split(tmp_path / "sub-02.h5", split, average=True)
        np.testing.assert_allclose(mean.eeg, expected.mean(axis=1), rtol=1e-9, atol=1e-12)
    with h5py.File(tmp_path / "sub-02.h5") as file:
        assert list(file.attrs["channels"]) == ["Oz", "Pz"]


def test_trial_normalisation(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path, normalise="trial", window=[0, 0.79], dtype="float64")
    x = released(raw, "sub-01", "train")[..., 20:]
    x[0, 1, 2] = 1  # any constant: centred it is zero, as the switched-off channel stays
    by_hand = np.zeros_like(x)
    for trace in np.ndindex(x.shape[:3]):
        by_hand[trace] = (x[trace] - x[trace].sum() / 80) / np.sqrt((x[trace] ** 2).sum())
    eeg = read_split(tmp_path / "sub-01.h5", "train", average=True).eeg
    np.testing.assert_allclose(eeg, by_hand.mean(axis=1), atol=1e-12)


@pytest.mark.parametrize("average_repetitions", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6), ("float16", 2e-3)]
)
def test_averages_are_normalised_where_they_are_read(
    dtype: str, tolerance: float, average_repetitions: bool, raw: Path, tmp_path: Path
) -> None:
    """The plain program: the mean over repetitions, and then each channel centred and divided by its norm."""
    run(
        raw,
        tmp_path,
        normalise="average",
        average_repetitions=average_repetitions,
        window=[0, 0.79],
        dtype=dtype,
    )
    path = tmp_path / "sub-01.h5"
    for split in SHAPES:
        eeg = released(raw, "sub-01", split)[..., 20:]
        mean = eeg.mean(axis=1)
        norm = np.linalg.norm(mean, axis=-1, keepdims=True)
        expected = (mean - mean.mean(axis=-1, keepdims=True)) / norm

        ready = read_split(path, split, average=True)
        assert not ready.to_normalise
        np.testing.assert_allclose(ready.eeg, expected, atol=tolerance)

        # In the file each channel has only another scale, which a norm takes out again
        stored = read_split(path, split, average=False)
        assert stored.to_normalise
        scale = 1.0
        if dtype == "float16":
            with h5py.File(path) as file:
                scale = file["sd"][:][:, None]
                assert not file["mean"][:].any()
                assert file["test/eeg"].attrs["units"].startswith("root mean squares")
        as_released = mean if stored.eeg.ndim == 3 else eeg
        np.testing.assert_allclose(stored.eeg * scale, as_released, rtol=2e-3, atol=2e-3)

    assert read_split(path, "train", average=False).eeg.ndim == 4 - average_repetitions


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_data_without_sessions_are_one_session(dtype: str, raw: Path, tmp_path: Path) -> None:
    """The plain program: mean and spread of all training trials and times; then the mean over repetitions."""
    run(raw, tmp_path, normalise="session", window=[0, 0.79], dtype=dtype)
    train, test = (released(raw, "sub-01", split)[..., 20:] for split in ("train", "test"))
    mean, sd = (of(axis=(0, 1, 3))[:, None] for of in (train.mean, train.std))
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-3, "atol": 1e-4}
    )
    path = tmp_path / "sub-01.h5"
    for split, expected in (("train", ((train - mean) / sd).mean(1)), ("test", (test - mean) / sd)):
        recording = read_split(path, split, average=False)
        assert not recording.to_normalise
        np.testing.assert_allclose(recording.eeg, expected, **tolerance)
    with h5py.File(path) as file:
        assert file["train/eeg"].attrs["units"] == preparation.UNITS_OF_SESSION
        np.testing.assert_allclose(file["sd"][:], sd[:, 0])


def test_half_precision_is_standardised_by_the_training_eeg(
    raw: Path, prepared: Path, tmp_path: Path
) -> None:
    for unit, folder in (
        (1, raw),
        (1e-6, tmp_path / "volts"),
    ):  # whitened, or volts, which half precision cannot hold
        if unit != 1:
            folder.mkdir()
            recordings = {split: make_recording(split) for split in SHAPES}
            for recording in recordings.values():
                recording["preprocessed_eeg_data"] *= unit
            write_eeg(folder / "sub-01.zip", recordings)
            write_images(folder)
        out = run(folder, tmp_path / f"out {unit}", dtype="float16")
        train, test = (
            released(folder, "sub-01", "train").mean(axis=1),
            released(folder, "sub-01", "test"),
        )
        mean, sd = train.mean((0, 2))[:, None], train.std((0, 2))[:, None]
        for split, expected in (("train", (train - mean) / sd), ("test", (test - mean) / sd)):
            found = read_split(out / "sub-01.h5", split, average=False)
            assert read_shape(out / "sub-01.h5", split, average=False) == (
                expected.shape,
                np.float16,
            )
            assert found.eeg.dtype == np.float32
            np.testing.assert_allclose(found.eeg, expected, rtol=2**-11, atol=2**-14)
        with h5py.File(out / "sub-01.h5") as file:
            mean, sd = (file[name][:][:, None] for name in ("mean", "sd"))
            np.testing.assert_allclose(
                file["train/eeg"][:] * sd + mean, train, rtol=0, atol=2e-3 * sd.max()
            )
            assert file.attrs["units"] == "standard deviations of the channel over the training EEG"
        assert [path.name for path in out.iterdir() if path.stem == "sub-01"] == ["sub-01.h5"]


def test_reads_into_an_array_of_the_callers(prepared: Path, tmp_path: Path) -> None:
    path = prepared / "sub-01.h5"
    for split, average in (("train", False), ("test", False), ("test", True)):
        shape, dtype = read_shape(path, split, average)
        out = np.empty(shape, dtype)
        recording = read_split(path, split, average, out=out)
        assert recording.eeg is out and np.array_equal(out, read_split(path, split, average).eeg)
    with pytest.raises(InputError, match="absent.h5"):
        read_shape(tmp_path / "absent.h5", "train", average=True)


def test_the_posterior_channels_are_those_released() -> None:
    names = ("Fz", *reversed(POSTERIOR))
    picks = pick_channels(Layout(names, TIMES), "posterior", Path("sub-01.zip"))
    assert [names[pick] for pick in picks] == list(POSTERIOR) and len(set(POSTERIOR)) == 17


def test_refuses_a_channel_that_is_not_there(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sub-0[12].zip: has no channel 'Cz' .*it has Pz O1 Oz"):
        run(raw, tmp_path, channels=["Pz", "Cz"])
    with pytest.raises(
        InputError, match="sub-0[12].zip: has no channel 'oz' .*it has Pz O1 Oz; is it Oz[?]$"
    ):
        run(raw, tmp_path, channels=["Pz", "oz"])
    assert not list(tmp_path.iterdir()), "something half-written is left"


@pytest.mark.parametrize(
    ("choose", "wanted", "message"),
    [
        (pick_channels, ["Pz", "Pz"], "name each wanted channel once"),
        (pick_channels, [], "is empty"),
        (
            pick_samples,
            [-0.5, 0.79],
            "window -0.5 .. 0.79 s is no part of the recorded -0.2 .. 0.79 s: set a first",
        ),
        (pick_samples, [0.3, 0.1], "is no part .* set a first and a later last time within it"),
        (pick_samples, [0.104, 0.106], "no sample lies in .*: widen it"),
    ],
)
def test_refuses_parameters_that_do_not_fit(choose: Callable, wanted: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(Layout(tuple(CH_NAMES), TIMES), wanted, Path("sub-01.zip"))


@pytest.mark.parametrize("window", ([-0.2, 0.79], [-0.1999999, 0.7900001], [0.0, 0.0], [0.1, 0.3]))
def test_window_includes_both_ends(window: list[float]) -> None:
    times = np.arange(-20, 80) * 0.01 + 1e-9 * (-1) ** np.arange(
        100
    )  # steps of 0.01 with the noise of arithmetic
    kept = times[pick_samples(Layout(("Pz",), times), window, Path("sub-01.zip"))]
    assert np.array_equal(
        np.round(kept, 2), np.arange(round(window[0] * 100), round(window[1] * 100) + 1) / 100
    )


def test_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    recordings = {split: make_recording(split) for split in SHAPES}
    recordings["test"]["preprocessed_eeg_data"][-1, -1, -1, -1] = 1e300
    write_eeg(tmp_path / "raw" / "sub-01.zip", recordings)
    write_images(tmp_path / "raw")
    with pytest.raises(
        InputError,
        match="sub-01.zip: EEG values near condition 0 are too large for float32; fetch it",
    ):
        run(tmp_path / "raw", tmp_path / "eeg")
    assert not list((tmp_path / "eeg").iterdir())

    recordings["test"]["preprocessed_eeg_data"][-1, -1, -1, -1] = 1e9
    write_eeg(tmp_path / "raw" / "sub-01.zip", recordings)
    with pytest.raises(InputError, match="too large for float16; set preprocess.dtype to float32"):
        run(tmp_path / "raw", tmp_path / "eeg", dtype="float16")
    run(tmp_path / "raw", tmp_path / "eeg", dtype="float32")
    assert [path.name for path in (tmp_path / "eeg").iterdir()] == ["sub-01.h5"]
    (tmp_path / "eeg" / "sub-01.h5").unlink()

    (tmp_path / "raw" / "sub-01.zip").unlink()
    with pytest.raises(InputError, match="holds no subject's EEG; run the download"):
        run(tmp_path / "raw", tmp_path / "eeg")


def test_refuses_foreign_and_damaged_files(prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "sub-01.h5"
    whole = (prepared / "sub-01.h5").read_bytes()
    for data in (b"", b"no HDF5", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="sub-01.h5: is not a whole EEG file"):
            read_split(path, "train", average=True)
    for change, message in (
        (lambda file: file.pop("times"), "is not a whole EEG file"),
        (lambda file: file.pop("train"), "is not a whole EEG file"),
        (lambda file: file.attrs.pop("sfreq"), "is not a whole EEG file"),
        (
            lambda file: file["train"]["image_ids"].__setitem__(0, file["train"]["image_ids"][1]),
            "are not unique",
        ),
        (
            lambda file: (file.pop("ch_names"), file.create_dataset("ch_names", data=["Pz"])),
            "expected floating point with",
        ),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match=message):
            read_split(path, "train", average=True)
    with pytest.raises(InputError, match="absent.h5"):
        read_split(tmp_path / "absent.h5", "train", average=True)


@pytest.mark.long
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """A process that is hardly larger than its imports (120 MB) reads 270 MB of training EEG."""
    (tmp_path / "raw").mkdir()
    big, small = (5000, 4, 17, 100), (8, 5, 17, 100)
    ch_names = [f"P{i}" for i in range(17)]
    recordings = {
        split: {"preprocessed_eeg_data": np.zeros(shape), "ch_names": ch_names, "times": TIMES}
        for split, shape in (("train", big), ("test", small))
    }
    write_eeg(tmp_path / "raw" / "sub-01.zip", recordings)
    metadata = make_metadata()
    metadata["train_img_files"] = [f"{i}.jpg" for i in range(big[0])]
    metadata["train_img_concepts"] = metadata["train_img_concepts_THINGS"] = ["thing"] * big[0]
    write_images(tmp_path / "raw", metadata)
    script = (
        "import resource, sys; from pathlib import Path; from tests.test_preparation import run, peak_mb\n"
        "if __name__ == '__main__':\n"
        "    run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "    print(peak_mb(resource.RUSAGE_CHILDREN))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [
        sys.executable,
        str(tmp_path / "script.py"),
        str(tmp_path / "raw"),
        str(tmp_path / "eeg"),
    ]
    root = Path(__file__).parents[1]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    ).stdout
    assert float(out) < 220
    assert read_split(tmp_path / "eeg" / "sub-01.h5", "train", average=True).eeg.shape == (
        5000,
        17,
        100,
    )


def peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# Memory and leftovers


def test_workers_that_do_not_fit_into_memory_are_fewer_and_it_is_told(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        "SLURM_MEM_PER_NODE", "300"
    )  # MiB, as in a job: of two workers of 0.18 GB there is room for one
    run(raw, tmp_path, workers=2)
    assert re.fullmatch(
        r"preprocess: 2 workers \(preprocess.workers\) need about 0.4 GB of memory, and 0.3 GB are free for this "
        r"process: going on with 1\n",
        capsys.readouterr().out,
    )
    assert len(list(tmp_path.iterdir())) == 2


@contextmanager
def one_thread(path: Path, *_: object) -> Iterator[RawEeg]:
    """Ends with the most threads that a product of matrices may take here."""
    threads = [library["num_threads"] for library in threadpool_info()]
    raise InputError(f"at most {max(threads)} of {len(threads)} libraries")
    yield from ()


def test_workers_do_not_wait_for_each_other_s_threads(raw: Path, tmp_path: Path) -> None:
    dataset = replace(THINGS_EEG2, open_eeg=one_thread)
    with pytest.raises(InputError, match="at most 1 of [1-9]"):
        prepare_subjects(dataset, raw, raw / "images.csv", tmp_path, REFERENCE)


@contextmanager
def killed(path: Path, *_: object) -> Iterator[RawEeg]:
    """As the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


@contextmanager
def greedy(path: Path, *_: object) -> Iterator[RawEeg]:
    raise MemoryError("Unable to allocate 9 GiB")
    yield from ()


@pytest.mark.parametrize(
    ("open_eeg", "workers", "remedy"),
    [
        (killed, 2, "lower preprocess.workers"),
        (killed, 1, "run this where"),
        (greedy, 2, "lower preprocess.workers"),
    ],
)
def test_a_worker_that_was_killed_is_told(
    open_eeg: Callable, workers: int, remedy: str, raw: Path, tmp_path: Path
) -> None:
    dataset, parameters = (
        replace(THINGS_EEG2, open_eeg=open_eeg),
        REFERENCE.model_copy(update={"workers": workers}),
    )
    message = rf"want of memory: {workers} of them need about 0.\d GB, and .* GB are free for this process; {remedy}"
    with pytest.raises(InputError, match=message):
        prepare_subjects(dataset, raw, raw / "images.csv", tmp_path, parameters)


def test_what_a_killed_run_left_is_removed_or_passed_over(raw: Path, tmp_path: Path) -> None:
    """SIGKILL while a subject is written; then the stage, by hand, in the same folder."""
    script = (
        "import sys, time; from pathlib import Path; from pipeline.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); print(temporary.name, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "sub-01.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        left = process.stdout.readline().strip()
        process.kill()
    (tmp_path / ".sub-01.h5.1.tmp").write_bytes(b"half, by an earlier version")
    (tmp_path / "._sub-01.h5").write_bytes(b"Mac OS X")
    assert (tmp_path / left).exists()

    preprocess.main(Path("params.yaml"), raw, raw / "images.csv", tmp_path / "private", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "sub-01.h5",
        "sub-02.h5",
    ]
    assert not (tmp_path / left).exists()
    assert list(find_recordings(tmp_path)) == ["sub-01", "sub-02"]
    check_recordings(list(find_recordings(tmp_path).values()))


def test_the_temporary_file_of_a_living_process_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as mine:
        mine.touch()
        other = mine.with_name(mine.name.replace(str(os.getpid()), str(os.getppid())))
        other.touch()
        elsewhere = tmp_path / ".a.another-machine.99999999.tmp"
        elsewhere.touch()
    with replacing(tmp_path / "a") as mine:
        mine.touch()
        assert other.exists() and elsewhere.exists()


def test_a_full_disk_is_told(raw: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from tests.test_preparation import run\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "    run(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(raw), str(tmp_path / "eeg")]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    last = done.stderr.splitlines()[-1]
    assert re.search(
        r"InputError: .*/eeg/sub-01.h5: a file may not be as large as this one here \(File too large\)",
        last,
    )
    assert not list((tmp_path / "eeg").iterdir())


# Prepared subjects from elsewhere


def change(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def put(name: str, values: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        scale = file[name].is_scale
        del file[name]
        file.create_dataset(name, data=values)
        if scale:
            file[name].make_scale()

    return edit


def spoil(split: str, *at: int, value: float = np.nan) -> Callable[[h5py.File], None]:
    return lambda file: file[f"{split}/eeg"].__setitem__(at, value)


def average_test(file: h5py.File) -> None:
    eeg = file["test/eeg"][:].mean(axis=1)
    del file["test/eeg"]
    file["test/eeg"] = eeg


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spoil("train", 2, 1, 5), r"the train EEG of condition 2 \(from 0\), image training_images/.* in channel {1}"),
        (spoil("test", 1, 0, 2, 5, value=np.inf), r"the test EEG of condition 1 .* image test_images.* in channel {2}"),
        (put("ch_names", ["O1", "Pz", "Oz"]), "has not the channels of .*sub-01.h5 in the same order: O1 stands where"),
        (put("times", TIMES + 0.1), r"has 100 samples from -0.1 to 0.89 s at 100 Hz, and .*sub-01.h5 has .* -0.2 to"),
        (lambda file: file.attrs.__setitem__("sfreq", 250.0), "at 250 Hz, and .*sub-01.h5 has .* at 100 Hz"),
        (lambda file: file.attrs.__setitem__("subject", "sub-07"), "is the EEG of sub-07; name it sub-07.h5"),
        (lambda file: file.attrs.__setitem__("normalise", "average"), "preprocess.normalise is average for one of"),
        (average_test, r"the test EEG \(.*\) lacks the axis of repetitions"),
        (lambda file: file["test/image_ids"].__setitem__(0, "other.jpg"), "has not the test images of .*sub-01.h5"),
    ],
)  # fmt: skip
def test_a_subject_that_does_not_fit_is_named_and_can_be_mended(
    edit: Callable, message: str, raw: Path, prepared: Path, tmp_path: Path
) -> None:
    for name in ("sub-01.h5", "sub-02.h5"):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    change(tmp_path / "sub-02.h5", edit)
    for place, name in enumerate(CH_NAMES):
        message = message.replace(f"{{{place}}}", name)
    with pytest.raises(InputError, match=f"sub-02.h5: .*{message}") as error:
        check_recordings(list(find_recordings(tmp_path).values()))

    if "name it" in str(error.value):
        (tmp_path / "sub-02.h5").rename(
            tmp_path / re.findall(r"name it (\S+),", str(error.value))[0]
        )
    else:
        assert "make it again with `dvc repro --force preprocess`" in str(error.value)
        (tmp_path / "sub-02.h5").rename(tmp_path / "away")
        check_recordings(list(find_recordings(tmp_path).values()))
        (tmp_path / "sub-02.h5").write_bytes((prepared / "sub-02.h5").read_bytes())
    check_recordings(list(find_recordings(tmp_path).values()))


def test_a_value_that_is_not_finite_is_told_where_a_file_is_read(
    prepared: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sub-01.h5"
    path.write_bytes((prepared / "sub-01.h5").read_bytes())
    change(path, spoil("test", 1, 2, 0, 7))
    for average in (True, False):
        with pytest.raises(
            InputError, match=rf"the test EEG of condition 1 .* in channel {CH_NAMES[0]}"
        ):
            read_split(path, "test", average)
    assert read_split(path, "train", average=False).eeg.any()
