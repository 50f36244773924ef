"""Training against the recipe written plainly, in one run: samples a second, where time goes, an epoch at full size.

    python -m benchmarks.train            # speed
    python -m benchmarks.train parity     # the same validation curve? plain and ours, several seeds each

EEG of the published shape (17 channels x 100 samples, 768-dimensional embeddings), simulated. A speed is the median of
rounds in which plain and ours alternate, so that whatever disturbs the machine disturbs both.
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
from benchmarks.plain import PlainModel, optimizers, train_epoch
from pipeline.decoding.model import ContrastiveModel, ModelSizes
from pipeline.decoding.retrieval import retrieval_metrics
from pipeline.decoding.stack import Stack
from pipeline.decoding.training import Samples, derive_seeds, held_out, make_galleries, train
from pipeline.eeg import nice
from pipeline.eeg.nice import NiceRecipe
from pipeline.params import read_params
from pipeline.sections import Train

CPU = torch.device("cpu")
SIZES = ModelSizes(n_chans=17, n_times=100, sfreq=100.0, embedding_size=768)
PART = 8 * 256  # samples of a round, for both
ROUNDS = 5
FULL = 165_400  # 10 subjects x 16,540 images
# The operations that are convolution, matrix product, normalisation and activation, with what happens inside them; the
# functions whose simple operations are one of these; and the gradients of simple operations that only the latter have.
MATHEMATICS = ("mm", "matmul", "conv", "linear", "norm", "elu")
GRADIENTS = ("DivBackward0", "ClampMinBackward0", "ExpandBackward0", "SqrtBackward0")  # of normalisations
LABELS = ((NiceRecipe, "composed", "conv: filters"), (nice, "_window_moments", "norm: moments"))
LABELS += ((functional, "normalize", "norm: unit length"),)


def simulated(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 17, 100, generator=generator), torch.randn(n, 768, generator=generator)


def recipe(**changes: object) -> Train:
    return Train(**read_params(Path("params.yaml")).train.model_dump() | {"eeg_encoder": "nice-recipe"} | changes)


def epoch_of(parameters: Train, eeg: torch.Tensor, embeddings: torch.Tensor) -> Callable[..., list[float]]:
    """What trains a model for an epoch."""
    return Stack([ContrastiveModel(SIZES, parameters)], parameters, 8, eeg, embeddings, [torch.Generator()]).epoch


def speed() -> dict[str, float]:
    """Samples a second of both on the same part of an epoch, and our shares of time."""
    parameters, (eeg, embeddings) = recipe(), simulated(PART)
    epoch = epoch_of(parameters, eeg, embeddings)
    plain = PlainModel(17, 100, 768)
    made = optimizers(plain, parameters.learning_rate, (4, 2), 100)

    def ours() -> None:
        order = torch.randperm(PART)[None]
        epoch(order, order)

    def plainly() -> None:
        list(train_epoch(plain, made, eeg, embeddings, parameters.batch_size))

    times: dict[str, list[float]] = {"plain": [], "ours": []}
    ours(), plainly()  # warm up
    for _ in range(ROUNDS):
        for name, run in (("plain", plainly), ("ours", ours)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    rates = {name: PART / statistics.median(seconds) for name, seconds in times.items()}
    print(f"plain layers, DataLoader: {rates['plain']:7.0f} samples/s\nours:{rates['ours']:28.0f} samples/s")
    print(f"ratio:{rates['ours'] / rates['plain']:27.1f} x")
    with contextlib.ExitStack() as stack:
        for owner, name, label in LABELS:
            labelled = record_function(label)(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, labelled))
        profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        for _ in range(ROUNDS):
            ours()
    shares = _shares(profiler)
    for name, share in sorted(shares.items(), key=lambda item: -item[1])[:16]:
        print(f"  {share:6.1%} {name}")
    other = sum(share for name, share in shares.items() if not _is_mathematics(name))
    print(f"outside convolution, matrix product, normalisation and activation: {other:.1%}")
    return {"train_vs_plain": rates["ours"] / rates["plain"], "train_overhead_share": other}


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
    epoch, order = epoch_of(parameters, eeg, embeddings), torch.randperm(FULL)[None]
    start = time.perf_counter()
    epoch(order, target[order])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"an epoch of {FULL} samples: {seconds:.1f} s, {FULL / seconds:.0f} samples/s, peak {peak:.0f} MB")
    print(f"the recipe of {parameters.epochs} epochs: {parameters.epochs * seconds / 60:.0f} minutes")
    return {"train_epoch_full_size_s": seconds, "train_full_size_peak_rss_mb": peak}


def planted(noise: float) -> tuple[Samples, torch.Tensor]:
    """800 images x 2 subjects: the EEG is a smooth mixture of 20 latents of the image, and so is its embedding."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((800, 20))
    embeddings = latents @ rng.standard_normal((20, 768)) + 0.5 * rng.standard_normal((800, 768))
    response = np.cumsum(rng.standard_normal((2, 20, 17, 100)), axis=3) / 30
    eeg = np.concatenate([np.einsum("nd,dct->nct", latents, response[subject]) for subject in range(2)])
    eeg += noise * rng.standard_normal(eeg.shape)
    samples = Samples(
        eeg=torch.from_numpy(eeg).float(),
        target=torch.arange(800).repeat(2),
        subject=np.repeat(["sub-01", "sub-02"], 800),
        things_concept=np.tile(np.repeat(np.arange(160).astype(str), 5), 2),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings).float()


