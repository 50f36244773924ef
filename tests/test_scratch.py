"""Arrays on the disk of which nothing stays: real files, and a process that is killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.scratch import Scratch
from pipeline.errors import InputError

KILLED = """
import sys, time
import numpy as np
from pipeline.datasets.scratch import Scratch

with Scratch(10**6, "the epochs") as scratch:
    scratch.append(np.arange(10**5, dtype=float))
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_arrays_come_back(folder: Path) -> None:
    first, second = np.arange(24.0).reshape(2, 3, 4), np.arange(6.0)[::2]
    with Scratch(10, "the epochs") as scratch:
        scratch.append(first)
        begin = scratch.end
        scratch.append(second)
        assert np.array_equal(scratch.read(0, (2, 3, 4)), first)
        assert np.array_equal(scratch.read(12 * 8, (3, 4)), first[1])
        assert np.array_equal(scratch.read(begin, (3,)), second)
        assert not list(folder.iterdir())


def test_a_killed_process_leaves_nothing(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(folder.iterdir())


def test_too_little_room_is_told_before_anything_is_written(folder: Path) -> None:
    with pytest.raises(
        InputError,
        match=rf"{folder}: the epochs need about 1000000000.0 GB there .*TMPDIR name a folder",
    ):
        Scratch(10**18, "the epochs")
    assert not list(folder.iterdir())


def test_the_room_is_taken_at_once(folder: Path) -> None:
    before = os.statvfs(folder)
    with Scratch(200 << 20, "the epochs"):
        after = os.statvfs(folder)
    assert (before.f_bfree - after.f_bfree) * before.f_frsize > 100 << 20


def test_a_tmpdir_that_is_not_there_is_told_and_making_it_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder / "absent"))
    with pytest.raises(
        InputError, match=rf"TMPDIR is {folder}/absent, which is no folder .* make it"
    ):
        Scratch(10, "the epochs")
    (folder / "absent").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)  # which Python asks once a process
    with Scratch(10, "the epochs") as scratch:
        scratch.append(np.ones(1))
