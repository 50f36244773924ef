"""Views of a picture: itself, and degraded ones, which may be closer to what the brain keeps of it.

`original`, and, of a picture as the encoder gets it:

- `blur-<sd>`: a Gaussian blur; the sd in pixels.
- `low-resolution-<pixels>`: made so many pixels high and wide, and large again, both bilinear.
- `noise-<sd>`: Gaussian noise in every pixel and colour; the sd on the scale where black is 0 and
  white 1.

Published, each at 224 x 224 after the resize and before mean and std, as here:

- UBP (arXiv 2503.04207, github.com/HaitaoWuTJU/Uncertainty-aware-Blur-Prior): blur, OpenCV's
  kernels of 45, 45 and 51 pixels (blur-7.1, which is that of the test, and blur-8).
- Visual blur perception (AAAI 2026, github.com/makeitperfect/VisualEEGDecoding): blur, OpenCV's
  kernels of 3 to 63 (blur-0.8, blur-1.7, then each 0.9 wider up to blur-9.8), beside the original.
- NeuroBridge (arXiv 2511.06836, github.com/feroooooo/NeuroBridge): OpenCV's kernel of 15
  (blur-2.6), a tenth of the pixels (low-resolution-22), noise of 25 grey levels (noise-0.098), and
  a mosaic, which we do not have.

A blur is OpenCV's GaussianBlur, to the bit.

Deliberate differences:

- The resize before a view is the bicubic one of the cache.
- UBP blurs less towards the middle of the picture; here the blur is the same everywhere.
- NeuroBridge cuts off the fraction of noisy pixels; here they are rounded. Each image always gets
  the same noise.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from pipeline.errors import InputError, suggestion
from pipeline.images.embeddings import ORIGINAL

# A blur mirrors half of its kernel beside the picture, which must be wide enough. torch 2.14 cannot
# resize a picture to one pixel.
RANGES = {"blur": (0, 64), "low-resolution": (2, 223), "noise": (0, 1)}

KERNEL_SUM = 256  # OpenCV's kernels for 8-bit pictures are whole numbers with this sum

# Of 3 to 9 pixels OpenCV has fixed kernels, by its sd for that width; it computes all others.
SMALL_KERNELS = {
    0.8: (64, 128, 64),
    1.1: (16, 64, 96, 64, 16),
    1.4: (8, 28, 56, 72, 56, 28, 8),
    1.7: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}


def check_views(views: Sequence[str]) -> None:
    """InputError unless these are `original` and then degraded views, none of them twice."""
    for view in views:
        if view != ORIGINAL:
            _parse(view)
    if views[0] != ORIGINAL:
        raise InputError(f"embed.views is {list(views)}: its first must be original")
    if len(set(views)) < len(views):
        raise InputError(f"embed.views names a view twice: {list(views)}; name each once")


def _parse(view: str) -> tuple[str, float]:
    """The kind of a degraded view, and its strength; InputError for a wrong name.

    A number has only one right spelling, so that a view has only one name.
    """
    kind, _, number = view.rpartition("-")
    digits = r"\d+" if kind == "low-resolution" else r"\d+(\.\d+)?"
    if kind in RANGES and re.fullmatch(digits, number, re.ASCII):
        strength = float(number)
        least, most = RANGES[kind]
        if number == f"{strength:.15g}" and strength > 0 and least <= strength <= most:
            return kind, strength

    near = "" if (kind or view) in RANGES else suggestion(kind or view, (ORIGINAL, *RANGES))
    raise InputError(
        f"embed.views has {view!r}: should be original, blur-<sd in pixels, up to 64> such as "
        "blur-2.6, low-resolution-<pixels, 2 to 223> such as low-resolution-22, or noise-<sd "
        "between black 0 and white 1> such as noise-0.1; a number has no zero too many"
        f"{near}"
    )


def degrade(picture: Tensor, view: str, image_id: str) -> Tensor:
    """A view of a picture (3, side, side) uint8, in the same shape and dtype.

    It depends only on the arguments: the image's id is the seed of its noise. InputError for a
    wrong name.
    """
    if view == ORIGINAL:
        return picture

    kind, strength = _parse(view)
    if kind == "blur":
        return _blur(picture, strength)
    if kind == "low-resolution":
        small = transforms.resize(picture, [int(strength)] * 2, InterpolationMode.BILINEAR)
        return transforms.resize(small, list(picture.shape[1:]), InterpolationMode.BILINEAR)
    return _add_noise(picture, strength, image_id)


def _blur(picture: Tensor, sd: float) -> Tensor:
    """OpenCV's Gaussian blur of 8-bit pictures, as in the published code.

    One pass along each axis. Every sum is a whole number below 2^24, which float32 holds exactly.
    """
    kernel = torch.tensor(_kernel(sd), dtype=torch.float32)
    margin = len(kernel) // 2
    mirrored = F.pad(picture.float(), [margin] * 4, mode="reflect")  # (3, H, W)

    of_each_colour = kernel.expand(3, 1, 1, -1)
    one_axis = F.conv2d(mirrored, of_each_colour, groups=3)
    both_axes = F.conv2d(one_axis, of_each_colour.mT, groups=3)
    return (both_axes / KERNEL_SUM**2 + 0.5).floor().to(torch.uint8)


def _kernel(sd: float) -> Sequence[int]:
    """The kernel of the width for which OpenCV takes this sd: n pixels have the sd 0.15 n + 0.35.

    The values are rounded from the edge to the middle. Each takes over the rounding error of the
    one before, and the middle takes what is left of the sum.
    """
    if sd in SMALL_KERNELS:
        return SMALL_KERNELS[sd]

    margin = max(1, round((sd - 0.35) / 0.3 - 0.5))
    gaussian = np.exp(-0.5 * (np.arange(-margin, margin + 1) / sd) ** 2)
    exact = KERNEL_SUM * gaussian / gaussian.sum()

    side = []
    error = 0.0
    for value in exact[:margin]:
        side.append(round(value + error))
        error += value - side[-1]
    return [*side, KERNEL_SUM - 2 * sum(side), *reversed(side)]


def _add_noise(picture: Tensor, sd: float, image_id: str) -> Tensor:
    # Not torchvision's gaussian_noise: it draws from torch's global generator, which all threads
    # share.
    seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8])
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return (picture + 255 * sd * noise).round().clamp(0, 255).to(torch.uint8)
