"""EEG and images projected by a trained model: in evaluation mode, in bounded memory."""

import math

import torch
from torch import Tensor

from pipeline.train.model import ContrastiveModel

# Values of EEG in one pass without gradient; limits memory
MOST_VALUES = 512 * 17 * 100


@torch.inference_mode()
def project(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """EEG (M, C, T) and embeddings (N, D) or (N, K, D) as unit vectors (M, P) and (N, P)."""
    model.eval()
    return project_eeg(model, eeg), model.embed_image(embeddings)


@torch.inference_mode()
def project_eeg(model: ContrastiveModel, eeg: Tensor, rows: Tensor | None = None) -> Tensor:
    """The EEG half of `project`, of all rows or of these; expects a model in evaluation mode."""
    n_at_once = max(1, MOST_VALUES // math.prod(eeg.shape[1:]))
    dtype = model.log_scale.dtype

    if rows is None:
        parts = iter(eeg.split(n_at_once))
    else:
        parts = (eeg.index_select(0, part) for part in rows.split(n_at_once))
    return torch.cat([model.embed_eeg(part.to(dtype)) for part in parts])


def measure_spread(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> float:
    """How far projected EEG, and projected images, lie from their mean: the smaller of both.

    The root mean square distance of unit vectors from their mean: 1 where they point in all
    directions, 0 where all are the same.
    """
    sides = project(model, eeg, embeddings)
    return min((side - side.mean(0)).square().sum(1).mean().sqrt().item() for side in sides)
