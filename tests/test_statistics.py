import itertools

import numpy as np
import pytest
from scipy.stats import f, ttest_ind, ttest_rel
from scipy.stats import t as student

from pipeline.evaluate.statistics import (
    Variance,
    draw_resamples,
    gallery_accuracy,
    noise_counted_twice,
    t_test,
    variance_of_mean,
    variance_over_seeds,
)


@pytest.mark.parametrize("n_way", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_expectation_over_galleries_equals_their_enumeration(n_way, k):
    """Six images, the match at each rank in turn: every gallery that holds the match is listed and answered."""
    for rank in range(1, 7):
        others = [other for other in range(1, 7) if other != rank]
        galleries = list(itertools.combinations(others, n_way - 1))
        right = [1 + sum(other < rank for other in gallery) <= k for gallery in galleries]
        assert gallery_accuracy(np.array([rank]), 6, n_way, k)[0] == pytest.approx(
            np.mean(right), abs=1e-12
        )


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
    assert np.ptp(resamples.with_fixed_subjects().interval_of_mean(values)) == pytest.approx(
        0, abs=1e-12
    )


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).standard_normal((3, 20))
    first, again, other = (
        draw_resamples(3, 20, 500, seed).interval_of_mean(values) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_one_source_of_variation_gives_students_paired_test():
    first, second = np.random.default_rng(0).normal([[0.3], [0.0]], 1, (2, 12))
    peer = ttest_rel(first, second)
    interval, p = t_test((first - second).mean(), [variance_of_mean(first - second)])
    assert p == pytest.approx(peer.pvalue, abs=1e-12)
    assert interval == pytest.approx(tuple(peer.confidence_interval(0.95)), abs=1e-12)


def test_two_samples_give_welchs_test():
    """Whose degrees of freedom are Satterthwaite's."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.5, 1, 5), rng.normal(0, 3, 9)
    peer = ttest_ind(first, second, equal_var=False)
    interval, p = t_test(
        first.mean() - second.mean(), [variance_of_mean(first), variance_of_mean(second)]
    )
    assert p == pytest.approx(peer.pvalue, abs=1e-12)
    assert interval == pytest.approx(tuple(peer.confidence_interval(0.95)), abs=1e-12)


def test_subjects_and_images_give_min_f():
    """Clark 1973: min F' = F1 F2 / (F1 + F2), of analyses by subjects and by items."""
    scores = np.random.default_rng(2).normal(0.4, 1, (8, 30))
    parts = [variance_of_mean(scores.mean(axis)) for axis in (0, 1)]
    by_image, by_subject = (scores.mean() ** 2 / part.value for part in parts)
    min_f = by_subject * by_image / (by_subject + by_image)
    df = (by_subject + by_image) ** 2 / (by_subject**2 / 29 + by_image**2 / 7)
    assert t_test(scores.mean(), parts)[1] == pytest.approx(f.sf(min_f, 1, df), abs=1e-12)


def test_the_noise_of_subjects_and_images_is_counted_once():
    """The quasi-F ratio F' by hand: (MS of subjects + MS of images - MS of both) / (S N)."""
    scores = np.random.default_rng(2).normal(0.1, 1, (8, 30))
    scores += np.linspace(-1, 1, 8)[:, None] + np.linspace(-1, 1, 30)
    by_subject, by_image = scores.mean(1), scores.mean(0)
    rest = scores - by_subject[:, None] - by_image + scores.mean()
    squares = 30 * by_subject.var(ddof=1), 8 * by_image.var(ddof=1), (rest**2).sum() / (7 * 29)
    variance = (squares[0] + squares[1] - squares[2]) / 240
    df = variance**2 / ((squares[0] / 240) ** 2 / 7 + (squares[1] / 240) ** 2 / 29)

    counts = draw_resamples(8, 30, 40_000, 0).images
    noise = noise_counted_twice(scores @ counts.T / 30)
    # The bootstrap divides by N where the mean square divides by N - 1.
    assert noise.value == pytest.approx(-squares[2] / 240 * 29 / 30, rel=0.02)
    parts = [variance_of_mean(by_subject), variance_of_mean(by_image)]
    exact = Variance(-squares[2] / 240, np.inf)
    p = 2 * student.sf(abs(scores.mean()) / variance**0.5, df)
    assert t_test(scores.mean(), [*parts, exact])[1] == pytest.approx(p, abs=1e-12)
    assert noise_counted_twice(scores[:1] @ counts.T) == Variance(0.0, np.inf)


def test_the_variance_is_at_least_the_largest_part():
    parts = [Variance(1.0, 5), Variance(2.0, 50)]
    low, high = t_test(0.0, [*parts, Variance(-1.9, np.inf)])[0]
    df = 2.0**2 / (1.0 / 5 + 4.0 / 50)
    assert high - low == pytest.approx(2 * student.ppf(0.975, df) * 2**0.5)


def test_pairs_of_seeds_count_the_more_the_more_seeds_there_are():
    rng = np.random.default_rng(5)
    for n in (2, 5, 400):
        luck = rng.normal(0, 1, n)  # of a seed, for both sides
        first, second = luck + rng.normal(0, 1, (2, n))
        both = (first.var(ddof=1) + second.var(ddof=1)) / n
        paired = (second - first).var(ddof=1) / n
        part = variance_over_seeds(first, second)
        assert part.value == pytest.approx((1 - 1 / (n - 1)) * paired + both / (n - 1))
        assert n - 1 <= part.df <= 2 * (n - 1)
    assert part.value < 0.6 * both

    # An encoder without seeds on one side: Student's test of the other
    first, second = np.full(4, 0.2), np.array([0.1, 0.4, 0.3, 0.7])
    part = variance_over_seeds(first, second)
    assert (part.value, part.df) == pytest.approx((second.var(ddof=1) / 4, 3))
    assert variance_over_seeds(first, first) == Variance(0.0, 3)
    assert np.isnan(variance_over_seeds(first[:1], second[:1]).value)


@pytest.mark.parametrize("shared", [0.0, 0.02])
def test_nothing_is_claimed_where_no_effect_was_planted(shared):
    """Seeds, subjects and images crossed, each with an effect of its own: 95 % of the intervals hold zero, or more."""
    rng, n, held = np.random.default_rng(3), 2000, 0
    for _ in range(n):
        luck = rng.normal(0, shared, (1, 3, 1, 1))
        arms = luck + rng.normal(0, 0.02, (2, 3, 1, 1)) + rng.normal(0, 0.1, (2, 3, 8, 40))
        cells = arms[1] - arms[0] + rng.normal(0, 0.03, (1, 8, 1)) + rng.normal(0, 0.05, (1, 1, 40))
        by_subject, by_image = cells.mean(0), cells.mean((0, 1))
        rest = by_subject - by_subject.mean(1)[:, None] - by_image + cells.mean()
        parts = [variance_of_mean(by_subject.mean(1)), variance_of_mean(by_image)]
        parts += [Variance(-(rest**2).sum() / (7 * 39) / 320, np.inf)]
        parts += [variance_over_seeds(*arms.mean((2, 3)))]
        low, high = t_test(cells.mean(), parts)[0]
        held += low < 0 < high
    assert 0.94 < held / n < 0.99


def test_models_that_share_training_subjects_claim_no_more_than_they_may():
    """Each subject's value holds its own noise and what the training data of the others brought: these overlap."""
    values = np.array([0.1, 0.2, 0.4, 0.5])
    assert variance_of_mean(values, left_out_in_turn=True).value == pytest.approx(
        values.var(ddof=1) * (1 / 4 + 1 / 3)
    )
    rng, n, claims = np.random.default_rng(4), 2000, [0, 0]
    for _ in range(n):
        trained_on = rng.normal(
            0, 1, 8
        )  # what each subject's EEG does to a model that has it in training
        found = rng.normal(0, 1, 8) + (trained_on.sum() - trained_on) / 7
        for corrected in (False, True):
            claims[corrected] += (
                t_test(found.mean(), [variance_of_mean(found, corrected)])[1] <= 0.05
            )
    assert claims[0] / n > 0.08
    assert claims[1] / n < 0.05


def test_what_does_not_vary_and_what_cannot_be_known():
    assert t_test(0.2, [Variance(0.0, 9)]) == ((0.2, 0.2), 0.0)
    assert t_test(0.0, [Variance(0.0, 9)]) == ((0.0, 0.0), 1.0)
    alone = variance_of_mean(np.array([0.3]))
    assert np.isnan(alone.value) and np.isnan(t_test(0.3, [alone, Variance(1.0, 5)])[1])
    assert t_test(0.2, [Variance(0.0, 0), Variance(0.01, 9)]) == t_test(0.2, [Variance(0.01, 9)])
