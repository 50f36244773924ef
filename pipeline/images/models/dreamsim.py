"""DreamSim's published checkpoints, rebuilt in timm with the LoRA merged into the base weights.

The reference is what `dreamsim.PerceptualModel.embed` returns with `normalize_embeds=False` (for the unaligned encoder
with `baseline=True`) on the same files: of SynCLR, DINO and DINOv2 the CLS token after the last block and before the
last LayerNorm, of CLIP and OpenCLIP the CLS token after it and projected, of the ensemble the three in a row.

Sources: DreamSim, arXiv 2306.09344, github.com/ssundaram21/dreamsim 0.2.1; SynCLR, arXiv 2312.17742; DINO, arXiv
2104.14294; DINOv2, arXiv 2304.07193; CLIP, arXiv 2103.00020; OpenCLIP, arXiv 2212.07143.

Deliberate differences:
- The archive is read in place and runs no code, and its files are all that is read. dreamsim fetches DINO and DINOv2
  through torch.hub instead. For DINOv2 that is the file which the archive holds as well. For DINO it is the teacher's
  backbone, which the archive holds as one of the two networks of `dino_vitb16_pretrain.pth`.
- The LoRA's update, (alpha / r) B A, is added to the weights that it adapts, which leaves a plain ViT.
"""

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from timm.layers import QuickGELU
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.images.models.checkpoints import Architecture, make_vit
from pipeline.images.models.vit import CLIP, IMAGENET, ImageEncoder, ViT
from pipeline.untrusted.archives import open_zip, read_member
from pipeline.untrusted.weights import (
    HOW_TO_MEND,
    HOW_TO_REPLACE,
    check_finite,
    is_weights,
    read_torch,
)

LARGEST_MEMBER = 2**31  # bytes; DINO's two networks with their heads are 0.9 GB


@dataclass(frozen=True)
class Source:
    """Where the archive holds a ViT, and under which names."""

    member: str
    architecture: Architecture
    key: str | None = None  # of the weights in the saved dict; None: the dict itself
    prefix: str = ""  # before each weight's name
    ignored: str | None = None  # skip weights with this prefix


def _clip(patch_size: int) -> Source:
    architecture = Architecture(patch_size, clip=True, activation=QuickGELU)
    return Source(f"clip_vitb{patch_size}_pretrain.pth.tar", architecture, "state_dict")


def _open_clip(patch_size: int) -> Source:
    architecture = Architecture(patch_size, clip=True)
    return Source(f"open_clip_vitb{patch_size}_pretrain.pth.tar", architecture, "state_dict")


_DINO = Source(
    "dino_vitb16_pretrain.pth", Architecture(16), "teacher", "backbone.", ignored="head."
)
_DINOV2 = Source(
    "dinov2_vitb14_pretrain.pth",
    Architecture(14, trained_size=518, layer_scale=True),
    ignored="mask_token",
)

# By DreamSim's name: the folder of the LoRA and the ViTs, in the order in which dreamsim concatenates them.
BACKBONES: dict[str, tuple[str, tuple[Source, ...]]] = {
    "synclr_vitb16": (
        "synclr_vitb16_single_lora",
        (Source("synclr_vit_b_16.pth", Architecture(16), "model", "module.visual."),),
    ),
    "dinov2_vitb14": ("dinov2_vitb14_single_lora", (_DINOV2,)),
    "dinov2_vitb14_patch": ("dinov2_vitb14_patch_lora", (_DINOV2,)),
    "dino_vitb16": ("dino_vitb16_single_lora", (_DINO,)),
    "dino_vitb16_patch": ("dino_vitb16_patch_lora", (_DINO,)),
    "clip_vitb32": ("clip_vitb32_single_lora", (_clip(32),)),
    "open_clip_vitb32": ("open_clip_vitb32_single_lora", (_open_clip(32),)),
    "ensemble": ("ensemble_lora", (_DINO, _clip(16), _open_clip(16))),
}

_ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<layer>extractor_list\.\d+\.model\..+)\.lora_(?P<side>[AB])\.weight"
)


