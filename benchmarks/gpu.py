"""What must hold on a GPU, each a command of some seconds to minutes; gpu.md says what each shows.

    python -m benchmarks.gpu alone       # models trained together against each alone, and again
    python -m benchmarks.gpu stacked     # 50 models at once: 10 subjects x 5 seeds, 50 epochs
    python -m benchmarks.gpu recipe      # the whole recipe: 10 subjects together, 100 epochs
    python -m benchmarks.gpu memory      # more models than memory holds
    python -m benchmarks.gpu steps       # steps alone: samples/s, and the kernels that take most
    python -m benchmarks.gpu resumed     # interrupted, and gone on with
    python -m benchmarks.gpu precision   # float32, tf32 and bfloat16: loss and top-1 of five seeds

A second word is the number of concepts, by default 1,654: with few, the commands can be tried on a
CPU. Simulated, in the release's shape: 17 channels x 100 samples, 10 images a concept,
768-dimensional embeddings.
"""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.train import AT_ONCE, PRECISIONS, SIZES, ours, simulated
from pipeline.compute.devices import be_deterministic, device_name, pick_device, use_precision
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.sections import Train
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.many import train_many
from pipeline.train.plain import PlainModel, make_optimizers
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup, Trained

N_LATENTS, PER_CONCEPT, NOISE = 32, 10, 12.0
SEEDS = (7, 42, 191, 2025, 96723)

# `precision` has noise with which about half of the held-out images are found: where a model finds
# all of them, no precision can do worse
HARD_NOISE = 56.0

ROUNDS = 5  # of which the median is the speed
N_KERNELS = 14  # in a table of kernels
LINE_EVERY = 10  # s, between two lines about a training that goes on


# ---------------------------------------------------------------------------- data


def simulate(
    n_subjects: int, n_concepts: int, noise: float = NOISE
) -> tuple[Samples, torch.Tensor]:
    """EEG and embeddings that are mixtures of latents of the image, and noise.

    Each subject has a mixture of his own. `noise` is the standard deviation of the EEG's.
    """
    torch.manual_seed(0)
    n = n_concepts * PER_CONCEPT
    latents = torch.randn(n, N_LATENTS)
    embeddings = latents @ torch.randn(N_LATENTS, 768) + 4 * torch.randn(n, 768)

    eeg = torch.empty(n_subjects, n, 17, 100)
    for of_subject in eeg:
        response = torch.randn(N_LATENTS, 17, 100).cumsum(2) / 8
        torch.randn(of_subject.shape, out=of_subject)
        of_subject.mul_(noise).add_((latents @ response.flatten(1)).view_as(of_subject))

    concepts = np.arange(n_concepts).astype(str).repeat(PER_CONCEPT)
    names = np.array([f"sub-{s:02}" for s in range(1, n_subjects + 1)], object)
    samples = Samples(
        eeg.flatten(0, 1),
        torch.arange(n).repeat(n_subjects),
        names.repeat(n),
        np.tile(concepts, n_subjects),
        100.0,
    )
    return samples, embeddings


def partition(samples: Samples, subject: str, seed: int) -> Partition:
    """The model of a subject, or of `all`."""
    rows = np.flatnonzero((samples.subject == subject) | (subject == "all"))
    seeds = derive_seeds(seed, subject)
    mask = held_out(samples.things_concept[rows], 0.1, seeds.concepts)
    return Partition(seeds, rows[~mask], samples, rows[mask])


def within_subject(samples: Samples) -> list[Partition]:
    subjects = np.unique(samples.subject)
    return [partition(samples, subject, seed) for subject in subjects for seed in SEEDS]


def recipe(**changes: object) -> Train:
    return Train(**read_params(Path("params.yaml")).train.model_dump() | changes)


# ---------------------------------------------------------------------------- trainings


