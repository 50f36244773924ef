"""EEG prepared for training: one HDF5 file a subject, written in bounded memory.

    /                  attributes: subject, sfreq, units, caveats, the parameters of `preprocess`,
                       the hash of the raw file (source_sha256), versions; modality if not EEG
    /ch_names (C,)     channel names, in the order of the channel axis
    /times (T,)        seconds from stimulus onset
    /sensor_positions (C, 2)   on the head seen from above, nose up, rim at 1; absent where the
                       10-05 system knows the channel names
    /mean, /sd (C,)    by which each channel was standardised; only with `dtype: float16`, and with
                       `normalise: session` where the dataset knows no sessions
    /train/eeg         (N, C, T) averaged over repetitions, or (N, R, C, T)
    /test/eeg          (N, R, C, T)
    /<split>/image_ids, concept, things_concept (N,)   the image seen in each condition

Axes: N conditions (images), R repetitions, C channels, T samples. Every axis of `eeg` has a label;
`image_ids`, `ch_names` and `times` are its HDF5 dimension scales. The same input gives the same
bytes.

`normalise: trial` normalises each trial (see `normalisation`) before trials are averaged.

`normalise: average` leaves the EEG here as it is: it is normalised where it is used, once
repetitions are averaged (`read_split`, `pipeline.train.stack`, `pipeline.evaluate.scoring`). They
see it by the attribute `normalise` of the file.

`normalise: session` takes the mean of the session out of each channel and divides by its standard
deviation, both over all trials and times of the training EEG, as SAMGA does (arXiv 2604.17782,
https://github.com/LinJiang8/SAMGA). The test EEG of the session is standardised by the same two
numbers. Raw recordings come so from their dataset. Of data without sessions, all EEG of a subject
is one session, and this file does it.

The EEG of a dataset that may not be pushed (`Dataset.may_push_eeg`) lies in a file like this in a
folder of its own. The file that readers open has only its attributes, and `content_sha256`, the
hash of that file (`link_subjects`). Each of its members is an external link, which HDF5 follows by
itself. So readers need not know, and whoever sees a change of the small file sees that of the EEG.

`dtype: float16` standardises each channel by its mean and standard deviation over the training EEG
of the subject, so that the EEG fits into half precision whatever its unit. With `normalise:
average` the mean stays in, and the channel is divided by its root mean square: the norm is still to
come, and a factor does not change what it makes of the EEG.
"""

import hashlib
import os
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
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline.compute.machine import free_memory
from pipeline.datasets.channels import choose_channels
from pipeline.datasets.entry import Dataset, Layout, RawEeg
from pipeline.datasets.image_table import SPLITS, Split, read_image_table
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import check_folders, new_hdf5, save_array, sha256
from pipeline.preprocess.normalisation import normalise
from pipeline.preprocess.windows import find_window
from pipeline.sections import Preprocess

UNITS_OF_TRIAL = "share of the norm of the released trace, no physical unit"
UNITS_OF_SESSION = "standard deviations of the channel over the training trials of its session"
UNITS_OF_FLOAT16 = "standard deviations of the channel over the training EEG"
UNITS_NOT_CENTRED = "root mean squares of the channel over the training EEG"
LIBRARIES = 120 << 20  # bytes of memory that a worker needs beside the EEG


