"""Which published files a run needs: a dataset's from the servers that it names, a file of weights from its address."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.data.sources import Bucket, Figshare, Make, Osf, OwnCopy, PublishedFiles, Server, Subjects
from pipeline.errors import InputError, suggestion
from pipeline.fetch.listings import Listed, list_files
from pipeline.fetch.transfer import Remote, cached_size, fetch, is_cached
from pipeline.fetch.web import PATIENCE, Patience, remote_size
from pipeline.files import cache_folder, replacing

_LISTING = TypeAdapter(list[Listed])


@dataclass(frozen=True)
class Addresses:
    """The root of each kind of server; mirrors can be named."""

    osf: str
    figshare: str
    bucket: str

    def of(self, server: Server) -> str:
        match server:
            case Osf():
                return self.osf.rstrip("/")
            case Figshare():
                return self.figshare.rstrip("/")
            case Bucket():
                return self.bucket.rstrip("/")


def fetch_dataset(
    source: PublishedFiles | Make,
    addresses: Addresses,
    subjects: Subjects,
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    patience: Patience = PATIENCE,
) -> None:
    """Put the chosen subjects' files ("all": each that there is), the images and the metadata in place, or make them.

    Images that are an `OwnCopy` are left to `own_copy.collect_images`. With all files in the cache there is no request
    at all, not even for the listings. Raises InputError.
    """
    if not isinstance(source, PublishedFiles):
        source(subjects, eeg_dir, images_dir, metadata)
        return

    named: dict[Path, tuple[Server, str]] = {metadata: (source.metadata, source.metadata_file)}
    if not isinstance(source.images, OwnCopy):
        named |= {images_dir / name: (source.images, name) for name in source.image_files}

    def choose(list_of: Callable[[Server], list[Listed]]) -> dict[Path, Remote]:
        servers = dict.fromkeys([source.eeg, *(server for server, _ in named.values())])
        listings = {server: list_of(server) for server in servers}
        chosen = _subject_files(source, listings[source.eeg], subjects)
        wanted = {eeg_dir / place: _remote(source.eeg, file) for place, file in chosen}
        for place, (server, name) in named.items():
            wanted[place] = _remote(server, _find(name, server, listings[server]))
        return wanted

    wanted: dict[Path, Remote] = {}
    with suppress(InputError):  # what the stored listing lacks, a new one may have
        wanted = choose(lambda server: _stored_listing(server, addresses.of(server)))
    if not wanted or not all(map(is_cached, wanted.values())):
        wanted = choose(lambda server: _list(server, addresses.of(server), patience))
    fetch(wanted, patience)


def fetch_file(url: str, directory: Path, name: str, sha256: str | None = None, patience: Patience = PATIENCE) -> None:
    """Put what is at `url` into `directory` as `name`; `sha256` may be its first digits. Raises InputError."""
    key = f"{_short_hash(url)}-{name}"
    size = cached_size(key)
    if size is None:
        size = remote_size(url, patience)
    fetch({directory / name: Remote(name, url, size, key, sha256)}, patience)


def _subject_files(source: PublishedFiles, listing: list[Listed], subjects: Subjects) -> Iterator[tuple[str, Listed]]:
    """The chosen subjects' files, each with its place in the folder of EEG."""
    there: dict[str, list[Listed]] = {}
    for file in listing:
        if match := re.fullmatch(source.subject_file, file.name):
            there.setdefault(match[1], []).append(file)
    chosen = sorted(there) if subjects == "all" else subjects
    unknown = [subject for subject in chosen if subject not in there]
    if unknown or not chosen:
        raise InputError(
            f"{source.eeg}: no subject {', '.join(unknown) or 'was chosen or is listed'}; "
            f"there are {', '.join(sorted(there)) or 'none'}" + (suggestion(unknown[0], there) if unknown else "")
        )
    for subject in chosen:
        names = sorted(file.name for file in there[subject])
        if len(names) != source.files_per_subject or len(set(names)) != len(names):
            expected = "1 file" if source.files_per_subject == 1 else f"{source.files_per_subject} files"
            raise InputError(
                f"{source.eeg}: {subject}: expected {expected} such as {names[0]}, each once, got {len(names)}: "
                f"{', '.join(names)}; has the server all that was published?"
            )
        for file in there[subject]:
            yield (file.name if len(names) == 1 else f"{subject}/{file.name}"), file


def _find(name: str, server: Server, listing: list[Listed]) -> Listed:
    found = [file for file in listing if file.name == name]
    if len(found) != 1:
        raise InputError(
            f"{server}: expected one file {name}, got {len(found)} by that name; "
            f"it lists {', '.join(sorted(file.name for file in listing)) or 'nothing'}"
        )
    return found[0]


def _remote(server: Server, file: Listed) -> Remote:
    if file.url is None or file.size is None:
        raise InputError(
            f"{server}: {file.name} has {'no size' if file.url else 'no address there, only a link to elsewhere'}, so "
            "that it cannot be fetched; ask its authors"
        )
    if file.sha256:
        key = f"sha256-{file.sha256}"
    elif file.md5:
        key = f"md5-{file.md5}"
    else:
        key = f"{file.version}-{file.size}-{file.name}"
    return Remote(file.name, file.url, file.size, key, file.sha256, file.md5)


def _list(server: Server, root: str, patience: Patience) -> list[Listed]:
    """What the server at `root` lists now, stored for a day without a network."""
    files = list_files(server, root, patience)
    path = _listing_path(server, root)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(_LISTING.dump_json(files))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make room or give access, and run it again") from error
    return files


def _stored_listing(server: Server, root: str) -> list[Listed]:
    """What `_list` returned last, nothing if it never did."""
    try:
        return _LISTING.validate_json(_listing_path(server, root).read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def _listing_path(server: Server, root: str) -> Path:
    return cache_folder() / f"listing-{_short_hash(f'{root} {server}')}.json"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
