"""The two convolutions of `fast_nice.py` on a CPU, with the ELU between them.

The activations after the temporal convolution are many times larger than the EEG: C * F values
for each window. To write and read them in main memory takes longer than to compute them. So each
thread takes a part of the batch and goes through it in chunks of `CHUNK` samples, whose activations
stay in the cache of the processor.

Axes: B samples, C channels, T times, F filters, T' windows of `width` samples.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 16  # samples; another number changes the speed, and results by rounding only


def convolve_in_chunks(
    eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int
) -> Tensor:
    """Temporal convolution, ELU and spatial convolution: EEG (B, C, T) -> (B, T', F).

    `filters` (width, F) and `bias` (F,) are those of the temporal convolution, whose windows start
    every `step` samples; `spatial` (C * F, F) is the spatial one. All have the type of the EEG. In
    bfloat16 the ELU is computed, and the gradients of weights are summed, in float32.
    """
    return _Convolutions.apply(eeg, filters, bias, spatial, step, torch.is_grad_enabled())


class _Convolutions(torch.autograd.Function):
    """See `convolve_in_chunks`. Activations are stored if `differentiate`."""

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
        def convolve(part: Tensor) -> tuple[Tensor, list[Tensor]]:
            return _convolve_part(part, filters, bias, spatial, step, differentiate)

        part_size = math.ceil(len(eeg) / torch.get_num_threads())
        outputs, activations = zip(*_run_in_threads(convolve, eeg.split(part_size)), strict=True)

        ctx.save_for_backward(eeg, filters, spatial)
        ctx.step = step
        ctx.part_size = part_size
        ctx.activations = activations
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        eeg, filters, spatial = ctx.saved_tensors
        needs_grad_eeg = ctx.needs_input_grad[0]

        def differentiate(
            part: Tensor, grad_output: Tensor, activations: list[Tensor]
        ) -> tuple[Tensor, ...]:
            return _differentiate_part(
                part, grad_output, activations, filters, spatial, ctx.step, needs_grad_eeg
            )

        parts = (eeg.split(ctx.part_size), grad_output.split(ctx.part_size), ctx.activations)
        gradients = _run_in_threads(differentiate, *parts)

        # The gradient of the EEG is that of each part; those of weights are sums over the parts.
        grad_parts, *grads_of_weights = zip(*gradients, strict=True)
        grad_eeg = torch.cat(grad_parts) if needs_grad_eeg else None
        grad_filters, grad_bias, grad_spatial = (sum(grads) for grads in grads_of_weights)
        return grad_eeg, grad_filters, grad_bias, grad_spatial, None, None


def _convolve_part(
    part: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int, differentiate: bool
) -> tuple[Tensor, list[Tensor]]:
    """EEG (b, C, T) -> output (b, T', F), and the activations (T', n * C, F) of each chunk of n."""
    n_windows = len(view_windows(part, len(filters), step))
    scratch = part.new_empty(n_windows * CHUNK * len(spatial), dtype=_sum_dtype(part))

    outputs = []
    activations = []
    for chunk in part.split(CHUNK):
        windows = view_windows(chunk, len(filters), step)
        x = torch.bmm(windows, filters.expand(n_windows, -1, -1))  # (T', n * C, F)
        x = _elu_in_place(x.to(scratch.dtype).add_(bias), scratch).to(x.dtype)

        # F rows of n * T' columns: matrix products with rows as short as F are a tenth slower.
        output = spatial.T @ x.view(-1, len(spatial)).T  # (F, T' * n)
        outputs.append(output.view(-1, n_windows, len(chunk)).permute(2, 1, 0))
        if differentiate:
            activations.append(x)

    return torch.cat(outputs), activations


def _differentiate_part(
    part: Tensor,
    grad_output: Tensor,
    activations: list[Tensor],
    filters: Tensor,
    spatial: Tensor,
    step: int,
    needs_grad_eeg: bool,
) -> tuple[Tensor, ...]:
    """The gradients of the EEG (b, C, T), the filters, their bias and the spatial filters.

    Without `needs_grad_eeg` the first one is empty.
    """
    dtype = _sum_dtype(part)
    grad_filters = part.new_zeros(filters.shape, dtype=dtype)
    grad_bias = part.new_zeros(filters.shape[1], dtype=dtype)
    grad_spatial = part.new_zeros(spatial.T.shape, dtype=dtype)
    grad_chunks = [part[:0]]

    # Newest activations first: they may still be in the cache.
    chunks = zip(part.split(CHUNK), grad_output.split(CHUNK), activations, strict=True)
    for chunk, grad_chunk_output, activation in reversed([*chunks]):
        x = activation.view(-1, len(spatial))  # (T' * n, C * F)
        grad_rows = grad_chunk_output.transpose(0, 1).flatten(0, 1)  # (T' * n, F)
        grad_spatial += grad_rows.T @ x

        grad_x = _elu_backward_in_place(grad_rows @ spatial.T, x).view_as(activation)
        grad_bias += grad_x.sum((0, 1))

        # Samples are innermost here. In bfloat16, `view_windows` would be copied window by window.
        samples = chunk.flatten(0, 1).T.contiguous()  # (T, n * C)
        windows = samples.unfold(0, len(filters), step)  # (T', n * C, width)
        grad_filters += (windows.transpose(1, 2) @ grad_x).sum(0)

        if needs_grad_eeg:
            grad_chunks.append(_transpose_convolution(grad_x, filters, step, chunk))

    return torch.cat(grad_chunks[::-1]), grad_filters, grad_bias, grad_spatial.T


def _transpose_convolution(grad_x: Tensor, filters: Tensor, step: int, chunk: Tensor) -> Tensor:
    """The gradient of a chunk (n, C, T) of the EEG from that of its convolution (T', n * C, F)."""
    n_after_last_window = (chunk.shape[2] - len(filters)) % step
    grad_chunk = F.conv_transpose1d(
        grad_x.permute(1, 2, 0),  # (n * C, F, T')
        filters.T[:, None],  # (F, 1, width)
        stride=step,
        output_padding=n_after_last_window,
    )
    return grad_chunk.view_as(chunk)


def view_windows(eeg: Tensor, width: int, step: int) -> Tensor:
    """The windows of EEG (B, C, T) that start every `step` samples, without a copy.

    Returns (T', B * C, width).
    """
    return eeg.unfold(2, width, step).permute(2, 0, 1, 3).flatten(1, 2)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """The type in which sums over x are computed: float32 for half precision, else that of x."""
    return torch.promote_types(x.dtype, torch.float32)


# Threads. torch spreads each operation over all threads. For operations as small as these, to wake
# the threads takes longer than they save. Here each thread works alone on its part of the batch.


def _run_in_threads(function: Callable[..., Any], *parts: Sequence[Any]) -> list[Any]:
    """[function(*part) for part in zip(*parts)], each call in a thread of its own."""
    if len(parts[0]) == 1:
        return [function(*part) for part in zip(*parts, strict=True)]

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(_thread_pool(n_threads).map(torch.no_grad()(function), *parts))
    finally:
        torch.set_num_threads(n_threads)


@functools.cache
def _thread_pool(n_threads: int) -> ThreadPoolExecutor:
    """The same threads in every call: a new thread would have to allocate its memory again."""
    return ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))


