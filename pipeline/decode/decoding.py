"""Responses compared with a gallery: the nearest pictures, and how often they are the one seen.

Axes: M responses, N pictures of the gallery, P size of the space in which both meet, I pictures
that were seen.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pipeline.decode.gallery import find_rows
from pipeline.decode.responses import Responses
from pipeline.evaluate.chance import p_of_answers
from pipeline.evaluate.scoring import Models, cosines
from pipeline.evaluate.statistics import draw_resamples
from pipeline.images.embeddings import Embeddings
from pipeline.train.projection import project

TOP_K = (1, 5)


@dataclass(frozen=True)
class Score:
    """How often the picture that was seen is among the k nearest; each picture counts once.

    * `top_k`: for each k its accuracy from 0 to 1, the mean over pictures of the share of their
      responses.
    * `low`, `high`: the ends of the 95 % interval of each, by bootstrap over the pictures seen:
      it holds for this recording and this model, and for other pictures such as these. NaN where
      one picture was seen.
    * `chance`: k / N for each k.
    * `p`: that of top-1 above chance, by permutation of the pictures seen (`evaluate.chance`);
      NaN where one picture was seen.
    * `n_way`: N. `n_images`: I. `n_responses`: how many responses were scored.
    """

    top_k: dict[int, float]
    low: dict[int, float]
    high: dict[int, float]
    chance: dict[int, float]
    p: float
    n_way: int
    n_images: int
    n_responses: int


@dataclass(frozen=True)
class Decoded:
    """What `decode` finds.

    * `similarity`: (M, N) float32, cosines.
    * `image_ids`: (N,) str, the pictures that were compared.
    * `seen`: (M,) str, the image id of the picture that was seen; "" where it is not known, or not
      among them.
    * `table`: the nearest pictures, see `tabulate`.
    * `score`: None where no picture that was seen is among them.
    """

    similarity: np.ndarray
    image_ids: np.ndarray
    seen: np.ndarray
    table: pd.DataFrame
    score: Score | None


def decode(
    models: Models,
    responses: Responses,
    gallery: Embeddings,
    *,
    only_seen: bool = False,
    n_nearest: int = 5,
    n_resamples: int = 10_000,
    seed: int = 42,
) -> Decoded:
    """The pictures of a gallery that are nearest to each response, and the score.

    With `only_seen` the responses are compared only with the pictures that were seen in this EEG,
    if any of them is in the gallery. `n_resamples` and `seed` are of interval and permutations.
    """
    seen_rows = find_rows(responses.seen.tolist(), gallery.image_ids.tolist())
    rows = np.arange(len(gallery.image_ids))
    if only_seen and (seen_rows >= 0).any():
        # In the order in which they were seen
        rows = pd.unique(seen_rows[seen_rows >= 0])
        places = pd.Series(np.arange(len(rows)), index=rows)
        seen_rows = places.reindex(seen_rows, fill_value=-1).to_numpy()

    similarity = compare(models, responses.eeg, gallery.values[rows])
    image_ids = gallery.image_ids[rows]
    return Decoded(
        similarity=similarity,
        image_ids=image_ids,
        seen=np.where(seen_rows >= 0, image_ids[seen_rows], ""),
        table=tabulate(similarity, image_ids, responses, seen_rows, n_nearest),
        score=score(similarity, seen_rows, n_resamples, seed),
    )


def compare(models: Models, eeg: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Cosine similarities (M, N) float32 of responses (M, C, T) with images (N, D) or (N, K, D).

    Of several models that differ in their seed it is the mean of their similarities, in float64.
    """
    total = np.zeros((len(eeg), len(embeddings)))
    for model, _ in models:
        eeg_side, image_side = project(
            model, torch.from_numpy(eeg).float(), torch.from_numpy(embeddings)
        )
        total += cosines(eeg_side, image_side).numpy()
    return (total / len(models)).astype(np.float32)


