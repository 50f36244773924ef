"""What the rate of the paper's code does, which params/paper keeps constant.

    python -m benchmarks.paper_rate [SEEDS] [EPOCHS]        # a quarter of an hour on one free core with 5 and 50

Its code sets the rate after each epoch to 0.0002 x (1 + cos(pi v / 10)) / 2, where v is the loss of the validation.
Here v is that of held-out concepts, in galleries of 64 (the code: batches of 64), at the temperature of the recipe.

Simulated (benchmarks/simulated.py): one subject, 640 concepts x 6 images, 200-way, each seed with data of its own.
"""

import math
import sys
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.simulated import embed, published, similarities, simulate
from pipeline.retrieval import rank_of_match
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.measures import Measures
from pipeline.train.selection import held_out
from pipeline.train.stack import Stack
from pipeline.train.training import Partition, Setup

SIGNALS = (0.12, 0.16, 0.24)
LEAST_RATE = 1e-7  # of the code
PERIOD = 10  # nats: the code's cosine begins anew where the loss has risen by so much


class FollowingRate(Measures):
    """Sets the rate of the next epoch by the loss of the validation, as the paper's code does."""

    shares: list[float] = []

    def of(self, stack: Stack, losses: Tensor) -> list[dict[str, float]]:
        [row] = super().of(stack, losses)
        share = (1 + math.cos(math.pi * (row["selection_loss"] % PERIOD) / PERIOD)) / 2
        self.shares.append(share)
        for group in stack._optimizer.param_groups:
            group["lr"] = LEAST_RATE + (stack.recipe.learning_rate - LEAST_RATE) * share
        return [row]


def run(follows: bool, signal: float, seed: int, epochs: int) -> tuple[float, int]:
    """Top-1 in % and the epoch selected."""
    sizes = {"n_subjects": 1, "n_concepts": 640, "n_test": 200, "shape": (4, 80), "per_concept": 6}
    data = simulate(seed, signal=signal, common=0.5, **sizes)
    embeddings, seeds = embed(data, seed, 2.0), derive_seeds(seed, "pooled")
    mask = held_out(data.samples.things_concept, 0.1, seeds.concepts)
    selection = data.samples.take(np.flatnonzero(mask))
    with mock.patch("pipeline.train.loop.Measures", FollowingRate if follows else Measures):
        [trained] = train_together(
            Setup(data.samples, embeddings, published("paper", epochs=epochs), torch.device("cpu")),
            [Partition(seeds, np.flatnonzero(~mask), selection)],
        )
    similarity = torch.from_numpy(similarities(trained.model, data.test_eeg[0], embeddings))
    return 100 * (rank_of_match(similarity) == 1).double().mean().item(), trained.epoch


def main() -> None:
    n_seeds, epochs = (int(word) for word in [*sys.argv[1:], "5", "50"][:2])
    torch.set_num_threads(1)
    print(f"{n_seeds} seeds, {epochs} epochs; top-1 of 200 in %, mean and sd over seeds")
    for signal in SIGNALS:
        FollowingRate.shares.clear()
        constant, following = (
            np.array([run(follows, signal, seed, epochs) for seed in range(n_seeds)])
            for follows in (False, True)
        )
        report(signal, constant, following)


def report(signal: float, constant: np.ndarray, following: np.ndarray) -> None:
    """A line of both, (seeds, 2): top-1 and epoch; their difference, and the rates that there were."""
    columns = (constant[:, 0], following[:, 0], following[:, 0] - constant[:, 0])
    words = [f"{values.mean():+6.1f} ({values.std(ddof=1):4.1f})" for values in columns]
    epochs = f"{constant[:, 1].mean():.0f} and {following[:, 1].mean():.0f}"
    shares = f"{min(FollowingRate.shares):.2f} to {max(FollowingRate.shares):.2f}"
    print(
        f"signal {signal}: constant, following, difference {', '.join(words)}; epochs {epochs}; "
        f"share of the rate {shares}",
        flush=True,
    )


if __name__ == "__main__":
    main()