def timed(
    run: Callable[..., list[Trained | InputError]], partitions: list[Partition], epochs: int
) -> list[Trained]:
    """Train, and print how long it took.

    `run` is called with `progress`. Models that failed are told, and left out.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    start = time.monotonic()
    results = run(progress=progress_lines(epochs * len(partitions)))
    seconds = time.monotonic() - start

    for result in results:
        if isinstance(result, InputError):
            print(f"failed: {result}")
    models = [result for result in results if isinstance(result, Trained)]
    if not models:
        sys.exit("no model was trained")

    n_samples = epochs * sum(len(part.rows) for part in partitions)
    memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if on_gpu else ""
    top1 = np.mean([model.history["selection_top1"].iloc[-1] for model in models])
    print(
        f"{len(models)} of {len(partitions)} models, {epochs} epochs: {seconds:.1f} s, "
        f"{n_samples / seconds:,.0f} samples/s{memory}; "
        f"top-1 on held-out concepts {top1:.3f}, chance {1 / gallery_size(partitions[0]):.3f}"
    )
    return models


def progress_lines(n_calls: int) -> Callable[[], None]:
    """For `progress`, which is called once an epoch and model: a line every ten seconds."""
    start = time.monotonic()
    calls = 0
    next_line = LINE_EVERY

    def progress() -> None:
        nonlocal calls, next_line
        calls += 1
        seconds = time.monotonic() - start
        if seconds > next_line:
            print(f"  {calls:,} of {n_calls:,} epochs, of all models, in {seconds:.0f} s")
            next_line = seconds + LINE_EVERY

    return progress


def gallery_size(part: Partition) -> int:
    assert part.selection is not None
    return len(np.unique(part.selection.things_concept[part.selection_rows]))


def relative_difference(left: Trained, right: Trained) -> float:
    """Of all weights together: rounding alone moves some, such as a bias before a BatchNorm."""
    a, b = (
        torch.nn.utils.parameters_to_vector(trained.model.parameters()).double()
        for trained in (left, right)
    )
    return ((a - b).norm() / b.norm()).item()


def largest_difference(left: list[Trained], right: list[Trained]) -> float:
    return max(relative_difference(*pair) for pair in zip(left, right, strict=True))


# ---------------------------------------------------------------------------- commands


def alone(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(2, n_concepts)
    setup = Setup(samples, embeddings, recipe(epochs=3), device)
    partitions = within_subject(samples)
    run = functools.partial(train_together, setup, partitions)

    together = timed(run, partitions, 3)
    again = timed(run, partitions, 3)
    same = largest_difference(together, again)
    print(f"trained together twice, relative difference of the weights: {same:.1e}, should be 0")

    differences = []
    for trained, part in zip(together, partitions, strict=True):
        [by_itself] = train_together(setup, [part])
        assert isinstance(by_itself, Trained)
        differences.append(relative_difference(trained, by_itself))
        print(f"  model {len(differences)} together and alone: {differences[-1]:.1e}")

    of_other_seed = relative_difference(*together[:2])
    print(f"together and alone: {max(differences):.1e}; of another seed {of_other_seed:.1e}")


def stacked(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(10, n_concepts)
    partitions = within_subject(samples)

    few = recipe(epochs=5, warmup_epochs_eeg_encoder=1, warmup_epochs_projectors=1)
    setup = Setup(samples, embeddings, few, device)
    first = partitions[:1]
    timed(functools.partial(train_together, setup, first), first, few.epochs)

    for kind in ("float32", "bfloat16"):
        print(f"{kind}:")
        setup = Setup(samples, embeddings, recipe(epochs=50, precision=kind), device)
        timed(functools.partial(train_together, setup, partitions), partitions, 50)


def whole_recipe(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(10, n_concepts)
    setup = Setup(samples, embeddings, recipe(), device)
    partitions = [partition(samples, "all", 42)]
    timed(functools.partial(train_together, setup, partitions), partitions, setup.recipe.epochs)


def memory(n_concepts: int, device: torch.device) -> None:
    """The memory of a GPU is limited to what the data and some dozen models need."""
    samples, embeddings = simulate(10, n_concepts)
    setup = Setup(samples, embeddings, recipe(epochs=2), device)
    partitions = within_subject(samples)

    if device.type == "cuda":
        limit = 4 * samples.eeg.numel() + 2.5e9
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
        print(f"at most {limit / 1e9:.1f} of {total / 1e9:.1f} GB")

    with tempfile.TemporaryDirectory() as folder:
        timed(functools.partial(train_many, setup, partitions, Path(folder)), partitions, 2)


def resumed(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(2, n_concepts)
    setup = Setup(samples, embeddings, recipe(epochs=6), device)
    partitions = within_subject(samples)
    run = functools.partial(train_together, setup, partitions)
    whole = timed(run, partitions, 6)

    calls = iter(range(3 * len(partitions)))

    def interrupt() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        try:
            run(state, interrupt)
        except KeyboardInterrupt:
            print(f"interrupted; the state has {state.stat().st_size / 1e6:.0f} MB")
        results = run(state)

    continued = [result for result in results if isinstance(result, Trained)]
    difference = largest_difference(whole, continued)
    print(
        "resumed and uninterrupted, relative difference of the weights: "
        f"{difference:.1e}, should be 0"
    )


def precision(n_concepts: int, device: torch.device) -> None:
    samples, embeddings = simulate(1, n_concepts, HARD_NOISE)
    partitions = within_subject(samples)

    last_epochs = {}  # (seeds, 2): loss and top-1
    for kind in PRECISIONS:
        print(f"{kind}:")
        setup = Setup(samples, embeddings, recipe(epochs=20, precision=kind), device)
        models = timed(functools.partial(train_together, setup, partitions), partitions, 20)
        histories = [model.history[["selection_loss", "selection_top1"]] for model in models]
        last_epochs[kind] = np.array([history.iloc[-1].to_numpy() for history in histories])

    for kind in PRECISIONS[1:]:
        difference = last_epochs[kind] - last_epochs["float32"]
        mean = difference.mean(0)
        error = difference.std(0, ddof=1) / len(SEEDS) ** 0.5
        print(
            f"{kind} less float32, same seeds: "
            f"loss {mean[0]:+.4f} (standard error {error[0]:.4f}), "
            f"top-1 {mean[1]:+.4f} ({error[1]:.4f})"
        )


# ---------------------------------------------------------------------------- steps alone


def steps(n_concepts: int, device: torch.device) -> None:
    """Without what follows each epoch of a training."""
    size = recipe().batch_size
    n_steps = max(1, n_concepts * PER_CONCEPT // size)
    eeg, embeddings = simulated(n_steps * size)
    target = torch.arange(len(eeg))

    kernels = []
    for n_models, n_steps_each in ((1, n_steps), (AT_ONCE, max(1, n_steps // 4))):
        n = n_steps_each * size
        for kind in PRECISIONS:
            parameters = recipe(precision=kind)
            epoch = ours(parameters, eeg[:n], target[:n], embeddings, n_models)
            name = f"{count_models(n_models)}, {kind}"
            print_rate(name, epoch, n_models * n, n_steps_each)
            if kind != "tf32":
                kernels.append((name, epoch, n_steps_each))

    # The profiler slows what follows it, so that it comes after all speeds
    epoch = plain_epoch(eeg, embeddings, device)
    print_rate("plain layers one after the other, float32", epoch, len(eeg), n_steps)
    be_deterministic(device)
    for name, epoch, n_steps_each in kernels:
        print_kernels(name, epoch, n_steps_each, device)


def count_models(n: int) -> str:
    return "1 model" if n == 1 else f"{n} models"


def print_rate(name: str, epoch: Callable[[], None], n_samples: int, n_steps: int) -> None:
    """The first two epochs, which capture graphs and choose kernels, do not count."""
    for _ in range(2):
        epoch()

    seconds = []
    for _ in range(ROUNDS):
        wait_for_gpu()
        start = time.perf_counter()
        epoch()
        wait_for_gpu()
        seconds.append(time.perf_counter() - start)

    median = statistics.median(seconds)
    step = 1000 * median / n_steps  # ms
    print(f"{name}: {n_samples / median:,.0f} samples/s, {step:.2f} ms a step")


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_epoch(
    eeg: torch.Tensor, embeddings: torch.Tensor, device: torch.device
) -> Callable[[], None]:
    """An epoch of the plain layers with all data on the device, and torch free to choose kernels.

    For all that follows: `be_deterministic` takes that back.
    """
    torch.use_deterministic_algorithms(False)
    use_precision("float32", device)
    parameters = recipe()
    model = PlainModel(SIZES.n_chans, SIZES.n_times, SIZES.embedding_size).to(device)
    optimizers = make_optimizers(model, parameters.learning_rate, parameters.epochs)
    eeg = eeg.to(device)
    embeddings = embeddings.to(device)
    matches = torch.arange(parameters.batch_size, device=device)

    def epoch() -> None:
        model.train()
        for rows in torch.randperm(len(eeg), device=device).split(parameters.batch_size):
            logits = model(eeg[rows], embeddings[rows])
            loss = F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)

            for optimizer, _ in optimizers:
                optimizer.zero_grad()
            (loss / 2).backward()
            for optimizer, _ in optimizers:
                optimizer.step()

    return epoch


def print_kernels(name: str, epoch: Callable[[], None], n_steps: int, device: torch.device) -> None:
    """What an epoch computes with, by its time on the device."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        epoch()
        wait_for_gpu()

    time_of = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")  # us
    kernels = sorted(profiler.key_averages(), key=time_of, reverse=True)
    total = sum(map(time_of, kernels))
    n_launches = sum(kernel.count for kernel in kernels if time_of(kernel) > 0)
    print(
        f"{name}: {total / n_steps / 1000:.2f} ms of kernels a step, "
        f"{n_launches / n_steps:.0f} launches; of all time, us a step, launches a step:"
    )
    for kernel in kernels[:N_KERNELS]:
        print(
            f"  {time_of(kernel) / total:6.1%} {time_of(kernel) / n_steps:8.1f} "
            f"{kernel.count / n_steps:6.1f}  {shorten(kernel.key)}"
        )


def shorten(kernel: str) -> str:
    for prefix in ("void ", "at::", "native::", "(anonymous namespace)::"):
        kernel = kernel.replace(prefix, "")
    return kernel[:90]


COMMANDS = {
    "alone": alone,
    "stacked": stacked,
    "recipe": whole_recipe,
    "memory": memory,
    "steps": steps,
    "resumed": resumed,
    "precision": precision,
}


def main() -> None:
    name, *rest = sys.argv[1:] or ["help"]
    if name not in COMMANDS:
        sys.exit(__doc__)

    sys.stdout.reconfigure(line_buffering=True)  # each line appears at once, in a file too
    device = pick_device("auto")
    be_deterministic(device)
    print(f"{device_name(device)}, torch {torch.__version__}")
    COMMANDS[name](int(rest[0]) if rest else 1654, device)


if __name__ == "__main__":
    main()
