"""Features that were computed elsewhere: every kind of file, every way to name pictures, and what goes wrong with them."""

import csv
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml

from pipeline.compare.comparison import compare
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.images.embedder import read_image_ids
from pipeline.images.embeddings import read_about, read_embeddings, read_health, write_embeddings
from pipeline.images.features import match_names
from pipeline.params import read_params
from pipeline.untrusted.features import read_features
from stages import embed, study_embed, weights
from stages.names import check_names, check_study
from stages.own_files import look_at_features
from stages.study import kinds_of
from tests.clone import Project, project_after_its_first_run, ran
from tests.test_comparison import evaluation, pair, parameters
from tests.test_docs import run_code
from tests.tiny import make_few_images

D = 6
ENCODERS = ["unaligned", "aligned"]
EMBED = read_params(Path("params.yaml")).embed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and images.csv."""
    folder = tmp_path_factory.mktemp("pictures")
    make_few_images(folder)
    return folder


@pytest.fixture(scope="module")
def ids(pictures: Path) -> list[str]:
    return read_image_ids(pictures / "images.csv")


@pytest.fixture(scope="module")
def features(ids: list[str]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(ids), D)).astype(np.float32)


class Own:
    """A user's file of features, sent through the stages `weights` and `embed`."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self.folder = folder
        self.pictures = pictures

    def set(self, **changes: Any) -> Path:
        """`params.yaml` of the sample with backbone features; `embed__views` is a key of a section."""
        values = yaml.safe_load(Path("params.yaml").read_text()) | {"backbone": "features"}
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (values[section] if section else values)[name] = value
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def embed(self, file: Path, kind: str = "none", aligned: str = "none", **changes: Any) -> Path:
        """The cache of the unaligned encoder, or of the aligned one where `kind` is features."""
        weights.copy_features(str(file), aligned, self.folder / "weights")
        images, table = self.pictures / "images", self.pictures / "images.csv"
        paths = embed.Paths(
            images, table, self.folder / "weights", Path(), self.folder / f"{kind}.h5"
        )
        embed.embed(EMBED.model_copy(update=changes), "features", kind, paths)
        return paths.target


@pytest.fixture
def own(tmp_path: Path, pictures: Path) -> Own:
    return Own(tmp_path, pictures)


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_npz(folder: Path, names: list[str], values: np.ndarray) -> Path:
    np.savez(folder / "clip.npz", names=names, features=values)
    return folder / "clip.npz"


def write_npz_with_other_keys(folder: Path, names: list[str], values: np.ndarray) -> Path:
    """Bytes for names, and arrays beside them that are something else."""
    others = {"labels": np.arange(len(names)), "version": np.array("2")}
    paths = np.char.encode(names, "utf-8")
    np.savez_compressed(folder / "clip.npz", paths=paths, image_features=values, **others)
    return folder / "clip.npz"


def write_npy_with_titles(folder: Path, names: list[str], values: np.ndarray) -> Path:
    np.save(folder / "clip.npy", values)
    rows = [[str(i), name] for i, name in enumerate(names)]
    write_csv(folder / "clip.csv", [["", "image"], *rows])
    return folder / "clip.npy"


def write_npy_without_titles(folder: Path, names: list[str], values: np.ndarray) -> Path:
    np.save(folder / "clip.npy", values)
    write_csv(folder / "clip.csv", [[name] for name in names])
    return folder / "clip.npy"


def write_two_datasets(folder: Path, names: list[str], values: np.ndarray) -> Path:
    with h5py.File(folder / "clip.hdf5", "w") as file:
        file["clip/visual"] = values
        file.create_dataset("clip/files", data=np.array(names, dtype="S"))
        file["clip/seconds"] = np.zeros(len(names))
    return folder / "clip.hdf5"


def write_cache_of_ours(folder: Path, names: list[str], values: np.ndarray) -> Path:
    blocks = [(6, values[::-1], {}), ("last", values, {})]
    write_embeddings(folder / "clip.h5", names, blocks, {"backbone": "clip_vitb32"})
    return folder / "clip.h5"


