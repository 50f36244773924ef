"""One file of somebody's own recordings, open: its channels chosen, its epochs read in chunks.

- Epochs are taken as they are; `preprocess.baseline` takes a baseline off, `preprocess.sfreq`
  resamples them, both by MNE.
- Of raw recordings epochs are cut as those of the other raw dataset are (see `epochs`). Segments
  that are annotated as bad are not left out: the table of trials says what is used.

Axes: n epochs, C channels, T samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np

from pipeline.datasets.channels import choose_channels
from pipeline.datasets.epochs import EpochPlan, cut_epochs, epoch_bounds, plan_epochs
from pipeline.datasets.own.recordings import open_epochs, open_raw, pick_data
from pipeline.datasets.own.subject_folder import SubjectFolder
from pipeline.errors import InputError
from pipeline.sections import Preprocess

READ_AT_ONCE = 64 << 20  # bytes of epochs, before they are resampled
LOOK_AGAIN = "run `dvc repro` again, which looks at the files first"


@dataclass(frozen=True)
class EpochsFile:
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
        return self._all_times[self._window]

    @cached_property
    def _all_times(self) -> np.ndarray:
        """Before the window is cut."""
        times = np.asarray(self.epochs.times, np.float64)
        if self._rate is not None:
            n_times = self._prepare(np.array([0])).shape[2]
            times = times[0] + np.arange(n_times) / self._rate
        return times

    @property
    def _window(self) -> slice:
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
            yield self._prepare(rows)[:, :, self._window]

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
class RawFile:
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


def open_file(
    subject: SubjectFolder,
    file: int,
    preprocess: Preprocess,
    expected: tuple[str, ...] | None = None,
    first_path: str = "",
) -> EpochsFile | RawFile:
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
        return EpochsFile(path, recording, data[picks], preprocess, caveats)

    rate, window = require_rate_and_window(preprocess, path)
    plan = plan_epochs(rate, window, preprocess.baseline, recording.info["sfreq"], str(path))
    return RawFile(path, recording.pick(data, verbose="error"), picks, plan, caveats)


def require_rate_and_window(preprocess: Preprocess, path: Path) -> tuple[float, Sequence[float]]:
    """Rate in Hz and window in s. Raises InputError where they are left as published."""
    if preprocess.sfreq == "published" or preprocess.window == "published":
        raise InputError(
            f"{path}: is of raw recordings, which have no epochs yet, so that preprocess.sfreq and "
            ".window cannot be published; choose both, such as -S preprocess.sfreq=250 "
            "-S 'preprocess.window=[-0.2,0.8]'"
        )
    return preprocess.sfreq, preprocess.window


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


def _in_pieces(positions: np.ndarray, epoch_bytes: int) -> Iterator[np.ndarray]:
    n_at_once = max(1, READ_AT_ONCE // epoch_bytes)
    for start in range(0, len(positions), n_at_once):
        yield positions[start : start + n_at_once]
