"""Training against the recipe written plainly, in one run: samples a second, where time goes, an epoch at full size.

    python -m benchmarks.train            # speed
    python -m benchmarks.train parity     # the same validation curve? plain and ours in both precisions, several seeds

EEG of the published shape (17 channels x 100 samples, 768-dimensional embeddings), simulated; on a GPU if there is one.
A speed is the median of rounds in which plain, ours in each precision, many models at once and large matrix products
alternate, so that whatever disturbs the machine disturbs all.
"""

import contextlib
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import write_latest
from pipeline.compute.devices import device_name, pick_device, use_precision
from pipeline.eeg_encoders import fast_nice
from pipeline.eeg_encoders.nice import NiceRecipe
from pipeline.params import read_params
from pipeline.retrieval import retrieval_metrics
from pipeline.sections import Train
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.plain import PlainModel, make_optimizers, train_epoch
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out, make_galleries
from pipeline.train.stack import Stack
from pipeline.train.training import Partition, Setup

CPU = torch.device("cpu")
SIZES = ModelSizes(n_chans=17, n_times=100, sfreq=100.0, embedding_size=768)
PART = 8 * 256  # samples of a round, for both
ROUNDS = 5
DEVICE = pick_device("auto")
PRECISIONS = ("float32", "bfloat16") if DEVICE.type == "cpu" else ("float32", "tf32", "bfloat16")
AT_ONCE = 4 if DEVICE.type == "cpu" else 50  # models
LARGE = 2048  # rows and columns of the matrices whose product says what the machine can do
# Operations, of some tenths of a second
PRODUCTS = (4 if DEVICE.type == "cpu" else 1000) * 2 * LARGE**3
FULL = 165_400  # 10 subjects x 16,540 images
# The operations that are convolution, matrix product, normalisation and activation, with what happens inside them; the
# functions whose simple operations are one of these; and the gradients of simple operations that only the latter have.
MATHEMATICS = ("mm", "matmul", "conv", "linear", "norm", "elu")
GRADIENTS = (
    "DivBackward0",
    "ClampMinBackward0",
    "ExpandBackward0",
    "SqrtBackward0",
)  # of normalisations
LABELS = (
    (NiceRecipe, "composed_filters", "conv: filters"),
    (fast_nice, "_window_moments", "norm: moments"),
)
LABELS += ((functional, "normalize", "norm: unit length"),)


def simulated(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 17, 100, generator=generator), torch.randn(n, 768, generator=generator)


def recipe(**changes: object) -> Train:
    return Train(
        **read_params(Path("params.yaml")).train.model_dump()
        | {"eeg_encoder": "nice-recipe"}
        | changes
    )


def operations() -> dict[str, int]:
    """Floating point operations a sample in a step of the composed encoder, forward and backward, by what needs them.

    Two for each multiplication and addition of a convolution or matrix product; what is done value by value counts
    nothing, nor does what is done once a batch. The backward pass of a product is two products, one where its input
    needs no gradient, as EEG and embeddings do not.
    """
    n_chans, n_times, n_filters, width, batch = (
        SIZES.n_chans,
        SIZES.n_times,
        40,
        NiceRecipe.WINDOW,
        recipe().batch_size,
    )
    n_windows, projected = n_times - width + 1, recipe().projection_size
    products = {
        "temporal": 2 * n_windows * n_chans * width * n_filters,
        "spatial": 3 * n_windows * n_chans * n_filters * n_filters,
        "pointwise": 3 * n_windows * n_filters * n_filters,
        "moments of the windows": n_chans * n_times * n_times,
        "EEG projector": 3 * (n_windows * n_filters + projected) * projected,
        "image projector": (2 * SIZES.embedding_size + 3 * projected) * projected,
        "cosines": 3 * batch * projected,
    }
    return {name: 2 * n for name, n in products.items()}


