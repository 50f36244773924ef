"""Is a run above chance: known answers, and how often it says so where there is nothing."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.evaluate.chance import describe_chance, is_alarming, p_above_chance
from pipeline.evaluate.similarities import SubjectResult

N = 20


def result(similarity: np.ndarray, subject: str = "sub-01", seed: int = 1) -> SubjectResult:
    side = np.zeros((len(similarity), 2), np.float32)
    return SubjectResult("pooled", seed, subject, 1, False, 1.0, side, side, similarity)


def summary(p: float | None, control: str = "none") -> dict:
    return {"p_above_chance": p, "control": control, "n_resamples": 10_000}


def test_a_small_gallery_has_the_share_of_its_permutations() -> None:
    """Of 4 images 3 are found: only the order as it is finds as many, 1 of 24."""
    similarity = np.eye(4, dtype=np.float32)
    similarity[3] = 0.5  # a tie: this response has no answer
    as_good = [
        sum(i == j for i, j in zip(order, (0, 1, 2, -1), strict=True)) >= 3
        for order in itertools.permutations(range(4))
    ]
    assert sum(as_good) == 1
    assert p_above_chance([result(similarity)], 20_000, 0) == pytest.approx(1 / 24, abs=0.005)


def test_a_perfect_run_has_the_least_p_and_a_constant_one_the_largest() -> None:
    assert p_above_chance([result(np.eye(N, dtype=np.float32))], 999, 0) == 1 / 1000
    assert p_above_chance([result(np.ones((N, N), np.float32))], 999, 0) == 1
    missing = np.eye(N, dtype=np.float32)
    missing[:, 0] = np.nan  # counts against every match, as in the ranks
    assert p_above_chance([result(missing)], 999, 0) == 1


def test_each_subject_has_equal_weight_whatever_its_number_of_seeds() -> None:
    """One subject is perfect and the other never right: many seeds of the second do not bury the first."""
    right, wrong = np.eye(N, dtype=np.float32), np.roll(np.eye(N, dtype=np.float32), 1, axis=1)
    of_a = [result(right, "a", seed) for seed in range(2)]
    of_b = [result(wrong, "b", seed) for seed in range(9)]
    # Any permutation could do as well as half of all: the one that `wrong` would call right, and mixtures.
    assert p_above_chance([*of_a, *of_b], 999, 0) == 1 / 1000
    assert p_above_chance(of_b, 999, 0) == 1


def test_where_nothing_is_there_one_in_twenty_is_above_chance_at_most() -> None:
    """Subjects and seeds share their errors, some images attract all answers: still at most 5 %."""
    rng = np.random.default_rng(1)
    n, n_claims = 1000, 0
    for _ in range(n):
        popular = rng.standard_normal(N)
        shared = rng.standard_normal((N, N))
        results = [
            result(
                (shared + popular + rng.standard_normal((N, N))).astype(np.float32), subject, seed
            )
            for subject in ("a", "b", "c")
            for seed in (1, 2)
        ]
        n_claims += p_above_chance(results, 199, 0) <= 0.05
    assert 10 < n_claims <= binom.ppf(0.99, n, 0.05)


def test_a_weak_effect_of_many_subjects_is_found() -> None:
    rng = np.random.default_rng(2)
    weak = [
        result((0.9 * np.eye(N) + rng.standard_normal((N, N))).astype(np.float32), f"sub-{i}")
        for i in range(10)
    ]
    assert p_above_chance(weak, 999, 0) <= 0.01


@pytest.mark.parametrize(
    ("p", "control", "words", "alarm"),
    [
        (0.0001, "none", "Top-1 is above chance: p = 0.0001, by 10,000 permutations", False),
        (0.4, "none", "Top-1 is not shown to be above chance: p = 0.4", False),
        (0.4, "shuffled", "shuffled images, top-1 is at chance, as it must be", False),
        (0.02, "shuffled", "The pipeline finds something where nothing can be found", True),
        (None, "none", "not tested: the test images selected the epoch", False),
    ],
)
def test_it_is_said_in_plain_words(p: float | None, control: str, words: str, alarm: bool) -> None:
    assert words in describe_chance(summary(p, control))
    assert is_alarming(summary(p, control)) == alarm
