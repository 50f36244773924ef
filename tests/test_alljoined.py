"""Alljoined-1.6M: prepared as a plain program prepares it, written from the description; bad files are named."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import scipy
import sklearn
import yaml
from sklearn.discriminant_analysis import _cov

from pipeline.datasets.alljoined import find_subjects, memory_needed, open_eeg
from pipeline.datasets.alljoined_files import CH_NAMES, BlockFile, read_block
from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.table import ALLJOINED
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from pipeline.preprocess.recordings import check_recordings, read_split
from tests.alljoined_eeg import Contents, make_subject
from tests.preparing import no_other_process

N = {"train": 20, "test": 3}
IMAGES = {
    split: pd.DataFrame(
        {
            name: [f"{split}_images/{i}/{i}.jpg" for i in range(n)]
            for name in ("image_ids", "concept", "things_concept")
        }
    )
    for split, n in N.items()
}


@dataclass(frozen=True)
class Options:
    """The keys of the section `preprocess` that are used; those of params/alljoined but for channels and sessions."""

    channels: str | tuple[str, ...] = ("Oz", "AFz", "P3")
    sfreq: float | str = 250.0
    window: tuple[float, float] | str = (-0.2, 0.996)
    baseline: tuple[float, float] | str = (-0.2, 0.0)
    mvnn: str = "epochs"
    mvnn_from: str = "training"
    sessions: str | tuple[int, ...] = (2,)
    normalise: str = "none"
    average_repetitions: bool = False


PUBLISHED = Options(channels="all", sessions="all")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("alljoined"), N)


Images = dict[str, list[np.ndarray]]  # by split, the repetitions (R, C, T) of each image


def read(path: Path, options: Options) -> Images:
    with open_eeg(path, IMAGES, options) as raw:
        eeg = {split: [image for chunk in raw.chunks[split] for image in chunk] for split in N}
        counts = {split: raw.n_repetitions[split] for split in N}
    for split in N:
        assert [len(image) for image in eeg[split]] == counts[split][counts[split] > 0].tolist()
    return eeg


def caveats_of(path: Path, options: Options) -> tuple[str, ...]:
    with open_eeg(path, IMAGES, options) as raw:
        return raw.caveats


def same(ours: Images, peer: Images) -> float:
    """The largest difference in standard deviations."""
    largest = 0.0
    for split in N:
        assert [image.shape for image in ours[split]] == [image.shape for image in peer[split]]
        sd = np.concatenate([image.ravel() for image in peer[split]]).std()
        for mine, other in zip(ours[split], peer[split], strict=True):
            largest = max(largest, np.abs(mine - other).max() / sd)
    assert largest < 1e-5
    return largest


# The plain program: MNE reads the files, and it takes one epoch and one covariance at a time.


def plain(path: Path, options: Options, as_authors: bool = False) -> Images:
    """`as_authors`: an image that a session shows once counts as a covariance of zeros."""
    steps = (options.channels, options.sfreq, options.window, options.baseline)
    sessions = range(1, 5) if options.sessions == "all" else options.sessions
    merged = {split: [[] for _ in range(n)] for split, n in N.items()}
    for session in sessions:
        eeg = {split: plain_epochs(path, session, split, *steps) for split in N}
        whitener = np.eye(len(next(iter(eeg["test"].values()))[0]))
        if options.mvnn != "none":
            splits = ["train"] if options.mvnn_from == "training" else ["train", "test"]
            noise = [
                plain_noise(path, session, split, steps, options.mvnn, as_authors)
                for split in splits
            ]
            whitener = scipy.linalg.fractional_matrix_power(np.mean(noise, axis=0), -0.5)
        centre, sd = 0.0, 1.0
        if options.normalise == "session":
            trials = np.concatenate(list(eeg["train"].values()))
            centre, sd = (of(axis=(0, 2))[:, None] for of in (trials.mean, trials.std))
        for split in N:
            for image, epochs in eeg[split].items():
                merged[split][image] += [(whitener @ epoch - centre) / sd for epoch in epochs]
    most = {"train": None, "test": 20 * len(sessions)}
    return {
        split: [np.array(epochs)[: most[split]] for epochs in of_images if epochs]
        for split, of_images in merged.items()
    }


@cache
def plain_noise(path, session, split, steps, mvnn, as_authors) -> np.ndarray:
    covariances = []
    for epochs in plain_epochs(path, session, split, *steps).values():
        x = np.array(epochs)  # (R, C, T)
        if split == "test":  # those that are used
            x = x[:20]
        if len(x) == 1 and not as_authors:
            continue
        x = x - x.mean(axis=0)
        sets = (
            [x[:, :, t] for t in range(x.shape[2])] if mvnn == "time" else [epoch.T for epoch in x]
        )
        with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):  # faster
            covariances.append(np.mean([_cov(s, shrinkage="auto") for s in sets], axis=0))
    return np.mean(covariances, axis=0)


@cache
def plain_epochs(path, session, split, channels, sfreq, window, baseline) -> dict[int, list]:
    """By image, counted from 0, its epochs in a session, (C, T)."""
    wanted = {"all": CH_NAMES, "posterior": POSTERIOR}.get(channels, channels)
    first = min(window[0], 0 if baseline == "none" else baseline[0])
    start, stop = round(first * 256), round((window[1] + 1 / sfreq) * 256)
    keep = slice(round((window[0] - first) * sfreq), round((window[1] - first) * sfreq) + 1)
    epochs = {}
    for block in range(1, 5) if split == "test" else range(5, 20):
        file = path / f"session_{session:02d}_block_{block:02d}.edf"
        names = [name.replace("AFz", "Afz") for name in wanted]
        raw = mne.io.read_raw_edf(file, include=names, verbose="error")
        recording = raw.get_data(picks=names)
        for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True):
            kind, image_id = text.split(",")[:2]
            image = int(image_id) - (N["train"] if split == "test" else 0)
            if not kind.startswith("stim") or image >= N[split]:
                continue
            onset = round(onset * 256)
            epoch = recording[:, onset + start : onset + stop + 1]
            if baseline != "none":
                quiet = recording[:, onset + round(baseline[0] * 256) : onset + 1]
                epoch = epoch - quiet.mean(axis=1, keepdims=True)
            epochs.setdefault(image, []).append(plain_resample(epoch, sfreq)[:, keep])
    return epochs


def plain_resample(epoch: np.ndarray, sfreq: float) -> np.ndarray:
    """MNE's definition: edges repeated up to a power of two (100 samples a side at least), SciPy's FFT, cut again."""
    n = epoch.shape[1]
    length = 2 ** int(np.ceil(np.log2(n + 2 * min(n // 8, 100))))
    before = (length - n) // 2
    padded = np.pad(epoch, ((0, 0), (before, length - n - before)), "edge")
    new = scipy.signal.resample(padded, round(sfreq / 256 * length), axis=1)
    begin = round(sfreq / 256 * before)
    return new[:, begin : begin + round(sfreq / 256 * n)]


TRIED = [
    PUBLISHED,
    Options("posterior", 100.0, (-0.2, 0.79), mvnn="time", mvnn_from="training-and-test"),
    Options(baseline="none", window=(0.0, 0.5), sfreq=128.0, mvnn_from="training-and-test"),
    Options(window=(0.0, 0.996), mvnn="none", sessions=(1, 3)),
    Options(window=(0.0, 0.996), mvnn="none", normalise="session", sessions=(4, 2)),
]


@pytest.mark.parametrize("options", TRIED, ids=str)
def test_prepared_as_by_a_plain_program(options: Options, subject: Path) -> None:
    sessions = options.sessions
    in_order = sessions if sessions == "all" else tuple(sorted(sessions))
    largest = same(read(subject, options), plain(subject, replace(options, sessions=in_order)))
    print(f"{largest:.1e} sd, {options}")  # pytest -rP shows it


@pytest.mark.parametrize("options", TRIED, ids=str)
def test_averages_are_those_of_the_trials(options: Options, subject: Path) -> None:
    """The mean is taken before the rate is lowered, and before a z-score is done."""
    trials = read(subject, options)
    with open_eeg(subject, IMAGES, replace(options, average_repetitions=True)) as raw:
        [*averages] = np.concatenate(list(raw.chunks["train"]))
    for average, of_image in zip(averages, trials["train"], strict=True):
        expected = of_image.mean(axis=0)
        np.testing.assert_allclose(average, expected[None], rtol=0, atol=1e-10 * expected.std())


def test_an_average_of_trials_that_are_normalised_first_is_left_to_the_preparation(
    subject: Path,
) -> None:
    options = replace(Options(), normalise="trial")
    with open_eeg(subject, IMAGES, replace(options, average_repetitions=True)) as raw:
        assert {chunk.shape[1] for chunk in raw.chunks["train"]} == {1, 2}


def test_an_image_that_a_session_shows_once_counts_as_nothing_and_not_as_zeros(
    subject: Path,
) -> None:
    """Theirs is ours times one number: the same EEG for whoever measures its scale."""
    options = Options(channels="all")
    ours, theirs = read(subject, options), plain(subject, options, as_authors=True)
    n_shown = np.array([len(image) for image in ours["train"]])
    assert set(n_shown) == {1, 2}
    factor = np.sqrt(len(n_shown) / (n_shown > 1).sum())
    same({split: [factor * image for image in ours[split]] for split in N}, theirs)


def test_names_times_and_repetitions(subject: Path) -> None:
    with open_eeg(subject, IMAGES, replace(PUBLISHED, mvnn="none")) as raw:
        assert raw.layout.ch_names == CH_NAMES and raw.units == "V"
        assert np.array_equal(raw.layout.times, np.round(np.arange(-50, 250) / 250, 3))
        assert set(raw.n_repetitions["train"]) == {4, 6}
        assert set(raw.n_repetitions["test"]) == {80}  # the first one was shown 84 times
        assert raw.caveats == ()
    with open_eeg(subject, IMAGES, Options("posterior", window=(0.0, 0.996))) as raw:
        assert raw.layout.ch_names == POSTERIOR and raw.units.startswith("whitened")
        assert np.array_equal(raw.layout.times, np.round(np.arange(250) / 250, 3))
        [caveat] = raw.caveats
        assert "only 2 were used" in caveat


def test_events_are_those_of_mne(subject: Path) -> None:
    """Also where an onset lies between two samples."""
    path = subject / "session_02_block_01.edf"
    raw = mne.io.read_raw_edf(path, include=["Oz"], preload=True, verbose="error")
    events, ids = mne.events_from_annotations(raw, regexp="stim_test", verbose="error")
    names = {code: int(text.split(",")[1]) - N["train"] for text, code in ids.items()}
    shown = np.array([names[code] for code in events[:, 2]])
    options = Options(("Oz",), 256.0, (0.0, 0.5), "none", "none")
    # At the recorded rate and from a sample on, nothing is resampled
    of_block = read(subject, options)["test"]
    for image in range(N["test"]):
        for number, sample in enumerate(events[shown == image, 0]):
            expected = raw.get_data(start=sample, stop=sample + 129)
            np.testing.assert_allclose(of_block[image][number], expected, atol=1e-12)


def change_field(file: Path, old: bytes, new: bytes) -> None:
    """Another text in the header of a file: fields have a fixed length, and blanks at the end."""
    content = file.read_bytes()
    header = content[: 256 * (1 + len(CH_NAMES))]
    assert old in header
    changed = header.replace(old.ljust(8), new.ljust(8))
    file.write_bytes(changed + content[len(header) :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"uV", b"mV"),
        (b"uV", "µV".encode("latin-1")),
        (b"-32768", b"-20000"),  # the digital minimum
        (b"8400", b"-8400"),  # a channel that is connected the other way round
    ],
)
def test_volts_are_those_of_mne(old: bytes, new: bytes, tmp_path: Path, subject: Path) -> None:
    file = BlockFile(2, 6, tmp_path / "session_02_block_06.edf")
    file.path.write_bytes((subject / file.path.name).read_bytes())
    change_field(file.path, old, new)

    block = read_block(file, ["Oz", "AFz"], N, (0, 1))
    names = ["Oz", "Afz"]
    raw = mne.io.read_raw_edf(file.path, include=names, verbose="error")
    expected = raw.get_data(picks=names)
    ours = block.gain * block.digital + block.offset
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_file_that_the_recorder_never_closed_is_read_whole(tmp_path: Path) -> None:
    """Its header says that there are -1 records."""
    path = make_subject(tmp_path, N, sessions=(2,))
    closed = read(path, Options())
    file = path / "session_02_block_06.edf"
    content = file.read_bytes()
    file.write_bytes(content[:236] + b"-1".ljust(8) + content[244:])
    again = read(path, Options())
    for split in N:
        assert all(map(np.array_equal, closed[split], again[split]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"uV", b"degC", "channel Oz is in 'degC', expected one of V, mV, uV"),
        (b"-32768", b"32767", "the header says of channel Oz .* are the same"),
        (b"8400", b"0", "the header says of channel Oz .* are the same"),
        (b"Pz", b"Oz", "has 2 channels Oz, expected the 3 channels .*, each once"),
    ],
)
def test_a_channel_with_a_wrong_header_is_left_out_as_told(
    old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    path = make_subject(tmp_path, N, sessions=(1, 2))
    change_field(path / "session_02_block_06.edf", old, new)
    with pytest.raises(InputError, match=f"02_block_06.edf: {message}.* leave out"):
        read(path, Options())
    assert len(read(path, Options(sessions=(1,)))["test"]) == N["test"]


def test_channels_that_are_not_used_may_be_wrong(tmp_path: Path) -> None:
    path = make_subject(tmp_path, N, sessions=(2,))
    expected = read(path, Options())
    for file in path.iterdir():
        change_field(file, b"Cz", b"?")
    assert all(map(np.array_equal, read(path, Options())["train"], expected["train"]))


def test_a_record_that_begins_with_an_image_loses_none(tmp_path: Path) -> None:
    """An EDF file must say at the start of each record when that begins, and some writers do not."""
    path = make_subject(tmp_path, N, sessions=(2,))
    expected = read(path, Options())
    for file in path.iterdir():
        content = file.read_bytes()
        # Such as +3, 0x14 twice, 0x00: without them the record begins with its first image.
        changed = re.sub(rb"[+]\d+\x14\x14\x00((?:[+].*?\x14\x00)+)(\x00*)", shift, content)
        assert changed != content
        file.write_bytes(changed)
    for split in N:
        assert all(map(np.array_equal, read(path, Options())[split], expected[split]))


def shift(record: re.Match) -> bytes:
    return record[1].ljust(len(record[0]), b"\0")


def test_copies_that_are_written_in_other_ways_are_the_same(tmp_path: Path, subject: Path) -> None:
    """With the prefix of some copies, AFz in its right spelling, and another person's name in the header, as sub-08."""

    def spell(session: int, block: int, contents: Contents) -> None:
        contents.eeg = {name.replace("Afz", "AFz"): eeg for name, eeg in contents.eeg.items()}
        contents.eeg = dict(reversed(contents.eeg.items()))

    other = make_subject(tmp_path, N, prefix=True, patient="Subject 19", change=spell)
    assert find_subjects(tmp_path) == {"sub-01": other}
    ours, again = read(subject, Options()), read(other, Options())
    for split in N:
        assert all(map(np.array_equal, ours[split], again[split]))


