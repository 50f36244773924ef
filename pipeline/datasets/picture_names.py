"""Which picture a name means, where somebody writes names and the pictures are files in folders.

It is the rule for one's own recordings (`own.pictures`) and for decoding (`decode.gallery`):

- With or without folders: `cat_01.jpg` is the only picture of that name in any folder. Folders in
  front are compared: `dog/01.jpg` is not `cat/01.jpg`. A name may have more of them than the
  picture, such as the whole path on the machine that showed it. The path of a picture in the
  folder or zip is always that picture.
- The ending first as it is, in upper or lower case; where there is no such file, any picture that
  is called the same but for the ending. Folders in front count more than the ending.

Files of features have another rule, see `images.features`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

ENDINGS = (".jpg", ".jpeg", ".png")  # of pictures that are read
# Of other pictures; they only count as an ending.
OTHER_ENDINGS = (".bmp", ".gif", ".tif", ".tiff", ".webp")

Parts = tuple[str, ...]


@dataclass(frozen=True)
class PictureNames:
    """Pictures by their paths, and by each end of their paths.

    Both with and without the ending of the file. The values are rows in the list of paths.
    """

    by_path: dict[Parts, list[int]]
    by_end: dict[Parts, list[int]]

    def matching(self, name: str) -> list[int]:
        """The rows of the pictures that a name may mean, in order; one where the name is right."""
        parts = _parts(name)
        forms = (parts, _without_ending(parts))
        for form in forms:
            for table in (self.by_path, self.by_end):
                if form in table:
                    return table[form]

        # The folders in front may be those of another machine; the more fit, the better.
        for start in range(1, len(parts)):
            for form in forms:
                if form[start:] in self.by_path:
                    return self.by_path[form[start:]]
        return []


def index_names(paths: Sequence[str], n_outer: int) -> PictureNames:
    """The pictures of these paths. Names need not have the first `n_outer` folders of a path."""
    by_path: dict[Parts, list[int]] = {}
    by_end: dict[Parts, list[int]] = {}
    for row, path in enumerate(paths):
        parts = _parts(path)
        for form in dict.fromkeys((parts, _without_ending(parts))):
            by_path.setdefault(form[n_outer:], []).append(row)
            for start in range(len(form)):
                by_end.setdefault(form[start:], []).append(row)
    return PictureNames(by_path, by_end)


def picture_ending(name: str) -> str:
    """The ending of a picture in lower case; empty where it is not one of a picture."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in (*ENDINGS, *OTHER_ENDINGS) else ""


def _parts(name: str) -> Parts:
    """The parts of a path, in one form of Unicode, its ending in lower case."""
    # Windows writes \ for /.
    plain = unicodedata.normalize("NFC", name).replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts:
        return ()
    ending = picture_ending(parts[-1])
    parts[-1] = parts[-1][: len(parts[-1]) - len(ending)] + ending
    return tuple(parts)


def _without_ending(parts: Parts) -> Parts:
    if not parts:
        return ()
    return (*parts[:-1], parts[-1].removesuffix(picture_ending(parts[-1])))
