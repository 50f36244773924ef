"""What makes two seeds differ, and what makes them differ less: 8 seeds a row, at three strengths of the signal.

    python -m benchmarks.seeds [SEEDS]        # half an hour on two free cores with 8

Simulated (benchmarks/simulated.py): 8 subjects, pooled, 100 concepts x 4 images, test 100-way, 40 epochs; one dataset,
so that nothing but the seeds differs. `published` is params/recipe, but with concepts held out to select the epoch, and
`now` params.yaml. `only ...`: one of the four things that a seed decides varies, the others stay. `three seeds`: the
similarities of three runs are averaged before they are ranked; its time is that of three runs.
"""

import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from unittest import mock

import numpy as np
import torch

from benchmarks.simulated import embed, published, recipe, similarities, simulate, start_as_torch
from pipeline.retrieval import rank_of_match
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

SIGNALS = (0.12, 0.16, 0.22)
FACTORS = ("concepts", "start", "order", "dropout")
HELD_OUT = {"select_on": "validation"}
NOW = {"of": recipe, **HELD_OUT}
STANDARDISED = {"of": published, "standardise_eeg": True, **HELD_OUT}
ALWAYS = {
    "published": {"of": published, **HELD_OUT},
    "published, torch's start": {"of": published, "start": "torch", **HELD_OUT},
    "standardised": STANDARDISED,
    "standardised, torch's start": STANDARDISED | {"start": "torch"},
    "+ last epoch": STANDARDISED | {"select_on": "last"},
    "+ fitted temperature": STANDARDISED | {"selection_temperature": "fitted"},
    "+ average 2": STANDARDISED | {"average_epochs": 2.0},
    "+ rate 0.002": STANDARDISED | {"learning_rate": 0.002},
    "+ rate 0.002, average 2": STANDARDISED | {"learning_rate": 0.002, "average_epochs": 2.0},
    "now": NOW,
    "now, last epoch": NOW | {"select_on": "last"},
    "now, torch's start": NOW | {"start": "torch"},
    "now, not standardised": NOW | {"standardise_eeg": False},
}
ONCE = {
    **{f"standardised, only {factor}": STANDARDISED | {"only": factor} for factor in FACTORS},
    "standardised, fixed epoch": STANDARDISED | {"fixed": True},
    **{f"now, only {factor}": NOW | {"only": factor} for factor in FACTORS},
    "now, fixed epoch": NOW | {"fixed": True},
    "now, average 5": NOW | {"average_epochs": 5.0},
    "now, rate 0.001": NOW | {"learning_rate": 0.001},
}  # at the middle strength


def run(signal: float, variant: str, seed: int) -> tuple[np.ndarray, float, int, bool]:
    """Similarities (S, N, N), seconds, the epoch selected, and whether the run collapsed."""
    torch.set_num_threads(1)
    changes = (ALWAYS | ONCE)[variant].copy()
    of, only, start, fixed = (changes.pop(name, None) for name in ("of", "only", "start", "fixed"))
    parameters = of(epochs=40, projection_size=64, **changes)
    data = simulate(0, signal=signal, common=2.0, n_subjects=8, n_concepts=100)
    embeddings, seeds = embed(data, 0, 2.0), derive_seeds(seed, "pooled")
    if only:
        seeds = replace(derive_seeds(0, "pooled"), **{only: getattr(seeds, only)})
    mask = held_out(data.samples.things_concept, 0.1, seeds.concepts) & (
        parameters.select_on == "validation"
    )
    selection = data.samples.take(np.flatnonzero(mask)) if mask.any() and not fixed else None
    with start_as_torch() if start else mock.MagicMock():
        began = time.monotonic()
        trained = train(
            Setup(data.samples, embeddings, parameters, torch.device("cpu")),
            Partition(seeds, np.flatnonzero(~mask), selection),
        )
        seconds = time.monotonic() - began
    found = np.stack([similarities(trained.model, eeg, embeddings) for eeg in data.test_eeg])
    return found, seconds, trained.epoch, trained.collapsed


def top1(similarity: np.ndarray) -> float:
    """Mean over subjects, in percent."""
    return 100 * float((rank_of_match(torch.from_numpy(similarity)) == 1).double().mean())


def report(
    name: str, signal: float, scores: list[float], runs: list[tuple], times: int = 1
) -> None:
    epoch, seconds = (np.mean([one[i] for one in runs]) for i in (2, 1))
    print(
        f"{name:28} {signal:6} {np.mean(scores):6.1f} {np.std(scores, ddof=1):5.2f} {min(scores):6.1f} "
        f"{max(scores):6.1f} {epoch:5.1f} {times * seconds:5.1f} {sum(one[3] for one in runs):9}",
        flush=True,
    )


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    print(
        f"{seeds} seeds; top-1 of 100 in %, mean over 8 subjects; sd over seeds in points; seconds on one core"
    )
    print(
        f"{'':28} {'signal':>6} {'top-1':>6} {'sd':>5} {'least':>6} {'most':>6} {'epoch':>5} {'s':>5} collapsed"
    )
    rows = [(name, signal) for name in ALWAYS for signal in SIGNALS] + [
        (name, SIGNALS[1]) for name in ONCE
    ]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs: dict[tuple[str, float], list[Future]] = {
            (name, signal): [pool.submit(run, signal, name, seed) for seed in range(seeds)]
            for name, signal in rows
        }
        for (name, signal), futures in jobs.items():
            runs = [future.result() for future in futures]
            report(name, signal, [top1(one[0]) for one in runs], runs)
            if name in ("standardised", "now") and seeds >= 6:
                threes = [
                    [one[0] for one in runs[first : first + 3]] for first in range(0, seeds - 2, 3)
                ]
                report(
                    f"{name}, three seeds",
                    signal,
                    [top1(np.mean(three, axis=0)) for three in threes],
                    runs,
                    3,
                )


if __name__ == "__main__":
    main()
