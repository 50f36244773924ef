"""The layers of `nice.py` with far fewer operations: same features, gradients and statistics.

`fast_forward` replaces `plain` of `nice.py`, for one model or for M models at once. Four facts make
it fast:

1. **One temporal convolution.** Between the temporal layers there is nothing nonlinear. Together
   they are one convolution with F filters of `width` samples, every `step` samples. Its filters
   are composed from the weights of the layers in every forward pass (`compose_average`,
   `compose_chain`). Gradients flow through the composition.
2. **No pass over its output for the first BatchNorm.** Filter w of the convolution has the mean
   w.m and the variance w.Vw over the batch. m and V are mean and covariance of the windows of the
   EEG (`_window_moments`). So the BatchNorm becomes a scale and a shift of the filters
   (`_fold_batch_norm`).
3. **Products for convolutions.** On a GPU the temporal convolution is a product with a banded
   matrix, in which each filter stands once for each window (`_convolve_by_products`). A third of
   that matrix is zero at 100 samples, and on an H100 the product is quicker than many small ones.
4. **No copies.** Each layer writes in the order in which the next one reads. On a CPU, both
   convolutions and the ELU between them go through the batch in chunks that fit into the cache
   (`fast_nice_cpu.py`).

Axes: M models, absent for one alone; B samples, C channels, T times, F filters, T' windows of
`width` samples.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.encoder import Dropout
from pipeline.eeg_encoders.fast_nice_cpu import convolve_in_chunks, fast_elu
from pipeline.eeg_encoders.layers import batch_norm, dtype_of_products, linear, shifted_copies

ALIGNED = 8  # a GPU multiplies rows of so many values, or a multiple, quickest


class Layers(Protocol):
    """What `fast_forward` uses of an encoder."""

    STEP: int
    norm: nn.BatchNorm2d
    spatial: nn.Conv2d
    norm_2: nn.BatchNorm2d
    dropout: Dropout
    pointwise: nn.Conv2d

    def composed_filters(self) -> tuple[Tensor, Tensor]:
        """Filters (..., F, width) and bias (..., F) of the one temporal convolution."""


def fast_forward(layers: Layers, eeg: Tensor) -> Tensor:
    """EEG (..., B, C, T) float -> features (..., B, T' * F).

    In training the running statistics of both BatchNorms are updated. Under autocast the
    convolutions are in half precision and the features too.
    """
    device = eeg.device.type
    dtype = dtype_of_products(eeg)
    convolve = _convolve_in_chunks if device == "cpu" else _convolve_by_products

    # In half precision the covariance of the windows would be lost. So autocast is off here, and
    # the inputs of the convolutions are cast by hand.
    with torch.autocast(device, enabled=False):
        filters, bias = layers.composed_filters()  # (..., F, width), (..., F)
        exact_eeg = eeg.to(layers.norm.weight.dtype)
        filters, bias = _fold_batch_norm(layers.norm, filters, bias, exact_eeg, layers.STEP)
        spatial = layers.spatial.weight.squeeze(-1)  # (..., F, F, C)

        x = convolve(
            eeg.to(dtype), filters.to(dtype), bias.to(dtype), spatial.to(dtype), layers.STEP
        )
        x = x.to(filters.dtype)  # (..., B, T', F)
        if layers.spatial.bias is not None:
            x = x + layers.spatial.bias[..., None, None, :]
        x = batch_norm(layers.norm_2, x)

    x = layers.dropout(fast_elu(x) if device == "cpu" else F.elu(x))
    features = linear(layers.pointwise, x.flatten(-3, -2))
    return features.unflatten(-2, x.shape[-3:-1]).flatten(-2)


def compose_average(temporal: nn.Conv2d, pool: int) -> tuple[Tensor, Tensor]:
    """One convolution for `temporal` (1 -> F) and an average over `pool` of its outputs.

    Returns filters (..., F, width), width = kernel + pool - 1, and bias (..., F).
    """
    weight = temporal.weight.flatten(-3)  # (..., F, kernel)
    width = weight.shape[-1] + pool - 1
    return shifted_copies(weight, pool, width).mean(-2), cast(Tensor, temporal.bias)


def compose_chain(temporal: nn.Conv2d, temporal_2: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """One convolution for `temporal` (1 -> F), followed by `temporal_2` (F -> F, without bias).

    Returns filters (..., F, width), width = kernel + kernel_2 - 1, and bias (..., F).
    """
    first = temporal.weight.flatten(-3)  # (..., F, kernel)
    second = temporal_2.weight.squeeze(-2)  # (..., F, F, kernel_2)
    kernel_2 = second.shape[-1]

    # Weight j of the second filter reads the output of the first one j samples later
    later = shifted_copies(first, kernel_2, first.shape[-1] + kernel_2 - 1)
    filters = second.flatten(-2) @ later.flatten(-3, -2)
    bias = second.sum(-1) @ cast(Tensor, temporal.bias)[..., None]
    return filters, bias.squeeze(-1)


def _fold_batch_norm(
    norm: nn.BatchNorm2d, filters: Tensor, bias: Tensor, eeg: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Filters (..., F, width) and bias (..., F) of a convolution, scaled and shifted by `norm`.

    In training, `norm` normalises by mean and variance of this batch of EEG, and its running
    statistics are updated in place. Otherwise it normalises by its running statistics.
    """
    running_mean = norm.get_buffer("running_mean")
    running_variance = norm.get_buffer("running_var")

    if norm.training:
        width = filters.shape[-1]
        window_mean, covariance = _window_moments(eeg, width, step)
        mean = (filters @ window_mean[..., None]).squeeze(-1) + bias
        variance = (filters @ covariance * filters).sum(-1)

        # As in torch, the running variance is the unbiased one, divided by n - 1.
        momentum = cast(float, norm.momentum)
        n_batch, n_chans, n_times = eeg.shape[-3:]
        n = n_batch * n_chans * ((n_times - width) // step + 1)
        running_mean.lerp_(mean.detach(), momentum)
        running_variance.lerp_(variance.detach() * (n / (n - 1)), momentum)
        norm.get_buffer("num_batches_tracked").add_(1)
    else:
        mean = running_mean
        variance = running_variance

    scale = norm.weight / (variance + norm.eps).sqrt()
    return filters * scale[..., None], (bias - mean) * scale + norm.bias


def _window_moments(eeg: Tensor, width: int, step: int) -> tuple[Tensor, Tensor]:
    """Mean (..., width) and covariance (..., width, width) over all windows of EEG (..., B, C, T).

    A window starts every `step` samples.
    """
    rows = _rows(eeg)  # (..., B * C, T)

    # A constant changes no covariance. Without it, a large offset of the EEG costs no digits.
    offset = rows.mean((-2, -1), keepdim=True)
    x = rows - offset
    mean = x.mean(-2).unfold(-1, width, step).mean(-2)

    # Products of all pairs of windows: (T', T', width, width). The pairs t = t' are averaged.
    products = (x.mT @ x).unfold(-2, width, step).unfold(-2, width, step)
    second_moment = products.diagonal(dim1=-4, dim2=-3).mean(-1) / x.shape[-2]
    covariance = torch.addcmul(second_moment, mean[..., None], mean[..., None, :], value=-1)
    return mean + offset.squeeze(-1), covariance


def _rows(eeg: Tensor) -> Tensor:
    """EEG (..., B, C, T) as rows (..., B * C, T), by channels on a GPU: the order of its memory."""
    return (eeg if eeg.device.type == "cpu" else eeg.transpose(-3, -2)).flatten(-3, -2)


def _convolve_in_chunks(
    eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int
) -> Tensor:
    """Temporal convolution, ELU and spatial convolution: EEG (..., B, C, T) -> (..., B, T', F).

    `filters` (..., F, width) and `bias` (..., F) are those of the temporal convolution, whose
    windows start every `step` samples; `spatial` (..., F, F, C) is the spatial one. For CPUs.
    """
    if eeg.ndim == 4:
        models = zip(eeg, filters, bias, spatial, strict=True)
        return torch.stack([_convolve_in_chunks(*model, step) for model in models])
    return convolve_in_chunks(eeg, filters.T, bias, spatial.permute(2, 1, 0).flatten(0, 1), step)


def _convolve_by_products(
    eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor, step: int
) -> Tensor:
    """What `_convolve_in_chunks` computes, by two products with an ELU between them: for GPUs."""
    if eeg.ndim == 3:
        return _convolve_by_products(
            eeg[None], filters[None], bias[None], spatial[None], step
        ).squeeze(0)
    n_models, n_batch, n_chans, n_times = eeg.shape
    n_filters, width = filters.shape[-2:]
    n_windows = (n_times - width) // step + 1

    # The bias is the weight of a last time, at which all EEG is 1. More such times, of no weight,
    # make the rows as long as a GPU likes them.
    n_ones = ALIGNED - n_times % ALIGNED
    rows = F.pad(_rows(eeg), (0, n_ones), value=1.0)  # (M, C * B, T + n_ones)
    bands = shifted_copies(filters, n_windows, n_times + n_ones - 1, step).transpose(1, 2)
    biases = bias[:, None, :, None].expand(-1, n_windows, -1, -1)
    matrix = torch.cat([bands, biases], -1).flatten(1, 2)  # (M, T' * F, T + n_ones)

    # The ELU is in place: this is the largest of all tensors.
    x = F.elu_(torch.bmm(matrix, rows.mT))  # (M, T' * F, C * B)
    x = x.view(n_models * n_windows, n_filters * n_chans, n_batch)

    weights = spatial.flatten(-2)[:, None].expand(-1, n_windows, -1, -1).flatten(0, 1)
    x = torch.bmm(weights, x)  # (M * T', F, B)
    return x.unflatten(0, (n_models, n_windows)).permute(0, 3, 1, 2)
