"""The paired difference of two sets of runs, with its 95 % interval and p.

Besides the factor of the comparison, three things vary: seeds, subjects and test images. Interval
and p are over all of them that the runs can tell about. A model that is trained on several
subjects moves all of them together, so subjects cannot stand for seeds: with one seed there is no
claim. Where each subject has models of its own, the spread over subjects includes the seeds. Models
without seeds (ridge) need no second run.

What subjects and images both hold, the noise of single answers, is counted once. Of models that
subjects share, the seeds of both sides are pairs. How often a claim that rests on this is wrong,
and what else was tried: benchmarks/calibration.py, benchmarks/ridge.py and docs/results.md.

Axes: R runs and subjects tested, B resamples, S subjects, N test images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    MIN_SUBJECTS,
    Resamples,
    Variance,
    mean_by_subject,
    noise_counted_twice,
    t_test,
    variance_of_mean,
    variance_over_seeds,
)

RunKey = tuple[str, int, str]  # fold, seed and subject of one model on one subject's test EEG

# From queries of N images and counts (B, N) to metrics (B,) by name, as `weigh_queries`.
WeighQueries = Callable[[Queries, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PairedDifference:
    """The metrics of both sides, their difference, its 95 % interval and p.

    `factors` names what interval and p are over. If it is empty, there is no claim, and `ci95` and
    `p` are None in each metric. `ci95_these_models` is over test images alone.

    `by_subject` has for each side a table with a row a subject and a column a metric: means over
    the runs of that subject.
    """

    factors: list[str]
    metrics: dict[str, dict[str, Any]]
    by_subject: dict[str, pd.DataFrame]


def paired_difference(
    sides: Mapping[str, Mapping[RunKey, Queries]],
    resamples: Resamples,
    weigh: WeighQueries,
    left_out_in_turn: bool = False,
    without_seeds: bool = False,
) -> PairedDifference:
    """The second side minus the first one.

    Both sides have the same keys in the same order. `without_seeds` says that no seed could change
    a model of either side. `resamples` are of their S subjects and of the
    N test images; `left_out_in_turn` is that of `variance_of_mean`.
    """
    baseline, other = sides
    # R rows, the same on both sides.
    runs = pd.DataFrame(list(sides[other]), columns=["fold", "seed", "subject"])
    once = np.ones((1, resamples.images.shape[1]))  # (1, N): the gallery itself

    points: dict[str, pd.DataFrame] = {}  # metrics of each run, R rows
    resampled: dict[str, dict[str, np.ndarray]] = {}  # by metric, (S, B) each
    for side, queries in sides.items():
        metrics = [weigh(values, once) for values in queries.values()]
        points[side] = pd.DataFrame(
            [{name: float(value[0]) for name, value in of_run.items()} for of_run in metrics]
        )
        resampled[side] = _resample_subjects(runs, queries, resamples, weigh)

    # First over the runs of a subject: one with more runs must not weigh more.
    by_subject = {side: table.groupby(runs["subject"]).mean() for side, table in points.items()}

    factors = factors_of_interval(runs, without_seeds)
    compared: dict[str, dict[str, Any]] = {}
    for name in resampled[other]:
        means = {side: table[name] for side, table in by_subject.items()}  # (S,) each
        difference = means[other] - means[baseline]  # (S,)
        in_resamples = resampled[other][name] - resampled[baseline][name]  # (S, B)

        variances = {
            # The bootstrap moves only the images here: its spread is their part.
            "test images": [Variance(float(in_resamples.mean(0).var(ddof=1)), once.size - 1)],
            # Paired: the spread of the differences, not that of both sides.
            "subjects": [variance_of_mean(difference.to_numpy(), left_out_in_turn)],
            "seeds": _seed_variances(runs, points[baseline][name], points[other][name]),
        }
        parts = [part for factor in factors for part in variances[factor]]
        if {"subjects", "test images"} <= set(factors):
            parts.append(noise_counted_twice(in_resamples))
        interval, p = t_test(float(difference.mean()), parts)

        compared[name] = {side: float(values.mean()) for side, values in means.items()}
        compared[name] |= {
            "difference": float(difference.mean()),
            "ci95": interval if factors else None,
            "ci95_these_models": resamples.with_fixed_subjects().interval(in_resamples.T),
            "p": p if factors else None,
        }
    return PairedDifference(factors, compared, by_subject)


def _resample_subjects(
    runs: pd.DataFrame,
    queries: Mapping[RunKey, Queries],
    resamples: Resamples,
    weigh: WeighQueries,
) -> dict[str, np.ndarray]:
    """Each metric of each subject in each resample of the images, (S, B)."""
    weighed = [weigh(values, resamples.images) for values in queries.values()]
    subjects = runs["subject"].tolist()
    return {
        name: mean_by_subject(subjects, [metrics[name] for metrics in weighed])
        for name in weighed[0]
    }


def factors_of_interval(runs: pd.DataFrame, without_seeds: bool = False) -> list[str]:
    """What interval and p are over; empty if the runs allow no claim.

    `runs` has the columns fold, seed and subject. Where each subject has models of its own, with
    seeds of their own, the spread over subjects already includes the seeds. Models that no seed
    could change need no second run.
    """
    # The least of all folds: one fold with a single seed has no spread over seeds.
    several_seeds = runs.groupby("fold")["seed"].nunique().min() > 1
    models_are_shared = runs.groupby("fold")["subject"].nunique().max() > 1
    enough_subjects = runs["subject"].nunique() >= MIN_SUBJECTS

    if without_seeds:
        # Over test images alone it claimed too often (benchmarks/ridge.py)
        return ["subjects", "test images"] if enough_subjects else []
    if enough_subjects and not models_are_shared:
        return ["subjects", "test images"]
    if enough_subjects and several_seeds:
        return ["seeds", "subjects", "test images"]
    return ["seeds", "test images"] if several_seeds else []


def _seed_variances(runs: pd.DataFrame, first: pd.Series, second: pd.Series) -> list[Variance]:
    """What the seeds of each fold add to the variance of the mean difference over all subjects.

    `first` and `second` (R,) are the values of one metric on either side.
    """
    parts = []
    for _, fold in runs.groupby("fold"):
        # The fold's part of the mean over subjects; its variance counts by the square of that.
        weight = fold["subject"].nunique() / runs["subject"].nunique()
        by_seed = [
            side[fold.index].groupby(fold["seed"]).mean().to_numpy() for side in (first, second)
        ]
        variance = variance_over_seeds(*by_seed)
        parts.append(Variance(weight**2 * variance.value, variance.df))
    return parts
