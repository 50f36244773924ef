"""Which files in the outputs of stages no stage has made: DVC deletes them without asking before a stage runs.

A file is a stage's if DVC has its content in its cache, if it has another name on the disk (a hard link: deleting it
loses nothing), or if the stage was running when it was written, which each command notes at its start and end.
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
FOLDERS = ("data", "metrics")  # in which all outputs lie


class _Note(BaseModel):
    """The last run of a command; times in seconds since 1970."""

    stage: str
    arguments: list[str]
    started: float
    ended: float | None = None  # it runs, or was killed


@contextmanager
def noted_run() -> Iterator[None]:
    """Note when this command runs, so that what it leaves half-made is known as its own."""
    if not Path(".dvc").is_dir():  # by hand, outside of a project
        yield
        return

    stage = Path(sys.argv[0]).stem
    digest = hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()[:16]
    file = NOTES / f"{stage}-{digest}.json"
    note = _Note(stage=stage, arguments=sys.argv[1:], started=time.time())

    NOTES.mkdir(parents=True, exist_ok=True)
    file.write_text(note.model_dump_json())
    try:
        yield
    finally:
        file.write_text(note.model_copy(update={"ended": time.time()}).model_dump_json())


def find_foreign_files(root: Path) -> list[tuple[Path, Path]]:
    """(file, output in which it lies) of each file that DVC would delete and that no stage has made."""
    candidates = [path for folder in FOLDERS for path in _files_of_one_name(root / folder)]
    if not candidates:
        return []

    from dvc.repo import Repo  # a second to import, and seldom needed

    notes = [_Note.model_validate_json(file.read_bytes()) for file in (root / NOTES).glob("*.json")]
    foreign = []
    with Repo(str(root)) as repo:
        outputs = [output for output in repo.index.outs if output.use_cache]
        for path in candidates:
            output = next(
                (output for output in outputs if path.is_relative_to(output.fs_path)), None
            )
            if (
                output
                and not _has_content(repo, path)
                and not _is_half_made(path, output, root, notes)
            ):
                foreign.append((path.relative_to(root), Path(output.fs_path).relative_to(root)))
    return foreign


def _files_of_one_name(folder: Path) -> Iterator[Path]:
    """Files that hold something and have no other hard link: to delete one of them is to lose it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size:
                yield path


def _has_content(repo: "Repo", path: Path) -> bool:
    """Whether DVC has hashed the file as it is now, and holds that content in its cache."""
    from dvc.fs import localfs

    _, known = repo.state.get(str(path), localfs)
    return bool(known) and repo.cache.local.exists(known.value)


def _is_half_made(path: Path, output: "Output", root: Path, notes: list[_Note]) -> bool:
    """Whether the file was written while the stage of this output ran."""
    written = path.lstat().st_ctime
    stage = output.stage.cmd.split()[2].removeprefix("stages.")  # python -m stages.<stage> ...
    argument = str(Path(output.fs_path).relative_to(root))
    return any(
        note.stage == stage
        and argument in note.arguments
        and note.started - SLACK <= written <= (note.ended or time.time()) + SLACK
        for note in notes
    )
