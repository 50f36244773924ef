"""The summary of a study: a table of its runs, the paired difference in each cell, the answer.

A cell asks what `compare.comparison` asks of two evaluations: does top-1 differ between the
aligned and the unaligned encoder, over all that varies? The p-values of all cells are corrected
for their number (Holm). If a run of a cell collapsed or failed, the cell has figures of the other
runs but no claim, because it is not by chance which runs collapse or fail.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd

from pipeline.compare.comparison import count, limit_to_subjects, warning_sentences
from pipeline.compare.differences import TRAINING_PEOPLE, RunKey, paired_difference
from pipeline.eeg_encoders.table import has_closed_form
from pipeline.errors import InputError
from pipeline.evaluate.baseline import BASELINE
from pipeline.evaluate.evaluation import describe_interval, summarise_runs
from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import (
    ALPHA,
    MIN_SUBJECTS,
    Resamples,
    draw_resamples,
    holm,
    mean_by_subject,
)
from pipeline.retrieval import weigh_queries, weigh_top_k
from pipeline.sections import Evaluate
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.train.protocols import describe_recordings

# Why a cell of whole runs carries no claim
ONE_SEED = "one seed of models that subjects share"
FEW_SUBJECTS = f"one seed of fewer than {MIN_SUBJECTS} subjects"

FEW_SUBJECTS_WITHOUT_SEEDS = f"fewer than {MIN_SUBJECTS} subjects"

CELL_COLUMNS = [field.name for field in fields(Cell)]
DATASET_COLUMNS = ("trained_dataset", "tested_dataset")
RUN_COLUMNS = [*CELL_COLUMNS, "encoder", "fold", "seed"]
ENCODERS = ("unaligned", "aligned")
VERDICTS = ("better", "worse", "no difference shown", "no claim")


def summarise(
    results: Sequence[TrialResult],
    failures: Mapping[Trial, str],
    facts: Mapping[str, Any],
    parameters: Evaluate,
    seed: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The summary as plain data, and a table with a row a run and subject.

    All results are on the same N test images in the same order. `facts` are copied into the
    summary, and must hold `synthetic`, `selected_on` and `caveats`. `seed` is that of the
    bootstrap. A failed run has rows without figures; its results, if any, are ignored.
    Differences are aligned - unaligned. The order of the results changes nothing.

    Raises InputError if `parameters.top_k` lacks 1.
    """
    if 1 not in parameters.top_k:
        raise InputError("evaluate.top_k must hold 1, which is what a study asks about")

    # A fixed order, so that sums and the page are the same whoever finished first.
    results = sorted(
        (result for result in results if result.trial not in failures),
        key=lambda result: _sort_key(result.trial, result.subject),
    )
    table = _tabulate(results, failures, parameters.top_k)
    n_way = len(results[0].queries["rank"]) if results else None

    # Most cells have the same number of subjects, and so the same resamples.
    @functools.cache
    def draw(n_subjects: int) -> Resamples:
        return draw_resamples(n_subjects, n_way or 0, parameters.resamples, seed)

    cells = _summarise_cells(results, table, draw, parameters.top_k)
    summary = dict(facts) | {
        "datasets": sorted({cell[name] for cell in cells for name in DATASET_COLUMNS}),
        "n_way": n_way,
        "chance_top1": 1 / n_way if n_way else None,
        "subjects": sorted(set(table["subject"])),
        "seeds": sorted(set(table["seed"])),
        "without_seeds": sorted(filter(has_closed_form, set(table["eeg_encoder"]))),
        "n_resamples": parameters.resamples,
        "seed": seed,
        # How many cells have each verdict, and over how many p-values Holm's correction was made.
        "verdicts": {
            verdict: sum(cell["verdict"] == verdict for cell in cells) for verdict in VERDICTS
        },
        "n_corrected": sum(cell["p"] is not None for cell in cells),
        **_count_runs(table),
        "cells": cells,
    }
    return {"answer": _answer(summary) + warning_sentences(summary)} | summary, table


def _summarise_cells(
    results: Sequence[TrialResult],
    table: pd.DataFrame,
    draw: Callable[[int], Resamples],
    top_k: list[int],
) -> list[dict[str, Any]]:
    """All cells with their verdicts, in the order of the table."""
    results_of_cell: dict[Cell, list[TrialResult]] = {}
    for result in results:
        results_of_cell.setdefault(result.trial.cell, []).append(result)

    cells = []
    # sort=False: the order of `_sort_key` stays, with blocks as numbers.
    for key, rows in table.groupby(CELL_COLUMNS, sort=False):
        cell = Cell(*map(str, key))
        in_cell = results_of_cell.get(cell, [])
        cells.append(_summarise_cell(cell, in_cell, rows, draw, top_k))

    _add_verdicts(cells)
    _add_ridge(cells)
    return cells


