"""The paired difference of two sets of runs, with its 95 % interval and p.

Besides the factor of the comparison, three things vary: seeds, subjects and test images. Interval
and p are over all of them that the runs can tell about. A model that is trained on several
subjects moves all of them together, so subjects cannot stand for seeds: with one seed there is no
claim. Where each subject has models of its own, the spread over subjects includes the seeds. Models
without seeds (ridge) need no second run.

Models of one recording may be tested on the people of another one. Where each of its people has
models of their own, each is a fold that is tested on all subjects: then people who train and
people who are tested are two crossed factors, and the spread over the former includes their seeds.
A model of all its people together tells nothing about other people who might train.

What people and images both hold, the noise of single answers among it, is counted once. Of models
that subjects share, the seeds of both sides are pairs. How often a claim that rests on this is
wrong, and what else was tried: benchmarks/calibration.py, benchmarks/ridge.py and docs/results.md.

Axes: R runs and subjects tested, B resamples, F folds, S subjects, N test images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    MIN_SUBJECTS,
    Resamples,
    Variance,
    noise_counted_twice,
    t_test,
    variance_of_mean,
    variance_over_seeds,
)

# Factors of an interval
SUBJECTS = "subjects"
IMAGES = "test images"
SEEDS = "seeds"
TRAINING_PEOPLE = "training people"

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

    factors = factors_of_interval(runs, without_seeds)
    groupings = ["subject", "fold"] if TRAINING_PEOPLE in factors else ["subject"]

    points: dict[str, pd.DataFrame] = {}  # metrics of each run, R rows
    resampled: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # by grouping and metric
    for side, queries in sides.items():
        metrics = [weigh(values, once) for values in queries.values()]
        points[side] = pd.DataFrame(
            [{name: float(value[0]) for name, value in of_run.items()} for of_run in metrics]
        )
        resampled[side] = _resample_groups(runs, groupings, queries, resamples, weigh)

    # First over the runs of a subject: one with more runs must not weigh more.
    by_subject = {side: table.groupby(runs["subject"]).mean() for side, table in points.items()}

    compared: dict[str, dict[str, Any]] = {}
    for name in points[other].columns.tolist():
        means = {side: table[name] for side, table in by_subject.items()}  # (S,) each
        difference = means[other] - means[baseline]  # (S,)
        in_resamples = {
            grouping: resampled[other][grouping][name] - resampled[baseline][grouping][name]
            for grouping in groupings
        }  # (S, B) by subject, (F, B) by fold
        of_subjects = in_resamples["subject"]

        variances = {
            # The bootstrap moves only the images here: its spread is their part.
            IMAGES: [Variance(float(of_subjects.mean(0).var(ddof=1)), once.size - 1)],
            # Paired: the spread of the differences, not that of both sides.
            SUBJECTS: [variance_of_mean(difference.to_numpy(), left_out_in_turn)],
            SEEDS: _seed_variances(runs, points[baseline][name], points[other][name]),
        }
        if TRAINING_PEOPLE in factors:
            of_runs = points[other][name] - points[baseline][name]
            by_fold = of_runs.groupby(runs["fold"]).mean().to_numpy()  # (F,)
            variances[TRAINING_PEOPLE] = [variance_of_mean(by_fold)]
        parts = [part for factor in factors for part in variances[factor]]

        if {SUBJECTS, IMAGES} <= set(factors):
            parts.append(noise_counted_twice(of_subjects))
        if TRAINING_PEOPLE in factors:
            parts.append(noise_counted_twice(in_resamples["fold"]))
        interval, p = t_test(float(difference.mean()), parts)

        compared[name] = {side: float(values.mean()) for side, values in means.items()}
        compared[name] |= {
            "difference": float(difference.mean()),
            "ci95": interval if factors else None,
            "ci95_these_models": resamples.with_fixed_subjects().interval(of_subjects.T),
            "p": p if factors else None,
        }
    return PairedDifference(factors, compared, by_subject)


def _are_crossed(runs: pd.DataFrame) -> bool:
    """Whether each of several folds is tested on all subjects.

    So it is where each person of one recording has models of their own, and those of another
    recording are tested.
    """
    n_folds = runs["fold"].nunique()
    return n_folds > 1 and runs.groupby("subject")["fold"].nunique().min() == n_folds


def _resample_groups(
    runs: pd.DataFrame,
    groupings: Sequence[str],
    queries: Mapping[RunKey, Queries],
    resamples: Resamples,
    weigh: WeighQueries,
) -> dict[str, dict[str, np.ndarray]]:
    """For each grouping of the R runs (a column of theirs, such as `subject`) and metric: (G, B).

    That is its mean over the runs of each of the G groups, in order of name, in each resample of
    the images.
    """
    # The number of each run's group
    groups = {name: runs.groupby(name).ngroup().to_numpy() for name in groupings}
    sums: dict[str, dict[str, np.ndarray]] = {name: {} for name in groups}

    # Summed up run by run: the resamples of a thousand runs do not fit into memory.
    for row, values in enumerate(queries.values()):
        for metric, in_resamples in weigh(values, resamples.images).items():
            for name, group in groups.items():
                shape = (group.max() + 1, len(in_resamples))
                sums[name].setdefault(metric, np.zeros(shape))[group[row]] += in_resamples

    n_runs = {name: np.bincount(group)[:, None] for name, group in groups.items()}
    return {
        name: {metric: total / n_runs[name] for metric, total in of_grouping.items()}
        for name, of_grouping in sums.items()
    }


def factors_of_interval(runs: pd.DataFrame, without_seeds: bool = False) -> list[str]:
    """What interval and p are over; empty if the runs allow no claim.

    `runs` has the columns fold, seed and subject. Where each subject has models of its own, with
    seeds of their own, the spread over subjects already includes the seeds. Models that no seed
    could change need no second run.

    Where the models of each person of another recording are tested on all subjects, the spread over
    the people who trained includes the seeds. With fewer of them than MIN_SUBJECTS the claim is
    about them alone, as it is where one model is of them all.
    """
    # The least of all folds: one fold with a single seed has no spread over seeds.
    several_seeds = runs.groupby("fold")["seed"].nunique().min() > 1
    models_are_shared = runs.groupby("fold")["subject"].nunique().max() > 1
    enough_subjects = runs["subject"].nunique() >= MIN_SUBJECTS

    if _are_crossed(runs) and runs["fold"].nunique() >= MIN_SUBJECTS:
        return [TRAINING_PEOPLE, *([SUBJECTS] if enough_subjects else []), IMAGES]
    if without_seeds:
        # Over test images alone it claimed too often (benchmarks/ridge.py)
        return [SUBJECTS, IMAGES] if enough_subjects else []
    if enough_subjects and not models_are_shared:
        return [SUBJECTS, IMAGES]
    if enough_subjects and several_seeds:
        return [SEEDS, SUBJECTS, IMAGES]
    return [SEEDS, IMAGES] if several_seeds else []


def _seed_variances(runs: pd.DataFrame, first: pd.Series, second: pd.Series) -> list[Variance]:
    """What the seeds of each fold add to the variance of the mean difference over all subjects.

    `first` and `second` (R,) are the values of one metric on either side.
    """
    n_runs = runs["subject"].value_counts()

    parts = []
    for _, fold in runs.groupby("fold"):
        # The fold's part of the mean over subjects, each the mean over its runs of all folds. Its
        # variance counts by the square of that.
        weight = (fold["subject"].value_counts() / n_runs).sum() / len(n_runs)
        by_seed = [
            side[fold.index].groupby(fold["seed"]).mean().to_numpy() for side in (first, second)
        ]
        variance = variance_over_seeds(*by_seed)
        parts.append(Variance(weight**2 * variance.value, variance.df))
    return parts
