"""Raw recordings: prepared as a plain program prepares them, written from the description; bad files are named."""

import io
import itertools
import os
import re
import resource
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import sklearn
import yaml
from sklearn.discriminant_analysis import _cov

from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.things_eeg2_raw import caveats, find_subjects, memory_needed, open_eeg
from pipeline.errors import InputError
from tests.raw_eeg import CH_NAMES, make_raw_subject

N = {"train": 6, "test": 2}
IMAGES = {split: pd.DataFrame(index=range(n)) for split, n in N.items()}


@dataclass(frozen=True)
class Options:
    """The keys of the section `preprocess` that are used; those of params/paper-data but for the channels."""

    channels: str | tuple[str, ...] = ("Oz", "Fz", "P3")
    sfreq: float | str = 250.0
    window: tuple[float, float] | str = (0.0, 0.996)
    baseline: tuple[float, float] | str = (-0.2, 0.0)
    mvnn: str = "epochs"
    mvnn_from: str = "training"
    sessions: str | tuple[int, ...] = "all"
    normalise: str = "none"


PAPER = Options(channels="all")
RELEASE = Options("posterior", 100.0, (-0.2, 0.79), (-0.2, 0.0), "time", "training-and-test")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw_subject(tmp_path_factory.mktemp("raw"), N, compression=zipfile.ZIP_DEFLATED)


def read(path: Path, options: Options) -> dict[str, np.ndarray]:
    with open_eeg(path, IMAGES, options) as raw:
        return {split: np.concatenate(list(chunks)) for split, chunks in raw.chunks.items()}


# The plain program: everything in memory, one epoch and one covariance at a time, without MNE.


def plain(path: Path, options: Options) -> dict[str, np.ndarray]:
    """The EEG of both splits, (N, R, C, T)."""
    merged = {split: [[] for _ in range(n)] for split, n in N.items()}
    for session in range(1, 5) if options.sessions == "all" else options.sessions:
        steps = (options.channels, options.sfreq, options.window, options.baseline)
        eeg = {split: plain_epochs(path, session, split, *steps) for split in N}
        whitener = np.eye(len(next(iter(eeg["test"].values()))[0]))
        if options.mvnn != "none":
            noise = {split: plain_noise(path, session, split, *steps, options.mvnn) for split in N}
            both = options.mvnn_from == "training-and-test"
            covariance = (
                np.mean([noise["train"], noise["test"]], axis=0) if both else noise["train"]
            )
            whitener = scipy.linalg.fractional_matrix_power(covariance, -0.5)
        centre, sd = 0.0, 1.0
        if options.normalise == "session":
            trials = np.concatenate(list(eeg["train"].values()))  # (n, C, T)
            centre, sd = (of(axis=(0, 2))[:, None] for of in (trials.mean, trials.std))
        for split in N:
            for image, epochs in eeg[split].items():
                merged[split][image] += [(whitener @ epoch - centre) / sd for epoch in epochs]
    if options.sessions != "all":  # images differ in repetitions
        return {
            split: [np.array(epochs) for epochs in of_images] for split, of_images in merged.items()
        }
    return {split: np.array(epochs) for split, epochs in merged.items()}


@cache
def plain_noise(*steps) -> np.ndarray:
    *steps, mvnn = steps
    covariances = []
    for epochs in plain_epochs(*steps).values():
        x = np.array(epochs)  # (R, C, T)
        sets = (
            [x[:, :, t] for t in range(x.shape[2])] if mvnn == "time" else [epoch.T for epoch in x]
        )
        with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):  # faster
            covariances.append(np.mean([_cov(s, shrinkage="auto") for s in sets], axis=0))
    return np.mean(covariances, axis=0)


