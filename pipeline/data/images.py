"""Pictures of a dataset, read by image id."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from pipeline.errors import InputError


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
