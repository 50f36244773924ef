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
from pipeline.evaluate.chance import describe_chance, is_alarming
from pipeline.evaluate.similarities import Similarities
from pipeline.report import charts
from pipeline.report.pictures import has_positions
from pipeline.report.style import COLOURS, QUIET, RIGHT, Picture
from pipeline.report.template import records, write_page

VEGA_LITE = "6.4"  # the same major version as `charts.SCHEMA`
Charts = dict[str, charts.Chart]  # by the id in the page
EEG_HALVES = "{}: half finds half"
ENCODER_HALVES = "trained encoder: half finds half"
NOISE_CEILING = "noise ceiling"
DIFFERENCE = "aligned − unaligned"
RESPONSES = ("reliability", "rsa", "rsa_difference")  # charts that stand beside their tables
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
    explanation: dict[str, Any],
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

    `evaluation` is details.json, `explanation` explanation.json, `tables` the CSV files of the
    stages evaluate and explain by their stem, `curves` what `learning_curves` returns, `comparison`
    that of the two encoders where there is one of this evaluation, `beside` what
    `set_beside_baseline` returns, `settings` what decided the figures, `published` and
    `may_share_images` those of the dataset's entry, `hashes` the sha256 of the files that the page
    is made of.
    """
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
        modality=evaluation.get("modality", "EEG"),
        without_map=_without_map(tables["channels"]),
        eeg_encoder=settings.get("train", {}).get("eeg_encoder", "this run"),
        chance=chance_levels(evaluation["n_way"]),
        above_chance=describe_chance(evaluation),
        is_alarming=is_alarming(evaluation),
        explanation=explanation,
        **_rows_of_tables(tables, comparison),
        charts=drawn,
        among_curves=[id for id in drawn if id not in ("subjects", *RESPONSES)],
        specs={id: chart.spec for id, chart in drawn.items()},
        published=published,
        may_share_images=may_share_images,
        shows_images=shows_images,
        # What draws the charts, 0.9 MB of JavaScript. The stub of vl-convert wants a snippet
        vega=vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]
    )


def _rows_of_tables(
    tables: dict[str, pd.DataFrame], comparison: dict[str, Any] | None
) -> dict[str, Any]:
    """The rows of the page's tables, and which columns they have."""
    subjects = tables["per_subject"]
    concepts = _with_difference(tables["concepts"], comparison)
    metrics = map(str, tables["n_way"])
    return {
        "subjects": records(subjects),
        # `evaluate.top_k` decides which top-k there are.
        "subject_columns": {
            name: title for name, title in SUBJECT_COLUMNS.items() if name in subjects
        },
        # top5_acc becomes 5.
        "top_k": [name[3:-4] for name in metrics if re.fullmatch(r"top\d+_acc", name)],
        "galleries": records(tables["n_way"]),
        "larger_galleries": records(tables["galleries"]),
        "calibration": records(tables["calibration"]),
        "reliability": records(_beside_run(tables["reliability"], tables["repetitions"])),
        "near_misses": records(tables["near_misses"]),
        "concepts": records(concepts),
        "with_people": "people_percentile" in concepts,
        "with_difference": "difference" in concepts,
    }


def _without_map(channels: pd.DataFrame) -> str:
    """The first names of channels that have no map; "" where there is one."""
    if has_positions(channels):
        return ""
    names = channels["ch_name"].astype(str).tolist()
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _with_difference(concepts: pd.DataFrame, comparison: dict[str, Any] | None) -> pd.DataFrame:
    """The table of concepts; of a comparison, with the difference of top-1 of each."""
    if comparison is None or "per_image" not in comparison:
        return concepts

    per_image = comparison["per_image"]
    top1 = {
        side: pd.Series(per_image[comparison[side]]["top1_acc"], per_image["image_ids"])
        for side in ("baseline", "other")
    }
    difference = top1["other"] - top1["baseline"]
    return concepts.assign(difference=concepts["image"].map(difference))


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
        histograms = cosine_histograms(similarities.valid_results)
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
) -> Charts:
    encoder, top1 = run["encoder"], "top-1 accuracy"
    modality = run.get("modality", "EEG")
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
        f"When: one window of the {modality}",
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
    return drawn | _charts_of_responses(run, tables)


def _beside_run(reliability: pd.DataFrame, repetitions: pd.DataFrame) -> pd.DataFrame:
    """The reliability with the top-1 of the run from as many repetitions, as `run_top1_acc`."""
    run = repetitions.set_index("n_repetitions")["top1_acc"]
    return reliability.assign(run_top1_acc=reliability["n_repetitions"].map(run))


def _charts_of_responses(run: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Charts:
    """The charts of the EEG without an image to retrieve, where it has repetitions."""
    drawn = {}
    of_run = f"{run['encoder']}: finds the image"
    modality = run.get("modality", "EEG")
    eeg_halves = EEG_HALVES.format(modality)
    colours = {eeg_halves: QUIET, ENCODER_HALVES: RIGHT, of_run: COLOURS[run["encoder"]]}
    reliability = tables["reliability"]
    if len(reliability):
        names = {"EEG": eeg_halves, "encoder": ENCODER_HALVES}
        halves = reliability[reliability["subjects"] == "within"]
        table = pd.concat(
            [
                halves.assign(line=halves["space"].map(names)),
                tables["repetitions"].assign(line=of_run),
            ]
        )
        columns = ["line", "n_repetitions", "top1_acc", "top1_acc_low", "top1_acc_high", "chance"]
        drawn["reliability"] = charts.lines(
            table[columns],
            "n_repetitions",
            "top1_acc",
            "Half of the repetitions finds the other half",
            f"repetitions averaged, on each side that is {modality}",
            "top-1 accuracy",
            colours,
            log=True,
        )

    rsa = tables["rsa"]
    if len(rsa):
        drawn["rsa"] = charts.lines(
            _geometry_lines(rsa),
            "time",
            "spearman",
            "Geometry over time",
            "centre of the window after onset (s)",
            "Spearman's correlation",
            {NOISE_CEILING: QUIET} | COLOURS,
        )
    if "difference" in rsa:
        drawn["rsa_difference"] = charts.lines(
            rsa.assign(line=DIFFERENCE),
            "time",
            "difference",
            "Which encoder's geometry is nearer",
            "centre of the window after onset (s)",
            "difference of the correlations",
            {DIFFERENCE: RIGHT},
        )
    return drawn


def _geometry_lines(rsa: pd.DataFrame) -> pd.DataFrame:
    """A row a point of each line, from a row a window with a column a line."""
    parts = []
    for name in (NOISE_CEILING, *COLOURS):
        column = name.replace(" ", "_")
        if f"{column}_low" in rsa and rsa[f"{column}_low"].notna().any():
            part = rsa[["time", "chance"]].assign(line=name)
            for end in ("", "_low", "_high"):
                # The noise ceiling is a band without a line.
                part[f"spearman{end}"] = rsa.get(f"{column}{end}")
            parts.append(part)
    return pd.concat(parts)


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
