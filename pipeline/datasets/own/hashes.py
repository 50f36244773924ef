"""The sha256 of large files, which are read again only where their size or time has changed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.files import cache_folder, replacing, sha256

FOLDER = "hashes"  # in the cache folder, a small file for each hashed file


class _Note(BaseModel):
    """What was hashed, and when it was changed last (ns since 1970)."""

    path: str
    size: int
    mtime: int
    sha256: str


def hash_files(paths: Sequence[Path]) -> str:
    """One hash of several files. Of one file it is its sha256; of more, that of all their hashes.

    Raises InputError where the disk fails.
    """
    hashes = [_hash(path) for path in paths]
    if len(hashes) == 1:
        return hashes[0]
    names = [path.name for path in paths]
    return hashlib.sha256(json.dumps([names, hashes]).encode()).hexdigest()


def _hash(path: Path) -> str:
    status = path.stat()
    note = cache_folder() / FOLDER / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    try:
        saved = _Note.model_validate_json(note.read_bytes())
        if (saved.path, saved.size, saved.mtime) == (str(path), status.st_size, status.st_mtime_ns):
            return saved.sha256
    except (FileNotFoundError, ValidationError):
        pass  # not hashed yet, or by another version

    new = _Note(path=str(path), size=status.st_size, mtime=status.st_mtime_ns, sha256=sha256(path))
    with replacing(note) as temporary:
        temporary.write_text(new.model_dump_json())
    return new.sha256
