"""Long work that may be interrupted: its partial results stay in the cache folder until it is done.

The folder's name is a hash of all that decides the result, code and versions too. So a run resumes
only if nothing has changed, and else starts anew. Two runs with the same folder take turns.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock

from pipeline.errors import InputError
from pipeline.files import cache_folder, check_folders, try_lock, waiting_note
from pipeline.provenance import Chosen, code_hash, fingerprint

POLL_EVERY = 0.1  # s between two attempts to take a lock


@contextmanager
def unfinished(
    kind: str,
    code: str,
    packages: Sequence[str],
    chosen: Chosen,
    decided_by: object,
    keep: bool = False,
) -> Iterator[Path]:
    """The folder for the partial results of some work, for this run alone.

    It is removed once the work has succeeded, unless `keep` is set. `kind` is a folder of the cache
    folder, such as training. All else decides the result: the module that does the work (`code` is
    its `__file__`) with all code that it uses, the versions of `packages`, the `chosen` entries of
    tables (`pipeline.provenance`), and `decided_by`, any data that JSON can hold.

    Raises InputError where the cache folder cannot be written.
    """
    folder = cache_folder() / kind / fingerprint(code_hash(code, packages, chosen), decided_by)
    try:
        check_folders({folder.parent: 0})
    except InputError:
        # A cache that others fill may be read-only for us and hold all that is needed.
        if not (keep and folder.exists()):
            raise
        yield folder
        return

    folder.parent.mkdir(exist_ok=True)
    lock = _wait_for_lock(folder.with_name(f"{folder.name}.lock"), kind)
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        # Only after a success: what an error leaves is where the next run goes on.
        if not keep:
            shutil.rmtree(folder)
    finally:
        lock.release()


def _wait_for_lock(file: Path, kind: str) -> BaseFileLock:
    """The lock of this file; the user is told if another run has it."""
    lock = try_lock(file)
    if lock is None:
        print(f"{kind}: another run works on the same; {waiting_note(file)}", flush=True)
    while lock is None:
        time.sleep(POLL_EVERY)
        lock = try_lock(file)
    return lock
