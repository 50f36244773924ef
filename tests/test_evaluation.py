import dataclasses

import numpy as np
import pytest
import torch

from pipeline.embeddings import Embeddings
from pipeline.errors import InputError
from pipeline.evaluation import evaluate
from pipeline.model import ContrastiveModel
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
    return ContrastiveModel(n_chans=3, n_times=70, embedding_size=6, projection_size=5), recordings, embeddings


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
    assert curve.to_numpy() == pytest.approx(curve_again.to_numpy())


def test_the_curve_ends_at_one_and_starts_at_the_mean_top1(scene):
    table, curve = evaluate(*scene, [1, 3, 5])
    assert curve["top_k_acc"].iloc[-1] == 1.0
    assert curve["top_k_acc"].iloc[0] == pytest.approx(table["top1_acc"].mean())
    assert curve["chance"].iloc[0] == pytest.approx(1 / 12)


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
