"""`stages` is imported before torch, because it says how torch's threads wait."""

import importlib

import pytest

importlib.import_module("stages")
torch = importlib.import_module("torch")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The tensors here are small: threads that wait for each other on a busy machine cost more than they save."""
    torch.set_num_threads(1)
