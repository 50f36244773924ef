"""Which published files a run needs, and where they come from.

The files of a dataset come from the servers that its entry names, a file of weights from its URL.
Files that the user already has are used first, then the cache, then the servers.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from pipeline.datasets.known_files import KnownFile, KnownFiles
from pipeline.datasets.sources import (
    Bucket,
    Figshare,
    Hub,
    Licence,
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
from pipeline.errors import SUBJECTS, InputError, suggestion
from pipeline.files import cache_folder, replacing

_LISTING = TypeAdapter(list[ListedFile])
_MANY = 20  # an error text names so many files, and counts the others


class _NotListed(InputError):
    """A listing lacks a file that the run needs. Another listing may have it."""


@dataclass(frozen=True)
class Addresses:
    """The address of each kind of server; a mirror may stand in its place."""

    osf: str
    figshare: str
    bucket: str
    hub: str

    def root_of(self, server: Server) -> str:
        """The address without a slash at its end."""
        match server:
            case Osf():
                return self.osf.rstrip("/")
            case Figshare():
                return self.figshare.rstrip("/")
            case Bucket():
                return self.bucket.rstrip("/")
            case Hub():
                return self.hub.rstrip("/")


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

    source: PublishedFiles
    eeg_dir: Path
    images_dir: Path | None
    metadata: Path

    @property
    def shown_images(self) -> Path:
        """It lies there until it was compared with the images."""
        return (self.images_dir or self.eeg_dir.parent) / self.source.shown_images_file

    def of(self, path: str) -> Path | None:
        """Where a file of this published path goes; None for a file that is not needed."""
        source = self.source
        name = PurePosixPath(path).name
        if name == source.metadata_file:
            return self.metadata
        if source.shown_images_file and name == source.shown_images_file:
            return self.shown_images
        if name in source.image_files:
            return self.images_dir / name if self.images_dir else None

        subject_file = _subject_file(source, path)
        return self.eeg_dir / subject_file[1] if subject_file else None


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
    check_shown_images: Callable[[Path], None] | None = None,
) -> None:
    """Put the EEG of the chosen subjects, the images and the metadata in place, or make them.

    "all" are the subjects that the server lists. No server is asked for what the user or the cache
    has. Images that are an `OwnCopy` are left to `own_copy.collect_images`, and without
    `images_dir` no image is put anywhere. `check_metadata` is called with the metadata in place,
    before any other file is fetched. `check_shown_images` is called with the zip
    `source.shown_images_file`, before any EEG is fetched; images and metadata are in place then,
    and afterwards the zip is left in the cache alone. Raises InputError.
    """
    if not isinstance(source, PublishedFiles):
        with TemporaryDirectory() as nowhere:
            source(subjects, eeg_dir, images_dir or Path(nowhere), metadata)
        return

    user_files = user_files or UserFiles()
    targets = _Targets(source, eeg_dir, images_dir, metadata)
    copied = _copies_by_target(user_files.copies, targets)
    remotes = _choose(addresses, subjects, targets, user_files, copied, patience)

    def put(chosen: list[Path]) -> None:
        _put({path: remotes.pop(path) for path in chosen}, user_files.copies, copied, patience)

    if check_metadata:
        put([metadata])
        check_metadata(metadata)

    if source.shown_images_file:
        assert check_shown_images
        try:
            put([path for path in remotes if not path.is_relative_to(eeg_dir)])
            check_shown_images(targets.shown_images)
        finally:
            targets.shown_images.unlink(missing_ok=True)
    put(list(remotes))


def require_licence(source: PublishedFiles, accepted: Mapping[Licence, bool]) -> None:
    """Raises InputError unless the user has accepted the licence of a dataset, if it has one."""
    licence = source.licence
    if licence and not accepted[licence]:
        raise InputError(
            f"{source.eeg} is published under {licence.name}: read its terms at {licence.terms}, "
            f"and if you accept them, set {licence.key} to true (dvc exp run -S {licence.key}=true)"
        )


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
    addresses: Addresses,
    subjects: Subjects,
    targets: _Targets,
    user_files: UserFiles,
    copied: Mapping[Path, tuple[Path, ...]],
    patience: Patience,
) -> dict[Path, Remote]:
    """What goes where, by the first of three listings that has all files.

    These are the copies of the user, the stored listing of each server, and its listing now.
    """
    source = targets.source
    copies = user_files.copies

    def by_listings(
        list_of: Callable[[Server], list[ListedFile]], subjects: Subjects = subjects
    ) -> dict[Path, Remote]:
        return _choose_listed(list_of, subjects, targets, user_files.accept_new_versions)

    # The copies: they must have each subject that was published, if all are chosen.
    subjects_to_copy = list(source.subjects) if subjects == "all" else subjects
    if copies and subjects_to_copy:
        with suppress(_NotListed):
            return by_listings(lambda server: _list_copies(copied, source), subjects_to_copy)

    # The stored listings: enough if nothing has to be fetched.
    with suppress(InputError):
        remotes = by_listings(lambda server: _stored_listing(server, addresses.root_of(server)))
        if all(target in copied or is_cached(remote) for target, remote in remotes.items()):
            return remotes

    # The servers.
    _refuse_to_overlook(user_files, lambda unused: _published_files(unused, source, subjects))
    try:
        return by_listings(lambda server: _list(server, addresses.root_of(server), patience))
    except InputError as error:
        if copies is None:
            raise
        names = sorted(
            _name_for_messages(target, paths[0].name, targets) for target, paths in copied.items()
        )
        raise InputError(
            f"{copies.folder} (download.own_copy) holds "
            f"{_enumerate(names) or 'nothing of this dataset'}; of the rest: {error}"
        ) from error


def _choose_listed(
    list_of: Callable[[Server], list[ListedFile]],
    subjects: Subjects,
    targets: _Targets,
    accept_new_versions: bool,
) -> dict[Path, Remote]:
    """The files of a run, by their targets. Raises _NotListed if a listing lacks one of them."""
    source = targets.source

    # Metadata and images have fixed names.
    servers_and_names: dict[Path, tuple[Server, str]] = {
        targets.metadata: (source.metadata, source.metadata_file)
    }
    if targets.images_dir and not isinstance(source.images, OwnCopy):
        for name in source.image_files:
            servers_and_names[targets.images_dir / name] = (source.images, name)
    if source.shown_images_file:
        servers_and_names[targets.shown_images] = (source.eeg, source.shown_images_file)

    # Images and metadata may lie on one server, which is then asked once.
    servers = dict.fromkeys([source.eeg, *(server for server, _ in servers_and_names.values())])
    listings = {server: list_of(server) for server in servers}
    known_files = {} if accept_new_versions else source.known_files

    remotes = {}
    for path, file in _files_of_subjects(source, listings[source.eeg], subjects):
        target = targets.eeg_dir / path
        name = _name_for_messages(target, file.name, targets)
        remotes[target] = _remote(source.eeg, file, name, known_files)
    for target, (server, name) in servers_and_names.items():
        file = _find(name, server, listings[server])
        remotes[target] = _remote(server, file, name, known_files)
    return remotes


def _put(
    remotes: Mapping[Path, Remote],
    copies: Copies | None,
    copied: Mapping[Path, tuple[Path, ...]],
    patience: Patience,
) -> None:
    """Put each file at its target: a copy of the user, or else from the cache or its server."""
    paths_and_remotes = {}
    remotes_to_fetch = {}
    for target, remote in remotes.items():
        if target in copied:
            paths_and_remotes[target] = (choose_copy(copied[target], remote.size), remote)
        else:
            remotes_to_fetch[target] = remote

    if copies and paths_and_remotes:
        take_copies(paths_and_remotes, copies)
    if remotes_to_fetch:
        fetch(remotes_to_fetch, patience)


def _copies_by_target(copies: Copies | None, targets: _Targets) -> dict[Path, tuple[Path, ...]]:
    """The copies that are files of this dataset, by where they go. Several may go to one place."""
    by_target: dict[Path, tuple[Path, ...]] = {}
    for path in _published_files(copies, targets.source) if copies else ():
        target = targets.of(str(path))
        assert target
        by_target[target] = (*by_target.get(target, ()), path)
    return by_target


def _list_copies(
    copied: Mapping[Path, tuple[Path, ...]], source: PublishedFiles
) -> list[ListedFile]:
    """The copies of the user as a listing. It has no hashes, so the known ones are compared."""
    listing = []
    for paths in copied.values():
        known_file = source.known_files.get(paths[0].name)
        copy = choose_copy(paths, known_file.size if known_file else None)
        listing.append(
            ListedFile(
                name=copy.name,
                path=str(copy),
                size=copy.stat().st_size,
                url=copy.as_uri(),
                version="own copy",
            )
        )
    return listing


def _published_files(
    copies: Copies, source: PublishedFiles, subjects: Subjects = "all"
) -> list[Path]:
    """The copies that are by their names and folders files of this dataset and these subjects."""
    names = {source.metadata_file, *source.image_files, source.shown_images_file}

    def is_published(path: Path) -> bool:
        subject_file = _subject_file(source, str(path))
        if subject_file:
            return subjects == "all" or subject_file[0] in subjects
        return path.name in names

    return [
        path for _, paths in sorted(copies.files.items()) for path in paths if is_published(path)
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


def _subject_file(source: PublishedFiles, path: str) -> tuple[str, str] | None:
    """Whose file a published path is, and its path below the folder of EEG.

    None for any other file. As many folders of the path count as `source.subject_file` names.
    """
    n_parts = source.subject_file.count("/") + 1
    end = "/".join(path.split("/")[-n_parts:])
    match = re.fullmatch(source.subject_file, end)
    if match is None:
        return None

    subject = match[1]
    name = match.expand(source.file_name)
    return subject, f"{subject}/{name}" if source.files_of_subject else name


def _files_of_subjects(
    source: PublishedFiles, listing: list[ListedFile], subjects: Subjects
) -> Iterator[tuple[str, ListedFile]]:
    """The files of the chosen subjects, each with its path below the folder of EEG."""
    by_subject: dict[str, list[tuple[str, ListedFile]]] = {}
    for file in listing:
        if subject_file := _subject_file(source, file.path or file.name):
            subject, path = subject_file
            by_subject.setdefault(subject, []).append((path, file))

    chosen = sorted(by_subject) if subjects == "all" else subjects
    missing = [subject for subject in chosen if subject not in by_subject]
    if missing or not chosen:
        raise _NotListed(
            f"{source.eeg}: no subject {', '.join(missing) or 'was chosen or is listed'}; "
            + _how_to_choose(missing, by_subject)
        )

    for subject in chosen:
        _check_files(source, subject, by_subject[subject])
        yield from by_subject[subject]


def _name_for_messages(target: Path, published_name: str, targets: _Targets) -> str:
    """The published name of a file, or what it is called here if its own name says nothing."""
    if target.name == published_name or not target.is_relative_to(targets.eeg_dir):
        return published_name
    return str(target.relative_to(targets.eeg_dir))


def _how_to_choose(missing: Sequence[str], subjects: Collection[str]) -> str:
    """The end of the error text for subjects that a listing lacks."""
    if not subjects:
        return f"there are none: name a mirror, or {USE_OWN_COPIES}"
    guess = suggestion(missing[0], subjects) if missing else ""
    return f"there are {', '.join(sorted(subjects))}: choose of these in {SUBJECTS}{guess}"


def _check_files(
    source: PublishedFiles, subject: str, files: Sequence[tuple[str, ListedFile]]
) -> None:
    """Raises _NotListed unless a subject has each of the published files once, and no other."""
    listed: dict[str, list[str]] = {}
    for path, file in files:
        listed.setdefault(PurePosixPath(path).name, []).append(file.path or file.name)

    # A subject's only file may have any name that `subject_file` matches.
    names = [name.format(subject=subject) for name in source.files_of_subject] or list(listed)[:1]
    problems = [f"{name} is missing" for name in names if name not in listed]
    for name, paths in listed.items():
        if len(paths) > 1:
            problems.append(f"{name} is there as {' and as '.join(paths)}")
        elif name not in names:
            problems.append(f"{name} is none of them")

    if problems:
        expected = "1 file" if len(names) == 1 else f"{len(names)} files"
        raise _NotListed(
            f"{source.eeg}: {subject}: expected {expected} such as {sorted(names)[0]}, each once, "
            f"got {len(files)}: {_enumerate(problems)}; name a mirror, leave the subject out of "
            f"{SUBJECTS}, or {USE_OWN_COPIES}"
        )


def _find(name: str, server: Server, listing: list[ListedFile]) -> ListedFile:
    """The only file of this name. Raises _NotListed if there is none, or several."""
    files = [file for file in listing if file.name == name]
    if len(files) != 1:
        raise _NotListed(
            f"{server}: expected one file {name}, got {len(files)} by that name; it lists "
            f"{_enumerate(sorted(file.name for file in listing)) or 'nothing'}: name a mirror, or "
            f"{USE_OWN_COPIES}"
        )
    return files[0]


def _enumerate(texts: Sequence[str]) -> str:
    """All of a few, or the first ones and the number of the others."""
    more = f" and {len(texts) - _MANY} more" if len(texts) > _MANY else ""
    return ", ".join(texts[:_MANY]) + more


def _remote(server: Server, file: ListedFile, name: str, known_files: KnownFiles) -> Remote:
    """A listed file, ready to be fetched; `name` is what messages call it.

    Raises InputError if it has no size or no address, or another size than the known file.
    """
    if file.url is None or file.size is None:
        lack = "no size" if file.url else "no address there, only a link to elsewhere"
        raise InputError(
            f"{server}: {name} has {lack}, so that it cannot be fetched; name a mirror, or "
            f"{USE_OWN_COPIES}"
        )

    # The key stands for the content: the same file of two servers is fetched once.
    if file.sha256:
        key = f"sha256-{file.sha256}"
    elif file.md5:
        key = f"md5-{file.md5}"
    elif file.git_sha1:
        key = f"git-{file.git_sha1}"
    else:
        key = f"{file.version}-{file.size}-{file.name}"

    has_hash = file.sha256 or file.md5 or file.git_sha1
    known_file = None if has_hash else known_files.get(file.name)
    if known_file and known_file.size != file.size:
        problem = f"expected {known_file.size} bytes, got {file.size}"
        raise InputError(new_version(name, problem))
    return Remote(
        name=name,
        url=file.url,
        size=file.size,
        key=key,
        sha256=file.sha256,
        md5=file.md5,
        known_file=known_file,
        git_sha1=file.git_sha1,
    )


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
