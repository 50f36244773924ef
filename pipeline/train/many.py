"""Many trainings: those that go together, in groups that fit into the device's memory."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.train.loop import train_together
from pipeline.train.model import stackable
from pipeline.train.training import Partition, Setup, Trained


def train_many(
    setup: Setup,
    partitions: Sequence[Partition],
    states: Path,
    progress: Callable[[], None] = lambda: None,
) -> list[Trained | InputError]:
    """Train a model for each partition; of each the result, or why it failed.

    What fits into memory is found by trying: a group that does not fit is halved. `states` is the
    folder for the states of interrupted trainings.
    """
    results: dict[int, Trained | InputError] = {}
    groups = _group(setup, partitions)
    while groups:
        group = groups.pop(0)
        members = [partitions[i] for i in group]
        state = states / f"{len(group)}-from-{group[0]}.pt"
        trained = _train_if_it_fits(setup, members, state, progress)

        if trained is not None:
            results |= zip(group, trained, strict=True)
        elif len(group) == 1:
            results[group[0]] = InputError(
                f"{setup.device} has too little memory for one model: lower train.batch_size, "
                "or set train.device to cpu"
            )
        else:
            half = len(group) // 2
            tqdm.write(
                f"{setup.device} has too little memory for {len(group)} models at once: "
                f"going on with {half}"
            )
            groups = [group[:half], group[half:], *groups]
    return [results[i] for i in range(len(partitions))]


def train(
    setup: Setup,
    partition: Partition,
    resume: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one model; InputError where its loss explodes."""
    [result] = train_together(setup, [partition], resume, progress)
    if isinstance(result, InputError):
        raise result
    return result


def _group(setup: Setup, partitions: Sequence[Partition]) -> list[list[int]]:
    """Numbers of the partitions that can be trained at once: as many rows and images each."""
    if not stackable(setup.recipe):
        return [[i] for i in range(len(partitions))]

    groups: dict[tuple[int, int], list[int]] = {}
    for i, partition in enumerate(partitions):
        n_images = len(setup.samples.image_row[partition.rows].unique())
        groups.setdefault((len(partition.rows), n_images), []).append(i)
    return list(groups.values())


def _train_if_it_fits(
    setup: Setup, partitions: Sequence[Partition], state: Path, progress: Callable[[], None]
) -> list[Trained | InputError] | None:
    """None where the device has too little memory."""
    if setup.device.type == "cuda":
        # LambdaLR and its optimizer form a reference cycle, which keeps the memory of the models
        # before until it is collected
        gc.collect()
        torch.cuda.empty_cache()
    try:
        return train_together(setup, partitions, state, progress)
    except torch.OutOfMemoryError:
        return None
