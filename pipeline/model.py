"""The EEG encoder and the two projectors that let EEG and image meet in one space.

Source: the reference recipe in the README, a public re-implementation of arXiv 2502.03081 whose EEG encoder follows
NICE, arXiv 2308.13234. Layers, initialisation and mathematics are the recipe's; `NiceEncoder` reorders operations.
"""

import json
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.files import replacing

CHUNK = 32  # samples whose activations fit in a processor's cache; any number computes the same


class NiceEncoder(nn.Module):
    """EEG (B, C, T) -> features (B, (T - 64) * 40): two temporal convolutions, a spatial and a pointwise one.

    `plain` runs the layers as they are written down. `forward` computes the same with far fewer operations:

    * Nothing lies between the two temporal convolutions, so that they are one, 1 -> 40 filters of width 65, whose
      weights are composed from theirs at every step (`_composed`); the gradient flows through the composition.
    * That convolution is linear in the EEG, so that the first BatchNorm needs no pass over its output: filter w has
      the mean w.m and the variance w.Vw, where m and V are mean and covariance of the windows of the EEG
      (`_window_moments`). The normalisation becomes a scale and a shift of the filters.
    * The windows are a view of the EEG, and each layer writes what the next one reads: time outermost, filters
      innermost.
    """

    WIDTHS = (25, 41)
    WINDOW = sum(WIDTHS) - 1

    def __init__(self, n_chans: int, n_times: int, dropout: float, n_filters: int = 40) -> None:
        super().__init__()
        if n_times < self.WINDOW:
            raise InputError(
                f"the EEG encoder needs at least {self.WINDOW} samples, not {n_times}: widen preprocess.window"
            )
        self.temporal = nn.Conv2d(1, n_filters, (1, self.WIDTHS[0]))
        self.temporal_2 = nn.Conv2d(n_filters, n_filters, (1, self.WIDTHS[1]), bias=False)
        self.norm = nn.BatchNorm2d(n_filters)
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1), bias=False)
        self.norm_2 = nn.BatchNorm2d(n_filters)
        self.dropout = nn.Dropout(dropout)
        self.pointwise = nn.Conv2d(n_filters, n_filters, (1, 1))
        self.output_size = (n_times - self.WINDOW + 1) * n_filters

    def plain(self, eeg: Tensor) -> Tensor:
        """The layers one after the other: what `forward` must equal."""
        x = self.temporal_2(self.temporal(eeg[:, None]))  # (B, F, C, T - 64)
        x = self.spatial(F.elu(self.norm(x)))  # (B, F, 1, T - 64)
        x = self.pointwise(self.dropout(F.elu(self.norm_2(x))))
        return x.squeeze(2).transpose(1, 2).flatten(1)

    def forward(self, eeg: Tensor) -> Tensor:
        filters, bias = self._normalised(eeg, *self._composed())  # (65, F), (F,)
        spatial = self.spatial.weight.squeeze(3).permute(2, 1, 0).flatten(0, 1)  # (C * F, F)
        x = torch.cat([self._convolve(chunk, filters, bias, spatial) for chunk in eeg.split(CHUNK)], dim=1)
        x = F.elu(self.norm_2(x.flatten(0, 1)[..., None, None])).view_as(x)  # (T - 64, B, F)
        x = F.linear(self.dropout(x), self.pointwise.weight.flatten(1), self.pointwise.bias)
        return x.transpose(0, 1).flatten(1)

    def _composed(self) -> tuple[Tensor, Tensor]:
        """Filters (65, F) and bias (F,) of the one convolution that equals the two temporal ones."""
        first, second = self.temporal.weight.squeeze(2).transpose(0, 1), self.temporal_2.weight.squeeze(2)
        filters = F.conv1d(F.pad(first, (self.WIDTHS[1] - 1,) * 2), second.flip(2))  # (1, F, 65)
        return filters.squeeze(0).T, second.sum(2) @ self.temporal.bias

    def _normalised(self, eeg: Tensor, filters: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Filters and bias with the first BatchNorm folded in; in training its running statistics move on."""
        norm = self.norm
        if self.training:
            window_mean, covariance = _window_moments(eeg, self.WINDOW)
            mean = window_mean @ filters + bias
            variance = (filters * (covariance @ filters)).sum(0)
            n = eeg.shape[0] * eeg.shape[1] * (eeg.shape[2] - self.WINDOW + 1)
            norm.running_mean.lerp_(mean.detach(), norm.momentum)
            norm.running_var.lerp_(variance.detach() * n / (n - 1), norm.momentum)
            norm.num_batches_tracked.add_(1)
        else:
            mean, variance = norm.running_mean, norm.running_var
        scale = norm.weight / (variance + norm.eps).sqrt()
        return filters * scale, (bias - mean) * scale + norm.bias

    def _convolve(self, eeg: Tensor, filters: Tensor, bias: Tensor, spatial: Tensor) -> Tensor:
        """The temporal convolution, ELU and the spatial convolution: (B, C, T) -> (T - 64, B, F)."""
        windows = eeg.unfold(2, self.WINDOW, 1).permute(2, 0, 1, 3).flatten(1, 2)  # a view (T - 64, B * C, 65)
        x = F.elu(torch.baddbmm(bias, windows, filters.expand(len(windows), -1, -1)), inplace=True)
        return x.view(len(windows), len(eeg), -1) @ spatial


def _window_moments(eeg: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean (width,) and covariance (width, width) of all windows of that width in EEG (B, C, T)."""
    offset = eeg.mean()  # taken out first: the covariance does not change, and large offsets cost no digits
    x = eeg.flatten(0, 1) - offset
    mean = x.mean(0).unfold(0, width, 1).mean(0)
    second = (x.T @ x / len(x)).unfold(0, width, 1).unfold(1, width, 1)  # (T', T', width, width), of which t = t'
    return mean + offset, second.diagonal(dim1=0, dim2=1).mean(2) - mean.outer(mean)


class Projector(nn.Module):
    """Linear, a residual of [GELU, Linear, Dropout], LayerNorm: (B, n_inputs) -> (B, n_outputs)."""

    def __init__(self, n_inputs: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(n_inputs, n_outputs)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return self.norm(x + self.residual(x))


class ContrastiveModel(nn.Module):
    """EEG (B, C, T) and image embeddings (B, D) -> unit vectors (B, projection_size), compared by dot product."""

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        embedding_size: int,
        projection_size: int,
        dropout: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.sizes = {
            "n_chans": n_chans,
            "n_times": n_times,
            "embedding_size": embedding_size,
            "projection_size": projection_size,
        }
        self.eeg_encoder = NiceEncoder(n_chans, n_times, dropout)
        self.eeg_projector = Projector(self.eeg_encoder.output_size, projection_size, dropout)
        self.image_projector = Projector(embedding_size, projection_size, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        for module in self.eeg_encoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def embed_eeg(self, eeg: Tensor) -> Tensor:
        return F.normalize(self.eeg_projector(self.eeg_encoder(eeg)), dim=1)

    def embed_image(self, embeddings: Tensor) -> Tensor:
        return F.normalize(self.image_projector(embeddings), dim=1)

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, the factor from cosine similarity to logit."""
        return self.log_scale.exp()


def save_model(model: ContrastiveModel, folder: Path, notes: dict) -> None:
    """Write model.safetensors, and model.json with the sizes that rebuild the model and notes on how it was trained."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        safetensors.torch.save_file(model.state_dict(), temporary)
    with replacing(folder / "model.json") as temporary:
        temporary.write_text(json.dumps(notes | {"sizes": model.sizes}, indent=2) + "\n")


def load_model(folder: Path) -> tuple[ContrastiveModel, dict]:
    """Read what `save_model` wrote: the model in evaluation mode and the notes."""
    try:
        notes = json.loads((folder / "model.json").read_text())
        model = ContrastiveModel(**notes["sizes"])
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: holds no trained model ({error}); run `dvc repro train`") from error
    return model.eval(), notes
