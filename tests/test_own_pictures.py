"""The name in a column, matched with the pictures of a folder."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.datasets.own.pictures import find_pictures, folder_of, index_pictures
from pipeline.errors import InputError

NAMES = ("cat/01.jpg", "cat/02.JPG", "dog/01.jpg", "dog/03.png", "dog/café.jpg", "dog/old/v1.2.jpg")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat/01.jpg", ["cat/01.jpg"]),
        ("cat/01", ["cat/01.jpg"]),
        ("cat/01.JPG", ["cat/01.jpg"]),
        ("02", ["cat/02.JPG"]),
        ("02.jpg", ["cat/02.JPG"]),
        ("02.jpeg", ["cat/02.JPG"]),  # the ending counts where it tells apart
        ("03.bmp", ["dog/03.png"]),  # shown as another format, and converted
        ("C:\\stimuli\\cat\\01.jpg", ["cat/01.jpg"]),
        ("/home/anna/stimuli/dog/01.jpg", ["dog/01.jpg"]),
        ("./dog/01.jpg", ["dog/01.jpg"]),
        ("dog/cafe\u0301.jpg", ["dog/café.jpg"]),  # as macOS writes it
        ("v1.2", ["dog/old/v1.2.jpg"]),
        ("old/v1.2.jpg", ["dog/old/v1.2.jpg"]),
        ("01.jpg", ["cat/01.jpg", "dog/01.jpg"]),
        ("bird/01.jpg", []),  # the folder is another
        ("CAT/01.jpg", []),
        ("04", []),
    ],
)
def test_the_pictures_that_a_name_may_mean(name: str, expected: list[str]) -> None:
    pictures = index_pictures(Path("/lab/pictures"), NAMES)
    assert list(pictures.matching(name)) == expected


def test_folders_that_all_pictures_share_need_not_be_named() -> None:
    pictures = index_pictures(Path("/lab/all.zip"), ("set/a/cat/01.jpg", "set/a/dog/01.jpg"))
    assert pictures.matching("stimuli/cat/01") == ("set/a/cat/01.jpg",)
    assert folder_of(pictures, "set/a/cat/01.jpg") == "cat"


def test_a_path_in_the_folder_is_that_picture_alone() -> None:
    pictures = index_pictures(Path("/lab"), ("01.jpg", "cat/01.jpg", "old/cat/01.jpg"))
    assert pictures.matching("01.jpg") == ("01.jpg",)
    assert pictures.matching("cat/01.jpg") == ("cat/01.jpg",)
    assert pictures.matching("old/cat/01.jpg") == ("old/cat/01.jpg",)


def test_folders_count_more_than_the_ending() -> None:
    pictures = index_pictures(Path("/lab"), ("01.jpg", "cat/01.png"))
    assert pictures.matching("stimuli/cat/01.jpg") == ("cat/01.png",)
    assert pictures.matching("stimuli/01.jpg") == ("01.jpg",)


def test_pictures_of_one_name_and_two_endings_need_the_ending() -> None:
    pictures = index_pictures(Path("/lab"), ("cat.jpg", "cat.png"))
    assert pictures.matching("cat.png") == ("cat.png",)
    assert pictures.matching("cat") == ("cat.jpg", "cat.png")


def test_a_folder_and_a_zip_of_it_hold_the_same_pictures(tmp_path: Path) -> None:
    for name in ("cat/01.jpg", "dog/02.PNG", "dog/.hidden.jpg", "dog/notes.txt", "cat/._01.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "JPEG")
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "pictures")
    names = ("cat/01.jpg", "dog/02.PNG")
    assert find_pictures(str(tmp_path / "pictures")).names == names
    assert find_pictures(archive).names == names


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("none", "own.images is 'none': expected the full path of a folder of pictures"),
        ("pictures", "own.images is 'pictures': expected the full path"),
        ("/nowhere/pictures", "expected the full path"),
    ],
)
def test_what_names_no_pictures(setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        find_pictures(setting)


def test_a_zip_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="is not a whole zip archive"):
        find_pictures(str(tmp_path / "a.zip"))
