"""EEG prepared for training: one HDF5 file a subject, written from the published archives in bounded memory.

    /                  attributes: subject, sfreq, units, the parameters of `preprocess`, the source's hash, versions
    /ch_names (C,)     channel names, in the order of the channel axis
    /times (T,)        seconds from stimulus onset
    /train/eeg         (N, C, T) averaged over repetitions, or (N, R, C, T)
    /test/eeg          (N, R, C, T)
    /<split>/image_ids, concept, things_concept (N,)   the image seen in each condition

Every axis of `eeg` is labelled; `image_ids`, `ch_names` and `times` are its HDF5 dimension scales. The same input gives
the same bytes. `normalise: trial` is the paper's (x - mean(x)) / ||x|| over time, as in its public code
(https://github.com/NonaRjb/AlignVis): ||x|| is the norm before the mean is taken off. Ours differs where x is zero
throughout, which there gives NaN and here stays zero.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.data.things_eeg2 import (
    SPLITS,
    Layout,
    Split,
    open_eeg_zip,
    read_eeg,
    read_layout,
    read_metadata,
    subject_of,
)
from pipeline.errors import InputError
from pipeline.files import replacing, sha256

UNITS = {
    "none": "as released: whitened (multivariate noise normalisation), no physical unit",
    "trial": "share of the norm of the released trace, no physical unit",
}


@dataclass(frozen=True)
class _Settings:
    average_repetitions: bool
    channels: list[str] | Literal["all"]
    window: list[float]
    normalise: Literal["none", "trial"]
    dtype: Literal["float32", "float64"]
    metadata_sha256: str


def preprocess(
    eeg_dir: Path,
    metadata: Path,
    out_dir: Path,
    *,
    average_repetitions: bool,
    channels: Sequence[str] | Literal["all"],
    window: Sequence[float],
    normalise: Literal["none", "trial"],
    dtype: Literal["float32", "float64"],
    workers: int,
) -> None:
    """Write `out_dir/sub-XX.h5` for every `eeg_dir/sub-XX.zip`, `workers` subjects side by side in their own processes.

    The training EEG is averaged over repetitions if `average_repetitions`, the test EEG never. `channels` are taken by
    name, in the order asked for; `window` is the first and the last time in seconds, both included.
    A worker holds less than 0.2 GB, whatever the number of conditions; 1.1 GB for a full-size subject whose archive was
    not written as the published ones are (Fortran order, pickle protocol 5).
    InputError for an archive that is not as published, a channel that it lacks, a window beyond its times.
    """
    archives = sorted(eeg_dir.glob("sub-*.zip"))
    if not archives:
        raise InputError(f"{eeg_dir}: holds no sub-XX.zip; run the download")
    jobs = {archive: out_dir / f"{subject_of(archive)}.h5" for archive in archives}
    images = read_metadata(metadata)
    names = channels if channels == "all" else list(channels)
    settings = _Settings(average_repetitions, names, list(window), normalise, dtype, sha256(metadata))
    # Not forked: the caller may have threads, and a forked copy of them can hang.
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        try:
            tasks = [pool.submit(_preprocess_subject, archive, out, images, settings) for archive, out in jobs.items()]
            for task in tqdm(as_completed(tasks), "preprocess", len(tasks), unit="subject", disable=None):
                task.result()
        except BrokenProcessPool as error:
            raise InputError("a worker was killed, most likely for want of memory: lower preprocess.workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _preprocess_subject(path: Path, out: Path, images: dict[Split, pd.DataFrame], settings: _Settings) -> None:
    subject = subject_of(path)
    with open_eeg_zip(path) as archive, replacing(out) as temporary, h5py.File(temporary, "w") as file:
        layout = read_layout(archive, subject)
        picks, samples = _picks(layout, settings.channels, path), _samples(layout, settings.window, path)
        file.attrs.update({"subject": subject, "sfreq": round(1 / layout.step, 6), **asdict(settings)})
        file.attrs.update({"units": UNITS[settings.normalise], "source": path.name, "source_sha256": sha256(path)})
        file.attrs.update({f"{package}_version": version(package) for package in ("h5py", "numpy")})
        _write_axes(file, np.array(layout.ch_names)[picks], layout.times[samples])
        for split in SPLITS:
            group = file.create_group(split)
            for name, values in images[split].items():
                _write_text(group, name, values)
            average = split == "train" and settings.average_repetitions
            prepare = partial(_prepare, picks, samples, settings.normalise == "trial", average)
            write = partial(_write_eeg, group, prepare, average, settings.dtype, path)
            read_eeg(archive, subject, split, len(images[split]), layout, write)


def _picks(layout: Layout, channels: list[str] | Literal["all"], path: Path) -> slice | list[int]:
    """Where the wanted channels are on the channel axis."""
    if channels == "all":
        return slice(None)
    absent = [name for name in channels if name not in layout.ch_names]
    if absent:
        raise InputError(
            f"{path}: has no channel {absent[0]!a} (preprocess.channels), it has {' '.join(layout.ch_names)}"
        )
    if not channels or len(set(channels)) != len(channels):
        raise InputError(f"preprocess.channels is {' '.join(channels) or 'empty'}; name each wanted channel once")
    return [layout.ch_names.index(name) for name in channels]


def _samples(layout: Layout, window: list[float], path: Path) -> slice:
    """The samples within the window; a thousandth of a sample is allowed for rounding."""
    (first, last), times = window, layout.times
    slack = layout.step / 1000
    if not times[0] - slack <= first <= last <= times[-1] + slack:
        raise InputError(
            f"{path}: preprocess.window {first} .. {last} s is no part of the recorded {times[0]:g} .. {times[-1]:g} s"
        )
    start, stop = np.searchsorted(times, [first - slack, last + slack])
    if start == stop:
        raise InputError(f"{path}: no sample lies in preprocess.window {first} .. {last} s")
    return slice(int(start), int(stop))


def _prepare(picks: slice | list[int], samples: slice, normalise: bool, average: bool, block: np.ndarray) -> np.ndarray:
    """(n, R, C, T) as read to (n, R, C', T'), or (n, C', T') if averaged, float64."""
    block = block[:, :, picks, samples]
    if normalise:
        norm = np.linalg.norm(block, axis=-1, keepdims=True)
        block = (block - block.mean(axis=-1, keepdims=True)) / np.where(norm == 0, 1, norm)
    return block.mean(axis=1) if average else block


def _write_eeg(
    group: h5py.Group,
    prepare: Callable[[np.ndarray], np.ndarray],
    average: bool,
    dtype: str,
    path: Path,
    shape: tuple[int, int, int, int],
    blocks: Iterator[np.ndarray],
) -> None:
    axes = {
        "condition": group["image_ids"],
        "repetition": None,
        "channel": group.file["ch_names"],
        "time": group.file["times"],
    }
    if average:
        del axes["repetition"]
    size = [shape[1] if scale is None else len(scale) for scale in axes.values()]
    eeg = group.create_dataset("eeg", size, dtype, fill_time="never")
    eeg.attrs["units"] = group.file.attrs["units"]
    for axis, (label, scale) in zip(eeg.dims, axes.items(), strict=True):
        axis.label = label
        if scale is not None:
            axis.attach_scale(scale)
    start = 0
    try:
        with np.errstate(over="raise"):
            for block in blocks:
                eeg[start : start + len(block)] = prepare(block).astype(dtype)
                start += len(block)
    except FloatingPointError as error:
        raise InputError(f"{path}: EEG values near condition {start} are too large for {dtype}") from error


def _write_axes(file: h5py.File, ch_names: Sequence[str], times: np.ndarray) -> None:
    _write_text(file, "ch_names", ch_names)
    file["times"] = times
    file["times"].attrs["units"] = "s"
    file["ch_names"].make_scale("channel")
    file["times"].make_scale("time")


def _write_text(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Text of fixed length, UTF-8, which MATLAB and old HDF5 tools read too."""
    encoded = np.array([value.encode() for value in values])
    group[name] = encoded.astype(h5py.string_dtype("utf-8", encoded.itemsize))
    if name == "image_ids":
        group[name].make_scale("condition")