def ours(
    parameters: Train,
    eeg: torch.Tensor,
    target: torch.Tensor,
    embeddings: torch.Tensor,
    n_models: int = 1,
) -> Callable[[], None]:
    """What trains fresh models together for one epoch, each over all of these samples."""
    models = [ContrastiveModel(SIZES, parameters).to(DEVICE) for _ in range(n_models)]
    generators = [torch.Generator(DEVICE).manual_seed(seed) for seed in range(n_models)]
    stack = Stack(models, parameters, 8, eeg.to(DEVICE), embeddings.to(DEVICE), generators)

    def epoch() -> None:
        use_precision(parameters.precision, DEVICE)
        order = torch.stack([torch.randperm(len(eeg)) for _ in range(n_models)])
        losses = stack.epoch(order.to(DEVICE), target[order].to(DEVICE))
        losses.tolist()  # waits for the device

    return epoch


def plainly(eeg: torch.Tensor, embeddings: torch.Tensor) -> Callable[[], None]:
    """The same by the plain layers."""
    model = PlainModel(SIZES.n_chans, SIZES.n_times, SIZES.embedding_size)
    made = make_optimizers(model, recipe().learning_rate, 100)
    return lambda: list(train_epoch(model, made, eeg, embeddings, recipe().batch_size)).clear()


def products(precision: str) -> Callable[[], None]:
    """What multiplies large matrices, `PRODUCTS` operations in all."""
    a, b = torch.randn(2, LARGE, LARGE, device=DEVICE).to(
        torch.bfloat16 if precision == "bfloat16" else torch.float32
    )
    out = torch.empty_like(a)

    def multiply() -> None:
        use_precision(precision, DEVICE)
        for _ in range(PRODUCTS // (2 * LARGE**3)):
            torch.mm(a, b, out=out)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return multiply


def speed() -> dict[str, float]:
    """Samples a second of plain and ours on the same part of an epoch, and our share of the rate of matrix products."""
    (eeg, embeddings), target = simulated(PART), torch.arange(PART)
    epochs = {
        precision: ours(recipe(precision=precision), eeg, target, embeddings)
        for precision in PRECISIONS
    }
    n = PART // 4
    stacks = {
        f"{AT_ONCE} models, {precision}": ours(
            recipe(precision=precision), eeg[:n], target[:n], embeddings, AT_ONCE
        )
        for precision in PRECISIONS
    }
    large = {f"products, {precision}": products(precision) for precision in PRECISIONS}
    seconds = alternate({"plain": plainly(eeg, embeddings), **epochs, **stacks, **large})
    counted = operations()
    for name, count in counted.items():
        print(f"  {count / 1e6:5.2f} million operations a sample: {name}")
    per_sample, plain = sum(counted.values()), PART / seconds["plain"]
    print(
        f"  {per_sample / 1e6:5.2f} in all\nplain layers on the CPU, DataLoader: {plain:.0f} samples/s"
    )
    figures = {"train_overhead_share": overhead(epochs["float32"])} if DEVICE.type == "cpu" else {}
    rates, peaks, done = ({} for _ in range(3))
    for precision in PRECISIONS:
        rates[precision] = PART / seconds[precision]
        done[precision] = rates[precision] * per_sample
        peaks[precision] = PRODUCTS / seconds[f"products, {precision}"]
        print(
            f"ours, {precision}: {rates[precision]:.0f} samples/s, {rates[precision] / plain:.1f} x plain; "
            f"{done[precision] / 1e9:.0f} GFLOP/s, {done[precision] / peaks[precision]:.0%} of large products "
            f"({peaks[precision] / 1e9:.0f} GFLOP/s)"
        )
        together = AT_ONCE * n / seconds[f"{AT_ONCE} models, {precision}"]
        print(
            f"{AT_ONCE} models at once: {together:.0f} samples/s, {together / rates[precision]:.2f} x one; "
            f"{together * per_sample / peaks[precision]:.0%} of large products"
        )
        figures[f"train_together_{precision}_vs_alone"] = together / rates[precision]
    figures["train_vs_plain"] = rates["float32"] / plain
    figures["train_bfloat16_vs_float32"] = rates["bfloat16"] / rates["float32"]
    figures["train_share_of_products"] = done["float32"] / peaks["float32"]
    figures["train_bfloat16_share_of_products"] = done["bfloat16"] / peaks["bfloat16"]
    figures["train_bfloat16_share_of_float32_products"] = done["bfloat16"] / peaks["float32"]
    for name, figure in figures.items():
        print(f"{name}: {figure:.3g}")
    return figures


def alternate(runs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median seconds of each over rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm up
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(all_rounds) for name, all_rounds in seconds.items()}


def overhead(epoch: Callable[[], None]) -> float:
    """The share of time outside convolution, matrix product, normalisation and activation; prints what takes most."""
    with contextlib.ExitStack() as stack:
        for owner, name, label in LABELS:
            labelled = record_function(label)(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, labelled))
        profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        for _ in range(ROUNDS):
            epoch()
    shares = _shares(profiler)
    for name, share in sorted(shares.items(), key=lambda item: -item[1])[:16]:
        print(f"  {share:6.1%} {name}")
    other = sum(share for name, share in shares.items() if not _is_mathematics(name))
    print(f"outside convolution, matrix product, normalisation and activation: {other:.1%}")
    return other


