"""How likely a comparison is to find a difference, before it is run.

From the variances of a finished comparison: what the test of `differences` would see, on average,
with other numbers of seeds and subjects, and the noncentral t distribution of its statistic. It
holds for the same protocol, recipe and test images, and as far as the variances of that one
comparison are right: `uncertain_factors` says how far they may be off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import chi2, nct, t

from pipeline.compare.variances import FACTORS, IMAGES, SEEDS, SEPARATOR, SUBJECTS
from pipeline.errors import InputError
from pipeline.evaluate.statistics import (
    ALPHA,
    MIN_SUBJECTS,
    Variance,
    degrees_of_freedom,
    sum_of_parts,
    weigh_paired_seeds,
)

POWER = 0.8  # the share of comparisons that should find the difference
MOST_SUBJECTS = 200  # beyond this a number of subjects is no plan
LEVEL = 0.8  # of the interval of the variances


@dataclass(frozen=True)
class Design:
    """The numbers of a comparison; `components` are those of `variances.variance_components`.

    `correlation` is that of both sides over seeds.
    """

    protocol: str
    n_seeds: int
    n_subjects: int
    n_images: int
    components: Mapping[str, float]
    correlation: float


def design_of(comparison: Mapping[str, Any]) -> Design:
    """The design of a comparison as it is in metrics/comparison.json.

    Raises InputError if it lacks its variances, or cannot tell what seeds or subjects bring, and of
    models that are tested on the people of another recording.
    """
    if comparison["protocol"] == "across":
        raise InputError(
            "the comparison is of train.protocol across, and no plan is made for models that are "
            "tested on the people of another recording: how many people should train would be one "
            "more number; compare by another protocol, such as within-subject"
        )
    if "variances" not in comparison:
        raise InputError(
            "the comparison holds no variances: it is of an older version, or no pair of runs was "
            "whole; run `make compare SEEDS=3` again"
        )
    n_subjects, n_seeds = len(comparison["subjects"]), len(comparison["seeds"])
    protocol = comparison["protocol"]

    if n_subjects < 2:
        raise InputError(
            "the comparison has one subject, which tells nothing about others: compare with two "
            "subjects or more"
        )
    if protocol == "pooled" and n_seeds < 2 and len(comparison.get("without_seeds", [])) == 2:
        raise InputError(
            "neither side of the comparison has seeds, and plans for pooled models are over seeds: "
            "compare within-subject, or models that are trained"
        )
    if protocol == "pooled" and n_seeds < 2:
        raise InputError(
            "the comparison has one seed, which cannot tell how much seeds vary, and without that "
            "nothing can be planned for pooled models: `make compare SEEDS=3` first"
        )

    # A component that could not be told is within the others.
    components = {name: value or 0.0 for name, value in comparison["variances"].items()}
    correlation = comparison["seed_correlation"] or 0.0
    return Design(
        protocol, n_seeds, n_subjects, comparison["n_way"], components, float(correlation)
    )


def power(design: Design, difference: float) -> float:
    """The probability that a comparison of this design claims a true `difference` of top-1, 0..1.

    A claim with the wrong sign does not count.
    """
    parts = _expected_parts(design)
    total = sum_of_parts(parts)
    true_variance = _true_variance(design)
    if true_variance == 0:
        return float(difference > 0)

    # The test takes `total` for the variance of the difference, which is `true_variance`.
    df = degrees_of_freedom(parts)
    critical = t.ppf(1 - ALPHA / 2, df) * (total / true_variance) ** 0.5
    return float(nct.sf(critical, df, difference / true_variance**0.5))


def subjects_needed(design: Design, difference: float) -> int | None:
    """The least number of subjects that finds `difference` with a power of 80 %, None if too many.

    The number is at least MIN_SUBJECTS, as with fewer nothing is claimed about other subjects.
    """
    for n_subjects in range(MIN_SUBJECTS, MOST_SUBJECTS + 1):
        if power(replace(design, n_subjects=n_subjects), difference) >= POWER:
            return n_subjects
    return None


def least_difference(design: Design) -> float:
    """The least difference of top-1, 0..1, that this design finds with a power of 80 %."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(design, middle) >= POWER else (middle, high)
    return high


def uncertain_factors(design: Design) -> tuple[float, float]:
    """By how much the variances may be too large or too small: factors of an 80 % interval.

    As if all of them were one variance with the degrees of freedom of the test.
    """
    df = degrees_of_freedom(_expected_parts(design))
    low, high = df / chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], df)
    return float(low), float(high)


def scaled(design: Design, factor: float) -> Design:
    """The design with all variances times `factor`."""
    components = {name: factor * value for name, value in design.components.items()}
    return replace(design, components=components)


def _expected_parts(design: Design) -> list[Variance]:
    """The parts that `paired_difference` would give to the t-test, on average."""
    n_subjects, n_images = design.n_subjects, design.n_images
    parts = [
        Variance(_variance_of_mean(design, {SUBJECTS}) + _overlap(design), n_subjects - 1),
        Variance(_variance_of_mean(design, {IMAGES}), n_images - 1),
        Variance(-_variance_of_mean(design, {SUBJECTS, IMAGES}), np.inf),
    ]
    if design.protocol == "pooled":
        parts.append(_expected_seeds(design))
    return parts


def _expected_seeds(design: Design) -> Variance:
    """What `variance_over_seeds` would give, on average."""
    if design.n_seeds == 1:
        return Variance(np.nan, 0)

    of_differences = _variance_of_mean(design, {SEEDS})
    # Both sides for themselves vary more than their difference, by what they share.
    shared = min(max(design.correlation, 0.0), 0.9)
    of_sums = of_differences * (1 + shared) / (1 - shared)
    return weigh_paired_seeds(of_differences, of_sums, design.n_seeds)


def _true_variance(design: Design) -> float:
    """The variance of the mean difference over seeds, subjects and images, once each."""
    return _variance_of_mean(design, set()) + _overlap(design)


def _overlap(design: Design) -> float:
    """What left-out subjects add because their models share training subjects.

    It is what `variance_of_mean` adds to the part of the subjects, and taken for true here.
    """
    if design.protocol != "leave-one-subject-out":
        return 0.0
    n_subjects = design.n_subjects
    return _variance_of_mean(design, {SUBJECTS}) * n_subjects / (n_subjects - 1)


def _variance_of_mean(design: Design, factors: set[str]) -> float:
    """What all components that hold these factors add to the variance of the mean."""
    numbers = dict(zip(FACTORS, (design.n_seeds, design.n_subjects, design.n_images), strict=True))
    total = 0.0
    for name, component in design.components.items():
        levels = name.split(SEPARATOR)
        if factors <= set(levels):
            total += component / float(np.prod([numbers[level] for level in levels]))
    return total
