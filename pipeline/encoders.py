"""The image encoders: DreamSim's published checkpoints, rebuilt in timm with the LoRA merged into the base weights.

Source: DreamSim, arXiv 2306.09344, github.com/ssundaram21/dreamsim 0.2.1; SynCLR, arXiv 2312.17742.
What is right is what `dreamsim.PerceptualModel.embed` returns with `normalize_embeds=False` (for the unaligned encoder
with `baseline=True`): for a ViT the CLS token after the last block and before the last LayerNorm.
Deliberate differences: the archive is read in place and runs no code; the sizes of the ViT come from the weights; the
update of the LoRA, (alpha / r) B A, is added to the weights that it adapts, which leaves a plain ViT.
"""

import argparse
import functools
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from pipeline.errors import InputError
from pipeline.untrusted import open_zip, read_member

IMAGE_SIZE = 224  # pixels a side, as in dreamsim.config
HEAD_SIZE = 64  # of every ViT that DreamSim publishes; the weights do not tell it
LAYER_NORM_EPS = 1e-6  # as in dreamsim's vit_base
LARGEST_MEMBER = 2**31  # bytes; the weights of a ViT-B in float32 are a sixth of it

Block = int | Literal["last"]

# Inside the archive of a backbone: the base weights, the prefix of their names, the folder of the adapter.
LAYOUT = {"synclr_vitb16": ("synclr_vit_b_16.pth", "module.visual.", "synclr_vitb16_single_lora")}

# What torch's unpickler raises when it meets bytes that are no pickle: it does not wrap what its parser stumbles over.
_TORCH_FAULTS = (
    *(RuntimeError, ValueError, EOFError, OSError, TypeError, AttributeError, LookupError),
    *(pickle.UnpicklingError, struct.error),
)
_ADAPTER_KEY = re.compile(r"base_model\.model\.extractor_list\.0\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


class ImageEncoder(nn.Module):
    """Frozen ViTs: (B, 3, 224, 224) pixels in [0, 1] -> embeddings (B, D), those of several blocks from one pass."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.n_blocks = len(vit.blocks)
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1))

    def forward(
        self, images: Tensor, blocks: Sequence[Block] = ("last",), tokens: Literal["cls", "mean"] = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`.

        "last" is what dreamsim returns. A number i in 1..n_blocks is the residual stream after block i, without norm or
        projection. `tokens`: the CLS token, or the mean of the patch tokens, each read in the same way.
        """
        numbers = [self.n_blocks if block == "last" else block for block in blocks]
        wrong = [number for number in numbers if not 1 <= number <= self.n_blocks]
        if wrong:
            raise InputError(f"blocks: this encoder has blocks 1 to {self.n_blocks} and last, got {wrong[0]}")
        kept = sorted(set(numbers))
        outputs = self.vit.forward_intermediates(
            (images - self.mean) / self.std,
            indices=[number - 1 for number in kept],
            norm=False,
            stop_early=True,
            intermediates_only=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
        )
        pooled = {
            number: prefix[:, 0] if tokens == "cls" else patches.mean(1)
            for number, (patches, prefix) in zip(kept, outputs, strict=True)
        }
        return [pooled[number] for number in numbers]


def load_encoder(
    checkpoint: Path, backbone: str, variant: Literal["unaligned", "aligned"]
) -> tuple[ImageEncoder, dict]:
    """Build the encoder, in evaluation mode, from DreamSim's archive; also return the adapter's configuration.

    InputError if the archive is damaged or another backbone's: every weight must be there in its shape, and no other;
    the adapter must cover every layer that it says it targets.
    """
    weights_name, prefix, adapter_folder = LAYOUT[backbone]
    with open_zip(checkpoint, LARGEST_MEMBER) as archive:
        weights = _read_weights(archive, weights_name, prefix, checkpoint)
        config = _read_config(archive, f"{adapter_folder}/adapter_config.json", checkpoint)
        adapter = _read_adapter(archive, adapter_folder, checkpoint)
    vit = _build_vit(weights, checkpoint)
    _check_targets(vit, adapter, config, checkpoint)
    if variant == "aligned":
        _merge(vit, adapter, config, checkpoint)
    return ImageEncoder(vit).eval().requires_grad_(False), config


def preprocess(image: Image.Image) -> Tensor:
    """An RGB picture of any size -> (3, 224, 224) uint8: dreamsim's bicubic resize, without cropping."""
    size = [IMAGE_SIZE, IMAGE_SIZE]
    return transforms.pil_to_tensor(transforms.resize(image, size, transforms.InterpolationMode.BICUBIC))


def _load(data: bytes, member: str, checkpoint: Path) -> dict:
    """`torch.load` that runs no code; a training script's argparse.Namespace beside the weights is let through."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _TORCH_FAULTS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{checkpoint}: {member} is not a torch file of weights ({reason}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{checkpoint}: {member} should hold a dict of weights and holds a {type(loaded).__name__}")
    return loaded


def _read_weights(archive: zipfile.ZipFile, member: str, prefix: str, checkpoint: Path) -> dict[str, Tensor]:
    """The base model's weights under timm's names, which are also those of dreamsim's own ViT."""
    saved = _load(read_member(archive, member), member, checkpoint).get("model")
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f"{checkpoint}: {member} should hold tensors by name under the key 'model'")
    foreign = [name for name in saved if not name.startswith(prefix)]
    if foreign:
        raise InputError(
            f"{checkpoint}: {member}: the name {foreign[0]} should start with {prefix}; is it another model's?"
        )
    return {name.removeprefix(prefix): value.float() for name, value in saved.items()}


