import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.embeddings import Embeddings
from pipeline.errors import InputError
from pipeline.evaluation import evaluate, summarise
from pipeline.model import ContrastiveModel, ModelSizes
from pipeline.params import read_params
from pipeline.recordings import Recording


@pytest.fixture
def scene() -> tuple[ContrastiveModel, list[Recording], Embeddings]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ids = np.array([f"test_images/{i:05}/{i}.jpg" for i in range(12)], dtype=object)
    recordings = [
        Recording(
            subject, ("O1", "O2", "Oz"), np.arange(70) / 100, 100.0, rng.standard_normal((12, 3, 70)), ids, ids, ids
        )
        for subject in ("sub-01", "sub-02")
    ]
    embeddings = Embeddings(rng.standard_normal((12, 6)).astype(np.float32), ids)
    recipe = read_params(Path("params.yaml")).train
    return ContrastiveModel(ModelSizes(3, 70, 100.0, 6), recipe), recordings, embeddings


def test_the_order_of_rows_changes_nothing(scene):
    """EEG and embeddings are joined on image ids: shuffling either side, ids with it, gives the same figures."""
    model, recordings, embeddings = scene
    order = np.random.default_rng(1).permutation(12)
    table, curve = evaluate(model, recordings, embeddings, [1, 3, 5])
    shuffled = [
        dataclasses.replace(recordings[0], eeg=recordings[0].eeg[order], image_ids=recordings[0].image_ids[order]),
        recordings[1],
    ]
    reversed_rows = Embeddings(embeddings.values[::-1].copy(), embeddings.image_ids[::-1])
    again, curve_again = evaluate(model, shuffled, reversed_rows, [1, 3, 5])
    assert table.drop(columns="subject").to_numpy() == pytest.approx(again.drop(columns="subject").to_numpy(), abs=1e-6)
    assert curve == pytest.approx(curve_again)


def test_the_curve_ends_at_one_and_starts_at_the_mean_top1(scene):
    table, curve = evaluate(*scene, [1, 3, 5])
    assert curve.shape == (2, 12)
    assert (curve[:, -1] == 1).all()
    assert curve[:, 0] == pytest.approx(table["top1_acc"].to_numpy())


def test_ids_without_embedding_are_named(scene):
    model, recordings, embeddings = scene
    short = Embeddings(embeddings.values[1:], embeddings.image_ids[1:])
    with pytest.raises(InputError, match="1 of the 12 images seen have no embedding, first test_images/00000/0.jpg"):
        evaluate(model, recordings, short, [1])


def test_a_model_of_other_channels_is_refused(scene):
    model, recordings, embeddings = scene
    other = [dataclasses.replace(recordings[0], eeg=recordings[0].eeg[:, :2])]
    with pytest.raises(InputError, match="trained on 3 channels x 70 samples and the test EEG has 2 x 70"):
        evaluate(model, other, embeddings, [1])


def test_a_model_of_other_embeddings_is_refused(scene):
    model, recordings, embeddings = scene
    with pytest.raises(InputError, match="embeddings of 6 dimensions and these have 4"):
        evaluate(model, recordings, Embeddings(embeddings.values[:, :4], embeddings.image_ids), [1])


def table_of(rows: list[tuple[str, int, str, bool, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["fold", "seed", "subject", "collapsed", "top1_acc"])


def test_means_and_spread_by_hand():
    rows = [("pooled", 1, "a", False, 0.2), ("pooled", 1, "b", False, 0.4)]
    rows += [("pooled", 2, "a", False, 0.4), ("pooled", 2, "b", False, 0.6)]
    summary = summarise(table_of(rows))
    assert summary["top1_acc"] == pytest.approx(0.4)
    assert summary["sd_over_subjects"]["top1_acc"] == pytest.approx(0.2 / 2**0.5)  # of 0.3 and 0.5
    assert summary["sd_over_seeds"]["top1_acc"] == pytest.approx(0.2 / 2**0.5)
    assert (summary["n_subjects"], summary["n_runs"], summary["collapsed"]) == (2, 2, False)


def test_collapsed_runs_are_counted_and_not_averaged():
    rows = [("pooled", 1, "a", False, 0.5), ("pooled", 2, "a", True, 0.01)]
    summary = summarise(table_of(rows))
    assert summary["top1_acc"] == 0.5 and summary["collapsed"] is True
    assert (summary["n_runs"], summary["n_collapsed"]) == (2, 1)
    assert "sd_over_seeds" not in summary


def test_where_all_collapsed_their_figures_stand_and_say_so():
    summary = summarise(table_of([("pooled", 1, "a", True, 0.02), ("pooled", 1, "b", True, 0.04)]))
    assert summary["top1_acc"] == pytest.approx(0.03) and summary["collapsed"] is True
