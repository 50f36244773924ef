"""The layers of `nice.py` with far fewer operations: same features, gradients and statistics.

`fast_forward` replaces `plain` of `nice.py`. Three facts make it fast:

1. **One temporal convolution.** Between the temporal layers there is nothing nonlinear. Together
   they are one convolution with F filters of `width` samples, every `step` samples. Its filters
   are composed from the weights of the layers in every forward pass (`compose_average`,
   `compose_chain`). Gradients flow through the composition.
2. **No pass over its output for the first BatchNorm.** Filter w of the convolution has the mean
   w.m and the variance w.Vw over the batch. m and V are mean and covariance of the windows of the
   EEG (`_window_moments`). So the BatchNorm becomes a scale and a shift of the filters
   (`_fold_batch_norm`).
3. **No copies.** The windows are a view of the EEG. Each layer writes in the order in which the
   next one reads, filters innermost. On a CPU, both convolutions and the ELU between them go
   through the batch in chunks that fit into the cache (`fast_nice_cpu.py`).

Axes: B samples, C channels, T times, F filters, T' windows of `width` samples.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.encoder import Dropout
from pipeline.eeg_encoders.fast_nice_cpu import convolve_in_chunks, fast_elu, view_windows


class Layers(Protocol):
    """What `fast_forward` uses of an encoder."""

    STEP: int
    stacked: bool
    norm: nn.BatchNorm2d
    spatial: nn.Conv2d
    norm_2: nn.BatchNorm2d
    dropout: Dropout
    pointwise: nn.Conv2d

    def composed_filters(self) -> tuple[Tensor, Tensor]:
        """Filters (width, F) and bias (F,) of the one temporal convolution."""


def fast_forward(layers: Layers, eeg: Tensor) -> Tensor:
    """EEG (B, C, T) float -> features (B, T' * F).

    In training the running statistics of both BatchNorms are updated. Under autocast the
    convolutions are in half precision and the features too.
    """
    device = eeg.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else eeg.dtype
    in_chunks = device == "cpu" and not layers.stacked

    # In half precision the covariance of the windows would be lost. So autocast is off here, and
    # the inputs of the convolutions are cast by hand.
    with torch.autocast(device, enabled=False):
        filters, bias = layers.composed_filters()  # (width, F), (F,)
        exact_eeg = eeg.to(layers.norm.weight.dtype)
        filters, bias = _fold_batch_norm(layers.norm, filters, bias, exact_eeg, layers.STEP)
        spatial = layers.spatial.weight.squeeze(3).permute(2, 1, 0).flatten(0, 1)  # (C * F, F)

        convolve = convolve_in_chunks if in_chunks else _convolve
        x = convolve(
            eeg.to(dtype), filters.to(dtype), bias.to(dtype), spatial.to(dtype), layers.STEP
        )
        x = x.to(filters.dtype)  # (B, T', F)
        if layers.spatial.bias is not None:
            x = x + layers.spatial.bias

        # BatchNorm2d expects the filters second: (B * T', F, 1, 1).
        x = layers.norm_2(x.flatten(0, 1)[..., None, None]).view_as(x)

    x = layers.dropout(fast_elu(x) if in_chunks else F.elu(x))
    return F.linear(x, layers.pointwise.weight.flatten(1), layers.pointwise.bias).flatten(1)


def compose_average(temporal: nn.Conv2d, pool: int) -> tuple[Tensor, Tensor]:
    """One convolution for `temporal` (1 -> F) and an average over `pool` of its outputs.

    Returns filters (width, F), width = kernel + pool - 1, and bias (F,).
    """
    weight = temporal.weight.flatten(1)  # (F, kernel)
    padded = F.pad(weight, (pool - 1, pool - 1))
    filters = F.avg_pool1d(padded, pool, stride=1)  # (F, width)
    return filters.T, cast(Tensor, temporal.bias)


def compose_chain(temporal: nn.Conv2d, temporal_2: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """One convolution for `temporal` (1 -> F), followed by `temporal_2` (F -> F, without bias).

    Returns filters (width, F), width = kernel + kernel_2 - 1, and bias (F,).
    """
    first = temporal.weight.squeeze(2).transpose(0, 1)  # (1, F, kernel)
    second = temporal_2.weight.squeeze(2)  # (F, F, kernel_2)
    filters = F.conv_transpose1d(first, second.transpose(0, 1))  # (1, F, width)
    bias = second.sum(2) @ cast(Tensor, temporal.bias)
    return filters.squeeze(0).T, bias


def _fold_batch_norm(
    norm: nn.BatchNorm2d, filters: Tensor, bias: Tensor, eeg: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Filters (width, F) and bias (F,) of a convolution of the EEG, scaled and shifted by `norm`.

    In training, `norm` normalises by mean and variance of this batch, and its running statistics
    are updated in place. Otherwise it normalises by its running statistics.
    """
    running_mean = norm.get_buffer("running_mean")
    running_variance = norm.get_buffer("running_var")

    if norm.training:
        width = len(filters)
        window_mean, covariance = _window_moments(eeg, width, step)
        mean = window_mean @ filters + bias
        variance = (filters * (covariance @ filters)).sum(0)

        # As in torch, the running variance is the unbiased one, divided by n - 1.
        momentum = cast(float, norm.momentum)
        n_batch, n_chans, n_times = eeg.shape
        n = n_batch * n_chans * ((n_times - width) // step + 1)
        running_mean.mul_(1 - momentum).add_(mean.detach(), alpha=momentum)
        running_variance.mul_(1 - momentum).add_(variance.detach(), alpha=momentum * n / (n - 1))
        norm.get_buffer("num_batches_tracked").add_(1)
    else:
        mean = running_mean
        variance = running_variance

    scale = norm.weight / (variance + norm.eps).sqrt()
    return filters * scale, (bias - mean) * scale + norm.bias


def _window_moments(eeg: Tensor, width: int, step: int) -> tuple[Tensor, Tensor]:
    """Mean (width,) and covariance (width, width) over all windows of EEG (B, C, T).

    A window starts every `step` samples.
    """
    # A constant changes no covariance. Without it, a large offset of the EEG costs no digits.
    offset = eeg.mean()
    x = eeg.flatten(0, 1) - offset  # (B * C, T)
    mean = x.mean(0).unfold(0, width, step).mean(0)

    # Products of all pairs of windows: (T', T', width, width). The pairs t = t' are averaged.
    products = (x.T @ x / len(x)).unfold(0, width, step).unfold(1, width, step)
    second_moment = products.diagonal(dim1=0, dim2=1).mean(2)
    return mean + offset, second_moment - mean.outer(mean)


def _convolve(eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int) -> Tensor:
    """What `convolve_in_chunks` computes, by operations of torch alone: for GPUs and vmap."""
    windows = view_windows(eeg, len(filters), step)  # (T', B * C, width)
    n_windows = len(windows)
    x = F.elu(torch.baddbmm(bias, windows, filters.expand(n_windows, -1, -1)))  # (T', B * C, F)
    return (x.view(n_windows, len(eeg), -1) @ spatial).transpose(0, 1)
