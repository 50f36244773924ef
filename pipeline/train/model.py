"""The contrastive model: an EEG encoder, and projectors into a space where EEG and image meet.

Source: the reference recipe in the README, a public re-implementation of arXiv 2502.03081; the
paper's own choices are options.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.encoder import Dropout
from pipeline.eeg_encoders.layers import layer_norm, linear, unit_vectors
from pipeline.eeg_encoders.table import (
    can_be_stacked,
    check_recipe,
    has_closed_form,
    make_eeg_encoder,
)
from pipeline.errors import TRAIN_AGAIN, InputError
from pipeline.files import replacing, unreadable
from pipeline.preprocess.normalisation import normalise
from pipeline.sections import Train
from pipeline.train.cuda_graph import beside
from pipeline.train.transforms import ChannelDropout, Smoothing, TimeShift, pick_window

# Values of EEG that are copied together; limits memory
MOST_VALUES = 4096 * 17 * 100


class Projector(nn.Module):
    """Linear, a residual of [GELU, Linear, Dropout], LayerNorm.

    (..., B, n_inputs) -> (..., B, n_outputs).
    """

    def __init__(self, n_inputs: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(n_inputs, n_outputs)
        # Trained models are stored by these names
        self.residual = nn.Sequential(
            nn.GELU(), nn.Linear(n_outputs, n_outputs), Dropout(dropout, n_outputs)
        )
        self.norm = nn.LayerNorm(n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        projected = linear(self.project, x)
        gelu, second, dropout = self.residual
        residual = dropout(linear(cast(nn.Linear, second), gelu(projected)))
        return layer_norm(self.norm, projected + residual)


class LinearProjector(nn.Linear):
    """(..., B, n_inputs) -> (..., B, n_outputs); of one model, or of M models at once."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(self, x)


class Centring(nn.Module):
    """(..., B, D) less the mean (D,) of training: where the prediction is a regression's."""

    mean: Tensor

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embedding_size))

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings - self.mean


class BlockMix(nn.Module):
    """The blocks of an image model (..., B, K, D) -> their weighted mean (..., B, D).

    The weights are learned.

    After SAMGA (arXiv 2604.17782), whose weights depend on the subject. Here each block has one
    weight, by softmax and equal at first, so that a run says which block it used.

    Each block is centred by its mean embedding, and divided by the root mean square of what is
    left: otherwise the block with the largest values drowns the others. That is one number a block,
    as in gLocal (arXiv 2306.04507), and not one a feature. So distances within a block keep their
    proportions: a block with all the weight is learned as if alone, and features that hardly vary
    are not blown up.
    """

    mean: Tensor
    rms: Tensor

    def __init__(self, n_blocks: int, embedding_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_blocks))
        self.register_buffer("mean", torch.zeros(n_blocks, embedding_size))
        self.register_buffer("rms", torch.ones(n_blocks, 1))

    def standardise(self, embeddings: Tensor) -> None:
        """Fit mean and root mean square to the embeddings (N, K, D) of the training images."""
        for k in range(embeddings.shape[1]):
            block = embeddings[:, k].double()
            mean = block.mean(0)
            rms = (block - mean).square().mean().sqrt()
            self.mean[k] = mean
            self.rms[k] = rms.where(rms > 0, 1)

    @property
    def weights(self) -> Tensor:
        """(..., K), 1 together."""
        return self.logits.softmax(-1)

    def forward(self, embeddings: Tensor) -> Tensor:
        standard = (embeddings - self.mean.unsqueeze(-3)) / self.rms.unsqueeze(-3)
        return (standard * self.weights[..., None, :, None]).sum(-2)


@dataclass(frozen=True)
class ModelSizes:
    """What the data demand of a model.

    * `n_chans`, `n_times`: C and T of the EEG.
    * `sfreq`: its sampling rate in Hz.
    * `embedding_size`: D of the image embeddings.
    * `blocks`: the names of the blocks, where the model mixes blocks.
    * `start`: the time of the first sample, in seconds from stimulus onset.
    * `ch_names`: the names of the C channels, which a pretrained EEG encoder needs.
    """

    n_chans: int
    n_times: int
    sfreq: float
    embedding_size: int
    blocks: Sequence[str] = ()
    start: float = 0.0
    ch_names: Sequence[str] = ()


