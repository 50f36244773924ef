"""The epochs of all of a subject's files, one file after the other, written to a temporary file."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np
import pandas as pd

from pipeline.datasets.entry import Layout, Modality
from pipeline.datasets.mne_files import faults_as_input_errors
from pipeline.datasets.own.opened import LOOK_AGAIN, EpochsFile, RawFile, open_file
from pipeline.datasets.own.subject_folder import SubjectFolder
from pipeline.datasets.scratch import Scratch
from pipeline.datasets.things_meg import sensor_positions
from pipeline.errors import InputError
from pipeline.sections import Preprocess

POSITIONS_FROM = 4  # sensors; fewer span no sphere


def read_files(
    subject: SubjectFolder,
    trials: pd.DataFrame,
    preprocess: Preprocess,
    path: Path,
    stack: ExitStack,
) -> tuple[Layout, Scratch, list[str]]:
    """Write the epoch of each trial to a temporary file, in the order of `trials`.

    Returns also what all files share, and caveats. `stack` closes the temporary file.
    """
    files = trials["file"].unique().tolist()
    recording = open_file(subject, files[0], preprocess)
    layout = _layout(recording)
    n_bytes = len(trials) * len(layout.ch_names) * len(layout.times) * 8
    scratch = stack.enter_context(Scratch(n_bytes, f"the epochs of {path.name}"))

    caveats: list[str] = []
    for file in files:
        if file != files[0]:
            first_path = subject.files[files[0]].path
            del recording  # two EEGLAB files may not fit into memory
            recording = open_file(subject, file, preprocess, layout.ch_names, first_path)
            _require_times(recording, layout, first_path)

        positions = trials.loc[trials["file"] == file, "position"].to_numpy()
        caveats += recording.caveats + recording.caveats_of_trials(positions)
        for eeg in _checked(recording, positions):
            scratch.append(eeg)
    return layout, scratch, caveats


def _checked(recording: EpochsFile | RawFile, positions: np.ndarray) -> Iterator[np.ndarray]:
    """The epochs at these positions.

    Raises InputError for damage, and for values that are not finite.
    """
    n_read = 0
    with faults_as_input_errors(recording.path, "epochs", LOOK_AGAIN):
        for eeg in recording.read(positions):
            wrong = ~np.isfinite(eeg).all(axis=(1, 2))
            if wrong.any():
                position = positions[n_read + wrong.argmax()]
                kind = "epoch" if isinstance(recording, EpochsFile) else "epoch at sample"
                raise InputError(
                    f"{recording.path}: the {kind} {position} (from 0) holds NaN or infinite "
                    "values; leave the trial out, or mend the file"
                )
            n_read += len(eeg)
            yield eeg


def _require_times(recording: EpochsFile | RawFile, layout: Layout, first_path: str) -> None:
    """Raises InputError where a file has other times than the subject's first one."""
    times = recording.times
    if len(times) != len(layout.times) or np.abs(times - layout.times).max() > layout.step / 100:
        raise InputError(
            f"{recording.path}: has {len(times)} samples from {times[0]:g} to {times[-1]:g} s, and "
            f"{first_path} has {len(layout.times)} from {layout.times[0]:g} to "
            f"{layout.times[-1]:g} s; set preprocess.sfreq to one rate for all, or "
            "preprocess.window to one that all have"
        )


def _layout(recording: EpochsFile | RawFile) -> Layout:
    info = mne.pick_info(recording.info, recording.picks, verbose="error")
    modality: Modality = "EEG" if "eeg" in info.get_channel_types() else "MEG"
    is_in_10_05 = {name.lower() for name in info.ch_names} <= _names_of_10_05()
    positions = None if is_in_10_05 else _positions(info, recording.path)
    return Layout(tuple(info.ch_names), recording.times, positions, modality)


def _names_of_10_05() -> set[str]:
    montage = mne.channels.make_standard_montage("standard_1005")
    return {name.lower() for name in montage.ch_names}


def _positions(info: "mne.Info", path: Path) -> np.ndarray | None:
    """See `Layout.sensor_positions`. None where a sensor has no position, or they are too few."""
    xyz = np.array([channel["loc"][:3] for channel in info["chs"]])
    if len(xyz) < POSITIONS_FROM or not np.isfinite(xyz).all() or np.ptp(xyz, axis=0).min() == 0:
        return None
    return sensor_positions(info, str(path))
