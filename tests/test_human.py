"""What people say of the concepts: read, joined by name, fetched from a look-alike of the bucket, or simulated."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import stages.human
from pipeline.datasets.human import (
    HumanSimilarity,
    find_rows,
    measure_similarity,
    read_categories,
    read_human,
    triplet_similarity,
    write_human,
    write_no_human,
)
from pipeline.datasets.image_table import COLUMNS
from pipeline.datasets.known_files import KnownFile
from pipeline.datasets.sample import make_human, make_raw
from pipeline.datasets.sources import THINGS_SIMILARITY
from pipeline.datasets.table import DATASETS, SAMPLE, THINGS_EEG2
from pipeline.errors import InputError
from pipeline.files import sha256
from tests.osf_server import Server, fault, serve
from tests.tiny import TINY

# THINGS' own order: a space comes before a digit and before a hyphen, and two bats share their word.
WORDS = ["bat", "bat", "camera lens", "camera", "flip-flop", "ice cube", "ice-cream cone"]
# The categories number some of these words that SPoSE's list repeats.
NAMED_WORDS = ["bat1", "bat2", *WORDS[2:]]
CATEGORIES = ["animal", "dessert", "electronic device"]
MEMBERS = [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 1]]
NAMES = ["bat1", "bat2", "camera_lens", "camera", "flip_flop", "ice_cube", "ice-cream_cone"]
FOLDER = "ds004212/sourcedata/meg_paper"
TABLE = THINGS_SIMILARITY.categories.rpartition("/")[2]


def publish_categories(path: Path, words: list[str] = WORDS, old: str = "", new: str = "") -> None:
    """The table as it is published, some cells quoted, with totals; one text of it replaced by another."""
    lines = ["Word\tDefinition (from WordNet, Google, or Wikipedia)\t" + "\t".join(CATEGORIES)]
    for word, members in zip(words, MEMBERS, strict=True):
        cells = ["1" if member else "" for member in members]
        lines.append("\t".join([word, f'"a thing; that is\ta ""{word}"""', *cells]))
    lines.append("\t".join(["", "", *map(str, np.sum(MEMBERS, axis=0))]))
    text = "\r\n".join(lines)
    assert old in text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace(old, new, 1).encode())


def publish(folder: Path, rows: int = len(WORDS)) -> np.ndarray:
    """The files as they are published, with a byte order mark and lines that end as in Windows."""
    embedding = np.random.default_rng(0).gamma(1, 1, (rows, 5)).round(4)
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "spose_embedding_66d_sorted.txt", embedding, fmt="%.4f")
    (folder / "names_1854.csv").write_bytes(("\r\n".join(WORDS) + "\r\n").encode("utf-8-sig"))
    publish_categories(folder / TABLE)
    return embedding


def test_rows_are_found_by_name_whatever_number_is_in_front() -> None:
    rows = np.arange(len(NAMES))
    assert (find_rows(WORDS, NAMES, Path("x")) == rows).all()
    # THINGS-EEG2 numbers them in Python's order, which is another one.
    numbered = {name: f"{i:05}_{name}" for i, name in enumerate(sorted(NAMES), 1)}
    assert [*sorted(NAMES)] != NAMES
    assert (find_rows(WORDS, [numbered[name] for name in NAMES], Path("x")) == rows).all()
    assert find_rows(WORDS, ["00005_ice_cube", "bat2"], Path("x")).tolist() == [5, 1]


def test_a_concept_without_a_row_is_named() -> None:
    with pytest.raises(InputError, match=r"words.csv: has no row of the concept 00009_bat3, of 2"):
        find_rows(WORDS, ["00001_bat1", "00009_bat3"], Path("words.csv"))