def _count_runs(table: pd.DataFrame) -> dict[str, Any]:
    """How many runs there are of each status, and those with a fault."""
    # A pooled run has a row for each subject, and counts once.
    runs = table.drop_duplicates(RUN_COLUMNS)
    collapsed = runs[runs["status"] == "collapsed"]
    failed = runs[runs["status"] == "failed"]
    return {
        "n_runs": len(runs),
        "n_ok": int((runs["status"] == "ok").sum()),
        "n_collapsed": len(collapsed),
        "n_failed": len(failed),
        # Runs with a fault take the claim from their cells, so that all of them are listed.
        "collapsed": collapsed[RUN_COLUMNS].to_dict("records"),
        "failed": failed[[*RUN_COLUMNS, "reason"]].to_dict("records"),
    }


def _sort_key(trial: Trial, subject: str) -> tuple[Any, ...]:
    """The order of rows: numbered blocks before `last` and `mix`, unaligned before aligned."""
    cell = trial.cell
    depth = float(cell.block) if cell.block.isdecimal() else float("inf")
    return (
        cell.protocol,
        cell.trained_dataset,
        cell.tested_dataset,
        cell.backbone,
        cell.alignment,
        cell.eeg_encoder,
        depth,
        cell.block,
        ENCODERS.index(trial.encoder),
        trial.run.fold,
        trial.run.seed,
        subject,
    )


def _tabulate(
    results: Sequence[TrialResult], failures: Mapping[Trial, str], top_k: list[int]
) -> pd.DataFrame:
    """A row a run and subject; the figures of failed runs are missing."""
    rows = {}
    for result in results:
        n_way = len(result.queries["rank"])
        # Each image once: the gallery itself, no resample.
        metrics = weigh_queries(result.queries, np.ones((1, n_way)), top_k)
        row = _identify(result.trial, result.subject) | {
            "status": "collapsed" if result.collapsed else "ok",
            "reason": "",
            "selected_epoch": result.selected_epoch,
            "n_way": n_way,
        }
        row |= {name: float(value[0]) for name, value in metrics.items()}
        rows[_sort_key(result.trial, result.subject)] = row

    for trial, reason in failures.items():
        for subject in trial.run.tested_on:
            rows[_sort_key(trial, subject)] = _identify(trial, subject) | {
                "status": "failed",
                "reason": reason,
                "selected_epoch": None,
                "n_way": None,
            }

    table = pd.DataFrame([row for _, row in sorted(rows.items())])
    # Int64 keeps whole numbers whole in a column with missing values.
    return table.astype({"selected_epoch": "Int64", "n_way": "Int64"})


def _identify(trial: Trial, subject: str) -> dict[str, Any]:
    """The columns that say which run and subject a row is of."""
    return asdict(trial.cell) | {
        "encoder": trial.encoder,
        "fold": trial.run.fold,
        "seed": trial.run.seed,
        "subject": subject,
    }


def _summarise_cell(
    cell: Cell,
    results: list[TrialResult],
    rows: pd.DataFrame,
    draw: Callable[[int], Resamples],
    top_k: list[int],
) -> dict[str, Any]:
    """Figures of both encoders and their paired difference.

    The verdict is added once all cells are there, because Holm's correction needs all p-values.
    """
    sides: dict[str, dict[RunKey, Queries]] = {encoder: {} for encoder in ENCODERS}
    for result in results:
        if not result.collapsed:
            key = (result.trial.run.fold, result.trial.run.seed, result.subject)
            sides[result.trial.encoder][key] = result.queries

    summary: dict[str, Any] = asdict(cell)
    for encoder in ENCODERS:
        rows_of_side = rows[rows["encoder"] == encoder]
        summary[encoder] = _summarise_side(rows_of_side, sides[encoder], draw, top_k)

    no_claim_because = _missing_runs(rows)
    factors: list[str] = []
    p = None
    difference = None

    # Only what both encoders finished is compared.
    pairs = sorted(sides["unaligned"].keys() & sides["aligned"].keys())
    if pairs:
        paired = paired_difference(
            {encoder: {key: sides[encoder][key] for key in pairs} for encoder in ENCODERS},
            draw(len({subject for _, _, subject in pairs})),
            functools.partial(weigh_top_k, top_k=top_k),
            left_out_in_turn=cell.protocol == "leave-one-subject-out",
            without_seeds=has_closed_form(cell.eeg_encoder),
        )
        # It is not by chance which runs are missing: no claim, though there are figures.
        factors = [] if no_claim_because else paired.factors
        p = paired.metrics["top1_acc"]["p"] if factors else None
        difference = {
            metric: {
                "mean": values["difference"],
                "ci95": values["ci95"] if factors else None,
                "ci95_these_models": values["ci95_these_models"],
            }
            for metric, values in paired.metrics.items()
        }

    # The cell is whole: then the design itself allows no claim.
    if not no_claim_because and not factors:
        models_are_shared = rows.groupby("fold")["subject"].nunique().max() > 1
        no_claim_because = ONE_SEED if models_are_shared else FEW_SUBJECTS
        if has_closed_form(cell.eeg_encoder):
            no_claim_because = FEW_SUBJECTS_WITHOUT_SEEDS
    return summary | {
        "difference": difference,
        "ci95_over": factors,
        "p": p,
        "no_claim_because": no_claim_because or None,
    }


