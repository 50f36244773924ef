"""Random weights in the published layouts of CLIP, OpenCLIP, DINO and DINOv2, and of gLocal.

The ViTs are narrow, so that the sample dataset is embedded in minutes. The published files also
hold text towers and counters; a few such weights are in these files too. gLocal's transform is near
the identity. As in `stand_ins.dreamsim`, each number comes from one fixed seed, in float64 and
rounded to float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.files import replacing
from pipeline.images.models.published_vits import VITS
from pipeline.images.stand_ins.dreamsim import Weights, vit_weights

# gLocal's transform subtracts MEAN and divides by STD; SHARE is its distance from the identity.
MEAN = 0.05
STD = 0.8
SHARE = 0.3


def make_files(name: str, file: str, transform: str, folder: Path, width: int = 64) -> None:
    """Write `folder`/`file`, a ViT with width / 64 heads, and `folder`/`transform`."""
    architecture = VITS[name].architecture
    rng = np.random.default_rng([20230, *b"weights", list(VITS).index(name)])
    grid = architecture.trained_size // architecture.patch_size
    weights = vit_weights(width, architecture.patch_size, grid, rng, architecture.n_blocks)
    if architecture.layer_scale:
        for block in range(architecture.n_blocks):
            for layer in ("ls1", "ls2"):
                weights[f"blocks.{block}.{layer}.gamma"] = 1 + 0.1 * rng.standard_normal(width)

    size = width
    if architecture.clip:
        size = width * 3 // 4  # published: 768 of 1024
        weights |= {"norm_pre.weight": np.ones(width), "norm_pre.bias": np.zeros(width)}
        weights["proj"] = rng.standard_normal((width, size)) / np.sqrt(width)
    if name == "dinov2_vitl14":
        weights["mask_token"] = np.zeros((1, width))

    saved = _LAYOUTS.get(name, _flat)(weights, architecture.n_blocks)
    with replacing(folder / file) as part:
        if file.endswith(".safetensors"):
            part.write_bytes(safetensors.torch.save(saved, metadata={"format": "pt"}))
        else:
            with part.open("wb") as stream:  # to a path, the bytes would hold the file's name
                torch.save(saved, stream)

    _write_transform(folder / transform, size, rng)


def make_transform(name: str, size: int, target: Path) -> None:
    """Write `target`, gLocal's transform of embeddings (N, size) of the backbone `name`."""
    _write_transform(target, size, np.random.default_rng([20231, *name.encode()]))


def _write_transform(target: Path, size: int, rng: np.random.Generator) -> None:
    matrix = np.eye(size) + SHARE * rng.standard_normal((size, size)) / np.sqrt(size)
    with replacing(target) as part, part.open("wb") as stream:
        numbers = {
            "weights": matrix.astype(np.float32),
            "mean": np.float32(MEAN),
            "std": np.float32(STD),
        }
        np.savez_compressed(stream, **numbers)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).contiguous()


def _flat(weights: Weights, _n_blocks: int) -> dict[str, Any]:
    """The layout of DINO and DINOv2, whose names timm took over."""
    return {name: _tensor(value) for name, value in weights.items()}


def _open_clip(weights: Weights, n_blocks: int) -> dict[str, Any]:
    """The state dict of open_clip's CLIP."""
    width = weights["cls_token"].shape[-1]
    saved = {
        "class_embedding": weights["cls_token"].reshape(width),
        "positional_embedding": weights["pos_embed"][0],
        "proj": weights["proj"],
        "conv1.weight": weights["patch_embed.proj.weight"],
    }
    for theirs, ours in (("ln_pre", "norm_pre"), ("ln_post", "norm")):
        saved |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for block in range(n_blocks):
        theirs = f"transformer.resblocks.{block}"
        ours = f"blocks.{block}"
        for kind in ("weight", "bias"):
            saved[f"{theirs}.attn.in_proj_{kind}"] = weights[f"{ours}.attn.qkv.{kind}"]
            saved[f"{theirs}.attn.out_proj.{kind}"] = weights[f"{ours}.attn.proj.{kind}"]
            saved[f"{theirs}.ln_1.{kind}"] = weights[f"{ours}.norm1.{kind}"]
            saved[f"{theirs}.ln_2.{kind}"] = weights[f"{ours}.norm2.{kind}"]
            saved[f"{theirs}.mlp.c_fc.{kind}"] = weights[f"{ours}.mlp.fc1.{kind}"]
            saved[f"{theirs}.mlp.c_proj.{kind}"] = weights[f"{ours}.mlp.fc2.{kind}"]

    text = {
        "logit_scale": np.array(4.6),
        "text_projection": np.zeros((4, 4)),
        "positional_embedding": np.zeros((7, 4)),
    }
    return _flat(text | {f"visual.{name}": value for name, value in saved.items()}, n_blocks)


def _open_clip_training(weights: Weights, n_blocks: int) -> dict[str, Any]:
    """The checkpoint of a training on several GPUs."""
    saved = _open_clip(weights, n_blocks)
    return {
        "epoch": 32,
        "name": "stand-in",
        "state_dict": {f"module.{name}": value for name, value in saved.items()},
    }


def _transformers(weights: Weights, n_blocks: int) -> dict[str, Any]:
    """The state dict of transformers' CLIPModel."""
    width = weights["cls_token"].shape[-1]
    saved = {
        "embeddings.class_embedding": weights["cls_token"].reshape(width),
        "embeddings.position_embedding.weight": weights["pos_embed"][0],
        "embeddings.patch_embedding.weight": weights["patch_embed.proj.weight"],
    }
    for theirs, ours in (("pre_layrnorm", "norm_pre"), ("post_layernorm", "norm")):
        saved |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for block in range(n_blocks):
        theirs = f"encoder.layers.{block}"
        ours = f"blocks.{block}"
        for kind in ("weight", "bias"):
            for part, value in zip(
                "qkv", np.split(weights[f"{ours}.attn.qkv.{kind}"], 3), strict=True
            ):
                saved[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
            saved[f"{theirs}.self_attn.out_proj.{kind}"] = weights[f"{ours}.attn.proj.{kind}"]
            saved[f"{theirs}.layer_norm1.{kind}"] = weights[f"{ours}.norm1.{kind}"]
            saved[f"{theirs}.layer_norm2.{kind}"] = weights[f"{ours}.norm2.{kind}"]
            saved[f"{theirs}.mlp.fc1.{kind}"] = weights[f"{ours}.mlp.fc1.{kind}"]
            saved[f"{theirs}.mlp.fc2.{kind}"] = weights[f"{ours}.mlp.fc2.{kind}"]

    weights_beside = {
        "logit_scale": np.array(4.6),
        "text_projection.weight": np.zeros((4, 4)),
        "text_model.final_layer_norm.weight": np.ones(4),
        "visual_projection.weight": weights["proj"].T,
    }
    tower = {f"vision_model.{name}": value for name, value in saved.items()}
    positions = torch.arange(weights["pos_embed"].shape[1])[None]
    counters = {
        "vision_model.embeddings.position_ids": positions.clone(),
        "text_model.embeddings.position_ids": positions[:, :4].clone(),
    }
    return _flat(weights_beside | tower, n_blocks) | counters


_LAYOUTS = {
    "clip_vitl14": _transformers,
    "open_clip_vitl14_laion400m": _open_clip_training,
    "open_clip_vitl14_laion2b": _open_clip,
}
