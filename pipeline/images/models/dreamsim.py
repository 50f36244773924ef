"""DreamSim's published checkpoints, rebuilt in timm with the LoRA merged into the base weights.

The reference is what `dreamsim.PerceptualModel.embed` returns with `normalize_embeds=False` (for
the unaligned encoder with `baseline=True`) on the same files:

- SynCLR, DINO, DINOv2: the CLS token after the last block and before the last LayerNorm.
- CLIP, OpenCLIP: the CLS token after the last LayerNorm, projected.
- The ensemble: the tokens of its three ViTs, one after another.

Sources: DreamSim, arXiv 2306.09344, github.com/ssundaram21/dreamsim 0.2.1; SynCLR, arXiv
2312.17742; DINO, arXiv 2104.14294; DINOv2, arXiv 2304.07193; CLIP, arXiv 2103.00020; OpenCLIP,
arXiv 2212.07143.

Deliberate differences:

- The archive is read in place and runs no code, and no other file is read. dreamsim fetches DINO
  and DINOv2 through torch.hub instead. The file of DINOv2 is the same as in the archive. DINO is
  the teacher's backbone, one of the two networks in the archive's `dino_vitb16_pretrain.pth`.
- The LoRA's update, (alpha / r) B A, is added to the weights that it adapts, which leaves a plain
  ViT.
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

Adapter = dict[str, dict[str, Tensor]]  # for each layer, its two factors: "A" (r, in), "B" (out, r)


@dataclass(frozen=True)
class ArchivedViT:
    """Where the archive holds a ViT, and under which names."""

    member: str
    architecture: Architecture
    key: str | None = None  # of the weights in the saved dict; None: the dict itself
    prefix: str = ""  # before each weight's name
    ignored: str | None = None  # skip weights with this prefix


def _clip(patch_size: int) -> ArchivedViT:
    architecture = Architecture(patch_size, clip=True, activation=QuickGELU)
    return ArchivedViT(f"clip_vitb{patch_size}_pretrain.pth.tar", architecture, "state_dict")


def _open_clip(patch_size: int) -> ArchivedViT:
    architecture = Architecture(patch_size, clip=True)
    return ArchivedViT(f"open_clip_vitb{patch_size}_pretrain.pth.tar", architecture, "state_dict")


_SYNCLR = ArchivedViT("synclr_vit_b_16.pth", Architecture(16), "model", "module.visual.")
_DINO = ArchivedViT(
    "dino_vitb16_pretrain.pth", Architecture(16), "teacher", "backbone.", ignored="head."
)
_DINOV2 = ArchivedViT(
    "dinov2_vitb14_pretrain.pth",
    Architecture(14, trained_size=518, layer_scale=True),
    ignored="mask_token",
)

# By DreamSim's name: the folder of the LoRA and the ViTs, in the order of dreamsim's embedding.
BACKBONES: dict[str, tuple[str, tuple[ArchivedViT, ...]]] = {
    "synclr_vitb16": ("synclr_vitb16_single_lora", (_SYNCLR,)),
    "dinov2_vitb14": ("dinov2_vitb14_single_lora", (_DINOV2,)),
    "dinov2_vitb14_patch": ("dinov2_vitb14_patch_lora", (_DINOV2,)),
    "dino_vitb16": ("dino_vitb16_single_lora", (_DINO,)),
    "dino_vitb16_patch": ("dino_vitb16_patch_lora", (_DINO,)),
    "clip_vitb32": ("clip_vitb32_single_lora", (_clip(32),)),
    "open_clip_vitb32": ("open_clip_vitb32_single_lora", (_open_clip(32),)),
    "ensemble": ("ensemble_lora", (_DINO, _clip(16), _open_clip(16))),
}

_ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<layer>extractor_list\.\d+\.model\..+)\.lora_(?P<factor>[AB])\.weight"
)


class _LoraConfig(BaseModel):
    """The keys of peft's file that dreamsim reads, and those that change how factors are merged."""

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
    """The image encoder of DreamSim's archive, in evaluation mode, and the adapter's configuration.

    InputError if the archive is damaged or another backbone's: every weight must be there in its
    shape, and no other; the adapter must cover every layer that it targets.
    """
    adapter_folder, archived_vits = BACKBONES[backbone]
    with_patches = backbone.endswith("_patch")
    with open_zip(checkpoint, LARGEST_MEMBER) as archive:
        model = ImageEncoder([_load_vit(archive, vit, with_patches) for vit in archived_vits])
        config = _read_config(archive, f"{adapter_folder}/adapter_config.json")
        adapter = _read_adapter(archive, adapter_folder)

    # Checked for both encoders, so that a wrong archive shows early.
    layers = _find_target_layers(model, config["target_modules"])
    _check_adapter(adapter, layers, config, checkpoint)

    if encoder == "aligned":
        scale = config["lora_alpha"] / config["r"]
        for name, layer in layers.items():
            layer.weight.data += scale * (adapter[name]["B"] @ adapter[name]["A"])
    return model.eval().requires_grad_(False), config