def nearest(similarity: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k largest values of each row of (M, N), the largest first: (M, k)."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def ranks(similarity: np.ndarray, seen_rows: np.ndarray) -> np.ndarray:
    """The rank of the picture that was seen, from 1: (M,) float64, NaN where its row is -1.

    As `retrieval.rank_of_match`: ties and NaN count against it.
    """
    rank = np.full(len(similarity), np.nan)
    rows = np.flatnonzero(seen_rows >= 0)
    match = similarity[rows, seen_rows[rows]]
    rank[rows] = (~(similarity[rows] < match[:, None])).sum(axis=1)
    return rank


def score(
    similarity: np.ndarray, seen_rows: np.ndarray, n_resamples: int, seed: int
) -> Score | None:
    """The score of the responses whose picture is in the gallery; None where there is none.

    `similarity` is (M, N), `seen_rows` (M,) the row of the picture that was seen, or -1.
    """
    is_scored = seen_rows >= 0
    if not is_scored.any():
        return None
    n_way = similarity.shape[1]
    rank = ranks(similarity, seen_rows)[is_scored]
    images, image_of = np.unique(seen_rows[is_scored], return_inverse=True)
    several = len(images) > 1

    values, low, high = {}, {}, {}
    # One seed and one stream: the same resamples for each k.
    resamples = draw_resamples(1, len(images), n_resamples, seed)
    for k in (k for k in TOP_K if k < n_way):
        shares = np.bincount(image_of, rank <= k) / np.bincount(image_of)  # (I,)
        values[k] = float(shares.mean())
        ends = resamples.interval_of_mean(shares[None]) if several else (np.nan, np.nan)
        low[k], high[k] = ends

    answers = _share_of_answers(similarity[is_scored], images, image_of)
    return Score(
        top_k=values,
        low=low,
        high=high,
        chance={k: k / n_way for k in values},
        p=p_of_answers(answers, n_resamples, seed) if several else np.nan,
        n_way=n_way,
        n_images=len(images),
        n_responses=int(is_scored.sum()),
    )


def tabulate(
    similarity: np.ndarray,
    image_ids: np.ndarray,
    responses: Responses,
    seen_rows: np.ndarray,
    k: int,
) -> pd.DataFrame:
    """The k nearest pictures of each response, a row each, the nearest first.

    Columns: `response` (from 0), `seen` (what was shown, "" where it is not known), `n_trials`,
    `rank_of_seen` (empty where that is not in the gallery), `place` (from 1), `picture`, `cosine`,
    `is_seen`.
    """
    n = len(similarity)
    k = min(k, similarity.shape[1])
    order = nearest(similarity, k)  # (M, k)
    rank = pd.array(ranks(similarity, seen_rows), dtype="Int64")

    return pd.DataFrame(
        {
            "response": np.arange(n).repeat(k),
            "seen": responses.seen.repeat(k),
            "n_trials": responses.n_trials.repeat(k),
            "rank_of_seen": rank.repeat(k),
            "place": np.tile(np.arange(1, k + 1), n),
            "picture": image_ids[order.ravel()],
            "cosine": np.take_along_axis(similarity, order, axis=1).ravel(),
            "is_seen": (order == seen_rows[:, None]).ravel(),
        }
    )


def _share_of_answers(
    similarity: np.ndarray, images: np.ndarray, image_of: np.ndarray
) -> np.ndarray:
    """How often each picture seen (column) is the answer to each picture seen (row), (I, I).

    A response with a tie for the first place, or with NaN, has no answer, and neither has one
    whose nearest picture was never shown.
    """
    best = similarity.max(axis=1, keepdims=True)
    has_answer = (similarity == best).sum(axis=1) == 1
    answer = similarity.argmax(axis=1)
    has_answer &= np.isin(answer, images)

    shares = np.zeros((len(images), len(images)))
    rows = np.flatnonzero(has_answer)
    columns = np.searchsorted(images, answer[rows])
    np.add.at(shares, (image_of[rows], columns), 1 / np.bincount(image_of)[image_of[rows]])
    return shares
