"""Retrieval: is the image that was seen the nearest of a gallery to the brain response?

Axes: N images of the gallery, and as many EEG responses. The match of response i is image i.
"""

import numpy as np
import torch
from torch import Tensor

LEAST_VARIANCE = 1e-12  # of cosines; a smaller one is due to rounding


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """The contrastive loss: logits (..., N, N), matching pairs on the diagonal -> (...), in nats.

    InfoNCE in CLIP's form: the mean of the cross-entropy over rows (EEG -> image) and over columns
    (image -> EEG). It is ln N where all logits are equal. Source: arXiv 2103.00020, figure 3. Over
    a test gallery, the recipe calls the same quantity nice_loss.
    """
    # Not F.cross_entropy: its deterministic gradient on a GPU waits for the device, and a step
    # that is captured as a CUDA graph must not wait. Nor a softmax over columns: a GPU takes it
    # over the rows of a copy in a fraction of the time.
    both_ways = torch.stack([logits, logits.mT])
    matches = both_ways.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return -matches.mean((0, -1))


def rank_of_match(similarity: Tensor) -> Tensor:
    """The rank of the match in each row: similarity (..., N, N) -> (..., N) int64, 1 is best.

    It is the number of columns that are at least as similar as the match, the match included. Ties
    and NaN count against the match: a constant embedding must not rank first by luck.
    """
    match = similarity.diagonal(dim1=-2, dim2=-1)
    return (~(similarity < match[..., None])).sum(-1)


def score_queries(similarity: Tensor, logit_scale: float) -> dict[str, Tensor]:
    """The scores of each test image, from cosine similarities (..., N, N) of EEG with images.

    `logit_scale` is 1 / temperature. Returns float64 (..., N) by name:

    * `nice_loss`: in nats; its mean is the symmetric cross-entropy;
    * `rank`: of the match among all images, for the EEG;
    * `image_to_eeg_rank`: of the match among all responses, for the image;
    * `matched_cosine`: of the match;
    * `mismatched_cosine`, `mismatched_square`: means of the cosine and its square over the other
      images.
    """
    n_way = similarity.shape[-1]
    similarity = similarity.double()
    matched = similarity.diagonal(dim1=-2, dim2=-1)
    logits = logit_scale * similarity
    n_mismatched = max(1, n_way - 1)

    return {
        "nice_loss": (logits.logsumexp(-1) + logits.logsumexp(-2)) / 2 - logit_scale * matched,
        "rank": rank_of_match(similarity).double(),
        "image_to_eeg_rank": rank_of_match(similarity.mT).double(),
        "matched_cosine": matched,
        "mismatched_cosine": (similarity.sum(-1) - matched) / n_mismatched,
        "mismatched_square": (similarity.square().sum(-1) - matched.square()) / n_mismatched,
    }


def weigh_queries(
    queries: dict[str, np.ndarray], counts: np.ndarray, top_k: list[int]
) -> dict[str, np.ndarray]:
    """The metrics of a gallery in B resamples, from the scores (N,) of `score_queries`.

    `counts` (B, N) float64 says how often each image is in each resample; ones are the gallery
    itself. Returns (B,) float64 by metric:

    * `nice_loss`;
    * for both directions the top-k accuracies, the mean and median rank, and the mean reciprocal
      rank (mrr);
    * the mean cosine of matching and of mismatching pairs, and their difference;
    * `cosine_effect_size`: the difference in standard deviations, Cohen's d. The standard
      deviation is the root mean square of those of both kinds of pairs; NaN where neither varies.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return counts @ values / counts.sum(1)

    # Ranks, from EEG to images and back.
    metrics = {"nice_loss": mean(queries["nice_loss"])}
    for direction in ("", "image_to_eeg_"):
        rank = queries[f"{direction}rank"]
        metrics |= {f"{direction}top{k}_acc": mean(rank <= k) for k in top_k}
        metrics[f"{direction}mean_rank"] = mean(rank)
        metrics[f"{direction}median_rank"] = _weighted_median(rank, counts)
        metrics[f"{direction}mrr"] = mean(1 / rank)

    # Cosines of matching and mismatching pairs.
    matched = mean(queries["matched_cosine"])
    mismatched = mean(queries["mismatched_cosine"])
    variance = mean(queries["matched_cosine"] ** 2) - matched**2
    variance += mean(queries["mismatched_square"]) - mismatched**2
    sd = np.sqrt(np.where(variance > LEAST_VARIANCE, variance / 2, np.nan))

    return metrics | {
        "matched_cosine": matched,
        "mismatched_cosine": mismatched,
        "cosine_difference": matched - mismatched,
        "cosine_effect_size": (matched - mismatched) / sd,
    }


def weigh_top_k(
    queries: dict[str, np.ndarray], counts: np.ndarray, top_k: list[int]
) -> dict[str, np.ndarray]:
    """Only the top-k accuracies of `weigh_queries`: all metrics of many runs take minutes."""
    correct = queries["rank"] <= np.array(top_k)[:, None]  # (K, N)
    accuracies = correct @ counts.T / counts.sum(1)  # (K, B)
    return {f"top{k}_acc": accuracy for k, accuracy in zip(top_k, accuracies, strict=True)}


def weigh_means(queries: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, np.ndarray]:
    """The means (B,) of any figures (N,) of the test images in B resamples: counts (B, N)."""
    return {name: counts @ values / counts.sum(1) for name, values in queries.items()}


def retrieval_metrics(similarity: Tensor, logit_scale: float, top_k: list[int]) -> dict[str, float]:
    """The metrics of one gallery, from cosine similarities (N, N) of EEG (rows) with images.

    `logit_scale` is 1 / temperature. Returns numbers by name, which `weigh_queries` lists:
    `top<k>_acc` for each k of `top_k`, `nice_loss` (nats), `median_rank`, `mrr`, ... Accuracies are
    from 0 to 1.
    """
    scores = score_queries(similarity, logit_scale)
    queries = {name: values.cpu().numpy() for name, values in scores.items()}
    metrics = weigh_queries(queries, np.ones((1, len(similarity))), top_k)
    return {name: float(value[0]) for name, value in metrics.items()}


def _weighted_median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The median of values (N,) in each resample of `counts` (B, N): (B,)."""
    order = np.argsort(values)
    values = values[order]
    n_so_far = counts[:, order].cumsum(1)
    total = counts.sum(1, keepdims=True)

    # The two middle values, which are the same one where the number of values is odd.
    lower = values[(2 * n_so_far < total).sum(1)]
    upper = values[(2 * n_so_far <= total).sum(1)]
    return (lower + upper) / 2
