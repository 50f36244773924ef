"""Representational similarity analysis: are the same test images alike in EEG and image encoder?

The EEG and each image encoder have a geometry: the distances of all pairs of test images.
Spearman's correlation of two geometries says how far they agree, without any training and without
a map from one space to the other.

* EEG: crossnobis distance (Walther et al. 2016, doi 10.1016/j.neuroimage.2015.12.012), the squared
  Mahalanobis distance of the responses, cross-validated over repetitions. It is zero on average
  where responses do not differ, so that it may be negative.
* Image encoder: 1 - cosine of the embeddings, what retrieval compares by.
* Spearman, because an encoder that was aligned bends the scale of its distances: only their order
  is compared. In it the noise of the EEG is the same for both encoders: it makes both correlations
  smaller, and favours neither.
* Noise ceiling over subjects: Nili et al. 2014, doi 10.1371/journal.pcbi.1003553.
* Subjects and images vary, and are crossed (Schuett et al. 2023, doi 10.7554/eLife.82566). Pairs
  with an image in common are not independent: the variance over images is the one of such pairs
  (Aronow et al. 2015, doi 10.1093/pan/mpv018). A bootstrap over images, without pairs of an image
  with itself, gives up to three times the variance of the noise of pairs. How often a claim is
  wrong: `python -m benchmarks.explain calibration`.

Axes: N test images, M = N (N - 1) / 2 pairs of them, S subjects, W windows, R repetitions,
C channels, T samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from pipeline.evaluate.statistics import (
    ALPHA,
    MIN_SUBJECTS,
    Variance,
    t_test,
    variance_of_mean,
)

TIMES_AT_ONCE = 8  # samples that are whitened together; limits memory
LEAST_VARIANCE = 1e-9  # of the largest; a direction with less holds no signal, as after a reference


def crossnobis(eeg: np.ndarray, windows: Sequence[slice]) -> np.ndarray:
    """The distances of all pairs of images in each window: EEG (N, R, C, T) -> (W, M) float64.

    Mean over the samples of the window, divided by the number of channels. Of two images,
    repetition r of one is compared with repetition r of the other: what a session adds to all its
    trials cancels out. R is at least 2.
    """
    n_images, n_repetitions, n_chans, n_times = eeg.shape
    whitener = noise_whitener(eeg)

    products = np.empty((n_times, n_images, n_images))
    for start in range(0, n_times, TIMES_AT_ONCE):
        part = eeg[..., start : start + TIMES_AT_ONCE]
        # (times, N, R, C), noise with the identity as covariance
        white = np.moveaxis(part, -1, 0) @ whitener
        sums = white.sum(2, dtype=np.float64)
        flat = white.reshape(len(white), n_images, -1)
        # All pairs of repetitions, without each one with itself, whose noise has no mean of zero
        same = flat @ flat.swapaxes(1, 2)
        products[start : start + TIMES_AT_ONCE] = sums @ sums.swapaxes(1, 2) - same

    products /= n_repetitions * (n_repetitions - 1) * n_chans
    return np.stack([_distances(products[window].mean(0)) for window in windows])


def noise_whitener(eeg: np.ndarray) -> np.ndarray:
    """(C, C), of the dtype of the EEG (N, R, C, T): a response times it has white noise.

    The noise is what differs between repetitions of an image; its covariance is that of all images
    and samples. A direction without noise is left out.
    """
    n_images, n_repetitions, n_chans, n_times = eeg.shape
    covariance = np.zeros((n_chans, n_chans))
    for image in eeg:
        residuals = (image - image.mean(0)).swapaxes(0, 1).reshape(n_chans, -1)
        covariance += residuals @ residuals.T
    covariance /= n_images * (n_repetitions - 1) * n_times

    variances, directions = np.linalg.eigh(covariance)
    is_noise = variances > LEAST_VARIANCE * variances.max()
    scale = np.where(is_noise, variances, np.inf) ** -0.5
    return (directions * scale).astype(eeg.dtype)


def cosine_similarity(embeddings: np.ndarray) -> np.ndarray:
    """Cosines (N, N) of embeddings (N, D), float64; of several blocks (N, K, D) their mean."""
    blocks = embeddings.astype(np.float64).reshape(len(embeddings), -1, embeddings.shape[-1])
    unit = blocks / np.linalg.norm(blocks, axis=-1, keepdims=True)
    return np.einsum("ikd,jkd->ij", unit, unit) / blocks.shape[1]


def embedding_distances(values: np.ndarray) -> np.ndarray:
    """1 - cosine of all pairs: embeddings (N, D) -> (M,) float64; of a mix (N, K, D) the mean."""
    return 1 - cosine_similarity(values)[np.triu_indices(len(values), 1)]


def compare_geometries(
    eeg: np.ndarray, encoders: Mapping[str, np.ndarray], n_images: int
) -> dict[str, Any]:
    """Spearman of the EEG's distances (S, M) with those of each encoder (M,), and the difference.

    Returns for each encoder its `mean` over subjects and `ci95`; with both encoders the same and
    `p` of `difference`, aligned - unaligned; `over`, what interval and p are over; and
    `noise_ceiling` as (lower, upper), where there are several subjects. NaN where an encoder has
    the same distance for all pairs.
    """
    ranked = standard_ranks(eeg)
    rho, influence = {}, {}
    for name, distances in encoders.items():
        ranks = standard_ranks(distances)
        rho[name] = ranked @ ranks / len(ranks)  # (S,)
        # What each pair adds to the correlation of each subject, (S, M)
        squares = (ranked**2 + ranks**2) / 2
        influence[name] = ranked * ranks - rho[name][:, None] * squares

    compared: dict[str, Any] = {}
    for name in encoders:
        mean, interval, _ = _estimate(rho[name], influence[name], n_images)
        compared[name] = {"mean": mean, "ci95": interval}
    if {"aligned", "unaligned"} <= set(encoders):
        mean, interval, p = _estimate(
            rho["aligned"] - rho["unaligned"],
            influence["aligned"] - influence["unaligned"],
            n_images,
        )
        compared["difference"] = {"mean": mean, "ci95": interval, "p": p}
    compared["noise_ceiling"] = noise_ceiling(eeg)
    compared["over"] = _factors(len(eeg))
    return compared


def standard_ranks(distances: np.ndarray) -> np.ndarray:
    """Ranks of (..., M), with mean 0 and variance 1, so that a mean of products is Spearman's."""
    ranks = rankdata(distances, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    sd = ranks.std(-1, keepdims=True)
    return ranks / np.where(sd > 0, sd, np.nan)


def noise_ceiling(distances: np.ndarray) -> tuple[float, float]:
    """The lower and upper end of what any geometry could reach, from those of subjects (S, M).

    Lower: Spearman of each subject with the mean ranks of the others. Upper: with those of all,
    itself among them. NaN for one subject.
    """
    if len(distances) < 2:
        return np.nan, np.nan

    # Sums of whole ranks: standardised ones would not tie exactly.
    ranks = rankdata(distances, axis=-1)
    subjects = standard_ranks(distances)
    lower = (subjects * standard_ranks(ranks.sum(0) - ranks)).mean()
    upper = (subjects * standard_ranks(ranks.sum(0))).mean()
    return float(lower), float(upper)


def variance_over_images(influence: np.ndarray, n_images: int) -> Variance:
    """The variance of a mean over pairs, from the deviation of each pair (M,).

    Other images would change every pair that they are in. So the covariance of all pairs with an
    image in common counts, each pair with itself among them. The factor makes it exact where an
    image adds the same to all of its pairs. NaN for fewer than five images.
    """
    if n_images < 5:
        return Variance(np.nan, n_images - 1)
    first, second = np.triu_indices(n_images, 1)
    sums = np.bincount(first, influence, n_images) + np.bincount(second, influence, n_images)

    squares = (influence**2).sum()
    total = max((sums**2).sum() - squares, squares)  # the former may fall below zero by chance
    factor = n_images * (n_images - 1) / ((n_images - 2) * (n_images - 3))
    return Variance(float(factor * total / len(influence) ** 2), n_images - 1)


def tabulate_rsa(
    geometries: Sequence[np.ndarray],
    encoders: Mapping[str, np.ndarray],
    centres: Sequence[float],
    n_images: int,
    modality: str = "EEG",
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The summary, of the whole response after onset, and a table with a row a window.

    `geometries` has for each subject the distances (W + 1, M) of `crossnobis`: of W windows, whose
    `centres` are in s, and last of all samples after onset. `encoders` has those of each image
    encoder (M,). The question was decided beforehand: the difference between the encoders over the
    whole response after onset. Nothing else has a p. `modality` is what the sentence calls the
    responses.
    """
    eeg = np.stack(geometries)  # (S, W + 1, M)
    rows = []
    for window, centre in enumerate(centres):
        compared = compare_geometries(eeg[:, window], encoders, n_images)
        rows.append({"time": centre} | _row(compared))

    after_onset = compare_geometries(eeg[:, -1], encoders, n_images)
    summary = after_onset | {"n_images": n_images, "n_subjects": len(eeg), "n_pairs": eeg.shape[-1]}
    return {"answer": _answer(summary, modality)} | summary, pd.DataFrame(rows)


def _row(compared: Mapping[str, Any]) -> dict[str, float]:
    """A row of the table; the last column is 0, what unrelated geometries have on average."""
    row = {}
    for name, estimate in compared.items():
        if isinstance(estimate, dict):
            row[name] = estimate["mean"]
            row[f"{name}_low"], row[f"{name}_high"] = estimate["ci95"]
    row["noise_ceiling_low"], row["noise_ceiling_high"] = compared["noise_ceiling"]
    return row | {"chance": 0.0}


def _answer(summary: Mapping[str, Any], modality: str) -> str:
    """The answer to the question in a sentence, with its figures."""
    if "difference" not in summary:
        return "There is one image encoder alone: nothing to compare."

    difference = summary["difference"]
    low, high = difference["ci95"]
    figures = (
        f"Spearman {summary['aligned']['mean']:.3f} against {summary['unaligned']['mean']:.3f}, "
        f"{difference['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f} and "
        f"p = {difference['p']:.3g} over {' and '.join(summary['over'])})"
    )
    claim = (
        f"no difference between the encoders is shown in how like the {modality} their geometry is"
    )
    # The comparison is false for NaN, where nothing can be claimed.
    if difference["p"] <= ALPHA:
        nearer, farther = ("aligned", "unaligned")[:: 1 if difference["mean"] > 0 else -1]
        claim = (
            f"the geometry of the {nearer} encoder is more like the {modality}'s than the "
            f"{farther} one's"
        )
    if "subjects" not in summary["over"]:
        n = summary["n_subjects"]
        them = "this subject" if n == 1 else f"these {n} subjects"
        claim = f"in {them}, too few to speak for others, {claim}"
    return f"{claim[0].upper()}{claim[1:]}: {figures}."


def _distances(products: np.ndarray) -> np.ndarray:
    """The distances (M,) that products (N, N) of responses stand for."""
    first, second = np.triu_indices(len(products), 1)
    squares = products.diagonal()
    return squares[first] + squares[second] - products[first, second] - products[second, first]


def _factors(n_subjects: int) -> list[str]:
    """What interval and p are over, as in a comparison of models."""
    return ["subjects", "test images"] if n_subjects >= MIN_SUBJECTS else ["test images"]


def _estimate(
    rho: np.ndarray, influence: np.ndarray, n_images: int
) -> tuple[float, tuple[float, float], float]:
    """The mean over subjects with interval and p, from (S,) and what each pair adds, (S, M)."""
    parts = [variance_over_images(influence.mean(0), n_images)]
    if "subjects" in _factors(len(rho)):
        parts.append(variance_of_mean(rho))
    mean = float(rho.mean())
    return mean, *t_test(mean, parts)
