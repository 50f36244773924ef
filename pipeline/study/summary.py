"""What a study answers: a table of its runs, the paired difference in each cell, and one sentence on all of them.

A cell asks what `compare.comparison` asks of two evaluations: is top-1 with the aligned encoder another than with the
unaligned one, over all that varies? The p of all cells that carry one are corrected for their number (Holm). A cell of
which a run collapsed or failed has figures, of the runs that are left, and no claim: which runs break is not by chance.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd

from pipeline.compare.comparison import count, provisos
from pipeline.compare.differences import ALPHA, LEAST_SUBJECTS, Tested, pair
from pipeline.errors import InputError
from pipeline.evaluate.evaluation import describe_interval, summarise_runs
from pipeline.evaluate.similarities import Queries
from pipeline.evaluate.statistics import Resamples, draw_resamples, holm, mean_by_subject
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate
from pipeline.study.results import Answer, Cell, Failure, Trial

ONE_SEED = "one seed of models that subjects share"
FEW = f"one seed of fewer than {LEAST_SUBJECTS} subjects"
CELL = [field.name for field in fields(Cell)]
RUN = [*CELL, "encoder", "fold", "seed"]
ENCODERS = ("unaligned", "aligned")
VERDICTS = ("better", "worse", "no difference shown", "no claim")


def summarise(
    answers: Sequence[Answer],
    failures: Sequence[Failure],
    facts: Mapping[str, Any],
    parameters: Evaluate,
    seed: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The summary as plain data, and a table with a row a run and subject; the same in whatever order the runs came.

    All answers are on the same N test images in the same order. `facts` stand in the summary too; `synthetic`,
    `selected_on` and `caveats` must be among them. `seed` is that of the resamples. A run that failed has rows without
    figures, and whatever answers it gave do not count. Differences are aligned - unaligned. InputError where
    `parameters.top_k` lacks 1.
    """
    if 1 not in parameters.top_k:
        raise InputError("evaluate.top_k must hold 1, which is what a study asks about")
    failed = {failure.trial for failure in failures}
    answers = [one for one in answers if one.trial not in failed]
    answers = sorted(answers, key=lambda one: _place(one.trial, one.subject))
    table = _tabulate(answers, failures, parameters.top_k)
    n_way = len(answers[0].queries["rank"]) if answers else None

    @functools.cache
    def draw(n_subjects: int) -> Resamples:
        return draw_resamples(n_subjects, n_way or 0, parameters.resamples, seed)

    of_cell: dict[Cell, list[Answer]] = {}
    for one in answers:
        of_cell.setdefault(one.trial.cell, []).append(one)
    cells = [
        _summarise_cell(
            Cell(*map(str, key)),
            of_cell.get(Cell(*map(str, key)), []),
            rows,
            draw,
            parameters.top_k,
        )
        for key, rows in table.groupby(CELL, sort=False)
    ]
    _judge(cells)
    runs = table.drop_duplicates(RUN)
    broken = {status: runs[runs["status"] == status] for status in ("collapsed", "failed")}
    summary = dict(facts) | {
        "n_way": n_way,
        "chance_top1": 1 / n_way if n_way else None,
        "subjects": sorted(set(table["subject"])),
        "seeds": sorted(set(table["seed"])),
        "n_resamples": parameters.resamples,
        "seed": seed,
        "verdicts": {
            verdict: sum(cell["verdict"] == verdict for cell in cells) for verdict in VERDICTS
        },
        "n_corrected": sum(cell["p"] is not None for cell in cells),
        "n_runs": len(runs),
        "n_ok": int((runs["status"] == "ok").sum()),
        **{f"n_{status}": len(of) for status, of in broken.items()},
        "collapsed": broken["collapsed"][RUN].to_dict("records"),
        "failed": broken["failed"][[*RUN, "reason"]].to_dict("records"),
        "cells": cells,
    }
    return {"answer": _answer(summary) + provisos(summary)} | summary, table


def _place(trial: Trial, subject: str) -> tuple[Any, ...]:
    """What rows are sorted by: blocks by their number, `last` and `mix` after them, and the unaligned encoder first."""
    cell = trial.cell
    depth = float(cell.block) if cell.block.isdecimal() else float("inf")
    about = (cell.protocol, cell.backbone, cell.alignment, cell.eeg_encoder, depth, cell.block)
    return (*about, ENCODERS.index(trial.encoder), trial.fold, trial.seed, subject)


