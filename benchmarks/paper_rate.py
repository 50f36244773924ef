"""What the rate of the paper's code does, which params/paper keeps constant.

    python -m benchmarks.paper_rate        # eight minutes on one free core

Its code sets the rate after each epoch to 0.0002 x (1 + cos(pi v / 10)) / 2, where v is the loss of the validation.
Here v is that of held-out concepts, in galleries of 64 (the code: batches of 64), at the temperature of the recipe.

Simulated (benchmarks/simulated.py): 4 subjects, a model each with seeds of its own, 640 concepts x 6 images, 200-way,
50 epochs, which are 1,350 steps (published: 5,800). At four times the rate the weights go about as far as there.
"""

import math
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.simulated import Data, embed, published, similarities, simulate
from pipeline.retrieval import rank_of_match
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.measures import Measures
from pipeline.train.selection import held_out
from pipeline.train.stack import Stack
from pipeline.train.training import Partition, Setup

EPOCHS = 50
CASES = ((0.16, 0.0002), (0.32, 0.0002), (0.32, 0.0008))  # signal, and rate of the first epoch
N_SUBJECTS = 4
LEAST_RATE = 1e-7  # of the code
PERIOD = 10  # nats: the code's cosine begins anew where the loss has risen by so much


class FollowingRate(Measures):
    """Sets the rate of the next epoch, for each model by its validation, as the paper's code does."""

    shares: list[Tensor] = []  # of the peak rate, (M,) an epoch

    def of(self, stack: Stack, losses: Tensor) -> list[dict[str, float]]:
        rows = super().of(stack, losses)
        loss = torch.tensor([row["selection_loss"] for row in rows])
        share = (1 + torch.cos(math.pi * (loss % PERIOD) / PERIOD)) / 2
        least = LEAST_RATE / stack.recipe.learning_rate
        self.shares.append(least + (1 - least) * share)
        stack._optimizer.step = lambda: step(stack._optimizer, self.shares[-1])  # type: ignore[method-assign]
        return rows


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, share: Tensor) -> None:
    """A step at this share of the rate of each model: a step of AdamW is proportional to the rate, decay included."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.clone() for weight in weights]
    type(optimizer).step(optimizer)
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(old.lerp(weight, share.view(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)))


def run(follows: bool, data: Data, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 in % and the selected epoch of each subject, (S,) both."""
    samples, embeddings = data.samples, embed(data, 0, 2.0)
    partitions = []
    for subject in np.unique(samples.subject):
        seeds = derive_seeds(0, subject)
        rows = np.flatnonzero(samples.subject == subject)
        mask = held_out(samples.things_concept[rows], 0.1, seeds.concepts)
        partitions.append(Partition(seeds, rows[~mask], samples, rows[mask]))

    rates = {"learning_rate": rate, "final_learning_rate": rate}
    parameters = published("paper", epochs=EPOCHS, **rates)
    setup = Setup(samples, embeddings, parameters, torch.device("cpu"))
    with mock.patch("pipeline.train.loop.Measures", FollowingRate if follows else Measures):
        trained = train_together(setup, partitions)

    top1 = []
    for one, eeg in zip(trained, data.test_eeg, strict=True):
        similarity = torch.from_numpy(similarities(one.model, eeg, embeddings))
        top1.append(100 * (rank_of_match(similarity) == 1).double().mean().item())
    return np.array(top1), np.array([one.epoch for one in trained])


def compare(signal: float, rate: float) -> None:
    """Print a line: top-1 of both, their difference, and the rates that there were."""
    data = simulate(
        0,
        signal=signal,
        common=0.5,
        n_subjects=N_SUBJECTS,
        n_concepts=640,
        per_concept=6,
        n_test=200,
        shape=(4, 80),
        subject_spread=0,
    )
    FollowingRate.shares.clear()
    constant, constant_epoch = run(False, data, rate)
    following, following_epoch = run(True, data, rate)

    columns = (constant, following, following - constant)
    words = ", ".join(f"{values.mean():.1f} ({values.std(ddof=1):.1f})" for values in columns)
    shares = torch.stack(FollowingRate.shares).mean(1)
    print(
        f"signal {signal}, rate {rate}: constant, following, difference {words}; epochs "
        f"{constant_epoch.mean():.0f} and {following_epoch.mean():.0f}; share of the rate "
        f"{shares[0]:.2f}, at the end {shares[-1]:.2f}",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(1)
    print(f"{N_SUBJECTS} subjects, {EPOCHS} epochs; top-1 of 200 in %, mean (sd over subjects)")
    for signal, rate in CASES:
        compare(signal, rate)


if __name__ == "__main__":
    main()
