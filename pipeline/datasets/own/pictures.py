"""Which of somebody's own pictures a trial showed: the name in its column found among the files.

A picture's id is `own/` and its path in the folder or zip: `own/cat/cat_01.jpg`.
How a name is matched: see `picture_names`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.datasets.own.files import full_path, natural_key
from pipeline.datasets.own.findings import Findings, first_few
from pipeline.datasets.picture_names import (
    ENDINGS,
    PictureNames,
    index_names,
    picture_ending,
)
from pipeline.errors import InputError, suggestion
from pipeline.untrusted.picture_files import PictureFiles, is_encrypted, open_picture_files

FOLDER = "own"  # the zip that the download makes is own.zip


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder or zip.

    * `names`: their paths in it, in natural order, with `/`.
    * `matching(name)`: the pictures that a name may mean; one where it is right.
    """

    path: Path
    names: tuple[str, ...]
    index: PictureNames

    def matching(self, name: str) -> tuple[str, ...]:
        """The pictures that this name may mean, in the order of `names`."""
        return tuple(self.names[row] for row in self.index.matching(name))


def image_id(name: str) -> str:
    """The id of a picture, by its path in the folder or zip."""
    return f"{FOLDER}/{name}"


@contextmanager
def open_pictures(setting: str) -> Iterator[tuple[Path, PictureFiles]]:
    """The folder or zip that `own.images` names, and its files. Raises InputError."""
    path = full_path("own.images", setting, "a folder of pictures, or of a zip of them")
    if not path.is_dir() and is_encrypted(path):
        raise InputError(f"{path}: is encrypted; unpack it and let own.images name the folder")
    with open_picture_files(path) as files:
        yield path, files


def find_pictures(setting: str) -> Pictures:
    """All pictures that `own.images` names. Raises InputError where there are none."""
    with open_pictures(setting) as (path, files):
        names = [relative_name(path, name) for name in files.names]
    names = [name for name in names if not _is_hidden(name) and not name.endswith("/")]
    pictures = sorted((name for name in names if picture_ending(name) in ENDINGS), key=natural_key)
    if not pictures:
        endings = sorted({PurePosixPath(name).suffix or "no ending" for name in names})
        raise InputError(
            f"{path}: has no pictures, expected JPEG or PNG (.jpg, .jpeg, .png), got "
            f"{len(names):,} files ({first_few(endings) or 'none'}); name the folder that has them"
        )
    return index_pictures(path, pictures)


def index_pictures(path: Path, names: Sequence[str]) -> Pictures:
    """The pictures of these paths below `path`; names need not have the folders that all share."""
    return Pictures(path, tuple(names), index_names(names, _shared_folders(names)))


def folder_of(pictures: Pictures, name: str) -> str:
    """The folder that a picture lies in, below those that all share; empty if there is none."""
    shared = _shared_folders(pictures.names)
    return "/".join(PurePosixPath(name).parts[shared:-1])


def match_pictures(
    pictures: Pictures, names: Sequence[str], places: Sequence[str], findings: Findings
) -> dict[str, str]:
    """The picture of each name; names that mean none, or several, are noted and left out.

    `places` says where each name stands.
    """
    matches = {}

    for name, place in zip(names, places, strict=True):
        matching = pictures.matching(name)
        if len(matching) == 1:
            matches[name] = matching[0]
        elif matching:
            findings.add_problem(
                "pictures that a name does not tell apart",
                f"{place}: the picture is {name!r}, and {pictures.path} has {len(matching)} of "
                f"that name: {first_few(list(matching))}; name the folder with it, such as "
                f"{matching[0]}",
            )
        else:
            findings.add_problem(
                "pictures that are missing",
                f"{place}: the picture is {name!r}, which {pictures.path} does not have"
                f"{_advice(pictures, name)}",
            )
    return matches


def check_links(pictures: Pictures, names: Sequence[str], findings: Findings) -> None:
    """Note pictures of a folder that are links to nothing, and files without content."""
    if not pictures.path.is_dir():
        return

    for name in names:
        path = pictures.path / name
        if not path.exists():
            findings.add_problem(
                "pictures that are missing",
                f"{path}: is a link to a file that is not there; fetch it first: datalad get, or "
                "git annex get, in that folder",
            )
        elif not path.stat().st_size:
            findings.add_problem(
                "pictures without content",
                f"{path}: is empty (0 bytes); copy it again from where you have it",
            )


def count_bytes(pictures: Pictures, names: Sequence[str]) -> int:
    """The size of these pictures."""
    with open_pictures(str(pictures.path)) as (path, files):
        by_name = {relative_name(path, name): name for name in files.names}
        return sum(files.size(by_name[name]) for name in names)


def relative_name(path: Path, name: str) -> str:
    """The path of a file in the folder, or of a member in the zip, with `/`."""
    return Path(os.path.relpath(name, path)).as_posix() if path.is_dir() else name


def _advice(pictures: Pictures, name: str) -> str:
    """The end of the sentence on a missing picture: what it may be, and what to do."""
    last = PurePosixPath(name.replace("\\", "/")).name
    same_file = pictures.matching(last)
    if same_file:
        return f"; it has {same_file[0]}: correct the folder in the name, or take it out"

    # Only of the same numbers: cat_02 is no misspelt cat_03, and neither is hat_02.
    last_parts = [PurePosixPath(picture).name for picture in pictures.names]
    numbers = re.findall(r"\d+", last)
    guess = suggestion(last, [name for name in last_parts if re.findall(r"\d+", name) == numbers])
    return f"; put it there, or correct the name{guess}"


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _shared_folders(names: Sequence[str]) -> int:
    """How many folders at the start of their paths all pictures have in common."""
    folders = [PurePosixPath(name).parts[:-1] for name in (min(names), max(names))]
    shared = 0
    for first, last in zip(*folders, strict=False):
        if first != last:
            break
        shared += 1
    return shared
