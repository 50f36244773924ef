import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test

from pipeline.statistics import draw_resamples, gallery_accuracy, sign_flip_test


@pytest.mark.parametrize("n_way", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_expectation_over_galleries_equals_their_enumeration(n_way, k):
    """Six images, the match at each rank in turn: every gallery that holds the match is listed and answered."""
    for rank in range(1, 7):
        others = [other for other in range(1, 7) if other != rank]
        galleries = list(itertools.combinations(others, n_way - 1))
        right = [1 + sum(other < rank for other in gallery) <= k for gallery in galleries]
        assert gallery_accuracy(np.array([rank]), 6, n_way, k)[0] == pytest.approx(np.mean(right), abs=1e-12)


def test_the_whole_gallery_gives_the_plain_accuracy():
    rank = np.array([[1.0, 3, 200], [5, 6, 2]])
    assert (gallery_accuracy(rank, 200, 200, 5) == (rank <= 5)).all()


def test_the_interval_of_a_mean_has_the_width_that_theory_says():
    """One subject: the bootstrap standard error of a mean is sd / sqrt(N)."""
    values = np.random.default_rng(0).standard_normal((1, 200))
    low, high = draw_resamples(1, 200, 20_000, 0).interval_of_mean(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.03)


def test_an_image_effect_that_all_subjects_share_is_no_smaller_for_many_subjects():
    """The same values for 10 subjects hold no more than those of one: the interval stays as wide."""
    values = np.random.default_rng(0).standard_normal((1, 100))
    alone = draw_resamples(1, 100, 20_000, 0).interval_of_mean(values)
    shared = draw_resamples(10, 100, 20_000, 0).interval_of_mean(np.repeat(values, 10, axis=0))
    assert np.ptp(shared) == pytest.approx(np.ptp(alone), rel=0.03)


def test_subjects_that_differ_widen_the_interval_unless_they_are_fixed():
    values = np.repeat(np.random.default_rng(0).standard_normal((10, 1)), 50, axis=1)
    resamples = draw_resamples(10, 50, 20_000, 0)
    width = np.ptp(resamples.interval_of_mean(values))
    assert width == pytest.approx(2 * 1.96 * values[:, 0].std() / 10**0.5, rel=0.08)
    assert np.ptp(resamples.with_fixed_subjects().interval_of_mean(values)) == pytest.approx(0, abs=1e-12)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).standard_normal((3, 20))
    first, again, other = (draw_resamples(3, 20, 500, seed).interval_of_mean(values) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_sign_flips_give_scipys_exact_p(n):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    p, smallest = sign_flip_test(differences, 0)
    if n > 1:  # scipy asks for two
        peer = permutation_test(
            (differences, np.zeros(n)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
        )
        assert p == pytest.approx(peer.pvalue, abs=1e-12)
    assert smallest == 2 / 2**n


def test_p_by_hand():
    assert sign_flip_test(np.array([1.0, 2.0]), 0) == (0.5, 0.5)
    assert sign_flip_test(np.array([1.0, -1.0]), 0)[0] == 1.0
    assert sign_flip_test(np.full(10, 0.1), 0) == (2 / 1024, 2 / 1024)
    assert sign_flip_test(np.zeros(4), 0)[0] == 1.0


def test_many_subjects_are_sampled_near_the_exact_p():
    """Differences of size one: of 18 signs, 14 or more alike have a binomial chance."""
    differences = np.array([1.0] * 14 + [-1.0] * 4)
    p, smallest = sign_flip_test(differences, 0)
    exact = 2 * sum(len(list(itertools.combinations(range(18), m))) for m in range(5)) / 2**18
    assert p == pytest.approx(exact, abs=0.002)
    assert smallest == 1 / 100_000
