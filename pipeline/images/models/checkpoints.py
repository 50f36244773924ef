"""Published weights made into ViTs of timm.

The width comes from the weights, so that a narrow ViT in a published layout loads too.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.untrusted.weights import HOW_TO_REPLACE, Weights, check_finite

IMAGE_SIZE = 224  # pixels a side
HEAD_SIZE = (
    64  # width of an attention head, in all ViTs here; an MLP is four times as wide as its ViT
)


@dataclass(frozen=True)
class Architecture:
    """What a ViT has that its weights do not show."""

    patch_size: int  # pixels a side
    n_blocks: int = 12
    trained_size: int = IMAGE_SIZE  # image size (pixels) at which pos_embed was trained
    layer_scale: bool = False
    clip: bool = False  # a LayerNorm before the blocks, eps 1e-5, a projection at the end
    activation: type[nn.Module] = nn.GELU


def make_vit(
    weights: Weights, architecture: Architecture, file_name: str
) -> tuple[VisionTransformer, Tensor | None]:
    """timm's ViT in the width of its weights, and CLIP's projection (width, D), the weight `proj`.

    The weights have timm's names and are float32. InputError where one of them does not fit, is
    missing, is too many, or is not finite; `file_name` is for messages.
    """
    width = _width(weights, file_name)
    vit = _empty_vit(architecture, width)
    check_shapes(weights, _expected_shapes(vit, weights, architecture, width), file_name)
    check_finite(weights, file_name)

    vit_weights = {name: value for name, value in weights.items() if name != "proj"}
    if architecture.trained_size != IMAGE_SIZE:
        n_patches_a_side = IMAGE_SIZE // architecture.patch_size
        vit_weights["pos_embed"] = _interpolate(vit_weights["pos_embed"], n_patches_a_side)
    vit.load_state_dict(vit_weights, assign=True)
    return vit, weights.get("proj")


def _width(weights: Weights, file_name: str) -> int:
    shape = tuple(weights["cls_token"].shape) if "cls_token" in weights else (0,)
    width = shape[-1] if shape else 0
    if shape != (1, 1, width) or width == 0 or width % HEAD_SIZE:
        raise InputError(
            f"{file_name}: the weight cls_token: expected (1, 1, a multiple of {HEAD_SIZE}), got "
            f"{shape if 'cls_token' in weights else 'nothing'}; {HOW_TO_REPLACE}"
        )
    return width


def _empty_vit(architecture: Architecture, width: int) -> VisionTransformer:
    """The network without values."""
    norm = functools.partial(nn.LayerNorm, eps=1e-5 if architecture.clip else 1e-6)
    # The device "meta" takes no memory, and draws no random weights: drawing them would take
    # longer than all else here.
    with torch.device("meta"):
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
            # Not pre_norm=True: it removes a bias that DreamSim's files have.
            vit.norm_pre = norm(width)
    return vit


def _expected_shapes(
    vit: VisionTransformer, weights: Weights, architecture: Architecture, width: int
) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in the file, by name."""
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}

    n_patches = (architecture.trained_size // architecture.patch_size) ** 2
    shapes["pos_embed"] = (1, 1 + n_patches, width)  # the first position is that of the CLS token
    if architecture.clip:
        # CLIP's own embedding size may be any.
        shapes["proj"] = (width, *weights.get("proj", torch.empty(1, 1)).shape[-1:])
    return shapes


def check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]], file_name: str) -> None:
    """InputError for the first weight, by name, that is missing, too many or of another shape."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise InputError(
                f"{file_name}: the weight {name}: expected {expected.get(name, 'nothing')}, got "
                f"{shapes.get(name, 'nothing')}; {HOW_TO_REPLACE}"
            )


def _interpolate(positions: Tensor, side: int) -> Tensor:
    """Positions for a grid of `side` x `side` patches, (1, 1 + side^2, width), made as DINOv2 does.

    DINOv2 passes scale_factor = (side + 0.1) / trained instead of size, without antialiasing. With
    size, the embedding would differ by about 1 %, so we copy it.
    """
    cls = positions[:, :1]
    grid = positions[:, 1:]
    trained_side = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (trained_side, trained_side)).permute(0, 3, 1, 2)

    scale = (side + 0.1) / trained_side
    grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
