"""NICE and the recipe's variant of it, with far fewer operations than their layers as they are written down.

* `nice`: NICE, arXiv 2308.13234, layers as in https://github.com/eeyhsong/NICE-EEG (nice_stand.py).
* `nice-recipe`: the encoder of the reference recipe, a public re-implementation of arXiv 2502.03081: a second temporal
  convolution in the place of NICE's pooling.

Layers and mathematics are the published ones; `forward` reorders the operations. Spatial filters span all channels.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.eeg_encoders.encoder import Dropout, EegEncoder, require_samples

CHUNK = 16  # samples whose activations fit in a processor's cache; any number computes the same
FIRST_SD = 0.02  # of the first weights
MOMENTUM = 0.1  # of the first BatchNorm's running statistics, torch's default


def draw_normal_weights(model: nn.Module, zero_biases: bool) -> None:
    """Draw the weights of every convolution and Linear from N(0, 0.02) and those of every BatchNorm from N(1, 0.02).

    NICE does so (encoder and both projectors), and so does the recipe, which also sets the biases of convolutions to
    zero (`zero_biases`). All other biases stay as torch drew them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, FIRST_SD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, FIRST_SD)
        if isinstance(module, nn.Conv2d) and module.bias is not None and zero_biases:
            nn.init.zeros_(module.bias)


