"""How much the EEG itself can tell: does half of the repetitions find the image in the other half?

No image model has a part in it. Responses of one half ask for those of the other half, as responses
ask for images in retrieval, in two spaces:

* `EEG`: the prepared responses as they are. The mean over images is taken out, for each half alone;
  each channel is divided by its standard deviation; all channels and samples are one vector, and
  the cosine compares. This is a reliability and no ceiling: a trained encoder finds the part that
  tells images apart, and may do far better.
* `encoder`: the projections of the trained encoder. Where halves find each other far more often
  than the image, not the noise limits the run, but how responses are brought to images. It is no
  ceiling either: here both sides are noisy, and in retrieval the images are not.

Within a subject both halves are its own. Across subjects one half of a subject asks for that of
another, both by the same model: the one that is tested on the subject that asks.

Axes: N test images, R repetitions, C channels, T samples, P dimensions of the projected space,
S subjects, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.evaluate.masking import average_groups
from pipeline.evaluate.scoring import Models, cosines
from pipeline.evaluate.statistics import LEVEL, Resamples, curve
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import rank_of_match
from pipeline.train.projection import project_eeg

SPACES = ("EEG", "encoder")
WITHIN = "within"
ACROSS = "across"


@dataclass(frozen=True)
class SubjectHalves:
    """What the halves of one subject find in each other.

    * `within`: by space, (V, N) float64: for each number of repetitions the share of the splits
      and runs in which the image was found, both halves asking.
    * `half`: (N, C * T) float32, one half of all repetitions, as vectors to compare.
    * `projected`: (N, P) float32, the same half by the first model of each fold.
    * `asks_by`: the fold whose model is tested on this subject.
    """

    subject: str
    within: Mapping[str, np.ndarray]
    half: np.ndarray
    projected: Mapping[str, np.ndarray]
    asks_by: str


def half_sizes(n_repetitions: int, sizes: Sequence[int]) -> list[int]:
    """The numbers of repetitions in a half: those of `sizes` that fit, and half of all."""
    return sorted({n for n in sizes if n < n_repetitions // 2} | {n_repetitions // 2})


def measure_halves(
    subject: str,
    eeg: np.ndarray,
    to_normalise: bool,
    models: Models,
    sizes: Sequence[int],
    draws: int,
    seed: int,
) -> SubjectHalves:
    """The halves of one subject, EEG (N, R, C, T) with R of at least 2.

    `models` are all models of the protocol that count, some of them tested on this subject; `sizes`
    are those of `half_sizes`. A split is a random one, the same in both spaces. It does not depend
    on other subjects, and its first half is what `evaluate` draws for that number of repetitions.
    With several models for the subject, the splits are shared out among them.
    """
    of_subject = [(model, notes) for model, notes in models if subject in notes["tested_on"]]
    shares: dict[str, list[np.ndarray]] = {space: [] for space in SPACES}
    for n in sizes:
        rng = np.random.default_rng([seed, n, *subject.encode()])
        halves = average_groups(eeg, n, 2, draws, rng)  # (2, draws, N, C, T)
        if to_normalise:
            halves = normalise(halves)

        splits = halves.swapaxes(0, 1)
        in_eeg = [find(as_vectors(first), as_vectors(second)) for first, second in splits]
        shares["EEG"].append(np.mean(in_eeg, 0))

        by_model = []
        for i, (model, _) in enumerate(of_subject):
            of_model = splits[i :: len(of_subject)] if i < draws else splits[[i % draws]]
            pairs = [[project_eeg(model, to_tensor(half)) for half in split] for split in of_model]
            by_model.append(np.mean([find(first, second) for first, second in pairs], 0))
        shares["encoder"].append(np.mean(by_model, 0))

    # The last size is half of all repetitions.
    half = halves[0, 0]
    first_of_fold = {notes["fold"]: model for model, notes in reversed(models)}
    return SubjectHalves(
        subject=subject,
        within={space: np.stack(by_size) for space, by_size in shares.items()},
        half=as_vectors(half).numpy(),
        projected={
            fold: project_eeg(model, to_tensor(half)).numpy()
            for fold, model in first_of_fold.items()
        },
        asks_by=of_subject[0][1]["fold"],
    )


def as_vectors(eeg: np.ndarray) -> Tensor:
    """Responses (N, C, T) as unit vectors (N, C * T), float32: the space `EEG`.

    A response without any difference from the mean stays zero, which finds nothing.
    """
    centred = eeg - eeg.mean(0)
    sd = np.sqrt((centred**2).mean((0, 2), keepdims=True))
    vectors = (centred / np.where(sd > 0, sd, 1)).reshape(len(eeg), -1)
    return torch.nn.functional.normalize(to_tensor(vectors), dim=-1)


def to_tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def find(first: Tensor, second: Tensor) -> np.ndarray:
    """Whether each image is the nearest, from unit vectors (N, P) of both sides: (N,) float64.

    Mean of both directions: 0, 0.5 or 1. Ties count against.
    """
    similarity = cosines(first, second)
    ranks = torch.stack([rank_of_match(similarity), rank_of_match(similarity.T)])
    return (ranks == 1).double().mean(0).numpy()


def tabulate_reliability(
    subjects: Sequence[SubjectHalves], sizes: Sequence[int], resamples: Resamples
) -> pd.DataFrame:
    """One row for each space, whose halves, and number of repetitions in a half.

    Columns: `space`, `subjects` (within or across), `n_repetitions`, `top1_acc` with its 95 %
    interval over subjects and images and its spread over subjects (those that ask), `chance`.
    `resamples` are of these subjects. Across subjects there is a row for half of all repetitions
    alone, and none for one subject. The interval of two subjects is over images alone there: a
    resample with one of them twice has no pair.
    """
    names = [subject.subject for subject in subjects]
    tables = []
    for space in SPACES:
        within = curve("top1_acc", names, [half.within[space] for half in subjects], resamples)
        first = pd.DataFrame({"space": space, "subjects": WITHIN, "n_repetitions": sizes})
        tables.append(pd.concat([first, within], axis=1))

        if len(subjects) > 1:
            row = {"space": space, "subjects": ACROSS, "n_repetitions": sizes[-1]}
            is_right = across_subjects(subjects, space)
            tables.append(pd.DataFrame([row | _estimate_pairs(is_right, resamples)]))

    n_images = resamples.images.shape[1]
    return pd.concat(tables, ignore_index=True).assign(chance=1 / n_images)


def summarise_reliability(table: pd.DataFrame, modality: str = "EEG") -> dict[str, Any]:
    """The rows of half of all repetitions, by space and whose halves, and what they say."""
    n = int(table["n_repetitions"].max())
    summary: dict[str, Any] = {"n_repetitions": n}
    for row in table[table["n_repetitions"] == n].to_dict("records"):
        ends = (row["top1_acc_low"], row["top1_acc_high"])
        figures = {"top1_acc": row["top1_acc"], "ci95": ends}
        summary.setdefault(row["space"], {})[row["subjects"]] = figures

    shares = [f"{100 * summary[space][WITHIN]['top1_acc']:.1f} %" for space in SPACES]
    answer = (
        f"Half of the repetitions ({n}) finds the image in the other half in {shares[0]} of the "
        f"cases by the {modality} itself, and in {shares[1]} by what the trained encoder makes "
        f"of it; guessing gives {100 * table['chance'].iloc[0]:.1f} %."
    )
    return {"answer": answer} | summary


def across_subjects(subjects: Sequence[SubjectHalves], space: str) -> np.ndarray:
    """What the half of each subject (first axis) finds in that of each other: (S, S, N) float64.

    The diagonal, a half with itself, is NaN.
    """
    n_images = len(subjects[0].half)
    is_right = np.full((len(subjects), len(subjects), n_images), np.nan)
    for i, asking in enumerate(subjects):
        for j, answering in enumerate(subjects):
            if i != j:
                sides = [
                    half.half if space == "EEG" else half.projected[asking.asks_by]
                    for half in (asking, answering)
                ]
                similarity = cosines(*map(torch.from_numpy, sides))
                is_right[i, j] = (rank_of_match(similarity) == 1).numpy()
    return is_right


def _estimate_pairs(is_right: np.ndarray, resamples: Resamples) -> dict[str, float]:
    """The mean over ordered pairs of subjects (S, S, N), interval and spread over who asks.

    In a resample each pair counts as often as both subjects together; a subject that is drawn
    twice makes no pair with itself.
    """
    by_pair = np.nan_to_num(is_right)
    n_subjects, _, n_images = by_pair.shape
    images = resamples.images / n_images  # (B, N)
    in_resamples = np.einsum("ijn,bn->bij", by_pair, images, optimize=True)

    counts = resamples.subjects  # (B, S)
    n_pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    sums = np.einsum("bi,bj,bij->b", counts, counts, in_resamples, optimize=True)
    means = sums[n_pairs > 0] / n_pairs[n_pairs > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])

    by_asking = by_pair.sum(1).mean(1) / (n_subjects - 1)  # (S,)
    return {
        "top1_acc": float(by_asking.mean()),
        "top1_acc_low": float(low),
        "top1_acc_high": float(high),
        "top1_acc_sd_over_subjects": float(by_asking.std(ddof=1)),
    }
