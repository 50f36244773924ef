"""One training: what it works on, the order of its batches, its history, and its best weights.

Source: the reference recipe in the README. Two deliberate differences: by default, part of the
training concepts is held out and selects the epoch (the recipe selected it on the test set); and
everything random follows from one seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.retrieval import rank_of_match
from pipeline.sections import Train
from pipeline.train.draws import RunSeeds, draw_repetitions, group_repetitions
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.projection import measure_spread, project_eeg
from pipeline.train.samples import Samples
from pipeline.train.selection import lowest_loss, make_galleries, mean_loss

# Samples whose embeddings tell whether a model has collapsed
N_PROBES = 256
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
    """One model while it is trained: its batches, its history, and its best weights so far.

    The data of `setup` and the selection of the partition are on the device.
    """

    def __init__(self, setup: Setup, partition: Partition) -> None:
        target_views = setup.target_views
        self.recipe = setup.recipe
        self.embeddings = setup.embeddings
        self.device = setup.device
        self.n_views = target_views.shape[1]
        self.image_row = setup.samples.image_row
        self.train_rows = torch.from_numpy(partition.rows).to(self.device)

        torch.manual_seed(partition.seeds.start)
        self.model = ContrastiveModel(setup.sizes, self.recipe).to(self.device)
        self._standardise(setup.samples.eeg, target_views)

        self.generators = {
            "shuffle": torch.Generator().manual_seed(partition.seeds.order),
            "repetitions": torch.Generator().manual_seed(partition.seeds.repetitions),
            "views": torch.Generator().manual_seed(partition.seeds.views),
        }

        # Rows of an epoch: (n,), or (n, R) where repetitions are averaged
        self.epoch_rows = self.train_rows
        n_repetitions = self.recipe.average_random_repetitions
        if n_repetitions != "none":
            groups = group_repetitions(setup.samples, partition.rows, n_repetitions)
            self.epoch_rows = torch.from_numpy(groups).to(self.device)

        probe_rows = self.train_rows[:N_PROBES]
        self.probe_eeg = setup.samples.eeg[probe_rows].float()
        self.probe_embeddings = setup.embeddings[self.image_row[probe_rows]]

        self.selection = partition.selection
        self._prepare_selection(partition)

        self.history: list[dict[str, float]] = []  # a row an epoch
        self.best: dict[str, Tensor] = {}  # the weights in the selected epoch
        self.selected_epoch = 0
        self.failure = ""

    def _standardise(self, eeg: Tensor, target_views: Tensor) -> None:
        """Fit the model's fixed statistics to the training samples."""
        if self.recipe.standardise_eeg:
            self.model.standardise(eeg, self.train_rows)
        if self.model.block_mix is not None:
            images = self.image_row[self.train_rows].unique()
            self.model.block_mix.standardise(target_views[images].flatten(0, 1))

    def _prepare_selection(self, partition: Partition) -> None:
        if self.selection is None:
            return
        rows = partition.selection_rows
        if rows is None:
            rows = np.arange(len(self.selection.subject))

        self.selection_rows = torch.from_numpy(rows).to(self.device)
        self.galleries = make_galleries(
            self.selection.subject[rows], self.selection.things_concept[rows]
        )

    def next_order(self) -> tuple[Tensor, Tensor]:
        """Shuffle the samples of the next epoch.

        Returns rows of the EEG, (n,), or (n, R) of repetitions to average, and rows of the targets,
        (n,): view v of image i is in row i * n_views + v.
        """
        permutation = torch.randperm(len(self.epoch_rows), generator=self.generators["shuffle"])
        eeg_rows = self.epoch_rows[permutation.to(self.device)]
        n_repetitions = self.recipe.average_random_repetitions
        if n_repetitions != "none":
            generator = self.generators["repetitions"]
            eeg_rows = draw_repetitions(eeg_rows, n_repetitions, generator)

        # Each training sample draws one view of its image
        n_train = self.train_rows.shape
        view = torch.randint(self.n_views, n_train, generator=self.generators["views"])
        first_view = self.image_row * self.n_views
        target_row = first_view.index_add(0, self.train_rows, view.to(self.device))

        # All repetitions in a row show the same image: the first one says which
        first = eeg_rows if eeg_rows.ndim == 1 else eeg_rows[:, 0]
        return eeg_rows, target_row[first]

    def observe(self, epoch: int, loss: float, averaged: ContrastiveModel) -> None:
        """Add the epoch to the history. Keep the averaged weights if they are the best so far."""
        chance = math.log(self.recipe.batch_size)
        if not loss <= DIVERGED * chance:  # also where the loss is NaN
            self.failure = (
                f"training diverged in epoch {epoch} (loss {loss:.3g}, chance is {chance:.3g}): "
                "lower train.learning_rate"
            )
            return

        row = {
            "epoch": epoch,
            "train_loss": loss,
            "spread": measure_spread(averaged, self.probe_eeg, self.probe_embeddings),
        }
        row |= self._score(averaged)
        for block, weight in averaged.block_weights().items():
            row[f"weight_of_block_{block}"] = weight
        self.history.append(row)

        lowest = min(past["selection_loss"] for past in self.history)
        if self.selection is None or row["selection_loss"] <= lowest:
            self.best = {name: value.clone() for name, value in averaged.state_dict().items()}
            self.selected_epoch = epoch

    @torch.inference_mode()
    def _score(self, model: ContrastiveModel) -> dict[str, float]:
        """Mean loss and top-1 accuracy over the galleries; NaN without selection."""
        if self.selection is None:
            return {"selection_loss": math.nan, "selection_top1": math.nan}

        image_rows = self.selection.image_row[self.selection_rows]
        images = model.eval().embed_image(self.embeddings[image_rows])
        responses = project_eeg(model, self.selection.eeg, self.selection_rows)
        cosines = [responses[rows] @ images[rows].T for rows in self.galleries]
        similarity = torch.stack(cosines)  # (G, N, N)

        if self.recipe.selection_temperature == "fitted":
            loss = lowest_loss(similarity)
        else:
            loss = mean_loss(similarity, model.logit_scale.item())
        top1 = (rank_of_match(similarity) == 1).double().mean().item()
        return {"selection_loss": loss, "selection_top1": top1}

    def result(self) -> Trained | InputError:
        """The model at its selected epoch, or why there is none."""
        if self.failure:
            return InputError(self.failure)

        self.model.load_state_dict(self.best)
        collapsed = self.history[-1]["spread"] < COLLAPSED_SPREAD
        history = pd.DataFrame(self.history)
        return Trained(self.model.eval(), history, self.selected_epoch, collapsed)

    def state_dict(self) -> dict[str, Any]:
        generators = {name: generator.get_state() for name, generator in self.generators.items()}
        return {
            "history": self.history,
            "best": self.best,
            "epoch": self.selected_epoch,
            "failure": self.failure,
            "generators": generators,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
        self.best = state["best"]
        self.selected_epoch = state["epoch"]
        self.failure = state["failure"]
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
