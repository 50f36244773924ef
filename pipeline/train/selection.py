"""The epoch whose weights are kept: which concepts are held out, and how a model scores on them."""

import math

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.errors import InputError
from pipeline.retrieval import score_queries

LARGEST_SCALE = 1000  # 1 / temperature; the fit of a temperature searches from 1 to this


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


def make_galleries(subject: np.ndarray, things_concept: np.ndarray) -> list[np.ndarray]:
    """Sort samples into galleries: one subject's responses to one image of every concept.

    That is how the test set is made. With k images a concept there are k galleries a subject; a
    concept that has more leaves its last ones unused.

    All galleries have one size. Where subjects saw different concepts, as in single sessions,
    each subject has as many concepts as the subject with the fewest, the first by name.
    Both arguments are (M,); each gallery holds row numbers of them.
    """
    frame = pd.DataFrame({"subject": subject, "concept": things_concept})
    # Number the concepts of each subject: 1, 2, ...
    frame["number"] = frame.groupby("subject")["concept"].rank("dense")
    size = int(frame.groupby("subject")["number"].max().min())
    frame = frame[frame["number"] <= size].copy()

    frame["image"] = frame.groupby(["subject", "concept"]).cumcount()
    is_complete = frame.groupby(["subject", "image"])["concept"].transform("size") == size
    galleries = frame[is_complete].groupby(["subject", "image"])
    return [gallery.index.to_numpy(copy=True) for _, gallery in galleries]


def lowest_loss(similarity: Tensor) -> float:
    """The mean loss of galleries (G, N, N) of cosines at the best temperature, from 1 to 0.001.

    A temperature changes no rank. In training a model grows too sure of itself: at its own
    temperature the loss on other images rises long before the ranks get worse (arXiv 1706.04599),
    and would select an epoch that is too early. The loss is convex in 1 / temperature.
    """
    fit = minimize_scalar(
        lambda log_scale: mean_loss(similarity, math.exp(log_scale)),
        bounds=(0, math.log(LARGEST_SCALE)),
        method="bounded",
    )
    return float(fit.fun)


def mean_loss(similarity: Tensor, logit_scale: float) -> float:
    """The mean loss of galleries (G, N, N) of cosines; `logit_scale` is 1 / temperature."""
    return score_queries(similarity, logit_scale)["nice_loss"].mean().item()
