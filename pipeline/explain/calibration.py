"""Calibration at test time: similarities corrected by all test responses at once, without labels.

This is another task than retrieval: one response alone has no such correction, and it takes for
granted that the responses are to different images. So its figures stand beside the headline, never
in it.

A few images may be near to many responses (hubs), and a new subject's responses may lie apart from
those of training. Two remedies, as the public code of SATTC has them (arXiv 2603.20738,
github.com/QunjieHuang/SATTC-CVPR2026, `run_sattc_loso.py`):

* CSLS, cross-domain similarity local scaling (Conneau et al. 2018, arXiv 1710.04087, section 2.3):
  what an image has on average in common with its nearest responses is taken off.
* Whitening of each side by its own mean and covariance.

Its further parts (another number of neighbours for each response, mutual neighbours, popularity)
are not here.

Axes: N test images, P dimensions of the projected space.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import Resamples, curve
from pipeline.retrieval import rank_of_match

N_NEIGHBOURS = 10  # of CSLS
SHRINKAGE = {"eeg": 0.2, "images": 0.05}  # of the covariances
LEAST_VARIANCE = 1e-6  # along a direction, before whitening

AS_TRAINED = "as trained"
METHODS = (AS_TRAINED, "CSLS", "whitened", "whitened, CSLS")


def calibrate(result: SubjectResult) -> dict[str, np.ndarray]:
    """The similarities of one run and subject by METHODS: (N, N) float64 each."""
    eeg = whiten(result.eeg.astype(np.float64), SHRINKAGE["eeg"])
    images = whiten(result.images.astype(np.float64), SHRINKAGE["images"])
    whitened = eeg @ images.T
    plain = result.similarity.astype(np.float64)
    similarities = (plain, csls(plain), whitened, csls(whitened))
    return dict(zip(METHODS, similarities, strict=True))


def csls(similarity: np.ndarray) -> np.ndarray:
    """Cross-domain similarity local scaling of cosines (N, N): twice the cosine, less two means.

    These are the means of the `N_NEIGHBOURS` highest cosines in the row and in the column.
    """
    n = min(N_NEIGHBOURS, len(similarity))
    of_rows = np.sort(similarity, axis=1)[:, -n:].mean(1, keepdims=True)
    of_columns = np.sort(similarity, axis=0)[-n:].mean(0, keepdims=True)
    return 2 * similarity - of_rows - of_columns


def whiten(vectors: np.ndarray, shrinkage: float) -> np.ndarray:
    """Vectors (N, P) centred and without correlation, then of unit length, float64.

    They are multiplied by the symmetric inverse root of their covariance, whose share `shrinkage`
    is replaced by a multiple of the identity of the same trace.
    """
    n, n_dims = vectors.shape
    centred = vectors - vectors.mean(0)

    # By the directions in which vectors lie: with fewer vectors than dimensions they are few.
    left, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / max(1, n - 1)
    variances = (1 - shrinkage) * variances + shrinkage * variances.sum() / n_dims
    scale = np.maximum(variances, LEAST_VARIANCE) ** -0.5
    whitened = (left * (singular * scale)) @ directions

    lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
    return whitened / np.maximum(lengths, np.finfo(float).tiny)


def ranks(result: SubjectResult) -> dict[str, np.ndarray]:
    """The rank of each match by METHODS, (N,) int64 each; 1 is best, ties count against it."""
    return {
        method: rank_of_match(torch.from_numpy(similarity)).numpy()
        for method, similarity in calibrate(result).items()
    }


def tabulate_calibration(
    subjects: Sequence[str],
    ranks_of_runs: Sequence[Mapping[str, np.ndarray]],
    top_k: Sequence[int],
    resamples: Resamples,
) -> pd.DataFrame:
    """One row a method: top-k with 95 % intervals over subjects and test images, and chance.

    `subjects` and `ranks_of_runs` (of `ranks`) have an entry for each run and subject.
    """
    curves = []
    for k in top_k:
        correct = [
            np.stack([by_method[name] <= k for name in METHODS]) for by_method in ranks_of_runs
        ]
        curves.append(curve(f"top{k}_acc", subjects, correct, resamples))

    table = pd.DataFrame({"method": METHODS})
    return pd.concat([table, *curves], axis=1).assign(chance=1 / resamples.images.shape[1])
