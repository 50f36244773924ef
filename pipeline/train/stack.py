"""Models of one recipe, trained at once: many of them fill a GPU, which one of this size leaves nearly idle.

The weights of M models are tensors with a leading axis M, and a step is the step of one model, mapped over that axis by
torch.func.vmap. Nothing is shared among the models, so that each ends with the weights that it would have alone. On a
GPU a step is captured as a CUDA graph and from then on launched as a whole. The optimizer, moving average and clipping
of M models are those of one: they treat each value, or each model, by itself.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from pipeline.eeg_encoders.encoder import Dropout, draw_bits, drop
from pipeline.retrieval import symmetric_cross_entropy
from pipeline.sections import Train
from pipeline.train.model import ContrastiveModel, stackable

# The rate of the blocks' weights, times that of the projectors. Adam moves a logit by at most about the rate a step,
# and the softmax needs some 3 for a weight near 1, which small data and low rates would not reach (docs/protocols.md).
BLOCK_RATE = 10
PLAIN_STEPS = 3  # before a step is captured: in the first ones libraries set themselves up


class Stack:
    """M models, alike but for their weights, with their optimizer, the moving average of their weights, and their data.

    `eeg` (N, C, T) and `learned` (images, D), or (images, K, D), are what the steps take their batches from, all on one
    device. `generators`, one a model and on that device, draw what `Dropout` drops; more than one must
    be `stackable`. Those that are not draw from torch's global generator.
    """

    def __init__(
        self,
        models: Sequence[ContrastiveModel],
        parameters: Train,
        n_steps: int,
        eeg: Tensor,
        learned: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.parameters, self.eeg, self.learned, self.generators = (
            parameters,
            eeg,
            learned,
            generators,
        )
        self.model, self.n_models = copy.deepcopy(models[0]), len(models)
        self.model.eeg_encoder.stacked = self.n_models > 1
        self._averaged = copy.deepcopy(models[0])
        self._weights, self._buffers = stack_module_state(list(models))
        values = {**self._weights, **self._buffers}
        self._averages = {name: values[name].detach() for name in self.model.state_dict()}
        self._averages |= {
            name: value.clone()
            for name, value in self._averages.items()
            if value.is_floating_point()
        }
        self._optimizer, self._schedule = make_optimizer(self._weights, parameters, eeg.device)
        # The moving average is one over some `average_epochs` of `n_steps`; with `none` the weights after each step.
        lasting = parameters.average_epochs
        self._new = 1.0 if lasting == "none" else 1 - math.exp(-1 / (lasting * n_steps))
        self._steps_done = 0
        dropouts = [
            (name, part) for name, part in self.model.named_modules() if isinstance(part, Dropout)
        ]
        self._dropped = {
            f"{name}.factors": dropout.n_units
            for name, dropout in dropouts
            if stackable(parameters)
        }
        self._captures = eeg.is_cuda and stackable(parameters)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plain_steps = 0

    def epoch(self, rows: Tensor, images: Tensor) -> list[float]:
        """One pass over all samples of each model, in batches; the mean loss of each. Waits for the device once.

        `rows` (M, n) are those of `eeg` in their order, or (M, n, R) where a sample is the mean of those that are not
        -1; `images` (M, n) are the rows of `learned`.
        """
        losses, size = [], self.parameters.batch_size
        for batch in zip(rows.split(size, 1), images.split(size, 1), strict=True):
            n = batch[1].shape[1]
            if n < 2:  # a last batch of one has no other to differ from, and no variance
                continue
            step = self._captured_step if self._captures and n == size else self._step
            losses.append(step(*batch, *self._draw(n)).clone())
        self._schedule.step()
        return torch.stack(losses).mean(0).tolist()

    def averaged(self, m: int) -> ContrastiveModel:
        """Model m with the moving average of its weights, and of the statistics of BatchNorm; until the next call."""
        self._averaged.load_state_dict(self.averaged_weights(m))
        return self._averaged

    def averaged_weights(self, m: int) -> dict[str, Tensor]:
        return {name: average[m] for name, average in self._averages.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": {**self._weights, **self._buffers},
            "averages": self._averages,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "steps_done": self._steps_done,
            "random": [generator.get_state() for generator in self.generators],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, saved in (
            ({**self._weights, **self._buffers}, state["values"]),
            (self._averages, state["averages"]),
        ):
            for name, value in own.items():
                value.copy_(saved[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._steps_done = state["steps_done"]
        for generator, saved in zip(self.generators, state["random"], strict=True):
            generator.set_state(saved.cpu())

    def _draw(self, n: int) -> list[Tensor]:
        """For each `Dropout` the factors (M, n, n_units) of a batch of n."""
        sizes = [n * n_units for n_units in self._dropped.values()]
        if not sizes:
            return []
        bits = torch.stack(
            [draw_bits(sum(sizes), self.eeg.device, generator) for generator in self.generators]
        )
        return [
            part.unflatten(1, (n, -1))
            for part in drop(bits, self.parameters.dropout).split(sizes, 1)
        ]

    def _captured_step(self, *inputs: Tensor) -> Tensor:
        """`_step` as a CUDA graph, which launches all its kernels at once, after a few plain ones."""
        if self._plain_steps < PLAIN_STEPS:
            self._plain_steps += 1
            side = torch.cuda.Stream()  # as torch demands before a capture
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                losses = self._step(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            return losses
        if self._graph is None:
            self._optimizer.zero_grad()  # a graph has memory of its own, and takes what is free
            self._graph, self._inputs = torch.cuda.CUDAGraph(), [each.clone() for each in inputs]
            with torch.cuda.graph(self._graph):
                self._losses = self._step(*self._inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._losses

    def _step(self, rows: Tensor, images: Tensor, *factors: Tensor) -> Tensor:
        """One step of all models; the loss of each (M,)."""
        dtype = self.model.log_scale.dtype
        eeg = _responses(self.eeg, rows.flatten(0, 1), dtype).unflatten(0, images.shape)
        embeddings = (
            self.learned.index_select(0, images.flatten()).to(dtype).unflatten(0, images.shape)
        )
        buffers = {**self._buffers, **dict(zip(self._dropped, factors, strict=True))}
        self.model.train()
        with torch.autocast(
            eeg.device.type, torch.bfloat16, enabled=self.parameters.precision == "bfloat16"
        ):
            if self.n_models > 1:
                logits = vmap(self._logits)({**self._weights, **buffers}, eeg, embeddings)
            else:
                values = {
                    name: value.squeeze(0) for name, value in {**self._weights, **buffers}.items()
                }
                logits = self._logits(values, eeg[0], embeddings[0])[None]
        losses = symmetric_cross_entropy(logits)
        self._optimizer.zero_grad()
        losses.sum().backward()
        if self.parameters.gradient_clip != "none":
            _clip(
                [weight.grad for weight in self._weights.values() if weight.grad is not None],
                self.parameters.gradient_clip,
            )
        self._optimizer.step()
        self._average()
        return losses.detach()

    def _logits(self, values: dict[str, Tensor], eeg: Tensor, embeddings: Tensor) -> Tensor:
        return functional_call(self.model, values, (eeg, embeddings))

    @torch.no_grad()
    def _average(self) -> None:
        new = 1.0 if self._steps_done == 0 else self._new
        values = {**self._weights, **self._buffers}
        averages = {name: each for name, each in self._averages.items() if each.is_floating_point()}
        torch._foreach_lerp_(list(averages.values()), [values[name] for name in averages], new)
        self._steps_done += 1


def _responses(eeg: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """EEG of these rows (B,), or the means of rows (B, R) without those that are -1: (B, C, T)."""
    if rows.ndim == 1:
        return eeg.index_select(0, rows).to(dtype)  # copies rows whole, twice as fast as eeg[rows]
    return mean_responses(eeg, rows)


def mean_responses(eeg: Tensor, rows: Tensor) -> Tensor:
    """(B, C, T) float32: the mean over rows (B, n) of EEG (M, C, T), without those that are -1, summed in float32."""
    total = torch.zeros(len(rows), *eeg.shape[1:], device=eeg.device)
    for row in rows.unbind(1):
        total += eeg.index_select(0, row.clamp(min=0)).float() * (row >= 0)[:, None, None]
    return total / (rows >= 0).sum(1)[:, None, None]


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """Scale the gradients (M, ...) of each model so that the norm of all is `most` or less.

    What torch.nn.utils.clip_grad_norm_ does for one.
    """
    norms = torch.stack(
        [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
    ).norm(dim=0)
    share = (most / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)))


def make_optimizer(
    weights: Mapping[str, Tensor], parameters: Train, device: torch.device
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Adam or AdamW over two groups, the EEG encoder and the rest, each with its own warm-up before the cosine.

    The weights of blocks are a third group, like the rest but for BLOCK_RATE and no weight decay, which would make them
    equal. On a GPU the rates are tensors, which a captured step reads anew each time.
    """
    parts: dict[str, list[Tensor]] = {"eeg_encoder": [], "rest": [], "block_mix": []}
    for name, weight in weights.items():
        part = name.partition(".")[0]
        parts[part if part in parts else "rest"].append(weight)
    rate, warmup = parameters.learning_rate, parameters.warmup_epochs_projectors
    groups: list[dict[str, Any]] = [
        {"params": parts["eeg_encoder"], "lr": rate},
        {"params": parts["rest"], "lr": rate},
    ]
    warmups = [parameters.warmup_epochs_eeg_encoder, warmup]
    if parts["block_mix"]:
        groups.append({"params": parts["block_mix"], "lr": BLOCK_RATE * rate, "weight_decay": 0.0})
        warmups.append(warmup)
    on_gpu = device.type == "cuda"
    if on_gpu:
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[parameters.optimizer](
        groups,
        betas=tuple(parameters.betas),
        weight_decay=parameters.weight_decay,
        fused=True,
        capturable=on_gpu,
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, [_rate(parameters, warmup) for warmup in warmups]
    )


def _rate(parameters: Train, warmup: int) -> Callable[[int], float]:
    """The share of the peak rate in each epoch, from 0: linear from `warmup_start`, then a cosine to the final rate."""
    floor, cosine_epochs = (
        parameters.final_learning_rate / parameters.learning_rate,
        parameters.epochs - warmup,
    )

    def rate(epoch: int) -> float:
        if epoch < warmup:
            return parameters.warmup_start + (1 - parameters.warmup_start) * epoch / warmup
        progress = min(1.0, (epoch - warmup) / max(1, cosine_epochs))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return rate
