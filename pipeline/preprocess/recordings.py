"""The prepared EEG of one subject, read from the file that `preparation` writes and describes."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.errors import PREPARE_AGAIN, SUBJECTS, InputError
from pipeline.files import unreadable
from pipeline.preprocess.normalisation import normalise

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
AVERAGED_AT_ONCE = 16  # conditions whose repetitions are in memory together
CHECKED_AT_ONCE = 16 << 20  # values
# What two recordings must share, and what makes them share it
MADE_TO_AGREE = {
    "channels": "set preprocess.channels to posterior, or to a list of channels that both have",
    "times": "set one preprocess.sfreq and one preprocess.window for both; data that were "
    "published prepared keep their own, so choose the raw ones (dataset: things-eeg2-raw)",
    "units": "set preprocess.normalise to session, which makes z-scores of both",
    "normalise": PREPARE_AGAIN,
    "training EEG": PREPARE_AGAIN,
}
# DVC would put back a file that is only taken away: so `subjects` comes first.
LEAVE_OUT = f"or leave that subject out of {SUBJECTS}; take a file of your own away"


@dataclass(frozen=True)
class Recording:
    """One split of one subject, as `read_split` returns it.

    * `subject`: as in the file's name, such as `sub-01`.
    * `ch_names`: C channel names.
    * `sensor_positions`: (C, 2), on the head seen from above, nose up, its rim at 1. None where the
      10-05 system knows the names.
    * `times`: (T,) float64, seconds from stimulus onset.
    * `sfreq`: the sampling rate in Hz.
    * `caveats`: sentences that every result of this EEG must say.
    * `eeg`: (N, C, T) or (N, R, C, T), in the unit that the file names.
    * `to_normalise`: whether `normalise` is still to be called for each response, after its
      repetitions are averaged (`preprocess.normalise: average`).
    * `image_ids`: (N,) str, unique over both splits.
    * `concept_in_split`: (N,) str, numbered anew in each split: never compare it across splits.
    * `things_concept`: (N,) str, the same names in both splits.
    """

    subject: str
    ch_names: tuple[str, ...]
    sensor_positions: np.ndarray | None
    times: np.ndarray
    sfreq: float
    caveats: tuple[str, ...]
    eeg: np.ndarray
    image_ids: np.ndarray
    concept_in_split: np.ndarray
    things_concept: np.ndarray
    to_normalise: bool = False


def read_shape(path: Path, split: Split, average: bool) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of the EEG that `read_split` would return, and the type in which it is stored.

    InputError as in `read_split`.
    """
    with _opened(path) as file:
        eeg = file[split]["eeg"]
        shape = tuple(eeg.shape)
        dtype = eeg.dtype

    if average and len(shape) == 4:
        shape = (shape[0], *shape[2:])
    return shape, dtype


def read_split(path: Path, split: Split, average: bool, out: np.ndarray | None = None) -> Recording:
    """One split, `train` or `test`, of a file that the preprocess stage wrote.

    With `average`, `eeg` is the mean over repetitions, (N, C, T), taken in pieces, so that the
    repetitions are never all in memory, and normalised where the file says `normalise: average`.
    Without, it is as stored: (N, R, C, T), or (N, C, T) where the file holds averages. `eeg` is
    float32, or float64 where it is stored so. With `out`, it is read into that array, of the shape
    that `read_shape` gives and any floating type.

    InputError for another file, one that is cut, and a value that is not finite.
    """
    with _opened(path) as file:
        to_normalise = _to_normalise(file)
        eeg = _read_eeg(file[split]["eeg"], average, average and to_normalise, out)
        recording = _describe(file, split, eeg, to_normalise and not average)

    _check_shape(path, split, recording)
    _check_finite(path, split, recording)
    return recording


def find_recordings(folder: Path) -> dict[str, Path]:
    """The file of each prepared subject in a folder; hidden files, as macOS adds them, are none."""
    return {path.stem: path for path in sorted(folder.glob("[!.]*.h5"))}


def check_recordings(paths: Sequence[Path]) -> None:
    """InputError unless these subjects can be trained and tested together.

    All must have the channels, times and rate of the first one, its test images, and as many test
    repetitions. Each file must be named after its subject, and every value be finite; the error
    names file, image and channel. Both splits of every file are read, piece by piece, which takes
    about half a second a GB beside reading from the disk.
    """
    first: dict[Split, tuple[Recording, tuple[int, ...]]] = {}
    for path in paths:
        for split in SPLITS:
            with _opened(path) as file:
                # Not read yet: the checks read it piece by piece.
                recording = _describe(file, split, file[split]["eeg"], _to_normalise(file))
                _check_shape(path, split, recording)
                _check_finite(path, split, recording)
                shape = recording.eeg.shape

            # The first file sets what the others must have.
            first_recording, first_shape = first.setdefault(split, (recording, shape))
            _check_alike(path, split, recording, shape, first_recording, first_shape, paths[0])


