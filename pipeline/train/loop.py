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
from torch import Tensor

from pipeline.compute.devices import use_precision
from pipeline.errors import InputError
from pipeline.train.measures import Measures
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

    The selected epoch is the one with the lowest loss on the selection, or the last. Partitions
    have as many rows each, and galleries of one size from the same selection; the recipe of more
    than one is `stackable`. A model whose loss explodes gives an InputError, and the others go on.

    The same inputs, seeds, device and number of threads give the same weights to the last bit, also
    after an interruption: the state is saved to `resume`, and a later call goes on from there.
    `progress` is called once an epoch and model.
    """
    recipe = setup.recipe
    use_precision(recipe.precision, setup.device)
    setup, selection = _to_device(setup, partitions[0].selection)
    trainings = [Training(setup, partition) for partition in partitions]
    stack = _make_stack(setup, partitions, trainings)
    measures = Measures(setup, partitions, selection)

    epoch = 0
    if resume is not None and resume.exists():
        epoch = load_state(resume, setup.device, stack, trainings)
    for _ in range(epoch * len(trainings)):
        progress()

    save_after = 0.0  # s of the monotonic clock
    order = _next_order(trainings, setup.device)
    while epoch < recipe.epochs and not all(training.failure for training in trainings):
        epoch += 1
        losses = stack.epoch(*order)
        # While the device is at work
        order = _next_order(trainings, setup.device)

        rows = zip(trainings, measures.of(stack, losses), strict=True)
        is_best = [training.observe(epoch, row) for training, row in rows]
        stack.keep(torch.tensor(is_best, device=setup.device))

        is_due = time.monotonic() > save_after or epoch == recipe.epochs
        if resume is not None and is_due and not all(training.failure for training in trainings):
            started = time.monotonic()
            save_state(resume, epoch, stack, trainings)
            seconds = time.monotonic() - started
            save_after = time.monotonic() + seconds / SAVING_SHARE
        for _ in trainings:
            progress()

    return [training.result(stack.best(m)) for m, training in enumerate(trainings)]


def _to_device(setup: Setup, selection: Samples | None) -> tuple[Setup, Samples | None]:
    """The same with all data on the device, the samples that both use once."""
    samples = setup.samples.to(setup.device)
    on_device = replace(
        setup,
        samples=samples,
        embeddings=setup.embeddings.to(setup.device),
        targets=None if setup.targets is None else setup.targets.to(setup.device),
    )
    if selection is None or selection is setup.samples:
        return on_device, samples if selection else None
    return on_device, selection.to(setup.device)


def _next_order(trainings: Sequence[Training], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows of EEG and targets of all models, (M, n) both or (M, n, R), on their way there."""
    orders = [training.next_order() for training in trainings]
    eeg_rows, target_rows = (torch.stack(rows) for rows in zip(*orders, strict=True))
    if device.type == "cuda":  # from pinned memory a copy does not wait for the device
        eeg_rows = eeg_rows.pin_memory()
        target_rows = target_rows.pin_memory()
    return eeg_rows.to(device, non_blocking=True), target_rows.to(device, non_blocking=True)


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
        to_normalise=setup.samples.to_normalise,
    )
    # A model that is not stackable draws from the global generator
    torch.manual_seed(dropout_seeds[0])
    return stack
