"""What must hold on a GPU, each a command of some seconds to minutes; benchmarks/gpu.md says what each must show.

    python -m benchmarks.gpu recipe      # the whole recipe at full size: 10 subjects together, 100 epochs
    python -m benchmarks.gpu stacked     # 50 models at once: 10 subjects x 5 seeds, 50 epochs
    python -m benchmarks.gpu alone       # models trained together against each alone, and again
    python -m benchmarks.gpu resumed     # interrupted, and gone on with
    python -m benchmarks.gpu memory      # more models than memory holds
    python -m benchmarks.gpu precision   # float32, tf32 and bfloat16: loss and top-1 of five seeds

A second word is the number of concepts, 1,654 unless told: few try the commands themselves on a CPU.
Simulated, in the release's shape: 17 channels x 100 samples, 10 images a concept, 768-dimensional embeddings.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.compute.devices import be_deterministic, device_name, pick_device
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.sections import Train
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.many import train_many
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup, Trained

N_LATENTS, PER_CONCEPT, NOISE = 32, 10, 12.0
SEEDS = (7, 42, 191, 2025, 96723)


def simulate(n_subjects: int, n_concepts: int) -> tuple[Samples, torch.Tensor]:
    """EEG that is a mixture of latents of the image, the subject's own, and noise; embeddings likewise."""
    torch.manual_seed(0)
    n = n_concepts * PER_CONCEPT
    latents = torch.randn(n, N_LATENTS)
    embeddings = latents @ torch.randn(N_LATENTS, 768) + 4 * torch.randn(n, 768)
    eeg = torch.empty(n_subjects, n, 17, 100)
    for of_subject in eeg:
        response = torch.randn(N_LATENTS, 17, 100).cumsum(2) / 8
        torch.randn(of_subject.shape, out=of_subject)
        of_subject.mul_(NOISE).add_((latents @ response.flatten(1)).view_as(of_subject))
    concepts = np.arange(n_concepts).astype(str).repeat(PER_CONCEPT)
    subject = np.array([f"sub-{s:02}" for s in range(1, n_subjects + 1)], object).repeat(n)
    target = torch.arange(n).repeat(n_subjects)
    return Samples(
        eeg.flatten(0, 1), target, subject, np.tile(concepts, n_subjects), 100.0
    ), embeddings


def split(samples: Samples, of: str, seed: int) -> Partition:
    """The model of one subject, or of `all`."""
    rows = np.flatnonzero((samples.subject == of) | (of == "all"))
    seeds = derive_seeds(seed, of)
    mask = held_out(samples.things_concept[rows], 0.1, seeds.concepts)
    return Partition(seeds, rows[~mask], samples, rows[mask])


def within_subject(samples: Samples) -> list[Partition]:
    return [
        split(samples, subject, seed) for subject in np.unique(samples.subject) for seed in SEEDS
    ]


def recipe(**changes: object) -> Train:
    return Train(**read_params(Path("params.yaml")).train.model_dump() | changes)


