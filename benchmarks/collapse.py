"""Why a run collapses to one embedding for all EEG, and what prevents it: 10 seeds at each strength of the signal.

    python -m benchmarks.collapse [SEEDS]     # 150 runs with 10 seeds, a quarter of an hour on two free cores

Simulated (benchmarks/simulated.py): 6,000 images of one subject, 8 channels x 72 samples; the test has 200 images.
Every run is the recipe as published but for 12 epochs, the selection on held-out concepts, and what its row names.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest import mock

import numpy as np
import pandas as pd
import torch

from benchmarks.simulated import embed, published, similarities, simulate, start_as_torch
from pipeline.retrieval import retrieval_metrics
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

N_TEST = 200
VARIANTS = {
    "published": {},
    "torch's start": {"start": "torch"},
    "standardise_eeg": {"standardise_eeg": True},
    "start_temperature 0.2": {"start_temperature": 0.2},
    "gradient_clip 1": {"gradient_clip": 1.0},
    "learning_rate 0.002": {"learning_rate": 0.002},
}
# (variant, signal, common): both starts and the remedy at three strengths, why, and what else might help.
CASES = [(variant, signal, 7.0) for signal in (0.07, 0.2, 0.5) for variant in list(VARIANTS)[:3]]
CASES += [("published", 0.07, common) for common in (0.0, 1.8, 14.0)]
CASES += [(variant, 0.07, 7.0) for variant in list(VARIANTS)[3:]]


def run(case: tuple[str, float, float], seed: int) -> dict:
    torch.set_num_threads(1)
    variant, signal, common = case
    sizes = {
        "n_subjects": 1,
        "n_concepts": 750,
        "per_concept": 8,
        "n_test": N_TEST,
        "shape": (8, 72),
    }
    data = simulate(0, signal=signal, common=common, **sizes, subject_spread=0)
    embeddings, seeds = embed(data, 0, 2.0), derive_seeds(seed, "pooled")
    mask = held_out(data.samples.things_concept, 0.1, seeds.concepts)
    selection, rows = data.samples.take(np.flatnonzero(mask)), np.flatnonzero(~mask)
    changes = {"select_on": "validation", "projection_size": 256, "epochs": 12} | VARIANTS[variant]
    with start_as_torch() if changes.pop("start", None) else mock.MagicMock():
        trained = train(
            Setup(data.samples, embeddings, published(**changes), torch.device("cpu")),
            Partition(seeds, rows, selection),
        )
    similarity = torch.from_numpy(similarities(trained.model, data.test_eeg[0], embeddings))
    scores = retrieval_metrics(similarity, trained.model.logit_scale.item(), top_k=[1])
    made = {
        "seed": seed,
        "collapsed": trained.collapsed,
        "spread": trained.history["spread"].iloc[-1],
    }
    return made | {"top1": scores["top1_acc"], "loss": scores["nice_loss"]}


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"{seeds} seeds; chance: top-1 {1 / N_TEST}, loss {np.log(N_TEST):.3f}")
    print(
        f"{'variant':22} {'signal':>6} {'common':>6} {'collapsed':>9} {'spread':>6} {'top-1 (sd)':>15} {'loss':>6}"
    )
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        futures = [[pool.submit(run, case, seed) for seed in range(seeds)] for case in CASES]
        for (variant, signal, common), of_case in zip(CASES, futures, strict=True):
            runs = pd.DataFrame([future.result() for future in of_case])
            print(
                f"{variant:22} {signal:6} {common:6} {runs['collapsed'].mean():9.0%} {runs['spread'].mean():6.2f} "
                f"{runs['top1'].mean():7.3f} ({runs['top1'].std():.3f}) {runs['loss'].mean():6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