def test_what_was_shown_is_what_the_annotations_say(tmp_path: Path) -> None:
    """Two images of sub-06 were shown in another order than planned: the EEG goes to the image that was shown."""
    shown: list[int] = []

    def swap(session: int, block: int, contents: Contents) -> None:
        trials = [i for i, item in enumerate(contents.annotations) if "stim_train" in item[1]]
        if block == 5:
            first, second = trials[:2]
            (at, text), (later, other) = (contents.annotations[i] for i in (first, second))
            contents.annotations[first], contents.annotations[second] = (at, other), (later, text)
            shown.extend(int(name.split(",")[1]) for name in (text, other))

    planned = make_subject(tmp_path / "planned", N, sessions=[1])
    swapped = make_subject(tmp_path / "swapped", N, sessions=[1], change=swap)
    options = Options(mvnn="none", sessions=(1,))
    before, after = (read(folder, options)["train"] for folder in (planned, swapped))
    first, second = shown
    assert np.array_equal(after[second][0], before[first][0])
    assert np.array_equal(after[first][0], before[second][0])


def test_subjects_are_prepared_and_fit_together(tmp_path: Path) -> None:
    """The second person lacks an image of the first, and has seen one test image more often than planned."""

    def hide(session: int, block: int, contents: Contents) -> None:
        contents.annotations = [
            (at, text) for at, text in contents.annotations if not text.startswith("stim_train,7,")
        ]

    make_subject(tmp_path / "eeg", N, "sub-01", sessions=[1])
    make_subject(tmp_path / "eeg", N, "sub-02", sessions=[1], change=hide)
    write_image_table(tmp_path / "images.csv", IMAGES)
    changes = {"sessions": [1], "channels": ["O1", "Oz"], "sfreq": 100.0, "window": [0.0, 0.79]}
    changes |= {"mvnn": "epochs", "workers": 1}
    preprocess = read_params(Path("params.yaml")).preprocess.model_copy(update=changes)
    with no_other_process():
        paths = prepare_subjects(
            ALLJOINED, tmp_path / "eeg", tmp_path / "images.csv", tmp_path / "out", preprocess
        )
    check_recordings(paths)
    seen = [read_split(path, "train", average=True).image_ids for path in paths]
    assert set(seen[0]) - set(seen[1]) == {"train_images/7/7.jpg"}
    assert read_split(paths[1], "test", average=False).eeg.shape == (3, 20, 2, 80)


