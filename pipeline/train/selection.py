"""The epoch whose weights are kept: which concepts are held out, and how a model scores on them."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.retrieval import symmetric_cross_entropy

LARGEST_SCALE = 1000  # 1 / temperature; the fit of a temperature searches from 1 to this
N_HALVINGS = 20  # of the range of log(1 / temperature), to 7e-6


def held_out(things_concept: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask (M,) of the samples whose concepts are for validation: `share` of all, at least two.

    InputError where fewer than two concepts would be left for training.
    """
    concepts = np.unique(things_concept)
    n = max(2, round(share * len(concepts)))
    if n > len(concepts) - 2:
        remedy = "lower it" if len(concepts) >= 4 else "set train.select_on to last"
        raise InputError(
            f"train.validation_concepts = {share} holds out {n} of {len(concepts)} concepts: "
            f"{remedy}"
        )

    chosen = np.random.default_rng(seed).choice(concepts, n, replace=False)
    return np.isin(things_concept, chosen)


def make_galleries(subject: np.ndarray, things_concept: np.ndarray) -> np.ndarray:
    """Sort samples into galleries: one subject's responses to one image of every concept.

    That is how the test set is made. With k images a concept there are k galleries a subject; a
    concept that has more leaves its last ones unused.

    All galleries have one size. Where subjects saw different concepts, as in single sessions,
    each subject has as many concepts as the subject with the fewest, the first by name.
    Both arguments are (M,); returns row numbers of them, (galleries, N).
    """
    frame = pd.DataFrame({"subject": subject, "concept": things_concept})
    # Number the concepts of each subject: 1, 2, ...
    frame["number"] = frame.groupby("subject")["concept"].rank("dense")
    size = int(frame.groupby("subject")["number"].max().min())
    frame = frame[frame["number"] <= size].copy()

    frame["image"] = frame.groupby(["subject", "concept"]).cumcount()
    is_complete = frame.groupby(["subject", "image"])["concept"].transform("size") == size
    galleries = frame[is_complete].groupby(["subject", "image"])
    return np.stack([gallery.index.to_numpy() for _, gallery in galleries])


def lowest_loss(similarity: Tensor) -> Tensor:
    """The mean loss of galleries (..., G, N, N) of cosines at the best temperature: (...) float64.

    The best of all from 1 to 0.001. A temperature changes no rank. In training a model grows too
    sure of itself: at its own temperature the loss on other images rises long before the ranks get
    worse (arXiv 1706.04599), and would select an epoch that is too early.

    """
    return mean_loss(similarity, best_log_scale(similarity).exp())


def best_log_scale(similarity: Tensor) -> Tensor:
    """log(1 / temperature) at which the mean loss of galleries (..., G, N, N) is lowest: (...).

    The loss is convex in 1 / temperature, so that it is lowest where its slope changes sign: found
    by halving the range of log(1 / temperature), for all models at once and without waiting for
    the device.
    """
    both_ways = torch.stack([similarity, similarity.mT])
    matched = similarity.diagonal(dim1=-2, dim2=-1).mean((-2, -1))

    lowest = torch.zeros_like(matched)
    highest = torch.full_like(matched, math.log(LARGEST_SCALE))
    for _ in range(N_HALVINGS):
        middle = (lowest + highest) / 2
        falls = _expected_cosine(both_ways, middle.exp()) < matched
        lowest = middle.where(falls, lowest)
        highest = highest.where(falls, middle)
    return (lowest + highest) / 2


def mean_loss(similarity: Tensor, logit_scale: Tensor) -> Tensor:
    """The mean loss of galleries (..., G, N, N) of cosines; `logit_scale` (...) is 1 / temperature.

    Returns (...) float64.
    """
    logits = similarity.double() * logit_scale.double()[..., None, None, None]
    return symmetric_cross_entropy(logits).mean(-1)


def _expected_cosine(both_ways: Tensor, logit_scale: Tensor) -> Tensor:
    """The mean cosine that the softmax of each row expects: (2, ..., G, N, N) -> (...).

    Less the mean cosine of the matches, it is the derivative of `mean_loss` by the scale.
    """
    expected = (both_ways * logit_scale[..., None, None, None]).softmax(-1).mul_(both_ways)
    return expected.sum(-1).mean((0, -2, -1))