def prepare_subjects(
    dataset: Dataset,
    eeg_dir: Path,
    image_table: Path,
    out_dir: Path,
    parameters: Preprocess,
    prefix: str = "",
) -> list[Path]:
    """Write `out_dir/<subject>.h5` for every subject in `eeg_dir`, and return these paths.

    `prefix` is put before the names of the subjects.

    `parameters` are the section `preprocess` of params.yaml. Images that a subject did not see are
    left out, and a sentence on the terminal says so. `workers` processes prepare a subject each,
    or fewer where the memory is too small for so many. A worker holds what the dataset's
    `open_eeg` holds, a few chunks and 0.12 GB of libraries: at most 0.34 GB for a subject of full
    size as published (measured; the test EEG is 0.22 of it), and about 1.3 GB for an archive in
    Fortran order or pickle protocol 5, which the published ones are not.

    InputError for a file that is not as published, a channel that it lacks, and a window beyond
    its times. What file names and sizes show is checked for all subjects before the work begins.
    """
    subjects = {f"{prefix}{name}": path for name, path in dataset.find_subjects(eeg_dir).items()}
    if not subjects:
        raise InputError(
            f"{eeg_dir}: holds no subject's EEG; run the download (`dvc repro download`)"
        )

    images = read_image_table(image_table)
    # Any worker may get the largest subject.
    needed = max(dataset.memory_needed(path, parameters) for path in subjects.values()) + LIBRARIES
    n_workers = _fitting_workers(parameters.workers, needed, len(subjects))
    outputs = {subject: out_dir / f"{subject}.h5" for subject in subjects}
    prepare = partial(
        _prepare_subject,
        dataset=dataset,
        images=images,
        parameters=parameters,
        n_subjects=len(subjects),
    )

    # Not forked: the caller may have threads, and a forked copy of them can hang.
    with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
        try:
            tasks = [
                pool.submit(prepare, subject, path, outputs[subject])
                for subject, path in subjects.items()
            ]
            finished = as_completed(tasks)
            for task in tqdm(finished, "preprocess", len(tasks), unit="subject", disable=None):
                for sentence in task.result():
                    tqdm.write(sentence)
        except (BrokenProcessPool, MemoryError) as error:
            raise InputError(_too_little_memory(n_workers, needed)) from error
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, no other subject is begun

    return list(outputs.values())


def link_subjects(private_dir: Path, out_dir: Path) -> list[Path]:
    """For each file in `private_dir` write one to `out_dir` that leads there; return these paths.

    Each has the attributes of that file, and its hash as `content_sha256`.
    """
    outputs = []
    for eeg_file in sorted(private_dir.glob("[!.]*.h5")):
        outputs.append(out_dir / eeg_file.name)
        target = os.path.relpath(eeg_file, out_dir)  # so that both folders can be moved together
        with h5py.File(eeg_file, "r") as eeg, new_hdf5(outputs[-1]) as file:
            for name, value in eeg.attrs.items():
                attribute = eeg.attrs.get_id(name)
                file.attrs.create(name, value, attribute.shape, attribute.dtype)
            file.attrs["content_sha256"] = sha256(eeg_file)
            for name in eeg:
                file[name] = h5py.ExternalLink(target, name)
    return outputs


