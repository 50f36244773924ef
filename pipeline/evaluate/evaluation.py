"""Metrics of the runs of a protocol: per subject, their means with intervals, and the curves.

Every figure is a mean over the test images, then over the seeds of a subject, then over subjects.
Its interval is that of `statistics.Resamples`. The interval ignores seeds, except where each
subject has models of its own: there seeds are part of the spread over subjects. The spread over
seeds is reported separately. Collapsed runs are left out, unless all runs collapsed.

Axes: R runs and subjects tested, B resamples, S subjects, N test images, V points of a curve.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.chance import p_above_chance
from pipeline.evaluate.scoring import Scores, SharedAxes
from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    Resamples,
    curve,
    draw_resamples,
    gallery_accuracy,
    mean_by_subject,
)
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate
from pipeline.train.model import Notes


def tabulate(
    scores: list[Scores],
    axes: SharedAxes,
    made_with: Mapping[str, Any],
    parameters: Evaluate,
    seed: int,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The summary with 95 % intervals, and the tables by the stem of their file's name.

    `made_with` is copied into the summary; its `protocol`, `selected_on` and `closed_form` are read
    here.
    """
    n_images = len(axes.image_ids)
    metrics = [_metrics(score, parameters) for score in scores]
    # The interval of one subject's top-1 is over images alone.
    one_subject = draw_resamples(1, n_images, parameters.resamples, seed)
    per_subject = _per_subject(scores, metrics, one_subject)

    # Curves and intervals are of the runs that did not collapse, as are the means.
    valid = [score for score in scores if not score.result.collapsed] or scores
    n_subjects = len({score.result.subject for score in valid})
    resamples = draw_resamples(n_subjects, n_images, parameters.resamples, seed)
    tables = {
        "per_subject": per_subject,
        "top_k": _top_k(valid, resamples),
        "n_way": _n_way(valid, resamples, parameters),
        "repetitions": _repetitions(valid, resamples, axes, parameters),
        "time_course": _time_course(valid, resamples, axes, parameters),
        "channels": _channels(valid, resamples, axes),
    }

    runs = pd.DataFrame(
        [{"fold": score.result.fold, "subject": score.result.subject} for score in valid]
    )
    summary = summarise_runs(per_subject, list(metrics[0]))
    summary |= _intervals(valid, resamples, parameters)
    without_seeds = made_with.get("closed_form", False)
    summary |= describe_interval(runs, made_with["protocol"], without_seeds)
    summary |= {"n_resamples": parameters.resamples}
    # Where the test images selected the epoch, a permutation would not repeat what was done.
    p = None
    if made_with["selected_on"] != "test":
        p = p_above_chance([score.result for score in valid], parameters.resamples, seed)
    summary |= {"p_above_chance": p}
    summary |= {"n_way": n_images, "chance_top1": 1 / n_images, **made_with, "seed": seed}
    summary |= {"n_seeds": per_subject["seed"].nunique()}
    return summary, tables


def headline(summary: Mapping[str, Any], top_k: Sequence[int]) -> dict[str, Any]:
    """The dozen figures of a summary that people compare, flat: a column each in `dvc exp show`."""
    names = ["nice_loss", *(f"top{k}_acc" for k in top_k)]
    figures = {name: summary[name] for name in names}

    figures["top1_acc_low"] = summary["ci95_low"]["top1_acc"]
    figures["top1_acc_high"] = summary["ci95_high"]["top1_acc"]

    facts = ("chance_top1", "matched_cosine", "mismatched_cosine", "n_way", "n_subjects", "n_runs")
    marks = ("collapsed", "selected_on", "synthetic")
    return figures | {name: summary[name] for name in (*facts, *marks)}


def summarise_runs(table: pd.DataFrame, metrics: list[str]) -> dict[str, Any]:
    """The mean of each metric, its spread over subjects and over seeds, and the number of runs.

    `table` has a row a run and tested subject, with columns fold, seed, subject, collapsed and the
    metrics. The mean is over subjects, of each subject's mean over seeds. The spreads are standard
    deviations, given where there are several subjects or seeds. Collapsed runs are counted and
    left out of the means, unless all runs collapsed.
    """
    n_runs = len(table.groupby(["fold", "seed"]))
    n_collapsed = len(table[table["collapsed"]].groupby(["fold", "seed"]))
    if n_collapsed < n_runs:
        table = table[~table["collapsed"]]

    # Over the seeds of each subject, and over the subjects of each seed. Fold and subject are text.
    by_subject = table.groupby("subject").mean(numeric_only=True)
    by_seed = table.groupby("seed").mean(numeric_only=True)
    summary: dict[str, Any] = dict(zip(metrics, by_subject[metrics].mean().tolist(), strict=True))
    for name, means in (("sd_over_subjects", by_subject), ("sd_over_seeds", by_seed)):
        if len(means) > 1:
            summary[name] = means[metrics].std(ddof=1).to_dict()

    return summary | {
        "n_subjects": len(by_subject),
        "n_runs": n_runs,
        "n_collapsed": n_collapsed,
        "collapsed": n_collapsed > 0,
    }


