"""Somebody's own EEG or MEG, made into the same chunks as that of the published datasets.

The folder of a subject (see `subject_folder`) names its files and trials. Its files are read by MNE
(see `recordings`), one after the other:
- epochs are taken as they are; `preprocess.baseline` takes a baseline off, `preprocess.sfreq`
  resamples them, both by MNE;
- of raw recordings epochs are cut as those of the other raw dataset are (see `epochs`). Segments
  that are annotated as bad are not left out: the table of trials says what is used.
Then each session is whitened or z-scored by its training trials (`preprocess.mvnn`, `.normalise`).

Test trials: all subjects must have the same test images, and as many repetitions of each. So of the
test images only those stay that every subject has seen in the chosen sessions, and of each the
first R trials, where R is the smallest number of trials that one of them has in one subject.

The noise covariance is the mean over images of what `noise_normalisation` computes of each, so that
an image counts once, however often it was shown. With `mvnn: time` only images count that a session
showed at least twice.
Axes: N conditions (images), R repetitions, C channels, T samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np
import pandas as pd

from pipeline.datasets.channels import choose_channels
from pipeline.datasets.entry import Layout, Modality, RawEeg
from pipeline.datasets.epochs import EpochPlan, cut_epochs, epoch_bounds, plan_epochs
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.mne_files import faults_as_input_errors
from pipeline.datasets.noise_normalisation import Observations, mean_covariance, observations
from pipeline.datasets.own.recordings import open_epochs, open_raw, pick_data
from pipeline.datasets.own.subject_folder import RECORDINGS, SubjectFolder, read_subject_folder
from pipeline.datasets.scratch import Scratch
from pipeline.datasets.sessions import (
    ChannelStep,
    SessionEpochs,
    gather,
    require_one_normalisation,
    whitening_caveats,
    whitening_step,
    z_score_step,
)
from pipeline.datasets.things_meg import sensor_positions
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.sections import Preprocess

UNITS = "V (EEG); T (magnetometers) and T/m (gradiometers) of MEG"
UNITS_OF: dict[Modality, str] = {"EEG": "V", "MEG": "T (magnetometers) and T/m (gradiometers)"}
UNITS_OF_WHITENED = "whitened (multivariate noise normalisation), no physical unit"

READ_AT_ONCE = 64 << 20  # bytes of epochs, before they are resampled
READING_BYTES = 300 << 20  # memory for these, and for chunks
SET_BYTES = 5  # memory for each byte of an EEGLAB file, whose float32 values become float64
POSITIONS_FROM = 4  # sensors; fewer span no sphere
CHOOSE_SESSIONS = "choose other sessions (preprocess.sessions)"
LOOK_AGAIN = "run `dvc repro` again, which looks at the files first"


def find_subjects(folder: Path) -> dict[str, Path]:
    """The folders that the download wrote, by subject."""
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RECORDINGS}"))}


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes.

    Raises InputError where a file is missing, or where `preprocess` asks for what these files do
    not allow.
    """
    require_one_normalisation(preprocess)
    subject = read_subject_folder(path)
    if subject.kind == "raw":
        _require_rate_and_window(preprocess, path)

    files = [Path(file.path) for file in subject.files]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: is missing; put it back, or {LOOK_AGAIN}")

    # MNE reads all of an EEGLAB file of epochs.
    sets = [file for file in files if file.suffix == ".set" and subject.kind == "epochs"]
    return READING_BYTES + round(SET_BYTES * max(map(_bytes_of_set, sets), default=0))


def _bytes_of_set(file: Path) -> int:
    values = file.with_suffix(".fdt")
    return file.stat().st_size + (values.stat().st_size if values.is_file() else 0)