class _LoraConfig(BaseModel):
    """What peft writes: of it what dreamsim reads, and what would change how the factors are merged."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: PositiveInt
    lora_alpha: float
    lora_dropout: float
    bias: Literal["none"]
    target_modules: list[str]
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    fan_in_fan_out: Literal[False] = False
    rank_pattern: Annotated[dict[str, Any], Field(max_length=0)] = {}
    alpha_pattern: Annotated[dict[str, Any], Field(max_length=0)] = {}


_LORA_KEYS = {"r", "lora_alpha", "lora_dropout", "bias", "target_modules"}


def load_encoder(
    checkpoint: Path, backbone: str, encoder: Literal["unaligned", "aligned"]
) -> tuple[ImageEncoder, dict[str, Any]]:
    """Build the image encoder, in evaluation mode, from DreamSim's archive; also return the adapter's configuration.

    InputError if the archive is damaged or another backbone's: every weight must be there in its shape, and no other;
    the adapter must cover every layer that it says it targets.
    """
    adapter_folder, sources = BACKBONES[backbone]
    with open_zip(checkpoint, LARGEST_MEMBER) as archive:
        model = ImageEncoder(
            [_load_vit(archive, source, backbone.endswith("_patch")) for source in sources]
        )
        config = _read_config(archive, f"{adapter_folder}/adapter_config.json")
        adapter = _read_adapter(archive, adapter_folder)
    layers = _targets(model, adapter, config, checkpoint)
    if encoder == "aligned":
        for name, layer in layers.items():
            layer.weight.data += (
                config["lora_alpha"] / config["r"] * (adapter[name]["B"] @ adapter[name]["A"])
            )
    return model.eval().requires_grad_(False), config


def _load_vit(archive: zipfile.ZipFile, source: Source, with_patches: bool) -> ViT:
    weights, clip = _read_weights(archive, source), source.architecture.clip
    vit, projection = make_vit(weights, source.architecture, f"{archive.filename}: {source.member}")
    return ViT(vit, CLIP if clip else IMAGENET, clip, projection, with_patches)


def _load(archive: zipfile.ZipFile, member: str) -> dict[str, Any]:
    return read_torch(io.BytesIO(read_member(archive, member)), f"{archive.filename}: {member}")


def _read_weights(archive: zipfile.ZipFile, source: Source) -> dict[str, Tensor]:
    """The base model's weights under timm's names, which are dreamsim's but for CLIP's first LayerNorm."""
    where = f"{archive.filename}: {source.member}"
    saved: Any = _load(archive, source.member)
    if source.key is not None:
        saved = saved.get(source.key)
    if not is_weights(saved):
        under = f" under the key {source.key!r}" if source.key else ""
        raise InputError(f"{where} should hold tensors by name{under}; {HOW_TO_REPLACE}")
    weights = {}
    for name, value in saved.items():
        if source.ignored and name.startswith(source.ignored):
            continue
        if not name.startswith(source.prefix):
            raise InputError(
                f"{where}: the name {name} should start with {source.prefix}; {HOW_TO_REPLACE}"
            )
        name = name.removeprefix(source.prefix)
        weights[name.replace("pos_drop.", "norm_pre.") if source.architecture.clip else name] = (
            value.float()
        )
    return weights


def _read_config(archive: zipfile.ZipFile, member: str) -> dict[str, Any]:
    """What the adapter is: r, lora_alpha, lora_dropout, bias, target_modules (the keys that dreamsim reads)."""
    data = read_member(archive, member)
    try:
        return _LoraConfig.model_validate_json(data).model_dump(include=_LORA_KEYS)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{archive.filename}: {member} is not the configuration of a LoRA that can be merged: "
            f"{key}: {first['msg'][0].lower() + first['msg'][1:]}; {HOW_TO_MEND}"
        ) from error


def _read_adapter(archive: zipfile.ZipFile, folder: str) -> dict[str, dict[str, Tensor]]:
    """For each adapted layer, by its name in dreamsim's model, its two factors: A (r, in) and B (out, r)."""
    member = f"{folder}/adapter_model.safetensors"
    if member in archive.namelist():
        try:
            saved = safetensors.torch.load(read_member(archive, member))
        except safetensors.SafetensorError as error:
            raise InputError(
                f"{archive.filename}: {member} is not a safetensors file ({error}); {HOW_TO_MEND}"
            ) from error
    else:
        member = f"{folder}/adapter_model.bin"
        saved = _load(archive, member)
    if not is_weights(saved):
        raise InputError(f"{archive.filename}: {member} should hold tensors by name; {HOW_TO_MEND}")
    check_finite(saved, f"{archive.filename}: {member}")
    adapter: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        match = _ADAPTER_KEY.fullmatch(name)
        if match is None:
            raise InputError(
                f"{archive.filename}: {member}: {name} is no factor of a LoRA on DreamSim's ViTs; {HOW_TO_REPLACE}"
            )
        adapter.setdefault(match["layer"], {})[match["side"]] = value.float()
    return adapter


def _targets(
    model: ImageEncoder,
    adapter: dict[str, dict[str, Tensor]],
    config: dict[str, Any],
    checkpoint: Path,
) -> dict[str, nn.Linear]:
    """The layers to adapt, by peft's rule: those whose name, or its end after a dot, is a target.

    An adapter that lost some layers, or is another backbone's, shows here for both encoders.
    """
    targets = set(config["target_modules"])
    layers = {
        name: module
        for index, vit in enumerate(model.vits)
        for name, module in vit.vit.named_modules(prefix=f"extractor_list.{index}.model")
        if isinstance(module, nn.Linear)
        and any(f".{name}".endswith(f".{target}") for target in targets)
    }
    if (
        not layers
        or adapter.keys() != layers.keys()
        or any(sides.keys() != {"A", "B"} for sides in adapter.values())
    ):
        differing = sorted(adapter.keys() ^ layers.keys()) or sorted(adapter)
        raise InputError(
            f"{checkpoint}: the LoRA should adapt the {len(layers)} layers named {sorted(targets)} "
            f"and has factors for {len(adapter)}; they differ at "
            f"{differing[0] if differing else 'all'}; {HOW_TO_REPLACE}"
        )
    rank = config["r"]
    for name, layer in layers.items():
        a, b = (tuple(adapter[name][side].shape) for side in "AB")
        n_out, n_in = layer.weight.shape
        if a != (rank, n_in) or b != (n_out, rank):
            raise InputError(
                f"{checkpoint}: the LoRA of {name}: expected factors ({rank}, {n_in}) and "
                f"({n_out}, {rank}), got {a} and {b}; {HOW_TO_REPLACE}"
            )
    return layers
