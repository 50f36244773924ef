import contextlib
import copy
import dataclasses
import gc
import math
import re
import subprocess
import sys
import weakref
from collections import Counter
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.eeg_encoders import fast_nice
from pipeline.eeg_encoders.encoder import draw_bits
from pipeline.errors import InputError
from pipeline.sections import Train
from pipeline.train import cuda_graph, many
from pipeline.train import stack as stack_module
from pipeline.train.cuda_graph import PLAIN_STEPS, CapturedStep
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.many import train
from pipeline.train.measures import Measures
from pipeline.train.model import ContrastiveModel, ModelSizes, stackable
from pipeline.train.optim import Pieces
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup, Trained
from tests.tiny import shipped_params

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
N_CONCEPTS, PER_CONCEPT, REPETITIONS = 24, 2, 2
SEEDS = (5, 6, 7)
# More than the defaults: all that has a state, or draws, or treats the gradients of a model together.
EVERYTHING = {
    "eeg_encoder": "nice",
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "gradient_clip": 0.05,
    "average_random_repetitions": "any",
    "smoothing": 0.02,
    "remove_dc": True,
    "normalise_embeddings": True,
}

# The parts that other recipes have
FLATTENED = {
    "eeg_encoder": "flatten",
    "first_weights": "torch",
    "eeg_hidden_size": 16,
    "image_projector": "linear",
}


@pytest.fixture
def recipe() -> Train:
    small = {"epochs": 3, "batch_size": 20, "projection_size": 24, "learning_rate": 0.003}
    return shipped_params().train.model_copy(update=small)


@pytest.fixture
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def planted(repetitions: int = 1) -> tuple[Samples, torch.Tensor]:
    """Two subjects; EEG (C = 3, T = 80), a mixture of the embedding (D = 12) of the image seen and noise."""
    rng, n = np.random.default_rng(0), N_CONCEPTS * PER_CONCEPT
    embeddings = rng.standard_normal((n, 12))
    target = np.tile(np.arange(n).repeat(repetitions), 2)
    response = np.cumsum(rng.standard_normal((2, 12, 3, 80)), axis=3) / 8
    subject = np.arange(2).repeat(n * repetitions)
    eeg = np.einsum("nd,ndct->nct", embeddings[target], response[subject]) + rng.standard_normal(
        (len(target), 3, 80)
    )
    concepts = np.array([f"concept-{c:02}" for c in range(N_CONCEPTS)]).repeat(PER_CONCEPT)
    dtype = torch.get_default_dtype()
    samples = Samples(
        eeg=torch.from_numpy(eeg).to(dtype),
        image_row=torch.from_numpy(target),
        subject=np.array(["sub-01", "sub-02"], object)[subject],
        things_concept=concepts[target],
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings).to(dtype)


def splits(samples: Samples) -> list[Partition]:
    """A model for each seed and subject, with concepts of its own held out."""
    made = []
    for subject in ("sub-01", "sub-02"):
        rows = np.flatnonzero(samples.subject == subject)
        for seed in SEEDS:
            seeds = derive_seeds(seed, subject)
            mask = held_out(samples.things_concept[rows], 0.2, seeds.concepts)
            made.append(Partition(seeds, rows[~mask], samples, rows[mask]))
    return made


def setup(data: tuple[Samples, torch.Tensor], parameters: Train, **images: object) -> Setup:
    return Setup(*data, parameters, CPU, **images)


def together(setup: Setup, **options: object) -> list[Trained | InputError]:
    return train_together(setup, splits(setup.samples), **options)


def alone(setup: Setup, m: int) -> Trained:
    split = splits(setup.samples)[m]
    selection = setup.samples.take(split.selection_rows)
    return train(setup, Partition(split.seeds, split.rows, selection))


def relative_difference(one: Trained, other: Trained) -> float:
    """The largest of all weights and statistics, each relative to the norm of its tensor."""
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max(
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item()
        for a, b in pairs
    )