def _summarise_side(
    rows: pd.DataFrame,
    queries: Mapping[RunKey, Queries],
    draw: Callable[[int], Resamples],
    top_k: list[int],
) -> dict[str, Any]:
    """Mean top-k of the runs without a fault, 95 % intervals, spreads, and numbers of runs."""
    runs = rows.drop_duplicates(RUN_COLUMNS)["status"].value_counts()
    numbers = {f"n_{status}": int(runs.get(status, 0)) for status in ("ok", "collapsed", "failed")}
    if not queries:
        return numbers

    names = [f"top{k}_acc" for k in top_k]
    ok = rows[rows["status"] == "ok"]
    figures = summarise_runs(ok[["fold", "seed", "subject", *names]].assign(collapsed=False), names)
    columns = [*names, "sd_over_subjects", "sd_over_seeds", "n_subjects"]
    summary = {name: figures[name] for name in columns if name in figures}
    summary |= {"n_seeds": ok["seed"].nunique()}

    subjects = [subject for _, _, subject in queries]
    resamples = draw(figures["n_subjects"])
    summary["ci95"] = {}
    for k in top_k:
        correct = mean_by_subject(subjects, [values["rank"] <= k for values in queries.values()])
        summary["ci95"][f"top{k}_acc"] = resamples.interval_of_mean(correct)

    first = ok.iloc[0]
    without_seeds = has_closed_form(first["eeg_encoder"])
    return summary | describe_interval(ok, first["protocol"], without_seeds) | numbers


def _missing_runs(rows: pd.DataFrame) -> str:
    """The runs of a cell that collapsed, failed or lack a partner, in words; "" if none."""
    runs = rows.drop_duplicates(RUN_COLUMNS)
    faults = []
    for encoder in ENCODERS:
        status_of_run = runs["status"][runs["encoder"] == encoder]
        for status in ("collapsed", "failed"):
            n = int((status_of_run == status).sum())
            if n:
                faults.append(f"{n} of {count(len(status_of_run), f'{encoder} run')} {status}")

    # Runs that failed are in the table too: these have no partner at all.
    n_encoders = rows.groupby(["fold", "seed", "subject"])["encoder"].nunique()
    n_alone = int((n_encoders < len(ENCODERS)).sum())
    if n_alone:
        faults.append(f"{n_alone} without a partner of the other encoder")
    return ", ".join(faults)


def _add_verdicts(cells: list[dict[str, Any]]) -> None:
    """Give each cell its verdict, and its p after Holm's correction if it has a p."""
    for cell in cells:
        cell |= {"p_holm": None, "verdict": "no claim"}

    # Only what was asked counts as a test: a cell without a p costs the others nothing.
    tested = [cell for cell in cells if cell["p"] is not None]
    corrected = holm(np.array([cell["p"] for cell in tested])).tolist()
    for cell, p_holm in zip(tested, corrected, strict=True):
        sign = "better" if cell["difference"]["top1_acc"]["mean"] > 0 else "worse"
        cell |= {"p_holm": p_holm, "verdict": sign if p_holm <= ALPHA else "no difference shown"}