# The ELU. With torch on a CPU, 2 ** x takes as little as a third of the time of exp(x), and a
# thirtieth of the time of expm1(x), which torch's own ELU computes.


def fast_elu(x: Tensor) -> Tensor:
    """F.elu on a CPU, of any shape. The absolute error is at most one rounding of 1.0."""
    return _Elu.apply(x)


class _Elu(torch.autograd.Function):
    """See `fast_elu`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        elu = _elu_in_place(x.clone(), torch.empty_like(x))
        ctx.save_for_backward(elu)
        return elu

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (elu,) = ctx.saved_tensors
        return _elu_backward_in_place(gradient.clone(), elu)


def _elu_in_place(x: Tensor, scratch: Tensor) -> Tensor:
    """Replace x by max(x, 0), or by exp(x) - 1 where that is less, and return it.

    The first values of `scratch` are overwritten, as many as x has.
    """
    below = torch.mul(x, math.log2(math.e), out=scratch[: x.numel()].view_as(x)).exp2_().sub_(1)
    return torch.clamp(x, x.new_zeros(()), below, out=x)


def _elu_backward_in_place(gradient: Tensor, elu: Tensor) -> Tensor:
    """Replace the gradient of the ELU's output, `elu`, by that of its input, and return it."""
    return torch.ops.aten.elu_backward.grad_input(gradient, 1, 1, 1, True, elu, grad_input=gradient)
