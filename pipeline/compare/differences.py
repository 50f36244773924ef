"""The paired difference of two sets of runs, and how sure it is.

What varies besides the one thing in which the two differ is seeds, subjects and test images, and interval and p take in
all that the runs can tell of them. A model trained on several subjects moves them all together, so that subjects cannot
stand for seeds: without several seeds nothing is claimed. Models of one subject each vary from subject to subject,
seeds included. How often a claim that rests on this is wrong: benchmarks/calibration.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    Resamples,
    Variance,
    mean_by_subject,
    t_test,
    variance_of_mean,
)

ALPHA = 0.05
LEAST_SUBJECTS = 6  # fewer speak for themselves only

# Queries of N images and counts (B, N) in, (B,) by metric out, such as `retrieval.weigh_queries`.
Weigh = Callable[[Queries, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Tested:
    """One trained model on one subject's test EEG."""

    fold: str
    seed: int
    subject: str
    queries: Queries


@dataclass(frozen=True)
class Paired:
    """Of each metric both sides' means, their difference, its 95 % interval and p; and what the last two are over.

    `ci95` and `p` are None where `over` is empty, no claim then; `ci95_these_models` is over test images alone.
    `by_subject` has a row a subject and a column a metric, the mean over that subject's runs, for each side.
    """

    over: list[str]
    metrics: dict[str, dict[str, Any]]
    by_subject: dict[str, pd.DataFrame]


def pair(
    sides: Mapping[str, Sequence[Tested]],
    resamples: Resamples,
    weigh: Weigh,
    left_out_in_turn: bool = False,
) -> Paired:
    """The second side minus the first one, each under its name; both hold the same folds, seeds and subjects in order.

    `resamples` are of these S subjects and of the N test images, `left_out_in_turn` as in `variance_of_mean`.
    """
    baseline, other = sides
    runs = pd.DataFrame(
        [{"fold": one.fold, "seed": one.seed, "subject": one.subject} for one in sides[other]]
    )
    subjects, n_images = runs["subject"].tolist(), resamples.images.shape[1]
    points, resampled = {}, {}
    for name, tested in sides.items():
        once = [weigh(one.queries, np.ones((1, n_images))) for one in tested]
        weighed = [weigh(one.queries, resamples.images) for one in tested]
        points[name] = pd.DataFrame(
            [{metric: float(value[0]) for metric, value in one.items()} for one in once]
        )
        resampled[name] = {
            m: mean_by_subject(subjects, [one[m] for one in weighed]) for m in weighed[0]
        }  # (S, B)
    by_subject = {name: table.groupby(runs["subject"]).mean() for name, table in points.items()}
    over, these = varies(runs), resamples.with_fixed_subjects()
    metrics: dict[str, dict[str, Any]] = {}
    for metric in resampled[other]:
        in_resamples = resampled[other][metric] - resampled[baseline][metric]  # (S, B)
        values = {name: table[metric] for name, table in by_subject.items()}
        difference = values[other] - values[baseline]  # (S,)
        parts = {
            "test images": [Variance(float(in_resamples.mean(0).var(ddof=1)), n_images - 1)],
            "subjects": [variance_of_mean(difference.to_numpy(), left_out_in_turn)],
            "seeds": [
                part for table in points.values() for part in _over_seeds(runs, table[metric])
            ],
        }
        interval, p = t_test(
            float(difference.mean()), [part for what in over for part in parts[what]]
        )
        metrics[metric] = {name: float(value.mean()) for name, value in values.items()} | {
            "difference": float(difference.mean()),
            "ci95": interval if over else None,
            "ci95_these_models": these.interval(in_resamples.T),
            "p": p if over else None,
        }
    return Paired(over, metrics, by_subject)


def varies(runs: pd.DataFrame) -> list[str]:
    """What interval and p are over, from the fold, seed and subject of each run; nothing if that carries no claim.

    Where each subject has models of its own, trained from seeds of their own, what varies from subject to subject
    holds the seeds already.
    """
    several_seeds = runs.groupby("fold")["seed"].nunique().min() > 1
    models_are_shared = runs.groupby("fold")["subject"].nunique().max() > 1
    if runs["subject"].nunique() >= LEAST_SUBJECTS and (several_seeds or not models_are_shared):
        return (
            ["seeds", "subjects", "test images"]
            if models_are_shared
            else ["subjects", "test images"]
        )
    return ["seeds", "test images"] if several_seeds else []


def _over_seeds(runs: pd.DataFrame, values: pd.Series) -> list[Variance]:
    """What the seeds of each fold add to the variance of the mean over all subjects of one side's values (R,)."""
    parts = []
    for _, fold in runs.groupby("fold"):
        weight = fold["subject"].nunique() / runs["subject"].nunique()
        of_fold = variance_of_mean(values[fold.index].groupby(fold["seed"]).mean().to_numpy())
        parts.append(Variance(weight**2 * of_fold.value, of_fold.df))
    return parts