def _require_rate_and_window(preprocess: Preprocess, path: Path) -> tuple[float, Sequence[float]]:
    """Rate in Hz and window in s. Raises InputError where they are left as published."""
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: is of raw recordings, which have no epochs yet, so that preprocess.sfreq and "
            ".window cannot be published; choose both, such as -S preprocess.sfreq=250 "
            "-S 'preprocess.window=[-0.2,0.8]'"
        )
    return preprocess.sfreq, preprocess.window


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG or MEG of one subject, whose folder is `path`, see `RawEeg`.

    When the context is entered, all trials are read. They wait in the folder for temporary files
    (see `Scratch`), float64; nothing stays there. In memory are some hundred epochs, or one EEGLAB
    file of epochs.

    Raises InputError for a file that is missing, damaged or unlike the subject's first one, a
    channel, session, interval or rate that the recordings do not have, and values that are not
    finite.
    """
    require_one_normalisation(preprocess)
    subject = read_subject_folder(path)
    trials = _trials_of_images(subject.trials, images, preprocess, path)
    trials, caveats_of_cut = _cut_test_trials(trials, images, preprocess, path)

    with ExitStack() as stack:
        layout, scratch, caveats_of_files = _read_files(subject, trials, preprocess, path, stack)
        shape = (len(layout.ch_names), len(layout.times))
        sessions = _sessions(trials, shape, scratch, preprocess, path)

        counts = {split: _count(trials, split, len(images[split])) for split in SPLITS}
        chunks = {
            split: gather([session[split] for session in sessions], counts[split])
            for split in SPLITS
        }
        caveats = (
            *whitening_caveats(preprocess),
            *_caveats_of_sessions(preprocess),
            *caveats_of_cut,
            *caveats_of_files,
        )
        yield RawEeg(
            layout,
            chunks,
            tuple(dict.fromkeys(caveats)),  # each once
            None if all(len(set(counts[split])) == 1 for split in SPLITS) else counts,
            is_z_scored=preprocess.normalise == "session",
            units=UNITS_OF[layout.modality] if preprocess.mvnn == "none" else UNITS_OF_WHITENED,
        )


# The trials


def _trials_of_images(
    trials: pd.DataFrame, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess, path: Path
) -> pd.DataFrame:
    """The trials of the chosen sessions, in the order of files, then of time.

    Columns beside those of the table: `split`, and `image_row`, the row of the image in its split.
    """
    trials = _of_sessions(trials, preprocess, path)
    trials = trials.sort_values(["file", "position"], ignore_index=True)
    trials = trials.assign(split="", image_row=-1)
    for split in SPLITS:
        rows = pd.Index(images[split]["image_ids"]).get_indexer(pd.Index(trials["image_ids"]))
        trials.loc[rows >= 0, "split"] = split
        trials.loc[rows >= 0, "image_row"] = rows[rows >= 0]

    unknown = trials.loc[trials["split"] == "", "image_ids"]
    if len(unknown):
        raise InputError(
            f"{path}: shows the image {unknown.iloc[0]!a:.100}, which is not in the table of "
            f"images; {FETCH_AGAIN}"
        )
    for split in SPLITS:
        if not (trials["split"] == split).any():
            raise InputError(
                f"{path}: has no {split} trial in the sessions that are used, expected trials of "
                f"both splits; leave this subject out of `subjects`, or {CHOOSE_SESSIONS}"
            )
    return trials


def _of_sessions(trials: pd.DataFrame, preprocess: Preprocess, path: Path) -> pd.DataFrame:
    """The trials of the sessions that `preprocess.sessions` asks for."""
    if preprocess.sessions == "all":
        return trials

    existing = sorted(set(trials["session"]))
    absent = sorted(set(preprocess.sessions) - set(existing))
    if absent:
        raise InputError(
            f"{path}: has no session {absent[0]} (preprocess.sessions), it has "
            f"{', '.join(map(str, existing))}; {CHOOSE_SESSIONS}"
        )
    return trials[trials["session"].isin(preprocess.sessions)]


def _cut_test_trials(
    trials: pd.DataFrame, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess, path: Path
) -> tuple[pd.DataFrame, list[str]]:
    """The trials without the test trials that not all subjects have, and a sentence on these."""
    image_ids = pd.Index(images["test"]["image_ids"])
    counts = []
    for folder in find_subjects(path.parent).values():
        of_subject = _of_sessions(read_subject_folder(folder).trials, preprocess, folder)
        rows = image_ids.get_indexer(pd.Index(of_subject["image_ids"]))
        counts.append(np.bincount(rows[rows >= 0], minlength=len(image_ids)))

    by_subject = np.array(counts)  # (subjects, test images)
    is_used = by_subject.min(axis=0) > 0
    if not is_used.any():
        raise InputError(
            f"{path.parent}: no test image was shown to all {len(counts)} subjects in the sessions "
            "that are used, expected the same test images for all; choose other test images, or "
            f"leave subjects out (`subjects`), or {CHOOSE_SESSIONS}"
        )

    fewest = by_subject[:, is_used].min()
    most = by_subject[:, is_used].max()
    is_test = trials["split"] == "test"
    by_session = trials.sort_values("session", kind="stable")  # and in it by file, then time
    number = by_session.groupby(["split", "image_row"]).cumcount()
    shown_to_all = is_used[trials["image_row"].where(is_test, 0)]
    trials = trials[~is_test | (shown_to_all & (number < fewest))].reset_index(drop=True)

    caveats = []
    if not is_used.all():
        caveats.append(
            f"{(~is_used).sum()} of {len(is_used)} test images were left out: not all subjects saw "
            "them."
        )
    if most > fewest:
        caveats.append(
            f"The subjects saw each test image {fewest} to {most} times. The first {fewest} trials "
            "were used, so that all images and subjects have as many."
        )
    return trials, caveats


def _caveats_of_sessions(preprocess: Preprocess) -> tuple[str, ...]:
    if preprocess.sessions == "all":
        return ()
    sessions = ", ".join(map(str, sorted(preprocess.sessions)))
    return (f"Of the sessions of each subject only {sessions} were used (preprocess.sessions).",)


def _count(trials: pd.DataFrame, split: Split, n_images: int) -> np.ndarray:
    """The repetitions of each image, (n_images,)."""
    return np.bincount(trials.loc[trials["split"] == split, "image_row"], minlength=n_images)


# The files


@dataclass(frozen=True)
class _EpochsFile:
    """An open file of epochs. `picks` are the positions of the chosen channels."""

    path: Path
    epochs: "mne.BaseEpochs"
    picks: np.ndarray
    preprocess: Preprocess
    caveats: list[str]

    @property
    def info(self) -> "mne.Info":
        return self.epochs.info

    @property
    def times(self) -> np.ndarray:
        """(T,), s."""
        return self._all_times[self._kept]

    @cached_property
    def _all_times(self) -> np.ndarray:
        """Before the window is cut."""
        times = np.asarray(self.epochs.times, np.float64)
        if self._rate is not None:
            n_times = self._prepare(np.array([0])).shape[2]
            times = times[0] + np.arange(n_times) / self._rate
        return times

    @property
    def _kept(self) -> slice:
        """The samples in `preprocess.window`, so that files of other lengths fit together.

        All of them where it is not within the times, or holds fewer than two samples: then the
        caller sees what there is, and what was asked for.
        """
        if self.preprocess.window == "published":
            return slice(None)
        first, last = self.preprocess.window
        times = self._all_times
        slack = (times[1] - times[0]) / 1000
        if not times[0] - slack <= first <= last <= times[-1] + slack:
            return slice(None)
        start, stop = np.searchsorted(times, [first - slack, last + slack])
        return slice(int(start), int(stop)) if stop - start > 1 else slice(None)

    def caveats_of_trials(self, positions: np.ndarray) -> list[str]:
        return []

    def read(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """The epochs in these rows of the file, in chunks (n, C, T)."""
        if positions.max() >= len(self.epochs):
            raise InputError(
                f"{self.path}: has {len(self.epochs)} epochs, and the table of trials has one in "
                f"row {positions.max()} (from 0): the file has changed; {LOOK_AGAIN}"
            )
        epoch_bytes = len(self.epochs.ch_names) * len(self.epochs.times) * 8
        for rows in _in_pieces(positions, epoch_bytes):
            yield self._prepare(rows)[:, :, self._kept]

    @property
    def _rate(self) -> float | None:
        """The new rate in Hz; None where the epochs stay as they are."""
        sfreq = self.preprocess.sfreq
        return None if sfreq in ("published", self.epochs.info["sfreq"]) else float(sfreq)

    def _prepare(self, rows: np.ndarray) -> np.ndarray:
        """The epochs in these rows (n, C, T), float64; the steps are those of `mne.Epochs`.

        Not by its methods: to take some rows out of epochs in memory, MNE copies all of them.
        """
        is_all = np.array_equal(self.picks, np.arange(len(self.epochs.ch_names)))
        picks = None if is_all else self.picks  # to pick all copies all
        eeg = self.epochs.get_data(item=rows, picks=picks, verbose="error")
        if self.preprocess.baseline != "none":
            baseline = tuple(self.preprocess.baseline)
            mne.baseline.rescale(eeg, self.epochs.times, baseline, copy=False, verbose="error")
        if self._rate is not None:
            sfreq = self.epochs.info["sfreq"]
            # As `mne.Epochs.resample` has them
            padding = {"npad": "auto", "pad": "edge"}
            eeg = mne.filter.resample(eeg, self._rate, sfreq, **padding, verbose="error")
        return eeg


@dataclass(frozen=True)
class _RawFile:
    """An open raw recording of EEG or MEG channels alone, of which `picks` are the chosen ones."""

    path: Path
    raw: "mne.io.BaseRaw"
    picks: np.ndarray
    plan: EpochPlan
    caveats: list[str]

    @property
    def info(self) -> "mne.Info":
        return self.raw.info

    @property
    def times(self) -> np.ndarray:
        """(T,), s."""
        return self.plan.times

    def caveats_of_trials(self, positions: np.ndarray) -> list[str]:
        """How many trials are in segments that are annotated as bad."""
        first, last = epoch_bounds(self.plan, self.raw.info["sfreq"])
        is_bad = np.zeros(len(positions), bool)
        for note in self.raw.annotations:
            if note["description"].lower().startswith("bad"):
                begin = (note["onset"] - self.raw.first_time) * self.raw.info["sfreq"]
                end = begin + note["duration"] * self.raw.info["sfreq"]
                is_bad |= (positions + last >= begin) & (positions + first <= end)
        if not is_bad.any():
            return []
        return [
            f"{is_bad.sum()} trials of {self.path.name} are in segments that are annotated as bad; "
            "they were used."
        ]

    def read(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """The epochs at these samples of the file, in chunks (n, C, T)."""
        sfreq = self.raw.info["sfreq"]
        first, last = epoch_bounds(self.plan, sfreq)
        beyond = (positions + first < 0) | (positions + last >= self.raw.n_times)
        if beyond.any():
            raise InputError(
                f"{self.path}: an image appears at sample {positions[beyond.argmax()]} of "
                f"{self.raw.n_times}, so that its epoch of {self.plan.tmin:g} .. "
                f"{self.plan.tmax:g} s is not all recorded; choose a shorter preprocess.window or "
                ".baseline"
            )

        # MNE would drop epochs in segments that are annotated as bad.
        raw = self.raw.copy().set_annotations(None, verbose="error")
        epoch_bytes = len(raw.ch_names) * (last - first + 1) * 8
        for samples in _in_pieces(positions, epoch_bytes):
            events = np.column_stack(
                [samples + raw.first_samp, np.zeros(len(samples), int), np.ones(len(samples), int)]
            )
            yield cut_epochs(raw, events, self.plan)[:, self.picks]


def _in_pieces(positions: np.ndarray, epoch_bytes: int) -> Iterator[np.ndarray]:
    n_at_once = max(1, READ_AT_ONCE // epoch_bytes)
    for start in range(0, len(positions), n_at_once):
        yield positions[start : start + n_at_once]


def _read_files(
    subject: SubjectFolder,
    trials: pd.DataFrame,
    preprocess: Preprocess,
    path: Path,
    stack: ExitStack,
) -> tuple[Layout, Scratch, list[str]]:
    """Write the epoch of each trial to a temporary file, in the order of `trials`.

    Returns also what all files share, and caveats. `stack` closes the temporary file.
    """
    files = trials["file"].unique().tolist()
    recording = _open(subject, files[0], preprocess)
    layout = _layout(recording)
    n_bytes = len(trials) * len(layout.ch_names) * len(layout.times) * 8
    scratch = stack.enter_context(Scratch(n_bytes, f"the epochs of {path.name}"))

    caveats: list[str] = []
    for file in files:
        if file != files[0]:
            first_path = subject.files[files[0]].path
            del recording  # two EEGLAB files may not fit into memory
            recording = _open(subject, file, preprocess, layout.ch_names, first_path)
            _require_times(recording, layout, first_path)

        positions = trials.loc[trials["file"] == file, "position"].to_numpy()
        caveats += recording.caveats + recording.caveats_of_trials(positions)
        for eeg in _checked(recording, positions):
            scratch.append(eeg)
    return layout, scratch, caveats


def _open(
    subject: SubjectFolder,
    file: int,
    preprocess: Preprocess,
    expected: tuple[str, ...] | None = None,
    first_path: str = "",
) -> _EpochsFile | _RawFile:
    """The file of this number, its channels chosen.

    `expected` are the channels of the subject's first file, at `first_path`; they set the order.
    """
    path = Path(subject.files[file].path)
    recording = open_epochs(path) if subject.kind == "epochs" else open_raw(path)
    data = pick_data(recording.info)
    names = [recording.ch_names[i] for i in data]
    chosen = choose_channels(names, preprocess.channels, str(path))
    if expected is not None and set(chosen) != set(expected):
        odd = min(set(chosen) ^ set(expected))
        raise InputError(
            f"{path}: has not the channels of {first_path}: only one of them has {odd}; name the "
            "channels that all have (preprocess.channels)"
        )

    picks = np.array([names.index(name) for name in expected or chosen])
    caveats = _caveats_of_channels(recording.info, chosen, path)
    if isinstance(recording, mne.BaseEpochs):
        _check_epochs(recording, preprocess, path)
        return _EpochsFile(path, recording, data[picks], preprocess, caveats)

    rate, window = _require_rate_and_window(preprocess, path)
    plan = plan_epochs(rate, window, preprocess.baseline, recording.info["sfreq"], str(path))
    return _RawFile(path, recording.pick(data, verbose="error"), picks, plan, caveats)


def _check_epochs(epochs: "mne.BaseEpochs", preprocess: Preprocess, path: Path) -> None:
    """Raises InputError where rate or baseline are not within what the epochs have."""
    sfreq = epochs.info["sfreq"]
    if preprocess.sfreq != "published" and preprocess.sfreq > sfreq:
        raise InputError(
            f"{path}: has epochs at {sfreq:g} Hz, preprocess.sfreq is {preprocess.sfreq:g}; choose "
            "a lower rate, or published, which leaves it as it is"
        )
    if preprocess.baseline == "none":
        return

    first, last = preprocess.baseline
    slack = 0.001 / sfreq
    if not epochs.times[0] - slack <= first <= last <= epochs.times[-1] + slack:
        raise InputError(
            f"{path}: preprocess.baseline {first} .. {last} s is no part of the epochs of "
            f"{epochs.times[0]:g} .. {epochs.times[-1]:g} s: set a first and a later last time "
            "within them, or none, if their baseline is taken off already"
        )


def _checked(recording: _EpochsFile | _RawFile, positions: np.ndarray) -> Iterator[np.ndarray]:
    """The epochs at these positions.

    Raises InputError for damage, and for values that are not finite.
    """
    n_read = 0
    with faults_as_input_errors(recording.path, "epochs", LOOK_AGAIN):
        for eeg in recording.read(positions):
            wrong = ~np.isfinite(eeg).all(axis=(1, 2))
            if wrong.any():
                position = positions[n_read + wrong.argmax()]
                kind = "epoch" if isinstance(recording, _EpochsFile) else "epoch at sample"
                raise InputError(
                    f"{recording.path}: the {kind} {position} (from 0) holds NaN or infinite "
                    "values; leave the trial out, or mend the file"
                )
            n_read += len(eeg)
            yield eeg


def _require_times(recording: _EpochsFile | _RawFile, layout: Layout, first_path: str) -> None:
    """Raises InputError where a file has other times than the subject's first one."""
    times = recording.times
    if len(times) != len(layout.times) or np.abs(times - layout.times).max() > layout.step / 100:
        raise InputError(
            f"{recording.path}: has {len(times)} samples from {times[0]:g} to {times[-1]:g} s, and "
            f"{first_path} has {len(layout.times)} from {layout.times[0]:g} to "
            f"{layout.times[-1]:g} s; set preprocess.sfreq to one rate for all, or "
            "preprocess.window to one that all have"
        )


