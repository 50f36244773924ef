"""What lies behind the difference of two evaluations: the same paired test, asked of other figures.

These are further questions beside the one of top-1, and their p-values are not corrected for their
number.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipeline.compare.comparison import order_sides, whole_pairs
from pipeline.compare.differences import RunKey, paired_difference
from pipeline.datasets.human import HumanSimilarity
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.calibration import METHODS, ranks
from pipeline.explain.near_misses import (
    ANSWERS,
    measure_near_misses,
    percentiles,
    weigh_answers,
)
from pipeline.retrieval import weigh_means, weigh_top_k
from pipeline.sections import Evaluate

Pairs = Mapping[str, Mapping[RunKey, SubjectResult]]


def explain_difference(
    baseline: Similarities,
    other: Similarities,
    parameters: Evaluate,
    seed: int,
    human: HumanSimilarity | str,
) -> dict[str, Any]:
    """More to know of a comparison, as plain data; empty where no pair of runs is whole.

    The sides, the pairs and the direction of the differences are those of `comparison.compare`.
    `human` is people's similarity of the test concepts, or why there is none.
    """
    _, sides = order_sides(baseline, other)
    pairs = whole_pairs(sides)
    if not all(pairs.values()):
        return {}
    return {
        "calibrated": _calibrated(pairs, other, parameters, seed),
        "near_misses": compare_near_misses(pairs, other, parameters, seed, human),
    }


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


def compare_near_misses(
    pairs: Pairs, other: Similarities, parameters: Evaluate, seed: int, human: HumanSimilarity | str
) -> dict[str, Any]:
    """By how much what is retrieved instead is like what was seen, for people, above chance.

    Both sides and their paired difference, by the kind of answers, and whose similarity that is; or
    `why` alone, where there is none.
    """
    if isinstance(human, str):
        return {"why": human}
    try:
        alike = percentiles(human.of(other.things_concept.tolist()))
    except InputError as error:
        # A comparison of files that were kept: the workspace may have moved on to other data.
        return {"why": str(error)}

    weights = {
        label: {key: weigh_answers(result.similarity) for key, result in results.items()}
        for label, results in pairs.items()
    }
    differences = {}
    for answers in ANSWERS:
        # A run without wrong answers has no near misses, and its partner then has none to compare.
        keys = [
            key
            for key in next(iter(pairs.values()))
            if all(of_runs[key][answers].any() for of_runs in weights.values())
        ]
        if not keys:
            continue

        queries = {
            label: {
                key: {"excess": measure_near_misses(of_runs[key][answers], alike).queries}
                for key in keys
            }
            for label, of_runs in weights.items()
        }
        n_subjects = len({subject for _, _, subject in keys})
        paired = paired_difference(
            queries,
            draw_resamples(n_subjects, len(other.image_ids), parameters.resamples, seed),
            weigh_means,
            left_out_in_turn=other.made_with["protocol"] == "leave-one-subject-out",
        )
        differences[answers] = paired.metrics["excess"]
    return {"source": human.source, "synthetic": human.synthetic, "answers": differences}
