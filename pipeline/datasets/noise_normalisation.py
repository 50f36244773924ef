"""Multivariate noise normalisation (MVNN): a covariance of the noise makes EEG channels alike and uncorrelated.

Guggenmos, Sterzer & Cichy 2018, doi 10.1016/j.neuroimage.2018.02.044; as done for THINGS-EEG2 in
https://github.com/gifale95/eeg_encoding (02_eeg_preprocessing).
Axes: N conditions (images), R repetitions, C channels, T samples; B sets of n observations.
"""

from typing import Literal

import numpy as np

Observations = Literal["time", "epochs"]


def observations(eeg: np.ndarray, of: Observations) -> np.ndarray:
    """Sets of observations (B, n, C) whose covariances are averaged, from EEG (N, R, C, T).

    "time": the R repetitions of a condition at one moment are a set. "epochs": the T samples of one epoch are.
    """
    n_chans = eeg.shape[2]
    if of == "time":
        return eeg.transpose(0, 3, 1, 2).reshape(-1, eeg.shape[1], n_chans)
    return eeg.transpose(0, 1, 3, 2).reshape(-1, eeg.shape[3], n_chans)


def mean_covariance(x: np.ndarray) -> np.ndarray:
    """The mean over B of the shrinkage covariances of observations x (B, n, C): (C, C), in the square of their unit.

    Each is what `sklearn.discriminant_analysis._cov(x[b], shrinkage="auto")` gives: Ledoit and Wolf's estimate
    (doi 10.1016/S0047-259X(03)00096-4) of the standardised channels, scaled back. Here for all sets at once, because a
    subject has a hundred thousand of them, or millions.
    """
    n_sets, n, n_chans = x.shape
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    variance = np.square(centred).mean(axis=1)  # (B, C)
    eps = np.finfo(x.dtype).eps
    constant = variance <= n * eps * variance + np.square(
        n * eps * mean
    )  # sklearn leaves the scale of such channels
    scale = np.where(constant, 1, np.sqrt(variance))
    z = centred / scale[:, None]

    squares = np.square(z)
    trace = squares.sum(axis=(1, 2)) / n
    mu = trace / n_chans
    # The covariance of z and the products of its observations have the same sum of squares: take the smaller.
    products = z @ z.swapaxes(1, 2) if n < n_chans else z.swapaxes(1, 2) @ z
    spread = np.square(products).sum(axis=(1, 2)) / n**2
    noise = (np.square(squares.sum(axis=2)).sum(axis=1) / n - spread) / (n_chans * n)
    distance = (
        spread - 2 * mu * trace + n_chans * np.square(mu)
    ) / n_chans  # from a multiple of the identity
    shrinkage = np.divide(
        np.minimum(noise, distance), distance, out=np.zeros(n_sets), where=distance > 0
    )

    weighted = centred * ((1 - shrinkage) / n)[:, None, None]
    total = weighted.reshape(-1, n_chans).T @ centred.reshape(-1, n_chans)
    total += np.diag((shrinkage * mu) @ np.square(scale))
    return (total + total.T) / (2 * n_sets)


def whitening(covariance: np.ndarray) -> np.ndarray | None:
    """The symmetric matrix covariance^(-1/2), (C, C), to multiply the channels with; None where it does not exist."""
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > len(values) * np.finfo(values.dtype).eps * values[-1]:
        return None
    whitener: np.ndarray = vectors / np.sqrt(values) @ vectors.T
    return whitener
