"""Long work that may be interrupted: what is done so far is kept in the cache folder until all of it is.

Its name there is a hash of all that decides the result, code and versions among it, so that a rerun with anything
changed starts anew. Two runs that would share a folder take turns.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import cache_folder, check_folders, try_lock, waiting_note
from pipeline.provenance import Chosen, code_hash, fingerprint

POLLED = 0.1  # s between two looks at a lock


@contextmanager
def unfinished(
    kind: str,
    code: str,
    packages: Sequence[str],
    chosen: Chosen,
    decided_by: object,
    keep: bool = False,
) -> Iterator[Path]:
    """The folder for work of this kind, this run's alone, removed if it succeeds unless it is to `keep`.

    `code` is the `__file__` of the module that does the work: with all of this project that it uses (`provenance`) it
    decides the result, as do the `chosen` entries of tables, the versions of `packages` and `decided_by`, any plain
    data.
    """
    folder = cache_folder() / kind / fingerprint(code_hash(code, packages, chosen), decided_by)
    try:
        check_folders({folder.parent: 0})
    except InputError:
        if not (keep and folder.exists()):
            raise
        yield folder  # of a cache that others fill: it may hold all that is wanted
        return
    folder.parent.mkdir(exist_ok=True)
    lock_file = folder.with_name(f"{folder.name}.lock")
    if (lock := try_lock(lock_file)) is None:
        print(f"{kind}: another run works on the same; {waiting_note(lock_file)}", flush=True)
    while lock is None:
        time.sleep(POLLED)
        lock = try_lock(lock_file)
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        if not keep:
            shutil.rmtree(folder)
    finally:
        lock.release()
