import pytest
import torch

from pipeline.compute.devices import pick_device, use_precision
from pipeline.errors import InputError


def test_a_gpu_that_is_not_there_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(
        InputError, match="embed.device or train.device is cuda, .*: set it to auto or cpu"
    ):
        pick_device("cuda")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_tf32_on_a_cpu_is_told() -> None:
    with pytest.raises(
        InputError, match="which only NVIDIA's GPUs have: set it to float32 or bfloat16"
    ):
        use_precision("tf32", torch.device("cpu"))
    for precision in ("bfloat16", "float32"):
        use_precision(precision, torch.device("cpu"))
