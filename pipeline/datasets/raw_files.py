"""The raw recordings of THINGS-EEG2: their published layout, read without believing it.

Published: one zip a subject, with two files for each of four sessions,
`sub-01/ses-01/raw_eeg_training.npy` and `sub-01/ses-01/raw_eeg_test.npy`.
Layout: each file is a saved dictionary with `raw_eeg_data` (channels, samples) in V, `ch_names`,
`ch_types` and `sfreq`. The channel of type stim is 0, except at the sample at which an image
appears. There it is the image's row in the metadata, counted from 1, or 99999 for a target trial.
Made of it: the chosen rows of a file as one array, and its events as MNE wants them.
Format: https://github.com/gifale95/eeg_encoding (source_to_raw.py).
"""

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mne
import numpy as np

from pipeline.datasets.channels import ChannelChoice, choose_channels
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.untrusted.archives import find_member, open_member
from pipeline.untrusted.pickles import Fields, Streamed, stream_npy

SESSIONS = (1, 2, 3, 4)
FILES: dict[Split, str] = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
EEG_KEY = "raw_eeg_data"
REPETITIONS: dict[Split, int] = {"train": 2, "test": 20}  # of an image, in a session that shows it
TARGET = 99999  # the stim channel at a target trial
LEAVE_OUT_SESSION = "leave out the session (preprocess.sessions)"

Members = Mapping[tuple[int, Split], str]  # the name in the archive, by session and split


