"""The prepared EEG of one subject, read from the HDF5 file that `eeg.preprocess` writes and describes."""

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
    times: np.ndarray  # (T,) float64, seconds from stimulus onset
    sfreq: float  # Hz
    eeg: np.ndarray  # (N, C, T) or (N, R, C, T), float32 or float64, no unit
    image_ids: np.ndarray  # (N,) str, unique over both splits
    concept_in_split: np.ndarray  # (N,) str, its number restarts in each split: never compare it across them
    things_concept: np.ndarray  # (N,) str, the same names in both splits


def read_split(path: Path, split: Literal["train", "test"], average: bool) -> Recording:
    """One split of a file written by `preprocess`; with `average`, `eeg` is the mean over repetitions, (N, C, T).

    The mean is taken in pieces, so that the repetitions are never all in memory. InputError for a foreign or cut file.
    """
    try:
        with h5py.File(path, "r") as file:
            group = file[split]
            eeg = group["eeg"]
            recording = Recording(
                subject=file.attrs["subject"],
                ch_names=tuple(file["ch_names"].asstr()[:]),
                times=file["times"][:],
                sfreq=float(file.attrs["sfreq"]),
                eeg=_average(eeg) if average and eeg.ndim == 4 else eeg[:],
                image_ids=group["image_ids"].asstr()[:],
                concept_in_split=group["concept"].asstr()[:],
                things_concept=group["things_concept"].asstr()[:],
            )
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole EEG file of the preprocess stage ({error}); run it again") from error
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


def _average(eeg: h5py.Dataset) -> np.ndarray:
    """(N, R, C, T) in a file to (N, C, T), summed in float64, of the file's own type."""
    averaged = np.empty((eeg.shape[0], *eeg.shape[2:]), eeg.dtype)
    for start in range(0, len(eeg), AVERAGED_AT_ONCE):
        rows = slice(start, start + AVERAGED_AT_ONCE)
        averaged[rows] = eeg[rows].mean(axis=1, dtype=np.float64)
    return averaged
