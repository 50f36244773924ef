"""Metrics of the runs of a protocol: per subject, their means with intervals, and the curves.

Every figure is a mean over the test images, then over the seeds of a subject, then over subjects, and its interval is
that of `statistics.Resamples`. Seeds are no part of it, but where each subject has models of its own; their spread
stands beside it. Collapsed runs are left out, unless all are.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from pipeline.analysis.scoring import CHANNEL, WHOLE, WINDOW, Axes, Outcome
from pipeline.analysis.statistics import Resamples, draw_resamples, gallery_accuracy, mean_by_subject
from pipeline.decoding.retrieval import weigh_queries
from pipeline.sections import Evaluate

NOT_METRICS = ["fold", "seed", "subject", "collapsed", "selected_epoch", "n_way", "top1_acc_low", "top1_acc_high"]


def tabulate(
    outcomes: list[Outcome], axes: Axes, parameters: Evaluate, seed: int
) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The summary with 95 % intervals, and the tables by the name of their file."""
    n_images = len(axes.image_ids)
    table = _per_subject(outcomes, draw_resamples(1, n_images, parameters.resamples, seed), parameters)
    kept = [one for one in outcomes if not one.scored.collapsed] or outcomes
    n_subjects = len({one.scored.subject for one in kept})
    resamples = draw_resamples(n_subjects, n_images, parameters.resamples, seed)
    tables = {
        "per_subject": table,
        "top_k": _top_k(kept, resamples),
        "n_way": _n_way(kept, resamples, parameters),
        "repetitions": _repetitions(kept, resamples, axes, parameters),
        "time_course": _time_course(kept, resamples, axes, parameters),
        "channels": _channels(kept, resamples, axes),
    }
    return summarise(table) | _intervals(kept, resamples, parameters), tables


def summarise(table: pd.DataFrame) -> dict:
    """Means over subjects of each subject's mean over seeds, and the spread over both where there are several.

    `table` has a row a run and tested subject. Collapsed runs are counted and left out of the means, unless all are.
    """
    n_runs, n_collapsed = (len(t.groupby(["fold", "seed"])) for t in (table, table[table["collapsed"]]))
    if n_collapsed < n_runs:
        table = table[~table["collapsed"]]
    by_subject, by_seed = (table.groupby(key).mean(numeric_only=True) for key in ("subject", "seed"))
    metrics = [name for name in table.columns if name not in NOT_METRICS]
    summary = by_subject[metrics].mean().to_dict()
    for name, groups in (("sd_over_subjects", by_subject), ("sd_over_seeds", by_seed)):
        if len(groups) > 1:
            summary[name] = groups[metrics].std(ddof=1).to_dict()
    return summary | {
        "n_subjects": len(by_subject),
        "n_runs": n_runs,
        "n_collapsed": n_collapsed,
        "collapsed": n_collapsed > 0,
    }


def _per_subject(outcomes: list[Outcome], resamples: Resamples, parameters: Evaluate) -> pd.DataFrame:
    """The metrics of each run on each subject, and an interval of top-1 for this subject and other images."""
    rows = []
    for one in outcomes:
        about = {key: getattr(one.scored, key) for key in ("fold", "seed", "subject", "collapsed", "selected_epoch")}
        n_way = len(one.scored.similarity)
        metrics = weigh_queries(_whole(one), np.ones((1, n_way)), parameters.top_k)
        low, high = resamples.interval_of_mean(_whole(one)["rank"][None] == 1)
        metrics = {name: float(value[0]) for name, value in metrics.items()}
        rows.append(about | {"n_way": n_way} | metrics | {"top1_acc_low": low, "top1_acc_high": high})
    return pd.DataFrame(rows)


def _intervals(kept: list[Outcome], resamples: Resamples, parameters: Evaluate) -> dict:
    resampled = [weigh_queries(_whole(one), resamples.images, parameters.top_k) for one in kept]
    ends = {
        name: resamples.interval(_by_subject(kept, [metrics[name] for metrics in resampled]).T) for name in resampled[0]
    }
    return {
        "ci95_low": {name: low for name, (low, _) in ends.items()},
        "ci95_high": {name: high for name, (_, high) in ends.items()},
        **_coverage(pd.DataFrame([{"fold": one.scored.fold, "subject": one.scored.subject} for one in kept])),
        "n_resamples": len(resamples.images),
    }


def _coverage(runs: pd.DataFrame) -> dict[str, str]:
    """What the intervals are over, and what else varies: from the fold and subject of each run."""
    if runs["subject"].nunique() == 1:
        return {"ci95_over": "test images", "ci95_not_over": "seeds, subjects and training images"}
    if runs.groupby("fold")["subject"].nunique().max() > 1:
        return {"ci95_over": "subjects and test images", "ci95_not_over": "seeds and training images"}
    return {"ci95_over": "subjects, each with models of its own, and test images", "ci95_not_over": "training images"}


