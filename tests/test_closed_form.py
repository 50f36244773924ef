"""`train.eeg_encoder: ridge`: a model that scikit-learn finds too, for all that can be done to EEG and embeddings."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from pipeline.eeg_encoders.table import EEG_ENCODERS, has_closed_form
from pipeline.errors import InputError
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import rank_of_match
from pipeline.sections import Runs, Train
from pipeline.train import closed_form
from pipeline.train.closed_form import UNUSED, average_repetitions, fit, what_decides
from pipeline.train.draws import derive_seeds
from pipeline.train.model import load_model
from pipeline.train.projection import project
from pipeline.train.runs import train_all
from pipeline.train.samples import Samples
from pipeline.train.training import Partition, Setup, Trained
from tests.test_runs import SUBJECTS, changed, weights
from tests.tiny import quick_recipe

pytestmark = pytest.mark.usefixtures("cache")

HERE = Runs(where="local", workers=1)
N_CONCEPTS, PER_CONCEPT, N_TEST, D = 60, 3, 40, 12
SHAPE = 4, 20
# What changes a model in closed form; all else is in UNUSED
USED = {
    "block",
    "views",
    "views_in_gallery",
    "protocol",
    "eeg_encoder",
    "control",
    "standardise_eeg",
    "eeg_window",
    "smoothing",
    "remove_dc",
    "normalise_embeddings",
    "device",
}


def recipe(**changes: object) -> Train:
    return quick_recipe(eeg_encoder="ridge", **changes)


def simulate(noise: float = 1.0, n_subjects: int = 1) -> tuple[Samples, Tensor, Tensor]:
    """Samples of EEG that is linear in the embeddings plus noise, test EEG (N, C, T), and the embeddings (M, D).

    The test images are the last ones. Channels have sizes and a mean response of their own.
    """
    rng = np.random.default_rng(0)
    n = N_CONCEPTS * PER_CONCEPT
    embeddings = rng.standard_normal((n + N_TEST, D)) + 3 * rng.standard_normal(D)
    mixing = rng.standard_normal((D, *SHAPE))
    eeg = np.einsum("nd,dct->nct", embeddings, mixing) + noise * rng.standard_normal(
        (n_subjects, n + N_TEST, *SHAPE)
    )
    eeg = (eeg + 5 * rng.standard_normal(SHAPE)) * np.array([1, 10, 0.1, 3])[:, None]
    samples = Samples(
        eeg=torch.from_numpy(eeg[:, :n].reshape(-1, *SHAPE)).float(),
        image_row=torch.arange(n).repeat(n_subjects),
        subject=np.repeat([f"sub-{s}" for s in range(n_subjects)], n),
        things_concept=np.tile(
            np.repeat([f"c{i:02}" for i in range(N_CONCEPTS)], PER_CONCEPT), n_subjects
        ),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(eeg[0, n:]).float(), torch.from_numpy(embeddings).float()


def train(samples: Samples, embeddings: Tensor, targets: Tensor | None = None, **changes: object):
    setup = Setup(samples, embeddings, recipe(**changes), torch.device("cpu"), targets)
    return fit(setup, Partition(derive_seeds(0, "pooled"), np.arange(len(samples.eeg))))


def cosines(trained: Trained, eeg: Tensor, embeddings: Tensor) -> Tensor:
    eeg_side, image_side = project(trained.model, eeg, embeddings)
    return eeg_side @ image_side.T


def by_hand(
    samples: Samples,
    eeg: Tensor,
    embeddings: Tensor,
    penalty: float,
    prepare: Callable[[np.ndarray], np.ndarray] = lambda eeg: eeg,
    targets: Tensor | None = None,
) -> np.ndarray:
    """The cosines of scikit-learn's predictions with the centred test embeddings, in float64."""
    x, new = (prepare(part.double().numpy()) for part in (samples.eeg, eeg))
    new = new - x.mean(0)
    x = x - x.mean(0)
    sd = np.sqrt((x**2).mean((0, 2), keepdims=True))
    y = (embeddings if targets is None else targets)[samples.image_row].double().numpy()

    model = Ridge(alpha=penalty).fit((x / sd).reshape(len(x), -1), y)
    predicted = model.predict((new / sd).reshape(len(new), -1)) - y.mean(0)
    gallery = embeddings.double().numpy()
    images = gallery[-N_TEST:] - gallery[samples.image_row].mean(0)
    predicted, images = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (predicted, images))
    return predicted @ images.T


def test_it_is_the_only_one_in_closed_form():
    assert [name for name in EEG_ENCODERS if has_closed_form(name)] == ["ridge"]


