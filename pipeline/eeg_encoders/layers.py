"""Layers of one model, or of M models at once, whose weights have a leading axis of M.

torch's own layers hold the weights. The functions here compute with them: in the place of a
convolution of weights with weights stands a product, and M models take as many operations as one.

Axes: M models, absent for one alone; B samples; F filters.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_NORM = 1e-12  # as torch.nn.functional.normalize


def dtype_of_products(x: Tensor) -> torch.dtype:
    """The type of matrix products: that of autocast where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def linear(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """x (..., rows, n_in) -> (..., rows, n_out), by a Linear or by a convolution of 1 x 1."""
    bias = cast(Tensor, layer.bias)
    weight = layer.weight.view(*bias.shape, -1)  # (..., n_out, n_in)
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    dtype = dtype_of_products(x)
    return _Linear.apply(weight.to(dtype), bias.to(dtype), x.to(dtype))


class _Linear(torch.autograd.Function):
    """`linear` of M models. torch's gradient of a transposed weight would be copied once more."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        grad_x = gradient @ weight if ctx.needs_input_grad[2] else None
        return gradient.mT @ x, gradient.sum(1), grad_x


def unit_vectors(x: Tensor) -> Tensor:
    """Each row of x (..., P) divided by its norm: torch's `normalize` in half the operations."""
    return _UnitVectors.apply(x)


class _UnitVectors(torch.autograd.Function):
    """See `unit_vectors`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(LEAST_NORM)
        unit = x / norm
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # What points along the vector changes its norm alone
        unit, norm = ctx.saved_tensors
        along = (gradient * unit).sum(-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1) / norm


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Each row of x (..., rows, n) by itself; `norm` has weight and bias (..., n)."""
    normed = F.layer_norm(x, x.shape[-1:], eps=norm.eps)
    return normed * norm.weight.unsqueeze(-2) + norm.bias.unsqueeze(-2)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """x (..., B, T', F), normalised over B and T'; weights and statistics of `norm` are (..., F).

    In training the running statistics are updated, as torch does.
    """
    running_mean = norm.get_buffer("running_mean")
    running_variance = norm.get_buffer("running_var")
    if norm.training:
        norm.get_buffer("num_batches_tracked").add_(1)

    # To torch, the filters of M models are M * F channels, of images of one pixel.
    channels_last = x if running_mean.ndim == 1 else x.movedim(0, -2)  # (B, T', M, F)
    pixels = channels_last.flatten(2).flatten(0, 1)[..., None, None]  # (B * T', M * F, 1, 1)
    # Not F.batch_norm: on a GPU it takes a kernel for few channels, ten times as slow here
    normed = torch.native_batch_norm(
        pixels,
        norm.weight.flatten(),
        norm.bias.flatten(),
        running_mean.flatten(),
        running_variance.flatten(),
        norm.training,
        cast(float, norm.momentum),
        norm.eps,
    )[0].view(channels_last.shape)
    return normed if running_mean.ndim == 1 else normed.movedim(-2, 0)


def shifted_copies(x: Tensor, n_copies: int, length: int, step: int = 1) -> Tensor:
    """Copies of x (..., K) in rows of `length`: (..., n_copies, length), zero where x is not.

    x begins at column r * step of row r, and ends within the last row. The product of such a
    matrix with a signal is a convolution.
    """
    # A row that is `step` longer, repeated without end and cut into rows of `length`: each of
    # these begins `step` columns earlier in it.
    row = F.pad(x, (0, length + step - x.shape[-1]))
    repeated = row.unsqueeze(-2).expand(*row.shape[:-1], n_copies, -1).flatten(-2)
    return repeated[..., : n_copies * length].unflatten(-1, (n_copies, length))