def test_subjects_have_as_many_trials_of_each_test_image_as_the_rarest(tmp_path: Path) -> None:
    """Two triggers of the second person were lost, so that all have 18 in place of 20; and the result says so."""

    def lose(session: int, block: int, contents: Contents) -> None:
        first = f"stim_test,{N['train']},"
        of_image = [item for item in contents.annotations if item[1].startswith(first)]
        n_lost = {1: 3}.get(block, 0)  # this image was shown once more than planned
        contents.annotations = [
            item for item in contents.annotations if item not in of_image[:n_lost]
        ]

    make_subject(tmp_path / "eeg", N, "sub-01", sessions=[1])
    make_subject(tmp_path / "eeg", N, "sub-02", sessions=[1], change=lose)
    options = Options(("O1", "Oz"), 100.0, (0.0, 0.79), "none", sessions=(1,))
    for subject in ("sub-01", "sub-02"):
        with open_eeg(tmp_path / "eeg" / subject, IMAGES, options) as raw:
            assert set(raw.n_repetitions["test"]) == {18}
            [caveat] = [text for text in raw.caveats if "test image" in text]
            assert "18 trials were used and not the 20 that were planned" in caveat
            assert "the rarest one of sub-02" in caveat


@pytest.mark.parametrize(("mvnn_from", "same"), [("training", True), ("training-and-test", False)])
def test_the_test_eeg_enters_only_where_it_is_told(
    mvnn_from: str, same: bool, subject: Path, tmp_path: Path
) -> None:
    def louder(session: int, block: int, contents: Contents) -> None:
        if block < 5:
            contents.eeg = {name: 2 * eeg - 4200 for name, eeg in contents.eeg.items()}

    other = make_subject(tmp_path, N, sessions=(1,), change=louder)
    options = Options(mvnn_from=mvnn_from, sessions=(1,))
    ours, loud = read(subject, options)["train"], read(other, options)["train"]
    assert all(map(np.array_equal, ours, loud)) == same
    assert any("saw the test EEG" in text for text in caveats_of(subject, options)) != same


