"""What the order of averaging and normalising does where test images are shown 12 times, as in THINGS-MEG.

    python -m benchmarks.order [SEEDS]        # two minutes on one free core with 3

Simulated (benchmarks/simulated.py): one subject, 300 concepts x 4 images in single trials, and 100 test images of 12
trials each; a dataset a seed; 40 epochs by params.yaml. A model learns the normalised trials once, and is tested on
both: each test trial normalised, and then the mean of 12 (`trial`); the mean of 12, and then that normalised
(`average`).
"""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.simulated import embed, pink, recipe, similarities, simulate
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import rank_of_match
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.selection import held_out, mean_loss
from pipeline.train.training import Partition, Setup

SIGNALS = (0.06, 0.09, 0.12)
N_TRIALS = 12


def make_trials(average: Tensor, seed: int) -> Tensor:
    """Trials (N, R, C, T) around their average (N, C, T), each with noise of unit variance."""
    shape = (len(average), N_TRIALS, *average.shape[1:])
    noise = pink(np.random.default_rng([3, seed]), *shape)
    noise -= noise.mean(axis=1, keepdims=True)
    return average[:, None] + torch.from_numpy(noise).float()


def run(signal: float, seed: int) -> list[dict[str, float]]:
    """Figures of both orders; `norm` is that of a channel, and `of training` that of a training trial."""
    data = simulate(
        seed,
        signal=signal,
        common=0.3,
        n_subjects=1,
        n_concepts=300,
        per_concept=4,
        subject_spread=0.0,
    )
    samples = replace(data.samples, to_normalise=True)
    embeddings = embed(data, seed, 0.3)
    seeds = derive_seeds(seed, "pooled")
    mask = held_out(samples.things_concept, 0.1, seeds.concepts)
    rows = np.arange(len(mask))
    partition = Partition(seeds, rows[~mask], samples, rows[mask])
    setup = Setup(samples, embeddings, recipe(epochs=40), torch.device("cpu"))
    model = train(setup, partition).model

    trials = make_trials(data.test_eeg[0], seed)
    norm_in_training = normalise(samples.eeg).norm(dim=-1).mean().item()
    figures = []
    for order, eeg in (
        ("trial", normalise(trials).mean(1)),
        ("average", normalise(trials.mean(1))),
    ):
        cosines = torch.from_numpy(similarities(model, eeg, embeddings))
        figures.append(
            {
                "order": order,
                "norm": eeg.norm(dim=-1).mean().item(),
                "of training": norm_in_training,
                "top1": 100 * (rank_of_match(cosines) == 1).double().mean().item(),
                "nice_loss": mean_loss(cosines[None], model.logit_scale.detach()).item(),
            }
        )
    return figures


def main(n_seeds: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for signal in SIGNALS:
        for seed in range(n_seeds):
            figures_of_orders = run(signal, seed)
            rows += [{"signal": signal, "seed": seed} | figures for figures in figures_of_orders]

    table = pd.DataFrame(rows)
    grouped = table.drop(columns="seed").groupby(["signal", "order"], sort=False)
    print(grouped.mean().round(3))

    wide = table.pivot(index=["signal", "seed"], columns="order", values="top1")
    difference = (wide["average"] - wide["trial"]).groupby("signal")
    print("top-1, average less trial:", difference.agg(["mean", "std"]).round(2), sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
