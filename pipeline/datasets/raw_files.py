"""The raw recordings of THINGS-EEG2 as published: what a file must hold, read without believing it.

A subject's zip holds, for each of four sessions, `sub-01/ses-01/raw_eeg_training.npy` and `raw_eeg_test.npy`: a saved
dictionary with `raw_eeg_data` (channels x samples, V), `ch_names`, `ch_types` and `sfreq`. The channel of type stim is
0 but at the sample at which an image appears: there it is the image's row in the metadata, counted from 1, or 99999 for
a target trial. Format: https://github.com/gifale95/eeg_encoding (source_to_raw.py).
"""

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mne
import numpy as np

from pipeline.datasets.entry import POSTERIOR
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.errors import FETCH_AGAIN, InputError, suggestion
from pipeline.untrusted.archives import find_member, open_member
from pipeline.untrusted.pickles import Fields, Streamed, stream_npy

SESSIONS = (1, 2, 3, 4)
FILES: dict[Split, str] = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
EEG_KEY = "raw_eeg_data"
REPETITIONS: dict[Split, int] = {
    "train": 2,
    "test": 20,
}  # of an image in a session in which it is shown
TARGET = 99999
LEAVE_OUT_SESSION = "leave out the session (preprocess.sessions)"

Members = Mapping[tuple[int, Split], str]  # the name in the archive, by session and split
Wanted = Literal["all", "posterior"] | Sequence[str]


