"""Near misses: is what is retrieved in place of the image that was seen like it, and for whom?

Two kinds of answers are asked: the first five images that are not the one that was seen, whether
they stand before it or after it, so that finding it more often alone changes nothing; and the image
retrieved first, where it is wrong.

How alike two concepts are is a percentile: the share of the other test concepts that are less like
the one that was seen, 0.5 on average over all of them. So spaces of any scale compare: people's, or
the cosines of an image model.

One space more is that of categories: 1 for a concept of a category of the one that was seen, 0 for
another, so that the mean is the share of errors in the same category. A concept that is in no
category is not asked for: its row is NaN.

Chance is not 0.5. Some images are retrieved for many responses (hubs), and some concepts are rather
like all others, or in a large category. So chance is how like the retrieved concepts are to the
other test concepts on average; of categories, it is higher where the concept that was seen is in
larger ones than the others. The `excess` over it tells whether an answer depends on what was seen.
A decoder that gives the same answers to all responses has none.

An image is in this figure as the one that was seen and as one that is retrieved for others, and if
cats are taken for dogs, dogs are mostly taken for cats. So the values of single images are not
independent. `NearMisses.queries` has for each image what it adds in both roles (the infinitesimal
jackknife of dyadic data, Aronow et al. 2015, doi 10.1093/pan/mpv018): the mean is the excess, and
the spread over images makes an honest interval. The p against chance permutes the concepts of the
space, rows and columns together (Mantel 1967).

Axes: N test images, one a concept; R runs and subjects tested; S subjects; B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import Resamples, mean_by_subject
from pipeline.retrieval import rank_of_match

N_RETRIEVED = 5
N_PERMUTATIONS = 5000
PEOPLE = "people"
SAME_CATEGORY = "same category"

FIRST_FIVE = "first five that were not seen"
FIRST_WRONG = "first, where it is wrong"
ANSWERS = (FIRST_FIVE, FIRST_WRONG)


@dataclass(frozen=True)
class NearMisses:
    """The near misses of one run and subject by one space.

    * `retrieved`: mean percentile of what was retrieved, or the share in the same category; NaN
      where no answer was wrong.
    * `chance`: that of the same images for the other concepts.
    * `queries`: (N,), what each image adds to the excess; their mean is `retrieved` - `chance`.
    """

    retrieved: float
    chance: float
    queries: np.ndarray


def percentiles(similarity: np.ndarray) -> np.ndarray:
    """Each similarity (N, N) as a percentile of its row, the diagonal left out; float64.

    Entry (i, j) is the share of concepts but i that are less like i than j is, ties and j itself
    counted by half. The mean of each row is 0.5. The diagonal is set to 0.5 and means nothing.
    """
    n_others = len(similarity) - 1
    values = similarity.astype(np.float64)
    np.fill_diagonal(values, -np.inf)
    ranks = rankdata(values, axis=1) - 1  # from 1 to N - 1, without the diagonal

    shares = (ranks - 0.5) / n_others
    np.fill_diagonal(shares, 0.5)
    return shares


def retrieved_instead(similarity: np.ndarray, n: int = N_RETRIEVED) -> np.ndarray:
    """The share of each image in the first `n` that were not seen: weights (N, N), rows of sum 1.

    `similarity` (N, N) is that of response i with image j. Images that tie for the last places
    share them. NaN counts as least similar.
    """
    values = np.where(np.isnan(similarity), -np.inf, similarity)
    np.fill_diagonal(values, -np.inf)
    n = min(n, len(values) - 1)
    last = np.sort(values, axis=1)[:, -n][:, None]  # (N, 1), the similarity of the last place

    ahead = (values > last).astype(float)
    tied = values == last
    # A row without any similarity ties with its own diagonal.
    np.fill_diagonal(tied, False)
    places = n - ahead.sum(1, keepdims=True)
    return (ahead + tied * places / tied.sum(1, keepdims=True)) / n


def retrieved_first(similarity: np.ndarray) -> np.ndarray:
    """The same for the image retrieved first; rows are zero where that is the image seen.

    As in `retrieval.rank_of_match`, ties and NaN count against the image that was seen.
    """
    is_wrong = rank_of_match(torch.from_numpy(similarity)).numpy() > 1
    return retrieved_instead(similarity, 1) * is_wrong[:, None]


def weigh_answers(similarity: np.ndarray) -> dict[str, np.ndarray]:
    """The weights (N, N) of both kinds of answers, by ANSWERS."""
    return {FIRST_FIVE: retrieved_instead(similarity), FIRST_WRONG: retrieved_first(similarity)}


def measure_near_misses(weights: np.ndarray, likeness: np.ndarray) -> NearMisses:
    """How like the concepts that were seen the retrieved ones are.

    `weights` (N, N) are those of `retrieved_instead` or `retrieved_first`, `likeness` (N, N) of
    `percentiles` or of `HumanSimilarity.same_category`.
    """
    asked = _weights_asked_for(weights, likeness)
    total = asked.sum()
    if total == 0:
        return NearMisses(np.nan, np.nan, np.full(len(likeness), np.nan))

    excess = _excess(likeness)
    mean = (asked * excess).sum() / total
    retrieved = (asked * np.nan_to_num(likeness)).sum() / total

    # What an image adds: as the one that was seen, and as one that is retrieved for others.
    deviations = asked * (excess - mean)
    added = deviations.sum(1) + deviations.sum(0)
    queries = mean + len(likeness) * added / total
    return NearMisses(float(retrieved), float(retrieved - mean), queries)


def _weights_asked_for(weights: np.ndarray, likeness: np.ndarray) -> np.ndarray:
    """The weights (N, N), 0 for what was retrieved in place of a concept that is not asked for."""
    return weights * ~np.isnan(likeness).any(axis=1, keepdims=True)


def has_near_misses(weights: np.ndarray, likeness: np.ndarray) -> bool:
    """Whether an answer that counts in a space is wrong: no other can be a near miss."""
    return bool(_weights_asked_for(weights, likeness).any())


def _excess(likeness: np.ndarray) -> np.ndarray:
    """How much more like concept i concept j is than by chance, (N, N).

    Chance is how like j is to the other concepts; and, where i has more that are like it than the
    other concepts have, so much more. Of percentiles each concept has as many, so that this adds
    nothing. The rows of concepts that are not asked for are 0, as is the diagonal.
    """
    counts = _weights_asked_for(1 - np.eye(len(likeness)), likeness)
    values = counts * np.nan_to_num(likeness)
    mean_of_column = _mean(values, counts, 0)
    mean_of_row = _mean(values, counts, 1)
    return counts * (values - mean_of_column - mean_of_row + values.sum() / max(counts.sum(), 1))


def _mean(values: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """The means over an axis of the values that count; 0 where none does."""
    return values.sum(axis, keepdims=True) / np.maximum(counts.sum(axis, keepdims=True), 1)


def permutation_p(weights: Sequence[np.ndarray], likeness: np.ndarray, seed: int) -> float:
    """The two-sided p of an excess that does not depend on which concept is which.

    `weights` has an array (N, N) a subject, each of sum 1. The subjects and runs are fixed: p says
    that chance alone would seldom match these answers to this space.
    """
    mean_weights = np.mean(weights, axis=0)
    excess = _excess(likeness)
    observed = abs(np.vdot(mean_weights, excess))

    rng = np.random.default_rng([seed, 2])
    n_as_large = 0
    for _ in range(N_PERMUTATIONS):
        order = rng.permutation(len(likeness))
        # A concept that is not asked for takes its row of zeros along.
        permuted = excess[order].take(order, axis=1)  # as [:, order], seven times as fast
        # 1e-12: the observed order itself must count as large, whatever the order of the sum.
        n_as_large += abs(np.vdot(mean_weights, permuted)) >= observed - 1e-12
    return (n_as_large + 1) / (N_PERMUTATIONS + 1)


def tabulate_near_misses(
    results: Sequence[SubjectResult],
    spaces: Mapping[str, np.ndarray],
    resamples: Resamples,
    seed: int,
    same_category: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row for each kind of answers and space.

    `spaces` has similarities (N, N) of the test concepts or images, by the name of the space, and
    `same_category` (N, N) is that of people (`HumanSimilarity.same_category`), if there is one. The
    columns are `answers`, `alike_by` (the space), `retrieved`, `chance`, `excess` with its 95 %
    interval over subjects and test images (`excess_low`, `excess_high`), and `p`. All are means
    over the runs of a subject, then over subjects; a run without wrong answers is left out.
    """
    likeness_by_space = {name: percentiles(similarity) for name, similarity in spaces.items()}
    if same_category is not None:
        likeness_by_space[SAME_CATEGORY] = same_category
    answers_of_runs = [weigh_answers(result.similarity) for result in results]

    rows = []
    for answers in ANSWERS:
        for space, likeness in likeness_by_space.items():
            runs = [
                (result.subject, by_kind[answers])
                for result, by_kind in zip(results, answers_of_runs, strict=True)
                if has_near_misses(by_kind[answers], likeness)
            ]
            row = {"answers": answers, "alike_by": space}
            rows.append(row | _summarise(runs, likeness, resamples, seed))
    return pd.DataFrame(rows)


def _summarise(
    runs: Sequence[tuple[str, np.ndarray]], likeness: np.ndarray, resamples: Resamples, seed: int
) -> dict[str, float]:
    """The means over the runs of a subject, then over subjects, of (subject, weights)."""
    names = ("retrieved", "chance", "excess", "excess_low", "excess_high", "p")
    subjects = [subject for subject, _ in runs]
    # The resamples are of all subjects.
    if len(set(subjects)) < resamples.subjects.shape[1]:
        return dict.fromkeys(names, np.nan)

    measured = [measure_near_misses(weights, likeness) for _, weights in runs]
    retrieved = mean_by_subject(subjects, [np.array(misses.retrieved) for misses in measured])
    chance = mean_by_subject(subjects, [np.array(misses.chance) for misses in measured])

    queries = mean_by_subject(subjects, [misses.queries for misses in measured])  # (S, N)
    low, high = resamples.interval_of_mean(queries)
    shares = mean_by_subject(subjects, [weights / weights.sum() for _, weights in runs])
    p = permutation_p(list(shares), likeness, seed)
    values = (retrieved.mean(), chance.mean(), queries.mean(), low, high, p)
    return dict(zip(names, map(float, values), strict=True))
