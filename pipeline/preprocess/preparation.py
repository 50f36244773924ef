"""EEG prepared for training: one HDF5 file a subject, written from the raw files in bounded memory.

    /                  attributes: subject, sfreq, units, caveats, the parameters of `preprocess`, the source's hash,
                       versions
    /ch_names (C,)     channel names, in the order of the channel axis
    /times (T,)        seconds from stimulus onset
    /places (C, 2)     sensors on the head seen from above, nose up, rim at 1; where the names do not tell them
    /mean, /sd (C,)    what a channel was standardised by, where it was
    /train/eeg         (N, C, T) averaged over repetitions, or (N, R, C, T)
    /test/eeg          (N, R, C, T)
    /<split>/image_ids, concept, things_concept (N,)   the image seen in each condition

Every axis of `eeg` is labelled; `image_ids`, `ch_names` and `times` are its HDF5 dimension scales. The same input gives
the same bytes. `normalise: trial` is the paper's (x - mean(x)) / ||x|| over time, as in its public code
(https://github.com/NonaRjb/AlignVis): ||x|| is the norm before the mean is taken off. Ours differs where x is zero
throughout, which there gives NaN and here stays zero. `dtype: float16` standardises each channel first, by the mean and
standard deviation of the subject's training EEG as it is written, so that any unit fits into half precision.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.compute.machine import free_memory
from pipeline.datasets.entry import POSTERIOR, Dataset, Layout
from pipeline.datasets.image_table import SPLITS, Split, read_image_table
from pipeline.errors import FETCH_AGAIN, InputError, suggestion
from pipeline.files import check_folders, new_hdf5, save_array, sha256
from pipeline.sections import Preprocess

UNITS_OF_TRIAL = "share of the norm of the released trace, no physical unit"
LIBRARIES = 120 << 20  # bytes of memory of a worker beside the EEG
UNITS_OF_FLOAT16 = "standard deviations of the channel over the training EEG"


def prepare_subjects(
    dataset: Dataset, eeg_dir: Path, image_table: Path, out_dir: Path, parameters: Preprocess
) -> list[Path]:
    """Write `out_dir/<subject>.h5` for every subject in `eeg_dir`, `workers` of them side by side in own processes.

    The training EEG is averaged over repetitions if `average_repetitions`, the test EEG never. `channels` are taken by
    name, in the order asked for; `window` is the first and the last time in seconds, both included.
    A worker holds what the dataset's `open_eeg` holds, a few blocks and 0.12 GB of libraries: at most
    0.34 GB as measured on a full-size subject as published, of which the test EEG is 0.22; about 1.3 GB where the
    archive was not written as the published ones are (Fortran order, pickle protocol 5). There are fewer workers where
    so many do not fit into memory. Images that a subject did not see are left out, and are told.
    What the names and sizes of files tell is checked of all subjects first. Returns the files.
    InputError for a file that is not as published, a channel that it lacks, a window beyond its times.
    """
    subjects = dataset.find_subjects(eeg_dir)
    if not subjects:
        raise InputError(
            f"{eeg_dir}: holds no subject's EEG; run the download (`dvc repro download`)"
        )
    images = read_image_table(image_table)
    needed = max(dataset.memory_needed(path, parameters) for path in subjects.values()) + LIBRARIES
    n_workers = _fitting_workers(parameters.workers, needed, len(subjects))
    written = {subject: out_dir / f"{subject}.h5" for subject in subjects}

    # Not forked: the caller may have threads, and a forked copy of them can hang.
    with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
        try:
            tasks = [
                pool.submit(
                    _prepare_subject,
                    dataset,
                    subject,
                    path,
                    written[subject],
                    images,
                    parameters,
                    len(subjects),
                )
                for subject, path in subjects.items()
            ]
            for task in tqdm(
                as_completed(tasks), "preprocess", len(tasks), unit="subject", disable=None
            ):
                for sentence in task.result():
                    tqdm.write(sentence)
        except (BrokenProcessPool, MemoryError) as error:
            raise InputError(_too_little_memory(n_workers, needed)) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return list(written.values())


def _fitting_workers(wanted: int, needed: int, n_subjects: int) -> int:
    """As many of the wanted workers as memory holds, each with so many bytes; where these are fewer, it is told."""
    n_workers = min(wanted, n_subjects)
    n_fitting = min(n_workers, max(1, free_memory() // needed))
    if n_fitting < n_workers:
        print(
            f"preprocess: {n_workers} workers (preprocess.workers) need about {n_workers * needed / 1e9:.1f} GB of "
            f"memory, and {free_memory() / 1e9:.1f} GB are free for this process: going on with {n_fitting}",
            flush=True,
        )
    return n_fitting


def _too_little_memory(n_workers: int, needed: int) -> str:
    remedy = "lower preprocess.workers" if n_workers > 1 else "run this where there is more memory"
    return (
        f"a worker was killed, most likely for want of memory: {n_workers} of them need about "
        f"{n_workers * needed / 1e9:.1f} GB, and {free_memory() / 1e9:.1f} GB are free for this process; {remedy}"
    )


def _prepare_subject(
    dataset: Dataset,
    subject: str,
    path: Path,
    out: Path,
    images: Mapping[Split, pd.DataFrame],
    parameters: Preprocess,
    n_subjects: int,
) -> list[str]:
    """Write the file; what the user must be told about it."""
    sentences = []
    by_trial = parameters.normalise == "trial"
    with ExitStack() as stack:
        raw = stack.enter_context(dataset.open_eeg(path, images, parameters))
        file = stack.enter_context(new_hdf5(out))
        layout = raw.layout
        picks, samples = (
            pick_channels(layout, parameters.channels, path),
            pick_samples(layout, parameters.window, path),
        )
        _write_axes(file, layout, picks, samples)
        file.attrs.update(parameters.model_dump(exclude={"workers"}))
        file.attrs.update({"subject": subject, "sfreq": round(1 / layout.step, 6)})
        file.attrs.update({"source": path.name, "source_sha256": _hash(path)})
        file.attrs.update({f"{package}_version": version(package) for package in ("h5py", "numpy")})
        file.attrs["units"] = UNITS_OF_TRIAL if by_trial else dataset.units
        file.attrs.create("caveats", raw.caveats, (len(raw.caveats),), h5py.string_dtype())
        for split in SPLITS:
            group = file.create_group(split)
            table, most = images[split], None
            average = split == "train" and parameters.average_repetitions
            if raw.n_repetitions is not None:
                counts = raw.n_repetitions[split]
                table = table[counts > 0]
                # An array has as many of each
                most = None if average else int(counts[counts > 0].min())
                sentences.append(f"{subject}: {_repetitions_told(counts, split, average)}")
            for name in table.columns:
                _write_text(group, name, table[name].tolist())
            wanted = (block[:, :most, picks, samples] for block in raw.blocks[split])
            blocks: Iterator[np.ndarray] = (_prepare(block, by_trial, average) for block in wanted)
            if parameters.dtype == "float16":
                if split == "train":
                    blocks = stack.enter_context(_measured(blocks, file, out.parent))
                mean, sd = file["mean"][:][:, None], file["sd"][:][:, None]
                blocks = ((block - mean) / sd for block in blocks)
            check_room = partial(_check_room, out.parent, n_subjects)
            _write_eeg(group, blocks, average, parameters.dtype, path, check_room)
    return sentences


def _repetitions_told(counts: np.ndarray, split: Split, average: bool) -> str:
    """One sentence on the images that are missing and the repetitions of the others."""
    kind = {"train": "training", "test": "test"}[split]
    sizes, n_images = np.unique(counts[counts > 0], return_counts=True)
    shown = " and ".join(
        f"{n} have {size} repetitions" for size, n in zip(sizes, n_images, strict=True)
    )
    sentence = f"of {len(counts)} {kind} images {(counts == 0).sum()} are missing, {shown}"
    if not average and len(sizes) > 1:
        sentence += f"; only the first {sizes[0]} are taken, because preprocess.average_repetitions is false"
    return sentence


def _hash(path: Path) -> str:
    """The sha256 of a file; of a folder, of the names and hashes of its files."""
    if path.is_file():
        return sha256(path)
    files = {
        file.name: sha256(file) for file in sorted(path.glob("[!.]*"))
    }  # not the notes of macOS
    return hashlib.sha256(repr(files).encode()).hexdigest()


@contextmanager
def _measured(
    blocks: Iterator[np.ndarray], file: h5py.File, folder: Path
) -> Iterator[Iterator[np.ndarray]]:
    """The same blocks (n, ..., C, T), kept on the disk while their channels' `/mean` and `/sd` are taken."""
    n, total, squares, n_blocks = 0, 0.0, 0.0, 0
    with tempfile.TemporaryFile(dir=folder) as kept:
        for block in blocks:
            by_channel = np.moveaxis(block, -2, 0).reshape(block.shape[-2], -1)
            n += by_channel.shape[1]
            total, squares = total + by_channel.sum(1), squares + np.square(by_channel).sum(1)
            save_array(kept, block)
            n_blocks += 1
        mean = total / n
        sd = np.sqrt(np.maximum(squares / n - np.square(mean), 0))
        file["mean"], file["sd"] = mean, np.where(sd > 0, sd, 1)
        file.attrs["units"] = UNITS_OF_FLOAT16
        kept.seek(0)
        yield (np.load(kept) for _ in range(n_blocks))


