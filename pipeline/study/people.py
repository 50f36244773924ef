"""The recordings that a study uses: whose people train in a cell, and whose people are tested.

The second recording is that of `across` in params.yaml. The study takes its name and `models` from
there, and not `train_on` and `test_on`: `study.recordings` says who trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.preprocess.recordings import check_both
from pipeline.sections import Across, Study
from pipeline.train.inputs import HashedFile, find_subjects
from pipeline.train.protocols import Run, plan, plan_across

RecordingKey = Literal["first", "second"]  # as in `study.recordings`
RECORDING_KEYS: tuple[RecordingKey, ...] = ("first", "second")


@dataclass(frozen=True)
class StudyRecording:
    """The name of its dataset, and the prepared file of each subject."""

    dataset: str
    eeg: Mapping[str, HashedFile]


def used_recordings(study: Study) -> tuple[RecordingKey, ...]:
    """Which recordings some cell trains on or tests: of the protocol across both."""
    if "across" in study.protocols:
        return RECORDING_KEYS
    return tuple(key for key in RECORDING_KEYS if key in study.recordings)


def tested_recording(protocol: str, trained: RecordingKey) -> RecordingKey:
    """The recording whose people test the models of a cell that is trained on `trained`."""
    if protocol != "across":
        return trained
    return "second" if trained == "first" else "first"


def find_study_recordings(
    study: Study, datasets: Mapping[RecordingKey, str], folders: Mapping[RecordingKey, Path | None]
) -> dict[RecordingKey, StudyRecording]:
    """The recordings that the study uses; the folder of another one is not read.

    `datasets` and `folders` are the names and the prepared files of both.
    InputError as `find_subjects`, where a folder that is used is None, and where two recordings do
    not fit together.
    """
    recordings: dict[RecordingKey, StudyRecording] = {}
    for key in used_recordings(study):
        folder = folders[key]
        if folder is None:
            raise InputError(
                f"the study uses the {key} recording, and no folder of its prepared EEG is given"
            )
        recordings[key] = StudyRecording(datasets[key], find_subjects(folder))

    if len(recordings) == len(RECORDING_KEYS):
        first, second = (next(iter(recordings[key].eeg.values())).path for key in RECORDING_KEYS)
        check_both(first, second)
    return recordings


def plan_runs(
    protocol: str,
    trained: RecordingKey,
    recordings: Mapping[RecordingKey, StudyRecording],
    across: Across,
    seeds: Sequence[int],
) -> list[Run]:
    """The runs of a protocol whose models are trained on the recording `trained`.

    InputError as `plan`.
    """
    if protocol != "across":
        return plan(protocol, list(recordings[trained].eeg), list(seeds))

    tested = tested_recording(protocol, trained)
    direction = across.model_copy(update={"train_on": trained, "test_on": tested})
    first, second = (list(recordings[key].eeg) for key in RECORDING_KEYS)
    return plan_across(direction, first, second, seeds)