def _layout(recording: _EpochsFile | _RawFile) -> Layout:
    info = mne.pick_info(recording.info, recording.picks, verbose="error")
    modality: Modality = "EEG" if "eeg" in info.get_channel_types() else "MEG"
    is_in_10_05 = {name.lower() for name in info.ch_names} <= _names_of_10_05()
    positions = None if is_in_10_05 else _positions(info, recording.path)
    return Layout(tuple(info.ch_names), recording.times, positions, modality)


def _names_of_10_05() -> set[str]:
    montage = mne.channels.make_standard_montage("standard_1005")
    return {name.lower() for name in montage.ch_names}


def _positions(info: "mne.Info", path: Path) -> np.ndarray | None:
    """See `Layout.sensor_positions`. None where a sensor has no position, or they are too few."""
    xyz = np.array([channel["loc"][:3] for channel in info["chs"]])
    if len(xyz) < POSITIONS_FROM or not np.isfinite(xyz).all() or np.ptp(xyz, axis=0).min() == 0:
        return None
    return sensor_positions(info, str(path))


def _caveats_of_channels(info: "mne.Info", chosen: Sequence[str], path: Path) -> list[str]:
    """What is to be said of channels that are used although they are bad, and of other EEG or MEG.

    `info` is that of the whole file.
    """
    caveats = []
    bad = [name for name in chosen if name in info["bads"]]
    if bad:
        caveats.append(f"{path.name}: channels that are marked as bad were used: {' '.join(bad)}.")

    types = info.get_channel_types()
    n_meg = types.count("mag") + types.count("grad")
    if "eeg" in types and n_meg:
        caveats.append("Of EEG and MEG that were recorded together, the EEG alone was used.")
    return caveats


