"""Which published files a run needs: a dataset's from the servers that it names, a file of weights from its address."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.datasets.known_files import KnownFiles
from pipeline.datasets.sources import (
    Bucket,
    Figshare,
    Make,
    Osf,
    OwnCopy,
    PublishedFiles,
    Server,
    Subjects,
)
from pipeline.download.copies import Copies, choose_copy, find_copies, take_copies
from pipeline.download.listings import Listed, list_files
from pipeline.download.transfer import Remote, cached_size, fetch, is_cached, new_version
from pipeline.download.web import PATIENCE, USE_OWN_COPIES, Patience, remote_size
from pipeline.errors import InputError, suggestion
from pipeline.files import cache_folder, replacing

_LISTING = TypeAdapter(list[Listed])


class _NotListed(InputError):
    """A listing lacks a file that is wanted: another one may have it."""


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


@dataclass(frozen=True)
class Brought:
    """Published files that the user has brought along.

    `copies` are to be used. In `left_in` files are only noticed: a run that would fetch the same ends instead.
    """

    copies: Copies | None = None
    left_in: Path | None = None
    # Where neither a server nor this project knows the file's hash
    accept_new_versions: bool = False


def fetch_dataset(
    source: PublishedFiles | Make,
    addresses: Addresses,
    subjects: Subjects,
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    patience: Patience = PATIENCE,
    brought: Brought | None = None,
    check_metadata: Callable[[Path], None] | None = None,
) -> None:
    """Put the chosen subjects' files ("all": each that there is), the images and the metadata in place, or make them.

    Files that the user brought come first, then the cache, then the servers, of which none is asked without need.
    Images that are an `OwnCopy` are left to `own_copy.collect_images`. `check_metadata` is called with the metadata
    in place, before all else is fetched. Raises InputError.
    """
    if not isinstance(source, PublishedFiles):
        source(subjects, eeg_dir, images_dir, metadata)
        return

    brought = brought or Brought()
    wanted = _choose(
        source, addresses, subjects, Places(eeg_dir, images_dir, metadata), brought, patience
    )
    if check_metadata:
        _put({metadata: wanted.pop(metadata)}, brought.copies, patience)
        check_metadata(metadata)
    _put(wanted, brought.copies, patience)


def fetch_file(
    url: str,
    directory: Path,
    name: str,
    sha256: str | None = None,
    patience: Patience = PATIENCE,
    published_path: str = "",
    brought: Brought | None = None,
) -> None:
    """Put what is at `url` into `directory` as `name`; `sha256` may be its first digits. Raises InputError.

    `published_path` is where its publisher keeps it: an own copy may lie at such a path too.
    """
    brought = brought or Brought()
    key = f"{_short_hash(url)}-{name}"
    copies = brought.copies.find(name, published_path) if brought.copies else ()
    if brought.copies and copies:
        copy = choose_copy(copies, None)
        remote = Remote(name, url, copy.stat().st_size, key, sha256)
        take_copies({directory / name: (copy, remote)}, brought.copies)
        return

    size = cached_size(key)
    if size is None:
        _refuse_to_overlook(brought, lambda left: left.find(name, published_path))
        size = remote_size(url, patience)
    fetch({directory / name: Remote(name, url, size, key, sha256)}, patience)


@dataclass(frozen=True)
class Places:
    """Where a dataset's files go."""

    eeg_dir: Path
    images_dir: Path
    metadata: Path


def _choose(
    source: PublishedFiles,
    addresses: Addresses,
    subjects: Subjects,
    places: Places,
    brought: Brought,
    patience: Patience,
) -> dict[Path, Remote]:
    """What goes where: by the own copies if these are all that is wanted, else by what the servers list."""

    def by_listings(
        list_of: Callable[[Server], list[Listed]], subjects: Subjects = subjects
    ) -> dict[Path, Remote]:
        return _choose_listed(source, list_of, subjects, places, brought.accept_new_versions)

    copies = brought.copies
    everybody = list(source.subjects) if subjects == "all" else subjects
    if copies and everybody:
        with suppress(_NotListed):  # a server may have it
            return by_listings(lambda server: _list_copies(copies, source), everybody)

    with suppress(InputError):  # what the stored listing lacks, a new one may have
        wanted = by_listings(lambda server: _stored_listing(server, addresses.of(server)))
        if all(
            is_cached(remote) or (copies and copies.find(remote.name)) for remote in wanted.values()
        ):
            return wanted

    _refuse_to_overlook(brought, lambda left: _published_files(left, source, subjects))
    try:
        return by_listings(lambda server: _list(server, addresses.of(server), patience))
    except InputError as error:
        if copies is None:
            raise
        found = (
            ", ".join(sorted({path.name for path in _published_files(copies, source)}))
            or "nothing of this dataset"
        )
        raise InputError(
            f"{copies.folder} (download.own_copy) holds {found}; of the rest: {error}"
        ) from error


def _choose_listed(
    source: PublishedFiles,
    list_of: Callable[[Server], list[Listed]],
    subjects: Subjects,
    places: Places,
    accept_new_versions: bool,
) -> dict[Path, Remote]:
    """Each file that is wanted, by the place where it goes; InputError where a listing lacks one."""
    named: dict[Path, tuple[Server, str]] = {
        places.metadata: (source.metadata, source.metadata_file)
    }
    if not isinstance(source.images, OwnCopy):
        named |= {places.images_dir / name: (source.images, name) for name in source.image_files}

    servers = dict.fromkeys([source.eeg, *(server for server, _ in named.values())])
    listings = {server: list_of(server) for server in servers}
    known = {} if accept_new_versions else source.known_files

    wanted = {}
    for place, file in _subject_files(source, listings[source.eeg], subjects):
        wanted[places.eeg_dir / place] = _remote(source.eeg, file, known)
    for path, (server, name) in named.items():
        wanted[path] = _remote(server, _find(name, server, listings[server]), known)
    return wanted


