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
    write_embeddings(
        path, IDS, ((name.lstrip("b"), values, {}) for name, values in blocks.items()), {}
    )
    return path


def test_a_mix_is_all_blocks_in_their_order_of_depth(tmp_path):
    path = written(tmp_path / "x.h5", last=LAST, b12=LAST + 12, b6=LAST + 6)
    read = read_embeddings(path, "mix")
    assert (
        read.blocks == ("6", "12", "last")
        and read.values.dtype == np.float32
        and list(read.image_ids) == IDS
    )
    assert np.array_equal(read.values, np.stack([LAST + 6, LAST + 12, LAST], axis=1))
    assert read_embeddings(path, 12).blocks == ()


def test_a_mix_of_views(tmp_path):
    b6, last, blurred6, blurred = (LAST + n for n in range(4))
    blocks = [
        ("6", b6, {}),
        ("last", last, {}),
        ("blur-8/6", blurred6, {}),
        ("blur-8/last", blurred, {}),
    ]
    write_embeddings(tmp_path / "x.h5", IDS, blocks, {})
    read = read_embeddings(tmp_path / "x.h5", "mix", "draw")
    assert np.array_equal(read.values, np.stack([b6, last], axis=1))
    assert np.array_equal(
        read.targets, np.stack([np.stack([b6, last], 1), np.stack([blurred6, blurred], 1)], axis=1)
    )
    mean = read_embeddings(tmp_path / "x.h5", "mix", "mean", "blur-8")
    assert np.array_equal(mean.targets[:, 0], np.stack([LAST + 1, LAST + 2], axis=1))
    assert np.array_equal(mean.values, np.stack([blurred6, blurred], axis=1))


def test_what_cannot_be_mixed_is_told(cache, tmp_path):
    with pytest.raises(
        InputError,
        match="needs blocks of one size, and of the dimensions 6 has 2, last has 4: name",
    ):
        read_embeddings(cache, "mix")
    with pytest.raises(
        InputError, match="train.block is mix and the only block there is last: add to embed.blocks"
    ):
        read_embeddings(written(tmp_path / "x.h5", last=LAST), "mix")


@pytest.fixture
def with_views(tmp_path) -> Path:
    path = tmp_path / "views.h5"
    blocks = [
        ("last", LAST, {}),
        (6, SIXTH, {}),
        ("noise-0.1/last", -LAST, {"rows": 3}),
        ("blur-2.6/last", 2 * LAST, {}),
    ]
    write_embeddings(
        path, IDS, [*blocks, ("noise-0.1/6", SIXTH, {}), ("blur-2.6/6", -SIXTH, {})], {}
    )
    return path


def test_a_cache_without_views_is_byte_for_byte_what_it_was(cache, tmp_path):
    """As written by the version that knew no views, through a file of Python's, as all are written."""
    with (tmp_path / "before.h5").open("w+b") as stream, h5py.File(stream, "w") as file:
        file.attrs["backbone"] = "synclr_vitb16"
        file.create_group("embeddings")
        file.create_dataset(
            "image_ids", data=np.array(IDS, dtype=object), dtype=h5py.string_dtype()
        )
        for name, values, notes in (
            ("6", SIXTH, {"feature": "words", "rows": 3}),
            ("last", LAST, {"median_cosine": 0.5}),
        ):
            dataset = file.create_dataset(f"embeddings/{name}", data=values, dtype=np.float32)
            dataset.dims[0].label, dataset.dims[1].label = "image", "dimension"
            dataset.attrs.update(notes)
    assert cache.read_bytes() == (tmp_path / "before.h5").read_bytes()


ALL = "original, blur-2.6, noise-0.1"


@pytest.mark.parametrize(
    ("views", "targets", "told"),
    [
        ("original", None, "original"),
        ("blur-2.6", [2 * LAST], "blur-2.6"),
        ("mean", [LAST * np.float32(2 / 3)], f"mean of {ALL}"),
        ("draw", [LAST, 2 * LAST, -LAST], f"draw of {ALL}"),
    ],
)
def test_views_that_are_learned_stand_beside_the_original(with_views, views, targets, told):
    read = read_embeddings(with_views, "last", views)
    assert np.array_equal(read.values, LAST) and list(read.image_ids) == IDS
    assert (read.views, read.views_in_gallery) == (told, "original")
    if targets is None:
        assert read.targets is None
    else:
        assert read.targets.dtype == np.float32
        np.testing.assert_allclose(read.targets, np.stack(targets, axis=1), rtol=1e-6)


def test_a_gallery_has_a_view_or_the_mean_of_all(with_views):
    read = read_embeddings(with_views, 6, "mean", "mean")
    assert read.targets is None and np.array_equal(read.values, SIXTH / 3)
    assert read.views == read.views_in_gallery == f"mean of {ALL}"
    read = read_embeddings(with_views, 6, "original", "blur-2.6")
    assert np.array_equal(read.values, -SIXTH) and np.array_equal(read.targets[:, 0], SIXTH)
    with pytest.raises(
        InputError,
        match="train.views_in_gallery is draw: set it to mean or one of original, blur-2.6",
    ):
        read_embeddings(with_views, 6, "draw", "draw")


def test_views_have_a_health_of_their_own(with_views):
    assert read_health(with_views) == {
        **{"6": {}, "last": {}, "blur-2.6/6": {}, "blur-2.6/last": {}, "noise-0.1/6": {}},
        "noise-0.1/last": {"rows": 3},
    }


