"""`stages` is imported before torch, because it says how torch's threads wait."""

import importlib
import signal

import pytest

importlib.import_module("stages")
torch = importlib.import_module("torch")
# A suite started in the background has Ctrl-C ignored, and so have the processes that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that it is not what all other processes wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_stages.py")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The tensors here are small: threads that wait for each other on a busy machine cost more than they save."""
    torch.set_num_threads(1)