def _put(wanted: Mapping[Path, Remote], copies: Copies | None, patience: Patience) -> None:
    """The user's own files first, the rest from the cache or its server."""
    found = {place: copies.find(remote.name) if copies else () for place, remote in wanted.items()}
    taken = {
        place: (choose_copy(found[place], remote.size), remote)
        for place, remote in wanted.items()
        if found[place]
    }
    if copies and taken:
        take_copies(taken, copies)

    rest = {place: remote for place, remote in wanted.items() if place not in taken}
    if rest:
        fetch(rest, patience)


def _list_copies(copies: Copies, source: PublishedFiles) -> list[Listed]:
    """The own copies as if a server listed them; without a hash, so that the known ones are compared."""
    listing = []
    for path in _published_files(copies, source):
        known = source.known_files.get(path.name)
        chosen = choose_copy(copies.find(path.name), known.size if known else None)
        size = chosen.stat().st_size
        listing.append(Listed(name=path.name, size=size, url=chosen.as_uri(), version="own copy"))
    return list({file.name: file for file in listing}.values())


def _published_files(
    copies: Copies, source: PublishedFiles, subjects: Subjects = "all"
) -> list[Path]:
    """Those of the user's files that have the name of a file of this dataset, of these subjects."""

    def is_published(name: str) -> bool:
        match = re.fullmatch(source.subject_file, name)
        if match:
            return subjects == "all" or match[1] in subjects
        return name == source.metadata_file or name in source.image_files

    return [
        path for name, paths in sorted(copies.files.items()) if is_published(name) for path in paths
    ]


def _refuse_to_overlook(brought: Brought, find: Callable[[Copies], Sequence[Path]]) -> None:
    """InputError where the user's folder holds what is about to be fetched, and no key says whether to use it."""
    folder = brought.left_in
    if brought.copies or folder is None or not folder.is_dir():
        return

    paths = find(find_copies(folder))
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(
            f"{paths[0]}{more}: a file of yours has the name of one that would be fetched; to use it, set "
            f"download.own_copy to {folder.absolute()} (dvc exp run -S download.own_copy={folder.absolute()}), to "
            f"fetch it all the same, take it out of {folder}"
        )


def _subject_files(
    source: PublishedFiles, listing: list[Listed], subjects: Subjects
) -> Iterator[tuple[str, Listed]]:
    """The chosen subjects' files, each with its place in the folder of EEG."""
    there: dict[str, list[Listed]] = {}
    for file in listing:
        if match := re.fullmatch(source.subject_file, file.name):
            there.setdefault(match[1], []).append(file)
    chosen = sorted(there) if subjects == "all" else subjects
    unknown = [subject for subject in chosen if subject not in there]
    if unknown or not chosen:
        raise _NotListed(
            f"{source.eeg}: no subject {', '.join(unknown) or 'was chosen or is listed'}; "
            + _how_to_choose(unknown, there)
        )
    for subject in chosen:
        names = sorted(file.name for file in there[subject])
        if len(names) != source.files_per_subject or len(set(names)) != len(names):
            expected = (
                "1 file" if source.files_per_subject == 1 else f"{source.files_per_subject} files"
            )
            raise _NotListed(
                f"{source.eeg}: {subject}: expected {expected} such as {names[0]}, each once, got "
                f"{len(names)}: {', '.join(names)}; name a mirror, leave the subject out of "
                f"`subjects`, or {USE_OWN_COPIES}"
            )
        for file in there[subject]:
            yield (file.name if len(names) == 1 else f"{subject}/{file.name}"), file


def _how_to_choose(unknown: Sequence[str], there: Mapping[str, list[Listed]]) -> str:
    if not there:
        return f"there are none: name a mirror, or {USE_OWN_COPIES}"
    near = suggestion(unknown[0], there) if unknown else ""
    return f"there are {', '.join(sorted(there))}: choose of these in `subjects`{near}"


def _find(name: str, server: Server, listing: list[Listed]) -> Listed:
    found = [file for file in listing if file.name == name]
    if len(found) != 1:
        raise _NotListed(
            f"{server}: expected one file {name}, got {len(found)} by that name; it lists "
            f"{', '.join(sorted(file.name for file in listing)) or 'nothing'}: name a mirror, or "
            f"{USE_OWN_COPIES}"
        )
    return found[0]


def _remote(server: Server, file: Listed, known_files: KnownFiles) -> Remote:
    if file.url is None or file.size is None:
        raise InputError(
            f"{server}: {file.name} has "
            f"{'no size' if file.url else 'no address there, only a link to elsewhere'}, so that "
            f"it cannot be fetched; name a mirror, or {USE_OWN_COPIES}"
        )
    if file.sha256:
        key = f"sha256-{file.sha256}"
    elif file.md5:
        key = f"md5-{file.md5}"
    else:
        key = f"{file.version}-{file.size}-{file.name}"
    known = None if file.sha256 or file.md5 else known_files.get(file.name)
    remote = Remote(file.name, file.url, file.size, key, file.sha256, file.md5, known)
    if known and known.size != file.size:
        raise InputError(new_version(file.name, f"expected {known.size} bytes, got {file.size}"))
    return remote


def _list(server: Server, root: str, patience: Patience) -> list[Listed]:
    """What the server at `root` lists now, stored for a day without a network."""
    files = list_files(server, root, patience)
    with replacing(_listing_path(server, root)) as temporary:
        temporary.write_bytes(_LISTING.dump_json(files))
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
