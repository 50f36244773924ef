"""Where runs are trained: how many processes at once, and which runs go together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.compute.devices import pick_device
from pipeline.compute.workers import max_local_workers
from pipeline.errors import InputError
from pipeline.preprocess.recordings import read_shape
from pipeline.sections import Runs, Train
from pipeline.train.inputs import HashedFile, training_files
from pipeline.train.model import stackable
from pipeline.train.protocols import Run

RunLike = TypeVar("RunLike")

# Memory of a process without its EEG: torch, the model and its activations
RUN_BYTES = 1_000_000_000


def on_gpus(recipe: Train, placement: Runs) -> bool:
    """Whether runs go on GPUs. On other machines that is known only if `train.device` is cuda."""
    if placement.where != "local":
        return recipe.device == "cuda"
    return pick_device(recipe.device).type == "cuda"


def how_many(
    placement: Runs, runs: Sequence[Run], eeg: Mapping[str, HashedFile], gpus: bool
) -> int:
    """How many processes work at once. A scheduler's address ignores the number: it has its own.

    InputError where SLURM is to be used and `runs.workers` is auto.
    """
    if placement.workers != "auto":
        return min(placement.workers, len(runs))
    if placement.where == "slurm":
        raise InputError(
            "runs.workers is auto and runs.where slurm: set runs.workers to the most jobs "
            "you want at once"
        )
    if len(runs) == 1:
        return 1

    # A GPU trains all runs together, a CPU one run at a time
    groups = [runs] if gpus else [[run] for run in runs]
    file_sets = {training_files(group, eeg) for group in groups}
    eeg_bytes = max(sum(_training_bytes(file.path) for file in files) for files in file_sets)
    return max_local_workers(eeg_bytes + RUN_BYTES, len(runs), on_gpus=gpus)


def make_groups(
    runs: Sequence[RunLike], recipe: Train, n_workers: int, gpus: bool
) -> list[tuple[RunLike, ...]]:
    """Group runs that differ in seed and fold alone: a process trains a group together.

    On GPUs there are as many groups as workers. On a CPU one model takes all that the CPU has
    (`python -m benchmarks.train`), so that each run is a group.
    """
    size = math.ceil(len(runs) / n_workers) if gpus and stackable(recipe) else 1
    return [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]


def name_of_group(runs: Sequence[Run]) -> str:
    return runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def _training_bytes(path: Path) -> int:
    shape, dtype = read_shape(path, "train", average=False)
    return math.prod(shape) * min(dtype.itemsize, 4)
