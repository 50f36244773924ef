"""Is top-1 above chance? The test images are permuted, and top-1 is counted again.

If the EEG holds nothing of which image was seen, the responses are as likely in any other order.
So every permutation of the images gives a top-1 that could as well have been found, and the share
of permutations with at least that top-1 is an exact p (Phipson and Smyth 2010, doi
10.2202/1544-6115.1585). All subjects and seeds get the same permutation, because they share images,
models, and whatever else made their errors alike. Only the images vary: p is of these models, and
speaks of no other seed or subject. It is wrong where the test images selected the epoch.

Axes: N test images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import ALPHA

ROUNDING = 1e-9  # of a sum of shares


def p_above_chance(results: Sequence[SubjectResult], n_permutations: int, seed: int) -> float:
    """The one-sided p of top-1, the mean over images, then seeds, then subjects.

    The least p is 1 / (`n_permutations` + 1).
    """
    return p_of_answers(_share_of_answers(results), n_permutations, seed)


def p_of_answers(answers: np.ndarray, n_permutations: int, seed: int) -> float:
    """The same p, from how often each image (column) is the answer to each image seen (row).

    `answers` is (N, N), shares of the responses to the image that was seen; a row may have less
    than 1 in all.
    """
    n = len(answers)
    images = np.arange(n)
    observed = answers[images, images].sum()

    rng = np.random.default_rng([seed, 2])  # a stream of its own: 1 draws the resamples
    n_as_good = 0
    for _ in range(n_permutations):
        permuted = answers[images, rng.permutation(n)].sum()
        n_as_good += permuted >= observed - ROUNDING
    return (1 + n_as_good) / (1 + n_permutations)


def describe_chance(summary: Mapping[str, Any]) -> str:
    """What `p_above_chance` says of an evaluation, in plain words."""
    p = summary["p_above_chance"]
    if p is None:
        return (
            "Whether top-1 is above chance is not tested: the test images selected the epoch, "
            "so that they cannot test it too."
        )

    how = f"p = {p:.2g}, by {summary['n_resamples']:,} permutations of the test images"
    if is_alarming(summary):
        return (
            "The pipeline finds something where nothing can be found: it was trained on shuffled "
            f"images, and top-1 is above chance ({how}). Of controls that are right, one in twenty "
            "does so by chance: train another seed. If that one does so too, believe no figure of "
            "this pipeline before you know why."
        )
    if summary["control"] == "shuffled":
        return f"Trained on shuffled images, top-1 is at chance, as it must be ({how})."
    if p <= ALPHA:
        return f"Top-1 is above chance: {how}, of these models."
    return f"Top-1 is not shown to be above chance: {how}, of these models."


def is_alarming(summary: Mapping[str, Any]) -> bool:
    """Whether a control is above chance: something is found where nothing can be."""
    p = summary["p_above_chance"]
    return summary["control"] == "shuffled" and p is not None and p <= ALPHA


def _share_of_answers(results: Sequence[SubjectResult]) -> np.ndarray:
    """How often each image (column) is the answer to each response (row), (N, N).

    It is a share of the runs, each subject with equal weight. A response with a tie for the first
    place, or with NaN, has no answer.
    """
    runs_of = Counter(result.subject for result in results)
    n = len(results[0].similarity)
    answers = np.zeros((n, n))
    for result in results:
        similarity = result.similarity
        best = similarity.max(axis=1, keepdims=True)  # NaN where a row has one
        has_answer = (similarity == best).sum(axis=1) == 1
        rows = np.flatnonzero(has_answer)
        columns = similarity[rows].argmax(axis=1)
        answers[rows, columns] += 1 / runs_of[result.subject]
    return answers / len(runs_of)
