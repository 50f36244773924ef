"""Which published files a run needs, and where they come from.

The files of a dataset come from the servers that its entry names, a file of weights from its URL.
Files that the user already has are used first, then the cache, then the servers.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from pipeline.datasets.known_files import KnownFile, KnownFiles
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
from pipeline.download.cache import cached_size, is_cached
from pipeline.download.copies import Copies, choose_copy, find_copies, take_copies
from pipeline.download.listings import ListedFile, list_files
from pipeline.download.remote import Remote, new_version
from pipeline.download.transfer import fetch
from pipeline.download.web import PATIENCE, USE_OWN_COPIES, Patience, remote_size
from pipeline.errors import InputError, suggestion
from pipeline.files import cache_folder, replacing

_LISTING = TypeAdapter(list[ListedFile])


class _NotListed(InputError):
    """A listing lacks a file that the run needs. Another listing may have it."""


@dataclass(frozen=True)
class Addresses:
    """The address of each kind of server; a mirror may stand in its place."""

    osf: str
    figshare: str
    bucket: str

    def root_of(self, server: Server) -> str:
        """The address without a slash at its end."""
        match server:
            case Osf():
                return self.osf.rstrip("/")
            case Figshare():
                return self.figshare.rstrip("/")
            case Bucket():
                return self.bucket.rstrip("/")


@dataclass(frozen=True)
class UserFiles:
    """Published files that the user already has.

    Files of `copies` are used. Files in the folder `left_in` are not: a run that would fetch one of
    them ends instead, and says how to use it. With `accept_new_versions`, a file may differ from
    the one that this project knows, if no server publishes its hash.
    """

    copies: Copies | None = None
    left_in: Path | None = None
    accept_new_versions: bool = False


@dataclass(frozen=True)
class _Targets:
    """Where the files of a dataset go."""

    eeg_dir: Path
    images_dir: Path | None
    metadata: Path


def fetch_dataset(
    source: PublishedFiles | Make,
    addresses: Addresses,
    subjects: Subjects,
    eeg_dir: Path,
    images_dir: Path | None,
    metadata: Path,
    patience: Patience = PATIENCE,
    user_files: UserFiles | None = None,
    check_metadata: Callable[[Path], None] | None = None,
) -> None:
    """Put the EEG of the chosen subjects, the images and the metadata in place, or make them.

    "all" are the subjects that the server lists. No server is asked for what the user or the cache
    has. Images that are an `OwnCopy` are left to `own_copy.collect_images`, and without
    `images_dir` no image is put anywhere. `check_metadata` is called with the metadata in place,
    before any other file is fetched. Raises InputError.
    """
    if not isinstance(source, PublishedFiles):
        with TemporaryDirectory() as nowhere:
            source(subjects, eeg_dir, images_dir or Path(nowhere), metadata)
        return

    user_files = user_files or UserFiles()
    targets = _Targets(eeg_dir, images_dir, metadata)
    remotes = _choose(source, addresses, subjects, targets, user_files, patience)

    if check_metadata:
        _put({metadata: remotes.pop(metadata)}, user_files.copies, patience)
        check_metadata(metadata)
    _put(remotes, user_files.copies, patience)


def fetch_file(
    url: str,
    directory: Path,
    name: str,
    sha256: str | None = None,
    patience: Patience = PATIENCE,
    published_path: str = "",
    user_files: UserFiles | None = None,
    known_file: KnownFile | None = None,
) -> None:
    """Put the file at `url` into `directory` as `name`. Raises InputError.

    `sha256` may be the first digits of the hash. `published_path` is the path of the file where it
    is published: a copy of the user is found by that path, too. A `known_file` stands in place of
    a hash where its publisher names none, and may have been replaced there.
    """
    user_files = user_files or UserFiles()
    copies = user_files.copies
    target = directory / name
    key = f"{_short_hash(url)}-{name}"  # by the address, because the hash may not be published

    paths = copies.find(name, published_path) if copies else ()
    if copies and paths:
        copy = choose_copy(paths, None)
        # Nobody publishes its size, so the copy's own is taken: the hash decides, if there is one.
        size_of_copy = copy.stat().st_size
        remote = Remote(name, url, size_of_copy, key, sha256, known_file=known_file)
        take_copies({target: (copy, remote)}, copies)
        return

    size = cached_size(key)
    if size is None:
        _refuse_to_overlook(user_files, lambda unused: unused.find(name, published_path))
        size = remote_size(url, patience)
    fetch({target: Remote(name, url, size, key, sha256, known_file=known_file)}, patience)


def _choose(
    source: PublishedFiles,
    addresses: Addresses,
    subjects: Subjects,
    targets: _Targets,
    user_files: UserFiles,
    patience: Patience,
) -> dict[Path, Remote]:
    """What goes where, by the first of three listings that has all files.

    These are the copies of the user, the stored listing of each server, and its listing now.
    """
    copies = user_files.copies

    def by_listings(
        list_of: Callable[[Server], list[ListedFile]], subjects: Subjects = subjects
    ) -> dict[Path, Remote]:
        return _choose_listed(source, list_of, subjects, targets, user_files.accept_new_versions)

    # The copies: they must have each subject that was published, if all are chosen.
    subjects_to_copy = list(source.subjects) if subjects == "all" else subjects
    if copies and subjects_to_copy:
        with suppress(_NotListed):
            return by_listings(lambda server: _list_copies(copies, source), subjects_to_copy)

    # The stored listings: enough if nothing has to be fetched.
    with suppress(InputError):
        remotes = by_listings(lambda server: _stored_listing(server, addresses.root_of(server)))
        if all(
            is_cached(remote) or (copies and copies.find(remote.name))
            for remote in remotes.values()
        ):
            return remotes

    # The servers.
    _refuse_to_overlook(user_files, lambda unused: _published_files(unused, source, subjects))
    try:
        return by_listings(lambda server: _list(server, addresses.root_of(server), patience))
    except InputError as error:
        if copies is None:
            raise
        names = sorted({path.name for path in _published_files(copies, source)})
        raise InputError(
            f"{copies.folder} (download.own_copy) holds "
            f"{', '.join(names) or 'nothing of this dataset'}; of the rest: {error}"
        ) from error


def _choose_listed(
    source: PublishedFiles,
    list_of: Callable[[Server], list[ListedFile]],
    subjects: Subjects,
    targets: _Targets,
    accept_new_versions: bool,
) -> dict[Path, Remote]:
    """The files of a run, by their targets. Raises _NotListed if a listing lacks one of them."""
    # Metadata and images have fixed names.
    servers_and_names: dict[Path, tuple[Server, str]] = {
        targets.metadata: (source.metadata, source.metadata_file)
    }
    if targets.images_dir and not isinstance(source.images, OwnCopy):
        for name in source.image_files:
            servers_and_names[targets.images_dir / name] = (source.images, name)

    # Images and metadata may lie on one server, which is then asked once.
    servers = dict.fromkeys([source.eeg, *(server for server, _ in servers_and_names.values())])
    listings = {server: list_of(server) for server in servers}
    known_files = {} if accept_new_versions else source.known_files

    remotes = {}
    for path, file in _subject_files(source, listings[source.eeg], subjects):
        remotes[targets.eeg_dir / path] = _remote(source.eeg, file, known_files)
    for target, (server, name) in servers_and_names.items():
        remotes[target] = _remote(server, _find(name, server, listings[server]), known_files)
    return remotes


def _put(remotes: Mapping[Path, Remote], copies: Copies | None, patience: Patience) -> None:
    """Put each file at its target: a copy of the user, or else from the cache or its server."""
    paths_and_remotes = {}
    remotes_to_fetch = {}
    for target, remote in remotes.items():
        paths = copies.find(remote.name) if copies else ()
        if paths:
            paths_and_remotes[target] = (choose_copy(paths, remote.size), remote)
        else:
            remotes_to_fetch[target] = remote

    if copies and paths_and_remotes:
        take_copies(paths_and_remotes, copies)
    if remotes_to_fetch:
        fetch(remotes_to_fetch, patience)


def _list_copies(copies: Copies, source: PublishedFiles) -> list[ListedFile]:
    """The copies of the user as a listing. It has no hashes, so the known ones are compared."""
    # By name, because several copies of a file are one file of the listing.
    listing = {}
    for path in _published_files(copies, source):
        name = path.name
        known_file = source.known_files.get(name)
        copy = choose_copy(copies.find(name), known_file.size if known_file else None)
        listing[name] = ListedFile(
            name=name, size=copy.stat().st_size, url=copy.as_uri(), version="own copy"
        )
    return list(listing.values())


def _published_files(
    copies: Copies, source: PublishedFiles, subjects: Subjects = "all"
) -> list[Path]:
    """The copies that have the name of a file of this dataset and these subjects."""

    def is_published(name: str) -> bool:
        # match[1] is the subject: the expression has one group.
        match = re.fullmatch(source.subject_file, name)
        if match:
            return subjects == "all" or match[1] in subjects
        return name == source.metadata_file or name in source.image_files

    return [
        path for name, paths in sorted(copies.files.items()) if is_published(name) for path in paths
    ]


def _refuse_to_overlook(user_files: UserFiles, find: Callable[[Copies], Sequence[Path]]) -> None:
    """InputError if the folder `left_in` holds what would be fetched, and is not to be used."""
    folder = user_files.left_in
    if user_files.copies or folder is None or not folder.is_dir():
        return

    paths = find(find_copies(folder))
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(
            f"{paths[0]}{more}: a file of yours has the name of one that would be fetched; to use "
            f"it, set download.own_copy to {folder.absolute()} (dvc exp run -S "
            f"download.own_copy={folder.absolute()}), to fetch it all the same, take it out of "
            f"{folder}"
        )


def _subject_files(
    source: PublishedFiles, listing: list[ListedFile], subjects: Subjects
) -> Iterator[tuple[str, ListedFile]]:
    """The files of the chosen subjects, each with its path below the folder of EEG."""
    by_subject: dict[str, list[ListedFile]] = {}
    for file in listing:
        if match := re.fullmatch(source.subject_file, file.name):
            by_subject.setdefault(match[1], []).append(file)

    chosen = sorted(by_subject) if subjects == "all" else subjects
    missing = [subject for subject in chosen if subject not in by_subject]
    if missing or not chosen:
        raise _NotListed(
            f"{source.eeg}: no subject {', '.join(missing) or 'was chosen or is listed'}; "
            + _how_to_choose(missing, by_subject)
        )

    for subject in chosen:
        files = by_subject[subject]
        _check_parts(source, subject, sorted(file.name for file in files))
        for file in files:
            yield (file.name if len(files) == 1 else f"{subject}/{file.name}"), file


def _how_to_choose(missing: Sequence[str], by_subject: Mapping[str, list[ListedFile]]) -> str:
    """The end of the error text for subjects that a listing lacks."""
    if not by_subject:
        return f"there are none: name a mirror, or {USE_OWN_COPIES}"
    guess = suggestion(missing[0], by_subject) if missing else ""
    return f"there are {', '.join(sorted(by_subject))}: choose of these in `subjects`{guess}"


def _check_parts(source: PublishedFiles, subject: str, names: list[str]) -> None:
    """Raises _NotListed unless a subject has the published number of files, of different names."""
    n_files = source.files_per_subject
    if len(names) == n_files and len(set(names)) == n_files:
        return

    expected = "1 file" if n_files == 1 else f"{n_files} files"
    raise _NotListed(
        f"{source.eeg}: {subject}: expected {expected} such as {names[0]}, each once, got "
        f"{len(names)}: {', '.join(names)}; name a mirror, leave the subject out of `subjects`, or "
        f"{USE_OWN_COPIES}"
    )


def _find(name: str, server: Server, listing: list[ListedFile]) -> ListedFile:
    """The only file of this name. Raises _NotListed if there is none, or several."""
    files = [file for file in listing if file.name == name]
    if len(files) != 1:
        raise _NotListed(
            f"{server}: expected one file {name}, got {len(files)} by that name; it lists "
            f"{', '.join(sorted(file.name for file in listing)) or 'nothing'}: name a mirror, or "
            f"{USE_OWN_COPIES}"
        )
    return files[0]


def _remote(server: Server, file: ListedFile, known_files: KnownFiles) -> Remote:
    """A listed file, ready to be fetched.

    Raises InputError if it has no size or no address, or another size than the known file.
    """
    if file.url is None or file.size is None:
        lack = "no size" if file.url else "no address there, only a link to elsewhere"
        raise InputError(
            f"{server}: {file.name} has {lack}, so that it cannot be fetched; name a mirror, or "
            f"{USE_OWN_COPIES}"
        )

    # The key stands for the content: the same file of two servers is fetched once.
    if file.sha256:
        key = f"sha256-{file.sha256}"
    elif file.md5:
        key = f"md5-{file.md5}"
    else:
        key = f"{file.version}-{file.size}-{file.name}"

    known_file = None if file.sha256 or file.md5 else known_files.get(file.name)
    if known_file and known_file.size != file.size:
        problem = f"expected {known_file.size} bytes, got {file.size}"
        raise InputError(new_version(file.name, problem))
    return Remote(file.name, file.url, file.size, key, file.sha256, file.md5, known_file)


def _list(server: Server, root: str, patience: Patience) -> list[ListedFile]:
    """What the server at `root` lists now. It is stored for a later run without a network."""
    files = list_files(server, root, patience)
    with replacing(_listing_path(server, root)) as temporary:
        temporary.write_bytes(_LISTING.dump_json(files))
    return files


def _stored_listing(server: Server, root: str) -> list[ListedFile]:
    """What `_list` stored last; empty if nothing is stored."""
    try:
        return _LISTING.validate_json(_listing_path(server, root).read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def _listing_path(server: Server, root: str) -> Path:
    return cache_folder() / f"listing-{_short_hash(f'{root} {server}')}.json"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
