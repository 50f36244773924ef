"""The covariance of many sets at once is sklearn's of each; its inverse root whitens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import _cov

from pipeline.datasets.noise_normalisation import mean_covariance, observations, whitening


def plain(x: np.ndarray) -> np.ndarray:
    return np.mean([_cov(observed, shrinkage="auto") for observed in x], axis=0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_sets=st.integers(1, 5),
    n=st.integers(2, 70),
    n_chans=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    offset=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_equals_sklearn(
    seed: int, n_sets: int, n: int, n_chans: int, scale: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_sets, n, n_chans)) @ rng.standard_normal((n_chans, n_chans))
    x = scale * (x * np.exp(rng.standard_normal(n_chans)) + offset)
    expected = plain(x)
    assert np.abs(mean_covariance(x) - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("n", (2, 20, 250))
def test_equals_sklearn_where_a_channel_is_flat(n: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, n, 5))
    x[:, :, 1], x[1, :, 2], x[:, :, 3] = 0.0, 0.3, -7e5
    np.testing.assert_allclose(mean_covariance(x), plain(x), rtol=0, atol=1e-10)


def test_sets_of_observations() -> None:
    eeg = np.random.default_rng(0).standard_normal((3, 4, 5, 6))  # (N, R, C, T)
    at_a_time, of_an_epoch = observations(eeg, "time"), observations(eeg, "epochs")
    assert np.array_equal(at_a_time[1 * 6 + 2], eeg[1, :, :, 2])
    assert np.array_equal(of_an_epoch[1 * 4 + 2], eeg[1, 2].T)
    assert (len(at_a_time), len(of_an_epoch)) == (18, 12)


def test_the_whitener_is_the_symmetric_inverse_root() -> None:
    x = np.random.default_rng(0).standard_normal((100, 7))
    covariance = 1e-12 * x.T @ x
    whitener = whitening(covariance)
    assert whitener is not None
    np.testing.assert_allclose(whitener, whitener.T)
    np.testing.assert_allclose(whitener @ covariance @ whitener, np.eye(7), atol=1e-10)


def test_a_singular_covariance_has_no_whitener() -> None:
    x = np.random.default_rng(0).standard_normal((100, 7))
    x[:, 3] = x[:, 1] + x[:, 2]
    assert whitening(x.T @ x) is None
    assert whitening(np.zeros((3, 3))) is None
