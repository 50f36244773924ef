"""`stages` is imported before torch, because it says how torch's threads wait."""

import importlib
import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

importlib.import_module("stages")
torch = importlib.import_module("torch")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# A suite started in the background has Ctrl-C ignored, and so have the processes that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that it is not what all other processes wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_stages.py")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The tensors here are small: threads that wait for each other on a busy machine cost more than they save."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(
            "no Chromium on this machine (apt-get install chromium): nobody looked at the page"
        )
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
