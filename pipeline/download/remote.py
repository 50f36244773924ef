"""A file that a server offers, and the check that a file on the disk is the published one.

A file must have the published size. Of its content, the strongest of these is compared:
    the sha256 that the server publishes
    the md5 that the server publishes
    the hash that git gives a file, where the server publishes it
    the sha256 that this project knows (`pipeline.datasets.known_files`)
    the CRC of each member, if it is a zip, as files of torch and numpy are
A file with none of these is checked by its size alone.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.known_files import KnownFile


@dataclass(frozen=True)
class Remote:
    """A file that a server offers. Its size is in bytes, hashes are hexadecimal in lower case.

    `key` names the content in the cache. `sha256` may be the first digits of the hash, for a file
    of which no more digits are published. `known_file` is set where the server publishes no hash.
    """

    name: str
    url: str
    size: int
    key: str
    sha256: str | None = None
    md5: str | None = None
    known_file: KnownFile | None = None
    git_sha1: str | None = None


class WrongFile(Exception):
    """A file is not the published one. The text says what was expected and what was found."""


class NewVersion(WrongFile):
    """A file of the right size has another hash than this project knows: a new version, or damage.

    `sha256` is the hash that was found.
    """

    def __init__(self, problem: str, sha256: str) -> None:
        super().__init__(problem)
        self.sha256 = sha256


def check_file(path: Path, remote: Remote) -> str:
    """Compare a file with what is published of it, and return its sha256.

    Raises NewVersion if only the known hash differs, WrongFile for any other difference.
    """
    size = file_size(path)
    if size != remote.size:
        # A download stops one byte after the published end, so that its real size is not known.
        got = "more" if size > remote.size else size
        raise WrongFile(f"expected {remote.size} bytes, got {got}")

    # The sha256 is always computed: the cache stores it.
    sha256 = digest(path, "sha256")
    if remote.sha256:
        if not sha256.startswith(remote.sha256):
            raise WrongFile(f"expected sha256 {remote.sha256}, got {sha256}")
    elif remote.md5:
        md5 = digest(path, "md5")
        if md5 != remote.md5:
            raise WrongFile(f"expected md5 {remote.md5}, got {md5}")
    elif remote.git_sha1:
        git_sha1 = _git_sha1(path)
        if git_sha1 != remote.git_sha1:
            raise WrongFile(f"expected the hash {remote.git_sha1} of git, got {git_sha1}")
    elif remote.known_file:
        if sha256 != remote.known_file.sha256:
            raise NewVersion(f"expected sha256 {remote.known_file.sha256}, got {sha256}", sha256)
    elif remote.name.endswith((".zip", ".npz")) or zipfile.is_zipfile(path):
        _check_zip(path)
    return sha256


def new_version(file: object, problem: object) -> str:
    """The error text for a file that is not the one that this project knows."""
    return (
        f"{file}: is not the file that was published when this was written ({problem}), and no "
        "server names a hash of it; its publisher may have replaced it: if you have made sure of "
        "that, set download.accept_new_versions to true"
    )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged_member = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise WrongFile(f"expected a whole zip, got one that cannot be read ({error})") from error

    if damaged_member:
        raise WrongFile(f"expected a whole zip, got a wrong CRC in its member {damaged_member}")


def digest(path: Path, algorithm: str) -> str:
    """The hash of a file in hexadecimal; `algorithm` is "sha256" or "md5"."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _git_sha1(path: Path) -> str:
    """The hash by which git knows the content of a file: `git hash-object` prints it."""
    header = b"blob %d\0" % file_size(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(header)).hexdigest()


def file_size(path: Path) -> int:
    """Bytes; 0 if there is no such file."""
    return path.stat().st_size if path.exists() else 0