@pytest.mark.parametrize("kind", ["nice-recipe", "nice", "everything", "flattened", "mix of views"])
def test_each_of_many_ends_with_the_weights_it_would_have_alone(recipe, in_double, kind):
    data, images = planted(REPETITIONS), {}
    if kind == "everything":
        parameters = recipe.model_copy(update=EVERYTHING)
    elif kind == "flattened":
        parameters = recipe.model_copy(update=FLATTENED)
    elif kind == "mix of views":
        parameters = recipe.model_copy(update={"image_projector": "none", "temperature": 0.04})
        blocks = torch.stack([data[1], data[1].flip(1), 2 * data[1].roll(1, 1)], dim=1)
        data = data[0], blocks
        images = {
            "blocks": ("3", "6", "last"),
            "targets": torch.stack([blocks, blocks + 1], dim=1),
        }
    else:
        parameters = recipe.model_copy(update={"eeg_encoder": kind})
    all_alike = setup(data, parameters, **images)
    for m, trained in enumerate(together(all_alike)):
        reference = alone(all_alike, m)
        assert relative_difference(trained, reference) < 1e-8
        assert trained.epoch == reference.epoch
        pd.testing.assert_frame_equal(trained.history, reference.history, rtol=1e-8)


def test_each_has_its_own_seed_and_all_of_it_comes_again(recipe):
    first, again = together(setup(planted(), recipe)), together(setup(planted(), recipe))
    for one, other in zip(first, again, strict=True):
        assert all(
            map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values())
        )
        pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    for one, other in zip(first, first[1:], strict=False):
        assert relative_difference(one, other) > 0.01


def test_in_float32_they_differ_by_rounding_alone(recipe):
    for m, trained in enumerate(together(setup(planted(), recipe))):
        assert relative_difference(trained, alone(setup(planted(), recipe), m)) < 1e-2


@pytest.mark.parametrize("value", [math.inf, 0.0])
def test_one_that_diverges_or_collapses_does_so_alone(recipe, value):
    """The models of the second subject, whose EEG has one value."""
    samples, embeddings = planted()
    parameters = recipe.model_copy(update={"epochs": 12})
    whole = together(setup((samples, embeddings), parameters))
    samples.eeg[samples.subject == "sub-02"] = value
    found = together(setup((samples, embeddings), parameters))
    n = len(SEEDS)
    for one, other in zip(found[:n], whole[:n], strict=True):
        assert all(
            map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values())
        )
        assert not one.collapsed
    if math.isinf(value):
        with pytest.raises(InputError) as told:
            alone(setup((samples, embeddings), parameters), n)
        assert [str(each) for each in found[n:]] == [str(told.value)] * n
    else:
        assert all(each.collapsed for each in found[n:])


def test_interrupted_they_go_on(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train.loop.SAVING_SHARE", math.inf)
    data = setup(planted(), recipe)
    whole = together(data)
    state, calls = tmp_path / "state.pt", iter(range(len(whole)))

    def interrupt() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(data, resume=state, progress=interrupt)
    steps = []
    resumed = together(data, resume=state, progress=lambda: steps.append(1))
    assert len(steps) == recipe.epochs * len(whole)
    for one, other in zip(resumed, whole, strict=True):
        assert all(
            map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values())
        )
        pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)


def test_only_what_draws_nothing_but_dropout_is_stacked(recipe):
    for change in ({}, {"eeg_encoder": "nice"}, FLATTENED):
        assert stackable(recipe.model_copy(update=change))
    for change in (
        {"eeg_encoder": "atm-s"},
        {"eeg_encoder": "eegnet"},
        {"channel_dropout": 0.1},
        {"time_shift": 0.02},
    ):
        assert not stackable(recipe.model_copy(update=change))


