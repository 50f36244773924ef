"""Calibration at test time: formulas by plain loops, a planted hub, and nothing where nothing is."""

import numpy as np
import pytest

from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.calibration import (
    METHODS,
    csls,
    ranks,
    tabulate_calibration,
    whiten,
)


def result_of(eeg: np.ndarray, images: np.ndarray) -> SubjectResult:
    eeg = (eeg / np.linalg.norm(eeg, axis=1, keepdims=True)).astype(np.float32)
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    similarity = (eeg.astype(float) @ images.T.astype(float)).astype(np.float32)
    return SubjectResult("pooled", 1, "sub-01", 1, False, 10.0, images, eeg, similarity)


def top1(result: SubjectResult) -> dict[str, float]:
    return {method: float((rank == 1).mean()) for method, rank in ranks(result).items()}


def test_csls_as_in_its_equation():
    similarity = np.random.default_rng(0).uniform(-1, 1, (12, 12))
    expected = np.empty_like(similarity)
    for i, row in enumerate(similarity):
        for j, column in enumerate(similarity.T):
            nearest_images = sorted(row)[-10:]
            nearest_responses = sorted(column)[-10:]
            expected[i, j] = 2 * row[j] - np.mean(nearest_images) - np.mean(nearest_responses)
    np.testing.assert_allclose(csls(similarity), expected)


def test_whitened_vectors_have_no_correlation():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5000, 3)) @ rng.standard_normal((3, 3)) + 5
    whitened = whiten(vectors, shrinkage=0)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1)
    # Directions alone are left: those of a round cloud have the identity / 3 as second moment
    np.testing.assert_allclose(whitened.T @ whitened / 5000, np.eye(3) / 3, atol=0.02)


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    vectors = np.random.default_rng(0).standard_normal((6, 9))  # fewer than dimensions
    centred = vectors - vectors.mean(0)
    covariance = np.cov(vectors.T)
    shrunk = 0.8 * covariance + 0.2 * np.trace(covariance) / 9 * np.eye(9)
    values, axes = np.linalg.eigh(shrunk)
    expected = centred @ axes @ np.diag(values**-0.5) @ axes.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(whiten(vectors, 0.2), expected, atol=1e-10)


def test_hubs_are_taken_away():
    """All responses have something in common, and so has every fifth image: it is near to all."""
    rng = np.random.default_rng(0)
    common = 2 * rng.standard_normal(30)
    images = rng.standard_normal((100, 30))
    eeg = images + rng.standard_normal((100, 30)) + common
    images[::5] += common
    accuracy = top1(result_of(eeg, images))
    assert accuracy["CSLS"] > accuracy["as trained"] + 0.2
    assert accuracy["whitened"] > accuracy["as trained"] + 0.2


def test_nothing_is_gained_where_nothing_is():
    accuracies = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        eeg, images = rng.standard_normal((2, 50, 20)) + rng.standard_normal((2, 1, 20))
        accuracies.append(list(top1(result_of(eeg, images)).values()))
    # 2,000 responses at 2 %: a standard error of 0.3 %
    np.testing.assert_allclose(np.mean(accuracies, axis=0), 1 / 50, atol=0.01)


def test_the_table_has_a_row_a_method_and_begins_with_the_model_as_it_is():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((20, 8))
    result = result_of(images + rng.standard_normal((20, 8)), images)
    table = tabulate_calibration(
        ["sub-01"], [ranks(result)], [1, 5], draw_resamples(1, 20, 100, seed=0)
    )
    assert tuple(table["method"]) == METHODS
    assert table["top1_acc"][0] == pytest.approx((result.queries()["rank"] == 1).mean())
    assert (table["top5_acc"] >= table["top1_acc"]).all()
    assert (table["chance"] == 1 / 20).all()
