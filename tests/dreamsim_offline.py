"""dreamsim without a network: what it gets from torch.hub comes from the archive, and its ViTs can be narrow."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import dreamsim
import torch
from dreamsim.config import dreamsim_args
from dreamsim.feature_extraction import (
    load_clip_as_dino,
    load_open_clip_as_dino,
    load_synclr_as_dino,
    vision_transformer,
)
from dreamsim.model import PerceptualModel
from torch import Tensor, nn


def load_dreamsim(
    folder: Path, backbone: str, variant: Literal["unaligned", "aligned"], embed_dim: int
) -> nn.Module:
    """dreamsim's own model of the files in `folder`, where the archive was unpacked."""
    with offline(folder, embed_dim):
        if variant == "aligned":
            name = backbone.removesuffix("_patch")
            options = {
                "use_patch_model": backbone != name,
                "normalize_embeds": False,
                "device": "cpu",
            }
            return dreamsim.dreamsim(dreamsim_type=name, cache_dir=str(folder), **options)[0]
        config = dreamsim_args["model_config"][backbone] | {"lora": False}
        return PerceptualModel(**config, baseline=True, load_dir=str(folder), device="cpu").eval()


def make_dino(embed_dim: int, patch_size: int, depth: int = 12, dinov2: bool = False) -> nn.Module:
    """DINO's network, or DINOv2's: its output is the CLS token after the last LayerNorm."""
    if not dinov2:
        return _vit(embed_dim, patch_size, depth)
    with patch.object(vision_transformer, "Block", _BlockWithLayerScale):
        vit = _vit(embed_dim, patch_size, depth, img_size=[518])
    vit.mask_token = nn.Parameter(torch.empty(1, embed_dim))
    return vit


@contextmanager
def offline(folder: Path, embed_dim: int) -> Iterator[None]:
    """While this lasts, dreamsim calls no network.

    torch.hub's DINO is a copy of the code that dreamsim carries along, so that is taken. It carries no DINOv2: that one
    is DINO's with LayerScale after attention and MLP, `mask_token`, and positions for images of 518 x 518.
    """

    def load_from_hub(repository: str, model_type: str) -> nn.Module:
        if model_type == "dino_vitb16":
            vit = make_dino(embed_dim, 16)
            teacher = torch.load(folder / "dino_vitb16_pretrain.pth", weights_only=True)["teacher"]
            weights = {
                name.removeprefix("backbone."): value
                for name, value in teacher.items()
                if "head." not in name
            }
        else:
            assert model_type == "dinov2_vitb14"
            vit = make_dino(embed_dim, 14, dinov2=True)
            weights = torch.load(folder / "dinov2_vitb14_pretrain.pth", weights_only=True)
        vit.load_state_dict(weights)
        return vit

    with ExitStack() as stack:
        for module in (load_synclr_as_dino, load_clip_as_dino, load_open_clip_as_dino):
            stack.enter_context(
                patch.object(module, "vit_base", functools.partial(_vit, embed_dim))
            )
        stack.enter_context(patch.object(torch.hub, "load", load_from_hub))
        stack.enter_context(patch.object(torch.hub, "set_dir"))
        stack.enter_context(
            warnings.catch_warnings(action="ignore")
        )  # of peft and torch, about what dreamsim does
        yield


def _vit(embed_dim: int, patch_size: int = 16, depth: int = 12, **arguments) -> nn.Module:
    """dreamsim's `vit_base`, in another width."""
    return vision_transformer.VisionTransformer(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // 64,
        qkv_bias=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        **arguments,
    )


class _BlockWithLayerScale(vision_transformer.Block):
    def __init__(self, dim: int, *args, **kwargs) -> None:
        super().__init__(dim, *args, **kwargs)
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.empty(dim)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1["gamma"] * self.attn(self.norm1(x))[0]
        return x + self.ls2["gamma"] * self.mlp(self.norm2(x))