def stackable(recipe: Train) -> bool:
    """Whether many such models can be trained at once: only `Dropout` is random in each."""
    return (
        can_be_stacked(recipe.eeg_encoder)
        and recipe.time_shift == "none"
        and not recipe.channel_dropout
    )


def _projection_sizes(recipe: Train, embedding_size: int) -> tuple[int, int]:
    """Where the EEG's projector ends, and the size of the space in which EEG and image meet."""
    shared = embedding_size if recipe.image_projector == "none" else recipe.projection_size
    if recipe.eeg_hidden_size == "none":
        return shared, shared
    if recipe.eeg_hidden_size == "embedding":
        return embedding_size, shared
    return recipe.eeg_hidden_size, shared


class ContrastiveModel(nn.Module):
    """EEG (B, C, T) and image embeddings (B, D) or (B, K, D) -> unit vectors (B, P) to compare.

    M models compute at once where `stackable` is true: then all weights and inputs have a leading
    axis of M (`stack.py`).

    EEG: window, smoothing and removal of its mean as the recipe says; centred by `eeg_mean` (C,
    samples of the window) and divided by `eeg_sd` (C, 1), which are 0 and 1 unless `standardise`
    was called; in training, time shift and channel dropout; then encoder and projector. With
    `eeg_hidden_size` the projector ends at that size, and a Linear follows it.

    Images: K blocks are mixed, if any. With `normalise_embeddings` the embeddings are centred over
    features and scaled to unit length, as dreamsim does with `normalize_embeds`. Then the
    projector.

    With an image projector P is `projection_size`. Without one the EEG is projected onto the
    embeddings, P = D, and with `normalise_embeddings` the EEG is centred too, as the paper does.

    An EEG encoder with a closed form (`closed_form.py`) is followed by one Linear onto the
    embeddings, which are around their mean of training. That is all: P = D.

    `recipe` is the section `train` of the parameters. InputError for an EEG encoder that is not
    known, or a window that the EEG does not have.
    """

    eeg_mean: Tensor
    eeg_sd: Tensor
    eeg_projector: nn.Module
    eeg_linear: nn.Module
    block_mix: BlockMix | None
    image_projector: nn.Module

    def __init__(self, sizes: ModelSizes, recipe: Train) -> None:
        super().__init__()
        check_recipe(recipe.eeg_encoder, recipe)
        self.sizes = sizes
        self.recipe = recipe
        dropout = recipe.dropout

        # EEG before the encoder
        self.window = pick_window(recipe.eeg_window, sizes.start, sizes.sfreq, sizes.n_times)
        n_times = len(range(sizes.n_times)[self.window])
        self.smoothing: nn.Module = nn.Identity()
        self.time_shift: nn.Module = nn.Identity()
        self.channel_dropout: nn.Module = nn.Identity()
        if recipe.smoothing != "none":
            self.smoothing = Smoothing(recipe.smoothing, sizes.sfreq, n_times)
        if recipe.time_shift != "none":
            self.time_shift = TimeShift(recipe.time_shift, sizes.sfreq, n_times)
        if recipe.channel_dropout:
            self.channel_dropout = ChannelDropout(recipe.channel_dropout)
        self.register_buffer("eeg_mean", torch.zeros(sizes.n_chans, n_times))
        self.register_buffer("eeg_sd", torch.ones(sizes.n_chans, 1))

        # Encoder and projectors, whose weights are drawn in this order
        hidden_size, projection_size = _projection_sizes(recipe, sizes.embedding_size)
        self.eeg_encoder = make_eeg_encoder(
            recipe.eeg_encoder,
            n_chans=sizes.n_chans,
            n_times=n_times,
            sfreq=sizes.sfreq,
            dropout=dropout,
            ch_names=sizes.ch_names,
            frozen=recipe.eeg_encoder_frozen,
        )
        if has_closed_form(recipe.eeg_encoder):
            self._add_linear_map(sizes.embedding_size)
            return

        self.eeg_projector = Projector(self.eeg_encoder.output_size, hidden_size, dropout)
        self.eeg_linear = nn.Identity()
        if recipe.eeg_hidden_size != "none":
            self.eeg_linear = LinearProjector(hidden_size, projection_size)
        self.block_mix = BlockMix(len(sizes.blocks), sizes.embedding_size) if sizes.blocks else None
        self.image_projector = nn.Identity()
        if recipe.image_projector == "linear":
            self.image_projector = LinearProjector(sizes.embedding_size, projection_size)
        elif recipe.image_projector == "mlp":
            self.image_projector = Projector(sizes.embedding_size, projection_size, dropout)
        if recipe.first_weights == "published":
            self.eeg_encoder.draw_weights(self)

        is_learned = recipe.temperature == "learned"
        temperature = (
            recipe.start_temperature if recipe.temperature == "learned" else recipe.temperature
        )
        log_scale = torch.tensor(math.log(1 / temperature))
        self.log_scale = nn.Parameter(log_scale, requires_grad=is_learned)

    def _add_linear_map(self, embedding_size: int) -> None:
        """What follows an encoder with a closed form; `closed_form.fit` finds the weights."""
        self.eeg_projector = LinearProjector(self.eeg_encoder.output_size, embedding_size)
        self.eeg_linear = nn.Identity()
        self.block_mix = None
        self.image_projector = Centring(embedding_size)
        self.log_scale = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def standardise(self, eeg: Tensor, rows: Tensor, to_normalise: bool = False) -> None:
        """Fit `eeg_mean` and `eeg_sd` to these rows (n,) of EEG (M, C, T).

        The mean is the evoked response, which all images share. It is larger than what differs
        between images, and tells nothing of them. With `to_normalise` each response is normalised
        first.
        """

        def read(part: Tensor) -> Tensor:
            responses = eeg[part].double()
            return self._preprocess(normalise(responses) if to_normalise else responses)

        parts = rows.split(max(1, MOST_VALUES // math.prod(eeg.shape[1:])))
        sums = [read(part).sum(0) for part in parts]
        mean = torch.stack(sums).sum(0) / len(rows)  # (C, T)

        squares = [(read(part) - mean).square().sum(0) for part in parts]
        variance = torch.stack(squares).sum(0).mean(1, keepdim=True) / len(rows)  # (C, 1)

        self.eeg_mean.copy_(mean)
        # A flat channel is 0 without its mean, and stays so
        self.eeg_sd.copy_(variance.sqrt().where(variance > 0, 1))

    def _preprocess(self, eeg: Tensor) -> Tensor:
        """Window, smoothing and removal of the mean, in this order: (B, C, T) -> (B, C, window)."""
        eeg = self.smoothing(eeg[..., self.window])
        return eeg - eeg.mean(-1, keepdim=True) if self.recipe.remove_dc else eeg

    def forward(self, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of responses and images as unit vectors, (B, P) both."""
        return beside(lambda: self.embed_eeg(eeg), lambda: self.embed_image(embeddings))

    def embed_eeg(self, eeg: Tensor) -> Tensor:
        """(B, C, T) -> unit vectors (B, P)."""
        augmented = self.channel_dropout(self.time_shift(self.standard_eeg(eeg)))
        projected = self.eeg_linear(self.eeg_projector(self.eeg_encoder(augmented)))
        if self.recipe.normalise_embeddings and self.recipe.image_projector == "none":
            projected = projected - projected.mean(-1, keepdim=True)
        return unit_vectors(projected)

    def standard_eeg(self, eeg: Tensor) -> Tensor:
        """EEG as the encoder sees it, but for what is random: (B, C, T) -> (B, C, window)."""
        return (self._preprocess(eeg) - self.eeg_mean.unsqueeze(-3)) / self.eeg_sd.unsqueeze(-3)

    def embed_image(self, embeddings: Tensor) -> Tensor:
        """(B, D) or (B, K, D) -> unit vectors (B, P)."""
        return unit_vectors(self.image_projector(self.features_of_images(embeddings)))

    def features_of_images(self, embeddings: Tensor) -> Tensor:
        """What the projector of images sees: (..., D) or (..., K, D) -> (..., D)."""
        if self.block_mix is not None:
            embeddings = self.block_mix(embeddings)
        if self.recipe.normalise_embeddings:
            embeddings = unit_vectors(embeddings - embeddings.mean(-1, keepdim=True))
        return embeddings

    def block_weights(self) -> dict[str, float]:
        """The weight of each block by its name; nothing where no blocks are mixed."""
        weights = [] if self.block_mix is None else self.block_mix.weights.tolist()
        return dict(zip(self.sizes.blocks, weights, strict=True))

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, the factor from cosine similarity to logit."""
        return self.log_scale.exp()


def logits(eeg_side: Tensor, image_side: Tensor, log_scale: Tensor) -> Tensor:
    """Unit vectors (..., B, P) of responses and images -> (..., B, B), scaled cosines.

    `log_scale` is (...). In its precision: in bfloat16 a logit of 60 would be wrong by up to 0.125.
    """
    dtype = log_scale.dtype
    with torch.autocast(eeg_side.device.type, enabled=False):
        scaled = log_scale.exp()[..., None, None] * eeg_side.to(dtype)
        return scaled @ image_side.to(dtype).mT


class Notes(TypedDict):
    """How a model was trained, as in its model.json.

    * `fold`, `seed`: which run of the protocol it is.
    * `trained_on`, `tested_on`: the subjects.
    * `protocol`, `selected_on`: `train.protocol` and `train.select_on`.
    * `views`, `views_in_gallery`: in words, which views it learned and is compared with.
    * `selected_epoch`: the epoch of its weights, counted from 1.
    * `eeg_weights`: the sha256 of each file that a pretrained EEG encoder started from.
    * `collapsed`: whether all EEG, or all images, had nearly the same embedding at the end.
    * `penalty`, `held_out_r2`: of weights in closed form, as `closed_form.fit` tells.
    * `train`: the section of the parameters, once it is saved.
    * `block_weights`: once it is saved, the weight of each block; empty where none are mixed.
    """

    fold: str
    seed: int
    trained_on: list[str]
    tested_on: list[str]
    protocol: str
    selected_on: str
    views: str
    views_in_gallery: str
    selected_epoch: int
    collapsed: bool
    eeg_weights: NotRequired[list[str]]
    penalty: NotRequired[float]
    held_out_r2: NotRequired[float]
    train: NotRequired[dict[str, Any]]
    block_weights: NotRequired[dict[str, float]]


def save_model(model: ContrastiveModel, folder: Path, notes: Mapping[str, Any]) -> None:
    """Write model.safetensors, and model.json: sizes and recipe of the model, and the notes.

    The folder is made if there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(safetensors.torch.save(model.state_dict()))

    description = {
        "sizes": asdict(model.sizes),
        "train": model.recipe.model_dump(),
        "block_weights": model.block_weights(),
    }
    with replacing(folder / "model.json") as temporary:
        temporary.write_text(json.dumps({**notes, **description}, indent=2) + "\n")


def load_model(folder: Path) -> tuple[ContrastiveModel, Notes]:
    """Read what `save_model` wrote: the model in evaluation mode, on the CPU, and the notes.

    InputError where the folder holds no whole model.
    """
    try:
        notes = json.loads((folder / "model.json").read_text())
        model = ContrastiveModel(ModelSizes(**notes["sizes"]), Train(**notes["train"]))
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        fault = unreadable(error, folder / "model.json")
        raise fault or InputError(
            f"{folder}: holds no trained model ({error}); {TRAIN_AGAIN}"
        ) from error
    return model.eval(), notes


def load_models(folder: Path) -> list[tuple[ContrastiveModel, Notes]]:
    """Each trained model with its notes, by the names of their folders.

    Raises InputError where there is none.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise InputError(f"{folder}: holds no trained model; {TRAIN_AGAIN}")
    return [load_model(path) for path in folders]
