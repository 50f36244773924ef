"""The files that a server offers, as OSF, Figshare, S3 buckets and Hugging Face list them.

OSF: https://developer.osf.io, JSON:API 1.0, 100 requests an hour without an account.
Figshare: https://docs.figshare.com, version 2, without an account.
S3: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html, of a public bucket.
Hugging Face: https://huggingface.co/docs/hub/api, without an account.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from pydantic import AliasPath, BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from pipeline.datasets.sources import Bucket, Figshare, Hub, Osf, Server
from pipeline.download.web import Patience, read, read_response
from pipeline.errors import InputError

_T = TypeVar("_T")

# The hashes become names of files in the cache, so they must be nothing but digits.
_Hex64 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{64}$")]
_Hex40 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{40}$")]
_Hex32 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{32}$")]


class ListedFile(BaseModel):
    """A file in a listing. Without a size (in bytes) or an address it cannot be fetched.

    `path` is set where the folders of a file are needed to know it. `git_sha1` is the hash that git
    gives a file.
    """

    name: str
    path: str = ""
    size: int | None = Field(ge=0)
    url: str | None
    version: str  # a file without a hash is told from others by its version, size and name
    sha256: _Hex64 | None = None
    md5: _Hex32 | None = None
    git_sha1: _Hex40 | None = None


def list_files(server: Server, root: str, patience: Patience) -> list[ListedFile]:
    """Each file that the server at the address `root` has, from all folders and pages.

    Raises InputError if the server cannot be reached, or sends something else than a listing.
    """
    match server:
        case Osf():
            return list(_list_node(server, root, patience))
        case Figshare():
            return list(_list_article(server, root, patience))
        case Bucket():
            return list(_list_bucket(server, root, patience))
        case Hub():
            return list(_list_repository(server, root, patience))


def _read_page(
    address: str, server: Server, parse: Callable[[bytes], _T], patience: Patience
) -> _T:
    """One page of a listing. `parse` raises ValueError or ParseError for anything else."""
    return _parse_page(read(address, patience), address, server, parse)


def _parse_page(body: bytes, address: str, server: Server, parse: Callable[[bytes], _T]) -> _T:
    try:
        return parse(body)
    except (ValueError, ElementTree.ParseError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise InputError(
            f"{address}: expected the file listing of {server}, got something else ({problem}); "
            "check the address of the server under `download` in params.yaml"
        ) from error


class _OsfItem(BaseModel):
    # JSON:API nests what is needed here. An AliasPath leads to it, key by key.
    kind: Literal["file", "folder"] = Field(validation_alias=AliasPath("attributes", "kind"))
    name: str = Field(validation_alias=AliasPath("attributes", "name"))
    # Folders have no size, hash or download, and files have no content.
    size: int | None = Field(None, validation_alias=AliasPath("attributes", "size"), ge=0)
    sha256: _Hex64 | None = Field(
        None, validation_alias=AliasPath("attributes", "extra", "hashes", "sha256")
    )
    md5: _Hex32 | None = Field(
        None, validation_alias=AliasPath("attributes", "extra", "hashes", "md5")
    )
    download: str | None = Field(None, validation_alias=AliasPath("links", "download"))
    # The address of the folder's own listing.
    content: str | None = Field(
        None, validation_alias=AliasPath("relationships", "files", "links", "related", "href")
    )


class _OsfPage(BaseModel):
    data: list[_OsfItem]
    next: str | None = Field(None, validation_alias=AliasPath("links", "next"))


def _list_node(server: Osf, api: str, patience: Patience) -> Iterator[ListedFile]:
    addresses = [f"{api}/nodes/{server.node}/files/osfstorage/"]
    for address in addresses:  # further pages and folders are appended while we loop
        page = _read_page(address, server, _OsfPage.model_validate_json, patience)
        for item in page.data:
            if item.kind == "file":
                yield ListedFile(
                    name=item.name,
                    size=item.size,
                    url=item.download,
                    version=server.node,
                    sha256=item.sha256,
                    md5=item.md5,
                )

        # Each address once: links of a broken server may lead round in a circle.
        links = [page.next, *(item.content for item in page.data if item.kind == "folder")]
        addresses += [link for link in links if link is not None and link not in addresses]


class _FigshareFile(BaseModel):
    id: int
    name: str
    size: int = Field(ge=0)
    computed_md5: _Hex32 | Literal[""] | None
    is_link_only: bool


# A page of Figshare is a bare list, so pydantic needs no class for it.
_FIGSHARE_PAGE = TypeAdapter(list[_FigshareFile])


def _list_article(server: Figshare, api: str, patience: Patience) -> Iterator[ListedFile]:
    listed_ids: set[int] = set()
    page_number = 1
    while True:
        address = f"{api}/articles/{server.article}/files?page_size=100&page={page_number}"
        page = _read_page(address, server, _FIGSHARE_PAGE.validate_json, patience)

        # The last page is empty. A server without pages sends the first page again and again.
        files = [file for file in page if file.id not in listed_ids]
        if not files:
            return

        for file in files:
            # Not its `download_url`: that host may expect a browser, and answer 202 without data.
            # The link of the API leads to the same storage.
            url = None if file.is_link_only else f"{api}/file/download/{file.id}"
            md5 = file.computed_md5 or None
            yield ListedFile(name=file.name, size=file.size, url=url, version=str(file.id), md5=md5)
        listed_ids.update(file.id for file in files)
        page_number += 1


class _BucketFile(BaseModel):
    key: str = Field(validation_alias="Key")
    size: int = Field(validation_alias="Size", ge=0)
    etag: str = Field("", validation_alias="ETag")


def _list_bucket(server: Bucket, root: str, patience: Patience) -> Iterator[ListedFile]:
    query = {"list-type": "2", "prefix": server.prefix}
    read_addresses = set()  # a server that sends the same token again would never come to an end
    while (address := f"{root}/?{urlencode(query)}") not in read_addresses:
        read_addresses.add(address)
        files, token = _read_page(address, server, _parse_bucket_page, patience)
        for file in files:
            # The ETag is the md5, but not for a file that was uploaded in parts: it has a "-" then.
            tag = re.sub("[^0-9A-Za-z-]", "", file.etag)
            md5 = tag if re.fullmatch("[0-9a-f]{32}", tag) else None

            name = file.key.rpartition("/")[2]
            url = f"{root}/{quote(file.key)}"
            yield ListedFile(name=name, size=file.size, url=url, version=tag, md5=md5)

        if token is None:
            return
        query["continuation-token"] = token


def _parse_bucket_page(body: bytes) -> tuple[list[_BucketFile], str | None]:
    """The files, and the token for the next page. Raises ValueError or ParseError."""
    # XML entities are declared with "<!". They can read files and fill the memory.
    # So the text is searched as it is parsed, and in UTF-8 alone: another encoding could hide them.
    text = body.decode()
    if "<!" in text:
        raise ValueError("it declares something")

    root = ElementTree.fromstring(text)
    # "{*}" is any namespace or none: a mirror need not write Amazon's.
    token = root.findtext("{*}NextContinuationToken")
    files = []
    for item in root.findall("{*}Contents"):
        fields = {field.tag.rpartition("}")[2]: field.text for field in item}
        files.append(fields)

    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise ValueError(f"it begins with {root.tag:.100}")
    if root.findtext("{*}IsTruncated") == "true" and not token:
        raise ValueError("it is cut off and does not say where it goes on")
    return [_BucketFile.model_validate(fields) for fields in files], token


class _HubLfs(BaseModel):
    oid: _Hex64  # the sha256 of the file itself


class _HubItem(BaseModel):
    type: str  # "file" or "directory"
    path: str
    oid: _Hex40
    size: int = Field(ge=0)
    lfs: _HubLfs | None = None


_HUB_PAGE = TypeAdapter(list[_HubItem])


def _list_repository(server: Hub, root: str, patience: Patience) -> Iterator[ListedFile]:
    """All files of the branch `main`, with their paths.

    huggingface_hub is not used. It leaves a mirror after the first page, because mirrors send the
    address of the next page as the Hub wrote it. It also refuses all requests where HF_HUB_OFFLINE
    is set, sends the user's token, and has retries, proxies and error texts of its own.
    """
    repository = quote(server.repo)
    first_address = f"{root}/api/datasets/{repository}/tree/main?recursive=true"
    address: str | None = first_address
    read_addresses = set()
    while address is not None:
        if address in read_addresses:
            raise InputError(
                f"{address}: this page of the file listing of {server} leads back to itself, so "
                "that the files after it are not known; name a mirror, or run it again later"
            )
        read_addresses.add(address)

        response = read_response(address, patience)
        for item in _parse_page(response.content, address, server, _HUB_PAGE.validate_json):
            if item.type != "file":
                continue
            yield ListedFile(
                name=item.path.rpartition("/")[2],
                path=item.path,
                size=item.size,
                url=f"{root}/datasets/{repository}/resolve/main/{quote(item.path)}",
                version=item.oid,
                sha256=item.lfs.oid if item.lfs else None,
                # Of a large file, git has only a note that holds its sha256.
                git_sha1=None if item.lfs else item.oid,
            )

        # Only the query of the link is used: a mirror stays in use, and nothing leads elsewhere.
        link = response.links.get("next", {}).get("url")
        address = first_address.partition("?")[0] + f"?{urlsplit(link).query}" if link else None
