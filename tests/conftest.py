"""`stages` is imported before torch, because it says how torch's threads wait."""

import gc
import importlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.warm_python import start_warm_python

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The tensors here are small: threads that wait for each other on a busy machine cost more than they
# save. Here for the programs that tests start, and below for this process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
importlib.import_module("stages")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# A suite started in the background has Ctrl-C ignored, and so have the processes that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The longest files, so that none is what all other processes wait for at the end. Not all of them
# can go through DVC: these wait until test_stages has made the run that they share (clone.py).
FIRST = ["test_stages", "test_trials", "test_download", "test_timm_models", "test_dreamsim"]
FIRST += ["test_stages_compare", "test_stages_reruns", "test_things_eeg2_raw", "test_report"]
FIRST += ["test_pretrained", "test_training", "test_embedder", "test_things_meg", "test_runs"]
FIRST += ["test_stages_bad_input", "test_stack", "test_provenance", "test_study_page"]
FIRST += ["test_outputs", "test_docs", "test_preparation", "test_glocal"]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark the tests that open a page."""
    items.sort(key=lambda item: (*FIRST, item.path.stem).index(item.path.stem))

    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> None:
    """Have Python look for garbage less often, and not among what is there before a file of tests.

    That is a million objects of the libraries. To look at them took a quarter of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Also after a test that has set another number."""
    import torch  # not above: the process that hands out the tests needs none of it

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quick_programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a `python3` and a `dvc` that start at once, for all processes of the suite."""
    shared, suite = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared, suite = shared.parent, os.getppid()

    note = shared / "quick-programs"
    with FileLock(shared / "quick-programs.lock"):
        if not note.exists():
            note.write_text(start_warm_python(suite))
    return note.read_text()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.csv, eeg/ of two subjects, and embeddings.h5 of random vectors.

    Several files of tests share it: a test that needs another one copies it.
    """
    from tests.tiny import make_embeddings, make_prepared  # they import torch

    base = tmp_path_factory.mktemp("data")
    make_embeddings(base / "embeddings.h5", make_prepared(base), seed=0)
    return base


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, that is empty."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright_api = pytest.importorskip(
        "playwright.sync_api",
        reason="playwright is not installed (pip install playwright): nobody looked at the page",
    )
    if CHROMIUM is None:
        pytest.skip(
            "no Chromium on this machine (apt-get install chromium): nobody looked at the page"
        )
    with playwright_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
