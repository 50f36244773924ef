"""Pictures of a dataset, in zips, read by image id; and the table that says which there are."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.untrusted.archives import open_zip, read_member

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
    """The picture as RGB, 8 bits a colour.

    It is converted as PIL does it, and so do dreamsim, timm and torchvision: a turn that EXIF asks for is not made, and
    colour profiles are not applied, as programs that show stimuli do neither. 16 bits become 8 by their upper half.
    InputError if it is no JPEG or PNG, is damaged, is a bomb, is see-through in part or an animation.
    """
    try:
        # Only these formats: some of the others that PIL knows start programs.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise _unusable(
                    image_id,
                    f"has {image.width} x {image.height} pixels, more than the {most} that are taken",
                )
            if (
                image.format == "PNG" and getattr(image, "n_frames", 1) > 1
            ):  # a camera's JPEG may hold a thumbnail
                raise _unusable(
                    image_id, "is an animation, of which nobody knows here what was seen"
                )
            return _to_rgb(image, image_id)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unusable(image_id, f"unpacks to far too many pixels ({error})") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
    ) as error:
        raise _unusable(image_id, f"cannot be decoded as JPEG or PNG ({error})") from error


def _to_rgb(image: Image.Image, image_id: str) -> Image.Image:
    """InputError where something behind the picture would have been seen through it."""
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL would cut off at 255: all white
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
    """Both the archives and the user's own copy of the images are read when `download` runs."""
    return InputError(
        f"{image_id}: {problem}; put an RGB picture of what was seen in its place, in the archive or folder that you "
        "have it from, and run: dvc repro --force download"
    )


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
            f"{path}: {len(missing)} of {len(image_ids)} images are missing, the first is {missing[0]}; {FETCH_AGAIN}"
        )
    return archive
