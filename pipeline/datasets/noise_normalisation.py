"""Multivariate noise normalisation (MVNN): EEG channels of unit variance and uncorrelated noise.

Source: Guggenmos, Sterzer & Cichy 2018, doi 10.1016/j.neuroimage.2018.02.044; as done for
THINGS-EEG2 in https://github.com/gifale95/eeg_encoding (02_eeg_preprocessing).
Axes: N conditions (images), R repetitions, C channels, T samples; B sets of n observations.
"""

from typing import Literal

import numpy as np

Observations = Literal["time", "epochs"]


def observations(eeg: np.ndarray, of: Observations) -> np.ndarray:
    """Sets of observations (B, n, C), whose covariances are averaged, from EEG (N, R, C, T).

    "time": a set is the R repetitions of one condition at one sample.
    "epochs": a set is the T samples of one epoch.
    """
    _, n_repetitions, n_chans, n_times = eeg.shape
    if of == "time":  # (N * T, R, C)
        return eeg.transpose(0, 3, 1, 2).reshape(-1, n_repetitions, n_chans)
    return eeg.transpose(0, 1, 3, 2).reshape(-1, n_times, n_chans)  # (N * R, T, C)


def mean_covariance(x: np.ndarray) -> np.ndarray:
    """The mean over B of the shrinkage covariances of observations x (B, n, C).

    The result is (C, C), in the square of the unit of x. Each covariance is what
    `sklearn.discriminant_analysis._cov(x[b], shrinkage="auto")` gives: Ledoit and Wolf's estimate
    (doi 10.1016/S0047-259X(03)00096-4) of the standardised channels, scaled back. All sets are
    computed at once, because a subject has a hundred thousand of them, or millions.
    """
    n_sets, n, n_chans = x.shape

    # Standardise the channels of each set. A sum of squares by einsum makes no array of squares.
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    variance = np.einsum("bnc,bnc->bc", centred, centred) / n
    eps = np.finfo(x.dtype).eps
    rounding_error = n * eps * variance + np.square(n * eps * mean)
    # sklearn does not scale a channel whose variance is only rounding error.
    scale = np.where(variance <= rounding_error, 1, np.sqrt(variance))  # (B, C)
    z = np.divide(centred, scale[:, None], out=centred)

    # The target of the shrinkage: mu times the identity, which has the same trace.
    trace = (variance / np.square(scale)).sum(axis=1)
    mu = trace / n_chans

    # Z Z' and Z' Z have the same sum of squares: take the smaller matrix.
    products = z @ z.swapaxes(1, 2) if n < n_chans else z.swapaxes(1, 2) @ z
    sum_of_squares = np.square(products).sum(axis=(1, 2)) / n**2  # of the covariance

    # Shrink by the error of the covariance relative to its distance from the target.
    fourth_moment = np.square(np.einsum("bnc,bnc->bn", z, z)).sum(axis=1) / n
    error = (fourth_moment - sum_of_squares) / (n_chans * n)  # `beta` in sklearn
    # `delta` in sklearn. The error is at most that: a covariance never shrinks beyond the target.
    distance = (sum_of_squares - 2 * mu * trace + n_chans * np.square(mu)) / n_chans
    shrinkage = np.divide(
        np.minimum(error, distance), distance, out=np.zeros(n_sets), where=distance > 0
    )

    # Sum over the sets: (1 - shrinkage) * covariance + shrinkage * target, scaled back.
    weights = (1 - shrinkage) / n
    if n < n_chans:
        # One product for all sets: the sum runs over B and n together.
        scaled = (z * (scale * np.sqrt(weights)[:, None])[:, None]).reshape(-1, n_chans)
        total = scaled.T @ scaled
    else:
        total = np.einsum("bij,bi,bj->ij", products, weights[:, None] * scale, scale)
    total += np.diag((shrinkage * mu) @ np.square(scale))
    return (total + total.T) / (2 * n_sets)  # symmetric to the last bit


def whitening(covariance: np.ndarray) -> np.ndarray | None:
    """The symmetric matrix covariance^(-1/2), (C, C), to multiply the channels with.

    None where it does not exist: the covariance has no full rank.
    """
    values, vectors = np.linalg.eigh(covariance)  # values rise
    smallest_valid = len(values) * np.finfo(values.dtype).eps * values[-1]  # as numpy's matrix_rank
    if not values[0] > smallest_valid:
        return None
    whitener: np.ndarray = vectors / np.sqrt(values) @ vectors.T
    return whitener
