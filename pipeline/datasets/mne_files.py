"""Files that MNE or edfio reads: damage as one sentence, and the parts of a large FIF file."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import unreadable

# In FIF: a tag is 16 bytes of header and a value. The tags of these kinds say what a reference to
# another file means, and what that file is called; a reference of this role is to the next part.
TAG_HEADER_BYTES = 16
REF_ROLE = 115
REF_FILE_NAME = 118
NEXT_FILE = 2


@contextmanager
def faults_as_input_errors(path: Path, content: str, remedy: str) -> Iterator[None]:
    """Turn damage into InputError.

    `path` is what the message calls the file, `content` is what it should be, such as "epochs of
    MNE", and `remedy` says what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file makes them raise any class, even Exception itself
        reason = " ".join(str(error).split()) or type(error).__name__
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as {content} ({reason:.200}); {remedy}"
        ) from error


def next_part(part: Path) -> str | None:
    """The name of the next file that a part of a FIF file holds; None if it is the last.

    A FIF file is a chain of tags. A tag is a header of kind, type, size and position of the next
    tag (0: directly after this one, -1: none), then its value. MNE would follow a chain that turns
    back for ever. Raises ValueError where the chain turns back or leaves the file.
    """
    name = None
    role = NEXT_FILE
    with part.open("rb") as file:
        position = 0
        length = part.stat().st_size
        while 0 <= position < length:
            file.seek(position)
            # A header that is cut gets a size that leads out of the file.
            header = file.read(TAG_HEADER_BYTES).ljust(TAG_HEADER_BYTES, b"\xff")
            kind, _, size, following = struct.unpack(">iIIi", header)

            end = position + TAG_HEADER_BYTES + size
            if end > length or 0 < following < end:
                raise ValueError(f"the entry at byte {position} of {length} is damaged or cut")

            if kind == REF_ROLE:
                role = int.from_bytes(file.read(size), "big")
            if kind == REF_FILE_NAME and role == NEXT_FILE:
                name = file.read(size).decode("latin-1")
            position = following or end
    return name


def fif_parts(path: Path) -> list[Path]:
    """This FIF file and the parts that follow it, which MNE reads with it.

    MNE opens whatever a part names as the next one. Raises ValueError where that is not another
    file of the same folder, and as `next_part`.
    """
    parts = [path]
    while name := next_part(parts[-1]):
        following = path.parent / name
        if Path(name).name != name or following in parts or not following.is_file():
            raise ValueError(
                f"{parts[-1].name} says that {name!a:.100} comes next, which is no further file of "
                "this folder"
            )
        parts.append(following)
    return parts
