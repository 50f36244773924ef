"""Concept by concept: how often it is found, and what it is taken for.

Axes: N test images, one a concept.
"""

import numpy as np
import pandas as pd
import torch

from pipeline.evaluate.similarities import Similarities
from pipeline.evaluate.statistics import mean_by_subject
from pipeline.explain.near_misses import percentiles, retrieved_first
from pipeline.retrieval import rank_of_match


def tabulate_concepts(scored: Similarities, human: np.ndarray | None) -> pd.DataFrame:
    """One row a test image, in the order of the evaluation.

    * `concept`, `image`: the concept in THINGS, and the image id.
    * `top1_acc`, `mean_rank`: means over the runs of a subject, then over subjects.
    * `subjects_right`: how many subjects have it right in at least half of their runs.
    * `taken_for`: the concept that is retrieved first most often where that is wrong, and
      `taken_for_share`, its share of the wrong answers; empty where no answer is wrong.
    * `people_percentile`: how like the concept people find that one, see `near_misses.percentiles`;
      missing without `human`, people's similarities (N, N).
    """
    results = scored.valid_results
    subjects = [result.subject for result in results]
    ranks = [rank_of_match(torch.from_numpy(result.similarity)).numpy() for result in results]
    right = mean_by_subject(subjects, [(rank == 1).astype(float) for rank in ranks])  # (S, N)

    table = pd.DataFrame(
        {
            "concept": scored.things_concept,
            "image": scored.image_ids,
            "top1_acc": right.mean(0),
            "subjects_right": (right >= 0.5).sum(0),
            "mean_rank": mean_by_subject(subjects, [rank.astype(float) for rank in ranks]).mean(0),
        }
    )
    return pd.concat([table, _taken_for(scored, human)], axis=1)


def _taken_for(scored: Similarities, human: np.ndarray | None) -> pd.DataFrame:
    """The columns `taken_for`, `taken_for_share` and `people_percentile`."""
    # How often each image (column) was retrieved first in place of the one seen (row).
    first = [retrieved_first(result.similarity) for result in scored.valid_results]
    counts = np.sum(first, axis=0)
    n_wrong = counts.sum(1)
    most_often = counts.argmax(1)
    rows = np.arange(len(counts))
    is_wrong = n_wrong > 0

    table = pd.DataFrame(
        {
            "taken_for": np.where(is_wrong, scored.things_concept[most_often], ""),
            "taken_for_share": counts[rows, most_often] / np.where(is_wrong, n_wrong, np.nan),
        }
    )
    if human is None:
        return table
    of_people = percentiles(human)[rows, most_often]
    return table.assign(people_percentile=np.where(is_wrong, of_people, np.nan))