def pick_channels(
    layout: Layout, channels: list[str] | Literal["all", "posterior"], path: Path
) -> slice | list[int]:
    """Where the wanted channels are on the channel axis; `posterior` are the 17 that THINGS-EEG2 released."""
    if channels == "all":
        return slice(None)
    if channels == "posterior":
        channels = list(POSTERIOR)
    absent = [name for name in channels if name not in layout.ch_names]
    if absent:
        raise InputError(
            f"{path}: has no channel {absent[0]!a} (preprocess.channels), it has {' '.join(layout.ch_names)}"
            + suggestion(absent[0], layout.ch_names)
        )
    if not channels or len(set(channels)) != len(channels):
        raise InputError(
            f"preprocess.channels is {' '.join(channels) or 'empty'}; name each wanted channel once"
        )
    return [layout.ch_names.index(name) for name in channels]


def pick_samples(layout: Layout, window: list[float] | Literal["published"], path: Path) -> slice:
    """The samples within the window; a thousandth of a sample is allowed for rounding."""
    if window == "published":
        return slice(None)
    (first, last), times = window, layout.times
    slack = layout.step / 1000
    if not times[0] - slack <= first <= last <= times[-1] + slack:
        raise InputError(
            f"{path}: preprocess.window {first} .. {last} s is no part of the recorded "
            f"{times[0]:g} .. {times[-1]:g} s: set a first and a later last time within it"
        )
    start, stop = np.searchsorted(times, [first - slack, last + slack])
    if start == stop:
        raise InputError(
            f"{path}: no sample lies in preprocess.window {first} .. {last} s: widen it"
        )
    return slice(int(start), int(stop))


