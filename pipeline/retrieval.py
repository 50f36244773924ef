"""Retrieval: of all the images of a gallery, is the one that was seen the nearest to the brain response?"""

import numpy as np
import torch
from torch import Tensor

LEAST_VARIANCE = 1e-12  # of cosines; anything smaller is rounding


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """The contrastive loss (...) of logits (..., N, N) with the matching pairs on the diagonal: InfoNCE in CLIP's form.

    The mean of the cross-entropy over rows (EEG -> image) and columns (image -> EEG); ln N where all logits are equal.
    Source: arXiv 2103.00020, figure 3; the same quantity over a test gallery is the recipe's nice_loss. Not by
    F.cross_entropy, whose deterministic gradient on a GPU waits for the device, which no captured step may do.
    """
    matches = [logits.log_softmax(dim).diagonal(dim1=-2, dim2=-1) for dim in (-1, -2)]
    return -torch.stack(matches).mean((0, -1))


def rank_of_match(similarity: Tensor) -> Tensor:
    """For each row of (..., N, N) how many columns are at least as similar as the matching one, itself included.

    1 is best. A tie counts against the match, and so does NaN: a constant embedding must not rank first by luck.
    """
    match = similarity.diagonal(dim1=-2, dim2=-1)
    return (~(similarity < match[..., None])).sum(-1)


def score_queries(similarity: Tensor, logit_scale: float) -> dict[str, Tensor]:
    """What each test image i contributes: (..., N, N) cosine similarities, of EEG i with image i on the diagonal.

    Returns float64 (..., N): `nice_loss`, whose mean is the symmetric cross-entropy; `rank` of the image seen among all
    images, and `image_to_eeg_rank` of the response among all responses; `matched_cosine`; `mismatched_cosine` and
    `mismatched_square`, means over the other images.
    """
    n_way = similarity.shape[-1]
    similarity = similarity.double()
    matched = similarity.diagonal(dim1=-2, dim2=-1)
    logits = logit_scale * similarity
    others = max(1, n_way - 1)
    return {
        "nice_loss": (logits.logsumexp(-1) + logits.logsumexp(-2)) / 2 - logit_scale * matched,
        "rank": rank_of_match(similarity).double(),
        "image_to_eeg_rank": rank_of_match(similarity.mT).double(),
        "matched_cosine": matched,
        "mismatched_cosine": (similarity.sum(-1) - matched) / others,
        "mismatched_square": (similarity.square().sum(-1) - matched.square()) / others,
    }


def weigh_queries(
    queries: dict[str, np.ndarray], counts: np.ndarray, top_k: list[int]
) -> dict[str, np.ndarray]:
    """The metrics of a gallery from what `score_queries` says of its N images, image i counted counts[b, i] times.

    `counts` (B, N) float64: ones, or how often each image is in each of B resamples. Returns (B,) float64 by metric:
    `nice_loss`; top-k accuracies, mean and median rank and mean reciprocal rank (mrr) of both directions; mean cosine
    of matching and of differing pairs, their difference, and its size in standard deviations: Cohen's d with the root
    mean square of the standard deviations of the two kinds of pairs, NaN where neither varies.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return counts @ values / counts.sum(1)

    metrics = {"nice_loss": mean(queries["nice_loss"])}
    for direction in ("", "image_to_eeg_"):
        rank = queries[f"{direction}rank"]
        metrics |= {f"{direction}top{k}_acc": mean(rank <= k) for k in top_k}
        metrics[f"{direction}mean_rank"] = mean(rank)
        metrics[f"{direction}median_rank"] = _weighted_median(rank, counts)
        metrics[f"{direction}mrr"] = mean(1 / rank)
    matched, mismatched = mean(queries["matched_cosine"]), mean(queries["mismatched_cosine"])
    variance = mean(queries["matched_cosine"] ** 2) - matched**2
    variance += mean(queries["mismatched_square"]) - mismatched**2
    sd = np.sqrt(np.where(variance > LEAST_VARIANCE, variance / 2, np.nan))
    return metrics | {
        "matched_cosine": matched,
        "mismatched_cosine": mismatched,
        "cosine_difference": matched - mismatched,
        "cosine_effect_size": (matched - mismatched) / sd,
    }


def retrieval_metrics(similarity: Tensor, logit_scale: float, top_k: list[int]) -> dict[str, float]:
    """Metrics of one gallery from cosine similarities (N queries, N images), the match of query i being image i."""
    queries = {
        name: values.cpu().numpy()
        for name, values in score_queries(similarity, logit_scale).items()
    }
    metrics = weigh_queries(queries, np.ones((1, len(similarity))), top_k)
    return {name: float(value[0]) for name, value in metrics.items()}


def _weighted_median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The median of each resample, (B,): the mean of the two middle values where their number is even."""
    order = np.argsort(values)
    values, below, total = values[order], counts[:, order].cumsum(1), counts.sum(1, keepdims=True)
    return (values[(2 * below < total).sum(1)] + values[(2 * below <= total).sum(1)]) / 2
