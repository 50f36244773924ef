"""The device that computes: CPU or GPU, its precision, and the same result in every run."""

import torch

from pipeline.errors import InputError


def pick_device(setting: str) -> torch.device:
    """The device of a setting `auto`, `cuda` or `cpu`; `auto` is CUDA where there is a GPU.

    Raises InputError where the setting is cuda and torch finds no GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "embed.device or train.device is cuda, and this machine offers none to torch: set it "
            "to auto or cpu"
        )
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The kind of CPU or GPU. The last bits of a result depend on it."""
    if device.type == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return f"{device.type} ({torch.cuda.get_device_name(device)})"


def use_precision(precision: str, device: torch.device) -> None:
    """Switch TF32 on or off for this process.

    With `tf32`, factors of float32 products keep 11 bits instead of 24. Raises InputError for
    `tf32` on a CPU.
    """
    if precision == "tf32" and device.type == "cpu":
        raise InputError(
            "train.precision is tf32, which only NVIDIA's GPUs have: set it to float32 or bfloat16"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def be_deterministic(device: torch.device) -> None:
    """From now on this process computes the same in every run."""
    # Operations without a deterministic form only warn. On a CPU all operations have one.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)

    # Filling fresh memory helps to find mistakes, and is slow.
    # By this call, because mypy does not see the attribute.
    torch.utils.deterministic.__setattr__("fill_uninitialized_memory", False)