def _tabulate(
    answers: Sequence[Answer], failures: Sequence[Failure], top_k: list[int]
) -> pd.DataFrame:
    rows = {}
    for one in answers:
        weighed = weigh_queries(one.queries, np.ones((1, len(one.queries["rank"]))), top_k)
        rows[_place(one.trial, one.subject)] = _about(one.trial, one.subject) | {
            "status": "collapsed" if one.collapsed else "ok",
            "reason": "",
            "selected_epoch": one.selected_epoch,
            "n_way": len(one.queries["rank"]),
            **{name: float(value[0]) for name, value in weighed.items()},
        }
    for failure in failures:
        for subject in failure.trial.tested_on:
            failed = {
                "status": "failed",
                "reason": failure.reason,
                "selected_epoch": None,
                "n_way": None,
            }
            rows[_place(failure.trial, subject)] = _about(failure.trial, subject) | failed
    table = pd.DataFrame([row for _, row in sorted(rows.items())])
    return table.astype(
        {"selected_epoch": "Int64", "n_way": "Int64"}
    )  # whole numbers where others are missing


def _about(trial: Trial, subject: str) -> dict[str, Any]:
    return asdict(trial.cell) | {
        "encoder": trial.encoder,
        "fold": trial.fold,
        "seed": trial.seed,
        "subject": subject,
    }


def _summarise_cell(
    cell: Cell,
    answers: list[Answer],
    rows: pd.DataFrame,
    draw: Callable[[int], Resamples],
    top_k: list[int],
) -> dict[str, Any]:
    """Figures of both encoders and their paired difference; the verdict comes once all cells are there."""
    tested: dict[str, dict[tuple[str, int, str], Tested]] = {encoder: {} for encoder in ENCODERS}
    for one in answers:
        if not one.collapsed:
            key = (one.trial.fold, one.trial.seed, one.subject)
            tested[one.trial.encoder][key] = Tested(*key, one.queries)
    result = asdict(cell) | {
        encoder: _summarise_side(
            rows[rows["encoder"] == encoder], list(tested[encoder].values()), draw, top_k
        )
        for encoder in ENCODERS
    }
    both = sorted(tested["unaligned"].keys() & tested["aligned"].keys())
    why, over, p, difference = _incomplete(rows), [], None, None
    if both:
        sides = {encoder: [tested[encoder][key] for key in both] for encoder in ENCODERS}
        resamples = draw(len({subject for _, _, subject in both}))
        left_out_in_turn = cell.protocol == "leave-one-subject-out"
        paired = pair(
            sides, resamples, functools.partial(_weigh_top_k, top_k=top_k), left_out_in_turn
        )
        over = [] if why else paired.over
        p = paired.metrics["top1_acc"]["p"] if over else None
        difference = {
            metric: {
                "mean": values["difference"],
                "ci95": values["ci95"] if over else None,
                "ci95_these_models": values["ci95_these_models"],
            }
            for metric, values in paired.metrics.items()
        }
    if not (why or over):
        shared = rows.groupby("fold")["subject"].nunique().max() > 1
        why = ONE_SEED if shared else FEW
    return result | {
        "difference": difference,
        "ci95_over": over,
        "p": p,
        "no_claim_because": why or None,
    }


def _summarise_side(
    rows: pd.DataFrame, tested: list[Tested], draw: Callable[[int], Resamples], top_k: list[int]
) -> dict[str, Any]:
    """Means of top-k of the runs that are whole, their 95 % intervals and their spread over subjects and over seeds."""
    runs = rows.drop_duplicates(RUN)["status"].value_counts()
    numbers = {f"n_{status}": int(runs.get(status, 0)) for status in ("ok", "collapsed", "failed")}
    if not tested:
        return numbers
    names = [f"top{k}_acc" for k in top_k]
    ok = rows[rows["status"] == "ok"]
    figures = summarise_runs(ok[["fold", "seed", "subject", *names]].assign(collapsed=False), names)
    kept = [*names, "sd_over_subjects", "sd_over_seeds", "n_subjects"]
    subjects, resamples = [one.subject for one in tested], draw(figures["n_subjects"])
    intervals = {
        f"top{k}_acc": resamples.interval_of_mean(
            mean_by_subject(subjects, [one.queries["rank"] <= k for one in tested])
        )
        for k in top_k
    }
    return (
        {name: figures[name] for name in kept if name in figures}
        | {"n_seeds": ok["seed"].nunique(), "ci95": intervals}
        | describe_interval(ok, ok["protocol"].iloc[0])
        | numbers
    )