def test_each_key_is_used_or_not():
    assert {*UNUSED} | USED == {*Train.model_fields} and not {*UNUSED} & USED
    changes = {"epochs": 7, "seeds": 3, "dropout": 0.1, "betas": [0.5, 0.9]}
    assert what_decides(recipe(**changes)) == what_decides(recipe())
    assert what_decides(quick_recipe(**changes)) == quick_recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "prepare"),
    [
        ({}, lambda eeg: eeg),
        ({"eeg_window": [0.05, 0.1]}, lambda eeg: eeg[..., 5:11]),
        ({"remove_dc": True}, lambda eeg: eeg - eeg.mean(-1, keepdims=True)),
    ],
    ids=["as it is", "window", "without its mean"],
)
def test_it_predicts_as_scikit_learn_does(changes, prepare):
    samples, eeg, embeddings = simulate()
    trained = train(samples, embeddings, **changes)
    [row] = trained.history.to_dict("records")
    expected = by_hand(samples, eeg, embeddings, row["penalty"], prepare)
    np.testing.assert_allclose(cosines(trained, eeg, embeddings[-N_TEST:]), expected, atol=1e-4)
    assert trained.epoch == 0 and not trained.collapsed and 0 < row["held_out_r2"] < 1


def test_without_standardisation_the_channels_keep_their_size():
    samples, eeg, embeddings = simulate()
    trained = train(samples, embeddings, standardise_eeg=False)
    x, y = samples.eeg.flatten(1).double(), embeddings[samples.image_row].double()
    model = Ridge(alpha=trained.history["penalty"][0]).fit(x, y)
    expected = torch.from_numpy(model.predict(eeg.flatten(1).double())) - y.mean(0)
    predicted = project(trained.model, eeg, embeddings)[0]
    torch.testing.assert_close(
        predicted, torch.nn.functional.normalize(expected).float(), atol=1e-4, rtol=0
    )


def test_smoothing_is_that_of_the_recipe():
    samples, eeg, embeddings = simulate()
    trained = train(samples, embeddings, smoothing=0.01)
    smooth = trained.model.smoothing
    same = train(replace(samples, eeg=smooth(samples.eeg)), embeddings)
    torch.testing.assert_close(
        cosines(trained, eeg, embeddings), cosines(same, smooth(eeg), embeddings), atol=1e-4, rtol=0
    )


def test_embeddings_can_be_normalised_first():
    samples, eeg, embeddings = simulate()
    trained = train(samples, embeddings, normalise_embeddings=True)
    centred = embeddings - embeddings.mean(1, keepdim=True)
    same = train(samples, torch.nn.functional.normalize(centred))
    torch.testing.assert_close(
        cosines(trained, eeg, embeddings),
        cosines(same, eeg, centred / centred.norm(dim=1)[:, None]),
    )


def test_of_several_views_it_learns_the_mean_and_is_compared_with_the_gallery():
    samples, eeg, embeddings = simulate()
    noise = torch.randn(len(embeddings), D, generator=torch.Generator().manual_seed(0))
    views = torch.stack([embeddings, embeddings + 2 * noise], 1)
    trained = train(samples, embeddings, views)
    expected = by_hand(
        samples, eeg, embeddings, trained.history["penalty"][0], targets=views.mean(1)
    )
    np.testing.assert_allclose(cosines(trained, eeg, embeddings[-N_TEST:]), expected, atol=1e-4)


@pytest.mark.parametrize("to_normalise", [False, True])
def test_repetitions_are_averaged_first(to_normalise, monkeypatch):
    monkeypatch.setattr(closed_form, "VALUES_AT_ONCE", 7 * 80)  # a few responses at once
    samples, eeg, embeddings = simulate()
    noise = torch.randn(samples.eeg.shape, generator=torch.Generator().manual_seed(0))
    n = len(samples.eeg)
    repeated = replace(samples.take(np.tile(np.arange(n), 2)), to_normalise=to_normalise)
    repeated.eeg[:n] += noise
    repeated.eeg[n:] -= noise

    averaged, rows = average_repetitions(repeated, np.arange(2 * n))
    torch.testing.assert_close(averaged.eeg, samples.eeg, atol=1e-4, rtol=1e-4)
    assert rows.tolist() == list(range(n)) and averaged.to_normalise == to_normalise
    assert (averaged.subject == samples.subject).all()
    assert average_repetitions(samples, rows)[0] is samples

    if to_normalise:
        samples, eeg = replace(samples, eeg=normalise(samples.eeg)), normalise(eeg)
    torch.testing.assert_close(
        cosines(train(repeated, embeddings), eeg, embeddings),
        cosines(train(samples, embeddings), eeg, embeddings),
        atol=1e-3,
        rtol=0,
    )


