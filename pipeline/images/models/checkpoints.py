"""Files of weights read without running code, and ViTs of timm made of what they hold.

The width comes from the weights, so that a narrow ViT in a published layout loads too.
"""

import functools
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import safetensors.torch
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.errors import InputError

IMAGE_SIZE = 224  # pixels a side
HEAD_SIZE = 64  # of all ViTs here; their MLP is four times as wide as they are

Weights = Mapping[str, Tensor]


class StandIn:
    """Takes the place of an object beside the weights, such as the arguments of a training: it holds nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty_dict(*arguments: object) -> dict[Any, Any]:
    return {}


# What training scripts save beside the weights, by the names in the file. None of these classes is imported or called:
# numpy's own, for one, believe what a file tells them.
_HARMLESS = {
    "argparse": ("Namespace",),
    "builtins": ("dict", "float", "int", "list", "range", "slice", "str", "tuple"),
    "datetime": ("date", "datetime", "timedelta", "timezone"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),  # of numpy 1
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": (
        "PosixPath",
        "PurePosixPath",
        "PureWindowsPath",
        "WindowsPath",
    ),  # of Python 3.13
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
}
_STAND_INS: list[Any] = [
    (StandIn, f"{module}.{name}") for module, names in _HARMLESS.items() for name in names
]
_STAND_INS.append(
    (_empty_dict, "collections.defaultdict")
)  # it is filled afterwards, which only a dict can be

# `dvc repro --force weights` looks at each byte of the download cache, and fetches again what was damaged there.
HOW_TO_MEND = (
    "if it is your own file, put a whole one in its place, and for any file run: dvc repro "
    "--force weights (of the study: dvc repro --force study/dvc.yaml:weights)"
)
HOW_TO_REPLACE = f"is it another model's? {HOW_TO_MEND}"
HOW_TO_SAVE = (
    "if you trust the file, write its weights alone into a new one: torch.save(torch.load('old.pt', "
    "weights_only=False).state_dict(), 'new.pt'), or of a dict of several things ['state_dict'] in place of "
    ".state_dict()"
)
_PARSER_MESSAGE = re.compile(r"WeightsUnpickler error:\s*(.+)")
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


@dataclass(frozen=True)
class Architecture:
    """What the weights of a ViT do not tell."""

    patch_size: int  # pixels a side
    n_blocks: int = 12
    trained_size: int = IMAGE_SIZE  # image size (pixels) at which pos_embed was trained
    layer_scale: bool = False
    clip: bool = False  # a LayerNorm before the blocks, eps 1e-5, a projection at the end
    activation: type[nn.Module] = nn.GELU


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of weights holds by name: one of safetensors, or of torch; known by its first bytes, not its name.

    InputError for what is neither; nothing of a file is run.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] != b"{":
        return read_torch(path, str(path))
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}); {HOW_TO_MEND}") from error


def read_torch(file: Path | IO[bytes], where: str) -> dict[str, Any]:
    """The dict that torch saved, read without running code; `where` names the file in an InputError.

    A few kinds of objects may lie beside the weights, and each is replaced by a `StandIn`. Any other is refused by its
    name.
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings(action="ignore"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # for a file that is no pickle it raises whatever its parser runs into
        # Nobody rewrites a published archive
        how_to_save = HOW_TO_SAVE if isinstance(file, Path) else HOW_TO_MEND
        raise InputError(
            f"{where} is not a torch file of weights{_why(error, how_to_save)}"
        ) from error

    if not isinstance(loaded, dict):
        how = _how_to_take_out(loaded) if isinstance(file, Path) else HOW_TO_MEND
        raise InputError(
            f"{where} should hold a dict of weights and holds a {type(loaded).__name__}; {how}"
        )
    return loaded


def _how_to_take_out(loaded: object) -> str:
    """How to save the weights that stand in a list, as of a training that is to go on."""
    parts = loaded if isinstance(loaded, list | tuple) else ()
    place = next((i for i, part in enumerate(parts) if holds_tensors(part)), None)
    return HOW_TO_MEND if place is None else how_to_save_part(f"[{place}]")


def holds_tensors(saved: object) -> bool:
    return isinstance(saved, dict) and any(isinstance(value, Tensor) for value in saved.values())


def how_to_save_part(place: str) -> str:
    """`place` is what stands behind the name of what was loaded, such as `['teacher']`."""
    return (
        "if you trust the file, write its weights alone into a new one: "
        f"torch.save(torch.load('old.pt', weights_only=False){place}, 'new.pt')"
    )


def _why(error: Exception, how_to_save: str) -> str:
    """Why `torch.load` does not read a file, and what helps."""
    message = str(error)

    if refused := _REFUSED.search(message):
        return f" alone: it holds {refused[1]}, which could run code and is not read; {how_to_save}"
    if "TorchScript" in message:
        return (
            ": it is a TorchScript program, which is not run; if you trust it, write its weights alone into a new "
            "file: torch.save(torch.jit.load('old.pt').state_dict(), 'new.pt')"
        )
    if "Unsupported operand 149" in message:  # FRAME, with which protocols 4 and 5 begin
        return (
            ": it was saved with another pickle_protocol than 2, torch's own; if you trust it, save it again: "
            "torch.save(torch.load('old.pt', weights_only=False), 'new.pt')"
        )

    reason = _PARSER_MESSAGE.search(message)  # torch writes several lines around it
    lines = message.splitlines() or [type(error).__name__]
    return f" ({reason[1] if reason else lines[0]}); {HOW_TO_MEND}"


def is_weights(saved: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether this holds plain tensors of floating point by name."""
    return isinstance(saved, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        for name, value in saved.items()
    )


def check_finite(weights: Weights, where: str) -> None:
    """InputError for the first weight with a value that is not finite; `where` names the file."""
    for name, value in weights.items():
        n_wrong = int((~torch.isfinite(value)).sum())
        if n_wrong:
            raise InputError(
                f"{where}: the weight {name} has {n_wrong} values that are not finite, as of a training that diverged "
                f"or a damaged file; {HOW_TO_MEND}"
            )


def make_vit(
    weights: Weights, architecture: Architecture, where: str
) -> tuple[VisionTransformer, Tensor | None]:
    """timm's ViT in the width that the weights have, and CLIP's projection, `proj`.

    The weights have timm's names and are float32; each must fit and be used. `where` names the file in an InputError.
    """
    shape = tuple(weights["cls_token"].shape) if "cls_token" in weights else (0,)
    width = shape[-1] if shape else 0
    if shape != (1, 1, width) or width == 0 or width % HEAD_SIZE:
        raise InputError(
            f"{where}: the weight cls_token: expected (1, 1, a multiple of {HEAD_SIZE}), got "
            f"{shape if 'cls_token' in weights else 'nothing'}; {HOW_TO_REPLACE}"
        )
    norm = functools.partial(nn.LayerNorm, eps=1e-5 if architecture.clip else 1e-6)
    with torch.device(
        "meta"
    ):  # no memory and no random first weights, which would take longer than all else here
        vit = VisionTransformer(
            img_size=IMAGE_SIZE,
            patch_size=architecture.patch_size,
            embed_dim=width,
            depth=architecture.n_blocks,
            num_heads=width // HEAD_SIZE,
            init_values=1.0 if architecture.layer_scale else None,
            num_classes=0,
            norm_layer=norm,
            act_layer=architecture.activation,
        )
        if architecture.clip:
            vit.norm_pre = norm(
                width
            )  # not pre_norm=True, which takes away a bias that DreamSim's files have
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    expected["pos_embed"] = (
        1,
        1 + (architecture.trained_size // architecture.patch_size) ** 2,
        width,
    )
    if architecture.clip:
        expected["proj"] = (width, *weights.get("proj", torch.empty(1, 1)).shape[-1:])
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise InputError(
                f"{where}: the weight {name}: expected {expected.get(name, 'nothing')}, got "
                f"{got.get(name, 'nothing')}; {HOW_TO_REPLACE}"
            )
    check_finite(weights, where)
    own = {name: value for name, value in weights.items() if name != "proj"}
    if architecture.trained_size != IMAGE_SIZE:
        own["pos_embed"] = _interpolate(own["pos_embed"], IMAGE_SIZE // architecture.patch_size)
    vit.load_state_dict(own, assign=True)
    return vit, weights.get("proj")


def _interpolate(positions: Tensor, side: int) -> Tensor:
    """The positions of a square grid for one of `side` x `side`, (1, 1 + side^2, width), as DINOv2's own model does it.

    It passes scale_factor = (side + 0.1) / trained instead of size, without antialiasing. Using size changes the
    embedding by about 1 %, so we copy it.
    """
    cls, grid = positions[:, :1], positions[:, 1:]
    trained = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / trained
    grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