def check_both(first: Path, second: Path) -> None:
    """InputError unless people of one recording can be tested by models of the other one.

    Each file stands for all subjects of its recording. Channels, times, rate, unit and test images
    must be the same. Repetitions may differ, but for whether those of training are averaged.
    """
    with _opened(first) as file, _opened(second) as other:
        for key, remedy in MADE_TO_AGREE.items():
            of_first, of_second = (_describe_key(opened, key) for opened in (file, other))
            if of_first != of_second:
                raise InputError(
                    f"{second}: has {key} {of_second}, and {first} has {of_first}, so that no "
                    f"model can read both; {remedy}"
                )

        ids, other_ids = (set(opened["test/image_ids"].asstr()[:]) for opened in (file, other))
        if ids != other_ids:
            raise InputError(
                f"{second}: has not the test images of {first}: one of them lacks "
                f"{min(ids ^ other_ids)}; let both show the same (`subjects`, across.subjects, "
                "preprocess.sessions), or name another across.dataset"
            )


def _describe_key(file: h5py.File, key: str) -> str:
    """A property that two recordings must share, in words."""
    if key == "channels":
        return " ".join(file["ch_names"].asstr()[:])
    if key == "times":
        return _describe_times(_describe(file, "test", file["test"]["eeg"], False))
    if key == "training EEG":
        return "repetitions apart" if file["train/eeg"].ndim == 4 else "repetitions averaged"
    return str(file.attrs[key])


def _to_normalise(file: h5py.File) -> bool:
    """Whether the EEG in the file is to be normalised, after repetitions are averaged."""
    return bool(file.attrs.get("normalise") == "average")


def _describe(
    file: h5py.File, split: Split, eeg: np.ndarray | h5py.Dataset, to_normalise: bool
) -> Recording:
    group = file[split]
    return Recording(
        subject=file.attrs["subject"],
        ch_names=tuple(file["ch_names"].asstr()[:]),
        sensor_positions=file["sensor_positions"][:] if "sensor_positions" in file else None,
        times=file["times"][:],
        sfreq=float(file.attrs["sfreq"]),
        caveats=tuple(file.attrs["caveats"]),
        eeg=eeg,
        image_ids=group["image_ids"].asstr()[:],
        concept_in_split=group["concept"].asstr()[:],
        things_concept=group["things_concept"].asstr()[:],
        to_normalise=to_normalise,
    )


def _check_shape(path: Path, split: Split, recording: Recording) -> None:
    expected = (len(recording.image_ids), len(recording.ch_names), len(recording.times))
    shape = recording.eeg.shape
    if (
        len(shape) not in (3, 4)
        or (shape[0], *shape[-2:]) != expected
        or recording.eeg.dtype.kind != "f"
    ):
        raise InputError(
            f"{path}: the {split} EEG is {recording.eeg.dtype} {shape}, expected floating point "
            f"with {expected} conditions, channels and samples; {PREPARE_AGAIN}"
        )

    if len(set(recording.image_ids)) != len(recording.image_ids):
        raise InputError(f"{path}: image ids of the {split} split are not unique; {PREPARE_AGAIN}")