def _add_ridge(cells: list[dict[str, Any]]) -> None:
    """Give each cell of another EEG encoder top-1 of ridge beside it: all else as in the cell."""

    def but_for_eeg_encoder(cell: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(cell[name] for name in CELL_COLUMNS if name != "eeg_encoder")

    of_ridge = [cell for cell in cells if cell["eeg_encoder"] == BASELINE]
    ridge_cells = {but_for_eeg_encoder(cell): cell for cell in of_ridge}
    for cell in cells:
        ridge = ridge_cells.get(but_for_eeg_encoder(cell))
        cell["ridge"] = None
        if ridge is not None and ridge is not cell:
            cell["ridge"] = {encoder: ridge[encoder].get("top1_acc") for encoder in ENCODERS}


def _answer(summary: dict[str, Any]) -> str:
    """The verdicts of all cells in one sentence, why some carry no claim, and the differences."""
    cells = summary["cells"]
    differences = [
        100 * cell["difference"]["top1_acc"]["mean"] for cell in cells if cell["difference"]
    ]
    if not differences:
        n_missing = summary["n_collapsed"] + summary["n_failed"]
        return (
            f"No result: of {count(summary['n_runs'], 'run')} {n_missing} collapsed or failed, "
            "and no pair is left."
        )

    tasks = _name_tasks(summary)
    design = (
        f"{summary['n_way']}-way, chance {100 * summary['chance_top1']:.1f} %, "
        f"{_describe_tasks(summary, list(tasks))}, "
        f"{count(len(summary['subjects']), 'subject')}, {count(len(summary['seeds']), 'seed')}"
    )

    if "modality" in summary:  # absent of EEG
        design = f"{summary['modality']}, {design}"

    reasons = _join_reasons([cell["no_claim_because"] for cell in cells])
    size = (
        f"The difference is {np.median(differences):+.1f} points in the middle cell, "
        f"{min(differences):+.1f} to {max(differences):+.1f} in all."
    )

    if summary["n_corrected"] == 0:
        return (
            f"No claim can be made in any of {count(len(cells), 'cell')} ({design}): {reasons}. "
            f"{size}"
        )

    claim = _claim(summary, reasons, design)

    # The sum alone would hide in which task.
    for task, verdicts in tasks.items() if len(tasks) > 1 else ():
        name = task[0].upper() + task[1:]
        claim += (
            f" {name}: better in {verdicts.count('better')} of {len(verdicts)}, "
            f"worse in {verdicts.count('worse')}."
        )
    return f"{claim[0].upper()}{claim[1:]} {size}"


def _name_tasks(summary: dict[str, Any]) -> dict[str, list[str]]:
    """The verdicts of the cells of each task: of a protocol on its recordings, by its name.

    The recordings are in the name where the study has several.
    """
    tasks: dict[str, list[str]] = {}
    for cell in summary["cells"]:
        name = cell["protocol"]
        if len(summary["datasets"]) > 1:
            name += f", {describe_recordings(*(cell[column] for column in DATASET_COLUMNS))}"
        tasks.setdefault(name, []).append(cell["verdict"])
    return tasks


def _describe_tasks(summary: dict[str, Any], tasks: list[str]) -> str:
    """The one task by its name, or the protocols and recordings of several."""
    if len(tasks) == 1:
        return tasks[0]

    words = " and ".join(sorted({cell["protocol"] for cell in summary["cells"]}))
    if len(summary["datasets"]) > 1:
        words += f", recordings {' and '.join(summary['datasets'])}"
    return words


def _claim(summary: dict[str, Any], reasons: str, design: str) -> str:
    """In how many cells the aligned encoder is better, worse or neither."""
    cells = summary["cells"]
    numbers = summary["verdicts"]
    claim = (
        f"the aligned encoder decodes better in {numbers['better']} of "
        f"{count(len(cells), 'cell')} and worse in {numbers['worse']}; in "
        f"{numbers['no difference shown']} no difference is shown"
    )
    if reasons:
        claim += f", and in {numbers['no claim']} no claim can be made: {reasons}"

    claim += (
        f". Asked of top-1, with p ≤ {ALPHA} after Holm's correction over "
        f"{count(summary['n_corrected'], 'cell')} ({design})."
    )

    # Those whose interval is not over the people who trained
    across = [cell["ci95_over"] for cell in cells if cell["protocol"] == "across"]
    n_given = sum(bool(factors) and TRAINING_PEOPLE not in factors for factors in across)
    if n_given:
        claim += (
            f" In {count(n_given, 'cell')} of the protocol across the claim is about models of "
            "these training people alone."
        )

    # No cell generalises over subjects, so that the claim must not either.
    if not any("subjects" in cell["ci95_over"] for cell in cells):
        claim = limit_to_subjects(claim, len(summary["subjects"]))
    return claim


def _join_reasons(reasons: list[str | None]) -> str:
    """Why cells carry no claim, each kind of reason once; a cell itself names its missing runs."""
    kinds = Counter(
        reason
        if reason in (ONE_SEED, FEW_SUBJECTS, FEW_SUBJECTS_WITHOUT_SEEDS)
        else "runs that collapsed, failed or have no partner"
        for reason in reasons
        if reason
    )
    return " and ".join(f"{kind} ({count(n, 'cell')})" for kind, n in kinds.items())