# The sessions


def _sessions(
    trials: pd.DataFrame,
    shape: tuple[int, int],
    scratch: Scratch,
    preprocess: Preprocess,
    path: Path,
) -> list[dict[Split, SessionEpochs]]:
    """The epochs of each session, in the order of sessions, with what is done to its channels."""
    begins = np.arange(len(trials)) * math.prod(shape) * 8  # as `_read_files` wrote them
    sessions = []
    for session, of_session in trials.groupby("session"):
        epochs: dict[Split, SessionEpochs] = {}
        for split in SPLITS:
            rows = of_session[of_session["split"] == split]
            epochs[split] = SessionEpochs(
                rows["image_row"].to_numpy(), begins[rows.index], shape, scratch
            )

        step = _channel_step(epochs, preprocess, f"{path}: session {session}")
        sessions.append({split: replace(epochs[split], step=step) for split in SPLITS})
    return sessions


def _channel_step(
    epochs: Mapping[Split, SessionEpochs], preprocess: Preprocess, session_name: str
) -> ChannelStep:
    """What is done to the channels of a session."""
    if preprocess.mvnn == "none" and preprocess.normalise != "session":
        return ChannelStep()

    key = "mvnn" if preprocess.mvnn != "none" else "normalise"
    with_test = preprocess.mvnn != "none" and preprocess.mvnn_from == "training-and-test"
    for split in SPLITS if with_test else SPLITS[:1]:
        if not len(epochs[split].image_rows):
            raise InputError(
                f"{session_name}: has no {split} trials, from which preprocess.{key} would take "
                f"its measure; set it to none, or {CHOOSE_SESSIONS}"
            )

    if preprocess.mvnn == "none":
        return z_score_step(*_mean_and_variance(epochs["train"]))
    noise: dict[Split, np.ndarray] = {}
    noise["train"] = _noise_covariance(epochs["train"], preprocess.mvnn, session_name)
    if with_test:
        noise["test"] = _noise_covariance(epochs["test"], preprocess.mvnn, session_name)
    return whitening_step(noise, preprocess, session_name)


