import dataclasses
import functools
import math
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from pipeline.errors import InputError
from pipeline.evaluate.chance import p_above_chance
from pipeline.evaluate.similarities import SubjectResult
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import symmetric_cross_entropy
from pipeline.sections import Train
from pipeline.train.draws import (
    derive_seeds,
    draw_repetitions,
    group_repetitions,
    shuffle_images,
)
from pipeline.train.many import train
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.optim import make_optimizer
from pipeline.train.projection import project
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out, lowest_loss, make_galleries
from pipeline.train.stack import mean_responses
from pipeline.train.training import Partition, Setup, Trained
from tests.tiny import shipped_params

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> Train:
    return shipped_params().train


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
        image_row=torch.arange(n).repeat(subjects),
        subject=np.repeat([f"sub-{s:02}" for s in range(subjects)], n),
        things_concept=np.tile(
            np.repeat([f"concept-{c:02}" for c in range(n_concepts)], images), subjects
        ),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings).float()


BLOCKS = ("3", "6", "9", "last")


def planted_in(block: str, noise: float) -> tuple[Samples, torch.Tensor]:
    """As `planted`, the EEG driven by one of four blocks that share half of their variance with the block before.

    The blocks (N, K, D) have other means and scales, each four times those of the one before.
    """
    n_concepts, images, subjects, size = 60, 2, 2, 16
    rng = np.random.default_rng(0)
    n = n_concepts * images
    features = [rng.standard_normal((n, size))]
    for _ in BLOCKS[1:]:
        turned = features[-1] @ np.linalg.qr(rng.standard_normal((size, size)))[0]
        features.append((turned + rng.standard_normal((n, size))) / 2**0.5)
    response = np.cumsum(rng.standard_normal((size, 4, 70)), axis=2) / 8
    eeg = np.tile(
        np.einsum("nd,dct->nct", features[BLOCKS.index(block)], response), (subjects, 1, 1)
    )
    eeg += noise * rng.standard_normal(eeg.shape)
    samples = Samples(
        eeg=torch.from_numpy(eeg).float(),
        image_row=torch.arange(n).repeat(subjects),
        subject=np.repeat([f"sub-{s:02}" for s in range(subjects)], n),
        things_concept=np.tile(
            np.repeat([f"concept-{c:02}" for c in range(n_concepts)], images), subjects
        ),
        sfreq=100.0,
    )
    blocks = [
        4.0**k * (values + 5 * rng.standard_normal(size)) for k, values in enumerate(features)
    ]
    return samples, torch.from_numpy(np.stack(blocks, axis=1)).float()


def test_held_out_concepts_are_whole_concepts_chosen_by_the_seed():
    concept = np.repeat([f"c{i}" for i in range(50)], 6)
    mask = held_out(concept, 0.1, seed=1)
    assert mask.sum() == 5 * 6
    assert not set(concept[mask]) & set(concept[~mask])
    assert np.array_equal(mask, held_out(concept, 0.1, seed=1))
    assert not np.array_equal(mask, held_out(concept, 0.1, seed=2))


def test_at_least_two_concepts_are_held_out_and_two_stay():
    assert held_out(np.array(list("aabbccdd")), 0.01, seed=0).sum() == 4
    with pytest.raises(InputError, match="holds out 3 of 4 concepts: lower it$"):
        held_out(np.array(list("aabbccdd")), 0.7, seed=0)
    with pytest.raises(InputError, match="holds out 2 of 3 concepts: set train.select_on to last$"):
        held_out(np.array(list("aabbcc")), 0.1, seed=0)


def test_a_gallery_is_one_response_to_each_concept():
    subject = np.array(["s1"] * 5 + ["s2"] * 4)
    concept = np.array(["a", "a", "b", "b", "b", "b", "a", "b", "a"])
    assert [gallery.tolist() for gallery in make_galleries(subject, concept)] == [
        [0, 2],
        [1, 3],
        [5, 6],
        [7, 8],
    ]


