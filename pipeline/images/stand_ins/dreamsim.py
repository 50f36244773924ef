"""Random checkpoints in DreamSim's published layouts: the sample dataset needs no network.

Layouts: what dreamsim 0.2.1 loads (arXiv 2306.09344), file by file. DINO's file is the full
checkpoint of DINO (arXiv 2104.14294): student and teacher, each with its head. r, alpha and dropout
of the LoRA are those published for DINO and the ensemble; for the other models they are those of
DreamSim's training script.

Every number comes from one fixed seed. The arithmetic is float64, and the files are float32: so the
bytes do not depend on the number of threads or the vector width of a machine.
"""

import io
import json
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile, ZipInfo

import numpy as np
import safetensors.numpy
import torch

from pipeline.errors import InputError, suggestion
from pipeline.files import replacing

Weights = dict[str, np.ndarray]
Kind = Literal["synclr", "dino", "dinov2", "clip"]

N_BLOCKS = 12
RANK = 16
WIDTH = 192  # that of dreamsim's `vit_tiny`, quick on a CPU; the published ViTs have 768

# The ViTs of a backbone: the file, kind and patch size of each
_SYNCLR: tuple[str, Kind, int] = ("synclr_vit_b_16.pth", "synclr", 16)
_DINO: tuple[str, Kind, int] = ("dino_vitb16_pretrain.pth", "dino", 16)
_DINOV2: tuple[str, Kind, int] = ("dinov2_vitb14_pretrain.pth", "dinov2", 14)
_CLIP_16: tuple[str, Kind, int] = ("clip_vitb16_pretrain.pth.tar", "clip", 16)
_CLIP_32: tuple[str, Kind, int] = ("clip_vitb32_pretrain.pth.tar", "clip", 32)
_OPEN_CLIP_16: tuple[str, Kind, int] = ("open_clip_vitb16_pretrain.pth.tar", "clip", 16)
_OPEN_CLIP_32: tuple[str, Kind, int] = ("open_clip_vitb32_pretrain.pth.tar", "clip", 32)

# For each backbone: the folder of the LoRA, its alpha and dropout, and the ViTs. The place of a
# backbone is part of its seed: append new ones.
BACKBONES: dict[str, tuple[str, float, float, list[tuple[str, Kind, int]]]] = {
    "synclr_vitb16": ("synclr_vitb16_single_lora", 0.5, 0.3, [_SYNCLR]),
    "dinov2_vitb14": ("dinov2_vitb14_single_lora", 0.5, 0.3, [_DINOV2]),
    "dino_vitb16": ("dino_vitb16_single_lora", 32.0, 0.2, [_DINO]),
    "clip_vitb32": ("clip_vitb32_single_lora", 0.5, 0.3, [_CLIP_32]),
    "open_clip_vitb32": ("open_clip_vitb32_single_lora", 0.5, 0.3, [_OPEN_CLIP_32]),
    "ensemble": ("ensemble_lora", 1.0, 0.3, [_DINO, _CLIP_16, _OPEN_CLIP_16]),
    "dino_vitb16_patch": ("dino_vitb16_patch_lora", 0.5, 0.3, [_DINO]),
    "dinov2_vitb14_patch": ("dinov2_vitb14_patch_lora", 0.5, 0.3, [_DINOV2]),
}


def make_checkpoint(backbone: str, directory: Path, embed_dim: int = WIDTH) -> None:
    """Write `directory`/dreamsim_<backbone>_checkpoint.zip: random ViTs and their LoRA adapter.

    The ViTs have 12 blocks with `embed_dim` / 64 heads. InputError for a backbone that DreamSim
    does not have.
    """
    if backbone not in BACKBONES:
        near = suggestion(backbone, BACKBONES)
        raise InputError(
            f"backbone: DreamSim has {', '.join(BACKBONES)}, not {backbone!r}: name one of "
            f"those{near}"
        )

    folder, alpha, dropout, vits = BACKBONES[backbone]
    rng = np.random.default_rng([20220, *b"weights", list(BACKBONES).index(backbone)])
    with (
        replacing(directory / f"dreamsim_{backbone}_checkpoint.zip") as part,
        ZipFile(part, "w") as archive,
    ):
        # A ZipInfo is dated 1980, so that the archive has the same bytes on every run.
        for member, kind, patch_size in vits:
            file = io.BytesIO()  # saved to a path, the bytes would hold the file's name
            torch.save(_tensors(_published_content(kind, patch_size, embed_dim, rng)), file)
            archive.writestr(ZipInfo(member), file.getbuffer())

        config, adapter = _lora_adapter(len(vits), embed_dim, alpha, dropout, rng)
        config_json = json.dumps(config, indent=2, sort_keys=True)
        archive.writestr(ZipInfo(f"{folder}/adapter_config.json"), config_json)
        adapter_bytes = safetensors.numpy.save(adapter, metadata={"format": "pt"})
        archive.writestr(ZipInfo(f"{folder}/adapter_model.safetensors"), adapter_bytes)


def _tensors(saved: dict[str, Any]) -> dict[str, Any]:
    """The nested dict with float32 tensors in place of arrays."""
    return {
        name: _tensors(value)
        if isinstance(value, dict)
        else torch.from_numpy(value.astype(np.float32))
        for name, value in saved.items()
    }


