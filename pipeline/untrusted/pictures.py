"""The pictures of a dataset, in zips, read by image id.

An image id is the path of a file in a zip, and its first folder is the name of the zip: `a/b.jpg`
lies in `a.zip`.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.untrusted.archives import open_zip, read_member

LARGEST_IMAGE = 64 << 20  # bytes of one image file; the published ones have about 100 kB

# What PIL raises for a damaged picture, at whatever byte the damage is.
_PICTURE_FAULTS = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Images:
    """Opened images.

    `read_bytes(image_id)`: the file as it is stored. Several threads may call it at once, and
    forked processes of one thread.
    `fingerprint(image_id)`: its name, its size in bytes and a checksum such as CRC-32, without
    reading the image.
    """

    read_bytes: Callable[[str], bytes]
    fingerprint: Callable[[str], tuple[str, int, int]]

    def read(self, image_id: str) -> Image.Image:
        """The picture as RGB. Raises InputError as `decode_image` does."""
        return decode_image(self.read_bytes(image_id), image_id)


def decode_image(data: bytes, image_id: str) -> Image.Image:
    """The picture as RGB, 8 bits a colour, from the bytes of a JPEG or PNG file.

    PIL converts it, as it does for dreamsim, timm and torchvision. EXIF's rotation and colour
    profiles are not applied, because programs that show stimuli do not apply them. Of 16 bits the
    upper 8 are kept. Raises InputError where the file is no JPEG or PNG, is damaged, has far too
    many pixels, is see-through in part or is an animation.
    """
    try:
        # Only these two formats: some others that PIL knows start programs.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _check_picture(image, image_id)
            return _to_rgb(image, image_id)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unusable(image_id, f"unpacks to far too many pixels ({error})") from error
    except _PICTURE_FAULTS as error:
        raise _unusable(image_id, f"cannot be decoded as JPEG or PNG ({error})") from error


def _check_picture(image: Image.Image, image_id: str) -> None:
    """Raise InputError for what the header already says, before any pixel is decoded."""
    max_pixels = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise _unusable(
            image_id,
            f"has {image.width} x {image.height} pixels, more than the {max_pixels} that are taken",
        )

    # Several frames in a JPEG are no animation: a camera adds a thumbnail.
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        raise _unusable(image_id, "is an animation, of which nobody knows here what was seen")


def _to_rgb(image: Image.Image, image_id: str) -> Image.Image:
    """Convert to RGB. Raises InputError where the background would have been seen through it."""
    # 16 bits of grey. PIL's own conversion would turn all values above 255 white.
    if image.mode.startswith("I"):
        if "transparency" in image.info:
            raise _see_through(image_id)
        upper_half = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(upper_half).convert("RGB")

    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA").getchannel("A"))
        if opacity.min() < 255:
            raise _see_through(image_id)
    return image.convert("RGB")


def _see_through(image_id: str) -> InputError:
    return _unusable(
        image_id, "is see-through in part, and what was seen behind it is not in the file"
    )


def _unusable(image_id: str, problem: str) -> InputError:
    """The advice names the stage that reads both the archives and the user's own copy."""
    return InputError(
        f"{image_id}: {problem}; put an RGB picture of what was seen in its place, in the archive "
        "or folder that you have it from, and run: dvc repro --force download"
    )


@contextmanager
def open_images(folder: Path, image_ids: Sequence[str]) -> Iterator[Images]:
    """Open the zips that hold these images. Raises InputError naming the first missing image."""
    ids_by_zip: dict[str, list[str]] = {}
    for image_id in image_ids:
        ids_by_zip.setdefault(image_id.split("/")[0], []).append(image_id)

    with ExitStack() as stack:
        archives = {
            name: stack.enter_context(_open_image_zip(folder / f"{name}.zip", ids))
            for name, ids in sorted(ids_by_zip.items())
        }
        process = os.getpid()

        def archive_of(image_id: str) -> zipfile.ZipFile:
            nonlocal process
            # A forked process comes here with the archives of its parent.
            if os.getpid() != process:
                _open_anew(archives.values())
                process = os.getpid()
            return archives[image_id.split("/")[0]]

        def read_bytes(image_id: str) -> bytes:
            return read_member(archive_of(image_id), image_id)

        def fingerprint(image_id: str) -> tuple[str, int, int]:
            member = archive_of(image_id).getinfo(image_id)
            return member.filename, member.file_size, member.CRC  # the CRC as the zip declares it

        yield Images(read_bytes, fingerprint)


def _open_anew(archives: Iterable[zipfile.ZipFile]) -> None:
    """In a forked process: else it would share the position in each file with the other ones."""
    for archive in archives:
        assert archive.filename is not None
        archive.fp = open(archive.filename, "rb")  # noqa: SIM115  open until the process ends


def _open_image_zip(path: Path, image_ids: Sequence[str]) -> zipfile.ZipFile:
    archive = open_zip(path, LARGEST_IMAGE)
    members = set(archive.namelist())
    missing = [image_id for image_id in image_ids if image_id not in members]
    if missing:
        archive.close()
        raise InputError(
            f"{path}: {len(missing)} of {len(image_ids)} images are missing, the first is "
            f"{missing[0]}; {FETCH_AGAIN}"
        )
    return archive
