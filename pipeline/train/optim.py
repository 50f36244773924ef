"""The optimizer of the recipe and its learning rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.sections import Train

# The rate of the block weights, times that of the projectors. Adam moves a logit by at most about
# the rate a step, and the softmax needs some 3 for a weight near 1, which small data and low rates
# would not reach (docs/protocols.md).
BLOCK_RATE = 10

# Values of one model in a piece of a weight. torch's fused kernels take one block of threads for
# each 65,536 values of a tensor, so that a GPU updates a few large weights with a few blocks
PIECE = 8192


class Pieces:
    """The weights as a GPU's optimizer has them: in pieces that share their memory.

    On a CPU a weight is one piece, itself.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self._weights = weights
        self.by_name = {name: [weight] for name, weight in weights.items()}
        self._are_weights = device.type != "cuda"
        if not self._are_weights:
            self.by_name = {name: _split(weight.detach()) for name, weight in weights.items()}

    def take_gradients(self) -> None:
        """Give each piece its part of the weight's gradient."""
        if self._are_weights:
            return
        for name, weight in self._weights.items():
            parts = [None] * len(self.by_name[name]) if weight.grad is None else _split(weight.grad)
            for piece, gradient in zip(self.by_name[name], parts, strict=True):
                piece.grad = gradient

    def drop_gradients(self) -> None:
        """Free the memory of all gradients."""
        for name, weight in self._weights.items():
            weight.grad = None
            for piece in self.by_name[name]:
                piece.grad = None


def _split(weight: Tensor) -> list[Tensor]:
    """(M, ...) in pieces of PIECE values a model; without a copy."""
    return list(weight.view(-1).split(PIECE * len(weight)))


def make_optimizer(
    weights: Mapping[str, Sequence[Tensor]], recipe: Train, device: torch.device
) -> tuple[torch.optim.Optimizer, "Schedule"]:
    """Adam or AdamW over two groups, the EEG encoder and the others, with a schedule for each.

    `weights` are the pieces of each parameter by its name in the model. Each group has its own
    warm-up. Block weights are a third group with BLOCK_RATE and no weight decay, which would make
    them equal.
    """
    parts: dict[str, list[Tensor]] = {"eeg_encoder": [], "others": [], "block_mix": []}
    for name, pieces in weights.items():
        part = name.partition(".")[0]
        parts[part if part in parts else "others"] += pieces

    rate = recipe.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": parts["eeg_encoder"], "lr": rate},
        {"params": parts["others"], "lr": rate},
    ]
    warmups = [recipe.warmup_epochs_eeg_encoder, recipe.warmup_epochs_projectors]
    if parts["block_mix"]:
        groups.append({"params": parts["block_mix"], "lr": BLOCK_RATE * rate, "weight_decay": 0.0})
        warmups.append(recipe.warmup_epochs_projectors)

    peaks = [group["lr"] for group in groups]
    on_gpu = device.type == "cuda"
    if on_gpu:
        # A captured step reads the rate anew from a tensor; a number would be fixed in the graph
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=device)

    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = kinds[recipe.optimizer](
        groups,
        betas=tuple(recipe.betas),
        weight_decay=recipe.weight_decay,
        fused=True,
        capturable=on_gpu,
    )
    shares = [_share_of_peak(recipe, warmup) for warmup in warmups]
    return optimizer, Schedule(optimizer, peaks, shares)


class Schedule:
    """Sets the learning rate of each group of an optimizer, epoch by epoch.

    torch's LambdaLR does the same. But it and its optimizer refer to each other, so that the memory
    of a finished training is not free before the garbage collector has looked at everything.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        peaks: Sequence[float],
        shares: Sequence[Callable[[int], float]],
    ) -> None:
        self._optimizer = optimizer
        self._peaks = peaks
        self._shares = shares
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the rates of this epoch, counted from 0."""
        groups = self._optimizer.param_groups
        for group, peak, share in zip(groups, self._peaks, self._shares, strict=True):
            rate = peak * share(epoch)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _share_of_peak(recipe: Train, warmup: int) -> Callable[[int], float]:
    """The share of the peak rate in each epoch, from 0.

    Linear from `warmup_start` in `warmup` epochs, then a cosine to the final rate in
    `cosine_epochs`, and that rate for the epochs that are left.
    """
    floor = recipe.final_learning_rate / recipe.learning_rate
    cosine_epochs = recipe.epochs - warmup
    if recipe.cosine_epochs != "rest":
        cosine_epochs = recipe.cosine_epochs

    def share(epoch: int) -> float:
        if epoch < warmup:
            return recipe.warmup_start + (1 - recipe.warmup_start) * epoch / warmup
        progress = min(1.0, (epoch - warmup) / max(1, cosine_epochs))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return share


def clip_gradients(gradients: Sequence[Tensor], largest_norm: float) -> None:
    """Scale the gradients (M, ...) of each of M models so that their common norm is not larger.

    For one model it is torch.nn.utils.clip_grad_norm_.
    """
    norms = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
    norm = torch.stack(norms).norm(dim=0)  # (M,)

    share = (largest_norm / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)))