def test_params_file() -> None:
    words = Path("params/alljoined").read_text().replace("-S ", "").split()
    values = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in words)}
    assert values.pop("dataset") == "alljoined"
    assert values.pop("train.eeg_window") == [0.0, 0.996]
    given = {
        key.removeprefix("preprocess."): tuple(v) if isinstance(v, list) else v
        for key, v in values.items()
    }
    assert replace(Options(), **given, sessions="all") == PUBLISHED


# Bad files


def at(session: int, block: int, edit: Callable[[Contents], None]) -> Callable:
    return lambda s, b, contents: edit(contents) if (s, b) == (session, block) else None


def note(text: str, seconds: float = 0.9) -> Callable[[Contents], None]:
    return lambda contents: contents.annotations.append((seconds, text))


def without_channel(contents: Contents) -> None:
    del contents.eeg["P3"]


def without_afz(contents: Contents) -> None:
    del contents.eeg["Afz"]


def slower(contents: Contents) -> None:
    contents.eeg = {name: eeg[::2] for name, eeg in contents.eeg.items()}
    contents.sfreq = 128


def no_images(contents: Contents) -> None:
    contents.annotations = [(0.1, "behav,3,1")]


@pytest.mark.parametrize(
    ("block", "edit", "message"),
    [
        (7, note("stim_test,21,-1,1"), "02_block_07.edf: has the annotation 'stim_test,21,-1,1' at 0.9 s, expected stim_train, which blocks 5 to 19"),
        (4, note("stim_train,3,0,0"), "02_block_04.edf: has .* expected stim_test, which blocks 1 to 4 show"),
        (7, note("stim_train,21,0,0"), "'stim_train,21,0,0' .* expected an id of 0 to 19, or of the 9 oddballs from 23, since .* 20 training and 3 test"),
        (3, note("stim_test,19,0,0"), "expected an id of 20 to 22"),
        (3, note("stim_test,32,0,0"), "expected an id of 20 to 22"),
        (3, note("stim_test,-1,0,0"), "'stim_test,-1,0,0' at .*, expected such as stim_train,1234,17,3"),
        (3, note("session_2,block_3,stim_test"), "expected such as stim_train,1234,17,3"),
        (9, no_images, "02_block_09.edf: shows no image, expected annotations such as stim_train,0,0,0"),
        (9, without_channel, "02_block_09.edf: has no channel P3, expected the 3 channels"),
        (9, without_afz, "02_block_09.edf: has no channel AFz"),
        (9, slower, "02_block_09.edf: is recorded at 128 Hz, expected 256 Hz"),
    ],
)  # fmt: skip
def test_a_block_that_is_wrong_is_named(
    block: int, edit: Callable, message: str, tmp_path: Path
) -> None:
    path = make_subject(tmp_path, N, sessions=(2,), change=at(2, block, edit))
    with pytest.raises(InputError, match=message) as error:
        read(path, Options(mvnn="none"))
    assert "leave out" in str(error.value) and "preprocess.sessions" in str(error.value)


