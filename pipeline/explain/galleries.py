"""Larger galleries: the image that was seen among the training images too.

The model was trained on these images. In a gallery of as many new images it might do better or
worse: these figures tell how the accuracy falls as the gallery grows, no more.

Axes: N test images, M training images, C training concepts, P dimensions of the projected space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom

from pipeline.evaluate.scoring import cosines
from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import Resamples, curve
from pipeline.retrieval import rank_of_match

TEST_IMAGES = "test images"
ONE_EACH = "and one image of each training concept"
ALL = "and all training images"


@dataclass(frozen=True)
class Ahead:
    """How many images are at least as similar to each response as the image that was seen.

    `test` (N,) counts other test images, `training` (N, C) the images of each training concept.
    """

    test: np.ndarray
    training: np.ndarray


def count_ahead(result: SubjectResult, training: np.ndarray, concept: np.ndarray) -> Ahead:
    """Count for one run and subject.

    `training` (M, P) are the training images as this run's model projects them, unit vectors,
    float32; `concept` (M,) is the number of each one's concept, 0 to C - 1. Ties and NaN count
    against the match, as in `retrieval.rank_of_match`.
    """
    eeg = torch.from_numpy(result.eeg)
    match = torch.from_numpy(result.similarity).diagonal()
    is_ahead = ~(cosines(eeg, torch.from_numpy(training)) < match[:, None])  # (N, M)

    by_concept = torch.zeros(len(eeg), int(concept.max()) + 1, dtype=torch.int64)
    by_concept.index_add_(1, torch.from_numpy(concept), is_ahead.long())
    rank = rank_of_match(torch.from_numpy(result.similarity))
    return Ahead((rank - 1).numpy(), by_concept.numpy())


def tabulate_galleries(
    subjects: Sequence[str],
    ahead: Sequence[Ahead],
    images_of_concept: np.ndarray,
    sizes: Sequence[int],
    top_k: Sequence[int],
    resamples: Resamples,
) -> pd.DataFrame:
    """One row a gallery: top-k with 95 % intervals over subjects and test images, and chance.

    `subjects` and `ahead` have an entry for each run and subject, `images_of_concept` (C,) the
    number of images of each training concept. Every gallery holds all test images. The rows: these
    alone; so many random training images that `sizes` are reached; one random image of each
    training concept; all training images. Of a random gallery it is the exact mean over all of
    them.
    """
    n_test = len(ahead[0].test)
    n_training = int(images_of_concept.sum())
    random_sizes = [n for n in sorted(set(sizes)) if n_test < n < n_test + n_training]

    galleries = [(TEST_IMAGES, n_test)]
    galleries += [("and random training images", n) for n in random_sizes]
    galleries += [(ONE_EACH, n_test + len(images_of_concept)), (ALL, n_test + n_training)]
    names, n_way = zip(*galleries, strict=True)
    table = pd.DataFrame({"gallery": names, "n_way": n_way})

    one_each = [within_one_each(counts, images_of_concept, top_k) for counts in ahead]
    curves = []
    for place, k in enumerate(top_k):
        values = []
        for counts, of_one_each in zip(ahead, one_each, strict=True):
            by_size = [within_random(counts, n_training, n - n_test, k) for n in random_sizes]
            rows = [
                within_random(counts, n_training, 0, k),
                *by_size,
                of_one_each[place],
                within_random(counts, n_training, n_training, k),
            ]
            values.append(np.stack(rows))
        curves.append(curve(f"top{k}_acc", subjects, values, resamples))
    return pd.concat([table, *curves], axis=1).assign(chance=1 / table["n_way"])


def within_random(ahead: Ahead, n_training: int, n_drawn: int, k: int) -> np.ndarray:
    """The probability that the match is among the k best, (N,) float64.

    The gallery holds all test images and `n_drawn` of the `n_training` training images, drawn
    without replacement: hypergeometric.
    """
    room = k - 1 - ahead.test  # so many training images may be ahead
    return hypergeom.cdf(room, n_training, ahead.training.sum(1), n_drawn)


def within_one_each(
    ahead: Ahead, images_of_concept: np.ndarray, top_k: Sequence[int]
) -> np.ndarray:
    """The same for each k where one image of each training concept is drawn: (K, N) float64.

    How many of C independent draws are ahead has a Poisson binomial distribution, computed by
    adding one concept after the other.
    """
    share_ahead = ahead.training / images_of_concept  # (N, C)

    # probability[:, j]: exactly j of the concepts so far are ahead, for j below the largest k
    probability = np.zeros((len(share_ahead), max(top_k)))
    probability[:, 0] = 1
    for share in share_ahead.T[:, :, None]:
        one_more = np.pad(probability[:, :-1], ((0, 0), (1, 0)))
        probability = probability * (1 - share) + one_more * share

    at_most = probability.cumsum(1)  # (N, the largest k)
    room = np.array(top_k)[:, None] - 1 - ahead.test  # (K, N)
    within = at_most[np.arange(len(at_most)), np.maximum(room, 0)]
    return np.where(room < 0, 0, within)