def _prepare(block: np.ndarray, normalise: bool, average: bool) -> np.ndarray:
    """(n, R, C, T) to (n, R, C, T), or (n, C, T) if averaged, float64."""
    if normalise:
        norm = np.linalg.norm(block, axis=-1, keepdims=True)
        block = (block - block.mean(axis=-1, keepdims=True)) / np.where(norm == 0, 1, norm)
    return block.mean(axis=1) if average else block


def _write_eeg(
    group: h5py.Group,
    blocks: Iterator[np.ndarray],
    average: bool,
    dtype: str,
    path: Path,
    check_room: Callable[[int], None],
) -> None:
    n_conditions, start, eeg = len(group["image_ids"]), 0, None
    try:
        with np.errstate(over="raise"):
            for block in blocks:
                if eeg is None:
                    eeg = _create_eeg(group, (n_conditions, *block.shape[1:]), average, dtype)
                    check_room(eeg.nbytes)
                eeg[start : start + len(block)] = block.astype(dtype)
                start += len(block)
    except FloatingPointError as error:
        remedy = "set preprocess.dtype to float32" if dtype == "float16" else FETCH_AGAIN
        raise InputError(
            f"{path}: EEG values near condition {start} are too large for {dtype}; {remedy}"
        ) from error
    if start != n_conditions:
        raise InputError(
            f"{path}: the {group.name[1:]} EEG has {start} conditions, the metadata {n_conditions} images; "
            f"{FETCH_AGAIN}"
        )


def _check_room(folder: Path, n_subjects: int, n_bytes: int) -> None:
    """InputError unless so much of each subject fits into a folder, in which some of it may be already."""
    n_there = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker has given it its name
            n_there += path.stat().st_size
    check_folders({folder: n_subjects * n_bytes - n_there})


def _create_eeg(
    group: h5py.Group, shape: tuple[int, ...], average: bool, dtype: str
) -> h5py.Dataset:
    """The array, still empty, its axes labelled."""
    axes = {
        "condition": group["image_ids"],
        "repetition": None,
        "channel": group.file["ch_names"],
        "time": group.file["times"],
    }
    if average:
        del axes["repetition"]
    eeg = group.create_dataset("eeg", shape, dtype, fill_time="never")
    eeg.attrs["units"] = group.file.attrs["units"]
    for axis, (label, scale) in zip(eeg.dims, axes.items(), strict=True):
        axis.label = label
        if scale is not None:
            axis.attach_scale(scale)
    return eeg


def _write_axes(file: h5py.File, layout: Layout, picks: slice | list[int], samples: slice) -> None:
    _write_text(file, "ch_names", np.array(layout.ch_names)[picks].tolist())
    file["times"] = layout.times[samples]
    if layout.sensor_positions is not None:
        file["places"] = layout.sensor_positions[picks]
    file["times"].attrs["units"] = "s"
    file["ch_names"].make_scale("channel")
    file["times"].make_scale("time")


def _write_text(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Text of fixed length, UTF-8, which MATLAB and old HDF5 tools read too."""
    encoded = np.array([value.encode() for value in values])
    group[name] = encoded.astype(h5py.string_dtype("utf-8", encoded.itemsize))
    if name == "image_ids":
        group[name].make_scale("condition")