def test_another_session_is_used_as_told(subject: Path, tmp_path: Path) -> None:
    path = make_subject(tmp_path, N, sessions=(1, 2), change=at(2, 9, no_images))
    with pytest.raises(InputError, match=r"leave out the session \(preprocess.sessions\)"):
        read(path, Options())
    ours, other = read(path, Options(sessions=(1,))), read(subject, Options(sessions=(1,)))
    for split in N:
        assert all(map(np.array_equal, ours[split], other[split]))


def test_a_channel_that_is_missing_is_left_out_as_told(tmp_path: Path) -> None:
    path = make_subject(tmp_path, N, sessions=(2,), change=at(2, 9, without_channel))
    with pytest.raises(InputError, match="has no channel P3, .*leave out the channel"):
        read(path, Options())
    assert len(read(path, Options(channels=("Oz", "AFz")))["test"]) == N["test"]


def test_a_file_that_is_cut_or_damaged_is_refused(subject: Path, tmp_path: Path) -> None:
    path = make_subject(tmp_path, N, sessions=(2,))
    file = path / "session_02_block_03.edf"
    whole = file.read_bytes()
    for content, message in (
        (whole[:-20_000], "session_02_block_03.edf: is cut: its header says .* s, and it holds"),
        (whole[:5000], "session_02_block_03.edf: cannot be read as a recording in EDF"),
        (b"<html>" * 1000, "cannot be read as a recording in EDF"),
        (b"", "cannot be read as a recording in EDF"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            read(path, Options())
        assert "fetch it again with `dvc repro --force download`" in str(error.value)

    file.write_bytes(whole)
    assert len(read(path, Options())["test"]) == N["test"]


def test_a_missing_file_is_told_before_any_is_read(subject: Path, tmp_path: Path) -> None:
    path = make_subject(tmp_path, N, sessions=(1, 2))
    (path / "session_02_block_17.edf").unlink()
    message = r"session 2 is not there or not whole \(no session_02_block_17.edf\)"
    for check in (memory_needed, read):
        with pytest.raises(InputError, match=message) as error:
            check(path, Options())
    [remedy] = re.findall(r"-S '(preprocess.sessions=.*?)'", str(error.value))
    as_told = Options(sessions=tuple(yaml.safe_load(remedy.split("=")[1])))
    assert as_told.sessions == (1,) and memory_needed(path, as_told) > 0
    assert len(read(path, as_told)["test"]) == N["test"]

    with pytest.raises(InputError, match=r"session 5 .* \(no such session\)"):
        read(subject, Options(sessions=(5,)))
    (tmp_path / "sub-02").mkdir()
    with pytest.raises(InputError, match="sub-02: holds no session with all its 19 files"):
        memory_needed(tmp_path / "sub-02", Options())


def test_a_session_that_shows_no_image_twice(subject: Path, tmp_path: Path) -> None:
    def once(session: int, block: int, contents: Contents) -> None:
        if session == 2 and block > 4:
            [(seconds, _), *_] = contents.annotations
            contents.annotations = [(seconds, f"stim_train,{block},0,0")]

    path = make_subject(tmp_path, N, sessions=(1, 2), change=once)
    for mvnn in ("epochs", "time"):
        message = f"sub-01: session 2: shows no image twice, so that preprocess.mvnn: {mvnn} has"
        with pytest.raises(InputError, match=f"{message} .*; set it to none$"):
            read(path, Options(mvnn=mvnn))
    assert len(read(path, Options(mvnn="none"))["train"]) == 15
    same(read(path, Options(sessions=(1,))), read(subject, Options(sessions=(1,))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sfreq": "published"}, "sfreq and .window cannot be published; choose both, as params/alljoined"),
        ({"window": "published"}, "sfreq and .window cannot be published"),
        ({"sfreq": 257.0}, "recorded at 256 Hz, preprocess.sfreq is 257"),
        ({"channels": ("Oz", "Afz")}, "has no channel 'Afz' .*; is it AFz[?]"),
        ({"window": (0.5, 0.1)}, "preprocess.window is"),
        ({"normalise": "session"}, "in the place of preprocess.mvnn, and .* is epochs: set one"),
    ],
)  # fmt: skip
def test_refuses_what_the_recording_does_not_allow(
    changes: dict, message: str, subject: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(subject, replace(Options(), **changes))


def test_trials_that_are_left_out_are_counted(tmp_path: Path) -> None:
    """At an end of a block, after it, and at the sample of another one."""

    def more(contents: Contents) -> None:
        last = len(contents.eeg["Oz"]) / contents.sfreq
        same_sample = contents.annotations[0][0] + 1e-4
        contents.annotations += [
            (seconds, f"stim_train,{image},0,0")
            for image, seconds in enumerate((0.1, last - 0.9, last + 5, same_sample))
        ]

    path = make_subject(tmp_path / "more", N, sessions=(2,), change=at(2, 6, more))
    _, caveat = caveats_of(path, Options())
    assert caveat.startswith("sub-01: 4 of ")
    without = make_subject(tmp_path / "without", N, sessions=(2,))
    same(read(path, Options()), read(without, Options()))


def test_a_channel_that_is_flat_in_a_block_is_told(tmp_path: Path) -> None:
    def flat(contents: Contents) -> None:
        contents.eeg["Oz"] = np.full_like(contents.eeg["Oz"], 4200)

    path = make_subject(tmp_path, N, sessions=(2,), change=at(2, 6, flat))
    _, caveat = caveats_of(path, Options())
    assert "the same value all the time were used: Oz in session_02_block_06.edf." in caveat
    assert np.isfinite(read(path, Options())["train"][0]).all()
