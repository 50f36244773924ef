"""What the order of averaging and normalising does where test images are shown 12 times, as in THINGS-MEG.

    python -m benchmarks.order [SEEDS]        # four minutes on one free core with 3

Simulated (benchmarks/simulated.py): one subject, 300 concepts x 4 images in single trials, and 100 test images of 12
trials each; a dataset a seed; 40 epochs, by the rest of params.yaml and of params/paper, its encoder `nice-recipe`. A model learns the normalised trials once, and is tested on both: each test trial
normalised, and then the mean of 12 (`trial`); the mean of 12, and then that normalised (`average`).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from benchmarks.simulated import embed, pink, recipe, similarities, simulate
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import rank_of_match
from pipeline.sections import Train
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.selection import held_out, mean_loss
from pipeline.train.training import Partition, Setup

SIGNALS = (0.06, 0.09, 0.12)
N_TRIALS = 12
SMALL = {"epochs": 40, "eeg_encoder": "nice-recipe"}


def paper() -> Train:
    """params/paper, with the encoder that these small data allow."""
    words = Path("params/paper").read_text().replace("-S ", "").split()
    values = dict(word.removeprefix("train.").split("=") for word in words if "train." in word)
    chosen = {key: yaml.safe_load(value) for key, value in values.items()}
    return recipe(**chosen | SMALL)


def make_trials(average: Tensor, seed: int) -> Tensor:
    """Trials (N, R, C, T) around their average (N, C, T), each with noise of unit variance."""
    shape = (len(average), N_TRIALS, *average.shape[1:])
    noise = pink(np.random.default_rng([3, seed]), *shape)
    noise -= noise.mean(axis=1, keepdims=True)
    return average[:, None] + torch.from_numpy(noise).float()


def run(signal: float, parameters: Train, seed: int) -> list[dict[str, float]]:
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
    model = train(Setup(samples, embeddings, parameters, torch.device("cpu")), partition).model

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
    for name, parameters in (("default", recipe(**SMALL)), ("paper", paper())):
        for signal in SIGNALS:
            for seed in range(n_seeds):
                rows += [
                    {"recipe": name, "signal": signal, "seed": seed} | figures
                    for figures in run(signal, parameters, seed)
                ]
    table = pd.DataFrame(rows)
    grouped = table.drop(columns="seed").groupby(["recipe", "signal", "order"], sort=False)
    print(grouped.mean().round(3))
    wide = table.pivot_table(index=["recipe", "signal", "seed"], columns="order", values="top1")
    difference = (wide["average"] - wide["trial"]).groupby(["recipe", "signal"], sort=False)
    print("top-1, average less trial:", difference.agg(["mean", "std"]).round(2), sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
