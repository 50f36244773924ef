"""The prepared EEG of one subject, read from the HDF5 file that `eeg.preparation` writes and describes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.errors import InputError

AVERAGED_AT_ONCE = 16  # conditions whose repetitions are in memory together


@dataclass(frozen=True)
class Recording:
    """One split of one subject, as `read_split` returns it."""

    subject: str
    ch_names: tuple[str, ...]  # C
    places: np.ndarray | None  # (C, 2) on the head seen from above, rim at 1; None: the 10-05 system knows the names
    times: np.ndarray  # (T,) float64, seconds from stimulus onset
    sfreq: float  # Hz
    caveats: tuple[str, ...]  # what every result of this EEG must say
    eeg: np.ndarray  # (N, C, T) or (N, R, C, T), in the unit that the file names
    image_ids: np.ndarray  # (N,) str, unique over both splits
    concept_in_split: np.ndarray  # (N,) str, its number restarts in each split: never compare it across them
    things_concept: np.ndarray  # (N,) str, the same names in both splits


def read_shape(path: Path, split: Literal["train", "test"], average: bool) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of the EEG that `read_split` would return, and the type in which it is stored; InputError as there."""
    with _opened(path) as file:
        eeg = file[split]["eeg"]
        shape, dtype = tuple(eeg.shape), eeg.dtype
    return ((shape[0], *shape[2:]) if average and len(shape) == 4 else shape), dtype


def read_split(path: Path, split: Literal["train", "test"], average: bool, out: np.ndarray | None = None) -> Recording:
    """One split of a file written by `preparation`; with `average`, `eeg` is the mean over repetitions, (N, C, T).

    It comes as float32, or float64 where it is stored so; or it is read into `out`, of the shape that `read_shape`
    tells and any floating type. The mean is taken in pieces, so that the repetitions are never all in memory.
    InputError for a foreign or cut file.
    """
    with _opened(path) as file:
        group = file[split]
        eeg = group["eeg"]
        recording = Recording(
            subject=file.attrs["subject"],
            ch_names=tuple(file["ch_names"].asstr()[:]),
            places=file["places"][:] if "places" in file else None,
            times=file["times"][:],
            sfreq=float(file.attrs["sfreq"]),
            caveats=tuple(file.attrs["caveats"]),
            eeg=_read_eeg(eeg, average and eeg.ndim == 4, out),
            image_ids=group["image_ids"].asstr()[:],
            concept_in_split=group["concept"].asstr()[:],
            things_concept=group["things_concept"].asstr()[:],
        )
    expected = (len(recording.image_ids), len(recording.ch_names), len(recording.times))
    shape = recording.eeg.shape
    if len(shape) not in (3, 4) or (shape[0], *shape[-2:]) != expected or recording.eeg.dtype.kind != "f":
        raise InputError(
            f"{path}: the {split} EEG is {recording.eeg.dtype} {shape}, expected floating point with {expected} "
            "conditions, channels and samples; run the preprocess stage again"
        )
    if len(set(recording.image_ids)) != len(recording.image_ids):
        raise InputError(f"{path}: image ids of the {split} split are not unique; run the preprocess stage again")
    return recording


def read_caveats(path: Path) -> tuple[str, ...]:
    """What every result of this EEG must say; InputError as `read_split`."""
    with _opened(path) as file:
        return tuple(file.attrs["caveats"])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole EEG file of the preprocess stage ({error}); run it again") from error


def _read_eeg(eeg: h5py.Dataset, average: bool, out: np.ndarray | None) -> np.ndarray:
    """(N, ..., C, T), or of (N, R, C, T) the mean over R, summed in float64."""
    if out is None:
        shape = (eeg.shape[0], *eeg.shape[2:]) if average else eeg.shape
        out = np.empty(shape, np.result_type(eeg.dtype, np.float32))
    if not average:
        eeg.read_direct(out)
        return out
    for start in range(0, len(eeg), AVERAGED_AT_ONCE):
        rows = slice(start, start + AVERAGED_AT_ONCE)
        out[rows] = eeg[rows].mean(axis=1, dtype=np.float64)
    return out
