"""What lies behind the difference of two evaluations: the same paired test, asked of other figures.

These are further questions beside the one of top-1, and their p-values are not corrected for their
number.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipeline.compare.comparison import order_sides, whole_pairs
from pipeline.compare.differences import RunKey, paired_difference
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.calibration import METHODS, ranks
from pipeline.retrieval import weigh_top_k
from pipeline.sections import Evaluate

Pairs = Mapping[str, Mapping[RunKey, SubjectResult]]


def explain_difference(
    baseline: Similarities, other: Similarities, parameters: Evaluate, seed: int
) -> dict[str, Any]:
    """More to know of a comparison, as plain data; empty where no pair of runs is whole.

    The sides, the pairs and the direction of the differences are those of `comparison.compare`.
    """
    _, sides = order_sides(baseline, other)
    pairs = whole_pairs(sides)
    if not all(pairs.values()):
        return {}
    return {"calibrated": _calibrated(pairs, other, parameters, seed)}


def _calibrated(
    pairs: Pairs, other: Similarities, parameters: Evaluate, seed: int
) -> dict[str, dict[str, Any]]:
    """Top-1 of both sides and its paired difference, calibrated at test time, by method."""
    ranks_of_side = {
        label: {key: ranks(result) for key, result in results.items()}
        for label, results in pairs.items()
    }
    subjects = {subject for results in pairs.values() for _, _, subject in results}
    resamples = draw_resamples(len(subjects), len(other.image_ids), parameters.resamples, seed)

    differences = {}
    for method in METHODS:
        queries = {
            label: {key: {"rank": by_method[method]} for key, by_method in of_runs.items()}
            for label, of_runs in ranks_of_side.items()
        }
        paired = paired_difference(
            queries,
            resamples,
            partial(weigh_top_k, top_k=[1]),
            left_out_in_turn=other.made_with["protocol"] == "leave-one-subject-out",
        )
        differences[method] = paired.metrics["top1_acc"]
    return differences