def _fitting_workers(most: int, needed: int, n_subjects: int) -> int:
    """How many workers fit into memory, `most` at most, if each needs `needed` bytes.

    A sentence on the terminal says where these are fewer than `most`.
    """
    n_workers = min(most, n_subjects)
    n_fitting = min(n_workers, max(1, free_memory() // needed))
    if n_fitting < n_workers:
        print(
            f"preprocess: {n_workers} workers (preprocess.workers) need about "
            f"{n_workers * needed / 1e9:.1f} GB of memory, and {free_memory() / 1e9:.1f} GB are "
            f"free for this process: going on with {n_fitting}",
            flush=True,
        )
    return n_fitting


def _too_little_memory(n_workers: int, needed: int) -> str:
    remedy = "lower preprocess.workers" if n_workers > 1 else "run this where there is more memory"
    return (
        f"a worker was killed, most likely for want of memory: {n_workers} of them need about "
        f"{n_workers * needed / 1e9:.1f} GB, and {free_memory() / 1e9:.1f} GB are free for this "
        f"process; {remedy}"
    )


def _prepare_subject(
    subject: str,
    path: Path,
    out: Path,
    *,
    dataset: Dataset,
    images: Mapping[Split, pd.DataFrame],
    parameters: Preprocess,
    n_subjects: int,
) -> list[str]:
    """Write the file `out`. Returns sentences on missing images, for the user."""
    check_room = partial(_check_room, out.parent, n_subjects)
    sentences = []
    with (
        # For NumPy's products: workers that all have a thread for each core wait for each other,
        # and more than one thread makes none of them quicker.
        threadpool_limits(1),
        dataset.open_eeg(path, images, parameters) as raw,
        new_hdf5(out) as file,
    ):
        picks = pick_channels(raw.layout, parameters.channels, path)
        samples = pick_samples(raw.layout, parameters.window, path)

        _write_axes(file, raw.layout, picks, samples)
        _write_attributes(file, subject, path, raw, parameters)
        # Where the dataset has not done it by session
        by_subject = parameters.normalise == "session" and not raw.is_z_scored
        # Half precision replaces it (`_measured`).
        file.attrs["units"] = _units(dataset, raw, parameters, by_subject)
        # With its type, because an empty list tells none.
        file.attrs.create("caveats", raw.caveats, (len(raw.caveats),), h5py.string_dtype())

        for split in SPLITS:
            average = split == "train" and parameters.average_repetitions
            table = images[split]
            n_repetitions = None  # all

            if raw.n_repetitions is not None:
                counts = raw.n_repetitions[split]
                table = table[counts > 0]
                if not average:  # an array has as many repetitions for each image
                    n_repetitions = int(counts[counts > 0].min())
                sentences.append(f"{subject}: {_describe_repetitions(counts, split, average)}")

            group = file.create_group(split)
            for column in table.columns:
                _write_text(group, column, table[column].tolist())

            trials = _select(raw.chunks[split], n_repetitions, picks, samples)
            with ExitStack() as stack:
                chunks = _prepare(trials, average, by_subject, parameters, group, out.parent, stack)
                _write_eeg(group, chunks, average, parameters.dtype, path, check_room)

    return sentences


def _units(dataset: Dataset, raw: RawEeg, parameters: Preprocess, by_subject: bool) -> str:
    """The unit of the values in the file, in words."""
    if parameters.dtype == "float16" and not by_subject:
        return UNITS_NOT_CENTRED if parameters.normalise == "average" else UNITS_OF_FLOAT16
    units = {"trial": UNITS_OF_TRIAL, "session": UNITS_OF_SESSION}
    return units.get(parameters.normalise, raw.units or dataset.units)


def _write_attributes(
    file: h5py.File, subject: str, path: Path, raw: RawEeg, parameters: Preprocess
) -> None:
    """Where the EEG comes from, and how it is prepared."""
    # The number of workers changes no byte.
    file.attrs.update(parameters.model_dump(exclude={"workers"}))
    file.attrs.update({"subject": subject, "sfreq": round(1 / raw.layout.step, 6)})
    if raw.layout.modality != "EEG":  # so that files of EEG stay as they were
        file.attrs["modality"] = raw.layout.modality
    file.attrs.update({"source": path.name, "source_sha256": _hash(path)})
    file.attrs.update({f"{package}_version": version(package) for package in ("h5py", "numpy")})


def _describe_repetitions(counts: np.ndarray, split: Split, average: bool) -> str:
    """One sentence on the missing images and the repetitions of the others."""
    kind = {"train": "training", "test": "test"}[split]
    sizes, n_images = np.unique(counts[counts > 0], return_counts=True)
    pairs = zip(sizes, n_images, strict=True)
    repetitions = " and ".join(f"{n} have {size} repetitions" for size, n in pairs)

    n_missing = (counts == 0).sum()
    sentence = f"of {len(counts)} {kind} images {n_missing} are missing, {repetitions}"
    if not average and len(sizes) > 1:
        sentence += (
            f"; only the first {sizes[0]} are taken, because preprocess.average_repetitions is "
            "false"
        )
    return sentence


def _hash(path: Path) -> str:
    """The sha256 of a file. For a folder, the sha256 of the names and hashes of its files."""
    if path.is_file():
        return sha256(path)

    # Hidden files, such as the notes of macOS, do not count.
    files = {file.name: sha256(file) for file in sorted(path.glob("[!.]*"))}
    return hashlib.sha256(repr(files).encode()).hexdigest()


def pick_channels(
    layout: Layout, channels: list[str] | Literal["all", "posterior"], path: Path
) -> slice | list[int]:
    """The positions of the channels on the channel axis, in the order asked for.

    `posterior` stands for the 17 channels that THINGS-EEG2 released. InputError for a channel that
    the EEG lacks, an empty list, and a name that comes twice. `path` is for these sentences.
    """
    if channels == "all":
        return slice(None)
    names = choose_channels(layout.ch_names, channels, str(path))
    return [layout.ch_names.index(name) for name in names]


def pick_samples(layout: Layout, window: list[float] | Literal["published"], path: Path) -> slice:
    """The samples within the window, see `find_window`; InputError where the EEG lacks them."""
    if window == "published":
        return slice(None)

    first, last = window
    times = layout.times
    samples = find_window(times, layout.step, window)
    if samples is None:
        raise InputError(
            f"{path}: preprocess.window {first} .. {last} s is no part of the recorded "
            f"{times[0]:g} .. {times[-1]:g} s: set a first and a later last time within it"
        )
    if samples.start == samples.stop:
        raise InputError(
            f"{path}: no sample lies in preprocess.window {first} .. {last} s: widen it"
        )
    return samples


# The chunks of a split, (n, R, C, T) float64, pass through these one by one.


def _select(
    chunks: Iterator[np.ndarray],
    n_repetitions: int | None,
    picks: slice | list[int],
    samples: slice,
) -> Iterator[np.ndarray]:
    """The first repetitions (None: all), and the picked channels and samples."""
    for chunk in chunks:
        yield chunk[:, :n_repetitions, picks, samples]


def _prepare(
    trials: Iterator[np.ndarray],
    average: bool,
    by_subject: bool,
    parameters: Preprocess,
    group: h5py.Group,
    folder: Path,
    stack: ExitStack,
) -> Iterator[np.ndarray]:
    """Chunks as they are stored, (n, R, C, T), or with `average` (n, C, T): normalised, averaged.

    `by_subject`: first standardised by all training trials. `stack` closes temporary files, which
    are in `folder`.
    """
    chunks = trials
    if by_subject:
        chunks = stack.enter_context(_standardised(chunks, group, folder))

    if parameters.normalise == "trial":
        chunks = map(normalise, chunks)
    if average:
        chunks = (chunk.mean(axis=1) for chunk in chunks)

    if parameters.dtype == "float16" and not by_subject:
        centred = parameters.normalise != "average"
        chunks = stack.enter_context(_standardised(chunks, group, folder, centred))
    return chunks


@contextmanager
def _standardised(
    chunks: Iterator[np.ndarray], group: h5py.Group, folder: Path, centred: bool = True
) -> Iterator[Iterator[np.ndarray]]:
    """The chunks (n, ..., C, T) of a split, each channel by its `/mean` and `/sd`.

    The training EEG comes first and writes these two, which are also those of the test EEG.
    """
    file = group.file
    with ExitStack() as stack:
        if group.name == "/train":
            chunks = stack.enter_context(_measured(chunks, file, folder, centred))

        mean = file["mean"][:][:, None]
        sd = file["sd"][:][:, None]
        yield ((chunk - mean) / sd for chunk in chunks)


@contextmanager
def _measured(
    chunks: Iterator[np.ndarray], file: h5py.File, folder: Path, centred: bool
) -> Iterator[Iterator[np.ndarray]]:
    """The same chunks (n, ..., C, T) again, after `/mean` and `/sd` (C,) of all are written.

    Without `centred` the mean is 0 and the standard deviation the root mean square. Meanwhile the
    chunks are in a temporary file in `folder`, because they may not fit into memory.
    """
    n_values = 0
    n_chunks = 0
    total = 0.0
    squares = 0.0
    with tempfile.TemporaryFile(dir=folder) as buffer:
        for chunk in chunks:
            by_channel = np.moveaxis(chunk, -2, 0).reshape(chunk.shape[-2], -1)  # (C, values)
            n_values += by_channel.shape[1]
            total = total + by_channel.sum(1)
            squares = squares + np.square(by_channel).sum(1)
            save_array(buffer, chunk)
            n_chunks += 1

        mean = total / n_values if centred else np.zeros_like(total)
        sd = np.sqrt(np.maximum(squares / n_values - np.square(mean), 0))
        file["mean"] = mean
        file["sd"] = np.where(sd > 0, sd, 1)  # a constant channel stays zero

        buffer.seek(0)
        yield (np.load(buffer) for _ in range(n_chunks))


def _write_eeg(
    group: h5py.Group,
    chunks: Iterator[np.ndarray],
    average: bool,
    dtype: str,
    path: Path,
    check_room: Callable[[int], None],
) -> None:
    """Write the chunks into the array `eeg`.

    InputError where a value is too large for `dtype`, or the number of conditions is not that of
    the images, and where the disk has too little room.
    """
    n_conditions = len(group["image_ids"])
    start = 0
    eeg = None
    try:
        with np.errstate(over="raise"):
            for chunk in chunks:
                if eeg is None:  # only the first chunk shows the shape
                    eeg = _create_eeg(group, (n_conditions, *chunk.shape[1:]), average, dtype)
                    check_room(eeg.nbytes)
                eeg[start : start + len(chunk)] = chunk.astype(dtype)
                start += len(chunk)
    except FloatingPointError as error:
        remedy = "set preprocess.dtype to float32" if dtype == "float16" else FETCH_AGAIN
        raise InputError(
            f"{path}: EEG values near condition {start} are too large for {dtype}; {remedy}"
        ) from error

    if start != n_conditions:
        raise InputError(
            f"{path}: the {group.name[1:]} EEG has {start} conditions, the metadata "
            f"{n_conditions} images; {FETCH_AGAIN}"
        )


def _check_room(folder: Path, n_subjects: int, n_bytes: int) -> None:
    """InputError unless `folder` has room for `n_bytes` of each subject.

    What is in the folder already counts as a part of that.
    """
    # Other workers write here too: what they have written needs no room any more.
    n_bytes_written = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker has just renamed its file
            n_bytes_written += path.stat().st_size
    check_folders({folder: n_subjects * n_bytes - n_bytes_written})


def _create_eeg(
    group: h5py.Group, shape: tuple[int, ...], average: bool, dtype: str
) -> h5py.Dataset:
    """The array `eeg`, still without values, its axes labelled."""
    axes = {
        "condition": group["image_ids"],
        "repetition": None,
        "channel": group.file["ch_names"],
        "time": group.file["times"],
    }
    if average:
        del axes["repetition"]

    # fill_time="never": all values are written anyway, so zeros first would cost time.
    eeg = group.create_dataset("eeg", shape, dtype, fill_time="never")
    eeg.attrs["units"] = group.file.attrs["units"]
    for axis, (label, scale) in zip(eeg.dims, axes.items(), strict=True):
        axis.label = label
        if scale is not None:
            axis.attach_scale(scale)
    return eeg


def _write_axes(file: h5py.File, layout: Layout, picks: slice | list[int], samples: slice) -> None:
    """Channel names, times and sensors of the picked channels and samples."""
    _write_text(file, "ch_names", np.array(layout.ch_names)[picks].tolist())
    file["times"] = layout.times[samples]
    if layout.sensor_positions is not None:
        file["sensor_positions"] = layout.sensor_positions[picks]

    file["times"].attrs["units"] = "s"
    file["ch_names"].make_scale("channel")
    file["times"].make_scale("time")


def _write_text(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Text of fixed length, UTF-8, which MATLAB and old HDF5 tools read too."""
    # As bytes, whose longest one is the fixed length: a character may take several.
    encoded = np.array([value.encode() for value in values])
    group[name] = encoded.astype(h5py.string_dtype("utf-8", encoded.itemsize))
    if name == "image_ids":
        group[name].make_scale("condition")
