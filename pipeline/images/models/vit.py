"""Vision Transformers of timm as image encoders: pixels in, the embeddings of any of their blocks out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from pipeline.errors import InputError
from pipeline.sections import Block

Tokens = Literal["cls", "mean"]


@dataclass(frozen=True)
class Pixels:
    """The mean and standard deviation of each colour, in [0, 1], that a ViT was trained with."""

    name: str
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


IMAGENET = Pixels("ImageNet", IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
CLIP = Pixels("CLIP", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
HALF = Pixels("one half", IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)


@dataclass(frozen=True)
class Framing:
    """How a picture of any size becomes the square that a model sees.

    The whole picture is resized, as dreamsim does it; with `short_side` its shorter side is resized to so many pixels
    and the middle is kept, as thingsvision does it.
    """

    side: int = 224  # pixels
    interpolation: str = "bicubic"
    short_side: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB -> (3, side, side) uint8."""
        mode = transforms.InterpolationMode(self.interpolation)
        size = [self.side, self.side] if self.short_side is None else [self.short_side]
        return transforms.pil_to_tensor(
            transforms.center_crop(transforms.resize(image, size, mode), [self.side])
        )

    def __str__(self) -> str:
        if self.short_side is None:
            return f"whole image resized to {self.side} x {self.side} ({self.interpolation})"
        return (
            f"shorter side resized to {self.short_side} ({self.interpolation}), of that the middle "
            f"{self.side} x {self.side}"
        )


class ViT(nn.Module):
    """One ViT with a CLS token, the normalisation before it, and what is read from it.

    "last" is the token after the last block, `normed` by the last LayerNorm or not, times `projection` (width, D) or
    not. `with_patches`: after the CLS token stands the mean of the patch tokens, (width + width).
    """

    mean: Tensor
    sd: Tensor
    projection: Tensor | None
    vit: VisionTransformer

    def __init__(
        self,
        vit: VisionTransformer,
        pixels: Pixels = IMAGENET,
        normed: bool = False,
        projection: Tensor | None = None,
        with_patches: bool = False,
    ) -> None:
        super().__init__()
        self.vit, self.pixels, self.normed, self.with_patches = vit, pixels, normed, with_patches
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(pixels.sd).view(3, 1, 1))
        self.register_buffer("projection", projection)

    def feature(self, block: Block, tokens: Tokens) -> str:
        """What stands for an image, in words."""
        mean = "mean of the patch tokens, each"
        token = (
            mean
            if tokens == "mean"
            else f"CLS token and {mean}"
            if self.with_patches
            else "CLS token"
        )
        if block != "last":
            return f"{token} after block {block}"
        if not self.normed:
            return f"{token} after the last block, before the last LayerNorm"
        return f"{token} after the last LayerNorm" + (
            ", projected" if self.projection is not None else ""
        )

    def forward(self, images: Tensor, blocks: Sequence[Block], tokens: Tokens) -> list[Tensor]:
        numbers = [len(self.vit.blocks) if block == "last" else block for block in blocks]
        kept = sorted(set(numbers))
        outputs: Any = self.vit.forward_intermediates(
            (images - self.mean) / self.sd,
            indices=[number - 1 for number in kept],
            norm=False,
            stop_early=True,
            intermediates_only=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
        )
        after = dict(zip(kept, outputs, strict=True))  # (B, patches, width), (B, prefix, width)
        return [
            self._read(block, after[number], tokens)
            for block, number in zip(blocks, numbers, strict=True)
        ]

    def _read(self, block: Block, after: tuple[Tensor, Tensor], tokens: Tokens) -> Tensor:
        patches, prefix = after
        cls = prefix[:, :1]  # behind the CLS token some ViTs have registers
        parts = [patches] if tokens == "mean" else [cls, patches] if self.with_patches else [cls]
        return torch.cat(
            [(self._last(part) if block == "last" else part).mean(1) for part in parts], dim=-1
        )

    def _last(self, tokens: Tensor) -> Tensor:
        if self.normed:
            tokens = self.vit.norm(tokens)
        return tokens if self.projection is None else tokens @ self.projection


class ImageEncoder(nn.Module):
    """A frozen backbone of one ViT or more: pixels (B, 3, side, side) in [0, 1] -> embeddings (B, D).

    Those of several blocks come from one pass. `framing` makes the pixels of a picture; `preprocessing` says in words
    what is done to it before the blocks. All ViTs have as many blocks and take images of the same size.
    """

    # As `acceleration` sets it; layers that it replaces need not look
    arithmetic: torch.dtype = torch.float32

    def __init__(self, vits: Sequence[ViT], framing: Framing | None = None) -> None:
        super().__init__()
        self.vits = cast(Sequence[ViT], nn.ModuleList(vits))
        self.n_blocks = len(vits[0].vit.blocks)
        self.framing = framing or Framing(vits[0].vit.patch_embed.img_size[0])
        self.preprocessing = (
            f"{self.framing}; mean and std of {'; '.join(vit.pixels.name for vit in vits)}"
        )

    def feature(self, block: Block, tokens: Tokens) -> str:
        """What stands for an image, in words; of several ViTs one after the other where they differ."""
        return "; ".join(
            vit.feature(block, tokens) for vit in self.vits[: None if block == "last" else 1]
        )

    def forward(
        self, images: Tensor, blocks: Sequence[Block] = ("last",), tokens: Tokens = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for a block that is not there.

        A number i in 1..n_blocks is the residual stream after block i, without norm or projection. `tokens`: the CLS
        token, or the mean of the patch tokens; for "last" each of them first gets the norm and the projection that the
        CLS token gets. The embeddings of several ViTs are concatenated.
        """
        check_blocks(blocks, self.n_blocks)
        each = [vit(images, blocks, tokens) for vit in self.vits]
        return [torch.cat(parts, dim=-1) for parts in zip(*each, strict=True)]


def check_blocks(blocks: Sequence[Block], n_blocks: int) -> None:
    """InputError for the first block that an encoder with so many has not."""
    wrong = [block for block in blocks if block != "last" and not 1 <= block <= n_blocks]
    if wrong:
        there = f"the blocks 1 to {n_blocks} and last" if n_blocks else "last alone"
        raise InputError(f"embed.blocks: this encoder has {there}, not {wrong[0]}")