@cache
def plain_epochs(
    path, session, split, channels, sfreq, window, baseline
) -> dict[int, list[np.ndarray]]:
    """By image, counted from 0, the first 2 or 20 epochs of a session, (C, T)."""
    name = {"train": "training", "test": "test"}[split]
    with zipfile.ZipFile(path) as archive:
        file = io.BytesIO(archive.read(f"sub-01/ses-0{session}/raw_eeg_{name}.npy"))
    fields = np.load(file, allow_pickle=True).item()
    recording, names = fields["raw_eeg_data"], fields["ch_names"]
    wanted = {"all": names[:-1], "posterior": POSTERIOR}.get(channels, channels)
    rows = [names.index(name) for name in wanted]
    first = min(window[0], 0 if baseline == "none" else baseline[0])
    start, stop = round(first * 1000), round((window[1] + 1 / sfreq) * 1000)
    keep = round((window[0] - first) * sfreq), round((window[1] - first) * sfreq)
    epochs = {}
    for onset in np.flatnonzero(recording[-1]):
        image = int(recording[-1, onset])
        if image == 99999 or len(epochs.get(image - 1, ())) == {"train": 2, "test": 20}[split]:
            continue
        epoch = recording[rows, onset + start : onset + stop + 1]
        if baseline != "none":
            quiet = recording[
                rows, onset + round(baseline[0] * 1000) : onset + round(baseline[1] * 1000) + 1
            ]
            epoch = epoch - quiet.mean(axis=1, keepdims=True)
        epochs.setdefault(image - 1, []).append(
            plain_resample(epoch, sfreq)[:, keep[0] : keep[1] + 1]
        )
    return epochs