def test_the_similarity_is_the_mean_probability_over_all_third_objects() -> None:
    embedding = np.random.default_rng(1).gamma(1, 1, (7, 4))
    rows = np.array([4, 0, 6])
    similarity = triplet_similarity(embedding, rows)

    for (a, i), (b, j) in itertools.permutations(enumerate(rows), 2):
        chosen = []
        for k in set(range(7)) - {i, j}:
            pairs = [embedding[i] @ embedding[j], embedding[i] @ embedding[k]]
            pairs = np.exp([*pairs, embedding[j] @ embedding[k]])
            chosen.append(pairs[0] / pairs.sum())
        assert similarity[a, b] == pytest.approx(np.mean(chosen), rel=1e-12)
    assert (similarity.diagonal() == 1).all()


def test_objects_that_people_cannot_tell_apart_are_at_chance() -> None:
    same = triplet_similarity(np.ones((6, 3)), np.arange(6))
    assert same[~np.eye(6, dtype=bool)] == pytest.approx(1 / 3)


def published_files(folder: Path) -> tuple[Path, Path, Path]:
    embedding = folder / "spose_embedding_66d_sorted.txt"
    return embedding, folder / "names_1854.csv", folder / TABLE


def test_it_is_read_back_and_taken_in_any_order(tmp_path: Path) -> None:
    publish(tmp_path)
    files = published_files(tmp_path)
    human = measure_similarity(*files, [*NAMES[::-1], NAMES[0]], "SPoSE", synthetic=False)
    write_human(tmp_path / "human.h5", human)
    same = read_human(tmp_path / "human.h5")
    assert isinstance(same, HumanSimilarity)
    assert same.things_concept.tolist() == NAMES[::-1] and same.source == "SPoSE"
    assert same.synthetic is False and (same.similarity == human.similarity).all()
    assert (same.of(NAMES) == human.similarity[::-1, ::-1]).all()
    assert same.categories.tolist() == CATEGORIES
    assert same.category.tolist() == np.array(MEMBERS, dtype=bool)[::-1].tolist()

    with pytest.raises(InputError, match="of the test concept bat3: that in data"):
        same.of(["bat1", "bat3"])
    with h5py.File(tmp_path / "human.h5", "a") as file:
        del file["category"]  # as before there were any
    with pytest.raises(InputError, match="human.h5: .*dvc repro --single-item --force human"):
        read_human(tmp_path / "human.h5")

    write_no_human(tmp_path / "human.h5", "nobody asked them")
    assert read_human(tmp_path / "human.h5") == "nobody asked them"
    (tmp_path / "human.h5").write_text("text")
    with pytest.raises(InputError, match="human.h5: .*dvc repro --single-item --force human"):
        read_human(tmp_path / "human.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2\n3 4\n", "expected a line for each of 7 concepts, got 2"),
        ("1 2\n" * 6 + "3 -4\n", "numbers that are negative or not finite"),
        ("1 2\n" * 6 + "3 nan\n", "numbers that are negative or not finite"),
        ("<html>\n", "cannot be read as a table of numbers"),
    ],
)
def test_a_file_that_is_not_as_published_is_told(
    tmp_path: Path, content: str, message: str
) -> None:
    publish(tmp_path)
    embedding = tmp_path / "spose_embedding_66d_sorted.txt"
    embedding.write_text(content)
    with pytest.raises(InputError, match=f"sorted.txt: .*{message}"):
        measure_similarity(*published_files(tmp_path), NAMES, "SPoSE", False)


