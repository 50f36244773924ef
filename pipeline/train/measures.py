"""What is measured of each model after an epoch: of M models at once, with one wait for the device.

- `spread`: how far projected EEG, and projected images, lie from their mean: the smaller of both.
  The root mean square distance of unit vectors from their mean is 1 where they point in all
  directions, 0 where all are the same.
- `selection_loss` and `selection_top1`: over the galleries of the held-out samples; NaN where none
  are held out.
- `weight_of_block_<block>`, where blocks are mixed.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.retrieval import rank_of_match
from pipeline.train.samples import Samples
from pipeline.train.selection import lowest_loss, mean_loss
from pipeline.train.stack import Stack
from pipeline.train.training import Partition, Setup

# Samples whose embeddings tell whether a model has collapsed
N_PROBES = 256


class Measures:
    """Measures M models, whose partitions share one `selection`.

    The data of `setup` are on its device, and those of `selection`, if there is one.
    """

    def __init__(
        self, setup: Setup, partitions: Sequence[Partition], selection: Samples | None
    ) -> None:
        self._setup = setup
        self._selection = selection

        probes = np.stack([partition.rows[:N_PROBES] for partition in partitions])
        self._probes = self._rows(setup.samples, probes)  # (M, n)
        if selection is not None:
            galleries = np.stack([partition.galleries for partition in partitions])
            self._gallery_shape = galleries.shape[1:]  # (G, N)
            self._galleries = self._rows(selection, galleries.reshape(len(galleries), -1))

    def _rows(self, samples: Samples, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of the EEG, and rows of the embeddings, both on the device."""
        eeg_rows = torch.from_numpy(rows)
        image_rows = samples.image_row[eeg_rows]
        return eeg_rows.to(self._setup.device), image_rows.to(self._setup.device)

    @torch.inference_mode()
    def of(self, stack: Stack, losses: Tensor) -> list[dict[str, float]]:
        """The measures of each model, by the moving average of its weights; `losses` are (M,)."""
        spread = self._spread(stack)
        missing = torch.full_like(spread, math.nan)
        loss, top1 = (missing, missing) if self._selection is None else self._score(stack)
        measures = {
            "train_loss": losses,
            "spread": spread,
            "selection_loss": loss,
            "selection_top1": top1,
        }

        for k, block in enumerate(self._setup.blocks):
            measures[f"weight_of_block_{block}"] = stack.block_weights[:, k]

        # All at once, because each look at a value waits for the device
        table = torch.stack([values.double() for values in measures.values()], 1).tolist()
        return [dict(zip(measures, row, strict=True)) for row in table]

    def _spread(self, stack: Stack) -> Tensor:
        """(M,), the smaller one of both sides."""
        setup = self._setup
        rows, image_rows = self._probes
        samples = setup.samples
        sides = stack.project(samples.eeg, rows, setup.embeddings, image_rows, samples.to_normalise)
        spreads = [
            (side - side.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt() for side in sides
        ]
        return torch.minimum(*spreads)

    def _score(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """Mean loss and top-1 accuracy over the galleries, (M,) both."""
        selection = self._selection
        assert selection is not None
        rows, image_rows = self._galleries
        sides = stack.project(
            selection.eeg, rows, self._setup.embeddings, image_rows, selection.to_normalise
        )
        responses, images = (side.unflatten(1, self._gallery_shape) for side in sides)
        similarity = responses @ images.mT  # (M, G, N, N)

        if self._setup.recipe.selection_temperature == "fitted":
            loss = lowest_loss(similarity)
        else:
            loss = mean_loss(similarity, stack.scales)
        top1 = (rank_of_match(similarity) == 1).double().mean((-2, -1))
        return loss, top1
