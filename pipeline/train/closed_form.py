"""A model whose weights are found at once, without seeds and epochs: ridge regression.

EEG and embeddings are prepared as for any other model. The prediction of an embedding and the
embeddings of the images, all around the mean of training, are then compared by their cosine. The
temperature is the one with the lowest loss on held-out training concepts: it changes no rank, and
only the loss needs it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.table import has_closed_form
from pipeline.errors import InputError
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import rank_of_match
from pipeline.sections import Train
from pipeline.train.model import ContrastiveModel
from pipeline.train.samples import Samples
from pipeline.train.selection import best_log_scale, make_galleries, mean_loss
from pipeline.train.training import Partition, Setup, Trained

N_FOLDS = 3  # of the training concepts; each penalty is tried on each of them
# The held-out galleries that the temperature is fitted to
MOST_GALLERIES = 8
MOST_IN_GALLERY = 200
VALUES_AT_ONCE = 1 << 24  # of EEG whose repetitions are averaged together

# A value for each key of `train` that such a model has no use for
UNUSED = {
    "select_on": "validation",
    "selection_temperature": "fitted",
    "validation_concepts": 0.1,
    "eeg_weights": "none",
    "eeg_encoder_frozen": False,
    "first_weights": "torch",
    "average_random_repetitions": "none",
    "channel_dropout": 0.0,
    "time_shift": "none",
    "image_projector": "none",
    "eeg_hidden_size": "none",
    "temperature": "learned",
    "start_temperature": 1.0,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "gradient_clip": "none",
    "epochs": 1,
    "average_epochs": "none",
    "batch_size": 2,
    "learning_rate": 1.0,
    "final_learning_rate": 1.0,
    "betas": [0.9, 0.999],
    "cosine_epochs": "rest",
    "warmup_start": 1.0,
    "warmup_epochs_eeg_encoder": 0,
    "warmup_epochs_projectors": 0,
    "dropout": 0.0,
    "projection_size": 1,
    "precision": "float32",
    "seeds": 1,
}


def what_decides(recipe: Train) -> Train:
    """The recipe; where the weights have a closed form, alike in all that does not change them."""
    return recipe.model_copy(update=UNUSED) if has_closed_form(recipe.eeg_encoder) else recipe


def seeds_that_count(eeg_encoder: str, seeds: list[int]) -> list[int]:
    """All seeds; the first one where the weights have a closed form, which no seed changes."""
    return seeds[:1] if has_closed_form(eeg_encoder) else seeds


def fit_all(
    setup: Setup, partitions: Sequence[Partition], progress: Callable[[], None]
) -> list[Trained | InputError]:
    """A model for each partition, or why there is none.

    `progress` is called as often as a training does, once an epoch.
    """
    results: list[Trained | InputError] = []
    for partition in partitions:
        try:
            results.append(fit(setup, partition))
        except InputError as error:
            results.append(error)
        for _ in range(setup.recipe.epochs):
            progress()
    return results


def fit(setup: Setup, partition: Partition) -> Trained:
    """The model of all rows of the partition.

    Each image counts once for each subject: its repetitions are averaged first, as in the test. Of
    several views the EEG learns the mean, which is what least squares makes of all of them.

    The history is one row, of epoch 0: `penalty`; `held_out_r2`, the share of the embeddings'
    variance that is explained on held-out concepts; `selection_loss` and `selection_top1` on
    galleries of them. `train_loss` is missing.
    InputError for fewer than two concepts in each fold.
    """
    samples, numbers = average_repetitions(setup.samples, partition.rows)
    samples = samples.to(setup.device)
    rows = torch.from_numpy(numbers)  # (n,), of the samples
    fold = _fold_of(samples.things_concept[numbers])
    galleries = _galleries(samples.subject[numbers], samples.things_concept[numbers], fold)

    model = ContrastiveModel(setup.sizes, setup.recipe).to(setup.device).eval()
    model.standardise(samples.eeg, rows.to(setup.device), samples.to_normalise)
    if not setup.recipe.standardise_eeg:  # the bias takes the mean out in any case
        model.eeg_sd.fill_(1)

    embeddings = setup.embeddings.to(setup.device)
    with torch.no_grad():
        images = model.features_of_images(embeddings)  # (N, D)
        targets = model.features_of_images(setup.target_views.to(setup.device)).mean(1)
        of_response = samples.image_row[rows].to(setup.device)
        mean_target = targets[of_response].mean(0)

        def read(part: Tensor) -> tuple[Tensor, Tensor]:
            """Features (b, p) of b of n responses, and the embeddings (b, D) of their images."""
            eeg = samples.eeg[rows[part]].float()
            if samples.to_normalise:
                eeg = normalise(eeg)
            features = model.eeg_encoder(model.standard_eeg(eeg))
            return features, targets[of_response[part]] - mean_target

        result = model.eeg_encoder.fit(read, fold, galleries.flatten())
        found = {
            "eeg_projector.weight": result.weight,
            "eeg_projector.bias": result.bias,
            "image_projector.mean": images[of_response].mean(0),
        }
        model.load_state_dict(model.state_dict() | found)

        predictions = nn.functional.normalize(result.predictions, dim=-1)
        seen = model.embed_image(embeddings[of_response[galleries.flatten()]])
        sides = [side.unflatten(0, galleries.shape) for side in (predictions, seen)]
        similarity = sides[0] @ sides[1].mT  # (G, N, N)
        log_scale = best_log_scale(similarity)
        model.log_scale.copy_(log_scale)

    measures = {
        "epoch": 0,
        "train_loss": math.nan,
        "selection_loss": mean_loss(similarity, log_scale.exp()).item(),
        "selection_top1": (rank_of_match(similarity) == 1).double().mean().item(),
        "penalty": result.penalty,
        "held_out_r2": result.r2,
    }
    return Trained(model, pd.DataFrame([measures]), epoch=0, collapsed=False)


def average_repetitions(samples: Samples, rows: np.ndarray) -> tuple[Samples, np.ndarray]:
    """The mean response of each subject to each image, float32, and its rows.

    Without repetitions these are the samples and rows themselves. Where responses are to be
    normalised after the mean is taken, they still are.
    """
    frame = pd.DataFrame({"subject": samples.subject[rows], "image": samples.image_row[rows]})
    number = frame.groupby(["subject", "image"], sort=False).ngroup().to_numpy(copy=True)
    first = rows[np.unique(number, return_index=True)[1]]
    if len(first) == len(rows):
        return samples, rows

    eeg = torch.zeros(len(first), *samples.eeg.shape[1:])
    part = max(1, VALUES_AT_ONCE // math.prod(eeg.shape[1:]))
    for start in range(0, len(rows), part):
        responses = samples.eeg[rows[start : start + part]].float()
        eeg.index_add_(0, torch.from_numpy(number[start : start + part]), responses)
    eeg /= torch.from_numpy(np.bincount(number))[:, None, None]

    of_images = replace(
        samples,
        eeg=eeg,
        image_row=samples.image_row[first],
        subject=samples.subject[first],
        things_concept=samples.things_concept[first],
    )
    return of_images, np.arange(len(first))


def _fold_of(things_concept: np.ndarray) -> Tensor:
    """The fold of each response, (n,): a concept is in one fold alone, similar names are not."""
    concepts, number = np.unique(things_concept, return_inverse=True)
    if len(concepts) < 2 * N_FOLDS:
        raise InputError(
            f"ridge tries its penalty on {N_FOLDS} parts of the training concepts, and there are "
            f"{len(concepts)} concepts: it needs {2 * N_FOLDS} or more"
        )
    return torch.from_numpy(number % N_FOLDS)


def _galleries(subject: np.ndarray, things_concept: np.ndarray, fold: Tensor) -> Tensor:
    """Responses of fold 0 in galleries of one subject and one image a concept, (G, N)."""
    held_out = np.flatnonzero(fold == 0)
    galleries = held_out[make_galleries(subject[held_out], things_concept[held_out])]
    chosen = np.linspace(0, len(galleries) - 1, min(MOST_GALLERIES, len(galleries))).round()
    return torch.from_numpy(galleries[chosen.astype(int), :MOST_IN_GALLERY])
