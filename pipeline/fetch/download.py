"""Which published files a run needs: a dataset's from the kind of server it names, DreamSim's from its releases.

Weights: DreamSim, arXiv 2306.09344, https://github.com/ssundaram21/dreamsim/releases (no hash is published).
API: https://developer.osf.io, JSON:API 1.0, 100 requests an hour without an account.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasPath, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from pipeline.data.sources import Make, Osf, Subjects
from pipeline.errors import InputError
from pipeline.fetch.transfer import Remote, cached_size, fetch, is_cached
from pipeline.fetch.web import PATIENCE, Patience, read, remote_size
from pipeline.files import cache_folder, replacing

# They become file names in the cache.
_Hex64 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{64}$")]
_Hex32 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{32}$")]


class _Listed(BaseModel):
    """One item of an OSF listing, flattened."""

    model_config = ConfigDict(validate_by_name=True)

    kind: Literal["file", "folder"] = Field(validation_alias=AliasPath("attributes", "kind"))
    name: str = Field(validation_alias=AliasPath("attributes", "name"))
    path: str = Field("", validation_alias=AliasPath("attributes", "materialized_path"))
    size: int | None = Field(None, validation_alias=AliasPath("attributes", "size"), ge=0)
    sha256: _Hex64 | None = Field(None, validation_alias=AliasPath("attributes", "extra", "hashes", "sha256"))
    md5: _Hex32 | None = Field(None, validation_alias=AliasPath("attributes", "extra", "hashes", "md5"))
    download: str | None = Field(None, validation_alias=AliasPath("links", "download"))
    content: str | None = Field(None, validation_alias=AliasPath("relationships", "files", "links", "related", "href"))


class _Page(BaseModel):
    data: list[_Listed]
    next: str | None = Field(None, validation_alias=AliasPath("links", "next"))


_LISTING = TypeAdapter(list[_Listed])


def fetch_dataset(
    source: Osf | Make,
    osf_api: str,
    subjects: Subjects,
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    patience: Patience = PATIENCE,
) -> None:
    """Put the chosen subjects' files ("all": each that there is), the images and the metadata in place, or make them.

    With all of them in the cache there is no request at all, not even for the listing. Raises InputError.
    """
    if isinstance(source, Osf):
        _fetch_osf(source, osf_api, subjects, eeg_dir, images_dir, metadata, patience)
    else:
        source(subjects, eeg_dir, images_dir, metadata)


def _fetch_osf(
    source: Osf, osf_api: str, subjects: Subjects, eeg_dir: Path, images_dir: Path, metadata: Path, patience: Patience
) -> None:
    nodes = (source.eeg_node, source.images_node)

    def choose(listings: Mapping[str, list[_Listed]]) -> dict[Path, Remote]:
        chosen = _subject_files(source, listings[source.eeg_node], subjects)
        eeg = {eeg_dir / name: _remote(listings, source.eeg_node, name) for name in chosen}
        images = {images_dir / name: _remote(listings, source.images_node, name) for name in source.image_files}
        return eeg | images | {metadata: _remote(listings, source.images_node, source.metadata_file)}

    wanted = {}
    with suppress(InputError):  # what the stored listing lacks, a new one may have
        wanted = choose({node: _stored_listing(osf_api, node) for node in nodes})
    if not wanted or not all(map(is_cached, wanted.values())):
        wanted = choose({node: _list(osf_api, node, patience) for node in nodes})
    fetch(wanted, patience)


def fetch_release(releases: str, tag: str, name: str, directory: Path, patience: Patience = PATIENCE) -> None:
    """Put the file `name` of a release into `directory`; no hash is published, so a zip's CRCs are checked."""
    url = f"{releases.rstrip('/')}/{tag}/{name}"
    key = f"{_short_hash(url)}-{name}"
    size = cached_size(key)
    if size is None:
        size = remote_size(url, patience)
    fetch({directory / name: Remote(name, url, size, key)}, patience)


def _subject_files(source: Osf, listing: list[_Listed], subjects: Subjects) -> list[str]:
    """The names of the subjects' files."""
    there = {match[1]: match[0] for item in listing if (match := re.fullmatch(source.subject_file, item.name))}
    chosen = sorted(there) if subjects == "all" else subjects
    unknown = [subject for subject in chosen if subject not in there]
    if unknown or not chosen:
        raise InputError(
            f"OSF node {source.eeg_node}: no subject {', '.join(unknown) or 'was chosen or is listed'}; "
            f"there are {', '.join(sorted(there)) or 'none'}"
        )
    return [there[subject] for subject in chosen]


def _remote(listings: Mapping[str, list[_Listed]], node: str, name: str) -> Remote:
    found = [item for item in listings[node] if item.name == name]
    if len(found) != 1 or found[0].download is None or found[0].size is None:
        raise InputError(
            f"OSF node {node}: expected one {name} with a size and a download link, got {len(found)} by that name; "
            f"it lists {', '.join(sorted(item.path for item in listings[node])) or 'nothing'}"
        )
    item = found[0]
    if item.sha256:
        key = f"sha256-{item.sha256}"
    elif item.md5:
        key = f"md5-{item.md5}"
    else:
        key = f"{node}-{item.size}-{name}"
    return Remote(name, item.download, item.size, key, item.sha256, item.md5)


def _list(osf_api: str, node: str, patience: Patience) -> list[_Listed]:
    """Each file of an OSF node, from all folders and pages; stored for a day without a network."""
    files: list[_Listed] = []
    addresses = [f"{osf_api.rstrip('/')}/nodes/{node}/files/osfstorage/"]
    for address in addresses:  # it grows
        try:
            page = _Page.model_validate_json(read(address, patience))
        except ValidationError as error:
            raise InputError(
                f"{address}: expected a file listing of OSF's API (version 2), got something else "
                f"({error.errors()[0]['msg']}); check the address of the API"
            ) from error
        files += [item for item in page.data if item.kind == "file"]
        linked = [page.next, *(item.content for item in page.data if item.kind == "folder")]
        addresses += [link for link in linked if link is not None and link not in addresses]
    path = _listing_path(osf_api, node)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(_LISTING.dump_json(files))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make room or give access, and run it again") from error
    return files


def _stored_listing(osf_api: str, node: str) -> list[_Listed]:
    """What `_list` returned last, nothing if it never did."""
    try:
        return _LISTING.validate_json(_listing_path(osf_api, node).read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def _listing_path(osf_api: str, node: str) -> Path:
    return cache_folder() / f"listing-{_short_hash(osf_api.rstrip('/'))}-{node}.json"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
