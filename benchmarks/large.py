"""EEG of the paper's size, 63 channels x 250 samples, nine times the release: memory, and what half precision costs.

    python -m benchmarks.large            # needs 5 GB of disk in the temporary folder, and 8 GB of memory

Simulated. Memory is that of a process which trains one fold of leave-one-subject-out, 9 x 16,540 samples stored as
float16. All of them are held, and measured as `standardise_eeg` does; its one epoch is cut to `STEPS` steps.
What evaluation takes at this size: `python -m benchmarks.evaluate large`. Accuracy: the same trainings on the same EEG
as float32 and as float16 (benchmarks/simulated.py: 8 subjects pooled, 100-way).
"""

import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks import write_latest
from benchmarks.simulated import embed, recipe, similarities, simulate
from pipeline.images.embeddings import read_embeddings, write_embeddings
from pipeline.params import read_params
from pipeline.retrieval import rank_of_match
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.samples import read_samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

SHAPE, N_SUBJECTS, D = (16_540, 63, 250), 9, 768
STEPS, BLOCK = 8, 1_654
SEEDS, SIGNALS = range(6), (0.12, 0.16, 0.22)


def make_inputs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([f"training_images/{i // 10:05}/{i}.jpg" for i in range(SHAPE[0])], dtype=object)
    for subject in (f"sub-{i:02}" for i in range(1, N_SUBJECTS + 1)):
        with h5py.File(folder / f"{subject}.h5", "w") as file:
            file.attrs.update({"subject": subject, "sfreq": 250.0, "caveats": []})
            file["ch_names"], file["times"] = (
                [f"channel {i}" for i in range(SHAPE[1])],
                np.arange(SHAPE[2]) / 250,
            )
            eeg = file.create_dataset("train/eeg", SHAPE, np.float16)
            for start in range(0, SHAPE[0], BLOCK):
                eeg[start : start + BLOCK] = rng.standard_normal((BLOCK, *SHAPE[1:]), np.float32)
            for name in ("image_ids", "concept", "things_concept"):
                file[f"train/{name}"] = (
                    ids if name == "image_ids" else [id.split("/")[1] for id in ids]
                )
    values = rng.standard_normal((SHAPE[0], D), np.float32)
    write_embeddings(folder / "embeddings", list(ids), [("last", values, {})], {})


def train_one_fold(folder: Path) -> tuple[int, float]:
    """Samples held, and the peak memory of this process in GB."""
    torch.set_num_threads(os.cpu_count() or 1)
    parameters = read_params(Path("params.yaml")).train.model_copy(update={"epochs": 1})
    cache = read_embeddings(folder / "embeddings", "last")
    samples = read_samples(sorted(folder.glob("*.h5")), "train", cache)
    mask = held_out(samples.things_concept, parameters.validation_concepts, 0)
    rows, selection = (
        np.flatnonzero(~mask)[: STEPS * parameters.batch_size],
        samples.take(np.flatnonzero(mask)),
    )
    values, seeds = torch.from_numpy(cache.values), derive_seeds(0, "without-sub-10")
    model = ContrastiveModel(ModelSizes(*SHAPE[1:], samples.sfreq, D), parameters)
    model.standardise(samples.eeg, torch.from_numpy(np.flatnonzero(~mask)))
    train(
        Setup(samples, values, parameters, torch.device("cpu")), Partition(seeds, rows, selection)
    )
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e9
    )
    return len(samples.eeg), peak


def top1(signal: float, seed: int) -> tuple[float, float]:
    """Of one training on float32 and one on float16, mean over 8 subjects, in percent."""
    torch.set_num_threads(1)
    data = simulate(0, signal=signal, common=2.0, n_subjects=8, n_concepts=100)
    embeddings, seeds = embed(data, 0, 2.0), derive_seeds(seed, "pooled")
    by_subject = data.samples.eeg.unflatten(0, (8, -1))
    mean, sd = by_subject.mean((1, 3), keepdim=True), by_subject.std((1, 3), keepdim=True)
    eeg, test = ((by_subject - mean) / sd).flatten(0, 1), (data.test_eeg - mean) / sd
    found = []
    for dtype in (torch.float32, torch.float16):
        samples = type(data.samples)(**vars(data.samples) | {"eeg": eeg.to(dtype)})
        mask = held_out(samples.things_concept, 0.1, seeds.concepts)
        selection, rows = samples.take(np.flatnonzero(mask)), np.flatnonzero(~mask)
        parameters = recipe(epochs=40)
        model = train(
            Setup(samples, embeddings, parameters, torch.device("cpu")),
            Partition(seeds, rows, selection),
        ).model
        ranks = [
            rank_of_match(torch.from_numpy(similarities(model, one.to(dtype), embeddings)))
            for one in test
        ]
        found.append(100 * torch.stack(ranks).eq(1).double().mean().item())
    return found[0], found[1]


def main() -> None:
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        started = time.perf_counter()
        with ProcessPoolExecutor(1, context) as pool:
            n, peak = pool.submit(train_one_fold, Path(name)).result()
        print(
            f"leave-one-subject-out, {n} samples of 63 x 250 in float16: peak {peak:.2f} GB", end=""
        )
        print(
            f" ({time.perf_counter() - started:.0f} s for reading, {STEPS} steps and one selection)"
        )
    write_latest({"train_large_peak_rss_gb": round(peak, 2)})
    print(f"{'signal':>6} {'float32':>8} {'float16':>8} {'difference (se over seeds)':>28}")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        for signal in SIGNALS:
            pairs = np.array(list(pool.map(top1, [signal] * len(SEEDS), SEEDS)))
            difference = pairs[:, 1] - pairs[:, 0]
            error = difference.std(ddof=1) / np.sqrt(len(SEEDS))
            means = f"{pairs[:, 0].mean():8.2f} {pairs[:, 1].mean():8.2f}"
            print(f"{signal:6} {means} {difference.mean():+18.2f} ({error:.2f})", flush=True)


if __name__ == "__main__":
    main()
