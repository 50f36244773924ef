"""Files of weights, of safetensors or torch, read without running the code in them."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import InputError

Weights = Mapping[str, Tensor]


class Placeholder:
    """Stands for an object beside the weights, such as the arguments of a training. It is empty."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty_dict(*arguments: object) -> dict[Any, Any]:
    return {}


# What training scripts save beside the weights, by the names in the file. None of these classes is
# imported or called: they would believe what the file tells them, as those of numpy do.
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
    # of Python 3.13
    "pathlib._local": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
}
# For torch: an object, and the name in the file that it is taken for.
_PLACEHOLDERS: list[Any] = [
    (Placeholder, f"{module}.{name}") for module, names in _HARMLESS.items() for name in names
]
# pickle fills a defaultdict after it made it, and only a dict can be filled.
_PLACEHOLDERS.append((_empty_dict, "collections.defaultdict"))

# With --force, the stage compares each byte of the download cache, and fetches damaged files again.
HOW_TO_MEND = (
    "if it is your own file, put a whole one in its place, and for any file run: dvc repro "
    "--force weights (of the study: dvc repro --force study/dvc.yaml:weights)"
)
HOW_TO_REPLACE = f"is it another model's? {HOW_TO_MEND}"
HOW_TO_SAVE = (
    "if you trust the file, write its weights alone into a new one: "
    "torch.save(torch.load('old.pt', weights_only=False).state_dict(), 'new.pt'), or of a dict of "
    "several things ['state_dict'] in place of .state_dict()"
)

_PARSER_MESSAGE = re.compile(r"WeightsUnpickler error:\s*(.+)")
_REFUSED_CLASS = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of weights holds, by name; no code in it is run.

    The first bytes, not the file's name, tell whether it is a file of safetensors or of torch.
    InputError where it is neither.
    """
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors: 8 bytes for the size of a header in JSON, then the header.
    if start[8:9] != b"{":
        return read_torch(path, str(path))

    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}); {HOW_TO_MEND}") from error


def read_torch(file: Path | IO[bytes], file_name: str) -> dict[str, Any]:
    """The dict that torch saved, read without running code.

    `file_name` is for messages. Objects of a few kinds may lie beside the weights: each
    becomes a `Placeholder`. InputError where the file holds an object of another kind, and names
    its class.
    """
    try:
        with (
            torch.serialization.safe_globals(_PLACEHOLDERS),
            warnings.catch_warnings(action="ignore"),
        ):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    # For a file that is no pickle, torch raises whatever its parser runs into.
    except Exception as error:
        # Only users save their files again: nobody rewrites a published archive.
        how_to_save = HOW_TO_SAVE if isinstance(file, Path) else HOW_TO_MEND
        raise InputError(
            f"{file_name} is not a torch file of weights{_reason(error, how_to_save)}"
        ) from error

    if not isinstance(loaded, dict):
        remedy = _how_to_take_out(loaded) if isinstance(file, Path) else HOW_TO_MEND
        raise InputError(
            f"{file_name} should hold a dict of weights and holds a {type(loaded).__name__}; "
            f"{remedy}"
        )
    return loaded


def _how_to_take_out(loaded: object) -> str:
    """How to save the weights alone where the file holds a list, as some trainings save it."""
    parts = loaded if isinstance(loaded, list | tuple) else ()
    index = next((i for i, part in enumerate(parts) if holds_tensors(part)), None)
    return HOW_TO_MEND if index is None else how_to_save_part(f"[{index}]")


def holds_tensors(saved: object) -> bool:
    return isinstance(saved, dict) and any(isinstance(value, Tensor) for value in saved.values())


def how_to_save_part(place: str) -> str:
    """How to save a part of a file alone; `place` is its index in Python, such as `['teacher']`."""
    return (
        "if you trust the file, write its weights alone into a new one: "
        f"torch.save(torch.load('old.pt', weights_only=False){place}, 'new.pt')"
    )


def _reason(error: Exception, how_to_save: str) -> str:
    """Why `torch.load` does not read a file, and what helps."""
    message = str(error)

    if refused := _REFUSED_CLASS.search(message):
        return f" alone: it holds {refused[1]}, which could run code and is not read; {how_to_save}"
    if "TorchScript" in message:
        return (
            ": it is a TorchScript program, which is not run; if you trust it, write its weights "
            "alone into a new file: torch.save(torch.jit.load('old.pt').state_dict(), 'new.pt')"
        )
    if "Unsupported operand 149" in message:  # FRAME, with which protocols 4 and 5 begin
        return (
            ": it was saved with another pickle_protocol than 2, torch's own; if you trust it, "
            "save it again: torch.save(torch.load('old.pt', weights_only=False), 'new.pt')"
        )

    reason = _PARSER_MESSAGE.search(message)  # torch writes several lines around it
    lines = message.splitlines() or [type(error).__name__]
    return f" ({reason[1] if reason else lines[0]}); {HOW_TO_MEND}"


def is_weights(saved: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether this is a dict of plain floating point tensors by name."""
    return isinstance(saved, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        for name, value in saved.items()
    )


def check_finite(weights: Weights, file_name: str) -> None:
    """InputError, which names the file, for the first weight with a value that is not finite."""
    for name, value in weights.items():
        n_wrong = int((~torch.isfinite(value)).sum())
        if n_wrong:
            raise InputError(
                f"{file_name}: the weight {name} has {n_wrong} values that are not finite, as of a "
                f"training that diverged or a damaged file; {HOW_TO_MEND}"
            )