@contextlib.contextmanager
def without_values():
    """What torch does not have on the device `meta`, whose tensors have no values, is left out."""
    with (
        mock.patch.object(
            stack_module, "draw_bits", lambda n, device, of: draw_bits(n, device, [None] * len(of))
        ),
        mock.patch.object(torch.optim.Adam, "step", lambda _: None),
        mock.patch.object(torch, "is_autocast_enabled", lambda _: False),
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        yield


def stack_on_meta(recipe: Train, n_models: int) -> stack_module.Stack:
    """Models of EEG (50, 3, 80) and embeddings (50, 12)."""
    sizes = ModelSizes(3, 80, 100.0, 12)
    models = [ContrastiveModel(sizes, recipe).to("meta") for _ in range(n_models)]
    data = torch.randn(50, 3, 80, device="meta"), torch.randn(50, 12, device="meta")
    return stack_module.Stack(models, recipe, 3, *data, [torch.Generator()] * n_models)


@pytest.mark.parametrize(
    "change", [{}, {"average_random_repetitions": "any", "gradient_clip": 1.0}]
)
def test_the_steps_of_an_epoch_never_wait_for_the_device(recipe, change):
    """On the device `meta`: to ask for a value is an error, as is to meet another device."""
    images = torch.zeros(3, 50, dtype=torch.long, device="meta")
    rows = images[..., None].expand(-1, -1, 2) if "average_random_repetitions" in change else images
    with without_values():
        stack = stack_on_meta(recipe.model_copy(update=change), 3)
        losses = stack.epoch(rows, images)
    assert losses.shape == (3,) and losses.is_meta
    assert stack._steps_done == math.ceil(50 / recipe.batch_size)
    assert all(weight.grad is not None for weight in stack._weights.values())


@pytest.mark.parametrize("temperature", ["fitted", "model"])
def test_what_follows_an_epoch_waits_once(recipe, temperature):
    """All models are measured on the device, and one table is read."""
    parameters = recipe.model_copy(update={"selection_temperature": temperature})
    samples, embeddings = planted()
    data = dataclasses.replace(samples, eeg=samples.eeg.to("meta")), embeddings.to("meta")
    all_data = Setup(*data, parameters, torch.device("meta"))
    tables = []

    def read(table: torch.Tensor) -> list[list[float]]:
        tables.append(table)
        return [[0.0] * table.shape[1]] * len(table)

    with without_values(), mock.patch.object(torch.Tensor, "tolist", read):
        stack = stack_on_meta(parameters, len(splits(samples)))
        measures = Measures(all_data, splits(samples), data[0])
        rows = measures.of(stack, torch.zeros(len(splits(samples)), device="meta"))
    assert [table.shape for table in tables] == [(6, 4)]
    assert [*rows[0]] == ["train_loss", "spread", "selection_loss", "selection_top1"]


class Called(TorchDispatchMode):
    """The operations that torch calls, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        name = called.overloadpacket.__name__
        computes_nothing = ("view", "empty", "record_function")
        if not called.is_view and not any(word in name for word in computes_nothing):
            self.names[name] += 1
        return called(*args, **(kwargs or {}))


def test_a_step_of_fifty_takes_as_many_operations_as_one(recipe):
    """But for two copies; no convolution is left, views and the optimizer do not count."""
    counts = []
    for n_models in (1, 50):
        rows = torch.zeros(n_models, 20, dtype=torch.long, device="meta")
        with without_values():
            stack = stack_on_meta(recipe, n_models)
            bits = stack._draw_bits(20)
            with Called() as called:
                stack._step(rows, rows, *bits)
        assert not [name for name in called.names if "conv" in name or "pool" in name]
        counts.append(called.names.total())
    assert counts[1] - counts[0] == 2
    assert counts[0] <= 183


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("change", [{}, EVERYTHING, FLATTENED, {"precision": "bfloat16"}])
def test_no_step_sums_by_index(recipe, change, n_models, monkeypatch):
    """Sums in whatever order differ from run to run on a GPU; in a fixed order they wait for it, which a capture bans.

    Gathering by index is one of them, in its gradient.
    """
    samples, embeddings = planted()
    models = [
        ContrastiveModel(ModelSizes(3, 80, 100.0, 12), recipe.model_copy(update=change))
        for _ in range(n_models)
    ]
    generators = [torch.Generator().manual_seed(m) for m in range(n_models)]
    stack = stack_module.Stack(models, models[0].recipe, 3, samples.eeg, embeddings, generators)
    monkeypatch.setattr(fast_nice, "_convolve_in_chunks", fast_nice._convolve_by_products)
    images = samples.image_row.expand(n_models, -1)
    rows = torch.arange(len(samples.eeg)).expand(n_models, -1)
    if "average_random_repetitions" in change:
        rows = rows[..., None].expand(-1, -1, 2)
    with Called() as called:
        stack.epoch(rows, images)
    by_index = {
        "gather",
        "index",
        "index_add",
        "index_put",
        "put",
        "scatter",
        "scatter_add",
        "nonzero",
        "nll_loss_forward",
    }
    assert (
        "index_select" in called.names
        and not {name.rstrip("_") for name in called.names} & by_index
    )


class Recording:
    """Stands for torch's CUDA graphs on a CPU: a step that is captured is not taken; each replay takes it."""

    def __init__(self, stack: stack_module.Stack, captured: CapturedStep) -> None:
        self.stack, self.captured, self.replays = stack, captured, 0

    def replay(self) -> None:
        self.replays += 1
        self.captured.losses.copy_(self.stack._step(*self.captured.inputs))

    @contextlib.contextmanager
    def capture(self, _: "Recording", stream: object):
        before = copy.deepcopy(self.stack.state_dict())
        yield
        self.stack.load_state_dict(before)


def test_captured_steps_train_as_plain_ones(recipe):
    samples, embeddings = planted()
    order = torch.stack(
        [torch.randperm(len(samples.eeg)) for _ in range(2)]
    )  # 96 samples: 4 batches of 20 and one of 16

    def trained(captures: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        models = [ContrastiveModel(ModelSizes(3, 80, 100.0, 12), recipe) for _ in range(2)]
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        stack = stack_module.Stack(models, recipe, 5, samples.eeg, embeddings, generators)
        captured = CapturedStep(stack._step, stack._pieces.drop_gradients)
        recording = Recording(stack, captured)
        stack._captured_step = captured if captures else None
        with (
            mock.patch.object(torch.cuda, "CUDAGraph", lambda: recording),
            mock.patch.object(torch.cuda, "graph", recording.capture),
            mock.patch.object(cuda_graph, "_side_stream", mock.Mock()),
            mock.patch.object(torch.cuda, "current_stream", mock.Mock()),
            mock.patch.object(torch.cuda, "stream", lambda _: contextlib.nullcontext()),
        ):
            losses = [stack.epoch(order, samples.image_row[order]) for _ in range(3)]
        stack.keep(torch.tensor([False, True]))
        return losses, stack.best(1), recording.replays

    plain, captured = trained(captures=False), trained(captures=True)
    assert captured[2] == 3 * 4 - PLAIN_STEPS
    assert all(map(torch.equal, captured[0], plain[0]))
    assert all(map(torch.equal, captured[1].values(), plain[1].values()))


def test_a_training_that_ended_leaves_no_memory_to_the_garbage_collector(recipe, monkeypatch):
    averages = []
    train_epoch = stack_module.Stack.epoch

    def epoch(self, *rows):
        averages.append(weakref.ref(self._averages["log_scale"]))
        return train_epoch(self, *rows)

    monkeypatch.setattr(stack_module.Stack, "epoch", epoch)
    together(setup(planted(), recipe))  # torch imports things the first time
    averages.clear()
    gc.disable()
    try:
        together(setup(planted(), recipe))
        assert averages and all(average() is None for average in averages)
    finally:
        gc.enable()


@pytest.mark.long
def test_models_that_do_not_fit_into_memory_together_are_trained_in_groups():
    """Twelve, in a process whose memory is limited to 400 MB more than it has; then to 20 MB."""
    command = [sys.executable, "-m", "tests.little_memory"]
    grouped = subprocess.run([*command, "400"], capture_output=True, text=True, check=True)
    assert "cpu has too little memory for 12 models at once: going on with 6" in grouped.stdout
    assert grouped.stdout.endswith("\n12 trained\n")

    refused = subprocess.run([*command, "20"], capture_output=True, text=True, check=True)
    told = r"cpu has too little memory for one model: its next [\d.]+ GB do not fit; lower train.ba"
    assert re.search(told, refused.stdout) and refused.stdout.endswith("\n0 trained\n")


def test_weights_in_pieces_are_updated_as_whole_ones(recipe, monkeypatch):
    """As on a GPU: a piece has 100 values of each model, and shares its memory with the weight."""
    whole = together(setup(planted(), recipe))
    monkeypatch.setattr("pipeline.train.optim.PIECE", 100)
    monkeypatch.setattr(stack_module, "Pieces", lambda weights, _: Pieces(weights, CUDA))
    in_pieces = together(setup(planted(), recipe))
    for left, right in zip(in_pieces, whole, strict=True):
        assert relative_difference(left, right) < 1e-5


@pytest.mark.parametrize(
    ("of_one", "of_few", "free", "n_fitting"),
    [
        (2.0, 2.4, 3.0, 3),  # GB: 0.85 x 3 leaves 0.55 beside the first, and each takes 0.2
        (2.0, 2.4, 80.0, 50),
        (2.0, 2.0, 3.0, 50),  # too small to be seen
        (2.0, 2.4, 1.0, 1),
    ],
)
def test_a_group_on_a_gpu_is_as_large_as_its_memory_allows(
    recipe, monkeypatch, of_one, of_few, free, n_fitting
):
    """By what one model and few take, here by stand-ins for the GPU's figures."""
    on_gpu = dataclasses.replace(setup(planted(), recipe), device=CUDA)
    taken = {1: of_one * 1e9, many.FEW: of_few * 1e9}
    monkeypatch.setattr(many, "_peak_memory", lambda _, members: taken[len(members)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 1e9, 85e9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    assert many._how_many_fit(on_gpu, splits(planted()[0])[:1] * 50) == n_fitting
