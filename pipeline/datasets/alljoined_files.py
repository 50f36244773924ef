"""The recordings of Alljoined-1.6M: their published layout, read without believing it.

Published: https://huggingface.co/datasets/Alljoined/Alljoined-1.6M, folder raw_eeg; code of its
authors: https://github.com/Alljoined/Alljoined-1.6M (preprocessing).
Layout: 76 EDF files a subject, one for each of 19 blocks in four sessions, 32 EEG channels at
256 Hz among channels of the headset. Blocks 1 to 4 show test images, 5 to 19 training images. The
download names the files after their folders, which alone tell subject, session and block: names and
patients in the files of sub-08 are those of another subject.

An image is an annotation such as `stim_train,1234,17,3`: whether it is trained or tested, its id,
and where it stands in the experiment. Ids count from 0: first the training images, then the test
images, in the order of the metadata of THINGS-EEG2, and then nine oddballs. Oddballs and
annotations of other kinds (`behav`, `oddball`) are no trials. In some copies all begin with
`session_<number>,block_<number>,`. The annotations say what was shown: the planned order of sub-06
has two rows that were shown the other way round.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import edfio
import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np
import pandas as pd

from pipeline.datasets.image_table import Split
from pipeline.datasets.mne_files import faults_as_input_errors
from pipeline.errors import FETCH_AGAIN, InputError

SESSIONS = (1, 2, 3, 4)
BLOCKS: dict[Split, range] = {"test": range(1, 5), "train": range(5, 20)}
# As planned, of an image in a session; some are shown more often, and a training image less often
REPETITIONS: dict[Split, int] = {"train": 1, "test": 20}
N_ODDBALLS = 9
SFREQ = 256.0  # Hz

# The EEG channels, in the order of the files
CH_NAMES = (
    *("Cz", "FCz", "AFz", "Fp1", "F5", "F1", "CP5", "CP3", "CP1", "P1", "P3", "P5", "P7", "PO7"),
    *("PO3", "O1", "Pz", "POz", "Oz", "O2", "PO4", "PO8", "P8", "P6", "P4", "P2", "CP2", "CP4"),
    *("CP6", "F2", "F6", "Fp2"),
)
OTHER_NAMES = {"AFz": "Afz"}  # how the files write it

STIMULUS = re.compile(r"(?:session_\d+,block_\d+,)?stim_(?:(train|test),(\d+)(?:,.*)?|.*)")
LEAVE_OUT_CHANNEL = "leave out the channel or the session (preprocess.sessions)"
LEAVE_OUT_SESSION = "leave out the session (preprocess.sessions)"
VOLTS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "\N{MICRO SIGN}V": 1e-6, "nV": 1e-9}
N_RECORDS_BYTE, N_RECORDS_BYTES = 236, 8  # where the header says in ASCII how many there are


@dataclass(frozen=True)
class BlockFile:
    """One file: 19 of them are a session."""

    session: int
    block: int
    path: Path

    @property
    def split(self) -> Split:
        """What the block shows."""
        return "test" if self.block in BLOCKS["test"] else "train"


@dataclass(frozen=True)
class Block:
    """What one file holds.

    * `digital`: (C, samples) int16, as in the file, in the order of the names that were asked for.
    * `gain`, `offset`: (C, 1), in V: the EEG is `gain` times `digital` plus `offset`.
    * `samples`: (n,) int, the sample at which each image appears, in the order of time.
    * `image_rows`: (n,) int, its row in the table of images of the split.
    * `n_left_out`: how many images were left out, because their epoch is not all recorded or
      because another image appears at the same sample before them.
    * `flat`: the names of channels that have the same value all the time.
    """

    digital: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    samples: np.ndarray
    image_rows: np.ndarray
    n_left_out: int
    flat: tuple[str, ...]


def choose_blocks(folder: Path, choice: Literal["all"] | Sequence[int]) -> list[BlockFile]:
    """The files of the chosen sessions, in the order of sessions, then of blocks.

    Raises InputError where one of them is missing.
    """
    missing_file: dict[int, str] = {}  # the first one, by session
    files: list[BlockFile] = []
    for session in SESSIONS:
        for block in (*BLOCKS["test"], *BLOCKS["train"]):
            path = folder / f"session_{session:02d}_block_{block:02d}.edf"
            files.append(BlockFile(session, block, path))
            if not path.is_file():
                missing_file.setdefault(session, path.name)

    complete = [session for session in SESSIONS if session not in missing_file]
    if not complete:
        raise InputError(
            f"{folder}: holds no session with all its 19 files, expected such as "
            f"{files[0].path.name}; {FETCH_AGAIN}"
        )

    chosen = SESSIONS if choice == "all" else sorted(set(choice))
    missing = [session for session in chosen if session not in complete]
    if missing:
        file = missing_file.get(missing[0], "such session")
        raise InputError(
            f"{folder}: session {missing[0]} is not there or not whole (no {file}), and "
            f"preprocess.sessions is {choice}: "
            f"-S 'preprocess.sessions=[{','.join(map(str, complete))}]' uses only what is there; "
            f"or {FETCH_AGAIN}"
        )
    return [file for file in files if file.session in chosen]


def read_block(
    file: BlockFile, ch_names: Sequence[str], n_images: Mapping[Split, int], bounds: tuple[int, int]
) -> Block:
    """The EEG of these channels, and the images that were shown.

    `n_images` are those of the metadata, and `bounds` the first and the last sample of an epoch,
    counted from its image. Raises InputError where the file is damaged or cut, has another rate or
    unit, lacks a channel, or shows what the metadata or the experiment do not have.
    """
    with _opened(file.path) as edf:
        signals = _find_signals(edf, ch_names, file.path)
        digital = np.array([signal.digital for signal in signals])
        gain, offset = np.array([_calibration(signal) for signal in signals]).T[:, :, None]
        trials = _find_trials(file, digital.shape[1], n_images, bounds)

    is_flat = digital.min(axis=1) == digital.max(axis=1)
    flat = tuple(name for name, flat in zip(ch_names, is_flat, strict=True) if flat)
    return Block(digital, gain, offset, *trials, flat)


def count_trials(
    file: BlockFile, n_images: Mapping[Split, int], bounds: tuple[int, int]
) -> np.ndarray:
    """How many trials `read_block` finds of each image of the split, (n_images,); no EEG is read.

    Raises InputError where the file is damaged, or shows what the metadata do not have.
    """
    status = file.path.stat()
    version = (status.st_size, status.st_mtime_ns)
    return _count_trials_of_version(file, tuple(n_images.items()), bounds, version)


@lru_cache(maxsize=2000)
def _count_trials_of_version(
    file: BlockFile,
    n_images_of_splits: tuple[tuple[Split, int], ...],
    bounds: tuple[int, int],
    version: tuple[int, int],
) -> np.ndarray:
    """A process asks for the files of all subjects once for each subject that it prepares."""
    n_images = dict(n_images_of_splits)
    with _opened(file.path) as edf:
        n_samples = round(edf.duration * SFREQ)
        _, image_rows, _ = _find_trials(file, n_samples, n_images, bounds)
    return np.bincount(image_rows, minlength=n_images[file.split])


@contextmanager
def _opened(path: Path) -> Iterator[edfio.Edf]:
    """The file, of which EEG is read when it is asked for.

    Raises InputError for damage, and where it has fewer records than its header says: edfio would
    go on with those.
    """
    with faults_as_input_errors(path, "a recording in EDF", FETCH_AGAIN):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the number of records, which is checked below
            edf = edfio.read_edf(path, header_encoding="latin-1")  # for the micro sign
        with path.open("rb") as stream:
            stream.seek(N_RECORDS_BYTE)
            n_records = int(stream.read(N_RECORDS_BYTES))  # -1 if the recorder never closed it
        if edf.num_data_records < n_records:
            raise InputError(
                f"{path}: is cut: its header says {n_records} records of "
                f"{edf.data_record_duration:g} s, and it holds {edf.num_data_records}; "
                f"{FETCH_AGAIN}, or {LEAVE_OUT_SESSION}"
            )
        yield edf


def _find_signals(edf: edfio.Edf, ch_names: Sequence[str], path: Path) -> list[edfio.EdfSignal]:
    """Raises InputError where a channel is missing, or is not recorded as published."""
    labels = [label.strip() for label in edf.labels]
    signals = []
    for name in ch_names:
        label = name if name in labels else OTHER_NAMES.get(name, name)
        n_found = labels.count(label)
        if n_found != 1:
            found = f"{n_found} channels" if n_found else "no channel"
            raise InputError(
                f"{path}: has {found} {name}, expected the {len(ch_names)} channels that "
                f"preprocess.channels asks for, each once; {LEAVE_OUT_CHANNEL}"
            )

        signal = edf.signals[labels.index(label)]
        if not math.isclose(signal.sampling_frequency, SFREQ):
            raise InputError(
                f"{path}: is recorded at {signal.sampling_frequency:g} Hz, expected {SFREQ:g} Hz "
                f"as published; {LEAVE_OUT_SESSION}, or {FETCH_AGAIN}"
            )
        if signal.physical_dimension.strip() not in VOLTS:
            raise InputError(
                f"{path}: channel {name} is in {signal.physical_dimension!a}, expected one of "
                f"{', '.join(VOLTS)}; {LEAVE_OUT_CHANNEL}"
            )
        if 0 in (np.ptp(signal.physical_range), np.ptp(signal.digital_range)):
            raise InputError(
                f"{path}: the header says of channel {name} that its smallest and its largest "
                f"value are the same; {LEAVE_OUT_CHANNEL}"
            )
        signals.append(signal)
    return signals


def _calibration(signal: edfio.EdfSignal) -> tuple[float, float]:
    """Gain and offset, see `Block`, of the two ranges in the header."""
    volts = VOLTS[signal.physical_dimension.strip()]
    physical, digital = signal.physical_range, signal.digital_range
    gain = volts * (physical.max - physical.min) / (digital.max - digital.min)
    return gain, volts * physical.min - gain * digital.min


def _find_trials(
    file: BlockFile, n_samples: int, n_images: Mapping[Split, int], bounds: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Samples, rows of the images, and how many were left out, as in `Block`."""
    # By MNE: edfio takes the first annotation of a record for its time, whatever it says.
    annotations = mne.read_annotations(file.path)
    onsets, image_rows = _find_images(annotations, file, n_images)
    samples = np.round(onsets * SFREQ).astype(np.int64)  # as `mne.events_from_annotations`
    first, last = bounds
    is_recorded = (samples + first >= 0) & (samples + last < n_samples)
    is_alone = ~pd.Index(samples).duplicated()  # as `event_repeated="drop"` of `mne.Epochs`
    is_used = is_recorded & is_alone
    return samples[is_used], image_rows[is_used], int((~is_used).sum())


