"""Bootstrap intervals over subjects and test images, t-tests, Holm's correction, galleries.

Axes: B resamples, S subjects, N test images, M tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, t

LEVEL = 0.95  # of every confidence interval
ALPHA = 0.05  # a difference with a p of at most this is claimed
MIN_SUBJECTS = 6  # with fewer, the result is not generalised to other subjects


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples: how often each subject and each image was drawn.

    `subjects` (B, S) and `images` (B, N), float64.

    Every subject saw the same images: the two factors are crossed. So a resample has the same
    images for all its subjects (Owen 2007, doi 10.1214/07-AOAS122). Images drawn anew for each
    subject would hide that some images are easy for everybody. In simulations with such images,
    intervals of that kind held the truth in 79 to 89 % of cases, and intervals of this kind in
    93 to 97 % (10 subjects, 200 images). Where subjects share nothing, these intervals are too
    wide, which is the safe side.
    """

    subjects: np.ndarray
    images: np.ndarray

    def interval(self, per_subject: np.ndarray) -> tuple[float, float]:
        """The 95 % percentile interval of a mean over subjects.

        `per_subject` (B, S) holds each subject's value in each resample of the images.
        """
        means = (self.subjects * per_subject).sum(1) / self.subjects.shape[1]  # (B,)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def interval_of_mean(self, values: np.ndarray) -> tuple[float, float]:
        """The 95 % interval of the mean of `values` (S, N)."""
        return self.interval(self.images @ values.T / self.images.shape[1])

    def with_fixed_subjects(self) -> "Resamples":
        """The same images with each subject once: intervals for these subjects, new images."""
        return Resamples(np.ones_like(self.subjects), self.images)


def draw_resamples(n_subjects: int, n_images: int, n_resamples: int, seed: int) -> Resamples:
    """Draw subjects and images with replacement, each resample as large as the original."""
    # A stream of its own: elsewhere the letters of a name follow.
    rng = np.random.default_rng([seed, 1])
    # How often each of n is drawn in n draws: that is all that a weighted mean needs.
    draws = [
        rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)
        for n in (n_subjects, n_images)
    ]
    return Resamples(*draws)


