"""The training loop: EEG encoders against cached image embeddings, to the selected epoch.

All data stay on the device. Many models are trained at once where that pays (`stack`).
`plain.py` is the same method on one page.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.compute.devices import use_precision
from pipeline.errors import InputError
from pipeline.train.samples import Samples
from pipeline.train.stack import Stack
from pipeline.train.state import load_state, save_state
from pipeline.train.training import Partition, Setup, Trained, Training

# The largest share of the time that goes into saving the state
SAVING_SHARE = 0.05


def train_together(
    setup: Setup,
    partitions: Sequence[Partition],
    resume: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Trained | InputError]:
    """Train a model for each partition at once, and select an epoch of each.

    The selected epoch is the one with the lowest loss on the selection, or the last. All partitions
    have as many rows, and the recipe of more than one is `stackable`. A model whose loss explodes
    gives an InputError, and the others go on.

    The same inputs, seeds, device and number of threads give the same weights to the last bit, also
    after an interruption: the state is saved to `resume`, and a later call goes on from there.
    `progress` is called once an epoch and model.
    """
    recipe = setup.recipe
    use_precision(recipe.precision, setup.device)
    setup, partitions = _to_device(setup, partitions)
    trainings = [Training(setup, partition) for partition in partitions]
    stack = _make_stack(setup, partitions, trainings)

    epoch = 0
    if resume is not None and resume.exists():
        epoch = load_state(resume, setup.device, stack, trainings)
    for _ in range(epoch * len(trainings)):
        progress()

    save_after = 0.0  # s of the monotonic clock
    while epoch < recipe.epochs and not all(training.failure for training in trainings):
        epoch += 1
        eeg_rows, target_rows = zip(*(training.next_order() for training in trainings), strict=True)
        losses = stack.epoch(torch.stack(eeg_rows), torch.stack(target_rows))

        for m, training in enumerate(trainings):
            if not training.failure:
                training.observe(epoch, losses[m], stack.averaged(m))

        is_due = time.monotonic() > save_after or epoch == recipe.epochs
        if resume is not None and is_due and not all(training.failure for training in trainings):
            started = time.monotonic()
            save_state(resume, epoch, stack, trainings)
            seconds = time.monotonic() - started
            save_after = time.monotonic() + seconds / SAVING_SHARE
        for _ in trainings:
            progress()

    return [training.result() for training in trainings]


def _to_device(setup: Setup, partitions: Sequence[Partition]) -> tuple[Setup, list[Partition]]:
    """The same with all data on the device; samples that several share are moved once."""
    moved: dict[int, Samples] = {}

    def move(samples: Samples) -> Samples:
        if id(samples) not in moved:
            moved[id(samples)] = samples.to(setup.device)
        return moved[id(samples)]

    targets = None if setup.targets is None else setup.targets.to(setup.device)
    embeddings = setup.embeddings.to(setup.device)
    on_device = replace(setup, samples=move(setup.samples), embeddings=embeddings, targets=targets)
    return on_device, [
        replace(part, selection=None if part.selection is None else move(part.selection))
        for part in partitions
    ]


def _make_stack(
    setup: Setup, partitions: Sequence[Partition], trainings: Sequence[Training]
) -> Stack:
    dropout_seeds = [partition.seeds.dropout for partition in partitions]
    n_samples = len(trainings[0].epoch_rows)
    stack = Stack(
        [training.model for training in trainings],
        setup.recipe,
        n_steps=math.ceil(n_samples / setup.recipe.batch_size),
        eeg=setup.samples.eeg,
        targets=setup.target_views.flatten(0, 1),
        generators=[torch.Generator(setup.device).manual_seed(seed) for seed in dropout_seeds],
    )
    # A model that is not stackable draws from the global generator
    torch.manual_seed(dropout_seeds[0])
    return stack
