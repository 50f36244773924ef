from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.errors import InputError
from pipeline.model import ContrastiveModel
from pipeline.params import Train, read_params
from pipeline.training import TrainingSet, held_out, make_galleries, make_optimizer, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> Train:
    return read_params(Path("params.yaml")).train


def planted(n_concepts: int = 40, images: int = 2, subjects: int = 2, noise: float = 0.5) -> TrainingSet:
    """EEG (C = 4, T = 70): a fixed smooth mixture of the 16-dimensional embedding of the image seen, plus noise."""
    rng = np.random.default_rng(0)
    n = n_concepts * images
    embeddings = rng.standard_normal((n, 16))
    response = np.cumsum(rng.standard_normal((16, 4, 70)), axis=2) / 8
    eeg = np.concatenate([np.einsum("nd,dct->nct", embeddings, response) for _ in range(subjects)])
    eeg += noise * rng.standard_normal(eeg.shape)
    return TrainingSet(
        eeg=torch.from_numpy(eeg).float(),
        target=torch.arange(n).repeat(subjects),
        embeddings=torch.from_numpy(embeddings).float(),
        subject=np.repeat([f"sub-{s:02}" for s in range(subjects)], n),
        concept=np.tile(np.repeat([f"concept-{c:02}" for c in range(n_concepts)], images), subjects),
    )


def test_held_out_concepts_are_whole_concepts_chosen_by_the_seed():
    concept = np.repeat([f"c{i}" for i in range(50)], 6)
    mask = held_out(concept, 0.1, seed=1)
    assert mask.sum() == 5 * 6
    assert not set(concept[mask]) & set(concept[~mask])
    assert np.array_equal(mask, held_out(concept, 0.1, seed=1))
    assert not np.array_equal(mask, held_out(concept, 0.1, seed=2))


def test_at_least_two_concepts_are_held_out_and_two_stay():
    assert held_out(np.array(list("aabbccdd")), 0.01, seed=0).sum() == 4
    with pytest.raises(InputError, match="lower it"):
        held_out(np.array(list("aabbcc")), 0.5, seed=0)


def test_a_gallery_is_one_response_to_each_concept():
    subject = np.array(["s1"] * 5 + ["s2"] * 4)
    concept = np.array(["a", "a", "b", "b", "b", "b", "a", "b", "a"])
    assert [gallery.tolist() for gallery in make_galleries(subject, concept)] == [[0, 2], [1, 3], [5, 6], [7, 8]]


def test_the_schedule_is_the_recipes(recipe):
    model = ContrastiveModel(n_chans=2, n_times=65, embedding_size=4, projection_size=4)
    optimizer, schedule = make_optimizer(model, recipe)
    rates = []
    for _ in range(recipe.epochs + 1):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    encoder, projectors = (np.array(group) for group in zip(*rates, strict=True))
    assert encoder[0] == projectors[0] == pytest.approx(0.0008)
    assert encoder[4] == projectors[2] == pytest.approx(0.008)
    assert encoder[52] == pytest.approx((0.008 + 0.0001) / 2)
    assert encoder[100] == projectors[100] == pytest.approx(0.0001)
    assert (np.diff(encoder[:5]) > 0).all() and (np.diff(encoder[4:]) < 0).all()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}


def test_it_learns_what_was_planted_and_the_seed_decides_everything(recipe):
    parameters = recipe.model_copy(update={"epochs": 20, "batch_size": 64, "learning_rate": 0.003})
    data = planted()
    first, again, other = (train(data, parameters, seed, CPU) for seed in (1, 1, 2))
    assert first.history["validation_top1"].iloc[-1] >= 0.6  # of 4 concepts, chance 0.25
    pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
    weights, same, different = (run.model.state_dict() for run in (first, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["log_scale"], different["log_scale"])


def test_the_epoch_with_the_lowest_validation_loss_is_kept(recipe):
    parameters = recipe.model_copy(update={"epochs": 8, "batch_size": 32, "learning_rate": 0.01})
    data = planted(noise=3.0)
    trained = train(data, parameters, 0, CPU)
    assert trained.epoch == trained.history.set_index("epoch")["validation_loss"].idxmin()
    shorter = train(data, parameters.model_copy(update={"epochs": 8}), 0, CPU)
    assert trained.epoch == shorter.epoch


def test_divergence_is_told(recipe):
    data = planted()
    data.eeg[5, 1, 3] = float("inf")
    with pytest.raises(InputError, match="diverged in epoch 1"):
        train(data, recipe.model_copy(update={"epochs": 2}), 0, CPU)