def parity(epochs: int = 8, seeds: int = 5, noise: float = 3.0) -> None:
    """Validation loss and top-1 of both after each epoch: mean over seeds, and the difference in standard errors."""
    parameters = recipe(
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
    curves: dict[str, list[np.ndarray]] = {"plain": [], "ours": []}
    for seed in range(seeds):
        seeds_of_run = derive_seeds(seed, "pooled")
        history = train(samples, rows, selection, embeddings, parameters, seeds_of_run, CPU).history
        curves["ours"].append(history[["selection_loss", "selection_top1"]].to_numpy())
        torch.manual_seed(1000 + seed)
        model = PlainModel(17, 100, 768)
        made = optimizers(model, parameters.learning_rate, (4, 2), epochs)
        curve = []
        for _ in range(epochs):
            list(train_epoch(model, made, samples.eeg[rows], embeddings[samples.target[rows]], parameters.batch_size))
            model.eval()
            with torch.inference_mode():
                logits = [model(selection.eeg[g], embeddings[selection.target[g]]) for g in galleries]
            scale = model.log_scale.exp().item()
            scores = [retrieval_metrics(gallery / scale, scale, top_k=[1]) for gallery in logits]
            curve.append([np.mean([score[name] for score in scores]) for name in ("nice_loss", "top1_acc")])
        curves["plain"].append(np.array(curve))
        last = (f"{name} {rows[-1][-1][0]:.3f} {rows[-1][-1][1]:.3f}" for name, rows in curves.items())
        print(f"seed {seed}, loss and top-1 of the last epoch: {', '.join(last)}", flush=True)
    plain, ours = (np.stack(curves[name]) for name in ("plain", "ours"))  # (seeds, epochs, 2)
    errors = np.sqrt(plain.var(0, ddof=1) / seeds + ours.var(0, ddof=1) / seeds)
    print("epoch  loss plain    ours diff/se   top-1 plain    ours diff/se")
    for epoch in range(epochs):
        means = plain[:, epoch].mean(0), ours[:, epoch].mean(0)
        z = (means[1] - means[0]) / errors[epoch]
        columns = [f"{means[0][i]:{w}.3f} {means[1][i]:7.3f} {z[i]:7.2f}" for i, w in ((0, 10), (1, 11))]
        print(f"{epoch + 1:5}  {'   '.join(columns)}")


def main() -> None:
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, CPU")
    if sys.argv[1:] == ["parity"]:
        parity()
        return
    write_latest(speed() | full_size())


if __name__ == "__main__":
    main()
