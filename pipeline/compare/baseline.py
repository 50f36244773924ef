"""A run beside ridge on the same EEG and embeddings: how much more does the EEG encoder find?

The paired difference, by the rules of every comparison (`differences`). Ridge has one fit a fold,
which stands beside each seed of the run. It is an extra figure: its p is not corrected.
"""

from functools import partial
from typing import Any

import numpy as np

from pipeline.compare.comparison import repeat_for_seeds
from pipeline.compare.differences import paired_difference
from pipeline.evaluate.baseline import BASELINE
from pipeline.evaluate.similarities import Similarities
from pipeline.evaluate.statistics import draw_resamples
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate


def set_beside_baseline(
    run: Similarities, baseline: Similarities, parameters: Evaluate, seed: int
) -> dict[str, Any]:
    """The run minus ridge, of each top-k; or `left_out`, why there is nothing to set beside it.

    * `metrics`: for each top-k `baseline`, `run`, `difference`, `ci95`, `p` and
      `ci95_these_models`, as in a comparison.
    * `ci95_over`: what interval and p are over; empty where they are None, and then
      `no_claim_because` says why, in words.
    * `per_subject`: top-1 of both.
    """
    reason = _reason(run, baseline)
    if reason:
        return {"left_out": reason}

    not_collapsed = [result for result in run.results if not result.collapsed]
    results_of = {
        "baseline": repeat_for_seeds(baseline, run).results,
        "run": not_collapsed,
    }
    sides = {
        side: {(result.fold, result.seed, result.subject): result.queries() for result in results}
        for side, results in results_of.items()
    }
    keys = sorted(sides["run"])
    subjects = {subject for _, _, subject in keys}
    paired = paired_difference(
        {side: {key: queries[key] for key in keys} for side, queries in sides.items()},
        draw_resamples(len(subjects), len(run.image_ids), parameters.resamples, seed),
        partial(weigh_queries, top_k=parameters.top_k),
        left_out_in_turn=run.made_with["protocol"] == "leave-one-subject-out",
    )

    no_claim_because = ""
    if len(not_collapsed) < len(run.results):
        no_claim_because = "some runs collapsed, and it is not by chance which"
    elif not paired.factors:
        no_claim_because = "one seed does not tell what another would change"
    names = [f"top{k}_acc" for k in parameters.top_k]
    metrics = {name: paired.metrics[name] for name in names}
    if no_claim_because:
        metrics = {name: row | {"ci95": None, "p": None} for name, row in metrics.items()}
    return {
        "eeg_encoder": BASELINE,
        "metrics": metrics,
        "ci95_over": [] if no_claim_because else paired.factors,
        "no_claim_because": no_claim_because,
        "per_subject": [
            {"subject": subject}
            | {side: float(paired.by_subject[side]["top1_acc"][subject]) for side in sides}
            for subject in sorted(subjects)
        ],
    }


def _reason(run: Similarities, baseline: Similarities) -> str:
    """Why a run has no baseline to stand beside, in words; "" if it has."""
    if run.made_with.get("closed_form"):
        return f"this run is {BASELINE} itself"
    if run.made_with.get("control") == "shuffled":
        return "this run is a control, trained on shuffled images, and ridge is not"
    if not baseline.results:
        return str(baseline.made_with["left_out"])
    if all(result.collapsed for result in run.results):
        return "all runs collapsed"

    folds = [{(result.fold, result.subject) for result in side.results} for side in (run, baseline)]
    if folds[0] != folds[1] or not np.array_equal(run.image_ids, baseline.image_ids):
        return "the baseline is of other subjects, images or another protocol: `dvc repro` mends it"
    return ""