@dataclass(frozen=True)
class Channels:
    """What all files of a subject share: the name and the type of each row, and the rate in Hz."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    sfreq: float
    file: str  # where this was read

    def rows(self, wanted: Wanted, where: str) -> list[int]:
        """The rows of the wanted channels in their order, and last that of the stim channel."""
        eeg = [name for name, kind in zip(self.names, self.types, strict=True) if kind == "eeg"]
        names = {"all": eeg, "posterior": POSTERIOR}[wanted] if isinstance(wanted, str) else wanted
        if not names or len(set(names)) != len(names):
            raise InputError(
                f"preprocess.channels is {' '.join(names) or 'empty'}; name each wanted channel once"
            )
        absent = [name for name in names if name not in eeg]
        if absent:
            raise InputError(
                f"{where}: has no channel {absent[0]!a} (preprocess.channels), it has {' '.join(eeg)}"
                + suggestion(absent[0], eeg)
            )
        return [self.names.index(name) for name in (*names, self.names[self.types.index("stim")])]


def choose_sessions(
    archive: zipfile.ZipFile, wanted: Literal["all"] | Sequence[int], subject: str
) -> Members:
    """The two files of each wanted session; InputError where a session is not in the archive, or not whole."""
    members: dict[tuple[int, Split], str] = {}
    absent: dict[int, str] = {}
    for session in SESSIONS:
        for split in SPLITS:
            wanted_name = f"ses-{session:02d}/{FILES[split]}"
            name = find_member(archive, wanted_name, subject)
            if name is None:
                absent.setdefault(session, wanted_name)
            else:
                members[session, split] = name

    whole = [session for session in SESSIONS if session not in absent]
    if not whole:
        raise InputError(
            f"{archive.filename}: holds no session of raw EEG, expected such as {subject}/ses-01/{FILES['train']} and "
            f"{subject}/ses-01/{FILES['test']}; {FETCH_AGAIN}"
        )
    chosen = SESSIONS if wanted == "all" else sorted(set(wanted))
    missing = [session for session in chosen if session not in whole]
    if missing:
        shown = ",".join(map(str, whole))
        raise InputError(
            f"{archive.filename}: session {missing[0]} is not there or not whole (no "
            f"{absent.get(missing[0], f'ses-{missing[0]:02d}')}), and preprocess.sessions is {wanted}: "
            f"-S 'preprocess.sessions=[{shown}]' uses only what the archive has"
        )
    return {(session, split): members[session, split] for session in chosen for split in SPLITS}


def read_channels(archive: zipfile.ZipFile, name: str) -> Channels:
    """The channels of a file, whose EEG goes by unread."""
    where = f"{archive.filename}: {name}"
    with open_member(archive, name) as stream:
        for item in stream_npy(stream, where):
            if isinstance(item, dict):
                return _channels(item, where)
    raise AssertionError("stream_npy ends with a dictionary")


def _channels(fields: Fields, where: str) -> Channels:
    texts = []
    for key in ("ch_names", "ch_types"):
        values = fields.get(key)
        values = values.tolist() if isinstance(values, np.ndarray) else values
        if not isinstance(values, list | tuple) or not all(
            isinstance(v, str) and v.isprintable() for v in values
        ):
            raise InputError(
                f"{where}: {key} is not a list of names; expected the published file; {FETCH_AGAIN}"
            )
        texts.append(tuple(str(value) for value in values))
    names, types = texts
    if len(names) != len(types) or len(set(names)) != len(names):
        raise InputError(
            f"{where}: has {len(set(names))} different ch_names and {len(types)} ch_types, "
            f"expected as many; {FETCH_AGAIN}"
        )
    if types.count("stim") != 1:
        raise InputError(
            f"{where}: has {types.count('stim')} channels of type stim, expected 1, which tells "
            f"the images; {FETCH_AGAIN}"
        )
    sfreq = fields.get("sfreq")
    if not isinstance(sfreq, int | float | np.integer | np.floating) or not 0 < sfreq < math.inf:
        raise InputError(f"{where}: sfreq is no rate in Hz; {FETCH_AGAIN}")
    return Channels(names, types, float(sfreq), where)


def read_rows(
    archive: zipfile.ZipFile, name: str, known: Channels, rows: Sequence[int]
) -> np.ndarray:
    """These rows of a recording, (len(rows), samples) float64."""
    where, values, streamed = f"{archive.filename}: {name}", None, None
    with open_member(archive, name) as stream:
        for item in stream_npy(stream, where):
            if isinstance(item, dict):
                fields = item
            elif streamed is None:
                streamed, values = item, _pick(item, known, rows, where)
            else:
                raise InputError(
                    f"{where}: holds a second large array, expected only {EEG_KEY}; {FETCH_AGAIN}"
                )
    found = fields.get(EEG_KEY)
    if (
        isinstance(found, np.ndarray) and streamed is None
    ):  # it was small, or not stored as the published ones are
        values = _pick(Streamed(found.shape, found.dtype, iter([found])), known, rows, where)
    elif values is None or found is not streamed:
        raise InputError(
            f"{where}: {EEG_KEY} is not an array; expected the published file; {FETCH_AGAIN}"
        )
    channels = _channels(fields, where)
    for what, got, expected in (
        ("ch_names", channels.names, known.names),
        ("ch_types", channels.types, known.types),
        ("sfreq", (f"{channels.sfreq:g}",), (f"{known.sfreq:g}",)),
    ):
        if got != expected:
            raise InputError(
                f"{where}: {what} is {' '.join(got)}, expected as in {known.file}: {' '.join(expected)}; a session of "
                "another recording may be among them: preprocess.sessions can leave it out"
            )
    return values


def _pick(array: Streamed, known: Channels, rows: Sequence[int], where: str) -> np.ndarray:
    shape, dtype, n_rows = array.shape, array.dtype, len(known.names)
    if len(shape) != 2 or shape[0] != n_rows or dtype.kind != "f":
        raise InputError(
            f"{where}: {EEG_KEY} is of shape {shape} and type {dtype}, expected ({n_rows}, "
            f"samples) and floating point; {FETCH_AGAIN}"
        )
    place = {row: i for i, row in enumerate(rows)}
    picked = np.empty((len(rows), shape[1]))
    start = 0
    for block in array.blocks:
        for row, values in enumerate(block, start):
            if row in place:
                if not np.isfinite(values).all():
                    leave_out = "" if row == rows[-1] else "the channel (preprocess.channels) or "
                    raise InputError(
                        f"{where}: channel {known.names[row]} holds NaN or infinite values; leave "
                        f"out {leave_out}the session (preprocess.sessions), or {FETCH_AGAIN}"
                    )
                picked[place[row]] = values
        start += len(block)
    return picked


def find_events(
    stim: np.ndarray, sfreq: float, n_images: int, repetitions: int, where: str
) -> np.ndarray:
    """MNE's events (sample, 0, row of the image from 1), so many of each image shown, by image and then by time."""
    samples = np.flatnonzero(stim)
    values = stim[samples]
    odd = (values != TARGET) & ((values < 1) | (values > n_images) | (values != np.floor(values)))
    if odd.any():
        raise InputError(
            f"{where}: the stim channel is {values[odd][0]:g} at sample {samples[odd][0]}, "
            f"expected 0, {TARGET} or a row of the {n_images} images in the metadata, counted from "
            f"1; {LEAVE_OUT_SESSION}, or, if the two are of different releases, {FETCH_AGAIN}"
        )
    raw = mne.io.RawArray(stim[None], mne.create_info(["stim"], sfreq, "stim"), verbose=False)
    events = mne.find_events(
        raw, "stim", consecutive=True, shortest_event=1, initial_event=True, verbose=False
    )
    events = events[events[:, 2] != TARGET]
    events = events[np.argsort(events[:, 2], kind="stable")]
    images, first, counts = np.unique(events[:, 2], return_index=True, return_counts=True)
    if not len(images) or counts.min() < repetitions:
        which = (
            f"image {images[counts.argmin()]} (from 1) is shown {counts.min()} times"
            if len(images)
            else "none is shown"
        )
        raise InputError(
            f"{where}: of the images, {which}, expected at least {repetitions} times; "
            f"{LEAVE_OUT_SESSION}, or {FETCH_AGAIN}"
        )
    return events[np.arange(len(events)) - np.repeat(first, counts) < repetitions]