def _is_mathematics(name: str) -> bool:
    return name in GRADIENTS or any(word in name.lower() for word in MATHEMATICS)


def _shares(profiler: profile) -> dict[str, float]:
    """Shares of time by outermost operation: copying a bias or summing its gradient belongs to what needs it."""
    shares: dict[str, float] = {}
    for event in profiler.events():
        parent = event
        while parent.cpu_parent is not None:
            parent = parent.cpu_parent
        name = parent.name.removeprefix("autograd::engine::evaluate_function: ")
        shares[name] = shares.get(name, 0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {name: time / total for name, time in shares.items()}


def full_size() -> dict[str, float]:
    """One epoch of 165,400 samples, its peak memory, and what the whole recipe would take."""
    parameters = recipe()
    eeg, _ = simulated(FULL)
    embeddings, target = torch.randn(16_540, 768), torch.arange(16_540).repeat(10)
    epoch = ours(parameters, eeg, target, embeddings)
    start = time.perf_counter()
    epoch()
    seconds = time.perf_counter() - start
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / (1 << 20)
    )
    print(
        f"an epoch of {FULL} samples: {seconds:.1f} s, {FULL / seconds:.0f} samples/s, peak {peak:.0f} MB"
    )
    if DEVICE.type == "cuda":
        print(
            f"peak of the GPU's memory, many models at once included: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
        )
    print(
        f"the recipe of {parameters.epochs} epochs: {parameters.epochs * seconds / 60:.0f} minutes"
    )
    return {"train_epoch_full_size_s": seconds, "train_full_size_peak_rss_mb": peak}