def write_safetensors(folder: Path, names: list[str], values: np.ndarray) -> Path:
    metadata = {"names": json.dumps(names), "model": "clip", "sizes": "[224, 224]"}
    safetensors.numpy.save_file({"visual": values}, folder / "clip.safetensors", metadata)
    return folder / "clip.safetensors"


def write_safetensors_with_csv(folder: Path, names: list[str], values: np.ndarray) -> Path:
    safetensors.numpy.save_file({"visual": values}, folder / "clip.safetensors")
    write_csv(folder / "clip.csv", [["name", "concept"], *([name, "x"] for name in names)])
    return folder / "clip.safetensors"


WRITERS = [
    write_npz,
    write_npz_with_other_keys,
    write_npy_with_titles,
    write_npy_without_titles,
    write_two_datasets,
    write_cache_of_ours,
    write_safetensors,
    write_safetensors_with_csv,
]


@pytest.mark.parametrize("write", WRITERS)
def test_the_cache_has_the_row_of_each_image(
    own: Own, ids: list[str], features: np.ndarray, write: Callable[..., Path]
) -> None:
    """In another order than the file's, with more rows in it, and whatever kind of file it is."""
    order = np.random.default_rng(1).permutation(len(ids))
    names = [ids[i] for i in order] + ["elsewhere/other.jpg"]
    file = write(own.folder, names, np.concatenate([features[order], features[:1] + 1]))

    cache = own.embed(file)
    embeddings = read_embeddings(cache, "last")
    assert embeddings.image_ids.tolist() == ids
    np.testing.assert_array_equal(embeddings.values, features)

    health = read_health(cache)["last"]
    assert (health["rows"], health["dimensions"], health["duplicates"]) == (len(ids), D, 0)
    assert health["reference_cosine_centred"] == 1
    about = read_about(cache)[0]
    assert (about["backbone"], about["encoder"], about["alignment"]) == (
        "features",
        "unaligned",
        "none",
    )
    assert about["features_file"] == f"{file.name} (sha256 {about['features_sha256'][:12]})"
    assert about["features_file"] in about["caveat"]
    assert ("features_names_sha256" in about) == file.with_suffix(".csv").exists()


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_every_floating_type_is_taken(
    own: Own, ids: list[str], features: np.ndarray, dtype: str
) -> None:
    values = features.astype(dtype)
    cache = own.embed(write_npz(own.folder, ids, values))
    np.testing.assert_array_equal(read_embeddings(cache, "last").values, values.astype("f4"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_has_not_are_taken(
    own: Own, ids: list[str], features: np.ndarray, dtype: torch.dtype
) -> None:
    values = torch.from_numpy(features).to(dtype)
    file = own.folder / "clip.safetensors"
    safetensors.torch.save_file({"x": values}, file, {"names": json.dumps(ids)})
    cache = own.embed(file)
    np.testing.assert_array_equal(read_embeddings(cache, "last").values, values.float().numpy())


NAMED = {
    "whole ids": lambda name: name,
    "the last two parts": lambda name: "/".join(name.split("/")[-2:]),
    "the file alone": lambda name: name.split("/")[-1],
    "without extension": lambda name: name.rsplit(".", 1)[0],
    "the stem alone": lambda name: name.split("/")[-1].rsplit(".", 1)[0],
    "upper case": lambda name: name.replace(".jpg", ".JPG"),
    "on a disk": lambda name: f"/home/anna/{name}",
    "of Windows": lambda name: "C:\\pictures\\" + name.replace("/", "\\"),
    "as in THINGS": lambda name: re.sub(r"^.*/\d+_(.*)$", r"\1", name),
}


@pytest.mark.parametrize("name_of", NAMED.values(), ids=NAMED)
def test_names_are_matched(ids: list[str], name_of: Callable[[str], str]) -> None:
    names = [name_of(name) for name in ids][::-1]
    assert match_names(names, ids, "").tolist() == [*range(len(ids))][::-1]


def test_a_name_in_another_folder_is_told(
    own: Own, ids: list[str], features: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    own.embed(write_npz(own.folder, [NAMED["the last two parts"](name) for name in ids], features))
    assert "another folder" not in capsys.readouterr().out
    own.embed(write_npz(own.folder, [f"flat/{name.split('/')[-1]}" for name in ids], features))
    output = capsys.readouterr().out
    assert (
        f"{len(ids)} names are in another folder than their image, such as flat/pattern" in output
    )
    assert f"for {ids[0]}: matched by the file's name alone" in output


def test_the_more_of_a_name_the_better() -> None:
    """Two pictures of one name in two folders, and of two kinds in one."""
    ids = ["own/cat/1.jpg", "own/dog/1.jpg", "own/dog/1.png", "own/café/x.jpg"]
    names = ["dog/1.png", "dog/1.jpg", "cat/1.jpg", "cafe\u0301/x.jpg"]
    assert match_names(names, ids, "").tolist() == [2, 1, 0, 3]


def nan_in_row_3(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[3, 0] = np.nan
    return values


# What is wrong, and the sentence for it; `x` are the features and `n` the names of the images.
WRONG: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "one image is missing": (
        lambda n, x: {"names": n[1:], "features": x[1:]},
        "1 of the 11 images have no row, the first is training_images/00001_pattern_0001/"
        "pattern_0001_01s.jpg; its names are such as training_images",
    ),
    "names of other pictures": (
        lambda n, x: {"names": [f"{i}.jpg" for i in range(11)], "features": x},
        "11 of the 11 images have no row, .* such as 0.jpg: add the rows, or write the names as in",
    ),
    "one image twice": (
        lambda n, x: {"names": [*n, n[2]], "features": np.concatenate([x, x[:1]])},
        "1 images have several rows, the first is training_images/00002_pattern_0004/"
        "pattern_0004_01s.jpg with .* in row 2 and .* in row 11 .from 0.: keep one",
    ),
    "the name of one image for another": (
        lambda n, x: {"names": [*n[:-1], n[0]], "features": x},
        "1 of the 11 images have no row, .*, and 1 are there twice, the first is training_images/"
        "00001_pattern_0001/pattern_0001_01s.jpg: add the rows",
    ),
    "NaN": (
        lambda n, x: {"names": n, "features": nan_in_row_3(x)},
        "the features of 1 of 11 images are not finite, the first is .*pattern_0004_02s.jpg: comp",
    ),
    "too large": (
        lambda n, x: {"names": n, "features": x.astype(float) * 1e300},
        "the features of 11 of 11 images are larger than float32 can hold",
    ),
    "zeros": (
        lambda n, x: {"names": n, "features": x * (np.arange(11) != 4)[:, None]},
        "the features of 1 of 11 images are all zero, the first is .*pattern_0005_01s.jpg",
    ),
    "one row again and again": (
        lambda n, x: {"names": n, "features": np.tile(x[:1], (11, 1))},
        "the features of 10 of 11 images repeat those of another one, expected at most 1%: see",
    ),
    "nearly the same": (
        lambda n, x: {"names": n, "features": x + 1000},
        "nearly the same .median cosine 1.0000, .* subtract their mean over the training images",
    ),
    "as published by concept": (
        lambda n, x: {"names": n, "features": np.zeros((4, 10, 768), "f4")},
        r"features are \(4, 10, 768\), .* save features.reshape\(-1, 768\) with 40 names in that or",
    ),
    "names of one row less": (
        lambda n, x: {"names": n[1:], "features": x},
        "has 10 names and 11 rows of features, and expected is a name a row",
    ),
    "objects": (
        lambda n, x: {"names": np.array(n, object), "features": x},
        r"names holds Python objects, .* if you trust it, save text as names.astype\(str\)",
    ),
    "whole numbers": (
        lambda n, x: {"names": n, "features": x.astype(int)},
        r"0 arrays could be the features .*; it holds names <U\d+ \(11,\), features int64 \(11, 6\)",
    ),
    "no names": (lambda n, x: {"features": x}, "0 arrays could be the names .* numpy.savez"),
    "two models": (
        lambda n, x: {"names": n, "clip": x, "dino": x},
        r"2 arrays could be the features \(N, D\), floats, and expected is one; it holds names",
    ),
    "nothing": (lambda n, x: {}, "0 arrays could be the features .* it holds nothing"),
    "no picture": (
        lambda n, x: {"names": np.array([], "U1"), "features": x[:0]},
        r"the features are \(0, 6\), and expected is \(N, D\)",
    ),
    "bytes that are no text": (
        lambda n, x: {"names": np.array([b"\xff"] * 11), "features": x},
        "a name is not text in UTF-8",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_file_is_told(
    own: Own, ids: list[str], features: np.ndarray, make: Callable[..., Any], message: str
) -> None:
    file = own.folder / "clip.npz"
    np.savez(file, **make(ids, features))
    with pytest.raises(InputError, match=message) as refused:
        own.embed(file)
    assert str(refused.value).startswith("clip.npz (download.features_file): ")
    assert "\n" not in str(refused.value) and not (own.folder / "none.h5").exists()

    # A whole file under the same name is taken.
    own.embed(write_npz(own.folder, ids, features))


def test_what_the_sentences_say_helps(own: Own, ids: list[str], features: np.ndarray) -> None:
    mean = (features + 1000).mean(axis=0)
    by_concept = np.random.default_rng(0).random((11, 1, D), np.float32)
    objects = np.array(ids, dtype=object)
    for names, values in (
        (ids, features + 1000 - mean),
        (ids, by_concept.reshape(-1, D)),
        (objects.astype(str), features),
        (ids, (100 * features).astype(int).astype("float32")),
    ):
        own.embed(write_npz(own.folder, names, values))


def test_a_name_that_fits_two_images_is_told() -> None:
    ids = ["own/cat/1.jpg", "own/dog/1.jpg", "own/dog/2.jpg"]
    with pytest.raises(
        InputError,
        match=r"x: 1 names fit several images, the first is 1.jpg in row 0 \(from 0\), which fits "
        "own/cat/1.jpg and own/dog/1.jpg: write the names as in the column image_ids",
    ):
        match_names(["1.jpg", "2.jpg"], ids, "x")
    with pytest.raises(InputError, match="2 images have several rows, the first is own/cat/1.jpg"):
        match_names(["1.jpg", "1.JPG", "2.jpg"], ids, "x")


def test_nothing_in_a_file_is_run(own: Own, ids: list[str], features: np.ndarray) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(own.folder / "ran"),)

    objects = np.array([Bomb()] * len(ids), dtype=object)
    np.savez(own.folder / "a.npz", names=objects, features=features)
    np.save(own.folder / "b.npy", objects)
    write_csv(own.folder / "b.csv", [[name] for name in ids])
    (own.folder / "c.npz").write_bytes(pickle.dumps(Bomb()))
    (own.folder / "d.safetensors").write_bytes(pickle.dumps(Bomb()))
    (own.folder / "e.h5").write_bytes(pickle.dumps(Bomb()))
    for name, message in (
        ("a.npz", "holds Python objects, which could run code and are not read"),
        ("b.npy", "holds Python objects, which could run code and are not read"),
        ("c.npz", "is not a whole zip archive"),
        ("d.safetensors", "is not a whole safetensors file"),
        ("e.h5", "cannot be read .* put a whole file in its place"),
    ):
        with pytest.raises(InputError, match=message):
            own.embed(own.folder / name)
    assert not (own.folder / "ran").exists()


@pytest.mark.parametrize(
    "write", [write_npz, write_npy_with_titles, write_two_datasets, write_safetensors]
)
def test_a_file_that_is_cut_is_told(
    own: Own, ids: list[str], features: np.ndarray, write: Callable[..., Path]
) -> None:
    file = write(own.folder, ids, features)
    whole = file.read_bytes()
    for n_bytes in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError):
            own.embed(file)


def test_a_wrong_list_of_names_is_told(own: Own, ids: list[str], features: np.ndarray) -> None:
    file = own.folder / "clip.npy"
    np.save(file, features)
    with pytest.raises(
        InputError, match="its pictures have no names; put them into .*clip.csv, one"
    ):
        own.embed(file)

    write_csv(own.folder / "clip.csv", [[name] for name in ids[2:]])
    with pytest.raises(
        InputError, match="clip.csv: has 9 lines, and the features beside it have 11"
    ):
        own.embed(file)

    (own.folder / "clip.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="clip.csv: cannot be read as CSV in UTF-8"):
        own.embed(file)

    write_csv(own.folder / "clip.csv", [[name] for name in ids])
    np.save(file, features.astype(int))
    with pytest.raises(InputError, match="clip.npy .*: holds int64 .*, and expected are floats"):
        own.embed(file)

    tensors = own.folder / "dino.safetensors"
    for metadata, n_lists in (({}, 0), ({"a": json.dumps(ids), "b": json.dumps(ids)}, 2)):
        safetensors.numpy.save_file({"x": features}, tensors, metadata)
        with pytest.raises(InputError, match=f"{n_lists} lists of names are in its metadata, and"):
            own.embed(tensors)

    tensors = write_safetensors(own.folder, ids, features)
    with pytest.raises(InputError, match="in its metadata and in clip.csv beside it; give that fi"):
        own.embed(tensors)
    (own.folder / "clip.csv").rename(own.folder / "other.csv")
    own.embed(tensors)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none", "features_file is none: set it to the full path of your file of features, a row"),
        ("clip.npz", "features_file is clip.npz, which is no full path: set it"),
        (
            __file__,
            "features_file is .*: expected a file that ends in .npz, .h5, .hdf5, .npy, .safetensors; write",
        ),
    ],
)
def test_a_parameter_that_names_no_file_is_told(own: Own, value: str, message: str) -> None:
    params = own.set(download__features_file=value)
    for check in (
        lambda: check_names(read_params(params)),
        lambda: weights.main(params, "features", own.folder / "weights"),
    ):
        with pytest.raises(InputError, match=f"download.{message}"):
            check()


def test_a_file_that_is_not_there_is_told_before_anything_is_copied(own: Own) -> None:
    params = own.set(download__features_file="/nowhere/clip.npz")
    check_names(read_params(params))  # which looks at no disk
    with pytest.raises(
        InputError, match="features_file is /nowhere/clip.npz: there is no such file; see how it is"
    ):
        weights.main(params, "features", own.folder / "weights")
    assert not (own.folder / "weights").exists()


def test_a_second_file_is_the_aligned_encoder(
    own: Own, ids: list[str], features: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    """Of the same name in another folder, and of another size."""
    file = write_npz(own.folder, ids, features)
    cache = own.embed(file, "features")
    message = "download.features_file_aligned is none: set it to the full path of the features of "
    assert message in capsys.readouterr().out
    with pytest.raises(InputError, match=f"holds no embeddings: {message}"):
        read_embeddings(cache, "last")

    (own.folder / "dreamsim").mkdir()
    aligned = write_npz(own.folder / "dreamsim", ids, features[:, ::2])
    changes = {"encoder": "aligned", "alignment": "features"}
    with pytest.raises(InputError, match="download.features_file_aligned is none: set it"):
        check_names(read_params(own.set(download__features_file=str(file), **changes)))

    changes["download__features_file_aligned"] = str(aligned)
    check_names(read_params(own.set(download__features_file=str(file), **changes)))
    cache = own.embed(file, "features", str(aligned))
    np.testing.assert_array_equal(read_embeddings(cache, "last").values, features[:, ::2])
    about = read_about(cache)[0]
    assert (about["encoder"], about["alignment"]) == ("aligned", "features")
    assert about["features_sha256"] != read_about(own.embed(file))[0]["features_sha256"]

    with pytest.raises(
        InputError, match="'dreamsim': features is aligned by features alone; set alignment to feat"
    ):
        check_names(read_params(own.set(encoder="aligned")))


def test_other_blocks_and_views_are_refused(own: Own, ids: list[str], features: np.ndarray) -> None:
    file = write_npz(own.folder, ids, features)
    for key, value, message in (
        ("blocks", [6, "last"], "embed.blocks is .6, 'last'.: .* set it to .last., and"),
        ("views", ["original", "blur-8"], "embed.views is .* set it to .original., or"),
    ):
        with pytest.raises(InputError, match=message):
            own.embed(file, **{key: value})
        params = own.set(download__features_file=str(file), **{f"embed__{key}": value})
        with pytest.raises(InputError, match=message):
            check_names(read_params(params))


def test_the_study_takes_them_in_its_cells_of_the_last_block(
    own: Own, ids: list[str], features: np.ndarray
) -> None:
    changes = {"study__backbones": ["features", "synclr_vitb16"], "study__blocks": [6, "last"]}
    changes["study__alignments"] = ["features", "dreamsim"]
    changes["download__features_file"] = str(write_npz(own.folder, ids, features))
    params = own.set(**changes)
    check_study(read_params(params))
    assert kinds_of(["features"]) == {"features": {"features": True}}

    weights.main(params, "features", own.folder / "weights")
    inputs = own.pictures / "images", own.pictures / "images.csv", own.folder / "weights"
    target = own.folder / "study.h5"
    study_embed.main(params, "features", "none", *inputs, target, target)
    np.testing.assert_array_equal(read_embeddings(target, "last").values, features)


def test_a_look_sees_a_corrected_file_and_corrected_names(tmp_path: Path) -> None:
    file, names = tmp_path / "clip.npy", tmp_path / "clip.csv"
    assert look_at_features("none") == look_at_features(str(file)) == ["none", "none"]
    file.write_text("first")
    names.write_text("a\n")
    first = look_at_features(str(file))
    assert first == look_at_features(str(file)) and "none" not in first

    names.write_text("b, c\n")
    changed = [old != new for old, new in zip(first, look_at_features(str(file)), strict=True)]
    assert changed == [False, True]
    file.write_text("mended")
    assert look_at_features(str(file))[0] != first[0]


def test_the_code_of_the_page_writes_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = str(Path("docs/image-models.md").absolute())
    monkeypatch.chdir(tmp_path)
    names = run_code(page)
    found = read_features(tmp_path / "clip.npz", "clip.npz")
    assert found.names == names["names"]
    np.testing.assert_array_equal(found.values, names["features"])


def side(encoder: str, runs: list[SubjectResult], backbone: str, **embeddings: str) -> Similarities:
    """An evaluation on embeddings with these attributes."""
    about = {"backbone": backbone, "caveat": str(embeddings)}
    settings = {"train": {"epochs": 3}, "embeddings": {"backbone": backbone, **embeddings}}
    return evaluation(encoder, runs, settings=settings, **about)


OF_CLIP = {"features_file": "clip.npz (sha256 12)", "features_sha256": "12ab"}
OF_CLIP["features_names_sha256"] = "56ef"  # of a CSV file
OF_DINO = {"features_file": "clip.npz (sha256 34)", "features_sha256": "34cd"}
OF_SYNCLR = {"checkpoint": "a.zip", "checkpoint_sha256": "ef", "tokens": "cls", "batch_size": "32"}


@pytest.mark.parametrize(
    ("encoders", "backbones", "attributes", "factor", "labels"),
    [
        (ENCODERS, ["features"] * 2, [OF_CLIP, OF_DINO], "encoder", ENCODERS),
        (
            ["unaligned"] * 2,
            ["features"] * 2,
            [OF_CLIP, OF_DINO],
            "features",
            ["clip.npz (sha256 12)", "clip.npz (sha256 34)"],
        ),
        (
            ["unaligned"] * 2,
            ["synclr_vitb16", "features"],
            [OF_SYNCLR, OF_CLIP],
            "backbone",
            ["synclr_vitb16", "features"],
        ),
    ],
)
def test_files_are_compared(
    encoders: list[str],
    backbones: list[str],
    attributes: list[dict[str, str]],
    factor: str,
    labels: list[str],
) -> None:
    """Two of one name too, as two encoders, as two files, and beside a model of this project."""
    sides = [
        side(encoder, runs, backbone, **about)
        for encoder, runs, backbone, about in zip(
            encoders, pair(10), backbones, attributes, strict=True
        )
    ]
    result = compare(*sides, parameters(), 0)
    assert (result["differs_in"], [result["baseline"], result["other"]]) == (factor, labels)
    assert len(result["caveats"]) == 2

    sides[1].made_with["settings"]["train"]["epochs"] = 4
    with pytest.raises(InputError, match="differ in settings.train.epochs .* too"):
        compare(*sides, parameters(), 0)


def test_an_image_model_embedded_in_two_ways_is_no_file_of_features() -> None:
    unaligned, _ = pair(10)
    sides = [
        side("unaligned", unaligned, name, tokens=tokens)
        for name, tokens in (("synclr_vitb16", "cls"), ("dino_vitb16", "mean"))
    ]
    with pytest.raises(InputError, match="differ in settings.embeddings.tokens .* too"):
        compare(*sides, parameters(), 0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quick_programs: str) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


@pytest.mark.long
def test_through_dvc_from_two_files_to_a_comparison(project: Project, tmp_path: Path) -> None:
    """A corrected file runs again what depends on it, and an untouched one nothing."""
    names = read_image_ids(project.folder / "data/fetched/images.csv")
    values = np.random.default_rng(0).standard_normal((len(names), 32))
    for folder in ("clip", "dreamsim"):
        (tmp_path / folder).mkdir()
    unaligned = write_npy_with_titles(tmp_path / "clip", names, values)
    aligned = write_npz(tmp_path / "dreamsim", names, values[:, ::-1])
    project.set(
        backbone="features",
        alignment="features",
        download__features_file=str(unaligned),
        download__features_file_aligned=str(aligned),
        embed__blocks=["last"],
    )

    behind = ["embed@unaligned", "embed@aligned", "train", "baseline", "evaluate", "report"]
    output = project.run("dvc", "repro")
    assert {"weights", *behind} <= {*ran(output)}
    assert not {"download", "human", "preprocess"} & {*ran(output)}
    page = (project.folder / "metrics/report.html").read_text()
    about = read_about(project.folder / "data/embeddings/unaligned.h5")[0]
    assert about["features_file"].startswith("clip.npy (sha256 ") and about["features_file"] in page
    assert ran(project.run("dvc", "repro")) == []

    # The names alone are corrected: so two pictures change places.
    names[:2] = names[1::-1]
    write_npy_with_titles(tmp_path / "clip", names, values)
    output = project.run("dvc", "repro")
    assert {"weights", "embed@unaligned", "train"} <= {*ran(output)}
    assert "download" not in ran(output)
    cache = read_embeddings(project.folder / "data/embeddings/unaligned.h5", "last")
    assert cache.image_ids[0] == names[1]
    np.testing.assert_array_equal(cache.values[0], values[1].astype("f4"))

    # A touched file has another time and the same content: a look, and nothing behind it.
    unaligned.touch()
    assert ran(project.run("dvc", "repro")) == ["weights"]

    output = project.run("python3", "-m", "stages.compare")
    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert (result["differs_in"], result["baseline"]) == ("encoder", "unaligned")
    assert any(
        text.startswith("Of unaligned: The embeddings are features from clip.npy")
        for text in result["caveats"]
    )
    assert "Of aligned: The embeddings are features from clip.npz" in " ".join(output.split())

    # Two files of one encoder differ in the file alone.
    sides = [f"download.features_file={path}" for path in (unaligned, aligned)]
    project.run("python3", "-m", "stages.compare", "--baseline", sides[0], "--other", sides[1])
    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert result["differs_in"] == "features" and result["other"].startswith("clip.npz (sha256")

    # And a file stands beside an image model of this project.
    sides = ["backbone=synclr_vitb16", "backbone=features"]
    project.run("python3", "-m", "stages.compare", "--baseline", sides[0], "--other", sides[1])
    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert (result["differs_in"], result["other"]) == ("backbone", "features")

    values[4] = np.nan
    write_npz(tmp_path / "dreamsim", names, values)
    refused = project.run("dvc", "repro", fails=True)
    assert "error: clip.npz (download.features_file_aligned): the features of 1 of" in refused
    assert "Traceback" not in refused
