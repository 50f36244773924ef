"""Many trainings: those that go together, in groups that fit into the device's memory."""

import gc
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.train.loop import train_together
from pipeline.train.model import stackable
from pipeline.train.training import Partition, Setup, Trained

# The share of a GPU's memory that a group may take by the estimate: the rest are gaps in it
SHARE_OF_MEMORY = 0.85
FEW = 3  # models that are tried in order to know what one takes

BYTES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def train_many(
    setup: Setup,
    partitions: Sequence[Partition],
    states: Path,
    progress: Callable[[], None] = lambda: None,
) -> list[Trained | InputError]:
    """Train a model for each partition; of each the result, or why it failed.

    On a GPU a group is as large as its memory allows, by what few models take. A group that does
    not fit after all is halved. `states` is the folder for the states of interrupted trainings.
    """
    results: dict[int, Trained | InputError] = {}
    groups = [
        part
        for group in _group(setup, partitions)
        for part in _split(group, _how_many_fit(setup, [partitions[i] for i in group]))
    ]
    while groups:
        group = groups.pop(0)
        members = [partitions[i] for i in group]
        state = states / f"{len(group)}-from-{group[0]}.pt"
        try:
            trained = _train(setup, members, state, progress)
            results |= zip(group, trained, strict=True)
        except _TooLittleMemory as error:
            if len(group) == 1:
                results[group[0]] = InputError(
                    f"{setup.device} has too little memory for one model: its next {error} do not "
                    "fit; lower train.batch_size, or set train.device to cpu"
                )
                continue

            half = len(group) // 2
            tqdm.write(
                f"{setup.device} has too little memory for {len(group)} models at once: "
                f"going on with {half}"
            )
            groups = [part for large in (group, *groups) for part in _split(large, half)]
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
    """Numbers of the partitions that can be trained at once.

    They have as many rows and images each, and galleries of one size from the same samples.
    """
    if not stackable(setup.recipe):
        return [[i] for i in range(len(partitions))]

    groups: dict[tuple[object, ...], list[int]] = {}
    for i, partition in enumerate(partitions):
        n_images = len(setup.samples.image_row[partition.rows].unique())
        gallery = id(partition.selection), partition.galleries.shape
        groups.setdefault((len(partition.rows), n_images, gallery), []).append(i)
    return list(groups.values())


def _split(group: list[int], n_fitting: int) -> list[list[int]]:
    """The same in as few parts as possible, which differ by one at most."""
    n_parts = math.ceil(len(group) / n_fitting)
    ends = [round(len(group) * part / n_parts) for part in range(n_parts + 1)]
    return [group[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _how_many_fit(setup: Setup, partitions: Sequence[Partition]) -> int:
    """How many of these models a GPU's memory holds at once, by an epoch of one and of `FEW`."""
    n = len(partitions)
    if setup.device.type != "cuda" or n <= FEW:
        return n
    try:
        of_one, of_few = (_peak_memory(setup, partitions[:few]) for few in (1, FEW))
    except _TooLittleMemory:
        return 1

    free, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.get_per_process_memory_fraction() * total
    limit = min(allowed, free + torch.cuda.memory_reserved())
    of_each = (of_few - of_one) / (FEW - 1)
    if of_each <= 0:  # too small to be seen, as torch takes memory in blocks
        return n
    n_fitting = 1 + math.floor((SHARE_OF_MEMORY * limit - of_one) / of_each)
    return min(n, max(1, n_fitting))


def _peak_memory(setup: Setup, partitions: Sequence[Partition]) -> int:
    """The bytes of a GPU that torch holds for an epoch of these models, data included."""
    _free_memory(setup.device)
    torch.cuda.reset_peak_memory_stats(setup.device)
    one_epoch = setup.recipe.model_copy(update={"epochs": 1})
    _train(replace(setup, recipe=one_epoch), partitions, None, lambda: None)
    return torch.cuda.max_memory_reserved(setup.device)


class _TooLittleMemory(Exception):
    """The memory of the device does not suffice; the message is what was asked for, in GB."""


def _train(
    setup: Setup,
    partitions: Sequence[Partition],
    state: Path | None,
    progress: Callable[[], None],
) -> list[Trained | InputError]:
    """`train_together`; _TooLittleMemory where the device has too little."""
    _free_memory(setup.device)
    try:
        return train_together(setup, partitions, state, progress)
    except RuntimeError as error:  # of a CPU torch has no kind of error for it
        asked_for = re.search(r"tried to allocate ([\d.]+) (\w+)", str(error), re.IGNORECASE)
        if asked_for is None:
            raise
        number, unit = asked_for.groups()
        raise _TooLittleMemory(f"{float(number) * BYTES[unit] / 1e9:.2g} GB") from None


def _free_memory(device: torch.device) -> None:
    """Free what trainings before have left on a GPU.

    There a captured step and its models refer to each other: they keep their memory until they are
    collected.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
