"""What lies behind the difference of two evaluations: the same paired test, asked of other figures.

These are further questions beside the one of top-1, and their p-values are not corrected for their
number.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pipeline.compare.comparison import order_sides, whole_pairs, without_seeds
from pipeline.compare.differences import RunKey, WeighQueries, paired_difference
from pipeline.datasets.human import HumanSimilarity
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Queries, Similarities
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.calibration import METHODS, ranks
from pipeline.explain.near_misses import (
    ANSWERS,
    has_near_misses,
    measure_near_misses,
    percentiles,
    weigh_answers,
)
from pipeline.retrieval import weigh_means, weigh_top_k
from pipeline.sections import Evaluate

Sides = Mapping[str, Similarities]


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
    if not all(whole_pairs(sides).values()):
        return {}
    return {
        "calibrated": compare_calibrated(sides, parameters, seed),
        "near_misses": compare_near_misses(sides, parameters, seed, human),
    }


def compare_calibrated(sides: Sides, parameters: Evaluate, seed: int) -> dict[str, dict[str, Any]]:
    """Top-1 of both sides and its paired difference, calibrated at test time, by method."""
    ranks_of_side = {
        label: {key: ranks(result) for key, result in results.items()}
        for label, results in whole_pairs(sides).items()
    }
    weigh = partial(weigh_top_k, top_k=[1])

    differences = {}
    for method in METHODS:
        queries = {
            label: {key: {"rank": by_method[method]} for key, by_method in of_runs.items()}
            for label, of_runs in ranks_of_side.items()
        }
        differences[method] = _pair(sides, queries, weigh, parameters, seed)["top1_acc"]
    return differences


def compare_near_misses(
    sides: Sides, parameters: Evaluate, seed: int, human: HumanSimilarity | str
) -> dict[str, Any]:
    """By how much what is retrieved instead is like what was seen, for people, above chance.

    Both sides and their paired difference, by the kind of answers, and whose similarity that is;
    the same of the share in the same category (`same_category`). Or `why` alone, where there is no
    similarity.
    """
    if isinstance(human, str):
        return {"why": human}
    first = next(iter(sides.values()))
    try:
        concepts = first.things_concept.tolist()
        likeness = percentiles(human.of(concepts))
        same_category = human.same_category(concepts)
    except InputError as error:
        # A comparison of files that were kept: the workspace may have moved on to other data.
        return {"why": str(error)}

    weights = {
        label: {key: weigh_answers(result.similarity) for key, result in results.items()}
        for label, results in whole_pairs(sides).items()
    }

    compare = partial(_compare_answers, sides, weights, parameters, seed)
    return {
        "source": human.source,
        "synthetic": human.synthetic,
        "answers": compare(likeness),
        "same_category": compare(same_category),
    }


def _compare_answers(
    sides: Sides,
    weights: Mapping[str, Mapping[RunKey, Mapping[str, np.ndarray]]],
    parameters: Evaluate,
    seed: int,
    likeness: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """The excess of both sides in one space, and its paired difference, by the kind of answers."""
    differences = {}
    for answers in ANSWERS:
        # A run without wrong answers has no near misses, and its partner then has none to compare.
        keys = [
            key
            for key in next(iter(weights.values()))
            if all(has_near_misses(of_runs[key][answers], likeness) for of_runs in weights.values())
        ]
        if not keys:
            continue

        queries = {
            label: {
                key: {"excess": measure_near_misses(of_runs[key][answers], likeness).queries}
                for key in keys
            }
            for label, of_runs in weights.items()
        }
        differences[answers] = _pair(sides, queries, weigh_means, parameters, seed)["excess"]
    return differences


def _pair(
    sides: Sides,
    queries: Mapping[str, Mapping[RunKey, Queries]],
    weigh: WeighQueries,
    parameters: Evaluate,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The paired difference of each metric, by the rules of a comparison of these sides."""
    first = next(iter(sides.values()))
    subjects = {subject for of_runs in queries.values() for _, _, subject in of_runs}
    paired = paired_difference(
        queries,
        draw_resamples(len(subjects), len(first.image_ids), parameters.resamples, seed),
        weigh,
        left_out_in_turn=first.made_with["protocol"] == "leave-one-subject-out",
        without_seeds=without_seeds(sides),
    )
    return paired.metrics
