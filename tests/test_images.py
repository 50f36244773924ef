"""Pictures are decoded as PIL does it, and found by id; what is no picture is named."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image, ImageCms

from pipeline.datasets.image_table import read_image_table, write_image_table
from pipeline.errors import InputError
from pipeline.untrusted.pictures import decode_image, open_images
from tests.fuzz import zip_bytes


def encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_names_the_first_missing_image(tmp_path: Path) -> None:
    path = tmp_path / "test_images.zip"
    path.write_bytes(
        zip_bytes({"test_images/a/1.jpg": b"", "test_images/b/2.jpg": b""}, zipfile.ZIP_STORED)
    )
    with open_images(tmp_path, ["test_images/b/2.jpg", "test_images/a/1.jpg"]) as images:
        assert images.fingerprint("test_images/b/2.jpg") == ("test_images/b/2.jpg", 0, 0)
    with (
        pytest.raises(
            InputError,
            match="images.zip: 2 of 3 images are missing, the first is test_images/c/3.jpg; fetch it again",
        ),
        open_images(
            tmp_path, ["test_images/a/1.jpg", "test_images/c/3.jpg", "test_images/d/4.jpg"]
        ),
    ):
        pass


NOISE = Image.effect_noise((40, 30), 80)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "JPEG") for mode in ("RGB", "L", "CMYK", "YCbCr")],
        *[(mode, "PNG") for mode in ("RGB", "L", "1", "P", "RGBA", "LA")],
    ],
)
def test_decodes_as_pil_does(mode: str, kind: str) -> None:
    data = encode(NOISE.convert(mode), kind)
    image = decode_image(data, "a.jpg")
    assert image.mode == "RGB"
    assert np.array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))


def png(bits: int, colour: int, rows: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG of its chunks; rows (height, width, channels) in its own number of bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, colour, 0, 0, 0)
    packed = rows.astype(">u2" if bits == 16 else ">u1")
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    parts = [chunk(b"IHDR", header), *(chunk(name.encode(), data) for name, data in chunks.items())]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [*parts, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    )


LEVELS = np.array([[[0], [255], [256], [32768], [65535]]])  # of 16 bits


@pytest.mark.parametrize("colour", [0, 2, 4, 6])  # grey, RGB, and both with alpha
def test_of_16_bits_the_upper_half_is_kept(colour: int) -> None:
    colours = LEVELS if colour in (0, 4) else LEVELS.repeat(3, axis=2)
    rows = (
        colours
        if colour in (0, 2)
        else np.concatenate([colours, np.full_like(LEVELS, 65535)], axis=2)
    )
    image = np.asarray(decode_image(png(16, colour, rows), "a.png"))
    assert image[0].tolist() == [[value] * 3 for value in (0, 0, 1, 128, 255)]


def test_what_was_seen_behind_a_picture_is_not_guessed() -> None:
    opaque = Image.merge("RGBA", [*NOISE.convert("RGB").split(), Image.new("L", NOISE.size, 255)])
    assert np.array_equal(decode_image(encode(opaque, "PNG"), "a.png"), NOISE.convert("RGB"))

    see_through = opaque.copy()
    see_through.putpixel((3, 4), (0, 0, 0, 254))
    for picture in (
        encode(see_through, "PNG"),
        encode(see_through.convert("LA"), "PNG"),
        encode(see_through.quantize(), "PNG"),  # a palette with transparency
        png(
            8, 2, np.full((1, 2, 3), 7), tRNS=struct.pack(">HHH", 7, 7, 7)
        ),  # one colour is transparent
        png(16, 0, LEVELS, tRNS=struct.pack(">H", 256)),
    ):
        with pytest.raises(
            InputError,
            match="a.png: is see-through in part, .* put an RGB picture of what was seen",
        ):
            decode_image(picture, "a.png")


def test_an_animation_is_refused() -> None:
    file = io.BytesIO()
    NOISE.save(file, "PNG", save_all=True, append_images=[NOISE.rotate(180)])
    with pytest.raises(InputError, match="a.png: is an animation"):
        decode_image(file.getvalue(), "a.png")


def test_a_camera_s_second_picture_exif_and_profile_change_nothing() -> None:
    """As with dreamsim, timm and torchvision, and with the programs that show stimuli."""
    picture = NOISE.convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, exif=exif, icc_profile=profile)
    two = io.BytesIO()
    picture.save(two, "MPO", quality=90, save_all=True, append_images=[picture.resize((4, 3))])
    plain = io.BytesIO()
    picture.save(plain, "JPEG", quality=90)
    for data in (file.getvalue(), two.getvalue()):
        assert np.array_equal(decode_image(data, "a.jpg"), Image.open(plain))


def test_inks_of_adobe_are_not_inverted() -> None:
    """Adobe writes CMYK upside down; white paper stays white."""
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in data
    assert np.asarray(decode_image(data, "a.jpg")).min() == 255


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_what_is_no_picture() -> None:
    picture = encode(Image.effect_noise((40, 30), 80), "JPEG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    wide = encode(Image.new("1", (9500, 9500)), "PNG")  # PIL warns
    wider = encode(Image.new("1", (14000, 14000)), "PNG")  # PIL refuses
    for data, message in [
        (b"", "cannot be decoded"),
        (b"<html>Sign in</html>", "cannot be decoded"),
        (picture[: len(picture) // 2], "cannot be decoded"),
        (encode(Image.new("RGB", (4, 4)), "GIF"), "cannot be decoded"),
        (postscript, "cannot be decoded"),
        (wide, "9500 x 9500 pixels, more than"),
        (wider, "far too many pixels"),
    ]:
        with pytest.raises(InputError, match=f"training_images/a/b.jpg: .*{message}"):
            decode_image(data, "training_images/a/b.jpg")


def test_the_table_of_images_comes_back_as_it_was(tmp_path: Path) -> None:
    names = ["a/None.jpg", 'a/"1",2.jpg', "a/é.jpg", "a/007.jpg"]
    images = {
        split: pd.DataFrame(
            {"image_ids": [f"{split}_{n}" for n in names], "concept": "NA", "things_concept": "01"}
        )
        for split in ("train", "test")
    }
    write_image_table(tmp_path / "images.csv", images)
    back = read_image_table(tmp_path / "images.csv")
    for split, table in images.items():
        pd.testing.assert_frame_equal(back[split], table, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a table"),
        (
            "split,image_ids\ntrain,a\n",
            "expected the columns split, image_ids, concept, things_concept .* got split, im",
        ),
        ("split,image_ids,concept,things_concept\ntrain,a,b,c\ntest,a,b,c\n", "each image once"),
    ],
)
def test_refuses_another_table(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(InputError, match=f"images.csv: .*{message}"):
        read_image_table(tmp_path / "images.csv")