def test_galleries_of_subjects_who_saw_other_concepts_have_one_size():
    """As in a single session: of each subject's own concepts as many as the subject with the fewest has."""
    subject = np.array(["s1"] * 3 + ["s2"] * 4)
    concept = np.array(["b", "d", "a", "b", "c", "b", "c"])
    assert [gallery.tolist() for gallery in make_galleries(subject, concept)] == [
        [0, 2],
        [3, 4],
        [5, 6],
    ]


def test_the_schedule_is_the_recipes(recipe):
    recipe = recipe.model_copy(update={"learning_rate": 0.008})
    model = ContrastiveModel(ModelSizes(2, 65, 100.0, 4), recipe)
    optimizer, schedule = make_optimizer(named_parameters(model), recipe, CPU)
    rates = []
    for epoch in range(recipe.epochs + 1):
        schedule.set_epoch(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    encoder, projectors = (np.array(group) for group in zip(*rates, strict=True))
    assert encoder[0] == projectors[0] == pytest.approx(0.0008)
    assert encoder[4] == projectors[2] == pytest.approx(0.008)
    assert encoder[52] == pytest.approx((0.008 + 0.0001) / 2)
    assert encoder[100] == projectors[100] == pytest.approx(0.0001)
    assert (np.diff(encoder[:5]) > 0).all() and (np.diff(encoder[4:]) < 0).all()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}


def run(
    data: tuple[Samples, torch.Tensor],
    parameters: Train,
    seed: int = 0,
    targets: torch.Tensor | None = None,
    blocks: tuple[str, ...] = (),
    **options: object,
) -> Trained:
    """Train with a fifth of the concepts held out."""
    samples, embeddings = data
    mask = held_out(samples.things_concept, 0.2, seed)
    rows = np.arange(len(mask))
    seeds = derive_seeds(seed, "pooled")
    setup = Setup(samples, embeddings, parameters, CPU, targets, blocks)
    partition = Partition(seeds, rows[~mask], samples.take(rows[mask]))
    return train(setup, partition, **options)


def named_parameters(model: ContrastiveModel) -> dict[str, list[torch.Tensor]]:
    return {name: [parameter] for name, parameter in model.named_parameters()}


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


def test_a_control_finds_nothing_where_the_same_training_finds_what_was_planted(recipe):
    """Trained on 30 concepts, tested on the images of 10 others: with shuffled images it is at chance."""
    parameters = recipe.model_copy(update={"epochs": 20, "batch_size": 64, "learning_rate": 0.003})
    samples, embeddings = planted()
    mask = held_out(samples.things_concept, 0.25, 0)
    rows = np.flatnonzero(mask & (samples.subject == "sub-00"))
    images = embeddings[samples.image_row[rows]]

    p = {}
    for control, pairs in (("none", samples), ("shuffled", shuffle_images(samples, 1))):
        setup = Setup(pairs, embeddings, parameters, CPU)
        trained = train(setup, Partition(derive_seeds(0, "pooled"), np.flatnonzero(~mask)))
        sides = project(trained.model, samples.eeg[rows], images)
        similarity = (sides[0] @ sides[1].T).numpy()
        answers = SubjectResult("pooled", 0, "sub-00", 20, False, 1.0, *sides, similarity)
        p[control] = p_above_chance([answers], 999, 0)
    assert p["none"] == 0.001 and p["shuffled"] > 0.05


def test_the_epoch_with_the_lowest_loss_is_kept(recipe):
    parameters = recipe.model_copy(update={"epochs": 8, "batch_size": 32, "learning_rate": 0.01})
    data = planted(noise=3.0)
    trained = run(data, parameters)
    assert trained.epoch == trained.history.set_index("epoch")["selection_loss"].idxmin()
    samples, embeddings = data
    seeds = derive_seeds(0, "pooled")
    last = train(
        Setup(samples, embeddings, parameters, CPU), Partition(seeds, np.arange(len(samples.eeg)))
    )
    assert last.epoch == 8 and last.history["selection_loss"].isna().all()


