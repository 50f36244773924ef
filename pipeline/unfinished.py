"""Long work that may be interrupted: what is done so far is kept in the cache folder until all of it is.

Its name there is a hash of all that decides the result, code and versions among it, so that a rerun with anything
changed starts anew. Two runs that would share a folder take turns.
"""

import ast
import hashlib
import json
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.files import cache_folder, sha256

ROOT = Path(__file__).parents[1]
PLACE_OF_WORK = [ROOT / f"pipeline/{name}.py" for name in ("machine", "workers")]  # change no result
_parsing = threading.Lock()  # two threads in ast.parse at once may fail in Python 3.11 (SystemError: recursion depth)


@contextmanager
def unfinished(kind: str, code: str, packages: Sequence[str], decided_by: object, keep: bool = False) -> Iterator[Path]:
    """The folder for work of this kind, this run's alone, removed if it succeeds unless it is to `keep`.

    `code` is the `__file__` of the module that does the work: with all that it imports from this library it decides
    the result, as do the versions of `packages` and `decided_by`, any plain data.
    """
    folder = cache_folder() / kind / fingerprint(code_hash(code, packages), decided_by)
    folder.parent.mkdir(exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{kind}: another run works on the same; waiting for it", flush=True)
        lock.acquire()
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        if not keep:
            shutil.rmtree(folder)
    finally:
        lock.release()


def code_hash(code: str, packages: Sequence[str]) -> str:
    """Of a module's file, all that it imports from this library, and the versions of these packages.

    But for what says where work is done, which changes no result.
    """
    files = sorted({Path(code), *imported(Path(code), besides=PLACE_OF_WORK)})
    return fingerprint([sha256(path) for path in files], [_version(name) for name in packages])


def fingerprint(*decided_by: object) -> str:
    """32 hexadecimal digits for plain data."""
    return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()[:32]


def imported(path: Path, besides: Collection[Path] = ()) -> set[Path]:
    """The files of this library that a Python file imports, directly or through another one, but for `besides`."""
    found: set[Path] = set()
    waiting = {path}
    while waiting:
        new = _imported_by(waiting.pop()) - found - set(besides)
        found |= new
        waiting |= new
    return found


def _imported_by(path: Path) -> set[Path]:
    names = set()
    with _parsing:
        tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = (ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names if name.startswith("pipeline."))
    return {file for file in files if file.is_file()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