def test_half_precision_is_near():
    samples, eeg, embeddings = simulate()
    half = replace(samples, eeg=samples.eeg.half())
    difference = cosines(train(half, embeddings), eeg, embeddings) - cosines(
        train(samples, embeddings), eeg, embeddings
    )
    assert difference.abs().max() < 0.01


def test_a_planted_truth_is_found_and_shuffled_pairs_are_at_chance():
    samples, eeg, embeddings = simulate(noise=0.5, n_subjects=2)
    test = embeddings[-N_TEST:]
    trained = train(samples, embeddings)
    assert (rank_of_match(cosines(trained, eeg, test)) == 1).double().mean() > 0.9
    assert trained.history["selection_top1"][0] > 0.9

    # In each shuffle 1 of 40 is expected by chance; the mean of 20 has a standard error of 0.0055
    shares = []
    for seed in range(20):
        order = torch.randperm(len(samples.eeg), generator=torch.Generator().manual_seed(seed))
        shuffled = replace(samples, image_row=samples.image_row[order])
        ranks = rank_of_match(cosines(train(shuffled, embeddings), eeg, test))
        shares.append((ranks == 1).double().mean().item())
    assert abs(np.mean(shares) - 1 / N_TEST) < 3 * 0.0055


def test_the_temperature_is_the_best_of_held_out_concepts():
    samples, _, embeddings = simulate(noise=8)
    trained = train(samples, embeddings)
    loss = trained.history["selection_loss"][0]
    assert 0 < loss < np.log(N_CONCEPTS / 3)  # that of equal similarities
    assert 1 < trained.model.logit_scale < 1000


@pytest.mark.parametrize("protocol", ["pooled", "within-subject", "leave-one-subject-out"])
def test_neither_the_test_nor_seeds_nor_epochs_decide_anything(data, tmp_path, protocol):
    other = changed(data, tmp_path / "eeg", SUBJECTS, "test")
    inputs = data / "eeg", data / "embeddings.h5"
    notes = train_all(*inputs, tmp_path / "a", recipe(protocol=protocol), 1, HERE)
    train_all(other, inputs[1], tmp_path / "b", recipe(protocol=protocol), 1, HERE)
    several = recipe(protocol=protocol, seeds=[1, 5], epochs=2, select_on="last")
    train_all(*inputs, tmp_path / "c", several, 9, HERE)

    assert len(notes) == (1 if protocol == "pooled" else 2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "c")
    assert all(run["penalty"] > 0 and not run["collapsed"] for run in notes)
    history = pd.read_csv(tmp_path / "a" / "history.csv")
    assert history["epoch"].tolist() == [0] and history["train_loss"].isna().all()


def test_nothing_of_the_left_out_subject_is_used(data, tmp_path):
    left_out = recipe(protocol="leave-one-subject-out")
    other = changed(data, tmp_path / "eeg", ["sub-02"], "train")
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", left_out, 1, HERE)
    train_all(other, data / "embeddings.h5", tmp_path / "b", left_out, 1, HERE)
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert before["without-sub-02-seed-1"] == after["without-sub-02-seed-1"]
    assert before["without-sub-01-seed-1"] != after["without-sub-01-seed-1"]


def test_a_finished_fit_is_read_whatever_the_epochs_are(data, tmp_path, monkeypatch):
    inputs = data / "eeg", data / "embeddings.h5"
    first = train_all(*inputs, tmp_path / "a", recipe(), 1, HERE)
    monkeypatch.setattr(closed_form, "fit", lambda *_: pytest.fail("it was fitted again"))
    again = train_all(*inputs, tmp_path / "b", recipe(epochs=5, dropout=0.1), 1, HERE)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert first == again

    model, notes = load_model(tmp_path / "b" / "pooled-seed-1")
    assert notes["train"]["epochs"] == 5 and notes["penalty"] == first[0]["penalty"]
    assert model.block_weights() == {}


def test_what_it_cannot_do_is_told(data, tmp_path):
    inputs = data / "eeg", data / "embeddings.h5", tmp_path / "a"
    with pytest.raises(InputError, match="train.select_on is test, and the EEG encoder ridge"):
        train_all(*inputs, recipe(select_on="test"), 1, HERE)
    samples, _, embeddings = simulate()
    with pytest.raises(InputError, match="train.block is mix, and the EEG encoder ridge learns"):
        train(samples, embeddings, block="mix")
    few = samples.take(np.arange(5 * PER_CONCEPT))
    with pytest.raises(InputError, match="there are 5 concepts: it needs 6 or more"):
        train(few, embeddings)