def plain_resample(epoch: np.ndarray, sfreq: float) -> np.ndarray:
    """MNE's definition: edges repeated up to a power of two (100 samples a side at least), SciPy's FFT, cut again."""
    n = epoch.shape[1]
    length = 2 ** int(np.ceil(np.log2(n + 2 * min(n // 8, 100))))
    before = (length - n) // 2
    padded = np.pad(epoch, ((0, 0), (before, length - n - before)), "edge")
    new = scipy.signal.resample(padded, round(sfreq / 1000 * length), axis=1)
    begin = round(sfreq / 1000 * before)
    return new[:, begin : begin + round(sfreq / 1000 * n)]


EVERY = [
    Options(channels, *grid, baseline, *mvnn)
    for channels in ("all", "posterior", ("Oz", "Fz", "P3"))
    for grid in ((100.0, (-0.2, 0.79)), (250.0, (0.0, 0.296)))
    for baseline in ("none", (-0.2, 0.0))
    for mvnn in (
        ("none", "training"),
        *itertools.product(("time", "epochs"), ("training", "training-and-test")),
    )
]
Z_SCORES = [
    replace(PAPER, mvnn="none", normalise="session"),
    replace(RELEASE, mvnn="none", normalise="session", sessions=(1, 2)),
]
# Four with which each value of each option is tried. `make fuzz` tries all of EVERY.
TRIED = EVERY[9::13]


@pytest.mark.parametrize("options", [PAPER, Z_SCORES[0], *TRIED], ids=str)
def test_prepared_as_by_a_plain_program(options: Options, subject: Path) -> None:
    ours, peer = read(subject, options), plain(subject, options)
    n_chans = {"all": len(CH_NAMES), "posterior": 17}.get(options.channels, 3)
    n_times = round((options.window[1] - options.window[0]) * options.sfreq) + 1
    for split, repetitions in (("train", 4), ("test", 80)):
        assert ours[split].shape == (N[split], repetitions, n_chans, n_times)
        assert ours[split].dtype == np.float64
        difference = np.abs(ours[split] - peer[split]).max() / peer[split].std()
        print(f"{difference:.1e} sd, {split}, {options}")  # pytest -rP shows the table
        assert difference < 1e-5


def test_names_and_times(subject: Path) -> None:
    with open_eeg(subject, IMAGES, RELEASE) as raw:
        assert raw.layout.ch_names == POSTERIOR
        assert np.array_equal(raw.layout.times, np.round(np.arange(-20, 80) / 100, 2))
    with open_eeg(subject, IMAGES, PAPER) as raw:
        assert raw.layout.ch_names == CH_NAMES
        assert np.array_equal(raw.layout.times, np.round(np.arange(250) / 250, 3))
    with open_eeg(subject, IMAGES, replace(PAPER, window=(0.002, 0.011), mvnn="none")) as raw:
        assert raw.layout.times.tolist() == [
            0.004,
            0.008,
        ]  # the samples of the grid from -0.2 s that lie in it


@pytest.mark.parametrize("protocol", (2, 3, 4, 5))
def test_other_ways_of_saving_are_the_same(protocol: int, subject: Path, tmp_path: Path) -> None:
    def reorder(session: int, split: str, fields: dict) -> None:
        if protocol == 2:
            fields["raw_eeg_data"] = np.asfortranarray(fields["raw_eeg_data"])

    other = make_raw_subject(tmp_path, N, protocol=protocol, change=reorder)
    options = Options()
    for split, eeg in read(subject, options).items():
        assert np.array_equal(eeg, read(other, options)[split])


def test_subjects_are_found(subject: Path) -> None:
    assert find_subjects(subject.parent) == {"sub-01": subject}


@pytest.mark.parametrize(
    ("mvnn", "mvnn_from", "told"),
    [
        ("none", "training-and-test", 0),
        ("epochs", "training", 0),
        ("epochs", "training-and-test", 1),
        ("time", "training-and-test", 1),
    ],
)
def test_test_eeg_in_the_noise_normalisation_is_told(mvnn: str, mvnn_from: str, told: int) -> None:
    options = Options(mvnn=mvnn, mvnn_from=mvnn_from)
    assert ["saw the test EEG" in sentence for sentence in caveats(options)] == [True] * told


def test_a_z_score_is_of_the_training_eeg_of_each_session(subject: Path, tmp_path: Path) -> None:
    """Sessions of their own amplitudes become alike; how loud the test EEG is changes no training EEG."""

    def louder(session: int, split: str, fields: dict) -> None:
        fields["raw_eeg_data"][:-1] *= session if split == "train" else 3 * session

    other = make_raw_subject(tmp_path, N, change=louder)
    z_score = Z_SCORES[0]
    with open_eeg(subject, IMAGES, z_score) as raw:
        assert raw.is_z_scored
    ours, loud = read(subject, z_score), read(other, z_score)
    np.testing.assert_allclose(loud["train"], ours["train"], atol=1e-9)
    centre = (3 * ours["test"] - loud["test"]) / 2  # of the training EEG: it stays where it is
    assert np.ptp(centre, axis=-1).max() < 1e-9
    same(
        {s: list(ours[s]) for s in N}, {s: list(eeg) for s, eeg in plain(subject, z_score).items()}
    )


def test_a_z_score_of_some_sessions(subject: Path) -> None:
    same(images_of(subject, Z_SCORES[1]), plain(subject, Z_SCORES[1]))


def test_a_session_is_not_normalised_twice(subject: Path) -> None:
    for check in (read, memory_needed):
        with pytest.raises(
            InputError, match="in the place of preprocess.mvnn, and .* is epochs: set one"
        ):
            check(subject, replace(PAPER, normalise="session"))


@pytest.mark.parametrize(("mvnn_from", "same"), [("training", True), ("training-and-test", False)])
def test_the_test_eeg_enters_only_where_it_is_told(
    mvnn_from: str, same: bool, subject: Path, tmp_path: Path
) -> None:
    def louder(session: int, split: str, fields: dict) -> None:
        if split == "test":
            fields["raw_eeg_data"][:-1] *= 2

    other = make_raw_subject(tmp_path, N, change=louder)
    options = Options(mvnn_from=mvnn_from)
    assert np.array_equal(read(subject, options)["train"], read(other, options)["train"]) == same


@pytest.mark.parametrize(("name", "expected"), [("paper-data", PAPER), ("release-data", RELEASE)])
def test_params_files(name: str, expected: Options) -> None:
    words = Path("params", name).read_text().replace("-S ", "").split()
    values = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in words)}
    assert values.pop("dataset") == "things-eeg2-raw"
    given = {
        key.removeprefix("preprocess."): tuple(v) if isinstance(v, list) else v
        for key, v in values.items()
    }
    assert Options(**given) == expected


# Bad files


def at(session: int, split: str, edit: Callable[[dict], None]) -> Callable[[int, str, dict], None]:
    return lambda s, name, fields: edit(fields) if (s, name) == (session, split) else None


def stim(value: float, sample: int = 100) -> Callable[[dict], None]:
    return lambda fields: fields["raw_eeg_data"][-1].__setitem__(sample, value)


def without(image: int, count: int) -> Callable[[dict], None]:
    """The last `count` times that an image is shown are taken out."""

    def edit(fields: dict) -> None:
        row = fields["raw_eeg_data"][-1]
        shown = np.flatnonzero(row == image)
        row[shown[len(shown) - count :]] = 0

    return edit


def update(**changes: object) -> Callable[[dict], None]:
    return lambda fields: fields.update(changes)


def swap(fields: dict) -> None:
    names = fields["ch_names"]
    names[0], names[1] = names[1], names[0]


def poison(row: int, value: float) -> Callable[[dict], None]:
    return lambda fields: fields["raw_eeg_data"].__setitem__((row, 3), value)


def cut_end(fields: dict) -> None:
    fields["raw_eeg_data"] = fields["raw_eeg_data"][:, :-500].copy()


def no_stim(fields: dict) -> None:
    fields["ch_types"][-1] = "misc"


OZ = CH_NAMES.index("Oz")


@pytest.mark.parametrize(
    ("session", "split", "edit", "message"),
    [
        (2, "train", stim(7), "02/raw_eeg_training.npy: the stim channel is 7 at sample 100, expected .* 6 images"),
        (3, "test", stim(4), "03/raw_eeg_test.npy: the stim channel is 4 at sample 100, expected 0, 99999 or .* 2 im"),
        (1, "train", stim(-1), "the stim channel is -1 at"),
        (1, "train", stim(2.5), "the stim channel is 2.5 at"),
        (4, "test", without(2, 1), r"04/raw_eeg_test.npy: of the images, image 2 .* is shown 19 times, expected .* 20"),
        (2, "train", without(4, 1), "image 4 .* is shown 1 times, expected at least 2"),
        (2, "train", without(4, 2), "training.npy: image 4 .* has 2 repetitions in all sessions .* others have 4"),
        (4, "test", without(2, 20), "test.npy: image 2 .* has 60 repetitions in all sessions .* others have 80"),
        (3, "train", lambda fields: fields["raw_eeg_data"][-1].fill(0), "none is shown"),
        (2, "test", swap, "02/raw_eeg_test.npy: ch_names is Fz Fp1 .*, expected as in .*ses-01/raw_eeg_test.npy: Fp1"),
        (2, "train", update(sfreq=500), "sfreq is 500, expected .* 1000"),
        (2, "train", update(sfreq="fast"), "sfreq is no rate"),
        (1, "test", no_stim, "01/raw_eeg_test.npy: has 0 channels of type stim, expected 1"),
        (1, "test", update(ch_types=["stim"] * 21), "has 21 channels of type stim"),
        (1, "test", update(ch_types=["eeg"]), "21 different ch_names and 1 ch_types"),
        (1, "test", update(ch_names=["Oz"] * 21), "has 1 different ch_names and 21 ch_types"),
        (1, "test", update(ch_names="Oz"), "ch_names is not a list of names"),
        (3, "train", poison(OZ, np.nan), "03/raw_eeg_training.npy: channel Oz holds NaN or infinite"),
        (3, "train", poison(OZ, np.inf), "channel Oz holds NaN or infinite"),
        (3, "train", poison(-1, np.nan), r"channel stim holds NaN or infinite values; leave out the session \(prep"),
        (1, "train", cut_end, "01/raw_eeg_training.npy: image .* appears at .* of .* epoch of -0.2 .. 1 s is not all"),
        (1, "train", stim(1, 150), "image 1 .* appears at sample 150 of"),
        (1, "train", update(raw_eeg_data=np.zeros((3, 9))), r"of shape \(3, 9\) .* expected \(21, samples\)"),
        (1, "train", update(raw_eeg_data=np.zeros((21, 9), int)), "type int64, expected .* floating"),
        (1, "train", update(raw_eeg_data=np.zeros(100_000)), r"of shape \(100000,\)"),
        (1, "train", update(raw_eeg_data="none"), "raw_eeg_data is not an array"),
        (1, "train", lambda fields: fields.pop("raw_eeg_data"), "raw_eeg_data is not an array"),
        (1, "train", update(more=np.zeros((21, 9000))), "holds a second large array"),
        (1, "train", update(raw_eeg_data=Path), "tries to load 'pathlib"),
    ],
)  # fmt: skip
def test_refuses_other_recordings(
    session: int, split: str, edit: Callable, message: str, tmp_path: Path
) -> None:
    path = make_raw_subject(tmp_path, N, change=at(session, split, edit))
    with pytest.raises(InputError, match=message) as error:
        read(path, Options())
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("session", "split", "edit", "message"),
    [
        (2, "train", stim(7), "the stim channel is 7 .*; leave out the session"),
        (4, "test", without(2, 1), "image 2 .* is shown 19 times, .*; leave out the session"),
        (2, "train", without(4, 2), "preprocess.sessions can leave it out"),
        (2, "test", swap, "preprocess.sessions can leave it out"),
        (3, "train", poison(OZ, np.nan), "leave out the channel .* or the session"),
        (3, "train", poison(-1, np.nan), "leave out the session"),
    ],
)
def test_the_other_sessions_are_used_as_told(
    session: int, split: str, edit: Callable, message: str, subject: Path, tmp_path: Path
) -> None:
    path = make_raw_subject(tmp_path, N, change=at(session, split, edit))
    with pytest.raises(InputError, match=message):
        read(path, Options())
    others = Options(sessions=tuple({1, 2, 3, 4} - {session}))
    same(images_of(path, others), images_of(subject, others))


def test_an_epoch_that_was_cut_off_fits_as_told(tmp_path: Path) -> None:
    for edit, shorter in (
        (cut_end, {"window": (0.0, 0.5)}),
        (stim(1, 150), {"baseline": (-0.1, 0.0)}),
    ):
        path = make_raw_subject(tmp_path, N, change=at(1, "train", edit))
        with pytest.raises(InputError, match="choose a shorter preprocess.window or .baseline"):
            read(path, Options())
        assert len(read(path, replace(Options(), **shorter))["train"]) == N["train"]


def test_a_window_of_one_sample_is_widened_as_told(subject: Path) -> None:
    narrow = Options(window=(0.001, 0.0065), mvnn="none")
    with pytest.raises(
        InputError,
        match=r"at least 2: choose a longer window, or a higher rate \(preprocess.sfreq\)",
    ):
        read(subject, narrow)
    for changes in ({"window": (0.001, 0.009)}, {"sfreq": 500.0}):
        assert read(subject, replace(narrow, **changes))["test"].shape[-1] >= 2


def test_what_is_not_asked_for_may_be_broken(subject: Path, tmp_path: Path) -> None:
    """A NaN in another channel does not matter."""
    path = make_raw_subject(tmp_path, N, change=at(1, "test", poison(CH_NAMES.index("T7"), np.nan)))
    assert np.array_equal(read(path, Options())["test"], read(subject, Options())["test"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sfreq": "published"}, "sfreq and .window cannot be published; choose both, as params/paper-data or"),
        ({"window": "published"}, "sfreq and .window cannot be published"),
        ({"channels": ("Oz", "Ozz")}, "has no channel 'Ozz' .* it has Fp1 Fz.*; is it Oz[?]$"),
        ({"channels": ("stim",)}, "has no channel 'stim'"),
        ({"channels": ("Oz", "Oz")}, "name each wanted channel once"),
        ({"channels": ()}, "is empty; name each"),
        ({"sfreq": 1001.0}, "recorded at 1000 Hz, preprocess.sfreq is 1001"),
        ({"window": (0.5, 0.1)}, "preprocess.window is .*, expected its first and last"),
        ({"baseline": (0.0, -0.2)}, "preprocess.baseline is .*, expected its first and last"),
        ({"baseline": (np.nan, 0.0)}, "preprocess.baseline is"),
        ({"window": (0.001, 0.0065)}, "holds 1 samples at 250 Hz"),
        ({"window": (-0.7, 0.9)}, "epoch of -0.7 .. 0.904 s is not all recorded; choose a shorter preprocess.window"),
        ({"window": (0.0, 1.3)}, "is not all recorded"),
        ({"baseline": (-0.9, 0.0)}, "epoch of -0.9 .. 1 s is not all recorded"),
    ],
)  # fmt: skip
def test_refuses_what_the_recording_does_not_allow(
    changes: dict, message: str, subject: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(subject, replace(Options(), **changes))


def test_refuses_channels_that_are_sums_of_others(tmp_path: Path) -> None:
    def average_reference(session: int, split: str, fields: dict) -> None:
        fields["raw_eeg_data"][:-1] -= fields["raw_eeg_data"][:-1].mean(axis=0)

    path = make_raw_subject(tmp_path, N, change=average_reference)
    with pytest.raises(
        InputError,
        match="sub-01.zip: session 1: the noise covariance of the channels has no inverse",
    ):
        read(path, replace(PAPER, mvnn="time"))
    for as_told in ({"channels": CH_NAMES[1:]}, {"mvnn": "none"}):
        assert np.isfinite(read(path, replace(PAPER, **{"mvnn": "time"} | as_told))["test"]).all()


def copied(subject: Path, target: Path, name_of: Callable[[str], str | None]) -> Path:
    """The archive again, its members renamed; those of None are left out."""
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(subject) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            if name_of(name) is not None:
                other.writestr(name_of(name), archive.read(name))
    return target


@pytest.mark.parametrize(
    ("absent", "message", "left"),
    [
        (
            "ses-0[234]/",
            r"session 2 is not there or not whole \(no ses-02/raw_eeg_training.npy\)",
            "1",
        ),
        (
            "ses-03/raw_eeg_test",
            r"session 3 is not there or not whole \(no ses-03/raw_eeg_test.npy\)",
            "1,2,4",
        ),
    ],
)
def test_a_missing_session_is_named_and_the_others_can_be_used(
    absent: str, message: str, left: str, subject: Path, tmp_path: Path
) -> None:
    path = copied(
        subject, tmp_path / "sub-01.zip", lambda name: None if re.search(absent, name) else name
    )
    with pytest.raises(InputError, match=message) as error:
        memory_needed(path, Options())
    with pytest.raises(InputError, match=message):
        read(path, Options())

    [remedy] = re.findall(r"-S '(preprocess.sessions=.*?)'", str(error.value))
    assert remedy == f"preprocess.sessions=[{left}]"
    options = Options(sessions=tuple(yaml.safe_load(remedy.split("=")[1])))
    assert memory_needed(path, options) > 0
    same(images_of(path, options), plain(subject, options))


def test_a_session_that_there_cannot_be_is_refused(subject: Path) -> None:
    with pytest.raises(
        InputError, match=r"session 5 .*no ses-05.*'preprocess.sessions=\[1,2,3,4\]' uses only what"
    ):
        read(subject, Options(sessions=(1, 5)))


def images_of(path: Path, options: Options) -> dict[str, list[np.ndarray]]:
    """The repetitions (R, C, T) of each image, none of those that were not seen."""
    found = {}
    with open_eeg(path, IMAGES, options) as raw:
        for split, n in N.items():
            counts = (
                raw.n_repetitions[split]
                if raw.n_repetitions
                else np.full(n, {"train": 4, "test": 80}[split])
            )
            seen = iter([image for chunk in raw.chunks[split] for image in chunk])
            found[split] = [next(seen) if count else np.empty(0) for count in counts]
            assert [len(image) for image in found[split]] == counts.tolist() and next(
                seen, None
            ) is None
    return found


def same(ours: dict[str, list[np.ndarray]], peer: dict[str, list[np.ndarray]]) -> None:
    for split, images in peer.items():
        assert [len(image) for image in ours[split]] == [len(image) for image in images]
        for mine, other in zip(ours[split], images, strict=True):
            if len(other):
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * other.std())


@pytest.mark.parametrize(
    ("sessions", "train"),
    [((1,), [2, 2, 2, 0, 0, 0]), ((2, 4), [2, 0, 2, 2, 4, 2]), ((4, 1, 2), [4, 2, 4, 2, 4, 2])],
)
def test_only_the_wanted_sessions_are_read(
    sessions: tuple, train: list, subject: Path, tmp_path: Path
) -> None:
    """The others may be missing. What an image has is what those sessions showed."""
    wanted = [f"/ses-0{session}/" for session in sessions]
    path = copied(
        subject,
        tmp_path / "sub-01.zip",
        lambda name: name if any(part in name for part in wanted) else None,
    )
    options = Options(sessions=sessions)
    ours = images_of(path, options)
    assert [len(image) for image in ours["train"]] == train
    assert [len(image) for image in ours["test"]] == [20 * len(sessions)] * 2
    same(ours, plain(subject, replace(options, sessions=tuple(sorted(sessions)))))
    [caveat] = caveats(options)
    assert f"only {', '.join(map(str, sorted(sessions)))} were used" in caveat


def test_all_sessions_by_name_are_all(subject: Path) -> None:
    options = Options(sessions=(4, 3, 2, 1))
    assert caveats(options) == ()
    for split, eeg in read(subject, options).items():
        assert np.array_equal(eeg, read(subject, Options())[split])


@pytest.mark.parametrize("folder", ["sub-01 2/", "raw data/sub-01/", ""])
def test_an_archive_that_was_made_again_on_a_mac(
    folder: str, subject: Path, tmp_path: Path
) -> None:
    path = copied(subject, tmp_path / "sub-01.zip", lambda name: folder + name.split("/", 1)[1])
    with zipfile.ZipFile(path, "a") as archive:
        for name in archive.namelist():
            archive.writestr(f"__MACOSX/{Path(name).parent}/._{Path(name).name}", b"Mac OS X")
        archive.writestr(f"{folder}.DS_Store", b"Bud1")
    options = Options()
    for split, eeg in read(path, options).items():
        assert np.array_equal(eeg, read(subject, options)[split])


def test_the_folder_of_another_subject_is_refused_and_its_name_helps(
    subject: Path, tmp_path: Path
) -> None:
    path = copied(subject, tmp_path / "sub-02.zip", lambda name: name)
    with pytest.raises(
        InputError, match=r"the folder 'sub-01', which is sub-01, not sub-02; rename the archive to"
    ) as error:
        read(path, Options())
    [name] = re.findall(r"rename the archive to (\S+),", str(error.value))
    assert read(path.rename(tmp_path / name), Options())["test"].shape[1] == 80
    renamed = copied(
        subject, tmp_path / "sub-02.zip", lambda name: name.replace("sub-01", "sub-02")
    )
    assert read(renamed, Options())["test"].shape[1] == 80  # "or rename the folder in it"


def test_a_session_that_is_there_twice_is_refused(subject: Path, tmp_path: Path) -> None:
    path = copied(subject, tmp_path / "sub-01.zip", lambda name: name)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sub-01 2/ses-02/raw_eeg_test.npy", b"")
    with pytest.raises(
        InputError, match="ses-02/raw_eeg_test.npy twice, as 'sub-01/ses-02.* and 'sub-01 2/ses-02"
    ):
        read(path, Options())
    again = copied(
        path,
        tmp_path / "again/sub-01.zip",
        lambda name: None if name.startswith("sub-01 2") else name,
    )
    assert read(again, Options())["test"].shape[1] == 80  # as told


def test_a_damaged_archive_is_refused(subject: Path, tmp_path: Path) -> None:
    data = bytearray(make_raw_subject(tmp_path, N).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "sub-01.zip").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read(tmp_path / "sub-01.zip", Options())


@pytest.fixture
def small_files() -> Iterator[None]:
    """A file of this process can have 1 MB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_nothing_stays(
    subject: Path, small_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        InputError, match=rf"{tmp_path}: the epochs of sub-01.zip need about .* GB .* TMPDIR"
    ):
        read(subject, PAPER)
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_cannot_reserve_room(subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS."""
    expected = read(subject, Options())
    monkeypatch.delattr(os, "posix_fallocate")
    for split, eeg in read(subject, Options()).items():
        assert np.array_equal(eeg, expected[split])


def test_there_a_full_disk_is_told_when_it_shows(
    subject: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(InputError, match="the epochs of sub-01.zip need about .* GB there"):
        read(subject, PAPER)


def test_nothing_is_seen_in_the_temporary_folder(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_eeg(subject, IMAGES, Options()) as raw:
        next(raw.chunks["train"])
        assert list(tmp_path.iterdir()) == []