def timed(
    run: Callable[[], list[Trained | InputError]], splits: list[Partition], epochs: int
) -> list[Trained]:
    """What it trained; prints how long it took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    found = [trained for trained in run() if not isinstance(trained, InputError)]
    seconds, n = time.monotonic() - start, epochs * sum(len(each.rows) for each in splits)
    memory = (
        f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if torch.cuda.is_available() else ""
    )
    top1 = np.mean([trained.history["selection_top1"].iloc[-1] for trained in found])
    print(
        f"{len(found)} of {len(splits)} models, {epochs} epochs: {seconds:.1f} s, {n / seconds:,.0f} samples/s"
        f"{memory}; top-1 on held-out concepts {top1:.3f}, chance {1 / max_gallery(splits[0]):.3f}",
        flush=True,
    )
    return found


def max_gallery(one: Partition) -> int:
    assert one.selection is not None
    return len(np.unique(one.selection.things_concept[one.selection_rows]))


def relative_difference(one: Trained, other: Trained) -> float:
    """Of all weights together: some, such as a bias before a BatchNorm, are moved by rounding alone."""
    a, b = (
        torch.nn.utils.parameters_to_vector(each.model.parameters()).double()
        for each in (one, other)
    )
    return ((a - b).norm() / b.norm()).item()


def whole_recipe(n_concepts: int, device: torch.device) -> None:
    parameters, (samples, embeddings) = recipe(), simulate(10, n_concepts)
    splits = [split(samples, "all", 42)]
    run = functools.partial(train_together, Setup(samples, embeddings, parameters, device), splits)
    timed(run, splits, parameters.epochs)


def stacked(n_concepts: int, device: torch.device) -> None:
    parameters, (samples, embeddings) = recipe(epochs=50), simulate(10, n_concepts)
    splits = within_subject(samples)
    few = recipe(epochs=5, warmup_epochs_eeg_encoder=1, warmup_epochs_projectors=1)
    timed(
        functools.partial(train_together, Setup(samples, embeddings, few, device), splits[:1]),
        splits[:1],
        few.epochs,
    )
    timed(
        functools.partial(train_together, Setup(samples, embeddings, parameters, device), splits),
        splits,
        parameters.epochs,
    )


def alone(n_concepts: int, device: torch.device) -> None:
    parameters, (samples, embeddings) = recipe(epochs=3), simulate(2, n_concepts)
    splits = within_subject(samples)
    together, again = (
        timed(
            functools.partial(
                train_together, Setup(samples, embeddings, parameters, device), splits
            ),
            splits,
            3,
        )
        for _ in range(2)
    )
    same = max(relative_difference(one, other) for one, other in zip(together, again, strict=True))
    print(f"trained together twice, relative difference of the weights: {same:.1e}, should be 0")
    differences = []
    for one, own in zip(together, splits, strict=True):
        (by_itself,) = train_together(Setup(samples, embeddings, parameters, device), [own])
        assert isinstance(by_itself, Trained)
        differences.append(relative_difference(one, by_itself))
    print(
        f"together and alone: {max(differences):.1e}; of another seed {relative_difference(*together[:2]):.1e}"
    )


def resumed(n_concepts: int, device: torch.device) -> None:
    parameters, (samples, embeddings) = recipe(epochs=6), simulate(2, n_concepts)
    splits = within_subject(samples)
    run = functools.partial(train_together, Setup(samples, embeddings, parameters, device), splits)
    whole = timed(run, splits, 6)
    left = iter(range(3 * len(splits)))

    def interrupt() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        try:
            run(state, interrupt)
        except KeyboardInterrupt:
            print(f"interrupted; the state has {state.stat().st_size / 1e6:.0f} MB")
        after = [each for each in run(state) if isinstance(each, Trained)]
    difference = max(
        relative_difference(one, other) for one, other in zip(whole, after, strict=True)
    )
    print(
        f"resumed and uninterrupted, relative difference of the weights: {difference:.1e}, should be 0"
    )


def memory(n_concepts: int, device: torch.device) -> None:
    """The memory of a GPU is limited to what the data and some dozen models need."""
    parameters, (samples, embeddings) = recipe(epochs=2), simulate(10, n_concepts)
    splits = within_subject(samples)
    if device.type == "cuda":
        limit = 4 * samples.eeg.numel() + 2.5e9
        torch.cuda.set_per_process_memory_fraction(
            limit / torch.cuda.get_device_properties(device).total_memory
        )
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(
            train_many, Setup(samples, embeddings, parameters, device), splits, Path(folder)
        )
        timed(run, splits, 2)


def precision(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(1, n_concepts)
    kinds = ("float32", "tf32", "bfloat16") if device.type == "cuda" else ("float32", "bfloat16")
    splits, found = within_subject(samples), {}
    for kind in kinds:
        parameters = recipe(epochs=20, precision=kind)
        print(f"{kind:8} ", end="")
        run = functools.partial(
            train_together, Setup(samples, embeddings, parameters, device), splits
        )
        trained = timed(run, splits, 20)
        last = [
            each.history[["selection_loss", "selection_top1"]].iloc[-1].to_numpy()
            for each in trained
        ]
        found[kind] = np.array(last)
    for kind in kinds[1:]:
        difference = found[kind] - found["float32"]
        mean, error = difference.mean(0), difference.std(0, ddof=1) / len(SEEDS) ** 0.5
        print(
            f"{kind} less float32, same seeds: loss {mean[0]:+.4f} (standard error {error[0]:.4f})",
            end="",
        )
        print(f", top-1 {mean[1]:+.4f} ({error[1]:.4f})")


COMMANDS = {
    "recipe": whole_recipe,
    "stacked": stacked,
    "alone": alone,
    "resumed": resumed,
    "memory": memory,
    "precision": precision,
}


def main() -> None:
    name, *rest = sys.argv[1:] or ["help"]
    if name not in COMMANDS:
        sys.exit(__doc__)
    device = pick_device("auto")
    be_deterministic(device)
    print(f"{device_name(device)}, torch {torch.__version__}")
    COMMANDS[name](int(rest[0]) if rest else 1654, device)


if __name__ == "__main__":
    main()