def _published_content(
    kind: Kind, patch_size: int, embed_dim: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The dict in the published file of this kind."""
    grid = 37 if kind == "dinov2" else 224 // patch_size
    weights = vit_weights(embed_dim, patch_size, grid, rng)

    if kind == "synclr":
        return {"model": {f"module.visual.{name}": value for name, value in weights.items()}}

    if kind == "dinov2":
        for block in range(N_BLOCKS):
            for layer in ("ls1", "ls2"):
                weights[f"blocks.{block}.{layer}.gamma"] = 1 + 0.1 * rng.standard_normal(embed_dim)
        return weights | {"mask_token": np.zeros((1, embed_dim))}

    if kind == "clip":
        weights |= {"pos_drop.weight": np.ones(embed_dim), "pos_drop.bias": np.zeros(embed_dim)}
        out_dim = embed_dim * 2 // 3  # published: 512 of 768
        weights["proj"] = rng.standard_normal((embed_dim, out_dim)) / np.sqrt(embed_dim)
        return {"state_dict": weights}

    sizes = [embed_dim, 32, 32, 16]  # published: 768, 2048, 2048, 256, and 65,536 outputs
    head = {"head.last_layer.weight": rng.standard_normal((64, sizes[-1]))}
    for number, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        head[f"head.mlp.{2 * number}.weight"] = rng.standard_normal((n_out, n_in))
        head[f"head.mlp.{2 * number}.bias"] = np.zeros(n_out)
    teacher = {f"backbone.{name}": value for name, value in weights.items()} | head
    return {
        "student": {f"module.{name}": 0.9 * value for name, value in teacher.items()},
        "teacher": teacher,
    }


def vit_weights(
    embed_dim: int, patch_size: int, grid: int, rng: np.random.Generator, n_blocks: int = N_BLOCKS
) -> Weights:
    """Random weights of a ViT for `grid` x `grid` patches; its CLS tokens differ between images.

    Common initialisations give almost the same CLS token for every image. Here filters and
    positions are smooth; positions are larger than the CLS token, so that heads look at different
    places; queries and keys are large enough to select.
    """

    def normal(*shape: int, gain: float = 1.0) -> np.ndarray:
        return gain / np.sqrt(shape[-1]) * rng.standard_normal(shape)

    filters = _smooth(3 * embed_dim, patch_size, rng).reshape(embed_dim, 3, patch_size, patch_size)
    positions = _smooth(embed_dim, grid, rng).reshape(1, embed_dim, grid**2).transpose(0, 2, 1)
    # What all patches share would make the embeddings of all images the same.
    positions -= positions.mean(1, keepdims=True)

    weights = {
        "cls_token": 0.3 * rng.standard_normal((1, 1, embed_dim)),
        "pos_embed": np.concatenate(
            [np.zeros((1, 1, embed_dim)), 10 * positions / positions.std()], 1
        ),
        "patch_embed.proj.weight": filters / np.sqrt((filters**2).sum((1, 2, 3), keepdims=True)),
        "patch_embed.proj.bias": np.zeros(embed_dim),
    }
    for block in range(n_blocks):
        qkv = normal(3 * embed_dim, embed_dim)
        qkv[: 2 * embed_dim] *= 1.8
        for layer, weight in (
            ("norm1", np.ones(embed_dim)),
            ("attn.qkv", qkv),
            ("attn.proj", normal(embed_dim, embed_dim)),
            ("norm2", np.ones(embed_dim)),
            ("mlp.fc1", normal(4 * embed_dim, embed_dim, gain=1.5)),
            ("mlp.fc2", normal(embed_dim, 4 * embed_dim, gain=0.3)),
        ):
            weights[f"blocks.{block}.{layer}.weight"] = weight
            weights[f"blocks.{block}.{layer}.bias"] = np.zeros(len(weight))

    return weights | {"norm.weight": np.ones(embed_dim), "norm.bias": np.zeros(embed_dim)}


def _smooth(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random sums of low cosines on a square grid: (count, size, size)."""
    cosines = np.cos(np.pi * np.outer(np.arange(4), (np.arange(size) + 0.5) / size))  # (4, size)
    strength = rng.standard_normal((count, 4, 4)) / (1 + np.hypot(*np.mgrid[:4, :4]))
    return np.einsum("nij,iy,jx->nyx", strength, cosines, cosines)


def _lora_adapter(
    n_vits: int, embed_dim: int, alpha: float, dropout: float, rng: np.random.Generator
) -> tuple[dict[str, Any], Weights]:
    """The adapter as peft saves it from dreamsim's model: configuration, float32 matrices."""
    share = 0.5  # size of the change, relative to the weights that it changes
    config = {
        "auto_mapping": {"base_model_class": "PerceptualModel", "parent_library": "dreamsim.model"},
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "revision": None,
        "target_modules": ["qkv"],
        "task_type": None,
    }

    adapter = {}
    for vit in range(n_vits):
        for block in range(N_BLOCKS):
            name = f"base_model.model.extractor_list.{vit}.model.blocks.{block}.attn.qkv"
            down = rng.standard_normal((RANK, embed_dim)) / np.sqrt(embed_dim)
            up = rng.standard_normal((3 * embed_dim, RANK)) / np.sqrt(RANK) * share * RANK / alpha
            adapter[f"{name}.lora_A.weight"] = down.astype(np.float32)
            adapter[f"{name}.lora_B.weight"] = up.astype(np.float32)
    return config, adapter
