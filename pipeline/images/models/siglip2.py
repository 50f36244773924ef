"""SigLIP2 ViT-B/16 as timm publishes it, and as AligNet has aligned it with people.

Sources: SigLIP 2, arXiv 2502.14786, in timm's layout huggingface.co/timm; AligNet, Nature 647, 349
(2025), github.com/google-deepmind/alignet; its weights for PyTorch, github.com/ViCCo-Group/dimpred,
release alignet-weights-v1.

"last" is what the attention pooling gives, 768 numbers. A numbered block is the mean of its tokens:
there is no CLS token.

AligNet trained all weights on, and keeps three heads that are not read here. It differs from timm's
model in more than its weights, and so do the two encoders here:

- Its GELU is the tanh approximation, as in SigLIP2's own code; timm's is exact.
- Its pictures are resized as OpenCV's INTER_CUBIC does, without antialiasing, and have values from
  0 to 1 without mean and standard deviation. timm's are antialiased, with values from -1 to 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from pipeline.errors import InputError
from pipeline.images.models.checkpoints import HEAD_SIZE, check_shapes
from pipeline.images.models.timm_models import PooledModel
from pipeline.images.models.vit import Framing, ImageEncoder
from pipeline.untrusted.weights import (
    HOW_TO_REPLACE,
    Weights,
    check_finite,
    is_weights,
    read_weights,
)

TIMM_NAME = "vit_base_patch16_siglip_224.v2_webli"

# The layout of AligNet's file: the encoder's weights under timm's names, and three heads
PREFIX = "encoder."
N_TRIPLET_FEATURES = 1024
N_CLASSES = 1000  # of ImageNet

CAVEAT = (
    "AligNet learned from a teacher that was fitted on people's judgements about the concepts of "
    "THINGS, the test concepts among them: the image model has indirectly seen people compare what "
    "the EEG is tested on. Its pictures and its GELU are not quite those of the unaligned SigLIP2 "
    "(docs/image-models.md): a difference between the two may come from these too."
)


@dataclass(frozen=True)
class OpenCvFraming(Framing):
    """The whole picture resized as OpenCV's INTER_CUBIC does it: bicubic without antialiasing.

    OpenCV computes in float32. Here it is float64, so that one value in some ten thousand, which
    lies between two grey levels, may be rounded to the other one.
    """

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB -> (3, side, side) uint8."""
        pixels = transforms.pil_to_tensor(image)[None].double()
        resized = F.interpolate(pixels, [self.side, self.side], mode="bicubic")[0]
        return resized.round().clamp(0, 255).to(torch.uint8)

    def __str__(self) -> str:
        return (
            f"whole image resized to {self.side} x {self.side} (bicubic without antialiasing, as "
            "OpenCV's INTER_CUBIC)"
        )


def load_unaligned(checkpoint: Path) -> tuple[ImageEncoder, dict[str, Any]]:
    """timm's SigLIP2 in evaluation mode, and {}.

    InputError if the file is damaged or another model's.
    """
    weights = _read(checkpoint)
    model = _empty_model(_width(weights, "", checkpoint))
    check_shapes(weights, _shapes(model), str(checkpoint))
    model.load_state_dict(weights, assign=True)

    config: Any = timm.get_pretrained_cfg(TIMM_NAME)
    return PooledModel(model, config.to_dict()).eval().requires_grad_(False), {}


def load_aligned(checkpoint: Path) -> tuple[ImageEncoder, dict[str, Any]]:
    """AligNet's SigLIP2 in evaluation mode, and its name.

    InputError if the file is damaged or another model's.
    """
    saved = _read(checkpoint)
    width = _width(saved, PREFIX, checkpoint)
    model = _empty_model(width, activation="gelu_tanh")
    expected = {f"{PREFIX}{name}": shape for name, shape in _shapes(model).items()}
    check_shapes(saved, expected | head_shapes(width), str(checkpoint))
    model.load_state_dict({name: saved[f"{PREFIX}{name}"] for name in _shapes(model)}, assign=True)

    from_0_to_1 = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    image_encoder = PooledModel(model, from_0_to_1, OpenCvFraming())
    return image_encoder.eval().requires_grad_(False), {"model": "AligNet SigLIP2-B"}


def head_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the heads in AligNet's file, by name."""
    return {
        "triplet_head.weight": (N_TRIPLET_FEATURES, width),
        "triplet_head.bias": (N_TRIPLET_FEATURES,),
        "i1k_norm.weight": (width,),
        "i1k_norm.bias": (width,),
        "i1k_head.weight": (N_CLASSES, width),
        "i1k_head.bias": (N_CLASSES,),
    }


def _read(checkpoint: Path) -> dict[str, Tensor]:
    weights = read_weights(checkpoint)
    if not is_weights(weights):
        raise InputError(
            f"{checkpoint} should hold the weights of SigLIP2 by name; {HOW_TO_REPLACE}"
        )
    check_finite(weights, str(checkpoint))
    return {name: value.float() for name, value in weights.items()}


def _width(weights: Weights, prefix: str, checkpoint: Path) -> int:
    """The width of the encoder; its heads all have the same width."""
    name = f"{prefix}norm.weight"
    shape = tuple(weights[name].shape) if name in weights else ()
    if len(shape) != 1 or not shape[0] or shape[0] % HEAD_SIZE:
        raise InputError(
            f"{checkpoint}: the weight {name}: expected (a multiple of {HEAD_SIZE},), got "
            f"{shape or 'nothing'}; {HOW_TO_REPLACE}"
        )
    return shape[0]


def _empty_model(width: int, activation: str | None = None) -> Any:
    """timm's model in this width, without values; `activation` in the place of its own."""
    with torch.device("meta"):
        return timm.create_model(
            TIMM_NAME,
            pretrained=False,
            num_classes=0,
            embed_dim=width,
            num_heads=width // HEAD_SIZE,
            act_layer=activation,
        )


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
