"""CLIP, OpenCLIP, DINO and DINOv2 as their authors publish them, read as gLocal was fitted.

The reference is what thingsvision 2.7 extracts:

- CLIP, OpenCLIP: the module `visual`, which is the CLS token after the last LayerNorm, projected.
- DINO, DINOv2: the CLS token of the module `norm`.
- Pictures: the shorter side is resized to 224 pixels (CLIP) or 256 (DINO), and the middle 224 x 224
  is used. dreamsim resizes the whole picture instead.

Sources: CLIP, arXiv 2103.00020, huggingface.co/openai; OpenCLIP, arXiv 2212.07143,
github.com/mlfoundations/open_clip and huggingface.co/laion; DINO, arXiv 2104.14294, and DINOv2,
arXiv 2304.07193, dl.fbaipublicfiles.com; thingsvision, doi 10.3389/fninf.2021.679838,
github.com/ViCCo-Group/thingsvision.

Deliberate differences:

- OpenAI's own file of CLIP is a program (TorchScript). The same weights are taken from the file
  that OpenAI publishes for transformers.
- thingsvision computes CLIP in half precision on a GPU. Here CLIP is float32.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from timm.layers import QuickGELU
from torch import Tensor

from pipeline.errors import InputError
from pipeline.images.models.checkpoints import Architecture, make_vit
from pipeline.images.models.vit import CLIP, HALF, IMAGENET, Framing, ImageEncoder, Pixels, ViT
from pipeline.untrusted.weights import HOW_TO_REPLACE, is_weights, read_weights

Weights = dict[str, Tensor]

# What to replace in a name: theirs -> timm's.
_OPEN_CLIP = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.": "patch_embed.proj.",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
_TRANSFORMERS = {
    "visual_projection.weight": "proj",
    "vision_model.": "",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "pre_layrnorm.": "norm_pre.",
    "post_layernorm.": "norm.",
    "encoder.layers.": "blocks.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
    ".self_attn.out_proj.": ".attn.proj.",
}


def _of_open_clip(saved: Weights) -> Weights:
    """The image tower of an open_clip model under timm's names."""
    weights = {
        _rename(name.removeprefix("visual."), _OPEN_CLIP): value for name, value in saved.items()
    }
    return _of_clip(weights)


def _of_transformers(saved: Weights) -> Weights:
    """The image tower of a CLIPModel of transformers under timm's names.

    transformers has one weight each for queries, keys and values; timm has one for all three.
    """
    weights: Weights = {}
    qkv: dict[str, Weights] = {}  # timm's name -> the weights of "q", "k" and "v"
    for name, value in saved.items():
        match = re.fullmatch(r"(.+\.)self_attn\.([qkv])_proj(\..+)", name)
        if match:
            timm_name = _rename(f"{match[1]}attn.qkv{match[3]}", _TRANSFORMERS)
            qkv.setdefault(timm_name, {})[match[2]] = value
        else:
            weights[_rename(name, _TRANSFORMERS)] = value

    # A part that is missing gives a wrong shape, which is an InputError later.
    for name, parts in qkv.items():
        weights[name] = torch.cat([parts[part] for part in "qkv" if part in parts])
    if "proj" in weights:
        weights["proj"] = weights["proj"].T
    return _of_clip(weights)


def _rename(name: str, replacements: dict[str, str]) -> str:
    for their_part, our_part in replacements.items():
        name = name.replace(their_part, our_part)
    return name


def _of_clip(weights: Weights) -> Weights:
    """The same weights in timm's shapes, and a bias of zeros for the patches: CLIP has none."""
    # timm's cls_token is (1, 1, width), its pos_embed (1, positions, width).
    for name, n_axes in (("cls_token", 1), ("pos_embed", 2)):
        if name in weights and weights[name].ndim == n_axes:
            weights[name] = weights[name].reshape(*[1] * (3 - n_axes), *weights[name].shape)

    if "cls_token" in weights:
        weights["patch_embed.proj.bias"] = torch.zeros(weights["cls_token"].shape[-1:])
    return weights


@dataclass(frozen=True)
class PublishedViT:
    """How a ViT was published, and what is read from it."""

    architecture: Architecture
    pixels: Pixels
    framing: Framing
    prefixes: tuple[str, ...]  # only weights whose names begin so are read
    rename: Callable[[Weights], Weights]
    ignored: tuple[str, ...] = ()


_L14 = Architecture(14, n_blocks=24, clip=True)
_CLIP_FRAMING = Framing(short_side=224)
_DINO_FRAMING = Framing(interpolation="bilinear", short_side=256)

# By our names. DINO and DINOv2 need no renaming: timm took over their names.
VITS = {
    "clip_vitl14": PublishedViT(
        replace(_L14, activation=QuickGELU),
        CLIP,
        _CLIP_FRAMING,
        ("vision_model.", "visual_projection."),
        _of_transformers,
        ignored=("vision_model.embeddings.position_ids",),  # 0 to 256
    ),
    "open_clip_vitl14_laion400m": PublishedViT(
        _L14, CLIP, _CLIP_FRAMING, ("visual.",), _of_open_clip
    ),
    "open_clip_vitl14_laion2b": PublishedViT(
        _L14, HALF, _CLIP_FRAMING, ("visual.",), _of_open_clip
    ),
    "dino_vitb8": PublishedViT(Architecture(8), IMAGENET, _DINO_FRAMING, ("",), dict),
    "dinov2_vitl14": PublishedViT(
        Architecture(14, n_blocks=24, trained_size=518, layer_scale=True),
        IMAGENET,
        _DINO_FRAMING,
        ("",),
        dict,
        ignored=("mask_token",),  # for its training alone
    ),
}


def load_encoder(checkpoint: Path, name: str) -> ImageEncoder:
    """The image encoder in evaluation mode; InputError if the file is damaged or another model's.

    Every weight of the image tower must be there in its shape, and no other.
    """
    published = VITS[name]
    saved = read_weights(checkpoint)
    saved = saved.get("state_dict", saved)  # of a checkpoint that was written while training

    tower = {}
    for key, value in saved.items() if isinstance(saved, dict) else ():
        key = str(key).removeprefix("module.")
        if key.startswith(published.prefixes) and key not in published.ignored:
            tower[key] = value
    if not tower or not is_weights(tower):
        raise InputError(
            f"{checkpoint} should hold the weights of {name} by name; {HOW_TO_REPLACE}"
        )

    weights = {key: value.float() for key, value in published.rename(tower).items()}
    vit, projection = make_vit(weights, published.architecture, str(checkpoint))
    image_encoder = ImageEncoder(
        [ViT(vit, published.pixels, normed=True, projection=projection)], published.framing
    )
    return image_encoder.eval().requires_grad_(False)