def _top_k(kept: list[Outcome], resamples: Resamples) -> pd.DataFrame:
    k = np.arange(1, resamples.images.shape[1] + 1)
    curve = _curve("top_k_acc", kept, resamples, [_whole(one)["rank"] <= k[:, None] for one in kept])
    return pd.concat([pd.DataFrame({"k": k}), curve, pd.DataFrame({"chance": k / len(k)})], axis=1)


def _n_way(kept: list[Outcome], resamples: Resamples, parameters: Evaluate) -> pd.DataFrame:
    """One row a gallery size below N, and N itself; top-k is NaN where the gallery has k images or fewer."""
    n_images = resamples.images.shape[1]
    sizes = sorted({n for n in parameters.n_way if n < n_images} | {n_images})

    def accuracy(one: Outcome, k: int) -> np.ndarray:
        rank = _whole(one)["rank"]
        return np.stack([gallery_accuracy(rank, n_images, n, k) if n > k else np.nan * rank for n in sizes])

    curves = [_curve(f"top{k}_acc", kept, resamples, [accuracy(one, k) for one in kept]) for k in parameters.top_k]
    chance = pd.DataFrame({"chance": 1 / np.array(sizes)})
    return pd.concat([pd.DataFrame({"n_way": sizes}), *curves, chance], axis=1)


def _repetitions(kept: list[Outcome], resamples: Resamples, axes: Axes, parameters: Evaluate) -> pd.DataFrame:
    """Fewer repetitions, each the mean of its draws; the last row, all of them, is what the metrics say."""
    sizes = [kind for kind in kept[0].queries if isinstance(kind, int)]
    columns = [pd.DataFrame({"n_repetitions": [*sizes, axes.n_repetitions]})]
    for k in parameters.top_k:
        correct = [{kind: one.queries[kind]["rank"] <= k for kind in (*sizes, WHOLE)} for one in kept]
        means = [np.stack([draws.mean(0) for draws in by_size.values()]) for by_size in correct]  # (V, N) each
        columns.append(_curve(f"top{k}_acc", kept, resamples, means))
        by_draw = [
            _by_subject(kept, [by_size[kind].mean(1) for by_size in correct]).mean(0) for kind in (*sizes, WHOLE)
        ]
        spread = [draws.std(ddof=1) if len(draws) > 1 else np.nan for draws in by_draw]
        columns.append(pd.DataFrame({f"top{k}_acc_sd_over_draws": spread}))
    return pd.concat(columns, axis=1).assign(chance=1 / len(axes.image_ids))


def _time_course(kept: list[Outcome], resamples: Resamples, axes: Axes, parameters: Evaluate) -> pd.DataFrame:
    centres = pd.DataFrame({"time": [axes.times[window].mean() for window in axes.windows]})
    curves = [
        _curve(f"top{k}_acc", kept, resamples, [one.queries[WINDOW]["rank"] <= k for one in kept])
        for k in parameters.top_k
    ]
    return pd.concat([centres, *curves], axis=1).assign(chance=1 / len(axes.image_ids))


def _channels(kept: list[Outcome], resamples: Resamples, axes: Axes) -> pd.DataFrame:
    """What is lost without each channel: all columns are positive where the channel helps."""

    def lost(measure: Callable[[dict[str, np.ndarray]], np.ndarray]) -> list[np.ndarray]:
        return [measure(one.queries[WHOLE]) - measure(one.queries[CHANNEL]) for one in kept]  # (1, N) - (C, N)

    losses = {
        "top1_acc_drop": lost(lambda queries: (queries["rank"] == 1).astype(float)),
        "nice_loss_rise": lost(lambda queries: -queries["nice_loss"]),
        "matched_cosine_drop": lost(lambda queries: queries["matched_cosine"]),
    }
    curves = [_curve(name, kept, resamples, values) for name, values in losses.items()]
    return pd.concat([pd.DataFrame({"ch_name": axes.ch_names}), *curves], axis=1)


def _curve(name: str, kept: list[Outcome], resamples: Resamples, values: list[np.ndarray]) -> pd.DataFrame:
    """A row for each of V points, from values (V, N) of each run and subject: mean, 95 % interval and spread."""
    by_subject = _by_subject(kept, values)  # (S, V, N)
    ends = np.array([resamples.interval_of_mean(by_subject[:, point]) for point in range(by_subject.shape[1])])
    means = by_subject.mean(2)  # (S, V)
    spread = means.std(0, ddof=1) if len(means) > 1 else np.full(means.shape[1], np.nan)
    columns = {name: means.mean(0), f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}
    return pd.DataFrame(columns | {f"{name}_sd_over_subjects": spread})


def _by_subject(kept: list[Outcome], values: list[np.ndarray]) -> np.ndarray:
    return mean_by_subject([one.scored.subject for one in kept], values)


def _whole(one: Outcome) -> dict[str, np.ndarray]:
    return {name: values[0] for name, values in one.queries[WHOLE].items()}
