"""Galleries that hold training images, against counting in every gallery that there is."""

from itertools import combinations, product

import numpy as np
import pytest

from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.galleries import (
    ALL,
    ONE_EACH,
    TEST_IMAGES,
    Ahead,
    count_ahead,
    tabulate_galleries,
    within_one_each,
    within_random,
)

CONCEPT = np.array([0, 0, 0, 1, 1, 2])  # of six training images


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw_result(seed: int, n_images: int = 5) -> SubjectResult:
    rng = np.random.default_rng(seed)
    images = unit(rng, n_images)
    eeg = unit(rng, n_images)
    similarity = (eeg.astype(float) @ images.T.astype(float)).astype(np.float32)
    return SubjectResult("pooled", 1, "sub-01", 1, False, 10.0, images, eeg, similarity)


def n_ahead(result: SubjectResult, training: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    """Counted one by one: test and training images that are as near as the match, or nearer."""
    counts = []
    for i, response in enumerate(result.eeg.astype(float)):
        match = result.similarity[i, i]
        others = [result.similarity[i, j] for j in range(len(result.eeg)) if j != i]
        others += [np.float32(response @ training[row].astype(float)) for row in rows]
        counts.append(sum(other >= match for other in others))
    return np.array(counts)


@pytest.mark.parametrize("k", [1, 3])
def test_the_mean_over_all_galleries(k):
    result = draw_result(0)
    training = unit(np.random.default_rng(1), 6)
    ahead = count_ahead(result, training, CONCEPT)

    of_each_concept = [np.flatnonzero(concept == CONCEPT) for concept in range(3)]
    one_each = [n_ahead(result, training, rows) < k for rows in product(*of_each_concept)]
    # Another k beside it changes nothing.
    within = within_one_each(ahead, np.bincount(CONCEPT), [4, k])[1]
    np.testing.assert_allclose(within, np.mean(one_each, axis=0))

    four = [n_ahead(result, training, rows) < k for rows in combinations(range(6), 4)]
    np.testing.assert_allclose(within_random(ahead, 6, 4, k), np.mean(four, axis=0))


def test_ties_and_nan_count_against_the_match():
    result = draw_result(0)
    training = np.concatenate([result.images[:1], np.full((1, 4), np.nan, np.float32)])
    ahead = count_ahead(result, training, np.array([0, 1]))
    assert ahead.training[0].tolist() == [1, 1]  # the image that was seen itself; NaN


def test_the_table_begins_with_the_test_images_and_ends_with_all():
    results = [draw_result(seed) for seed in range(2)]
    training = unit(np.random.default_rng(1), 6)
    table = tabulate_galleries(
        ["sub-01", "sub-02"],
        [count_ahead(result, training, CONCEPT) for result in results],
        np.bincount(CONCEPT),
        sizes=[2, 7, 100],  # below the test images, between, and more than there are
        top_k=[1, 3],
        resamples=draw_resamples(2, 5, 200, seed=0),
    )

    assert table["n_way"].tolist() == [5, 7, 8, 11]
    assert table["gallery"].tolist()[::2] == [TEST_IMAGES, ONE_EACH]
    assert table["gallery"].tolist()[-1] == ALL
    np.testing.assert_allclose(table["chance"], 1 / table["n_way"])

    top1 = np.mean([(result.queries()["rank"] == 1).mean() for result in results])
    assert table["top1_acc"][0] == pytest.approx(top1)
    assert table["top1_acc"].is_monotonic_decreasing and table["top3_acc"].is_monotonic_decreasing


def test_at_chance_every_gallery_gives_chance():
    rng = np.random.default_rng(3)
    rank = rng.integers(500, size=20_000)  # of the match among 20 test images and 480 others
    test = rng.hypergeometric(rank, 499 - rank, 19)
    of_training = rank - test
    # 48 concepts of ten images: those ahead fall into them at random
    ahead = np.array(
        [rng.multivariate_hypergeometric([10] * 48, n, method="marginals") for n in of_training]
    )
    counts = Ahead(test, ahead)
    assert within_random(counts, 480, 480, 1).mean() == pytest.approx(1 / 500, abs=0.001)
    assert within_random(counts, 480, 80, 1).mean() == pytest.approx(1 / 100, abs=0.002)
    assert within_one_each(counts, np.full(48, 10), [1]).mean() == pytest.approx(1 / 68, abs=0.003)
