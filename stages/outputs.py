"""Find files in the outputs of stages that no stage has made.

DVC empties the outputs of a stage before it runs, and does not ask. A file of the user would be
lost. A file counts as made by a stage if one of these is true:

- DVC has its content in the cache.
- It has a second name on the disk (a hard link), so that to delete it loses nothing.
- It was written while the stage ran. Each command notes when it starts and ends.
"""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

NOTES = Path(".dvc/tmp/stages")
SLACK = 2.0  # s, between the clock of a file system and that of this machine
FOLDERS = ("data", "metrics")  # all outputs lie in these


class _Note(BaseModel):
    """The last run of a command; times in seconds since 1970."""

    stage: str
    arguments: list[str]
    started: float
    ended: float | None = None  # None while it runs, and for ever if it was killed


@contextmanager
def noted_run() -> Iterator[None]:
    """Note when this command runs. So a file that it leaves half-written counts as its own."""
    if not Path(".dvc").is_dir():  # started by hand, outside of a project of DVC
        yield
        return

    stage = Path(sys.argv[0]).stem
    digest = hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:16]
    file = NOTES / f"{stage}-{digest}.json"
    note = _Note(stage=stage, arguments=sys.argv[1:], started=time.time())

    NOTES.mkdir(parents=True, exist_ok=True)
    # Before the work: a killed stage leaves a note without an end.
    file.write_text(note.model_dump_json())
    try:
        yield
    finally:
        file.write_text(note.model_copy(update={"ended": time.time()}).model_dump_json())


def find_foreign_files(root: Path) -> list[tuple[Path, Path]]:
    """Each file that DVC would delete and no stage has made, with the output that it lies in.

    Both paths are relative to `root`, the folder of the project.
    """
    candidates = [path for folder in FOLDERS for path in _files_of_one_name(root / folder)]
    if not candidates:
        return []

    from dvc.repo import Repo  # a second to import, and seldom needed

    notes = [_Note.model_validate_json(file.read_bytes()) for file in (root / NOTES).glob("*.json")]
    foreign = []
    with Repo(str(root)) as repo:
        # Those without a cache are the metrics that git keeps.
        outputs = [output for output in repo.index.outs if output.use_cache]
        for path in candidates:
            output = _output_around(path, outputs)
            # Outside of all outputs DVC deletes nothing.
            if output is None or _is_in_cache(repo, path):
                continue
            if not _is_half_made(path, output, root, notes):
                foreign.append((path.relative_to(root), Path(output.fs_path).relative_to(root)))
    return foreign


def _output_around(path: Path, outputs: list["Output"]) -> "Output | None":
    """The output that a file is or lies in."""
    for output in outputs:
        if path.is_relative_to(output.fs_path):
            return output
    return None


def _files_of_one_name(folder: Path) -> Iterator[Path]:
    """Files that are not empty and have no second hard link: to delete one is to lose it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size:
                yield path


def _is_in_cache(repo: "Repo", path: Path) -> bool:
    """Whether DVC has hashed the file as it is now, and has that content in its cache."""
    from dvc.fs import localfs

    _, content_hash = repo.state.get(str(path), localfs)
    return bool(content_hash) and repo.cache.local.exists(content_hash.value)


def _is_half_made(path: Path, output: "Output", root: Path, notes: list[_Note]) -> bool:
    """Whether the file was written while the stage of this output ran."""
    # Not the mtime, which a copy may bring along from elsewhere.
    changed_at = path.lstat().st_ctime
    stage = output.stage.cmd.split()[2].removeprefix("stages.")  # python -m stages.<stage> ...
    # The paths of a stage's outputs are arguments of its command.
    argument = str(Path(output.fs_path).relative_to(root))

    for note in notes:
        is_of_stage = note.stage == stage and argument in note.arguments
        ended = note.ended or time.time()
        if is_of_stage and note.started - SLACK <= changed_at <= ended + SLACK:
            return True
    return False
