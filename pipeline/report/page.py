"""The report of an evaluation: one HTML page, with curves by Vega-Lite and the pictures."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from pipeline.compare.comparison import COSINE_EDGES, cosine_histograms
from pipeline.datasets.published import Published
from pipeline.evaluate.similarities import Similarities
from pipeline.report import charts
from pipeline.report.pictures import valid_results
from pipeline.report.style import Picture
from pipeline.report.template import records, write_page

VEGA_LITE = "6.4"  # the same major version as `charts.SCHEMA`
SUBJECT_COLUMNS = {
    "subject": "subject",
    "seed": "seed",
    "top1_acc": "top-1",
    "top1_acc_low": "low",
    "top1_acc_high": "high",
    "top3_acc": "top-3",
    "top5_acc": "top-5",
    "nice_loss": "loss (nats)",
    "median_rank": "median rank",
    "mrr": "mrr",
    "matched_cosine": "matched cosine",
    "mismatched_cosine": "mismatched cosine",
    "selected_epoch": "epoch",
    "collapsed": "collapsed",
}


def write_report(
    path: Path,
    *,
    evaluation: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    curves: pd.DataFrame,
    comparison: dict[str, Any] | None,
    beside: dict[str, Any] | None = None,
    settings: dict[str, Any],
    pictures: Sequence[Picture],
    published: Sequence[Published],
    may_share_images: bool,
    shows_images: bool,
    hashes: dict[str, str],
) -> None:
    """Write the page.

    `evaluation` is details.json, `tables` the CSV files of the evaluate stage by their stem,
    `curves` what `learning_curves` returns, `comparison` that of the two encoders where there is
    one of this evaluation, `beside` what `set_beside_baseline` returns, `settings` what decided the
    figures, `published` and `may_share_images` those of the dataset's entry, `hashes` the sha256 of
    the files that the page is made of.
    """
    subjects = tables["per_subject"]
    drawn = _charts(evaluation, tables, curves, comparison, beside or {})
    write_page(
        path,
        "page.html",
        pictures=pictures,
        settings=settings,
        hashes=hashes,
        versions={"Vega-Lite": VEGA_LITE},
        run=evaluation,
        comparison=comparison,
        beside=beside,
        eeg_encoder=settings.get("train", {}).get("eeg_encoder", "this run"),
        chance=chance_levels(evaluation["n_way"]),
        # `evaluate.top_k` decides which top-k there are.
        subject_columns={
            name: title for name, title in SUBJECT_COLUMNS.items() if name in subjects
        },
        subjects=records(subjects),
        galleries=records(tables["n_way"]),
        # top5_acc becomes 5.
        top_k=[
            name[3:-4] for name in map(str, tables["n_way"]) if re.fullmatch(r"top\d+_acc", name)
        ],
        charts=drawn,
        specs={id: chart.spec for id, chart in drawn.items()},
        published=published,
        may_share_images=may_share_images,
        shows_images=shows_images,
        # What draws the charts, 0.9 MB of JavaScript. The stub of vl-convert wants a snippet
        vega=vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]
    )


def chance_levels(n_way: int) -> dict[str, float]:
    """What guessing gives in a gallery of `n_way`; the loss is that of equal similarities."""
    levels = {"nice_loss": math.log(n_way), "cosine_difference": 0.0, "cosine_effect_size": 0.0}
    for direction in ("", "image_to_eeg_"):
        # A guessed rank is any of 1 to n_way, each as likely.
        levels |= {f"{direction}top{k}_acc": k / n_way for k in range(1, n_way + 1)}
        levels |= {f"{direction}{middle}_rank": (n_way + 1) / 2 for middle in ("mean", "median")}
        levels[f"{direction}mrr"] = sum(1 / rank for rank in range(1, n_way + 1)) / n_way
    return levels


def learning_curves(
    history: pd.DataFrame, reference: pd.DataFrame, evaluation: dict[str, Any]
) -> pd.DataFrame:
    """The learning curves, with a row for each epoch of each curve.

    Columns: `curve` (its name), `epoch`, `loss` (nats) and `top1_acc` (missing in training).

    `history` has epoch, train_loss and, where an epoch was selected, selection_loss and
    selection_top1. Of published runs (`reference`: dataset, protocol, encoder, epoch from 0,
    nice_loss and top1_acc of the test images) the one of the same dataset, protocol and encoder is
    added, if there is one.
    """
    curves = [history[["epoch"]].assign(curve="training", loss=history["train_loss"])]
    if "selection_loss" in history:
        selection = {"loss": history["selection_loss"], "top1_acc": history["selection_top1"]}
        curves.append(history[["epoch"]].assign(curve=evaluation["selected_on"], **selection))

    # Another protocol or dataset is another task: its curve would compare with nothing here.
    columns = ["dataset", "protocol", "encoder"]
    theirs = reference[(reference[columns] == [evaluation[name] for name in columns]).all(axis=1)]
    if len(theirs):
        published = {
            "epoch": theirs["epoch"] + 1,  # ours count from 1
            "loss": theirs["nice_loss"],
            "top1_acc": theirs["top1_acc"],
        }
        curves.append(pd.DataFrame(published).assign(curve=charts.PUBLISHED_RUN))
    return pd.concat(curves).reindex(columns=["curve", "epoch", "loss", "top1_acc"])


def cosines(
    similarities: Similarities, evaluation: dict[str, Any], comparison: dict[str, Any] | None
) -> dict[str, Any]:
    """What `cosine_distributions` draws: both sides of a comparison, or else this run."""
    if comparison is None or "metrics" not in comparison:
        histograms = cosine_histograms(valid_results(similarities))
        means = {name: evaluation[name] for name in ("matched_cosine", "mismatched_cosine")}
        return {"edges": COSINE_EDGES, evaluation["encoder"]: histograms | means}

    # Of both sides, all runs and subjects that were compared.
    drawn = {"edges": comparison["cosines"]["edges"]}
    for side in (comparison["baseline"], comparison["other"]):
        means = {
            name: comparison["metrics"][name][side]
            for name in ("matched_cosine", "mismatched_cosine")
        }
        drawn[side] = comparison["cosines"][side] | means
    return drawn


def _charts(
    run: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    curves: pd.DataFrame,
    comparison: dict[str, Any] | None,
    beside: dict[str, Any],
) -> dict[str, charts.Chart]:
    encoder, top1 = run["encoder"], "top-1 accuracy"
    subjects = _top1_of_subjects(run, tables["per_subject"], comparison)
    if "per_subject" in beside:
        ridge = {row["subject"]: row["baseline"] for row in beside["per_subject"]}
        subjects["ridge"] = subjects["subject"].map(ridge)
    drawn = {"subjects": charts.subjects(subjects)}

    # What has a closed form learns nothing epoch by epoch.
    learns = not run.get("closed_form")
    if learns:
        drawn["loss"] = charts.learning(
            curves.dropna(subset="loss"), "loss", "Learning curve", "contrastive loss (nats)"
        )

    # Without an epoch that was selected there is no top-1 while learning.
    selection = curves.dropna(subset="top1_acc")
    if learns and len(selection):
        drawn["top1"] = charts.learning(selection, "top1_acc", "Top-1 while learning", top1)

    nearest, recording, window = (
        "Among the k nearest",
        "How much recording is needed",
        "When: one window of the EEG",
    )

    # (table, column of x, metric, heading, titles of both axes, whether x is logarithmic)
    for name, x, y, heading, x_title, y_title, log in (
        ("top_k", "k", "top_k_acc", nearest, "k", "accuracy", True),
        ("repetitions", "n_repetitions", "top1_acc", recording, "repetitions averaged", top1, True),
        (
            "time_course",
            "time",
            "top1_acc",
            window,
            "centre of the window after onset (s)",
            top1,
            False,
        ),
    ):
        drawn[name] = charts.curve(tables[name], x, y, heading, x_title, y_title, encoder, log)
    return drawn


def _top1_of_subjects(
    run: dict[str, Any], per_subject: pd.DataFrame, comparison: dict[str, Any] | None
) -> pd.DataFrame:
    """Top-1 of each subject, the mean over seeds; of both sides where two were compared."""
    if comparison is not None and "per_subject" in comparison:
        both = [
            {"subject": row["subject"], "encoder": side, "top1_acc": row[side]["top1_acc"]}
            for row in comparison["per_subject"]
            for side in (comparison["baseline"], comparison["other"])
        ]
        return pd.DataFrame(both).assign(chance=run["chance_top1"])

    # Where all runs collapsed, they are what there is to draw
    runs = per_subject
    if run["n_collapsed"] < run["n_runs"]:
        runs = per_subject[~per_subject["collapsed"]]
    columns = ["top1_acc", "top1_acc_low", "top1_acc_high"]
    table = runs.groupby("subject", as_index=False)[columns].mean()

    # The interval of a mean over seeds is not the mean of their intervals
    if runs["subject"].duplicated().any():
        table = table[["subject", "top1_acc"]]
    return table.assign(encoder=run["encoder"], chance=run["chance_top1"])
