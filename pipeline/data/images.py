"""Pictures of a dataset, in zips, read by image id; and the table that says which there are."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.data.archives import open_zip, read_member
from pipeline.errors import InputError

LARGEST_IMAGE = 64 << 20  # bytes of one image file; the published ones have about 100 kB


@dataclass(frozen=True)
class Images:
    """Opened images. `read_bytes(image_id)` is the file as it is stored; threads may call it side by side.

    `fingerprint(image_id)` is its name, size in bytes and CRC-32 or another checksum, known without reading the image.
    """

    read_bytes: Callable[[str], bytes]
    fingerprint: Callable[[str], tuple[str, int, int]]

    def read(self, image_id: str) -> Image.Image:
        """The picture as RGB; InputError if it is damaged or none."""
        return decode_image(self.read_bytes(image_id), image_id)


def decode_image(data: bytes, image_id: str) -> Image.Image:
    """The picture as RGB, converted as PIL does it; InputError if it is no JPEG or PNG, is damaged or is a bomb."""
    try:
        # Only these formats: some of the others that PIL knows start programs.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise InputError(
                    f"{image_id}: has {image.width} x {image.height} pixels, more than the {most} that "
                    "are taken for a picture; get the archive from its source again"
                )
            return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{image_id}: unpacks to far too many pixels ({error}); get the archive again") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{image_id}: cannot be decoded as JPEG or PNG ({error}); get the archive again") from error


@contextmanager
def open_images(folder: Path, image_ids: Sequence[str]) -> Iterator[Images]:
    """The images in the zips that these ids name: `a/b.jpg` lies in `a.zip`. InputError names the first missing one."""
    with ExitStack() as stack:
        archive_of: dict[str, zipfile.ZipFile] = {}
        for name in sorted({image_id.split("/")[0] for image_id in image_ids}):
            own = [image_id for image_id in image_ids if image_id.split("/")[0] == name]
            archive = stack.enter_context(_open_image_zip(folder / f"{name}.zip", own))
            archive_of |= dict.fromkeys(own, archive)

        def fingerprint(image_id: str) -> tuple[str, int, int]:
            member = archive_of[image_id].getinfo(image_id)
            return member.filename, member.file_size, member.CRC  # compared when the image is read

        yield Images(lambda image_id: read_member(archive_of[image_id], image_id), fingerprint)


def _open_image_zip(path: Path, image_ids: Sequence[str]) -> zipfile.ZipFile:
    archive = open_zip(path, LARGEST_IMAGE)
    held = set(archive.namelist())
    missing = [image_id for image_id in image_ids if image_id not in held]
    if missing:
        archive.close()
        raise InputError(
            f"{path}: {len(missing)} of {len(image_ids)} images are missing, the first is {missing[0]}; "
            "delete the archive and download it again"
        )
    return archive