def _read_config(archive: zipfile.ZipFile, member: str, checkpoint: Path) -> dict:
    """What the adapter is: r, lora_alpha, lora_dropout, bias, target_modules (the keys that dreamsim reads)."""
    try:
        config = json.loads(read_member(archive, member))
        kept = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: {member} is not the configuration of a LoRA adapter ({error!r})") from error
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise InputError(f"{checkpoint}: {member} sets {key}, which would change how the adapter is merged")
    if kept["bias"] != "none" or not isinstance(kept["target_modules"], list):
        raise InputError(f"{checkpoint}: {member}: expected bias 'none' and a list of target_modules, got {kept}")
    return kept


def _read_adapter(archive: zipfile.ZipFile, folder: str, checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """For each adapted layer of the ViT its two factors: A (r, in) and B (out, r)."""
    names = set(archive.namelist())
    if f"{folder}/adapter_model.safetensors" in names:
        member = f"{folder}/adapter_model.safetensors"
        try:
            saved = safetensors.torch.load(read_member(archive, member))
        except safetensors.SafetensorError as error:
            raise InputError(f"{checkpoint}: {member} is not a safetensors file ({error}); fetch it again") from error
    else:
        member = f"{folder}/adapter_model.bin"
        saved = _load(read_member(archive, member), member, checkpoint)
    adapter: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        match = _ADAPTER_KEY.fullmatch(name)
        if match is None:
            raise InputError(
                f"{checkpoint}: {member}: {name} is no factor of a LoRA on a single ViT; is it another backbone's?"
            )
        adapter.setdefault(match["layer"], {})[match["side"]] = value.float()
    return adapter


def _build_vit(weights: dict[str, Tensor], checkpoint: Path) -> VisionTransformer:
    """timm's ViT in the sizes that the weights have; each weight must fit and be used."""
    try:
        embed_dim, patch_size = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise InputError(f"{checkpoint}: the weights are not those of a ViT: no {error}") from error
    vit = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        num_heads=max(1, embed_dim // HEAD_SIZE),
        mlp_ratio=hidden / embed_dim,
        num_classes=0,
        norm_layer=functools.partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
    )
    wanted = vit.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        expected, got = (tuple(table[name].shape) if name in table else "nothing" for table in (wanted, weights))
        if expected != got:
            raise InputError(f"{checkpoint}: the weight {name}: expected {expected}, got {got}; is it another model's?")
    vit.load_state_dict(weights)
    return vit


def _check_targets(vit: nn.Module, adapter: dict, config: dict, checkpoint: Path) -> None:
    """A checkpoint that lost some blocks, or an adapter that lost some layers, shows here for both variants."""
    targets = set(config["target_modules"])
    expected = {name for name, _ in vit.named_modules() if name in targets or name.rsplit(".", 1)[-1] in targets}
    if not expected or adapter.keys() != expected or any(factors.keys() != {"A", "B"} for factors in adapter.values()):
        differing = sorted(adapter.keys() ^ expected) or sorted(adapter)
        raise InputError(
            f"{checkpoint}: the LoRA should adapt the {len(expected)} layers named {sorted(targets)} and has factors "
            f"for {len(adapter)}; they differ at {differing[0] if differing else 'all'}"
        )


def _merge(vit: nn.Module, adapter: dict[str, dict[str, Tensor]], config: dict, checkpoint: Path) -> None:
    """Add (alpha / r) B A to every adapted weight."""
    for layer, factors in adapter.items():
        weight = vit.get_submodule(layer).weight
        a, b = factors["A"], factors["B"]
        if a.shape != (config["r"], weight.shape[1]) or b.shape != (weight.shape[0], config["r"]):
            raise InputError(
                f"{checkpoint}: the LoRA of {layer}: expected factors ({config['r']}, {weight.shape[1]}) and "
                f"({weight.shape[0]}, {config['r']}), got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        with torch.no_grad():
            weight += config["lora_alpha"] / config["r"] * (b @ a)
