"""Retrieval: of all the images of a gallery, is the one that was seen the nearest to the brain response?"""

import torch
from torch import Tensor
from torch.nn import functional as F


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """The contrastive loss (InfoNCE, CLIP's form) of logits (N, N) whose matching pairs lie on the diagonal.

    The mean of the cross-entropy over rows (EEG -> image) and columns (image -> EEG); ln N where all logits are equal.
    Source: arXiv 2103.00020, figure 3; the same quantity over a test gallery is the recipe's nice_loss.
    """
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def rank_of_match(similarity: Tensor) -> Tensor:
    """For each row of (N, N) how many columns are at least as similar as the matching one, itself included: 1 is best.

    A tie counts against the match, so that a constant embedding scores nothing instead of a lucky first place.
    """
    return (similarity >= similarity.diagonal()[:, None]).sum(dim=1)


def retrieval_metrics(similarity: Tensor, logit_scale: float, top_k: list[int]) -> dict[str, float]:
    """Metrics of one gallery from cosine similarities (N queries, N images), the match of query i being image i."""
    n_way = len(similarity)
    ranks = rank_of_match(similarity)
    mismatched = similarity[~torch.eye(n_way, dtype=torch.bool, device=similarity.device)]
    return {
        "nice_loss": symmetric_cross_entropy(logit_scale * similarity).item(),
        **{f"top{k}_acc": (ranks <= k).double().mean().item() for k in top_k},
        "matched_cosine": similarity.diagonal().double().mean().item(),
        "mismatched_cosine": mismatched.double().mean().item(),
    }
