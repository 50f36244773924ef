"""Score trained models on the test images, subject by subject, and summarise the runs of a protocol."""

import numpy as np
import pandas as pd
import torch

from pipeline.embeddings import Embeddings
from pipeline.errors import InputError
from pipeline.model import ContrastiveModel
from pipeline.recordings import Recording
from pipeline.retrieval import rank_of_match, retrieval_metrics
from pipeline.training import project

NOT_METRICS = ["fold", "seed", "subject", "collapsed", "selected_epoch", "n_way"]


def evaluate(
    model: ContrastiveModel, recordings: list[Recording], embeddings: Embeddings, top_k: list[int]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Each subject's averaged test EEG (N, C, T) against all N test images.

    Returns the metrics, one row a subject, and the top-k accuracy for k = 1 .. N, (S, N).
    """
    sizes = model.sizes
    metrics, ranks = [], []
    for recording in recordings:
        if recording.eeg.shape[1:] != (sizes.n_chans, sizes.n_times):
            raise InputError(
                f"{recording.subject}: the model was trained on {sizes.n_chans} channels x {sizes.n_times} "
                f"samples and the test EEG has {recording.eeg.shape[1]} x {recording.eeg.shape[2]}; run `dvc repro`"
            )
        values = embeddings.values[embeddings.rows(recording.image_ids)]
        if values.shape[1] != sizes.embedding_size:
            raise InputError(
                f"the model was trained on embeddings of {sizes.embedding_size} dimensions and these have "
                f"{values.shape[1]}; run `dvc repro`"
            )
        eeg_side, image_side = project(model, torch.from_numpy(recording.eeg).float(), torch.from_numpy(values))
        similarity = eeg_side @ image_side.T
        metrics.append({"subject": recording.subject, "n_way": len(similarity)})
        metrics[-1] |= retrieval_metrics(similarity, model.logit_scale.item(), top_k)
        ranks.append(rank_of_match(similarity).numpy())
    if len({len(rank) for rank in ranks}) != 1:
        raise InputError("the subjects have test sets of different sizes, which have no common chance level")
    return pd.DataFrame(metrics), np.stack([(rank[:, None] <= np.arange(1, len(rank) + 1)).mean(0) for rank in ranks])


def summarise(table: pd.DataFrame) -> dict:
    """Means over subjects of each subject's mean over seeds, and the spread over both where there are several.

    `table` has a row a run and tested subject. Collapsed runs are counted and left out of the means, unless all are.
    """
    n_runs, n_collapsed = (len(t.groupby(["fold", "seed"])) for t in (table, table[table["collapsed"]]))
    if n_collapsed < n_runs:
        table = table[~table["collapsed"]]
    by_subject, by_seed = (table.groupby(key).mean(numeric_only=True) for key in ("subject", "seed"))
    metrics = [name for name in table.columns if name not in NOT_METRICS]
    summary = by_subject[metrics].mean().to_dict()
    for name, groups in (("sd_over_subjects", by_subject), ("sd_over_seeds", by_seed)):
        if len(groups) > 1:
            summary[name] = groups[metrics].std(ddof=1).to_dict()
    return summary | {
        "n_subjects": len(by_subject),
        "n_runs": n_runs,
        "n_collapsed": n_collapsed,
        "collapsed": n_collapsed > 0,
    }
