"""Models of one recipe, trained at once: many fill a GPU, which one model leaves nearly idle.

The weights of M models are tensors with a leading axis M, and so are the batches. The formula is
that of one model (`model.py`), whose layers compute with such weights, so that a step of many takes
as many operations as a step of one. The models share nothing, so that each ends with the weights
that it would have alone. On a GPU a step is captured as a CUDA graph (`cuda_graph`). Optimizer,
moving average and clipping of M models are those of one: they treat each value, or each model, by
itself.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from pipeline.eeg_encoders.encoder import Dropout, draw_bits, drop
from pipeline.preprocess.normalisation import normalise
from pipeline.retrieval import symmetric_cross_entropy
from pipeline.sections import Train
from pipeline.train.cuda_graph import CapturedStep
from pipeline.train.model import ContrastiveModel, logits, stackable
from pipeline.train.optim import Pieces, clip_gradients, make_optimizer
from pipeline.train.projection import MOST_VALUES


class Stack:
    """M models that differ in their weights alone: optimizer, moving average of weights, and data.

    The batches come from `eeg` (N, C, T) and `targets` (images, D) or (images, K, D), on one
    device. `generators`, one a model and on that device, draw what `Dropout` drops. More than one
    model must be `stackable`; a model that is not draws from torch's global generator. With
    `to_normalise` each response is normalised, after its repetitions are averaged.
    """

    def __init__(
        self,
        models: Sequence[ContrastiveModel],
        recipe: Train,
        n_steps: int,
        eeg: Tensor,
        targets: Tensor,
        generators: Sequence[torch.Generator],
        to_normalise: bool = False,
    ) -> None:
        self.recipe = recipe
        self.eeg = eeg
        self.targets = targets
        self.generators = generators
        self.to_normalise = to_normalise
        self.n_models = len(models)

        # `model` has the layers; the weights of all models are beside it
        self.model = copy.deepcopy(models[0])
        self._weights, self._buffers = stack_module_state(list(models))
        learning = {name: w for name, w in self._weights.items() if w.requires_grad}
        self._pieces = Pieces(learning, eeg.device)
        self._optimizer, self._schedule = make_optimizer(self._pieces.by_name, recipe, eeg.device)

        # Other values are shared with the averages: frozen weights, and those that are no
        # floating point numbers
        values = self._values()
        names = list(self.model.state_dict())
        self._averaged = [
            name
            for name in names
            if values[name].is_floating_point() and (name in learning or name in self._buffers)
        ]
        self._averages: dict[str, Tensor] = {}
        for name in names:
            value = values[name].detach()
            self._averages[name] = value.clone() if name in self._averaged else value
        self._best = {name: average.clone() for name, average in self._averages.items()}

        # The average is over some `average_epochs` of `n_steps`; with `none`, over the last step
        if recipe.average_epochs == "none":
            self._new_share = 1.0
        else:
            self._new_share = 1 - math.exp(-1 / (recipe.average_epochs * n_steps))
        self._steps_done = 0
        self._epochs_done = 0

        # What Dropout multiplies with is handed in, by the name of its buffer
        self._is_stackable = stackable(recipe)
        self._dropout_units: dict[str, int] = {}
        if self._is_stackable:
            for name, module in self.model.named_modules():
                if isinstance(module, Dropout):
                    self._dropout_units[f"{name}.factors"] = module.n_units

        self._captured_step: CapturedStep | None = None
        if eeg.is_cuda and self._is_stackable:
            self._captured_step = CapturedStep(self._step, self._pieces.drop_gradients)

    def epoch(self, eeg_rows: Tensor, target_rows: Tensor) -> Tensor:
        """One pass over all samples of each model, in batches; returns the mean loss of each, (M,).

        `eeg_rows` (M, n) int64 are in the order of the samples, or (M, n, R) where a sample is the
        mean of R rows without those that are -1; `target_rows` are (M, n). Does not wait for the
        device.
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
            loss = step(batch_rows, batch_targets, *self._draw_bits(n))
            losses.append(loss.clone())

        self._epochs_done += 1
        self._schedule.set_epoch(self._epochs_done)
        return torch.stack(losses).mean(0)

    @torch.inference_mode()
    def project(
        self,
        eeg: Tensor,
        rows: Tensor,
        embeddings: Tensor,
        image_rows: Tensor,
        to_normalise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Responses and images as unit vectors (M, S, P), by the moving average of the weights.

        `rows` (M, S) are rows of EEG (N, C, T), and `image_rows` (M, S) rows of embeddings (N, D)
        or (N, K, D), for each model its own. With `to_normalise` the responses are normalised.
        """
        self.model.eval()
        values = self._buffers | self._averages
        n_at_once = max(self.recipe.batch_size, MOST_VALUES // (self.n_models * eeg[0].numel()))

        eeg_sides = []
        image_sides = []
        parts = zip(rows.split(n_at_once, 1), image_rows.split(n_at_once, 1), strict=True)
        for part_rows, part_images in parts:
            sides = self._embed(values, eeg, part_rows, embeddings, part_images, to_normalise)
            eeg_sides.append(sides[0])
            image_sides.append(sides[1])
        return torch.cat(eeg_sides, 1), torch.cat(image_sides, 1)

    @property
    def scales(self) -> Tensor:
        """1 / temperature of each model, (M,), by the moving average."""
        return self._averages["log_scale"].exp()

    @property
    def block_weights(self) -> Tensor:
        """The weight of each block in each model, (M, K), by the moving average."""
        return self._averages["block_mix.logits"].softmax(-1)

    @torch.no_grad()
    def keep(self, is_best: Tensor) -> None:
        """Remember the averages of the models that are now at their best, by a mask (M,)."""
        for name, best in self._best.items():
            mask = is_best.view(-1, *[1] * (best.ndim - 1))
            best.copy_(self._averages[name].where(mask, best))

    def best(self, m: int) -> dict[str, Tensor]:
        """The state of model m when it was last kept."""
        return {name: value[m] for name, value in self._best.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": self._values(),
            "averages": self._averages,
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "steps_done": self._steps_done,
            "epochs_done": self._epochs_done,
            "random": [generator.get_state() for generator in self.generators],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in self._values().items():
            value.copy_(state["values"][name])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
            self._best[name].copy_(state["best"][name])

        self._optimizer.load_state_dict(state["optimizer"])
        self._steps_done = state["steps_done"]
        self._epochs_done = state["epochs_done"]
        self._schedule.set_epoch(self._epochs_done)
        for generator, saved in zip(self.generators, state["random"], strict=True):
            generator.set_state(saved.cpu())

    def _values(self) -> dict[str, Tensor]:
        return {**self._weights, **self._buffers}

    def _draw_bits(self, n: int) -> list[Tensor]:
        """The random bits of all `Dropout` in a batch of n, as int16 (M, n * units); or nothing."""
        n_bits = n * sum(self._dropout_units.values())
        return [draw_bits(n_bits, self.eeg.device, self.generators)] if n_bits else []

    def _factors(self, bits: Sequence[Tensor], n: int) -> dict[str, Tensor]:
        """For each `Dropout` the factors (M, n, n_units) of a batch of n, by the buffer's name."""
        if not bits:
            return {}
        sizes = [n * n_units for n_units in self._dropout_units.values()]
        parts = drop(bits[0], self.recipe.dropout).split(sizes, 1)
        factors = [part.unflatten(1, (n, -1)) for part in parts]
        return dict(zip(self._dropout_units, factors, strict=True))

    def _step(self, eeg_rows: Tensor, target_rows: Tensor, *bits: Tensor) -> Tensor:
        """One step of all models; returns the loss of each, (M,)."""
        self.model.train()
        values = self._values() | self._factors(bits, target_rows.shape[1])
        in_bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.eeg.device.type, torch.bfloat16, enabled=in_bfloat16):
            sides = self._embed(
                values, self.eeg, eeg_rows, self.targets, target_rows, self.to_normalise
            )
        losses = symmetric_cross_entropy(logits(*sides, values["log_scale"]))

        self._pieces.drop_gradients()
        losses.sum().backward()
        if self.recipe.gradient_clip != "none":
            gradients = [w.grad for w in self._weights.values() if w.grad is not None]
            clip_gradients(gradients, self.recipe.gradient_clip)
        self._pieces.take_gradients()
        self._optimizer.step()
        self._update_averages()
        return losses.detach()

    def _embed(
        self,
        values: dict[str, Tensor],
        eeg: Tensor,
        rows: Tensor,
        embeddings: Tensor,
        image_rows: Tensor,
        to_normalise: bool,
    ) -> tuple[Tensor, Tensor]:
        """These rows as unit vectors (M, n, P), by models with these values."""
        dtype = self.model.log_scale.dtype
        responses = read_eeg(eeg, rows, dtype)
        if to_normalise:
            responses = normalise(responses)
        images = embeddings.index_select(0, image_rows.flatten()).to(dtype)
        images = images.unflatten(0, image_rows.shape)
        if self._is_stackable:
            return functional_call(self.model, values, (responses, images))

        alone = {name: value.squeeze(0) for name, value in values.items()}
        eeg_side, image_side = functional_call(self.model, alone, (responses[0], images[0]))
        return eeg_side[None], image_side[None]

    @torch.no_grad()
    def _update_averages(self) -> None:
        new_share = 1.0 if self._steps_done == 0 else self._new_share
        averages = [self._averages[name] for name in self._averaged]
        values = self._values()
        new_values = [values[name] for name in self._averaged]
        torch._foreach_lerp_(averages, new_values, new_share)
        self._steps_done += 1


