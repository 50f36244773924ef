import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tensors here are small: threads that wait for each other on a busy machine cost more than they save."""
    torch.set_num_threads(1)
