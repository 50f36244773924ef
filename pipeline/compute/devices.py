"""Where to compute, and how."""

import torch

from pipeline.errors import InputError


def pick_device(wanted: str) -> torch.device:
    """`auto` = CUDA where there is one, else the CPU; InputError if CUDA is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "embed.device or train.device is cuda, and this machine offers none to torch: set it to auto or cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The kind of device, on which the last bits depend."""
    kind = (
        torch.backends.cpu.get_cpu_capability()
        if device.type == "cpu"
        else torch.cuda.get_device_name(device)
    )
    return f"{device.type} ({kind})"


def use_precision(precision: str, device: torch.device) -> None:
    """From now on products in float32 are exact to its 24 bits, or to 11 with `tf32`; InputError on a CPU for that."""
    if precision == "tf32" and device.type == "cpu":
        raise InputError(
            "train.precision is tf32, which only NVIDIA's GPUs have: set it to float32 or bfloat16"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def be_deterministic(device: torch.device) -> None:
    """From now on this process computes the same in every run."""
    # Where an operation has no deterministic form torch warns. A CPU needs no switch: its operations all have one.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    torch.utils.deterministic.__setattr__(
        "fill_uninitialized_memory", False
    )  # it only finds mistakes, and is slow