def read_eeg(eeg: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows (M, B) of EEG (N, C, T), or means over rows (M, B, R): (M, B, C, T).

    Rows that are -1 do not count in a mean. On a GPU the memory of the result is in the order
    (M, C, B, T), in which the encoder reads it.
    """
    if rows.ndim == 3:
        return mean_responses(eeg, rows.flatten(0, 1)).to(dtype).unflatten(0, rows.shape[:2])

    # index_select copies rows whole, twice as fast as eeg[rows]
    if eeg.device.type == "cpu":
        return eeg.index_select(0, rows.flatten()).to(dtype).unflatten(0, rows.shape)
    n_chans = eeg.shape[1]
    channel = torch.arange(n_chans, device=eeg.device)
    channel_rows = rows[:, None] * n_chans + channel[:, None]  # (M, C, B)
    responses = eeg.flatten(0, 1).index_select(0, channel_rows.flatten()).to(dtype)
    return responses.unflatten(0, channel_rows.shape).transpose(1, 2)


def mean_responses(eeg: Tensor, rows: Tensor) -> Tensor:
    """The mean over rows (B, R) of EEG (M, C, T), without rows that are -1: (B, C, T) float32."""
    total = torch.zeros(len(rows), *eeg.shape[1:], device=eeg.device)
    for row in rows.unbind(1):
        is_row = (row >= 0)[:, None, None]
        total += eeg.index_select(0, row.clamp(min=0)).float() * is_row
    return total / (rows >= 0).sum(1)[:, None, None]