class _Composed(EegEncoder):
    """A temporal part, BatchNorm, ELU, a spatial convolution, BatchNorm, ELU, dropout, a pointwise convolution.

    `plain` runs the layers as they are written down. `forward` computes the same with far fewer operations:

    * The layers of the temporal part have nothing between them, so that they are one convolution, 1 -> F filters of
      width `WINDOW` every `STEP` samples, whose weights are composed from theirs at every step (`composed`); the
      gradient flows through the composition.
    * That convolution is linear in the EEG, so that the first BatchNorm needs no pass over its output: filter w has
      the mean w.m and the variance w.Vw, where m and V are mean and covariance of the windows of the EEG
      (`_window_moments`). The normalisation becomes a scale and a shift of the filters.
    * The windows are a view of the EEG, and each layer writes in the order in which the next one reads, filters
      innermost.
      The two convolutions and the ELU between them go through the batch in chunks (`_Convolutions`).
    """

    stackable = True
    NAME: str
    WINDOW: int
    STEP: int

    def __init__(
        self, n_chans: int, n_times: int, dropout: float, n_filters: int, spatial_bias: bool
    ) -> None:
        super().__init__()
        require_samples(self.NAME, n_times, self.WINDOW)
        self.norm = nn.BatchNorm2d(n_filters, momentum=MOMENTUM)
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1), bias=spatial_bias)
        self.norm_2 = nn.BatchNorm2d(n_filters)
        self.output_size = ((n_times - self.WINDOW) // self.STEP + 1) * n_filters
        self.dropout = Dropout(dropout, self.output_size)
        self.pointwise = nn.Conv2d(n_filters, n_filters, (1, 1))

    @abstractmethod
    def plain_temporal(self, eeg: Tensor) -> Tensor:
        """The temporal part as written down: (B, 1, C, T) -> (B, F, C, T')."""

    @abstractmethod
    def composed(self) -> tuple[Tensor, Tensor]:
        """Filters (WINDOW, F) and bias (F,) of the one convolution that equals the temporal part."""

    def plain(self, eeg: Tensor) -> Tensor:
        """The layers one after the other: what `forward` must equal."""
        x = self.spatial(F.elu(self.norm(self.plain_temporal(eeg[:, None]))))  # (B, F, 1, T')
        x = self.pointwise(self.dropout(F.elu(self.norm_2(x))))
        return x.squeeze(2).transpose(1, 2).flatten(1)

    def forward(self, eeg: Tensor) -> Tensor:
        device = eeg.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else eeg.dtype
        with torch.autocast(
            device, enabled=False
        ):  # keep the covariance in float32: half precision loses it
            filters, bias = self._normalised(
                eeg.to(self.norm.weight.dtype), *self.composed()
            )  # (WINDOW, F), (F,)
            spatial = self.spatial.weight.squeeze(3).permute(2, 1, 0).flatten(0, 1)  # (C * F, F)
            inputs = eeg.to(dtype), filters.to(dtype), bias.to(dtype), spatial.to(dtype)
            in_chunks = device == "cpu" and not self.stacked
            if in_chunks:
                x = _Convolutions.apply(*inputs, self.STEP, torch.is_grad_enabled())  # (B, T', F)
            else:
                x = _convolve(*inputs, self.STEP)
            x = x.to(filters.dtype)
            if self.spatial.bias is not None:
                x = x + self.spatial.bias
            x = self.norm_2(x.flatten(0, 1)[..., None, None]).view_as(x)
        x = self.dropout(_Elu.apply(x) if in_chunks else F.elu(x))
        return F.linear(x, self.pointwise.weight.flatten(1), self.pointwise.bias).flatten(1)

    def _normalised(self, eeg: Tensor, filters: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Filters and bias with the first BatchNorm folded in; in training its running statistics move on."""
        norm = self.norm
        mean_so_far, variance_so_far = (
            norm.get_buffer("running_mean"),
            norm.get_buffer("running_var"),
        )
        if self.training:
            window_mean, covariance = _window_moments(eeg, self.WINDOW, self.STEP)
            mean = window_mean @ filters + bias
            variance = (filters * (covariance @ filters)).sum(0)
            n = eeg.shape[0] * eeg.shape[1] * ((eeg.shape[2] - self.WINDOW) // self.STEP + 1)
            mean_so_far.mul_(1 - MOMENTUM).add_(mean.detach(), alpha=MOMENTUM)
            variance_so_far.mul_(1 - MOMENTUM).add_(variance.detach(), alpha=MOMENTUM * n / (n - 1))
            norm.get_buffer("num_batches_tracked").add_(1)
        else:
            mean, variance = mean_so_far, variance_so_far
        scale = norm.weight / (variance + norm.eps).sqrt()
        return filters * scale, (bias - mean) * scale + norm.bias


def _convolve(eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int) -> Tensor:
    """What `_Convolutions` computes, by operations of torch alone."""
    windows = _windows(eeg, len(filters), step)
    x = F.elu(torch.baddbmm(bias, windows, filters.expand(len(windows), -1, -1)))  # (T', B * C, F)
    return (x.view(len(windows), len(eeg), -1) @ spatial).transpose(0, 1)


class _Convolutions(torch.autograd.Function):
    """The temporal convolution, ELU and the spatial convolution on a CPU: EEG (B, C, T) -> (B, T', F).

    `filters` (width, F) and `bias` (F,) are those of the temporal, `spatial` (C * F, F) of the other; `step` is the
    stride of the temporal one. Each thread has a part of the batch, which it goes through in chunks, so that what one
    layer writes is still in the cache when the next reads it. The activations are kept for the backward pass if
    `differentiate`. In bfloat16 the ELU is computed and the gradients of weights are summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        eeg: Tensor,
        filters: Tensor,
        bias: Tensor,
        spatial: Tensor,
        step: int,
        differentiate: bool,
    ) -> Tensor:
        # Of the activations of a chunk
        size = len(_windows(eeg, len(filters), step)) * CHUNK * len(spatial)

        def convolve(part: Tensor) -> tuple[Tensor, list[Tensor]]:
            outputs, activations, spare = [], [], part.new_empty(size, dtype=_precise(part))
            for chunk in part.split(CHUNK):
                windows = _windows(chunk, len(filters), step)
                x = torch.bmm(windows, filters.expand(len(windows), -1, -1))
                x = _elu_(x.to(spare.dtype).add_(bias), spare).to(x.dtype)
                # With the F rows first: libraries are a tenth slower where rows are as short as F.
                output = spatial.T @ x.view(-1, len(spatial)).T  # (F, T' * B)
                outputs.append(output.view(-1, len(windows), len(chunk)).permute(2, 1, 0))
                if differentiate:
                    activations.append(x)
            return torch.cat(outputs), activations

        ctx.step, ctx.part = step, math.ceil(len(eeg) / torch.get_num_threads())
        ctx.save_for_backward(eeg, filters, spatial)
        outputs, ctx.activations = zip(*_in_threads(convolve, eeg.split(ctx.part)), strict=True)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        eeg, filters, spatial = ctx.saved_tensors

        def differentiate(
            part: Tensor, gradient: Tensor, activations: list[Tensor]
        ) -> tuple[Tensor, ...]:
            of_eeg, zeros = [part[:0]], functools.partial(part.new_zeros, dtype=_precise(part))
            of_filters, of_bias, of_spatial = (
                zeros(filters.shape),
                zeros(filters.shape[1]),
                zeros(spatial.T.shape),
            )
            chunks = [*zip(part.split(CHUNK), gradient.split(CHUNK), activations, strict=True)]
            for chunk, of_output, activation in reversed(
                chunks
            ):  # the last were written last, and may be in the cache
                x = activation.view(-1, len(spatial))  # (T' * B, C * F)
                of_output = of_output.transpose(0, 1).flatten(0, 1)  # (T' * B, F)
                of_spatial += of_output.T @ x
                of_x = _through_elu_(of_output @ spatial.T, x).view_as(activation)
                of_bias += of_x.sum((0, 1))
                # The windows of samples in columns: in bfloat16 those of `_windows` would be copied one by one.
                # (T', B * C, width)
                windows = chunk.flatten(0, 1).T.contiguous().unfold(0, len(filters), ctx.step)
                of_filters += (windows.transpose(1, 2) @ of_x).sum(0)
                if ctx.needs_input_grad[0]:
                    rest = (
                        chunk.shape[2] - len(filters)
                    ) % ctx.step  # samples after the last window
                    of_windows = (
                        of_x.permute(1, 2, 0),
                        filters.T[:, None],
                    )  # (B * C, F, T'), (F, 1, width)
                    of_eeg.append(
                        F.conv_transpose1d(
                            *of_windows, stride=ctx.step, output_padding=rest
                        ).view_as(chunk)
                    )
            return torch.cat(of_eeg[::-1]), of_filters, of_bias, of_spatial.T

        parts = eeg.split(ctx.part), gradient.split(ctx.part), ctx.activations
        eeg_parts, *of_weights = zip(*_in_threads(differentiate, *parts), strict=True)
        of_eeg = torch.cat(eeg_parts) if ctx.needs_input_grad[0] else None
        return of_eeg, *(sum(of_weight) for of_weight in of_weights), None, None


def _precise(x: Tensor) -> torch.dtype:
    """The type in which sums over x are kept: its own, but float32 for those of half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _in_threads(function: Callable[..., Any], *parts: Sequence[Any]) -> list[Any]:
    """[function(*part) for part in zip(*parts)], each in a thread of its own, in which torch uses no others.

    Small operations that spread over all threads spend more time on waking them than they save.
    """
    if len(parts[0]) == 1:
        return [function(*part) for part in zip(*parts, strict=True)]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(_threads(n_threads).map(torch.no_grad()(function), *parts))
    finally:
        torch.set_num_threads(n_threads)


@functools.cache
def _threads(n: int) -> ThreadPoolExecutor:
    """Kept: a new thread would have to get its memory anew."""
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))


class _Elu(torch.autograd.Function):
    """F.elu, see `_elu_`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        elu = _elu_(x.clone(), torch.empty_like(x))
        ctx.save_for_backward(elu)
        return elu

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (elu,) = ctx.saved_tensors
        return _through_elu_(gradient.clone(), elu)


def _elu_(x: Tensor, spare: Tensor) -> Tensor:
    """The ELU of x, in place: max(x, 0), or exp(x) - 1 where that is less; overwrites as much of `spare`.

    With torch on a CPU 2 ** x takes as little as a third of the time of exp(x), and a thirtieth of that of expm1(x).
    Instead of the latter: the absolute error is at most one rounding of 1.0.
    """
    below = torch.mul(x, math.log2(math.e), out=spare[: x.numel()].view_as(x)).exp2_().sub_(1)
    return torch.clamp(x, x.new_zeros(()), below, out=x)


def _through_elu_(gradient: Tensor, elu: Tensor) -> Tensor:
    """Change the gradient of an ELU's output, `elu`, into that of its input, in place."""
    return torch.ops.aten.elu_backward.grad_input(gradient, 1, 1, 1, True, elu, grad_input=gradient)


def _windows(eeg: Tensor, width: int, step: int) -> Tensor:
    """The windows that start every `step` samples of EEG (B, C, T): a view (T', B * C, width)."""
    return eeg.unfold(2, width, step).permute(2, 0, 1, 3).flatten(1, 2)


def _window_moments(eeg: Tensor, width: int, step: int) -> tuple[Tensor, Tensor]:
    """Mean (width,) and covariance (width, width) of the windows that start every `step` samples of EEG (B, C, T)."""
    # Taken out first: the covariance does not change, and large offsets cost no digits
    offset = eeg.mean()
    x = eeg.flatten(0, 1) - offset
    mean = x.mean(0).unfold(0, width, step).mean(0)
    # (T', T', width, width), wanted: t = t'
    second = (x.T @ x / len(x)).unfold(0, width, step).unfold(1, width, step)
    return mean + offset, second.diagonal(dim1=0, dim2=1).mean(2) - mean.outer(mean)


class NiceRecipe(_Composed):
    """EEG (B, C, T) -> features (B, (T - 64) * 40): two temporal convolutions, a spatial and a pointwise one."""

    NAME = "nice-recipe"
    WIDTHS = (25, 41)
    WINDOW = sum(WIDTHS) - 1
    STEP = 1

    def __init__(
        self, n_chans: int, n_times: int, sfreq: float, dropout: float, n_filters: int = 40
    ) -> None:
        super().__init__(n_chans, n_times, dropout, n_filters, spatial_bias=False)
        self.temporal = nn.Conv2d(1, n_filters, (1, self.WIDTHS[0]))
        self.temporal_2 = nn.Conv2d(n_filters, n_filters, (1, self.WIDTHS[1]), bias=False)

    def draw_weights(self, model: nn.Module) -> None:
        draw_normal_weights(model, zero_biases=True)

    def plain_temporal(self, eeg: Tensor) -> Tensor:
        return self.temporal_2(self.temporal(eeg))

    def composed(self) -> tuple[Tensor, Tensor]:
        first, second = (
            self.temporal.weight.squeeze(2).transpose(0, 1),
            self.temporal_2.weight.squeeze(2),
        )
        filters = F.conv_transpose1d(first, second.transpose(0, 1))  # (1, F, 65)
        return filters.squeeze(0).T, second.sum(2) @ cast(Tensor, self.temporal.bias)


class Nice(_Composed):
    """EEG (B, C, T) -> features (B, ((T - 75) // 5 + 1) * 40): a temporal convolution whose output is averaged."""

    NAME = "nice"
    WIDTH, POOL = 25, 51
    WINDOW = WIDTH + POOL - 1
    STEP = 5

    def __init__(
        self, n_chans: int, n_times: int, sfreq: float, dropout: float, n_filters: int = 40
    ) -> None:
        super().__init__(n_chans, n_times, dropout, n_filters, spatial_bias=True)
        self.temporal = nn.Conv2d(1, n_filters, (1, self.WIDTH))

    def draw_weights(self, model: nn.Module) -> None:
        draw_normal_weights(model, zero_biases=False)

    def plain_temporal(self, eeg: Tensor) -> Tensor:
        return F.avg_pool2d(self.temporal(eeg), (1, self.POOL), (1, self.STEP))

    def composed(self) -> tuple[Tensor, Tensor]:
        weight = self.temporal.weight.flatten(1)  # (F, 25)
        filters = F.avg_pool1d(F.pad(weight, (self.POOL - 1,) * 2), self.POOL, stride=1)  # (F, 75)
        return filters.T, cast(Tensor, self.temporal.bias)