@dataclass(frozen=True)
class Channels:
    """What all files of a subject share: name and type of each row, and the rate in Hz.

    `file` is where they were read, for error messages.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    sfreq: float
    file: str

    def rows(self, choice: ChannelChoice, file: str) -> list[int]:
        """The rows of the chosen channels in their order, then the row of the stim channel.

        Raises InputError where a channel is absent from `file` or is named twice.
        """
        eeg = [name for name, kind in zip(self.names, self.types, strict=True) if kind == "eeg"]
        names = choose_channels(eeg, choice, file)

        # `_channels` made sure that there is one.
        stim = self.names[self.types.index("stim")]
        return [self.names.index(name) for name in (*names, stim)]


def choose_sessions(
    archive: zipfile.ZipFile, choice: Literal["all"] | Sequence[int], subject: str
) -> Members:
    """The two files of each chosen session.

    Raises InputError where the archive lacks one of them.
    """
    members: dict[tuple[int, Split], str] = {}
    missing_file: dict[int, str] = {}  # the first one, by session
    for session in SESSIONS:
        for split in SPLITS:
            path = f"ses-{session:02d}/{FILES[split]}"
            name = find_member(archive, path, subject)
            if name is None:
                missing_file.setdefault(session, path)
            else:
                members[session, split] = name

    complete = [session for session in SESSIONS if session not in missing_file]
    if not complete:
        raise InputError(
            f"{archive.filename}: holds no session of raw EEG, expected such as "
            f"{subject}/ses-01/{FILES['train']} and {subject}/ses-01/{FILES['test']}; "
            f"{FETCH_AGAIN}"
        )

    chosen = SESSIONS if choice == "all" else sorted(set(choice))
    missing = [session for session in chosen if session not in complete]
    if missing:
        file = missing_file.get(missing[0], f"ses-{missing[0]:02d}")
        raise InputError(
            f"{archive.filename}: session {missing[0]} is not there or not whole (no {file}), and "
            f"preprocess.sessions is {choice}: "
            f"-S 'preprocess.sessions=[{','.join(map(str, complete))}]' uses only what the archive "
            "has"
        )
    return {(session, split): members[session, split] for session in chosen for split in SPLITS}


def read_channels(archive: zipfile.ZipFile, name: str) -> Channels:
    """The channels of a file; its EEG is skipped."""
    file = f"{archive.filename}: {name}"
    with open_member(archive, name) as stream:
        for item in stream_npy(stream, file):
            if isinstance(item, dict):
                return _channels(item, file)
    raise AssertionError("stream_npy ends with a dictionary")


def _channels(fields: Fields, file: str) -> Channels:
    names = _read_names(fields, "ch_names", file)
    types = _read_names(fields, "ch_types", file)

    if len(names) != len(types) or len(set(names)) != len(names):
        raise InputError(
            f"{file}: has {len(set(names))} different ch_names and {len(types)} ch_types, "
            f"expected as many; {FETCH_AGAIN}"
        )
    if types.count("stim") != 1:
        raise InputError(
            f"{file}: has {types.count('stim')} channels of type stim, expected 1, which tells "
            f"the images; {FETCH_AGAIN}"
        )

    sfreq = fields.get("sfreq")
    if not isinstance(sfreq, int | float | np.integer | np.floating) or not 0 < sfreq < math.inf:
        raise InputError(f"{file}: sfreq is no rate in Hz; {FETCH_AGAIN}")
    return Channels(names, types, float(sfreq), file)


def _read_names(fields: Fields, key: str, file: str) -> tuple[str, ...]:
    """A list or array of printable text."""
    values = fields.get(key)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, list | tuple) or not all(
        isinstance(value, str) and value.isprintable() for value in values
    ):
        raise InputError(
            f"{file}: {key} is not a list of names; expected the published file; {FETCH_AGAIN}"
        )
    return tuple(str(value) for value in values)


def read_rows(
    archive: zipfile.ZipFile, name: str, channels: Channels, rows: Sequence[int]
) -> np.ndarray:
    """These rows of a recording, (len(rows), samples) float64.

    Raises InputError where the file does not have these channels, or a value is not finite.
    """
    file = f"{archive.filename}: {name}"
    streamed: Streamed | None = None
    eeg: np.ndarray | None = None

    # The EEG comes first, as a stream, and the dictionary that holds it comes last.
    with open_member(archive, name) as stream:
        for item in stream_npy(stream, file):
            if isinstance(item, dict):
                fields = item
            elif streamed is None:
                streamed = item
                eeg = _pick_rows(item, channels, rows, file)
            else:
                raise InputError(
                    f"{file}: holds a second large array, expected only {EEG_KEY}; {FETCH_AGAIN}"
                )

    stored = fields.get(EEG_KEY)
    if isinstance(stored, np.ndarray) and streamed is None:
        # A small array, or one in another order or protocol than published, is not streamed.
        array = Streamed(stored.shape, stored.dtype, iter([stored]))
        eeg = _pick_rows(array, channels, rows, file)
    elif eeg is None or stored is not streamed:
        raise InputError(
            f"{file}: {EEG_KEY} is not an array; expected the published file; {FETCH_AGAIN}"
        )

    _require_same_channels(_channels(fields, file), channels)
    return eeg


def _require_same_channels(channels: Channels, expected: Channels) -> None:
    """Raise InputError where the channels of two files of a subject differ."""
    for key, values, expected_values in (
        ("ch_names", channels.names, expected.names),
        ("ch_types", channels.types, expected.types),
        ("sfreq", (f"{channels.sfreq:g}",), (f"{expected.sfreq:g}",)),
    ):
        if values != expected_values:
            raise InputError(
                f"{channels.file}: {key} is {' '.join(values)}, expected as in {expected.file}: "
                f"{' '.join(expected_values)}; a session of another recording may be among them: "
                "preprocess.sessions can leave it out"
            )


def _pick_rows(array: Streamed, channels: Channels, rows: Sequence[int], file: str) -> np.ndarray:
    """The chosen rows of an array (channels, samples) whose chunks are read here."""
    n_rows = len(channels.names)
    if len(array.shape) != 2 or array.shape[0] != n_rows or array.dtype.kind != "f":
        raise InputError(
            f"{file}: {EEG_KEY} is of shape {array.shape} and type {array.dtype}, expected "
            f"({n_rows}, samples) and floating point; {FETCH_AGAIN}"
        )

    position = {row: i for i, row in enumerate(rows)}  # of a row in what is returned
    picked = np.empty((len(rows), array.shape[1]))
    start = 0
    for chunk in array.chunks:
        for row, values in enumerate(chunk, start):
            if row not in position:
                continue
            if not np.isfinite(values).all():
                # The stim channel, the last of `rows`, cannot be left out.
                leave_out = "" if row == rows[-1] else "the channel (preprocess.channels) or "
                raise InputError(
                    f"{file}: channel {channels.names[row]} holds NaN or infinite values; leave "
                    f"out {leave_out}the session (preprocess.sessions), or {FETCH_AGAIN}"
                )
            picked[position[row]] = values
        start += len(chunk)
    return picked


def find_events(
    stim: np.ndarray, sfreq: float, n_images: int, n_repetitions: int, file: str
) -> np.ndarray:
    """The events of a recording as MNE wants them, (n, 3): sample, 0, row of the image from 1.

    They are sorted by image, then by time. Of each image that is shown, the first `n_repetitions`
    are taken. Raises InputError where `stim` (samples,) holds another value than the published
    ones, or an image is shown less often.
    """
    _check_stim(stim, n_images, file)
    info = mne.create_info(["stim"], sfreq, "stim")
    raw = mne.io.RawArray(stim[None], info, verbose=False)
    # MNE's defaults refuse an event of one sample. They lose an image at the first sample, and one
    # with a smaller number right after another.
    events = mne.find_events(
        raw, "stim", consecutive=True, shortest_event=1, initial_event=True, verbose=False
    )

    # A stable sort keeps the order of time within an image.
    events = events[events[:, 2] != TARGET]
    events = events[np.argsort(events[:, 2], kind="stable")]

    images, first, counts = np.unique(events[:, 2], return_index=True, return_counts=True)
    if not len(images) or counts.min() < n_repetitions:
        rarest = (
            f"image {images[counts.argmin()]} (from 1) is shown {counts.min()} times"
            if len(images)
            else "none is shown"
        )
        raise InputError(
            f"{file}: of the images, {rarest}, expected at least {n_repetitions} times; "
            f"{LEAVE_OUT_SESSION}, or {FETCH_AGAIN}"
        )

    # Of each event among those of its image, from 0.
    repetition = np.arange(len(events)) - np.repeat(first, counts)
    return events[repetition < n_repetitions]


def _check_stim(stim: np.ndarray, n_images: int, file: str) -> None:
    # Elsewhere it is 0, and nothing begins.
    samples = np.flatnonzero(stim)
    values = stim[samples]
    is_image = (values >= 1) & (values <= n_images) & (values == np.floor(values))
    wrong = (values != TARGET) & ~is_image
    if wrong.any():
        raise InputError(
            f"{file}: the stim channel is {values[wrong][0]:g} at sample {samples[wrong][0]}, "
            f"expected 0, {TARGET} or a row of the {n_images} images in the metadata, counted from "
            f"1; {LEAVE_OUT_SESSION}, or, if the two are of different releases, {FETCH_AGAIN}"
        )
