"""What chance decides in a training, each thing by a seed of its own."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.sections import Train
from pipeline.train.samples import Samples


@dataclass(frozen=True)
class RunSeeds:
    """One seed for each thing that chance decides in a run."""

    concepts: int  # which concepts are held out for validation
    start: int  # the first weights
    order: int  # the order of the samples in each epoch
    dropout: int  # Dropout, time shifts and channel dropout
    repetitions: int  # which repetitions of an image are averaged
    views: int  # which view of its image each sample has in an epoch
    control: int  # which image takes the place of which, with `control: shuffled`


def derive_seeds(seed: int, fold: str) -> RunSeeds:
    """The seeds of one run. Another seed or another fold of the protocol gives independent ones."""
    sequence = np.random.SeedSequence([seed, *fold.encode()])
    return RunSeeds(*sequence.generate_state(7).tolist())


def check_control(recipe: Train) -> None:
    """Raises InputError where true pairs would select the epoch of a control."""
    if recipe.control == "shuffled" and recipe.select_on == "test":
        raise InputError(
            "train.control is shuffled and train.select_on is test: the epoch would be selected by "
            "true pairs of EEG and image, and a control must not know any; set train.select_on to "
            "validation or last"
        )


def shuffle_images(samples: Samples, seed: int) -> Samples:
    """The control: each image of a subject takes the place of another one, and none keeps its own.

    All repetitions of an image move together, and its concept goes along. The images of a subject
    stand in a random order, and each is replaced by the next one of that order. The EEG is the same
    tensor. Rows without a subject stay as they are.
    """
    rng = np.random.default_rng(seed)
    image_row = samples.image_row.numpy()
    new_image_row = image_row.copy()
    new_concept = samples.things_concept.copy()

    for subject in sorted(set(samples.subject) - {""}):
        rows = np.flatnonzero(samples.subject == subject)
        images, first, image_of_row = np.unique(
            image_row[rows], return_index=True, return_inverse=True
        )
        order = rng.permutation(len(images))
        replacement = np.empty_like(order)
        replacement[order] = np.roll(order, -1)

        new_image_row[rows] = images[replacement][image_of_row]
        concepts = samples.things_concept[rows][first]
        new_concept[rows] = concepts[replacement][image_of_row]

    return replace(samples, image_row=torch.from_numpy(new_image_row), things_concept=new_concept)


def group_repetitions(samples: Samples, rows: np.ndarray, n: int | Literal["any"]) -> np.ndarray:
    """Put the rows of one image and subject side by side: (M,) -> (images, R) for R repetitions.

    InputError where the images differ in their number of repetitions, or have fewer than `n` or 2.
    """
    frame = pd.DataFrame(
        {"row": rows, "subject": samples.subject[rows], "image": samples.image_row[rows]}
    )
    frame = frame.sort_values(["subject", "image"], kind="stable")
    counts = frame.groupby(["subject", "image"]).size()

    least = 2 if n == "any" else max(2, n)
    if counts.min() < least or counts.nunique() > 1:
        raise _wrong_repetitions(counts, n, least)
    return frame["row"].to_numpy(copy=True).reshape(-1, counts.iloc[0])


def _wrong_repetitions(counts: pd.Series, n: int | Literal["any"], least: int) -> InputError:
    available = " or ".join(map(str, sorted(counts.unique())))
    if counts.nunique() > 1:
        remedy = "set it to none"
    elif counts.min() == 1:
        remedy = (
            "set it to none, or, if images were shown more often, "
            "preprocess.average_repetitions to false"
        )
    else:
        remedy = f"lower it to {available}, or set it to none"

    return InputError(
        f"train.average_random_repetitions is {n}, which needs {least} or more repetitions of "
        f"each image and of all as many, and there are {available}: {remedy}"
    )


def draw_repetitions(rows: Tensor, n: int | Literal["any"], generator: torch.Generator) -> Tensor:
    """Choose among the R repetitions of each image, without replacement: rows (images, R) int64.

    Returns (images, n). With `any` the number is drawn too, from 1 to R: (images, R), padded by -1.
    """
    random_order = torch.rand(rows.shape, generator=generator).argsort(1)
    shuffled = rows.gather(1, random_order.to(rows.device))
    if n != "any":
        return shuffled[:, :n]

    n_repetitions = rows.shape[1]
    count = torch.randint(1, n_repetitions + 1, (len(rows), 1), generator=generator)
    is_chosen = torch.arange(n_repetitions) < count
    return shuffled.where(is_chosen.to(rows.device), -1)
