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

Place = Literal["first", "second"]  # of a recording, as in `study.recordings`
PLACES: tuple[Place, ...] = ("first", "second")


@dataclass(frozen=True)
class Recording:
    """The name of its dataset, and the prepared file of each subject."""

    dataset: str
    eeg: Mapping[str, HashedFile]


def used_recordings(study: Study) -> tuple[Place, ...]:
    """Which recordings some cell trains on or tests: of the protocol across both."""
    if "across" in study.protocols:
        return PLACES
    return tuple(place for place in PLACES if place in study.recordings)


def tested_recording(protocol: str, trained: Place) -> Place:
    """The recording whose people test the models of a cell that is trained on `trained`."""
    if protocol != "across":
        return trained
    return "second" if trained == "first" else "first"


def find_recordings_of(
    study: Study, datasets: Mapping[Place, str], folders: Mapping[Place, Path | None]
) -> dict[Place, Recording]:
    """The recordings that the study uses; the folder of another one is not read.

    `datasets` and `folders` are the names and the prepared files of both.
    InputError as `find_subjects`, where a folder that is used is None, and where two recordings do
    not fit together.
    """
    recordings: dict[Place, Recording] = {}
    for place in used_recordings(study):
        folder = folders[place]
        if folder is None:
            raise InputError(
                f"the study uses the {place} recording, and no folder of its prepared EEG is given"
            )
        recordings[place] = Recording(datasets[place], find_subjects(folder))

    if len(recordings) == len(PLACES):
        first, second = (next(iter(recordings[place].eeg.values())).path for place in PLACES)
        check_both(first, second)
    return recordings


def plan_runs(
    protocol: str,
    trained: Place,
    recordings: Mapping[Place, Recording],
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
    first, second = (list(recordings[place].eeg) for place in PLACES)
    return plan_across(direction, first, second, seeds)
