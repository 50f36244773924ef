"""Vision Transformers of timm as image encoders: pixels in, embeddings of any blocks out."""

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
from pipeline.sections import BlockChoice

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

    Without `short_side` the whole picture is resized, as dreamsim does it. With `short_side` the
    shorter side is resized to so many pixels and the middle is cut out, as thingsvision does it.
    `side` is that of the square, in pixels; `interpolation` is the name of a mode of torchvision.
    """

    side: int = 224
    interpolation: str = "bicubic"
    short_side: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB -> (3, side, side) uint8."""
        mode = transforms.InterpolationMode(self.interpolation)
        size = [self.side, self.side] if self.short_side is None else [self.short_side]
        resized = transforms.resize(image, size, mode)
        return transforms.pil_to_tensor(transforms.center_crop(resized, [self.side]))

    def __str__(self) -> str:
        if self.short_side is None:
            return f"whole image resized to {self.side} x {self.side} ({self.interpolation})"
        return (
            f"shorter side resized to {self.short_side} ({self.interpolation}), "
            f"of that the middle {self.side} x {self.side}"
        )


class ViT(nn.Module):
    """One ViT with a CLS token, the normalisation before it, and what is read from it.

    The block "last" is the CLS token after the last block. If `normed`, it passes the last
    LayerNorm; with a `projection` (width, D) it is then multiplied by it. With `with_patches`, the
    mean of the patch tokens follows the CLS token in the embedding.
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
        self.vit = vit
        self.pixels = pixels
        self.normed = normed
        self.with_patches = with_patches
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(pixels.sd).view(3, 1, 1))
        self.register_buffer("projection", projection)

    def feature(self, block: BlockChoice, tokens: Tokens) -> str:
        """What stands for an image, in words."""
        mean = "mean of the patch tokens, each"
        if tokens == "mean":
            token = mean
        elif self.with_patches:
            token = f"CLS token and {mean}"
        else:
            token = "CLS token"

        if block != "last":
            return f"{token} after block {block}"
        if not self.normed:
            return f"{token} after the last block, before the last LayerNorm"
        projected = ", projected" if self.projection is not None else ""
        return f"{token} after the last LayerNorm{projected}"

    def forward(
        self, images: Tensor, blocks: Sequence[BlockChoice], tokens: Tokens
    ) -> list[Tensor]:
        """Pixels (B, 3, side, side) in [0, 1] -> one (B, D) for each block."""
        # "last" and the number of the last block are two readings of the same tokens.
        numbers = [len(self.vit.blocks) if block == "last" else block for block in blocks]
        distinct = sorted(set(numbers))
        outputs: Any = self.vit.forward_intermediates(
            (images - self.mean) / self.sd,
            indices=[number - 1 for number in distinct],
            norm=False,
            stop_early=True,
            intermediates_only=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
        )

        # After each block: patch tokens (B, patches, width), prefix tokens (B, prefix, width)
        tokens_after = dict(zip(distinct, outputs, strict=True))
        return [
            self._pool(block, tokens_after[number], tokens)
            for block, number in zip(blocks, numbers, strict=True)
        ]

    def _pool(self, block: BlockChoice, after: tuple[Tensor, Tensor], tokens: Tokens) -> Tensor:
        """The patch and prefix tokens after a block -> (B, D)."""
        patches, prefix = after
        cls = prefix[:, :1]  # behind the CLS token some ViTs have registers
        if tokens == "mean":
            parts = [patches]
        elif self.with_patches:
            parts = [cls, patches]
        else:
            parts = [cls]

        if block == "last":
            parts = [self._norm_and_project(part) for part in parts]
        return torch.cat([part.mean(1) for part in parts], dim=-1)

    def _norm_and_project(self, tokens: Tensor) -> Tensor:
        if self.normed:
            tokens = self.vit.norm(tokens)
        return tokens if self.projection is None else tokens @ self.projection


class ImageEncoder(nn.Module):
    """A frozen backbone of one ViT or more: pixels (B, 3, side, side) in [0, 1] -> (B, D).

    The embeddings of several blocks come from one pass. `framing` makes the pixels of a picture;
    `preprocessing` says in words what is done to it before the blocks. All ViTs have the same
    number of blocks and take images of the same size.
    """

    # Set by accelerate(), for layers that it does not replace
    arithmetic: torch.dtype = torch.float32

    def __init__(self, vits: Sequence[ViT], framing: Framing | None = None) -> None:
        super().__init__()
        self.vits = cast(Sequence[ViT], nn.ModuleList(vits))
        self.n_blocks = len(vits[0].vit.blocks)
        self.framing = framing or Framing(vits[0].vit.patch_embed.img_size[0])
        self.preprocessing = (
            f"{self.framing}; mean and std of {'; '.join(vit.pixels.name for vit in vits)}"
        )

    def feature(self, block: BlockChoice, tokens: Tokens) -> str:
        """What stands for an image, in words; only for "last" may the ViTs differ."""
        vits = self.vits if block == "last" else self.vits[:1]
        return "; ".join(vit.feature(block, tokens) for vit in vits)

    def forward(
        self, images: Tensor, blocks: Sequence[BlockChoice] = ("last",), tokens: Tokens = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for a block that the encoder does not have.

        A number i in 1..n_blocks is the residual stream after block i, without norm or projection.
        `tokens`: the CLS token, or the mean of the patch tokens; for "last" each patch token first
        gets the norm and the projection that the CLS token gets. The embeddings of several ViTs are
        concatenated.
        """
        check_blocks(blocks, self.n_blocks)
        outputs = [vit(images, blocks, tokens) for vit in self.vits]
        return [torch.cat(parts, dim=-1) for parts in zip(*outputs, strict=True)]


def check_blocks(blocks: Sequence[BlockChoice], n_blocks: int) -> None:
    """InputError for the first block that an encoder with `n_blocks` does not have."""
    wrong = [block for block in blocks if block != "last" and not 1 <= block <= n_blocks]
    if wrong:
        available = f"the blocks 1 to {n_blocks} and last" if n_blocks else "last alone"
        raise InputError(f"embed.blocks: this encoder has {available}, not {wrong[0]}")