@pytest.mark.parametrize("words", [WORDS, NAMED_WORDS], ids=["repeated", "numbered"])
def test_categories_are_found_by_name(tmp_path: Path, words: list[str]) -> None:
    publish(tmp_path)
    publish_categories(tmp_path / TABLE, words)
    concepts = ["00007_ice-cream_cone", "00002_bat2", "00004_camera", "00001_bat1"]
    human = measure_similarity(*published_files(tmp_path), concepts, "SPoSE", False)
    expected = np.array(MEMBERS, dtype=bool)[[6, 1, 3, 0]]
    assert human.category.dtype == bool and (human.category == expected).all()

    # The cone shares electronic device with the camera; bat2 is in no category, and asked nothing.
    nan = np.nan
    shares = [[1, 0, 1, 0], [nan] * 4, [1, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(human.same_category(concepts), shares)
    np.testing.assert_array_equal(human.same_category(concepts[:2]), [[1, 0], [nan, nan]])
    with pytest.raises(InputError, match="of the test concept bat3: that in data"):
        human.same_category(["bat3"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Word\t", "Name\t", "expected the columns Word, .* got 'Name, Definition"),
        ("Word", "\r\n", "expected the columns Word"),
        ("\tdessert\t", "\t\t", "expected the columns Word, a definition and one for each cate"),
        ("\tdessert\t", "\tanimal\t", "has the category animal 2 times"),
        ("\t1\t", "\t2\t", "bat has '2' for the category animal, expected 1 or nothing"),
        ("\t1\t", "\t1\t\t", "row 1 has 6 columns, expected 5"),
        ("\t1\t", "\t\t", "the total of the category animal is '1', but 0 rows are in it"),
        ("\r\n\t\t1", "\r\ndog\t\t1", "expected a word in each row but the last"),
        ("\r\ncamera\t", "\r\n\t", "expected a word in each row but the last"),
        ("\r\ncamera\t", "\r\ncamel\t", "has no row of the concept camera, of 7"),
        ('"a thing', '"a" thing', "cannot be read as a table with tabs"),
        ("", "\x00", "expected the columns Word"),
    ],
)
def test_categories_that_are_not_as_published_are_told(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    publish(tmp_path)
    publish_categories(tmp_path / TABLE, old=old, new=new)
    with pytest.raises(InputError, match=f"{TABLE}: {message}.*--force human") as told:
        measure_similarity(*published_files(tmp_path), NAMES, "SPoSE", False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"Word\tDefinition\tanimal\r\n", b"<html>"])
def test_a_table_of_another_kind_is_told(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path)
    (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(InputError, match=f"{TABLE}: .*--force human"):
        measure_similarity(*published_files(tmp_path), NAMES, "SPoSE", False)


def test_the_simulated_people_see_what_is_in_the_pictures(tmp_path: Path) -> None:
    make_raw([], tmp_path / "eeg", tmp_path / "images", tmp_path / "metadata", TINY)
    concepts = SAMPLE.read_metadata(tmp_path / "metadata")["test"]["things_concept"].tolist()
    files = tmp_path / "embedding.txt", tmp_path / "words.csv", tmp_path / "categories.tsv"
    make_human(*files, TINY)
    human = measure_similarity(*files, concepts, "simulated", synthetic=True)

    # The latents of concepts and images are drawn apart; an image lies near its concept.
    from pipeline.datasets.sample import _latents, _of_size

    latents = _of_size(_latents("test"), "test", TINY)
    distance = np.linalg.norm(latents[:, None] - latents, axis=2)
    pairs = np.triu_indices(len(concepts), 1)
    assert np.corrcoef(distance[pairs], human.similarity[pairs])[0, 1] < -0.8


def test_the_simulated_categories_are_of_what_is_in_the_pictures(tmp_path: Path) -> None:
    files = tmp_path / "embedding.txt", tmp_path / "words.csv", tmp_path / "categories.tsv"
    make_human(*files)
    words, categories, category = read_categories(files[2])
    assert words == files[1].read_text().splitlines() and len(categories) == 20

    # The first 20 dimensions are 1.2 times the latents, rounded.
    latents = np.loadtxt(files[0])[:, :20] / 1.2
    assert latents[category].min() > 0.9269 and latents[~category].max() < 0.9271
    assert 0.1 < (~category.any(axis=1)).mean() < 0.35


def image_table(path: Path, concepts: list[str]) -> Path:
    rows = [("train", "a/1.jpg", "1", "x"), *(("test", f"b/{c}.jpg", "1", c) for c in concepts)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
    return path


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """OpenNeuro's bucket and a repository with small files, which the entry of THINGS-EEG2 knows."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    published = tmp_path / "published"
    publish(published / FOLDER)
    known = {
        file.name: KnownFile(file.stat().st_size, sha256(file))
        for file in (published / FOLDER).iterdir()
    }
    repository = published / THINGS_SIMILARITY.commit / THINGS_SIMILARITY.categories
    repository.parent.mkdir(parents=True)
    shutil.move(published / FOLDER / TABLE, repository)
    human = replace(THINGS_EEG2.human, known_files=known)
    monkeypatch.setitem(DATASETS, "things-eeg2", replace(THINGS_EEG2, human=human))
    with serve({}, bucket=published) as server:
        yield server


def of_server(bucket: Server) -> dict[str, str]:
    return {"openneuro": bucket.bucket, "things_data": bucket.bucket}


def run_stage(tmp_path: Path, folder: str, **changes: str) -> HumanSimilarity | str:
    text = Path("params.yaml").read_text()
    for key, value in changes.items():
        lines = text.splitlines()
        # The first one: `across.dataset` comes after `dataset`.
        at, *_ = [i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        lines[at] = lines[at][: lines[at].index(":")] + f": {value}"
        text = "\n".join(lines) + "\n"
    params = tmp_path / "params.yaml"
    params.write_text(text)
    table = image_table(tmp_path / "images.csv", ["00003_camera_lens", "00001_bat1"])
    target = stages.human.main(params, table, tmp_path / folder)
    return read_human(Path(target))


def test_the_published_files_are_fetched_once_and_joined(bucket: Server, tmp_path: Path) -> None:
    settings = {"dataset": "things-eeg2", **of_server(bucket)}
    human = run_stage(tmp_path, "first", **settings)
    assert isinstance(human, HumanSimilarity) and not human.synthetic
    assert human.things_concept.tolist() == ["00003_camera_lens", "00001_bat1"]
    embedding = np.loadtxt(tmp_path / "published" / FOLDER / "spose_embedding_66d_sorted.txt")
    assert (human.similarity == triplet_similarity(embedding, np.array([2, 0]))).all()

    assert human.category.tolist() == [[False, False, True], [True, False, False]]
    fetched = {request["name"] for request in bucket.log()}
    assert fetched == {"spose_embedding_66d_sorted.txt", "names_1854.csv", TABLE}

    bucket.clear_log()
    again = run_stage(tmp_path, "second", **settings)
    assert bucket.log() == [] and (again.similarity == human.similarity).all()


def test_another_file_than_the_known_one_is_refused_and_taken_if_so_told(
    bucket: Server, tmp_path: Path
) -> None:
    settings = {"dataset": "things-eeg2", **of_server(bucket)}
    bucket.set_faults({"names_1854.csv": [fault("flip", -1, at=5)]})
    with pytest.raises(
        InputError, match="names_1854.csv.*expected sha256.*accept_new_versions to true"
    ):
        run_stage(tmp_path, "first", **settings)
    with pytest.raises(InputError, match="has no row of the concept 00001_bat1"):
        run_stage(tmp_path, "second", accept_new_versions="true", **settings)


def test_other_categories_than_the_known_ones_are_refused(bucket: Server, tmp_path: Path) -> None:
    bucket.set_faults({TABLE: [fault("flip", -1, at=5)]})
    with pytest.raises(InputError, match=f"{TABLE}.*expected sha256"):
        run_stage(tmp_path, "first", dataset="things-eeg2", **of_server(bucket))
    assert not (tmp_path / "first/similarity.h5").exists()


def test_copies_of_the_user_come_first(bucket: Server, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "published" / FOLDER, tmp_path / "mine/here")
    # As in a clone of the repository, in which no folder is named after the commit
    published = tmp_path / "published" / THINGS_SIMILARITY.commit
    shutil.copytree(published, tmp_path / "mine/THINGS-data")
    settings = {"dataset": "things-eeg2", **of_server(bucket)}
    human = run_stage(tmp_path, "first", own_copy=str(tmp_path / "mine"), **settings)
    assert bucket.log() == [] and isinstance(human, HumanSimilarity)


def test_a_dataset_without_human_similarity_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "sample", replace(SAMPLE, human=None))
    assert run_stage(tmp_path, "human") == (
        "nobody has published how alike people find the concepts of this dataset (sample)"
    )