def mean_by_subject(subjects: Sequence[str], values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the runs of each subject: (S, ...), subjects in order of name.

    `values` has an array (...) a run, `subjects` the subject of each run.
    """
    by_subject: dict[str, list[np.ndarray]] = {}
    for subject, value in zip(subjects, values, strict=True):
        by_subject.setdefault(subject, []).append(value)

    return np.stack([np.mean(by_subject[subject], axis=0) for subject in sorted(by_subject)])


def curve(
    name: str, subjects: Sequence[str], values: Sequence[np.ndarray], resamples: Resamples
) -> pd.DataFrame:
    """One row for each of V points: mean, 95 % interval and standard deviation over subjects.

    `values` has an array (V, N) for each run and subject, whose name is in `subjects`. The columns
    are `name`, and `name` with _low, _high and _sd_over_subjects.
    """
    by_subject = mean_by_subject(subjects, values)  # (S, V, N)
    # The same resamples at every point of the curve.
    ends = np.array(
        [resamples.interval_of_mean(by_subject[:, point]) for point in range(by_subject.shape[1])]
    )  # (V, 2)

    means = by_subject.mean(2)  # (S, V)
    spread = means.std(0, ddof=1) if len(means) > 1 else np.full(means.shape[1], np.nan)
    return pd.DataFrame(
        {
            name: means.mean(0),
            f"{name}_low": ends[:, 0],
            f"{name}_high": ends[:, 1],
            f"{name}_sd_over_subjects": spread,
        }
    )


def gallery_accuracy(rank: np.ndarray, n_images: int, n_way: int, k: int) -> np.ndarray:
    """The probability that the match is among the k best of a random gallery of `n_way` images.

    `rank` is the rank of the match among all `n_images`, from 1. The gallery holds the match and
    `n_way` - 1 other images, all such galleries with equal probability. The match is among the k
    best if the gallery has at most k - 1 of the rank - 1 images before the match (hypergeometric).

    Returns an array of the shape of `rank`.
    """
    # Of n_images - 1 others, rank - 1 are before the match; n_way - 1 are drawn.
    by_rank = hypergeom.cdf(k - 1, n_images - 1, np.arange(n_images), n_way - 1)
    return by_rank[np.asarray(rank, int) - 1]


@dataclass(frozen=True)
class Variance:
    """One factor's part of the squared standard error of a mean, and its degrees of freedom."""

    value: float
    df: float


def variance_of_mean(values: np.ndarray, left_out_in_turn: bool = False) -> Variance:
    """The variance of the mean of independent values (n,); NaN if n is 1.

    `left_out_in_turn`: value i comes from a model that was trained on the other n - 1 subjects.
    Such models share most of their training data, so the values are not independent. The factor
    is then 1 / n + 1 / (n - 1) instead of 1 / n; the second term is test size over training size
    (Nadeau and Bengio 2003, doi 10.1023/A:1024068626366).
    """
    n = len(values)
    if n < 2:
        return Variance(np.nan, n - 1)
    return Variance(float(values.var(ddof=1)) * (1 / n + left_out_in_turn / (n - 1)), n - 1)


def variance_over_seeds(baseline: np.ndarray, other: np.ndarray) -> Variance:
    """What the seeds add to the variance of the mean difference of two sides.

    Both hold a value a seed, (R,), of the same seeds in the same order. Two models of one seed
    share its order of the samples and its dropout, so what is good luck for one is often luck for
    the other. The variance of the differences sees that; the sum of the variances of both sides
    does not, and is too large. But few seeds tell a correlation badly. So the sum keeps a weight of
    1 / (R - 1): it is all with two seeds, and a quarter with five. The differences alone claim up
    to 7 % with three seeds where nothing but seeds varies.

    Returns NaN if R is 1.
    """
    n = len(baseline)
    if n < 2:
        return Variance(np.nan, n - 1)
    differences, sums = other - baseline, other + baseline
    part = weigh_paired_seeds(float(differences.var(ddof=1)) / n, float(sums.var(ddof=1)) / n, n)

    # Where one side varies more, or alone, there is less to learn from the other.
    sides = [Variance(float(side.var(ddof=1)) / n, n - 1) for side in (baseline, other)]
    squares = sum(side.value**2 for side in sides)
    if squares == 0:
        return part
    df_of_sides = (n - 1) * sum(side.value for side in sides) ** 2 / squares
    return Variance(part.value, min(part.df, df_of_sides))


def weigh_paired_seeds(of_differences: float, of_sums: float, n_seeds: int) -> Variance:
    """The part of the seeds, from the variances of the mean difference and of the mean sum.

    The sum of the variances of both sides is the mean of these two, which are independent.
    """
    weight = 1 / (n_seeds - 1) / 2
    parts = [(1 - weight) * of_differences, weight * of_sums]
    total = sum(parts)
    if total == 0:
        return Variance(0.0, n_seeds - 1)
    return Variance(total, (n_seeds - 1) * total**2 / sum(part**2 for part in parts))


def noise_counted_twice(resampled: np.ndarray) -> Variance:
    """What the part of the subjects and that of the test images both hold, as a part to take off.

    `resampled` (S, B) are the values of S subjects in B resamples of N images. The mean square of
    the interaction of subjects and images is in the spread over subjects and in that over images,
    so that their sum has it twice. It is negative here, to be added to the other parts. There are
    so many pairs of subject and image that it counts as known: its degrees of freedom are infinite.
    """
    n = len(resampled)
    if n < 2:
        return Variance(0.0, np.inf)
    # What the images do to a subject beyond what they do to all.
    own = resampled - resampled.mean(0)
    return Variance(-float(own.var(axis=1, ddof=1).sum()) / (n - 1) / n, np.inf)


def t_test(difference: float, parts: Sequence[Variance]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of a mean difference, and the two-sided p of the hypothesis of zero.

    Student's t with the sum of the parts and Satterthwaite's degrees of freedom (1946,
    doi 10.2307/3002019). A part may be negative: what two others both hold. For subjects and
    images, which are crossed, this is then the quasi-F ratio F' (Clark 1973,
    doi 10.1016/S0022-5371(73)80014-3); without that part it is min F', which claims less than it
    may. The variance is at least the largest part, as in a mixed model without negative variances.

    Returns NaN if a part is NaN. If all parts are zero, the interval has no width and p is 0, or 1
    for a difference of zero.
    """
    total = sum_of_parts(parts)
    if np.isnan(total):
        return (np.nan, np.nan), np.nan
    if total == 0:
        return (difference, difference), float(difference == 0)

    df = degrees_of_freedom(parts)
    half = t.ppf((1 + LEVEL) / 2, df) * total**0.5
    p = float(2 * t.sf(abs(difference) / total**0.5, df))
    return (difference - half, difference + half), p


def sum_of_parts(parts: Sequence[Variance]) -> float:
    """Their sum, and at least the largest one; NaN if one is NaN."""
    values = [part.value for part in parts]
    if np.isnan(values).any():
        return np.nan
    return max([sum(values), *values])


def degrees_of_freedom(parts: Sequence[Variance]) -> float:
    """Satterthwaite's, of `sum_of_parts`. A part that does not vary has no say."""
    squares = sum(part.value**2 / part.df for part in parts if part.value)
    return sum_of_parts(parts) ** 2 / squares


def holm(p: np.ndarray) -> np.ndarray:
    """The p-values (M,) of M tests, corrected for their number by Holm's method.

    Rejecting every hypothesis with a corrected p <= alpha keeps the family-wise error rate <=
    alpha, whatever the dependence among the tests (Holm 1979,
    https://www.jstor.org/stable/4615733). The smallest p is multiplied by M, the next one by
    M - 1 and so on. A corrected p is never smaller than the one before it, and at most 1.
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]).clip(max=1)
    return corrected