def planted(noise: float) -> tuple[Samples, torch.Tensor]:
    """800 images x 2 subjects: the EEG is a smooth mixture of 20 latents of the image, and so is its embedding."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((800, 20))
    embeddings = latents @ rng.standard_normal((20, 768)) + 0.5 * rng.standard_normal((800, 768))
    response = np.cumsum(rng.standard_normal((2, 20, 17, 100)), axis=3) / 30
    eeg = np.concatenate(
        [np.einsum("nd,dct->nct", latents, response[subject]) for subject in range(2)]
    )
    eeg += noise * rng.standard_normal(eeg.shape)
    samples = Samples(
        eeg=torch.from_numpy(eeg).float(),
        image_row=torch.arange(800).repeat(2),
        subject=np.repeat(["sub-01", "sub-02"], 800),
        things_concept=np.tile(np.repeat(np.arange(160).astype(str), 5), 2),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings).float()


def parity(epochs: int = 8, seeds: int = 5, noise: float = 3.0) -> None:
    """Validation loss and top-1 of plain and ours after each epoch: means over seeds.

    Differences are in standard errors: of ours in float32 from plain, whose seeds are others, and of bfloat16 from
    float32 seed by seed.
    """
    parameters = recipe(
        precision="float32",
        epochs=epochs,
        learning_rate=0.002,
        start_temperature=0.07,
        standardise_eeg=False,
        average_epochs="none",
        selection_temperature="model",
    )
    samples, embeddings = planted(noise)
    mask = held_out(samples.things_concept, 0.2, seed=0)
    rows, selection = np.flatnonzero(~mask), samples.take(np.flatnonzero(mask))
    galleries = make_galleries(selection.subject, selection.things_concept)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ("plain", "float32", "bfloat16")}
    for seed in range(seeds):
        seeds_of_run = derive_seeds(seed, "pooled")
        for precision in ("float32", "bfloat16"):
            changed = parameters.model_copy(update={"precision": precision})
            history = train(
                Setup(samples, embeddings, changed, CPU), Partition(seeds_of_run, rows, selection)
            ).history
            curves[precision].append(history[["selection_loss", "selection_top1"]].to_numpy())
        torch.manual_seed(1000 + seed)
        model = PlainModel(17, 100, 768)
        made = make_optimizers(model, parameters.learning_rate, epochs)
        curve = []
        for _ in range(epochs):
            list(
                train_epoch(
                    model,
                    made,
                    samples.eeg[rows],
                    embeddings[samples.image_row[rows]],
                    parameters.batch_size,
                )
            )
            model.eval()
            with torch.inference_mode():
                logits = [
                    model(selection.eeg[g], embeddings[selection.image_row[g]]) for g in galleries
                ]
            scale = model.log_scale.exp().item()
            scores = [retrieval_metrics(gallery / scale, scale, top_k=[1]) for gallery in logits]
            curve.append(
                [np.mean([score[name] for score in scores]) for name in ("nice_loss", "top1_acc")]
            )
        curves["plain"].append(np.array(curve))
        last = (
            f"{name} {rows[-1][-1][0]:.3f} {rows[-1][-1][1]:.3f}" for name, rows in curves.items()
        )
        print(f"seed {seed}, loss and top-1 of the last epoch: {', '.join(last)}", flush=True)
    stacked = {name: np.stack(rows) for name, rows in curves.items()}  # each (seeds, epochs, 2)
    for i, measure in enumerate(("loss", "top-1")):
        print(
            f"{measure:5} {'plain':>8} {'float32':>8} {'diff/se':>8} {'bfloat16':>9} {'diff/se':>8}"
        )
        mean = {name: rows[:, :, i].mean(0) for name, rows in stacked.items()}
        variance = {name: rows[:, :, i].var(0, ddof=1) / seeds for name, rows in stacked.items()}
        from_plain = (mean["float32"] - mean["plain"]) / np.sqrt(
            variance["plain"] + variance["float32"]
        )
        paired = (stacked["bfloat16"] - stacked["float32"])[:, :, i]
        errors = paired.std(0, ddof=1) / seeds**0.5
        from_float32 = np.divide(paired.mean(0), errors, out=np.zeros(epochs), where=errors > 0)
        columns = mean["plain"], mean["float32"], from_plain, mean["bfloat16"], from_float32
        for epoch, (p, f, f_z, b, b_z) in enumerate(zip(*columns, strict=True), start=1):
            print(f"{epoch:5} {p:8.3f} {f:8.3f} {f_z:8.2f} {b:9.3f} {b_z:8.2f}")


def main() -> None:
    cores = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {cores}, {device_name(DEVICE)}")
    if sys.argv[1:] == ["parity"]:
        parity()
        return
    write_latest(speed() | full_size())


if __name__ == "__main__":
    main()