def test_a_view_that_was_not_kept_is_told_with_those_that_were(cache, with_views):
    with pytest.raises(
        InputError, match=f"train.views is blur-8; set it to one that is there, {ALL}, or add it to"
    ):
        read_embeddings(with_views, "last", "blur-8")
    with pytest.raises(
        InputError,
        match="train.views_in_gallery is blur-8; set it to one that is there, original, or",
    ):
        read_embeddings(cache, "last", "original", "blur-8")
    with pytest.raises(
        InputError,
        match=f"train.views is blur2.6; .*{ALL}, or add it to embed.views; is it blur-2.6",
    ):
        read_embeddings(with_views, "last", "blur2.6")
    for views in (("mean", "original"), ("draw", "original"), ("original", "mean")):
        with pytest.raises(
            InputError,
            match="is (mean|draw) and the only view there is original: add to embed.views",
        ):
            read_embeddings(cache, "last", *views)


def no_group(file: h5py.File) -> None:
    del file["views"]
    file["views"] = LAST


def cut(file: h5py.File) -> None:
    del file["views/blur-2.6/last"]


def of_other_size(file: h5py.File) -> None:
    del file["views/blur-2.6/last"]
    file["views/blur-2.6/last"] = SIXTH


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_group, "is not a whole embedding cache"),
        (cut, "is not a whole embedding cache"),
        (of_other_size, "is not a whole embedding cache .its views differ in size"),
    ],
)
def test_damaged_views_are_told_in_one_sentence(with_views, damage, message):
    with h5py.File(with_views, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message) as error:
        read_embeddings(with_views, "last", "blur-2.6")
    assert str(error.value).startswith(f"{with_views}: ") and "\n" not in str(error.value)


def test_rows_are_found_by_id(cache):
    read = read_embeddings(cache, "last")
    assert read.rows(np.array([IDS[2], IDS[0]])).tolist() == [2, 0]
    with pytest.raises(
        InputError,
        match="unaligned.h5: 1 of the 1 images seen have no embedding, first elsewhere.jpg;",
    ):
        read.rows(np.array(["elsewhere.jpg"]))


def test_ids_without_their_folder_are_told_with_both_names(tmp_path):
    write_embeddings(tmp_path / "own.h5", ["1.jpg", "2.jpg", "3.jpg"], [("last", LAST, {})], {})
    with pytest.raises(InputError) as error:
        read_embeddings(tmp_path / "own.h5", "last").rows(np.array(IDS))
    assert (
        f"own.h5: 3 of the 3 images seen have no embedding, first {IDS[0]}, which is called 1.jpg there and should be "
        "called as in data/fetched/images.csv; make it again"
    ) in str(error.value)


def own_cache(
    path: Path, values: np.ndarray, image_ids: list[str] = IDS, view: str = "embeddings"
) -> Path:
    """By h5py alone and with no attribute, as a colleague writes it."""
    with h5py.File(path, "w") as file:
        file["image_ids"], file["embeddings/last"] = image_ids, LAST + 1
        if view == "embeddings":
            del file["embeddings/last"]
        file[f"{view}/last"] = values
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_a_cache_from_elsewhere_is_read_as_float32(dtype, tmp_path):
    read = read_embeddings(own_cache(tmp_path / "own.h5", (LAST + 1).astype(dtype)), "last")
    assert read.values.dtype == np.float32 and np.array_equal(read.values, LAST + 1)
    assert list(read.image_ids) == IDS and read_health(tmp_path / "own.h5") == {"last": {}}


def changed(row: int, value: float, dtype: str = "f4") -> np.ndarray:
    values = (LAST + 1).astype(dtype)
    values[row, 1:] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            changed(1, np.nan),
            f"1 of 3 images have values that are not finite, the first is {IDS[1]} in row 1;",
        ),
        (
            changed(2, -np.inf, "f2"),
            f"1 of 3 images have values that are not finite, the first is {IDS[2]} in row 2;",
        ),
        (
            changed(1, 1e39, "f8"),
            f"1 of 3 images have values that are not finite, the first is {IDS[1]} in row 1;",
        ),
        (
            np.zeros((3, 4)),
            f"3 of 3 images have values that are all zero, the first is {IDS[0]} in row 0;",
        ),
    ],
)
@pytest.mark.parametrize("view", ["embeddings", "views/blur-8"])
def test_values_that_are_no_embedding_are_told_with_block_row_and_image(
    values, message, view, tmp_path
):
    path = own_cache(tmp_path / "own.h5", values, view=view)
    views = "original" if view == "embeddings" else "draw"
    with pytest.raises(
        InputError, match=f"^{path}: /{view}/last: {message} make it again"
    ) as error:
        read_embeddings(path, "last", views)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "image_ids", "message"),
    [
        (LAST, [IDS[0], IDS[1], IDS[0]], f"/image_ids has {IDS[0]} twice, in the rows 0 and 2"),
        (
            LAST[None],
            IDS,
            r"expected a row of numbers an image id, got float32 \(1, 3, 4\) of /embeddings/last for 3",
        ),
        (LAST.astype(int), IDS, "expected a row of numbers an image id, got int64"),
        (LAST[:2], IDS, r"got float32 \(2, 4\) of /embeddings/last for 3 ids"),
    ],
)
def test_rows_that_do_not_fit_the_images_are_told(values, image_ids, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_embeddings(own_cache(tmp_path / "own.h5", values, image_ids), "last")


def test_a_block_that_was_not_kept_is_told_with_those_that_were(cache):
    with pytest.raises(
        InputError,
        match="train.block is 9; set it to one that is there, 6, last, or add it to embed.blocks",
    ):
        read_embeddings(cache, 9)


def no_blocks(path: Path) -> None:
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
        (no_blocks, "/embeddings should be a group of blocks, such as /embeddings/last"),
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