def _noise_covariance(epochs: SessionEpochs, of: Observations, session_name: str) -> np.ndarray:
    """The mean over images of the noise covariance (C, C) of each."""
    total = np.zeros((epochs.shape[0], epochs.shape[0]))
    n_images = 0
    for eeg in gather([epochs], np.bincount(epochs.image_rows)):
        if of == "epochs" or eeg.shape[1] > 1:
            total += mean_covariance(observations(eeg, of)) * len(eeg)
            n_images += len(eeg)

    if not n_images:
        raise InputError(
            f"{session_name}: shows no image twice, so that preprocess.mvnn: time has nothing to "
            "compare; set it to epochs"
        )
    return total / n_images


def _mean_and_variance(epochs: SessionEpochs) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, over trials and times, (C, 1) both."""
    n_trials = 0
    mean = np.zeros((epochs.shape[0], 1))
    squares = np.zeros((epochs.shape[0], 1))  # sum over trials, mean over times
    for chunk in gather([epochs], np.bincount(epochs.image_rows)):
        eeg = chunk.reshape(-1, *epochs.shape)
        # Chunk by chunk after Chan et al.: exact also for an offset far above the deviations.
        of_chunk = eeg.mean(axis=(0, 2))[:, None]
        difference = of_chunk - mean
        n_all = n_trials + len(eeg)
        squares += np.square(eeg - of_chunk).mean(axis=2).sum(axis=0)[:, None]
        squares += np.square(difference) * n_trials * len(eeg) / n_all
        mean = mean + difference * len(eeg) / n_all
        n_trials = n_all
    return mean, squares / n_trials
