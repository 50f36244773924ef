"""Metrics of the runs of a protocol: per subject, their means with intervals, and the curves.

Every figure is a mean over the test images, then over the seeds of a subject, then over subjects, and its interval is
that of `statistics.Resamples`. Seeds are no part of it, but where each subject has models of its own; their spread
stands beside it. Collapsed runs are left out, unless all are.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.scoring import Scores, SharedAxes
from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    Resamples,
    draw_resamples,
    gallery_accuracy,
    mean_by_subject,
)
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate
from pipeline.train.model import Notes


def tabulate(
    outcomes: list[Scores],
    axes: SharedAxes,
    made_with: Mapping[str, Any],
    parameters: Evaluate,
    seed: int,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The summary with 95 % intervals, and the tables by the name of their file.

    `made_with` stands in the summary too; of it only `protocol` is read.
    """
    n_images = len(axes.image_ids)
    metrics = [_metrics(one, parameters) for one in outcomes]
    table = _per_subject(outcomes, metrics, draw_resamples(1, n_images, parameters.resamples, seed))
    kept = [one for one in outcomes if not one.result.collapsed] or outcomes
    n_subjects = len({one.result.subject for one in kept})
    resamples = draw_resamples(n_subjects, n_images, parameters.resamples, seed)
    tables = {
        "per_subject": table,
        "top_k": _top_k(kept, resamples),
        "n_way": _n_way(kept, resamples, parameters),
        "repetitions": _repetitions(kept, resamples, axes, parameters),
        "time_course": _time_course(kept, resamples, axes, parameters),
        "channels": _channels(kept, resamples, axes),
    }
    summary = summarise(table, list(metrics[0])) | _intervals(kept, resamples, parameters)
    runs = pd.DataFrame([{"fold": one.result.fold, "subject": one.result.subject} for one in kept])
    summary |= coverage(runs, made_with["protocol"]) | {"n_resamples": parameters.resamples}
    summary |= {"n_way": n_images, "chance_top1": 1 / n_images, **made_with, "seed": seed}
    return summary | {"n_seeds": table["seed"].nunique()}, tables


def summarise(table: pd.DataFrame, metrics: list[str]) -> dict[str, Any]:
    """Means over subjects of each subject's mean over seeds, and the spread over both where there are several.

    `table` has a row a run and tested subject, with columns fold, seed, subject, collapsed and the metrics. Collapsed
    runs are counted and left out of the means, unless all are.
    """
    n_runs, n_collapsed = (
        len(t.groupby(["fold", "seed"])) for t in (table, table[table["collapsed"]])
    )
    if n_collapsed < n_runs:
        table = table[~table["collapsed"]]
    by_subject, by_seed = (
        table.groupby(key).mean(numeric_only=True) for key in ("subject", "seed")
    )
    summary: dict[str, Any] = dict(zip(metrics, by_subject[metrics].mean().tolist(), strict=True))
    for name, groups in (("sd_over_subjects", by_subject), ("sd_over_seeds", by_seed)):
        if len(groups) > 1:
            summary[name] = groups[metrics].std(ddof=1).to_dict()
    return summary | {
        "n_subjects": len(by_subject),
        "n_runs": n_runs,
        "n_collapsed": n_collapsed,
        "collapsed": n_collapsed > 0,
    }


def summarise_block_weights(models: Iterable[Notes]) -> dict[str, Any]:
    """The mean weight of each block that was mixed, over the runs that did not collapse unless all did, and its spread.

    Nothing where no blocks were mixed; no spread of a single run.
    """
    runs = pd.DataFrame(
        [{"collapsed": notes["collapsed"]} | notes["block_weights"] for notes in models]
    )
    collapsed = runs.pop("collapsed").astype(bool)
    kept = runs if collapsed.all() else runs[~collapsed]
    if not len(kept.columns):
        return {}
    spread = {"sd_of_block_weights": kept.std(ddof=1).to_dict()} if len(kept) > 1 else {}
    return {"block_weights": kept.mean().to_dict()} | spread


def _metrics(one: Scores, parameters: Evaluate) -> dict[str, float]:
    weighed = weigh_queries(one.whole, np.ones((1, len(one.result.similarity))), parameters.top_k)
    return {name: float(value[0]) for name, value in weighed.items()}


def _per_subject(
    outcomes: list[Scores], metrics: list[dict[str, float]], resamples: Resamples
) -> pd.DataFrame:
    """The metrics of each run on each subject, and an interval of top-1 for this subject and other images."""
    rows = []
    for one, values in zip(outcomes, metrics, strict=True):
        about = {
            key: getattr(one.result, key)
            for key in ("fold", "seed", "subject", "collapsed", "selected_epoch")
        }
        low, high = resamples.interval_of_mean(one.whole["rank"][None] == 1)
        ends = {"top1_acc_low": low, "top1_acc_high": high}
        rows.append(about | {"n_way": len(one.result.similarity)} | values | ends)
    return pd.DataFrame(rows)


def _intervals(
    kept: list[Scores], resamples: Resamples, parameters: Evaluate
) -> dict[str, dict[str, float]]:
    resampled = [weigh_queries(one.whole, resamples.images, parameters.top_k) for one in kept]
    ends = {
        name: resamples.interval(_by_subject(kept, [metrics[name] for metrics in resampled]).T)
        for name in resampled[0]
    }
    return {
        "ci95_low": {name: low for name, (low, _) in ends.items()},
        "ci95_high": {name: high for name, (_, high) in ends.items()},
    }