def summarise_block_weights(models: Iterable[Notes]) -> dict[str, Any]:
    """The mean weight of each mixed block over the runs, and its standard deviation.

    Collapsed runs are left out, unless all runs collapsed. Returns an empty dictionary if the
    models mix no blocks; of a single run the standard deviation is left out.
    """
    runs = pd.DataFrame(
        [{"collapsed": notes["collapsed"]} | notes["block_weights"] for notes in models]
    )
    # What is left in `runs` is a column a block.
    collapsed = runs.pop("collapsed").astype(bool)
    weights = runs if collapsed.all() else runs[~collapsed]
    if not len(weights.columns):
        return {}

    summary = {"block_weights": weights.mean().to_dict()}
    if len(weights) > 1:
        summary["sd_of_block_weights"] = weights.std(ddof=1).to_dict()
    return summary


def summarise_fits(models: Iterable[Notes]) -> dict[str, Any]:
    """Of models in closed form the penalty of each fold, and the mean of `held_out_r2`; else {}."""
    fits = [notes for notes in models if "penalty" in notes]
    if not fits:
        return {}
    return {
        "penalty": {notes["fold"]: notes["penalty"] for notes in fits},
        "held_out_r2": float(np.mean([notes["held_out_r2"] for notes in fits])),
    }


def describe_interval(
    runs: pd.DataFrame, protocol: str, without_seeds: bool = False
) -> dict[str, str]:
    """What the bootstrap intervals of one evaluation's means are over, and what they leave out.

    `runs` has the columns fold and subject. `without_seeds`: no seed could change a model.
    """
    if runs["subject"].nunique() == 1:
        not_over = "subjects and training images"
        return {
            "ci95_over": "test images",
            "ci95_not_over": not_over if without_seeds else f"seeds, {not_over}",
        }

    # Where a fold tests several subjects, these have the same model.
    models_are_shared = runs.groupby("fold")["subject"].nunique().max() > 1
    if models_are_shared:
        left_out = ["training images"] if without_seeds else ["seeds", "training images"]
        if protocol == "across":
            left_out.append("the people who trained")
        return {"ci95_over": "subjects and test images", "ci95_not_over": in_words(left_out)}

    not_over = "training images"
    if protocol == "leave-one-subject-out":
        not_over += " and training subjects, which the folds share"
    return {
        "ci95_over": "subjects, each with models of its own, and test images",
        "ci95_not_over": not_over,
    }


