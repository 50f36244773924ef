from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.errors import InputError
from pipeline.model import ContrastiveModel, ModelSizes
from pipeline.params import Train, read_params
from pipeline.training import Samples, Trained, held_out, make_galleries, make_optimizer, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> Train:
    return read_params(Path("params.yaml")).train


def planted(noise: float = 0.5) -> tuple[Samples, torch.Tensor]:
    """EEG (C = 4, T = 70): a fixed smooth mixture of the 16-dimensional embedding of the image seen, plus noise."""
    n_concepts, images, subjects = 40, 2, 2
    rng = np.random.default_rng(0)
    n = n_concepts * images
    embeddings = rng.standard_normal((n, 16))
    response = np.cumsum(rng.standard_normal((16, 4, 70)), axis=2) / 8
    eeg = np.concatenate([np.einsum("nd,dct->nct", embeddings, response) for _ in range(subjects)])
    eeg += noise * rng.standard_normal(eeg.shape)
    samples = Samples(
        eeg=torch.from_numpy(eeg).float(),
        target=torch.arange(n).repeat(subjects),
        subject=np.repeat([f"sub-{s:02}" for s in range(subjects)], n),
        concept=np.tile(np.repeat([f"concept-{c:02}" for c in range(n_concepts)], images), subjects),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings).float()


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
    model = ContrastiveModel(ModelSizes(2, 65, 100.0, 4), recipe)
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


def run(data: tuple[Samples, torch.Tensor], parameters: Train, seed: int = 0, **options: object) -> Trained:
    """Train with a fifth of the concepts held out."""
    samples, embeddings = data
    mask = held_out(samples.concept, 0.2, seed)
    rows = np.arange(len(mask))
    return train(samples, rows[~mask], samples.take(rows[mask]), embeddings, parameters, seed, CPU, **options)


def same_weights(one: Trained, other: Trained) -> bool:
    weights = other.model.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())


def test_it_learns_what_was_planted_and_the_seed_decides_everything(recipe):
    parameters = recipe.model_copy(update={"epochs": 20, "batch_size": 64, "learning_rate": 0.003})
    first, again, other = (run(planted(), parameters, seed) for seed in (1, 1, 2))
    assert first.history["selection_top1"].iloc[-1] >= 0.5  # of 8 concepts, chance 0.125
    assert not first.collapsed and first.history["spread"].iloc[-1] > 0.7
    pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
    assert same_weights(first, again) and not same_weights(first, other)


def test_the_epoch_with_the_lowest_loss_is_kept(recipe):
    parameters = recipe.model_copy(update={"epochs": 8, "batch_size": 32, "learning_rate": 0.01})
    data = planted(noise=3.0)
    trained = run(data, parameters)
    assert trained.epoch == trained.history.set_index("epoch")["selection_loss"].idxmin()
    samples, embeddings = data
    last = train(samples, np.arange(len(samples.eeg)), None, embeddings, parameters, 0, CPU)
    assert last.epoch == 8 and last.history["selection_loss"].isna().all()


def test_an_interrupted_run_ends_as_if_it_had_not_been(recipe, tmp_path):
    """Interrupted after the first epoch, and again after the third."""
    parameters = recipe.model_copy(update={"epochs": 5, "batch_size": 32})
    whole = run(planted(), parameters)
    for epochs in (1, 3):
        left = iter(range(epochs - 1))

        def interrupt(left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(planted(), parameters, resume=tmp_path / "state.pt", progress=interrupt)
        assert len(torch.load(tmp_path / "state.pt", weights_only=True)["history"]) == epochs
    resumed = run(planted(), parameters, resume=tmp_path / "state.pt")
    assert same_weights(whole, resumed) and whole.epoch == resumed.epoch
    pd.testing.assert_frame_equal(whole.history, resumed.history, check_exact=True)


def test_divergence_is_told_and_the_good_state_kept(recipe, tmp_path):
    parameters = recipe.model_copy(update={"epochs": 4, "batch_size": 64})
    samples, embeddings = planted()
    run((samples, embeddings), parameters.model_copy(update={"epochs": 1}), resume=tmp_path / "state.pt")
    samples.eeg[:] = float("inf")
    with pytest.raises(InputError, match="diverged in epoch 2 .* the state after epoch 1 is kept in .*state.pt"):
        run((samples, embeddings), parameters, resume=tmp_path / "state.pt")
    assert len(torch.load(tmp_path / "state.pt", weights_only=True)["history"]) == 1


def test_a_constant_embedding_is_a_collapse(recipe):
    samples, embeddings = planted()
    samples.eeg[:] = 0
    trained = run((samples, embeddings), recipe.model_copy(update={"epochs": 2, "batch_size": 32}))
    assert trained.collapsed
    assert trained.history["spread"].iloc[-1] == pytest.approx(0, abs=1e-3)


def test_the_eeg_is_standardised_by_what_is_trained_on(recipe):
    """Where the recipe says so, and by nothing of the concepts held out."""
    parameters = recipe.model_copy(update={"epochs": 1, "batch_size": 32, "standardise_eeg": True})
    samples, embeddings = planted()
    mask = held_out(samples.concept, 0.2, seed=0)
    expected = samples.eeg[~mask].mean(0)
    samples.eeg[mask] += 100
    model = run((samples, embeddings), parameters).model
    torch.testing.assert_close(model.eeg_mean, expected)
    unchanged = run((samples, embeddings), parameters.model_copy(update={"standardise_eeg": False})).model
    assert not unchanged.eeg_mean.any() and unchanged.eeg_sd.eq(1).all()
