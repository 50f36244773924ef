"""Files of weights read without running code, and ViTs of timm made of what they hold.

The width comes from the weights, so that a narrow ViT in a published layout loads too.
"""

import argparse
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import safetensors.torch
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import InputError

IMAGE_SIZE = 224  # pixels a side
HEAD_SIZE = 64  # of all ViTs here; their MLP is four times as wide as they are

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """What the weights of a ViT do not tell."""

    patch_size: int  # pixels a side
    n_blocks: int = 12
    trained_size: int = IMAGE_SIZE  # image size (pixels) at which pos_embed was trained
    layer_scale: bool = False
    clip: bool = False  # a LayerNorm before the blocks, eps 1e-5, a projection at the end
    activation: type[nn.Module] = nn.GELU


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of weights holds by name: one of safetensors, or of torch; known by its first bytes, not its name.

    InputError for what is neither; nothing of a file is run.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] != b"{":
        return read_torch(path, str(path))
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}); fetch it again") from error


def read_torch(file: Path | IO[bytes], where: str) -> dict[str, Any]:
    """`torch.load` that runs no code; a training script's argparse.Namespace beside the weights is let through."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # for a file that is no pickle it raises whatever its parser runs into
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where} is not a torch file of weights ({reason}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{where} should hold a dict of weights and holds a {type(loaded).__name__}")
    return loaded


def is_weights(saved: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether this holds plain tensors of floating point by name."""
    return isinstance(saved, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        for name, value in saved.items()
    )


def make_vit(weights: Weights, architecture: Architecture, where: str) -> tuple[VisionTransformer, Tensor | None]:
    """timm's ViT in the width that the weights have, and CLIP's projection, `proj`.

    The weights have timm's names and are float32; each must fit and be used. `where` names the file in an InputError.
    """
    shape = tuple(weights["cls_token"].shape) if "cls_token" in weights else (0,)
    width = shape[-1] if shape else 0
    if shape != (1, 1, width) or width == 0 or width % HEAD_SIZE:
        raise InputError(
            f"{where}: the weight cls_token: expected (1, 1, a multiple of {HEAD_SIZE}), "
            f"got {shape if 'cls_token' in weights else 'nothing'}; is it another model's?"
        )
    norm = functools.partial(nn.LayerNorm, eps=1e-5 if architecture.clip else 1e-6)
    with torch.device("meta"):  # no memory and no random first weights, which would take longer than all else here
        vit = VisionTransformer(
            img_size=IMAGE_SIZE,
            patch_size=architecture.patch_size,
            embed_dim=width,
            depth=architecture.n_blocks,
            num_heads=width // HEAD_SIZE,
            init_values=1.0 if architecture.layer_scale else None,
            num_classes=0,
            norm_layer=norm,
            act_layer=architecture.activation,
        )
        if architecture.clip:
            vit.norm_pre = norm(width)  # not pre_norm=True, which takes away a bias that DreamSim's files have
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    expected["pos_embed"] = (1, 1 + (architecture.trained_size // architecture.patch_size) ** 2, width)
    if architecture.clip:
        expected["proj"] = (width, *weights.get("proj", torch.empty(1, 1)).shape[-1:])
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise InputError(
                f"{where}: the weight {name}: expected {expected.get(name, 'nothing')}, "
                f"got {got.get(name, 'nothing')}; is it another model's?"
            )
    own = {name: value for name, value in weights.items() if name != "proj"}
    if architecture.trained_size != IMAGE_SIZE:
        own["pos_embed"] = _interpolate(own["pos_embed"], IMAGE_SIZE // architecture.patch_size)
    vit.load_state_dict(own, assign=True)
    return vit, weights.get("proj")


def _interpolate(positions: Tensor, side: int) -> Tensor:
    """The positions of a square grid for one of `side` x `side`, (1, 1 + side^2, width), as DINOv2's own model does it.

    It passes scale_factor = (side + 0.1) / trained instead of size, without antialiasing. Using size changes the
    embedding by about 1 %, so we copy it.
    """
    cls, grid = positions[:, :1], positions[:, 1:]
    trained = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / trained
    grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
