"""EEG and images projected by a trained model: in evaluation mode, in bounded memory."""

import math

import torch
from torch import Tensor

from pipeline.train.model import ContrastiveModel

# Values of EEG in one pass without gradient; limits memory
MOST_VALUES = 512 * 17 * 100


@torch.inference_mode()
def project(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """EEG (M, C, T) and embeddings (N, D) or (N, K, D) as unit vectors (M, P) and (N, P).

    Both on the device of the model. The EEG may be of any floating type; the embeddings are of the
    type of the model, float32. The result has no gradient.
    """
    model.eval()
    return project_eeg(model, eeg), project_images(model, embeddings)


@torch.inference_mode()
def project_eeg(model: ContrastiveModel, eeg: Tensor) -> Tensor:
    """The EEG half of `project`; expects a model in evaluation mode."""
    parts = eeg.split(max(1, MOST_VALUES // math.prod(eeg.shape[1:])))
    dtype = model.log_scale.dtype
    return torch.cat([model.embed_eeg(part.to(dtype)) for part in parts])


@torch.inference_mode()
def project_images(model: ContrastiveModel, embeddings: Tensor) -> Tensor:
    """The image half of `project`; expects a model in evaluation mode."""
    return model.embed_image(embeddings)