def in_words(names: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _metrics(score: Scores, parameters: Evaluate) -> dict[str, float]:
    """The metrics of one run on one subject, each image counted once."""
    once = np.ones((1, len(score.result.similarity)))
    metrics = weigh_queries(score.full, once, parameters.top_k)
    return {name: float(value[0]) for name, value in metrics.items()}


def _per_subject(
    scores: list[Scores], metrics: list[dict[str, float]], resamples: Resamples
) -> pd.DataFrame:
    """A row a run and subject: its metrics, and top-1's interval for this subject, new images."""
    columns = ("fold", "seed", "subject", "collapsed", "selected_epoch")
    rows = []
    for score, values in zip(scores, metrics, strict=True):
        row = {name: getattr(score.result, name) for name in columns}
        row |= {"n_way": len(score.result.similarity)} | values

        low, high = resamples.interval_of_mean(score.full["rank"][None] == 1)
        rows.append(row | {"top1_acc_low": low, "top1_acc_high": high})

    return pd.DataFrame(rows)


def _intervals(
    scores: list[Scores], resamples: Resamples, parameters: Evaluate
) -> dict[str, dict[str, float]]:
    """The ends of the 95 % interval of each metric."""
    resampled = [weigh_queries(score.full, resamples.images, parameters.top_k) for score in scores]
    ends = {}
    for name in resampled[0]:
        by_subject = _by_subject(scores, [metrics[name] for metrics in resampled])  # (S, B)
        ends[name] = resamples.interval(by_subject.T)  # (B, S)

    return {
        "ci95_low": {name: low for name, (low, _) in ends.items()},
        "ci95_high": {name: high for name, (_, high) in ends.items()},
    }


def _top_k(scores: list[Scores], resamples: Resamples) -> pd.DataFrame:
    """One row for each k from 1 to N."""
    k = np.arange(1, resamples.images.shape[1] + 1)
    correct = [score.full["rank"] <= k[:, None] for score in scores]  # (N ranks k, N images) each
    accuracy = curve("top_k_acc", _subjects(scores), correct, resamples)
    chance = pd.DataFrame({"chance": k / len(k)})
    return pd.concat([pd.DataFrame({"k": k}), accuracy, chance], axis=1)


def _n_way(scores: list[Scores], resamples: Resamples, parameters: Evaluate) -> pd.DataFrame:
    """One row for each gallery size below N, and N itself.

    Top-k is NaN where the gallery has k images or fewer.
    """
    n_images = resamples.images.shape[1]
    sizes = sorted({n for n in parameters.n_way if n < n_images} | {n_images})

    def accuracy(score: Scores, k: int) -> np.ndarray:
        rank = score.full["rank"]
        return np.stack(
            # "np.nan * rank": NaN for each image, where every answer would be among the k best.
            [gallery_accuracy(rank, n_images, n, k) if n > k else np.nan * rank for n in sizes]
        )

    curves = [
        curve(f"top{k}_acc", _subjects(scores), [accuracy(score, k) for score in scores], resamples)
        for k in parameters.top_k
    ]
    chance = pd.DataFrame({"chance": 1 / np.array(sizes)})
    return pd.concat([pd.DataFrame({"n_way": sizes}), *curves, chance], axis=1)


def _repetitions(
    scores: list[Scores], resamples: Resamples, axes: SharedAxes, parameters: Evaluate
) -> pd.DataFrame:
    """One row for each number of repetitions, each the mean over its random draws.

    The last row is of all repetitions, and equals the metrics.
    """
    ranks = {
        n: [score.repetitions[n]["rank"] for score in scores] for n in scores[0].repetitions
    }  # lists of R arrays (draws, N)
    # All repetitions: nothing is left to draw, so that there is one draw.
    ranks[axes.n_repetitions] = [score.full["rank"][None] for score in scores]

    columns = [pd.DataFrame({"n_repetitions": list(ranks)})]
    for k in parameters.top_k:
        # The draws of an image are averaged first: only images and subjects are resampled.
        accuracies = np.stack(
            [[(rank <= k).mean(0) for rank in of_size] for of_size in ranks.values()], axis=1
        )  # (R, V, N)
        columns.append(curve(f"top{k}_acc", _subjects(scores), list(accuracies), resamples))

        spread = [_sd_over_draws(scores, of_size, k) for of_size in ranks.values()]
        columns.append(pd.DataFrame({f"top{k}_acc_sd_over_draws": spread}))

    return pd.concat(columns, axis=1).assign(chance=1 / len(axes.image_ids))


def _sd_over_draws(scores: list[Scores], ranks: list[np.ndarray], k: int) -> float:
    """The spread of top-k over the random draws, from R arrays (draws, N); NaN for one draw."""
    by_draw = _by_subject(scores, [(rank <= k).mean(1) for rank in ranks]).mean(0)  # (draws,)
    return by_draw.std(ddof=1) if len(by_draw) > 1 else np.nan


def _time_course(
    scores: list[Scores], resamples: Resamples, axes: SharedAxes, parameters: Evaluate
) -> pd.DataFrame:
    """One row for each window, by the time of its centre (s)."""
    centres = pd.DataFrame({"time": [axes.times[window].mean() for window in axes.windows]})
    curves = [
        curve(
            f"top{k}_acc",
            _subjects(scores),
            [score.windows["rank"] <= k for score in scores],
            resamples,
        )
        for k in parameters.top_k
    ]
    return pd.concat([centres, *curves], axis=1).assign(chance=1 / len(axes.image_ids))


def _channels(scores: list[Scores], resamples: Resamples, axes: SharedAxes) -> pd.DataFrame:
    """One row for each channel: the loss of accuracy if it is masked, positive where it helps.

    The columns x and y, the channel's place on the head, are there where the recording has them.
    """
    measures: dict[str, Callable[[Queries], np.ndarray]] = {
        "top1_acc_drop": lambda queries: (queries["rank"] == 1).astype(float),
        # Turned round, so that a drop of this value is a rise of the loss.
        "nice_loss_rise": lambda queries: -queries["nice_loss"],
        "matched_cosine_drop": lambda queries: queries["matched_cosine"],
    }
    curves = []
    for name, measure in measures.items():
        losses = [measure(score.full) - measure(score.channels) for score in scores]  # (C, N) each
        curves.append(curve(name, _subjects(scores), losses, resamples))

    channels = pd.DataFrame({"ch_name": axes.ch_names})
    if axes.sensor_positions is not None:
        channels["x"] = axes.sensor_positions[:, 0]
        channels["y"] = axes.sensor_positions[:, 1]
    return pd.concat([channels, *curves], axis=1)


def _by_subject(scores: list[Scores], values: list[np.ndarray]) -> np.ndarray:
    """The mean over the runs of each subject, (S, ...)."""
    return mean_by_subject(_subjects(scores), values)


def _subjects(scores: list[Scores]) -> list[str]:
    return [score.result.subject for score in scores]