def _check_finite(path: Path, split: Split, recording: Recording) -> None:
    """InputError for a value that is not finite. In pieces, so that it needs little memory."""
    eeg = recording.eeg
    n_rows = max(1, CHECKED_AT_ONCE // max(1, math.prod(eeg.shape[1:])))
    for start in range(0, len(eeg), n_rows):
        finite = np.isfinite(eeg[start : start + n_rows])
        if not finite.all():
            # The axes are (n, C, T) or (n, R, C, T).
            row, *_, channel, _ = np.argwhere(~finite)[0]
            condition = start + int(row)
            raise InputError(
                f"{path}: the {split} EEG of condition {condition} (from 0), image "
                f"{recording.image_ids[condition]}, is not finite in channel "
                f"{recording.ch_names[channel]}; {PREPARE_AGAIN}, {LEAVE_OUT}"
            )


def _check_alike(
    path: Path,
    split: Split,
    recording: Recording,
    shape: tuple[int, ...],
    first: Recording,
    first_shape: tuple[int, ...],
    first_path: Path,
) -> None:
    """InputError where a subject differs from the first one in what all subjects must share."""
    remedy = f"{PREPARE_AGAIN}, {LEAVE_OUT}"

    # The file itself.
    if split == "test" and len(shape) != 4:
        raise InputError(
            f"{path}: the test EEG {shape} lacks the axis of repetitions; {PREPARE_AGAIN}"
        )
    if recording.subject != path.stem:
        raise InputError(
            f"{path}: is the EEG of {recording.subject}; name it {recording.subject}.h5, or take "
            "it away"
        )

    # Channels and times.
    # Longest, because a channel more or less is a difference too.
    for name, expected in zip_longest(recording.ch_names, first.ch_names, fillvalue="none"):
        if name != expected:
            raise InputError(
                f"{path}: has not the channels of {first_path} in the same order: {name} stands "
                f"where {expected} is expected; {remedy}"
            )
    if recording.sfreq != first.sfreq or not np.array_equal(recording.times, first.times):
        raise InputError(
            f"{path}: has {_describe_times(recording)}, and {first_path} has "
            f"{_describe_times(first)}; {remedy}"
        )

    # Normalisation, repetitions and test images.
    if recording.to_normalise != first.to_normalise:
        raise InputError(
            f"{path}: preprocess.normalise is average for one of this file and {first_path} alone; "
            f"{remedy}"
        )
    if len(shape) != len(first_shape):
        raise InputError(
            f"{path}: the {split} EEG is {shape}, and that of {first_path} is {first_shape}: the "
            f"repetitions of one of them are averaged; {remedy}"
        )
    if split == "test":
        # In any order: images are joined by their ids.
        differing = set(recording.image_ids) ^ set(first.image_ids)
        if differing:
            raise InputError(
                f"{path}: has not the test images of {first_path}: one of them lacks "
                f"{min(differing)}; {remedy}"
            )
        if shape[1] != first_shape[1]:
            raise InputError(
                f"{path}: has {shape[1]} test repetitions, and {first_path} has "
                f"{first_shape[1]}; {remedy}"
            )


def _describe_times(recording: Recording) -> str:
    times = recording.times
    return f"{len(times)} samples from {times[0]:g} to {times[-1]:g} s at {recording.sfreq:g} Hz"


def read_caveats(path: Path) -> tuple[str, ...]:
    """Sentences that every result of this EEG must say; InputError as in `read_split`."""
    with _opened(path) as file:
        return tuple(file.attrs["caveats"])


def read_modality(path: Path) -> str:
    """What was recorded, `EEG` or `MEG`; InputError as in `read_split`."""
    with _opened(path) as file:
        return str(file.attrs.get("modality", "EEG"))


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(_describe_fault(path, error)) from error


def _describe_fault(path: Path, error: Exception) -> str:
    """The sentence on a file that cannot be read, or that leads to one that is missing."""
    content = _missing_content(path)
    if content is not None:
        return (
            f"{path}: leads to the EEG in {content}, which is missing, because `dvc push` never "
            f"uploads EEG that may not be passed on; where the recordings are, {PREPARE_AGAIN}"
        )
    return f"{path}: is not a whole EEG file of the preprocess stage ({error}); {PREPARE_AGAIN}"


def _missing_content(path: Path) -> Path | None:
    """The missing file to which this one links, see `preparation`; None where there is no such."""
    with suppress(OSError), h5py.File(path, "r") as file:
        for name in file:
            link = file.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                content = Path(os.path.normpath(path.parent / link.filename))
                return None if content.exists() else content
    return None


def _read_eeg(
    eeg: h5py.Dataset, average: bool, normalised: bool, out: np.ndarray | None
) -> np.ndarray:
    """(N, ..., C, T), or of (N, R, C, T) the mean over R; all is computed in float64."""
    average = average and eeg.ndim == 4
    if out is None:
        # float16 becomes float32, so that a mean keeps its digits; float64 stays.
        shape = (eeg.shape[0], *eeg.shape[2:]) if average else eeg.shape
        out = np.empty(shape, np.result_type(eeg.dtype, np.float32))

    if not average and not normalised:
        eeg.read_direct(out)
        return out

    for start in range(0, len(eeg), AVERAGED_AT_ONCE):
        rows = slice(start, start + AVERAGED_AT_ONCE)
        part = eeg[rows]
        if average:
            part = part.mean(axis=1, dtype=np.float64)
        out[rows] = normalise(part.astype(np.float64)) if normalised else part
    return out