def _weigh_top_k(queries: Queries, counts: np.ndarray, top_k: list[int]) -> dict[str, np.ndarray]:
    """The top-k accuracies that `weigh_queries` gives, alone: with many cells the rest would take minutes."""
    right = queries["rank"] <= np.array(top_k)[:, None]  # (K, N)
    return dict(zip((f"top{k}_acc" for k in top_k), right @ counts.T / counts.sum(1), strict=True))


def _incomplete(rows: pd.DataFrame) -> str:
    """Why a cell is not whole, or nothing: runs that broke, and such as only one of the encoders has."""
    runs = rows.drop_duplicates(RUN)
    told = [
        f"{n} of {count(int((runs['encoder'] == encoder).sum()), f'{encoder} run')} {status}"
        for encoder in ENCODERS
        for status in ("collapsed", "failed")
        if (n := int(((runs["encoder"] == encoder) & (runs["status"] == status)).sum()))
    ]
    alone = rows.groupby(["fold", "seed", "subject"])["encoder"].nunique() < len(ENCODERS)
    if alone.any():
        told.append(f"{int(alone.sum())} without a partner of the other encoder")
    return ", ".join(told)


def _judge(cells: list[dict[str, Any]]) -> None:
    """Give each cell its p after Holm's correction over the cells that carry one, and its verdict."""
    with_p = [cell for cell in cells if cell["p"] is not None]
    for cell in cells:
        cell |= {"p_holm": None, "verdict": "no claim"}
    for cell, p_holm in zip(
        with_p, holm(np.array([cell["p"] for cell in with_p])).tolist(), strict=True
    ):
        sign = "better" if cell["difference"]["top1_acc"]["mean"] > 0 else "worse"
        cell |= {"p_holm": p_holm, "verdict": sign if p_holm <= ALPHA else "no difference shown"}


def _answer(summary: dict[str, Any]) -> str:
    """In how many cells something is found, why some carry no claim, and how large the differences are."""
    cells, broken = summary["cells"], summary["n_collapsed"] + summary["n_failed"]
    differences = [
        100 * cell["difference"]["top1_acc"]["mean"] for cell in cells if cell["difference"]
    ]
    if not differences:
        return f"No result: of {count(summary['n_runs'], 'run')} {broken} collapsed or failed, and no pair is left."
    protocols = sorted({cell["protocol"] for cell in cells})
    made = (
        f"{summary['n_way']}-way, chance {100 * summary['chance_top1']:.1f} %, {' and '.join(protocols)}, "
        f"{count(len(summary['subjects']), 'subject')}, {count(len(summary['seeds']), 'seed')}"
    )
    because = _because([cell["no_claim_because"] for cell in cells if cell["no_claim_because"]])
    size = (
        f"The difference is {np.median(differences):+.1f} points in the middle cell, "
        f"{min(differences):+.1f} to {max(differences):+.1f} in all."
    )
    if summary["n_corrected"] == 0:
        return f"No claim can be made in any of {count(len(cells), 'cell')} ({made}): {because}. {size}"
    numbers = summary["verdicts"]
    told = (
        f"the aligned encoder decodes better in {numbers['better']} of {count(len(cells), 'cell')} and worse in "
        f"{numbers['worse']}; in {numbers['no difference shown']} no difference is shown"
    )
    if because:
        told += f", and in {numbers['no claim']} no claim can be made: {because}"
    told += f". Asked of top-1, with p ≤ {ALPHA} after Holm's correction over {count(summary['n_corrected'], 'cell')}"
    told += f" ({made})."
    if not any("subjects" in cell["ci95_over"] for cell in cells):
        n = len(summary["subjects"])
        told = f"in {'this' if n == 1 else 'these'} {count(n, 'subject')}, too few to speak for others, {told}"
    for protocol in protocols if len(protocols) > 1 else ():
        verdicts = [cell["verdict"] for cell in cells if cell["protocol"] == protocol]
        told += (
            f" {protocol.capitalize()}: better in {verdicts.count('better')} of {len(verdicts)}, "
        )
        told += f"worse in {verdicts.count('worse')}."
    return f"{told[0].upper()}{told[1:]} {size}"


def _because(reasons: list[str]) -> str:
    """Why cells carry no claim, each kind of reason once; the cells themselves say what exactly broke."""
    kinds = Counter(
        reason if reason in (ONE_SEED, FEW) else "runs that collapsed, failed or have no partner"
        for reason in reasons
    )
    return " and ".join(f"{kind} ({count(n, 'cell')})" for kind, n in kinds.items())
