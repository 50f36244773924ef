"""Models of one recipe, trained at once: many fill a GPU, which one model leaves nearly idle.

The weights of M models are tensors with a leading axis M, and a step is the step of one model,
mapped over that axis by torch.func.vmap. The models share nothing, so that each ends with the
weights that it would have alone. On a GPU a step is captured as a CUDA graph (`cuda_graph`).
Optimizer, moving average and clipping of M models are those of one: they treat each value, or each
model, by itself.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from pipeline.eeg_encoders.encoder import Dropout, draw_bits, drop
from pipeline.retrieval import symmetric_cross_entropy
from pipeline.sections import Train
from pipeline.train.cuda_graph import CapturedStep
from pipeline.train.model import ContrastiveModel, stackable
from pipeline.train.optim import clip_gradients, make_optimizer


class Stack:
    """M models that differ in their weights alone: optimizer, moving average of weights, and data.

    The batches come from `eeg` (N, C, T) and `targets` (images, D) or (images, K, D), on one
    device. `generators`, one a model and on that device, draw what `Dropout` drops. More than one
    model must be `stackable`; a model that is not draws from torch's global generator.
    """

    def __init__(
        self,
        models: Sequence[ContrastiveModel],
        recipe: Train,
        n_steps: int,
        eeg: Tensor,
        targets: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.recipe = recipe
        self.eeg = eeg
        self.targets = targets
        self.generators = generators
        self.n_models = len(models)

        # `model` has the layers; the weights of all models are beside it
        self.model = copy.deepcopy(models[0])
        self.model.eeg_encoder.stacked = self.n_models > 1
        self._weights, self._buffers = stack_module_state(list(models))
        self._optimizer, self._schedule = make_optimizer(self._weights, recipe, eeg.device)

        values = self._values()
        # Values that are no floating point numbers are shared with the buffers, and not averaged
        self._averaged = copy.deepcopy(models[0])
        self._averages: dict[str, Tensor] = {}
        for name in self.model.state_dict():
            value = values[name].detach()
            self._averages[name] = value.clone() if value.is_floating_point() else value

        # The average is over some `average_epochs` of `n_steps`; with `none`, over the last step
        if recipe.average_epochs == "none":
            self._new_share = 1.0
        else:
            self._new_share = 1 - math.exp(-1 / (recipe.average_epochs * n_steps))
        self._steps_done = 0

        # What Dropout multiplies with is handed in, by the name of its buffer
        self._dropout_units: dict[str, int] = {}
        if stackable(recipe):
            for name, module in self.model.named_modules():
                if isinstance(module, Dropout):
                    self._dropout_units[f"{name}.factors"] = module.n_units

        self._captured_step: CapturedStep | None = None
        if eeg.is_cuda and stackable(recipe):
            self._captured_step = CapturedStep(self._step, self._optimizer.zero_grad)

    def epoch(self, eeg_rows: Tensor, target_rows: Tensor) -> list[float]:
        """One pass over all samples of each model, in batches; returns the mean loss of each.

        `eeg_rows` (M, n) int64 are in the order of the samples, or (M, n, R) where a sample is the
        mean of R rows without those that are -1; `target_rows` are (M, n). Waits for the device
        once.
        """
        losses = []
        size = self.recipe.batch_size
        batches = zip(eeg_rows.split(size, 1), target_rows.split(size, 1), strict=True)
        for batch_rows, batch_targets in batches:
            n = batch_targets.shape[1]
            if n < 2:  # one sample has no other to differ from, and no variance
                continue

            # A graph has one size of batch; the last one may be smaller
            step = self._captured_step if self._captured_step and n == size else self._step
            loss = step(batch_rows, batch_targets, *self._draw_factors(n))
            losses.append(loss.clone())

        self._schedule.step()
        return torch.stack(losses).mean(0).tolist()

    def averaged(self, m: int) -> ContrastiveModel:
        """Model m with the moving average of its weights and of BatchNorm's statistics.

        The same object in each call, with other values.
        """
        self._averaged.load_state_dict(self.averaged_weights(m))
        return self._averaged

    def averaged_weights(self, m: int) -> dict[str, Tensor]:
        return {name: average[m] for name, average in self._averages.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": self._values(),
            "averages": self._averages,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "steps_done": self._steps_done,
            "random": [generator.get_state() for generator in self.generators],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in self._values().items():
            value.copy_(state["values"][name])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])

        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._steps_done = state["steps_done"]
        for generator, saved in zip(self.generators, state["random"], strict=True):
            generator.set_state(saved.cpu())

    def _values(self) -> dict[str, Tensor]:
        return {**self._weights, **self._buffers}

    def _draw_factors(self, n: int) -> list[Tensor]:
        """For each `Dropout` the factors (M, n, n_units) of a batch of n."""
        sizes = [n * n_units for n_units in self._dropout_units.values()]
        if not sizes:
            return []

        device = self.eeg.device
        bits = [draw_bits(sum(sizes), device, generator) for generator in self.generators]
        factors = drop(torch.stack(bits), self.recipe.dropout)
        return [part.unflatten(1, (n, -1)) for part in factors.split(sizes, 1)]

    def _step(self, eeg_rows: Tensor, target_rows: Tensor, *factors: Tensor) -> Tensor:
        """One step of all models; returns the loss of each, (M,)."""
        dtype = self.model.log_scale.dtype
        shape = target_rows.shape  # (M, n)
        eeg = read_eeg(self.eeg, eeg_rows.flatten(0, 1), dtype).unflatten(0, shape)
        targets = self.targets.index_select(0, target_rows.flatten()).to(dtype)

        losses = symmetric_cross_entropy(self._logits(eeg, targets.unflatten(0, shape), factors))

        self._optimizer.zero_grad()
        losses.sum().backward()
        if self.recipe.gradient_clip != "none":
            gradients = [w.grad for w in self._weights.values() if w.grad is not None]
            clip_gradients(gradients, self.recipe.gradient_clip)
        self._optimizer.step()
        self._update_averages()
        return losses.detach()

    def _logits(self, eeg: Tensor, targets: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """(M, n, n) of EEG (M, n, C, T) and targets (M, n, D) or (M, n, K, D)."""
        values = self._values() | dict(zip(self._dropout_units, factors, strict=True))
        self.model.train()
        in_bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(eeg.device.type, torch.bfloat16, enabled=in_bfloat16):
            if self.n_models > 1:
                return vmap(self._logits_of_one)(values, eeg, targets)
            first = {name: value.squeeze(0) for name, value in values.items()}
            return self._logits_of_one(first, eeg[0], targets[0])[None]

    def _logits_of_one(self, values: dict[str, Tensor], eeg: Tensor, targets: Tensor) -> Tensor:
        return functional_call(self.model, values, (eeg, targets))

    @torch.no_grad()
    def _update_averages(self) -> None:
        new_share = 1.0 if self._steps_done == 0 else self._new_share
        averages = {
            name: average for name, average in self._averages.items() if average.is_floating_point()
        }
        values = self._values()
        new_values = [values[name] for name in averages]
        torch._foreach_lerp_(list(averages.values()), new_values, new_share)
        self._steps_done += 1


def read_eeg(eeg: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """EEG (B, C, T) of rows (B,), or the mean over rows (B, R) without those that are -1."""
    if rows.ndim == 1:
        # index_select copies rows whole, twice as fast as eeg[rows]
        return eeg.index_select(0, rows).to(dtype)
    return mean_responses(eeg, rows)


def mean_responses(eeg: Tensor, rows: Tensor) -> Tensor:
    """The mean over rows (B, R) of EEG (M, C, T), without rows that are -1: (B, C, T) float32."""
    total = torch.zeros(len(rows), *eeg.shape[1:], device=eeg.device)
    for row in rows.unbind(1):
        is_row = (row >= 0)[:, None, None]
        total += eeg.index_select(0, row.clamp(min=0)).float() * is_row
    return total / (rows >= 0).sum(1)[:, None, None]
