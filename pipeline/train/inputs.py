"""The files that runs read. A process reads each file once for many runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pipeline.eeg_encoders.table import weight_files
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.images.embeddings import Embeddings, read_embeddings
from pipeline.preprocess.recordings import check_both, check_recordings, find_recordings
from pipeline.sections import Across, BlockChoice, Train
from pipeline.train.protocols import Run, plan, plan_across
from pipeline.train.samples import LoadedEeg


@dataclass(frozen=True)
class HashedFile:
    """A file and its hash, so that a process notices when the file became another one."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "HashedFile":
        return cls(path.resolve(), sha256(path))


def find_subjects(eeg_dir: Path) -> dict[str, HashedFile]:
    """The prepared subjects of a folder, by name.

    InputError where there is none, or they cannot be trained and tested together.
    """
    files = find_recordings(eeg_dir)
    if not files:
        raise InputError(
            f"{eeg_dir}: holds no subject's EEG; run the preprocess stage first "
            "(`dvc repro preprocess`)"
        )
    check_recordings(list(files.values()))
    return {subject: HashedFile.of(path) for subject, path in files.items()}


@dataclass(frozen=True)
class SecondRecording:
    """Where the prepared EEG of the second recording is, and who of both trains and tests."""

    eeg_dir: Path
    across: Across


@dataclass(frozen=True)
class People:
    """The prepared subjects of the first recording, by name, and of the second where it is used."""

    first: Mapping[str, HashedFile]
    second: Mapping[str, HashedFile] = field(default_factory=dict)
    across: Across | None = None

    @property
    def eeg(self) -> dict[str, HashedFile]:
        """The subjects of both recordings, whose names differ."""
        return {**self.first, **self.second}

    def plan(self, protocol: str, seeds: Sequence[int]) -> list[Run]:
        """The runs of a protocol; InputError where it does not fit these people."""
        if protocol != "across":
            return plan(protocol, list(self.first), list(seeds))
        if self.across is None:
            raise InputError(
                "train.protocol is across, and there is no second recording: name it in "
                "across.dataset"
            )
        return plan_across(self.across, list(self.first), list(self.second), seeds)


def find_people(eeg_dir: Path, protocol: str, second: SecondRecording | None) -> People:
    """The prepared subjects that a protocol uses: those of `second` of the protocol across alone.

    InputError as `find_subjects`, and where the two recordings do not fit together.
    """
    first = find_subjects(eeg_dir)
    if protocol != "across" or second is None:
        return People(first)

    if second.across.dataset == "none":
        raise InputError(
            "train.protocol is across, and across.dataset is none: name the second recording there"
        )
    others = find_subjects(second.eeg_dir)
    check_both(next(iter(first.values())).path, next(iter(others.values())).path)
    return People(first, others, second.across)


def hash_eeg_weights(recipe: Train) -> list[str]:
    """A hash of each file that a pretrained EEG encoder starts from; empty for any other encoder.

    InputError where a file is missing.
    """
    files = weight_files(recipe.eeg_encoder, recipe.eeg_weights)
    return [_hash_of_version(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@lru_cache(maxsize=8)
def _hash_of_version(path: Path, size: int, mtime_ns: int) -> str:
    """A study asks once a trial; size and time tell whether the file is still that one."""
    return sha256(path)


def training_files(runs: Iterable[Run], eeg: Mapping[str, HashedFile]) -> tuple[HashedFile, ...]:
    """The training EEG that a process holds for these runs.

    One subject's file if all runs train on that subject; otherwise all subjects' files, which serve
    every fold.
    """
    subjects = set().union(*(run.trained_on for run in runs))
    return tuple(eeg[subject] for subject in (subjects if len(subjects) == 1 else eeg))


@lru_cache(maxsize=1)
def training_eeg(files: tuple[HashedFile, ...]) -> LoadedEeg:
    """This process keeps the last one for its next runs."""
    return LoadedEeg([file.path for file in files], "train")


@lru_cache(maxsize=1)
def averaged_test_eeg(files: tuple[HashedFile, ...]) -> LoadedEeg:
    """The repetitions of an image are averaged. This process keeps the last one."""
    return LoadedEeg([file.path for file in files], "test")


def cached_embeddings(file: HashedFile, recipe: Train) -> Embeddings:
    """What the recipe learns and is tested on; this process keeps the last few."""
    return _read_embeddings(file, recipe.block, recipe.views, recipe.views_in_gallery)


@lru_cache(maxsize=4)
def _read_embeddings(
    file: HashedFile, block: BlockChoice | Literal["mix"], views: str, views_in_gallery: str
) -> Embeddings:
    return read_embeddings(file.path, block, views, views_in_gallery)
