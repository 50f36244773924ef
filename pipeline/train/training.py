"""One training: what it works on, the order of its batches, its history, and its best weights.

Source: the reference recipe in the README. Two deliberate differences: by default, part of the
training concepts is held out and selects the epoch (the recipe selected it on the test set); and
everything random follows from one seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.sections import Train
from pipeline.train.draws import RunSeeds, draw_repetitions, group_repetitions
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.samples import Samples
from pipeline.train.selection import make_galleries

# A spread of 0.3 means a cosine of 0.91 between samples. Runs that learned ended above 0.8
COLLAPSED_SPREAD = 0.3
# A loss of this many times that of chance means that the training diverged
DIVERGED = 10


@dataclass(frozen=True)
class Setup:
    """What models that are trained together have in common.

    `embeddings` are (N, D), or (N, K, D) where `blocks` names K blocks to mix: the gallery that the
    selection compares EEG with. `targets` are the embeddings in the batches: V views of each image,
    (N, V, D) or (N, V, K, D), of which each sample has another one each epoch. Without them the
    batches have `embeddings`.
    """

    samples: Samples
    embeddings: Tensor
    recipe: Train
    device: torch.device
    targets: Tensor | None = None
    blocks: Sequence[str] = ()

    @property
    def sizes(self) -> ModelSizes:
        n_chans, n_times = self.samples.eeg.shape[1:]
        return ModelSizes(
            n_chans,
            n_times,
            self.samples.sfreq,
            self.embeddings.shape[-1],
            self.blocks,
            self.samples.start,
            self.samples.ch_names,
        )

    @property
    def target_views(self) -> Tensor:
        """(N, V, D) or (N, V, K, D): all views of each image; one if there are no `targets`."""
        return self.embeddings[:, None] if self.targets is None else self.targets


@dataclass(frozen=True)
class Partition:
    """The samples of one model, and its seeds: rows to learn from, and rows that select the epoch.

    `selection_rows` are rows of `selection`; without them all of its rows select. Without
    `selection` the last epoch is selected.
    """

    seeds: RunSeeds
    rows: np.ndarray
    selection: Samples | None = None
    selection_rows: np.ndarray | None = None

    @cached_property
    def galleries(self) -> np.ndarray:
        """Rows of `selection` in galleries of the concepts, (G, N); (0, 0) without selection."""
        if self.selection is None:
            return np.empty((0, 0), int)

        subject = self.selection.subject
        rows = np.arange(len(subject)) if self.selection_rows is None else self.selection_rows
        return rows[make_galleries(subject[rows], self.selection.things_concept[rows])]


@dataclass(frozen=True)
class Trained:
    """The model with the weights of the selected epoch, and one row of history an epoch.

    Collapsed: in the last epoch all EEG, or all images, had nearly the same embedding.
    """

    model: ContrastiveModel
    history: pd.DataFrame
    epoch: int
    collapsed: bool


class Training:
    """One model while it is trained: its first weights, the order of its batches, and its history.

    The data of `setup` are on the device. What is random is drawn on the CPU, by generators of this
    model alone.
    """

    def __init__(self, setup: Setup, partition: Partition) -> None:
        self.recipe = setup.recipe
        self.n_views = setup.target_views.shape[1]
        self.image_row = setup.samples.image_row
        self.train_rows = torch.from_numpy(partition.rows)
        self.selects = partition.selection is not None

        torch.manual_seed(partition.seeds.start)
        self.model = ContrastiveModel(setup.sizes, self.recipe)
        self.model.eeg_encoder.load_pretrained(self.recipe.eeg_weights)
        self.model.to(setup.device)
        self._standardise(setup)

        self.generators = {
            "shuffle": torch.Generator().manual_seed(partition.seeds.order),
            "repetitions": torch.Generator().manual_seed(partition.seeds.repetitions),
            "views": torch.Generator().manual_seed(partition.seeds.views),
        }
        self._states = self._generator_states()

        # Rows of an epoch: (n,), or (n, R) where repetitions are averaged
        self.epoch_rows = self.train_rows
        n_repetitions = self.recipe.average_random_repetitions
        if n_repetitions != "none":
            groups = group_repetitions(setup.samples, partition.rows, n_repetitions)
            self.epoch_rows = torch.from_numpy(groups)

        self.history: list[dict[str, float]] = []  # a row an epoch
        self.selected_epoch = 0
        self.failure = ""

    def _standardise(self, setup: Setup) -> None:
        """Fit the model's fixed statistics to the training samples."""
        if self.recipe.standardise_eeg:
            rows = self.train_rows.to(setup.device)
            self.model.standardise(setup.samples.eeg, rows, setup.samples.to_normalise)
        if self.model.block_mix is not None:
            images = self.image_row[self.train_rows].unique()
            self.model.block_mix.standardise(setup.target_views[images].flatten(0, 1))

    def next_order(self) -> tuple[Tensor, Tensor]:
        """Shuffle the samples of the next epoch.

        Returns rows of the EEG, (n,), or (n, R) of repetitions to average, and rows of the targets,
        (n,): view v of image i is in row i * n_views + v. Both are on the CPU.
        """
        self._states = self._generator_states()
        permutation = torch.randperm(len(self.epoch_rows), generator=self.generators["shuffle"])
        eeg_rows = self.epoch_rows[permutation]
        n_repetitions = self.recipe.average_random_repetitions
        if n_repetitions != "none":
            generator = self.generators["repetitions"]
            eeg_rows = draw_repetitions(eeg_rows, n_repetitions, generator)

        # Each training sample draws one view of its image
        n_train = self.train_rows.shape
        view = torch.randint(self.n_views, n_train, generator=self.generators["views"])
        first_view = self.image_row * self.n_views
        target_row = first_view.index_add(0, self.train_rows, view)

        # All repetitions in a row show the same image: the first one says which
        first = eeg_rows if eeg_rows.ndim == 1 else eeg_rows[:, 0]
        return eeg_rows, target_row[first]

    def observe(self, epoch: int, measures: dict[str, float]) -> bool:
        """Add the epoch to the history, and return whether its weights are the best so far."""
        if self.failure:
            return False

        loss = measures["train_loss"]
        chance = math.log(self.recipe.batch_size)
        if not loss <= DIVERGED * chance:  # also where the loss is NaN
            self.failure = (
                f"training diverged in epoch {epoch} (loss {loss:.3g}, chance is {chance:.3g}): "
                "lower train.learning_rate"
            )
            return False

        self.history.append({"epoch": epoch, **measures})
        lowest = min(row["selection_loss"] for row in self.history)
        is_best = not self.selects or measures["selection_loss"] <= lowest
        if is_best:
            self.selected_epoch = epoch
        return is_best

    def result(self, best: dict[str, Tensor]) -> Trained | InputError:
        """The model with the state of its selected epoch, or why there is none."""
        if self.failure:
            return InputError(self.failure)

        self.model.load_state_dict(best)
        collapsed = self.history[-1]["spread"] < COLLAPSED_SPREAD
        history = pd.DataFrame(self.history)
        return Trained(self.model.eval(), history, self.selected_epoch, collapsed)

    def state_dict(self) -> dict[str, Any]:
        """The state from which `next_order` repeats the order that it drew last."""
        return {
            "history": self.history,
            "epoch": self.selected_epoch,
            "failure": self.failure,
            "generators": self._states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
        self.selected_epoch = state["epoch"]
        self.failure = state["failure"]
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())

    def _generator_states(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.generators.items()}