def coverage(runs: pd.DataFrame, protocol: str) -> dict[str, str]:
    """What the bootstrap intervals of one side's means are over, and what else varies; `runs` has fold and subject."""
    if runs["subject"].nunique() == 1:
        return {"ci95_over": "test images", "ci95_not_over": "seeds, subjects and training images"}
    if runs.groupby("fold")["subject"].nunique().max() > 1:
        return {
            "ci95_over": "subjects and test images",
            "ci95_not_over": "seeds and training images",
        }
    not_over = "training images"
    if protocol == "leave-one-subject-out":
        not_over += " and training subjects, which the folds share"
    return {
        "ci95_over": "subjects, each with models of its own, and test images",
        "ci95_not_over": not_over,
    }


def _top_k(kept: list[Scores], resamples: Resamples) -> pd.DataFrame:
    k = np.arange(1, resamples.images.shape[1] + 1)
    curve = _curve("top_k_acc", kept, resamples, [one.whole["rank"] <= k[:, None] for one in kept])
    return pd.concat([pd.DataFrame({"k": k}), curve, pd.DataFrame({"chance": k / len(k)})], axis=1)


def _n_way(kept: list[Scores], resamples: Resamples, parameters: Evaluate) -> pd.DataFrame:
    """One row a gallery size below N, and N itself; top-k is NaN where the gallery has k images or fewer."""
    n_images = resamples.images.shape[1]
    sizes = sorted({n for n in parameters.n_way if n < n_images} | {n_images})

    def accuracy(one: Scores, k: int) -> np.ndarray:
        rank = one.whole["rank"]
        return np.stack(
            [gallery_accuracy(rank, n_images, n, k) if n > k else np.nan * rank for n in sizes]
        )

    curves = [
        _curve(f"top{k}_acc", kept, resamples, [accuracy(one, k) for one in kept])
        for k in parameters.top_k
    ]
    chance = pd.DataFrame({"chance": 1 / np.array(sizes)})
    return pd.concat([pd.DataFrame({"n_way": sizes}), *curves, chance], axis=1)


def _repetitions(
    kept: list[Scores], resamples: Resamples, axes: SharedAxes, parameters: Evaluate
) -> pd.DataFrame:
    """Fewer repetitions, each the mean of its draws; the last row, all of them, is what the metrics say."""
    sizes = [*kept[0].repetitions, axes.n_repetitions]
    ranks = [
        [one.repetitions[n]["rank"] for one in kept] for n in sizes[:-1]
    ]  # by size and run, (draws, N)
    ranks.append([one.whole["rank"][None] for one in kept])
    columns = [pd.DataFrame({"n_repetitions": sizes})]
    for k in parameters.top_k:
        means = np.stack(
            [[(rank <= k).mean(0) for rank in of_size] for of_size in ranks], axis=1
        )  # (runs, V, N)
        columns.append(_curve(f"top{k}_acc", kept, resamples, list(means)))
        by_draw = [
            _by_subject(kept, [(rank <= k).mean(1) for rank in of_size]).mean(0)
            for of_size in ranks
        ]
        spread = [draws.std(ddof=1) if len(draws) > 1 else np.nan for draws in by_draw]
        columns.append(pd.DataFrame({f"top{k}_acc_sd_over_draws": spread}))
    return pd.concat(columns, axis=1).assign(chance=1 / len(axes.image_ids))


def _time_course(
    kept: list[Scores], resamples: Resamples, axes: SharedAxes, parameters: Evaluate
) -> pd.DataFrame:
    centres = pd.DataFrame({"time": [axes.times[window].mean() for window in axes.windows]})
    curves = [
        _curve(f"top{k}_acc", kept, resamples, [one.windows["rank"] <= k for one in kept])
        for k in parameters.top_k
    ]
    return pd.concat([centres, *curves], axis=1).assign(chance=1 / len(axes.image_ids))


def _channels(kept: list[Scores], resamples: Resamples, axes: SharedAxes) -> pd.DataFrame:
    """What is lost without each channel, positive where it helps; and x, y on the head where no name tells them."""

    def lost(measure: Callable[[Queries], np.ndarray]) -> list[np.ndarray]:
        return [measure(one.whole) - measure(one.channels) for one in kept]  # (N,) - (C, N)

    losses = {
        "top1_acc_drop": lost(lambda queries: (queries["rank"] == 1).astype(float)),
        "nice_loss_rise": lost(lambda queries: -queries["nice_loss"]),
        "matched_cosine_drop": lost(lambda queries: queries["matched_cosine"]),
    }
    curves = [_curve(name, kept, resamples, values) for name, values in losses.items()]
    about = pd.DataFrame({"ch_name": axes.ch_names})
    if axes.places is not None:
        about["x"], about["y"] = axes.places.T
    return pd.concat([about, *curves], axis=1)


def _curve(
    name: str, kept: list[Scores], resamples: Resamples, values: list[np.ndarray]
) -> pd.DataFrame:
    """A row for each of V points, from values (V, N) of each run and subject: mean, 95 % interval and spread."""
    by_subject = _by_subject(kept, values)  # (S, V, N)
    ends = np.array(
        [resamples.interval_of_mean(by_subject[:, point]) for point in range(by_subject.shape[1])]
    )
    means = by_subject.mean(2)  # (S, V)
    spread = means.std(0, ddof=1) if len(means) > 1 else np.full(means.shape[1], np.nan)
    columns = {name: means.mean(0), f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}
    return pd.DataFrame(columns | {f"{name}_sd_over_subjects": spread})


def _by_subject(kept: list[Scores], values: list[np.ndarray]) -> np.ndarray:
    return mean_by_subject([one.result.subject for one in kept], values)