@pytest.mark.long
def test_a_mix_finds_the_block_that_drives_the_eeg(recipe):
    """Its weight grows from a quarter to nearly all, and it decodes as the block alone does."""
    parameters = recipe.model_copy(update={"epochs": 40, "batch_size": 24, "learning_rate": 0.003})
    samples, embeddings = planted_in("6", noise=4.0)
    mixed = run((samples, embeddings), parameters, blocks=BLOCKS)
    alone = run((samples, embeddings[:, 1]), parameters)
    weights = mixed.history[[f"weight_of_block_{name}" for name in BLOCKS]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights.iloc[0].between(0.15, 0.5).all()
    assert mixed.model.block_weights()["6"] == weights["weight_of_block_6"][mixed.epoch - 1] > 0.8
    # of 48 responses: two standard errors of the difference of two proportions of 0.9 are 0.12
    top1 = [
        trained.history.set_index("epoch")["selection_top1"][trained.epoch]
        for trained in (mixed, alone)
    ]
    assert top1[1] > 0.5 and abs(top1[0] - top1[1]) < 0.12
    assert alone.model.block_weights() == {} and "weight_of_block_6" not in alone.history


def test_blocks_are_standardised_by_the_images_trained_on(recipe):
    """Each image once, none that is held out or not seen in training."""
    parameters = recipe.model_copy(update={"epochs": 1, "batch_size": 64})
    samples, embeddings = planted_in("3", noise=0.5)
    mask = held_out(samples.things_concept, 0.2, seed=0)
    seen = torch.from_numpy(np.unique(samples.image_row[~mask]))
    embeddings = torch.cat([embeddings, torch.full((5, 4, 16), 1e6)])  # test images, say
    expected = embeddings[seen].clone()
    embeddings[np.unique(samples.image_row[mask])] = 1e6
    mix = run((samples, embeddings), parameters, blocks=BLOCKS).model.block_mix
    torch.testing.assert_close(mix.mean, expected.mean(0))
    torch.testing.assert_close(
        mix.rms[:, 0], (expected - expected.mean(0)).square().mean((0, 2)).sqrt()
    )


def test_the_weights_of_blocks_have_a_rate_of_their_own_and_no_decay(recipe):
    parameters = recipe.model_copy(update={"weight_decay": 0.1, "optimizer": "adamw"})
    model = ContrastiveModel(ModelSizes(2, 65, 100.0, 4, BLOCKS), parameters)
    optimizer, _ = make_optimizer(named_parameters(model), parameters, CPU)
    _, rest, mix = optimizer.param_groups
    assert mix["params"] == [model.block_mix.logits] and (
        rest["weight_decay"],
        mix["weight_decay"],
    ) == (0.1, 0.0)
    assert mix["lr"] == pytest.approx(10 * rest["lr"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}


def test_what_a_seed_decides_is_decided_apart(recipe):
    """Another run or fold shares none of the seven seeds; and each of those that count alone gives other weights."""
    drawn = [
        derive_seeds(seed, fold)
        for seed in (1, 2)
        for fold in ("pooled", "sub-01", "without-sub-01")
    ]
    numbers = [number for seeds in drawn for number in dataclasses.astuple(seeds)]
    assert len(set(numbers)) == len(numbers) and derive_seeds(1, "pooled") == drawn[0]
    parameters, (samples, embeddings) = (
        recipe.model_copy(update={"epochs": 1, "batch_size": 64}),
        planted(),
    )
    rows, seeds = np.arange(len(samples.eeg)), drawn[0]
    first = train(Setup(samples, embeddings, parameters, CPU), Partition(seeds, rows))
    for name in ("start", "order", "dropout"):
        changed = dataclasses.replace(seeds, **{name: 5})
        assert not same_weights(
            first, train(Setup(samples, embeddings, parameters, CPU), Partition(changed, rows))
        )
    unused = dataclasses.replace(
        seeds, concepts=5, repetitions=5, views=5, control=5
    )  # by `train` of this recipe
    assert same_weights(
        first, train(Setup(samples, embeddings, parameters, CPU), Partition(unused, rows))
    )
    samples, parameters = (
        repeated(samples, 3),
        parameters.model_copy(update={"average_random_repetitions": 2}),
    )
    drawn = [
        train(
            Setup(samples, embeddings, parameters, CPU), Partition(of, np.arange(len(samples.eeg)))
        )
        for of in (seeds, unused)
    ]
    assert not same_weights(*drawn)


def test_the_weights_kept_are_the_moving_average(recipe):
    """Two epochs of four steps, averaged by hand from the weights after each step."""
    samples, embeddings = planted()
    parameters = recipe.model_copy(update={"epochs": 2, "batch_size": 40, "average_epochs": 0.5})
    rows, seeds, steps = np.arange(len(samples.eeg)), derive_seeds(0, "pooled"), []
    plain_step = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, *arguments: object) -> None:
        plain_step(optimizer, *arguments)
        steps.append(
            [p.detach()[0].clone() for group in optimizer.param_groups for p in group["params"]]
        )

    with mock.patch.object(torch.optim.Adam, "step", step):
        trained = train(Setup(samples, embeddings, parameters, CPU), Partition(seeds, rows))
    assert len(steps) == 8
    expected, decay = steps[0], math.exp(-1 / (0.5 * 4))
    for weights in steps[1:]:
        expected = [
            decay * mean + (1 - decay) * weight
            for mean, weight in zip(expected, weights, strict=True)
        ]
    optimizer, _ = make_optimizer(named_parameters(trained.model), parameters, CPU)
    kept = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    torch.testing.assert_close(kept, expected)
    without = train(
        Setup(samples, embeddings, parameters.model_copy(update={"average_epochs": "none"}), CPU),
        Partition(seeds, rows),
    )
    optimizer, _ = make_optimizer(named_parameters(without.model), parameters, CPU)
    assert all(
        map(
            torch.equal, (p for group in optimizer.param_groups for p in group["params"]), steps[-1]
        )
    )


def test_the_lowest_loss_is_that_of_the_best_temperature():
    """As a fine grid finds it; another temperature of the same model changes nothing, and the ranks do not matter."""
    similarity = torch.randn(
        3, 10, 10, generator=torch.Generator().manual_seed(0)
    ) * 0.2 + 0.3 * torch.eye(10)
    grid = [
        symmetric_cross_entropy(scale * similarity[0]).item()
        for scale in np.geomspace(1, 1000, 4000)
    ]
    assert lowest_loss(similarity[:1]).item() == pytest.approx(min(grid), abs=1e-5)
    means = [
        np.mean([symmetric_cross_entropy(scale * one).item() for one in similarity])
        for scale in np.linspace(1, 30, 300)
    ]
    assert lowest_loss(similarity).item() == pytest.approx(min(means), abs=1e-4)
    assert lowest_loss(torch.eye(4)[None]) < 1e-6
    assert lowest_loss(torch.ones(1, 4, 4)).item() == pytest.approx(math.log(4))


def test_the_lowest_losses_of_many_models_are_those_of_each():
    """As scipy's bounded minimum of each finds them."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(5, 3, 20, 20, generator=generator) * 0.2
    similarity += torch.linspace(0, 0.8, 5)[:, None, None, None] * torch.eye(20)

    def loss(log_scale: float, model: torch.Tensor) -> float:
        return symmetric_cross_entropy(math.exp(log_scale) * model.double()).mean().item()

    expected = [
        minimize_scalar(
            loss,
            bounds=(0, math.log(1000)),
            args=(model,),
            method="bounded",
            options={"xatol": 1e-9},
        ).fun
        for model in similarity
    ]
    np.testing.assert_allclose(lowest_loss(similarity), expected, atol=1e-7)


def test_the_selection_loss_is_taken_at_the_temperature_asked_for(recipe):
    """With a fixed temperature far too high, the model's own loss is near chance where the fitted one is not."""
    changes = {"epochs": 8, "batch_size": 64, "temperature": 5.0}
    fitted, own = (
        run(
            planted(), recipe.model_copy(update=changes | {"selection_temperature": at})
        ).history.iloc[-1]
        for at in ("fitted", "model")
    )
    assert own["selection_loss"] > 0.9 * math.log(8) and fitted["selection_loss"] < 0.7 * math.log(
        8
    )
    assert (
        own["train_loss"] == fitted["train_loss"]
        and own["selection_top1"] == fitted["selection_top1"]
    )


def viewed(detail_in_eeg: float) -> tuple[Samples, torch.Tensor]:
    """Images of a coarse part and of finer detail, and EEG of the first and so much of the second.

    Two views (N, 2, D) of each: the original has both parts in all its dimensions, the other the coarse part only.
    """
    n_concepts, images, coarse, fine = 200, 2, 16, 48
    rng = np.random.default_rng(0)
    n, size = n_concepts * images, coarse + fine
    parts = rng.standard_normal((n, size)) * np.repeat([1, 2], [coarse, fine])
    response = np.cumsum(rng.standard_normal((size, 4, 70)), axis=2) / 8
    response[coarse:] *= detail_in_eeg
    eeg = np.einsum("nd,dct->nct", parts, response) + 3 * rng.standard_normal((n, 4, 70))
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    views = np.stack([parts @ turn, parts[:, :coarse] @ turn[:coarse]], axis=1)
    samples = Samples(
        eeg=torch.from_numpy(eeg).float(),
        image_row=torch.arange(n),
        subject=np.repeat("sub-01", n),
        things_concept=np.repeat([f"concept-{c:03}" for c in range(n_concepts)], images),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(views).float()


@pytest.mark.long
@pytest.mark.parametrize("detail_in_eeg", [0.0, 0.5])
def test_views_without_detail_help_where_the_eeg_has_none(recipe, detail_in_eeg):
    """Top-1 in the last epochs among the 40 concepts held out, of their originals: standard error 0.05 or less."""
    samples, views = viewed(detail_in_eeg)
    parameters = recipe.model_copy(update={"epochs": 12, "batch_size": 64, "learning_rate": 0.004})
    ways = {"original": None, "mean": views.mean(1, keepdim=True), "draw": views}
    top1 = {
        name: run((samples, views[:, 0]), parameters, targets=targets)
        .history["selection_top1"]
        .iloc[-4:]
        .mean()
        for name, targets in ways.items()
    }
    least = top1["original"] + 0.1 if detail_in_eeg == 0 else 0.75
    assert top1["original"] > 0.3 and top1["mean"] > least and top1["draw"] > least, top1


def test_each_sample_is_learned_from_one_view_an_epoch(recipe):
    """All alike often, by a seed of their own; and one view, or the same one twice, is as if there were no views."""
    parameters = recipe.model_copy(update={"epochs": 4, "batch_size": 64})
    samples, embeddings = planted()
    rows, seeds, seen = np.arange(len(samples.eeg)), derive_seeds(0, "pooled"), []
    views = torch.stack([embeddings + 100 * v for v in range(3)], dim=1)
    embed_image = ContrastiveModel.embed_image

    def embed(model: ContrastiveModel, images: torch.Tensor) -> torch.Tensor:
        views = (images.mean(-1) / 100).round().int().flatten()
        seen.extend(views.tolist() if model.training else [])
        return embed_image(model, images)

    with mock.patch.object(ContrastiveModel, "embed_image", embed):
        drawn = train(
            Setup(samples, embeddings, parameters, CPU, targets=views), Partition(seeds, rows)
        )
    assert len(seen) == 4 * len(rows)
    assert np.abs(np.bincount(seen) - len(seen) / 3).max() < 5 * (len(seen) * 2 / 9) ** 0.5
    other = dataclasses.replace(seeds, views=5)
    assert not same_weights(
        drawn,
        train(Setup(samples, embeddings, parameters, CPU, targets=views), Partition(other, rows)),
    )
    plain = train(Setup(samples, embeddings, parameters, CPU), Partition(seeds, rows))
    for targets in (embeddings[:, None], embeddings[:, None].repeat(1, 3, 1)):
        assert same_weights(
            plain,
            train(
                Setup(samples, embeddings, parameters, CPU, targets=targets), Partition(seeds, rows)
            ),
        )


AT_RANDOM = {"average_random_repetitions": "any", "channel_dropout": 0.2, "time_shift": 0.03}


def repeated(samples: Samples, n: int, dtype: torch.dtype = torch.float32) -> Samples:
    """Each sample `n` times with noise of its own, one after the other as in the files."""
    rows = np.arange(len(samples.eeg)).repeat(n)
    taken = samples.take(rows)
    noise = torch.randn(taken.eeg.shape, generator=torch.Generator().manual_seed(7))
    return dataclasses.replace(taken, eeg=(taken.eeg + noise).to(dtype))


def test_the_control_moves_images_within_a_subject_and_none_keeps_its_own():
    samples = repeated(planted()[0], 3)
    subject = np.where(np.arange(len(samples.eeg)) % 3 < 2, samples.subject, "")  # some rows unread
    samples = dataclasses.replace(samples, subject=subject)
    shuffled = shuffle_images(samples, 1)
    before, after = (of.image_row.numpy() for of in (samples, shuffled))
    is_read = subject != ""
    assert shuffled.eeg is samples.eeg
    assert (before != after)[is_read].all() and (before == after)[~is_read].all()
    for name in set(subject) - {""}:
        rows = np.flatnonzero(subject == name)
        moves = set(zip(before[rows].tolist(), after[rows].tolist(), strict=True))
        assert len(moves) == len(set(before[rows]))  # the repetitions of an image stay together
        assert {new for _, new in moves} == set(before[rows])
    concept_of = dict(zip(before, samples.things_concept, strict=True))
    assert all(shuffled.things_concept[is_read] == [concept_of[row] for row in after[is_read]])
    assert (shuffle_images(samples, 1).image_row == shuffled.image_row).all()
    assert (shuffle_images(samples, 2).image_row != shuffled.image_row).any()


def test_the_seeds_of_a_run_are_those_of_before_there_were_controls():
    words = np.random.SeedSequence([42, *b"pooled"]).generate_state(6).tolist()
    assert list(dataclasses.astuple(derive_seeds(42, "pooled")))[:6] == words


def test_repetitions_are_grouped_by_subject_and_image():
    samples = repeated(planted()[0], 3)
    rows = np.random.default_rng(0).permutation(np.arange(60, 480))
    grouped = group_repetitions(samples, rows, 2)
    assert sorted(map(tuple, np.sort(grouped))) == [
        tuple(range(row, row + 3)) for row in range(60, 480, 3)
    ]
    for n, left, told in (
        (4, rows, "is 4, which needs 4 or more .* are 3: lower it to 3, or set it to none$"),
        ("any", rows[1:], "needs 2 .* are 2 or 3: set it to none$"),
    ):
        with pytest.raises(InputError, match=told):
            group_repetitions(samples, left, n)
    assert group_repetitions(samples, rows, 3).shape == (140, 3)
    with pytest.raises(
        InputError,
        match="there are 1: set it to none, or, .* preprocess.average_repetitions to false",
    ):
        group_repetitions(planted()[0], np.arange(160), 1)


def test_repetitions_are_drawn_without_replacement_and_alike_often():
    rows, generator = torch.arange(4000 * 4).view(4000, 4), torch.Generator().manual_seed(0)
    drawn = draw_repetitions(rows, 3, generator) - rows[:, :1]
    assert drawn.shape == (4000, 3) and all(len(set(one)) == 3 for one in drawn.tolist())
    assert torch.bincount(drawn.flatten()).sub(3000).abs().max() < 150  # five standard deviations
    some = draw_repetitions(rows, "any", generator)
    count = (some >= 0).sum(1)
    assert torch.bincount(count)[1:].sub(1000).abs().max() < 140
    taken = (some[:, 0] - rows[:, 0]).tolist()
    assert set(taken) == {0, 1, 2, 3} and not (some[:, 0] < 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_drawn_repetitions_are_averaged_in_float32(dtype):
    eeg = (torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    rows = torch.tensor([[3, 4, -1], [7, 5, 6], [19, -1, -1]])
    mean = mean_responses(eeg, rows)
    expected = [eeg[kept].double().mean(0) for kept in ([3, 4], [5, 6, 7], [19])]
    assert mean.dtype == torch.float32 and eeg.dtype == dtype
    torch.testing.assert_close(mean, torch.stack(expected).float())


@pytest.mark.parametrize("to_normalise", [False, True])
def test_all_repetitions_averaged_train_as_averaged_eeg(recipe, to_normalise):
    """But for the last bits; and a part of them does not. Normalised, if at all, after that."""
    samples, embeddings = planted()
    samples, parameters = (
        repeated(samples, 3),
        recipe.model_copy(update={"epochs": 2, "batch_size": 32}),
    )
    mean = samples.eeg.view(160, 3, 4, 70).mean(1)
    averaged = dataclasses.replace(
        samples.take(np.arange(0, 480, 3)), eeg=normalise(mean) if to_normalise else mean
    )
    samples = dataclasses.replace(samples, to_normalise=to_normalise)
    parameters = parameters.model_copy(
        update={"standardise_eeg": False}
    )  # whose spread is that of all repetitions
    seeds = derive_seeds(0, "pooled")
    expected = train(Setup(averaged, embeddings, parameters, CPU), Partition(seeds, np.arange(160)))
    differences = []
    for n in (3, 2):
        drawing = parameters.model_copy(update={"average_random_repetitions": n})
        history = train(
            Setup(samples, embeddings, drawing, CPU), Partition(seeds, np.arange(480))
        ).history
        differences.append((history["train_loss"] - expected.history["train_loss"]).abs().max())
    assert differences[0] < 1e-4 and differences[1] > 20 * differences[0]


def test_single_trials_that_are_still_to_be_normalised_train_as_normalised_ones(recipe):
    """But for the last bits: the mean response, each batch, and the held-out trials that select."""
    samples, embeddings = planted()
    samples = dataclasses.replace(samples, eeg=samples.eeg * 30 + 5)
    parameters = recipe.model_copy(update={"epochs": 2, "batch_size": 32})
    normalised = dataclasses.replace(samples, eeg=normalise(samples.eeg.double()).float())
    expected, raw, wrong = (
        run((trials, embeddings), parameters)
        for trials in (normalised, dataclasses.replace(samples, to_normalise=True), samples)
    )
    for column in ("train_loss", "spread", "selection_loss"):
        differences = [
            (trained.history[column] - expected.history[column]).abs().max()
            for trained in (raw, wrong)
        ]
        assert differences[0] < 1e-4 and differences[1] > 10 * differences[0]
    torch.testing.assert_close(raw.model.eeg_mean, expected.model.eeg_mean, rtol=1e-4, atol=1e-6)


def test_what_is_random_in_training_leaves_the_selection_alone(recipe):
    """Its loss is that of the plain EEG with the weights that are kept; and the drawn EEG still is learned."""
    samples, embeddings = planted()
    changes = {
        "epochs": 12,
        "batch_size": 32,
        "learning_rate": 0.004,
        "average_epochs": "none",
    } | AT_RANDOM
    parameters, samples = recipe.model_copy(update=changes), repeated(samples, 3, torch.float16)
    trained = run((samples, embeddings), parameters)
    selection = samples.take(np.flatnonzero(held_out(samples.things_concept, 0.2, 0)))
    eeg, images = project(trained.model, selection.eeg, embeddings[selection.image_row])
    galleries = make_galleries(selection.subject, selection.things_concept)
    similarity = torch.stack([eeg[rows] @ images[rows].T for rows in galleries])
    kept = trained.history.set_index("epoch").loc[trained.epoch]
    assert kept["selection_loss"] == pytest.approx(lowest_loss(similarity).item(), rel=1e-6)
    assert kept["selection_top1"] > 0.4  # of 8


@pytest.mark.parametrize("kind", ["one block", "mix", "at random", "views", "views of a mix"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(recipe, tmp_path, monkeypatch, kind):
    """Interrupted after the first epoch, and again after the third."""
    monkeypatch.setattr("pipeline.train.loop.SAVING_SHARE", math.inf)  # after each epoch
    parameters = recipe.model_copy(
        update={"epochs": 5, "batch_size": 32} | (AT_RANDOM if kind == "at random" else {})
    )
    data, blocks, targets = planted(), (), None
    if "mix" in kind:
        data, blocks = planted_in("9", noise=0.5), BLOCKS
    elif kind == "at random":
        data = repeated(data[0], 3), data[1]
    if "views" in kind:
        targets = torch.stack([data[1], 2 * data[1].flip(-1)], dim=1)
    run_it = functools.partial(run, data, parameters, blocks=blocks, targets=targets)
    whole = run_it()
    for epochs in (1, 3):
        left = iter(range(epochs - 1))

        def interrupt(left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_it(resume=tmp_path / "state.pt", progress=interrupt)
        assert (
            len(torch.load(tmp_path / "state.pt", weights_only=True)["members"][0]["history"])
            == epochs
        )
    resumed = run_it(resume=tmp_path / "state.pt")
    assert same_weights(whole, resumed) and whole.epoch == resumed.epoch
    pd.testing.assert_frame_equal(whole.history, resumed.history, check_exact=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_told_and_the_training_starts_again(recipe, tmp_path, capsys, damage):
    parameters, state = (
        recipe.model_copy(update={"epochs": 2, "batch_size": 64}),
        tmp_path / "state.pt",
    )
    whole = run(planted(), parameters, resume=state)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage]
    state.write_bytes(damaged)

    again = run(planted(), parameters, resume=state)

    assert f"{state}: the state of the interrupted training is damaged" in capsys.readouterr().out
    assert same_weights(whole, again)
    pd.testing.assert_frame_equal(whole.history, again.history, check_exact=True)


def test_divergence_is_told_and_the_good_state_kept(recipe, tmp_path):
    parameters = recipe.model_copy(update={"epochs": 4, "batch_size": 64})
    samples, embeddings = planted()
    run(
        (samples, embeddings),
        parameters.model_copy(update={"epochs": 1}),
        resume=tmp_path / "state.pt",
    )
    samples.eeg[:] = float("inf")
    with pytest.raises(
        InputError, match="training diverged in epoch 2 .*: lower train.learning_rate$"
    ):
        run((samples, embeddings), parameters, resume=tmp_path / "state.pt")
    assert len(torch.load(tmp_path / "state.pt", weights_only=True)["members"][0]["history"]) == 1


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
    mask = held_out(samples.things_concept, 0.2, seed=0)
    expected = samples.eeg[~mask].mean(0)
    samples.eeg[mask] += 100
    model = run((samples, embeddings), parameters).model
    torch.testing.assert_close(model.eeg_mean, expected)
    unchanged = run(
        (samples, embeddings), parameters.model_copy(update={"standardise_eeg": False})
    ).model
    assert not unchanged.eeg_mean.any() and unchanged.eeg_sd.eq(1).all()