def _load_vit(archive: zipfile.ZipFile, archived: ArchivedViT, with_patches: bool) -> ViT:
    weights = _read_vit_weights(archive, archived)
    file_name = f"{archive.filename}: {archived.member}"
    vit, projection = make_vit(weights, archived.architecture, file_name)

    is_clip = archived.architecture.clip
    return ViT(vit, CLIP if is_clip else IMAGENET, is_clip, projection, with_patches)


def _read_vit_weights(archive: zipfile.ZipFile, archived: ArchivedViT) -> dict[str, Tensor]:
    """The weights under timm's names: dreamsim's, except for CLIP's first LayerNorm."""
    file_name = f"{archive.filename}: {archived.member}"
    saved: Any = _read_torch_member(archive, archived.member)
    if archived.key is not None:
        saved = saved.get(archived.key)
    if not is_weights(saved):
        under_key = f" under the key {archived.key!r}" if archived.key else ""
        raise InputError(f"{file_name} should hold tensors by name{under_key}; {HOW_TO_REPLACE}")

    weights = {}
    for name, value in saved.items():
        if archived.ignored and name.startswith(archived.ignored):
            continue
        if not name.startswith(archived.prefix):
            raise InputError(
                f"{file_name}: the name {name} should start with {archived.prefix}; "
                f"{HOW_TO_REPLACE}"
            )
        timm_name = name.removeprefix(archived.prefix)
        if archived.architecture.clip:
            timm_name = timm_name.replace("pos_drop.", "norm_pre.")
        weights[timm_name] = value.float()
    return weights


def _read_torch_member(archive: zipfile.ZipFile, member: str) -> dict[str, Any]:
    return read_torch(io.BytesIO(read_member(archive, member)), f"{archive.filename}: {member}")


def _read_config(archive: zipfile.ZipFile, member: str) -> dict[str, Any]:
    """The adapter's r, lora_alpha, lora_dropout, bias and target_modules."""
    data = read_member(archive, member)
    try:
        return _LoraConfig.model_validate_json(data).model_dump(include=_LORA_KEYS)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        problem = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(
            f"{archive.filename}: {member} is not the configuration of a LoRA that can be merged: "
            f"{key}: {problem}; {HOW_TO_MEND}"
        ) from error


def _read_adapter(archive: zipfile.ZipFile, folder: str) -> Adapter:
    """The factors of each adapted layer, float32, by the layer's name in dreamsim's model."""
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
        saved = _read_torch_member(archive, member)

    file_name = f"{archive.filename}: {member}"
    if not is_weights(saved):
        raise InputError(f"{file_name} should hold tensors by name; {HOW_TO_MEND}")
    check_finite(saved, file_name)

    adapter: Adapter = {}
    for name, value in saved.items():
        match = _ADAPTER_KEY.fullmatch(name)
        if match is None:
            raise InputError(
                f"{file_name}: {name} is no factor of a LoRA on DreamSim's ViTs; {HOW_TO_REPLACE}"
            )
        adapter.setdefault(match["layer"], {})[match["factor"]] = value.float()
    return adapter


def _find_target_layers(model: ImageEncoder, targets: list[str]) -> dict[str, nn.Linear]:
    """The layers to adapt, by peft's rule: the name, or its end after a dot, is a target."""
    layers = {}
    for index, vit in enumerate(model.vits):
        for name, module in vit.vit.named_modules(prefix=f"extractor_list.{index}.model"):
            is_target = any(f".{name}".endswith(f".{target}") for target in targets)
            if is_target and isinstance(module, nn.Linear):
                layers[name] = module
    return layers


def _check_adapter(
    adapter: Adapter, layers: dict[str, nn.Linear], config: dict[str, Any], checkpoint: Path
) -> None:
    """InputError unless the adapter has both factors of each of these layers, in their shapes."""
    has_both_factors = all(factors.keys() == {"A", "B"} for factors in adapter.values())
    if not layers or adapter.keys() != layers.keys() or not has_both_factors:
        differing = sorted(adapter.keys() ^ layers.keys()) or sorted(adapter)
        raise InputError(
            f"{checkpoint}: the LoRA should adapt the {len(layers)} layers named "
            f"{sorted(set(config['target_modules']))} and has factors for {len(adapter)}; they "
            f"differ at {differing[0] if differing else 'all'}; {HOW_TO_REPLACE}"
        )

    rank = config["r"]
    for name, layer in layers.items():
        shape_a = tuple(adapter[name]["A"].shape)
        shape_b = tuple(adapter[name]["B"].shape)
        n_out, n_in = layer.weight.shape
        if shape_a != (rank, n_in) or shape_b != (n_out, rank):
            raise InputError(
                f"{checkpoint}: the LoRA of {name}: expected factors ({rank}, {n_in}) and "
                f"({n_out}, {rank}), got {shape_a} and {shape_b}; {HOW_TO_REPLACE}"
            )
