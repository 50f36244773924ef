"""Vision Transformers of timm as image encoders: pixels in, the embeddings of any of their blocks out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from pipeline.errors import InputError

Block = int | Literal["last"]


@dataclass(frozen=True)
class Pixels:
    """The mean and standard deviation of each colour, in [0, 1], that a ViT was trained with."""

    name: str
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


IMAGENET = Pixels("ImageNet", IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
CLIP = Pixels("CLIP", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


class ViT(nn.Module):
    """One ViT with a CLS token, the normalisation before it, and what is read from it.

    "last" is the token after the last block, `normed` by the last LayerNorm or not, times `projection` (width, D) or
    not.
    """

    mean: Tensor
    sd: Tensor
    projection: Tensor | None
    vit: VisionTransformer

    def __init__(
        self, vit: VisionTransformer, pixels: Pixels = IMAGENET, normed: bool = False, projection: Tensor | None = None
    ) -> None:
        super().__init__()
        self.vit, self.pixels, self.normed = vit, pixels, normed
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(pixels.sd).view(3, 1, 1))
        self.register_buffer("projection", projection)

    @property
    def feature(self) -> str:
        """What "last" is, in words."""
        if not self.normed:
            return "CLS token after the last block, before the last LayerNorm"
        return "CLS token after the last LayerNorm" + (", projected" if self.projection is not None else "")

    def forward(self, images: Tensor, blocks: Sequence[Block], tokens: Literal["cls", "mean"]) -> list[Tensor]:
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
        after = {  # (B, 1, width) or (B, patches, width); behind the CLS token some ViTs have registers
            number: prefix[:, :1] if tokens == "cls" else patches
            for number, (patches, prefix) in zip(kept, outputs, strict=True)
        }
        return [
            (self._last(after[number]) if block == "last" else after[number]).mean(1)
            for block, number in zip(blocks, numbers, strict=True)
        ]

    def _last(self, tokens: Tensor) -> Tensor:
        if self.normed:
            tokens = self.vit.norm(tokens)
        return tokens if self.projection is None else tokens @ self.projection


class ImageEncoder(nn.Module):
    """A frozen backbone of one ViT or more: pixels (B, 3, side, side) in [0, 1] -> embeddings (B, D).

    Those of several blocks come from one pass. `feature` and `preprocessing` say in words what "last" is and what is
    done to an image before the blocks; all ViTs have as many blocks and take images of the same size.
    """

    def __init__(self, vits: Sequence[ViT]) -> None:
        super().__init__()
        self.vits = cast(Sequence[ViT], nn.ModuleList(vits))
        self.n_blocks = len(vits[0].vit.blocks)
        self.side = vits[0].vit.patch_embed.img_size[0]  # pixels
        self.feature = "; ".join(vit.feature for vit in vits)
        pixels = "; ".join(vit.pixels.name for vit in vits)
        self.preprocessing = f"whole image resized to {self.side} x {self.side} (bicubic); mean and std of {pixels}"

    def forward(
        self, images: Tensor, blocks: Sequence[Block] = ("last",), tokens: Literal["cls", "mean"] = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for a block that is not there.

        A number i in 1..n_blocks is the residual stream after block i, without norm or projection. `tokens`: the CLS
        token, or the mean of the patch tokens; for "last" each of them first gets the norm and the projection that the
        CLS token gets. The embeddings of several ViTs are concatenated.
        """
        wrong = [block for block in blocks if block != "last" and not 1 <= block <= self.n_blocks]
        if wrong:
            raise InputError(f"blocks: this encoder has the blocks 1 to {self.n_blocks} and last, not {wrong[0]}")
        each = [vit(images, blocks, tokens) for vit in self.vits]
        return [torch.cat(parts, dim=-1) for parts in zip(*each, strict=True)]


def resize(image: Image.Image, side: int) -> Tensor:
    """An RGB picture of any size -> (3, side, side) uint8: a bicubic resize without cropping, as dreamsim's."""
    return transforms.pil_to_tensor(transforms.resize(image, [side, side], transforms.InterpolationMode.BICUBIC))
