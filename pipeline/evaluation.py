"""Score a trained model on the test images, subject by subject."""

import numpy as np
import pandas as pd
import torch

from pipeline.embeddings import Embeddings
from pipeline.errors import InputError
from pipeline.model import ContrastiveModel
from pipeline.recordings import Recording
from pipeline.retrieval import rank_of_match, retrieval_metrics
from pipeline.training import project


def evaluate(
    model: ContrastiveModel, recordings: list[Recording], embeddings: Embeddings, top_k: list[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each subject's averaged test EEG (N, C, T) against all N test images.

    Returns the metrics, one row a subject, and the mean top-k accuracy for k = 1 .. N beside what chance gives.
    """
    sizes = model.sizes
    metrics, ranks = [], []
    for recording in recordings:
        if recording.eeg.shape[1:] != (sizes["n_chans"], sizes["n_times"]):
            raise InputError(
                f"{recording.subject}: the model was trained on {sizes['n_chans']} channels x {sizes['n_times']} "
                f"samples and the test EEG has {recording.eeg.shape[1]} x {recording.eeg.shape[2]}; run `dvc repro`"
            )
        values = embeddings.values[embeddings.rows(recording.image_ids)]
        if values.shape[1] != sizes["embedding_size"]:
            raise InputError(
                f"the model was trained on embeddings of {sizes['embedding_size']} dimensions and these have "
                f"{values.shape[1]}; run `dvc repro`"
            )
        eeg_side, image_side = project(model, torch.from_numpy(recording.eeg).float(), torch.from_numpy(values))
        similarity = eeg_side @ image_side.T
        metrics.append({"subject": recording.subject, "n_way": len(similarity)})
        metrics[-1] |= retrieval_metrics(similarity, model.logit_scale.item(), top_k)
        ranks.append(rank_of_match(similarity).numpy())
    if len({len(rank) for rank in ranks}) != 1:
        raise InputError("the subjects have test sets of different sizes, which have no common chance level")
    k = np.arange(1, len(ranks[0]) + 1)
    hits = np.stack(ranks)[:, :, None] <= k  # (S, N, N)
    curve = pd.DataFrame({"k": k, "top_k_acc": hits.mean((0, 1)), "chance": k / len(k)})
    return pd.DataFrame(metrics), curve
