"""Pictures are decoded as PIL does it, and found by id; what is no picture is named."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data.image_table import read_image_table, write_image_table
from pipeline.data.images import decode_image, open_images
from pipeline.errors import InputError
from tests.fuzz import zip_bytes


def encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_names_the_first_missing_image(tmp_path: Path) -> None:
    path = tmp_path / "test_images.zip"
    path.write_bytes(zip_bytes({"test_images/a/1.jpg": b"", "test_images/b/2.jpg": b""}, zipfile.ZIP_STORED))
    with open_images(tmp_path, ["test_images/b/2.jpg", "test_images/a/1.jpg"]) as images:
        assert images.fingerprint("test_images/b/2.jpg") == ("test_images/b/2.jpg", 0, 0)
    with (
        pytest.raises(InputError, match="images.zip: 2 of 3 images are missing, the first is test_images/c/3.jpg"),
        open_images(tmp_path, ["test_images/a/1.jpg", "test_images/c/3.jpg", "test_images/d/4.jpg"]),
    ):
        pass


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")]
)
def test_decodes_as_pil_does(mode: str, kind: str) -> None:
    data = encode(Image.effect_noise((40, 30), 80).convert(mode), kind)
    image = decode_image(data, "a.jpg")
    assert image.mode == "RGB"
    assert np.array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))


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
        split: pd.DataFrame({"image_ids": [f"{split}_{n}" for n in names], "concept": "NA", "things_concept": "01"})
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
