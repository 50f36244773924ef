"""A model whose weights are found at once, without seeds and epochs: ridge regression.

EEG and embeddings are prepared as for any other model. The prediction of an embedding and the
embeddings of the images, all around the mean of training, are then compared by their cosine. The
temperature is the one with the lowest loss on held-out training concepts: it changes no rank, and
only the loss needs it.
"""

import math
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


def fit(setup: Setup, partition: Partition) -> Trained:
    """The model of all rows of the partition.

    Each image counts once for each subject: its repetitions are averaged first, as in the test. Of
    several views the EEG learns the mean, which is what least squares makes of all of them.

    The history is one row, of epoch 0: `penalty`; `held_out_r2`, the share of the embeddings'
    variance that is explained on held-out concepts; `selection_loss` and `selection_top1` on
    galleries of them. `train_loss` is missing.
    InputError for fewer than two concepts in each fold.
    """
    samples = average_repetitions(setup.samples, partition.rows)
    n = len(samples.eeg)
    fold = _fold_of(samples.things_concept)
    galleries = _galleries(samples, fold)

    model = ContrastiveModel(setup.sizes, setup.recipe).to(setup.device).eval()
    model.standardise(samples.eeg, torch.arange(n), samples.to_normalise)
    if not setup.recipe.standardise_eeg:  # the bias takes the mean out in any case
        model.eeg_sd.fill_(1)

    with torch.inference_mode():
        images = model.features_of_images(setup.embeddings.to(setup.device))  # (N, D)
        targets = model.features_of_images(setup.target_views.to(setup.device)).mean(1)
        of_response = samples.image_row.to(setup.device)
        mean_target = targets[of_response].mean(0)
        model.image_projector.mean.copy_(images[of_response].mean(0))

        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            """Features (b, p) of responses, and the embeddings (b, D) of their images."""
            eeg = samples.eeg[rows].to(setup.device).float()
            if samples.to_normalise:
                eeg = normalise(eeg)
            features = model.eeg_encoder(model.standard_eeg(eeg))
            return features, targets[of_response[rows]] - mean_target

        result = model.eeg_encoder.fit(read, fold, galleries.flatten())
        linear = model.eeg_projector
        linear.weight.copy_(result.weight)
        linear.bias.copy_(result.bias)

        predictions = nn.functional.normalize(result.predictions, dim=-1)
        seen = model.embed_image(setup.embeddings[samples.image_row[galleries.flatten()]])
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