def _find_images(
    annotations: "mne.Annotations", file: BlockFile, n_images: Mapping[Split, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds at which images appear, in the order of time, and their rows in the split, (n,) both.

    Without oddballs.
    """
    first_id = {"train": 0, "test": n_images["train"]}[file.split]
    first_oddball = n_images["train"] + n_images["test"]
    onsets: list[float] = []
    image_rows: list[int] = []
    for onset, text in zip(annotations.onset, annotations.description.tolist(), strict=True):
        stimulus = STIMULUS.fullmatch(text.strip())
        if stimulus is None:
            continue
        kind, digits = stimulus.groups()
        if kind is None:
            raise _wrong_image(file, text, onset, "expected such as stim_train,1234,17,3")
        if kind != file.split:
            blocks = BLOCKS[file.split]
            raise _wrong_image(
                file,
                text,
                onset,
                f"expected stim_{file.split}, which blocks {blocks[0]} to {blocks[-1]} show",
            )

        image_id = int(digits)
        if first_oddball <= image_id < first_oddball + N_ODDBALLS:
            continue
        image_row = image_id - first_id
        if not 0 <= image_row < n_images[file.split]:
            last_id = first_id + n_images[file.split] - 1
            raise _wrong_image(
                file,
                text,
                onset,
                f"expected an id of {first_id} to {last_id}, or of the {N_ODDBALLS} oddballs from "
                f"{first_oddball}, since the metadata has {n_images['train']} training and "
                f"{n_images['test']} test images",
            )
        onsets.append(float(onset))
        image_rows.append(image_row)

    if not onsets:
        raise InputError(
            f"{file.path}: shows no image, expected annotations such as "
            f"stim_{file.split},{first_id},0,0; {LEAVE_OUT_SESSION}, or {FETCH_AGAIN}"
        )
    return np.array(onsets), np.array(image_rows, np.int64)


def _wrong_image(file: BlockFile, text: str, onset: float, expected: str) -> InputError:
    return InputError(
        f"{file.path}: has the annotation {text!a:.60} at {onset:g} s, {expected}; "
        f"{LEAVE_OUT_SESSION}, or {FETCH_AGAIN}"
    )
