"""The files that a server offers: what OSF, Figshare and S3 buckets say of them, each in its own way.

OSF: https://developer.osf.io, JSON:API 1.0, 100 requests an hour without an account.
Figshare: https://docs.figshare.com, version 2, as anybody may ask it.
S3: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html, of a bucket that anybody may list.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from pydantic import AliasPath, BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from pipeline.datasets.sources import Bucket, Figshare, Osf, Server
from pipeline.download.web import Patience, read
from pipeline.errors import InputError

_T = TypeVar("_T")

# They become file names in the cache.
_Hex64 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{64}$")]
_Hex32 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{32}$")]


class Listed(BaseModel):
    """A file; without a size (in bytes) or an address it cannot be fetched."""

    name: str
    size: int | None = Field(ge=0)
    url: str | None
    version: str  # with name and size it stands for the content where there is no hash
    sha256: _Hex64 | None = None
    md5: _Hex32 | None = None


def list_files(server: Server, root: str, patience: Patience) -> list[Listed]:
    """Each file that the server at the address `root` has, from all folders and pages. Raises InputError."""
    match server:
        case Osf():
            return list(_list_node(server, root, patience))
        case Figshare():
            return list(_list_article(server, root, patience))
        case Bucket():
            return list(_list_bucket(server, root, patience))


def _read_page(
    address: str, server: Server, parse: Callable[[bytes], _T], patience: Patience
) -> _T:
    try:
        return parse(read(address, patience))
    except (ValueError, ElementTree.ParseError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise InputError(
            f"{address}: expected the file listing of {server}, got something else ({problem}); check the address of "
            "the server under `download` in params.yaml"
        ) from error


class _OsfItem(BaseModel):
    kind: Literal["file", "folder"] = Field(validation_alias=AliasPath("attributes", "kind"))
    name: str = Field(validation_alias=AliasPath("attributes", "name"))
    size: int | None = Field(None, validation_alias=AliasPath("attributes", "size"), ge=0)
    sha256: _Hex64 | None = Field(
        None, validation_alias=AliasPath("attributes", "extra", "hashes", "sha256")
    )
    md5: _Hex32 | None = Field(
        None, validation_alias=AliasPath("attributes", "extra", "hashes", "md5")
    )
    download: str | None = Field(None, validation_alias=AliasPath("links", "download"))
    content: str | None = Field(
        None, validation_alias=AliasPath("relationships", "files", "links", "related", "href")
    )


class _OsfPage(BaseModel):
    data: list[_OsfItem]
    next: str | None = Field(None, validation_alias=AliasPath("links", "next"))


def _list_node(server: Osf, api: str, patience: Patience) -> Iterator[Listed]:
    addresses = [f"{api}/nodes/{server.node}/files/osfstorage/"]
    for address in addresses:  # it grows
        page = _read_page(address, server, _OsfPage.model_validate_json, patience)
        for item in page.data:
            if item.kind == "file":
                hashes = {"sha256": item.sha256, "md5": item.md5}
                yield Listed(
                    name=item.name, size=item.size, url=item.download, version=server.node, **hashes
                )
        linked = [page.next, *(item.content for item in page.data if item.kind == "folder")]
        addresses += [link for link in linked if link is not None and link not in addresses]


class _FigshareFile(BaseModel):
    id: int
    name: str
    size: int = Field(ge=0)
    computed_md5: _Hex32 | Literal[""] | None
    is_link_only: bool


_FIGSHARE_PAGE = TypeAdapter(list[_FigshareFile])


def _list_article(server: Figshare, api: str, patience: Patience) -> Iterator[Listed]:
    seen: set[int] = set()
    number = 1
    while True:
        address = f"{api}/articles/{server.article}/files?page_size=100&page={number}"
        files = _read_page(address, server, _FIGSHARE_PAGE.validate_json, patience)
        new = [file for file in files if file.id not in seen]
        if not new:  # an empty page, or the first one again from a server that has no pages
            return
        for file in new:
            # Not its `download_url`: the host that it names may want to see a browser and answer 202. The API's own
            # link leads to the same storage.
            url = None if file.is_link_only else f"{api}/file/download/{file.id}"
            md5 = file.computed_md5 or None
            yield Listed(name=file.name, size=file.size, url=url, version=str(file.id), md5=md5)
        seen.update(file.id for file in new)
        number += 1


class _BucketFile(BaseModel):
    key: str = Field(validation_alias="Key")
    size: int = Field(validation_alias="Size", ge=0)
    etag: str = Field("", validation_alias="ETag")


def _list_bucket(server: Bucket, root: str, patience: Patience) -> Iterator[Listed]:
    query = {"list-type": "2", "prefix": server.prefix}
    asked = set()
    while (address := f"{root}/?{urlencode(query)}") not in asked:
        asked.add(address)
        files, token = _read_page(address, server, _parse_bucket_page, patience)
        for file in files:
            # The ETag of a file that was stored in parts has a "-" and is no hash of the file.
            tag = re.sub("[^0-9A-Za-z-]", "", file.etag)
            md5 = tag if re.fullmatch("[0-9a-f]{32}", tag) else None
            name = file.key.rpartition("/")[2]
            yield Listed(
                name=name, size=file.size, url=f"{root}/{quote(file.key)}", version=tag, md5=md5
            )
        if token is None:
            return
        query["continuation-token"] = token


def _parse_bucket_page(body: bytes) -> tuple[list[_BucketFile], str | None]:
    """The files, and the token for the next page. Raises ValueError or ParseError."""
    text = body.decode()
    if (
        "<!" in text
    ):  # entities, which can name files and grow without end, are declared so; nothing else here is
        raise ValueError("it declares something")
    root = ElementTree.fromstring(text)
    fields = [
        {field.tag.rpartition("}")[2]: field.text for field in item}
        for item in root.findall("{*}Contents")
    ]
    token = root.findtext("{*}NextContinuationToken")
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise ValueError(f"it begins with {root.tag:.100}")
    if root.findtext("{*}IsTruncated") == "true" and not token:
        raise ValueError("it is cut off and does not say where it goes on")
    return [_BucketFile.model_validate(item) for item in fields], token
