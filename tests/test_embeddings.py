from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.images.embeddings import read_embeddings, read_health, write_embeddings

IDS = ["training_images/a/1.jpg", "training_images/a/2.jpg", "test_images/b/1.jpg"]
LAST = np.arange(12, dtype=np.float32).reshape(3, 4)
SIXTH = -np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def cache(tmp_path) -> Path:
    path = tmp_path / "unaligned.h5"
    blocks = [(6, SIXTH, {"feature": "words", "rows": 3}), ("last", LAST, {"median_cosine": 0.5})]
    write_embeddings(path, IDS, iter(blocks), {"backbone": "synclr_vitb16"})
    return path


def test_each_block_is_read_as_written(cache):
    for block, values in ((6, SIXTH), ("last", LAST)):
        read = read_embeddings(cache, block)
        assert read.values.dtype == np.float32 and np.array_equal(read.values, values)
        assert list(read.image_ids) == IDS
    assert read_health(cache) == {"6": {"rows": 3}, "last": {"median_cosine": 0.5}}


def written(path: Path, **blocks: np.ndarray) -> Path:
    """A cache of the blocks given, such as `b6` or `last`."""
    write_embeddings(path, IDS, ((name.lstrip("b"), values, {}) for name, values in blocks.items()), {})
    return path


def test_a_mix_is_all_blocks_in_their_order_of_depth(tmp_path):
    path = written(tmp_path / "x.h5", last=LAST, b12=LAST + 12, b6=LAST + 6)
    read = read_embeddings(path, "mix")
    assert read.blocks == ("6", "12", "last") and read.values.dtype == np.float32 and list(read.image_ids) == IDS
    assert np.array_equal(read.values, np.stack([LAST + 6, LAST + 12, LAST], axis=1))
    assert read_embeddings(path, 12).blocks == ()


def test_what_cannot_be_mixed_is_told(cache, tmp_path):
    with pytest.raises(InputError, match="needs blocks of one size, and of the dimensions 6 has 2, last has 4: name"):
        read_embeddings(cache, "mix")
    with pytest.raises(InputError, match="train.block is mix and the only block there is last: add to embed.blocks"):
        read_embeddings(written(tmp_path / "x.h5", last=LAST), "mix")


def test_rows_are_found_by_id(cache):
    read = read_embeddings(cache, "last")
    assert read.rows(np.array([IDS[2], IDS[0]])).tolist() == [2, 0]
    with pytest.raises(InputError, match="1 of the 1 images seen have no embedding, first elsewhere.jpg"):
        read.rows(np.array(["elsewhere.jpg"]))


def test_a_block_that_was_not_kept_is_told_with_those_that_were(cache):
    with pytest.raises(InputError, match="train.block is 9; set it to one that is there, 6, last, or embed it"):
        read_embeddings(cache, 9)


def earlier_version(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["embeddings"], file["image_ids"] = LAST, IDS


def too_few_ids(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["image_ids"]
        file["image_ids"] = IDS[:2]


def of_text(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["embeddings/last"]
        file["embeddings/last"] = IDS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"no HDF5"), "is not a whole embedding cache"),
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "is not a whole embedding cache"),
        (lambda path: path.unlink(), "is not a whole embedding cache"),
        (lambda path: h5py.File(path, "w").close(), "is not a whole embedding cache"),
        (earlier_version, "it was written by an earlier version"),
        (too_few_ids, "expected a row of numbers an image id, got float32"),
        (of_text, "expected a row of numbers an image id, got object"),
    ],
)
def test_what_is_no_cache_is_told_in_one_sentence(cache, damage, message):
    damage(cache)
    with pytest.raises(InputError, match=message) as error:
        read_embeddings(cache, "last")
    assert str(error.value).startswith(f"{cache}: ") and "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        read_embeddings(cache, "mix")


def test_a_block_that_fails_leaves_no_file(tmp_path):
    def blocks():
        yield "last", LAST, {}
        raise InputError("not sound")

    with pytest.raises(InputError):
        write_embeddings(tmp_path / "x.h5", IDS, blocks(), {})
    assert not list(tmp_path.iterdir())
