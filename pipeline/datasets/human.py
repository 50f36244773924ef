"""How alike people find the concepts of the test images, and which categories these are in.

Published: SPoSE, 66 dimensions, Hebart et al. 2023, doi 10.7554/eLife.82580, learned from 4.7
million judgements of people on the 1,854 concepts of THINGS: which of three objects is the odd one
out. Method: Hebart et al. 2020, doi 10.1038/s41562-020-00951-3.
Layout: a text file with a line a concept and a column a dimension, all at least 0, and a text file
of the concepts' words in the same order.
Made of it: the similarity of two concepts, which is the probability that people put these two
together, whatever the third object. For three objects i, j and k the model says
exp(x_i x_j) / (exp(x_i x_j) + exp(x_i x_k) + exp(x_j x_k)); the similarity is the mean of that over
all other objects k, as its authors compute it. The dot product x_i x_j alone would make concepts
with large numbers similar to everything.

The rows are in the order of THINGS, which is neither that of the numbers in front of the names of
THINGS-EEG2 nor that of sorted file names: 20 and 21 rows differ. So the rows are found by name.

The categories of the concepts are those of THINGS-data's repository (see `sources`): 53, such as
animal, mammal and kitchen tool. A concept is in several, in one or in none.
Layout: a table with tabs, quoted as CSV is: Word, a definition, and a column a category, with 1 for
a concept that is in it and nothing for another. The last row has no word, and holds the totals.

/                      attributes: source, in words, and synthetic; or `why` alone, where there is
                       no human similarity of this dataset
/things_concept (N,)   the concepts of the test images, each once
/similarity (N, N)     float64, from 0 to 1, symmetric; 1 for a concept with itself
/categories (K,)       the names of all categories
/category (N, K)       bool: is the concept in the category?
Axes: N concepts of the test images, M concepts of the published file, D dimensions, K categories.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import HUMAN_AGAIN, InputError
from pipeline.files import new_hdf5, unreadable


@dataclass(frozen=True)
class HumanSimilarity:
    """The file. `similarity` has a row and a column for each of `things_concept`."""

    things_concept: np.ndarray  # (N,) str
    similarity: np.ndarray  # (N, N) float64
    categories: np.ndarray  # (K,) str
    category: np.ndarray  # (N, K) bool
    source: str
    synthetic: bool

    def of(self, things_concept: Sequence[str]) -> np.ndarray:
        """The similarities (n, n) of these concepts, in their order.

        Raises InputError for a concept that is not there.
        """
        rows = self._rows(things_concept)
        return self.similarity[np.ix_(rows, rows)]

    def same_category(self, things_concept: Sequence[str]) -> np.ndarray:
        """Which of these concepts share a category, in their order: (n, n) float64.

        1 where two are in a category together, 0 where they are not; a row of NaN for a concept
        that is in no category. Raises InputError for a concept that is not there.
        """
        category = self.category[self._rows(things_concept)].astype(np.float64)
        shares = (category @ category.T > 0).astype(np.float64)
        shares[~category.any(axis=1)] = np.nan
        return shares

    def _rows(self, things_concept: Sequence[str]) -> list[int]:
        row_of = {concept: row for row, concept in enumerate(self.things_concept)}
        missing = [concept for concept in things_concept if concept not in row_of]
        if missing:
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise InputError(
                f"there is no human similarity of the test concept {missing[0]}{others}: that in "
                f"data/fetched/human was made for another dataset; {HUMAN_AGAIN}"
            )
        return [row_of[concept] for concept in things_concept]


def measure_similarity(
    embedding_file: Path,
    words_file: Path,
    categories_file: Path,
    things_concept: Sequence[str],
    source: str,
    synthetic: bool,
) -> HumanSimilarity:
    """Read the published files: similarity and categories of the concepts, in their order.

    A concept is named as in `00001_aardvark` or `aardvark`. Raises InputError where a file is not
    as published, or has no row of a concept.
    """
    words = _read_words(words_file)
    embedding = _read_embedding(embedding_file, len(words))
    concepts = list(dict.fromkeys(things_concept))
    rows = find_rows(words, concepts, words_file)

    # This file numbers some of the words that others repeat: it has rows of its own.
    named_words, categories, category = read_categories(categories_file)
    rows_of_categories = find_rows(named_words, concepts, categories_file)
    return HumanSimilarity(
        np.array(concepts, dtype=object),
        triplet_similarity(embedding, rows),
        np.array(categories, dtype=object),
        category[rows_of_categories],
        source,
        synthetic,
    )


def _read_words(path: Path) -> list[str]:
    """One word a line, such as `air conditioner`."""
    try:
        # utf-8-sig: the published file begins with a byte order mark, which is no part of a word.
        words = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as a list of words ({error}); {HUMAN_AGAIN}"
        ) from error
    return [word.strip() for word in words]


def _read_embedding(path: Path, n_concepts: int) -> np.ndarray:
    """The published embedding, (M, D) float64."""
    try:
        embedding = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as a table of numbers ({error}); {HUMAN_AGAIN}"
        ) from error

    if len(embedding) != n_concepts:
        raise InputError(
            f"{path}: expected a line for each of {n_concepts} concepts, got {len(embedding)}; "
            f"{HUMAN_AGAIN}"
        )
    if not np.isfinite(embedding).all() or embedding.min() < 0:
        raise InputError(
            f"{path}: holds numbers that are negative or not finite, expected a SPoSE embedding; "
            f"{HUMAN_AGAIN}"
        )
    return embedding


def read_categories(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """The words (M,), the categories (K,), and which word is in which: (M, K) bool.

    Raises InputError where the file is not as published: another column, another cell than 1 or
    nothing, or totals that are not those of the rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t", strict=True)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as a table with tabs ({error}); {HUMAN_AGAIN}"
        ) from error

    categories = header[2:]
    are_names = all(name and name.isprintable() for name in categories)
    if header[:1] != ["Word"] or not categories or not are_names:
        raise InputError(
            f"{path}: expected the columns Word, a definition and one for each category, got "
            f"{', '.join(header[:3])[:60]!r}; {HUMAN_AGAIN}"
        )
    [(twice, frequency)] = Counter(categories).most_common(1)
    if frequency > 1:
        raise InputError(f"{path}: has the category {twice} {frequency} times; {HUMAN_AGAIN}")

    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} columns, expected {len(header)}; "
                f"{HUMAN_AGAIN}"
            )

    # The row of totals comes last, and has no word.
    words = [row[0] for row in rows]
    if "" not in words or words.index("") != len(words) - 1:
        raise InputError(
            f"{path}: expected a word in each row but the last, which holds the totals; "
            f"{HUMAN_AGAIN}"
        )
    cells = np.array([row[2:] for row in rows[:-1]], dtype=object).reshape(-1, len(categories))
    _check_cells(path, words, categories, cells, rows[-1][2:])
    return words[:-1], categories, cells == "1"


def _check_cells(
    path: Path, words: list[str], categories: list[str], cells: np.ndarray, totals: list[str]
) -> None:
    """Raises InputError unless each cell is 1 or empty, and the totals are those of the cells."""
    is_member = cells == "1"
    wrong = np.argwhere(~is_member & (cells != ""))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{path}: {words[row]} has {cells[row, column][:20]!r} for the category "
            f"{categories[column]}, expected 1 or nothing; {HUMAN_AGAIN}"
        )

    for category, total, n_members in zip(categories, totals, is_member.sum(0), strict=True):
        if total != str(n_members):
            raise InputError(
                f"{path}: the total of the category {category} is {total[:20]!r}, but "
                f"{n_members} rows are in it; {HUMAN_AGAIN}"
            )


def find_rows(words: Sequence[str], things_concept: Sequence[str], file: Path) -> np.ndarray:
    """The row (n,) of each concept, by its name.

    THINGS numbers the concepts that share a word, in their order: the first `bat` is bat1. Raises
    InputError for a concept that no row has; `file` is for the message.
    """
    frequency = Counter(words)
    seen: Counter[str] = Counter()
    row_of = {}
    for row, word in enumerate(words):
        seen[word] += 1
        number = str(seen[word]) if frequency[word] > 1 else ""
        row_of[_plain(word + number)] = row

    names = [_plain(re.sub(r"^\d+_", "", concept)) for concept in things_concept]
    missing = [
        concept for concept, name in zip(things_concept, names, strict=True) if name not in row_of
    ]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(
            f"{file}: has no row of the concept {missing[0]}{others}, of {len(things_concept)}; it "
            f"may be of other concepts than the dataset: {HUMAN_AGAIN}"
        )
    return np.array([row_of[name] for name in names])


def _plain(name: str) -> str:
    """One spelling: THINGS writes `flip-flop` and flip_flop, and spaces or underscores."""
    return re.sub(r"[ _-]+", "_", name)


def triplet_similarity(embedding: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The similarity (n, n) of some rows of an embedding (M, D), float64: see the module's text."""
    exponentials = np.exp(embedding[rows] @ embedding.T)  # (n, M)
    n_others = len(embedding) - 2

    similarity = np.ones((len(rows), len(rows)))
    for i, row in enumerate(rows):
        pair = exponentials[i, rows][:, None]  # (n, 1): exp(x_i x_j)
        together = pair / (pair + exponentials[i] + exponentials)  # (n, M), by the third object k

        # The third object is neither i nor j.
        together[:, row] = 0
        together[np.arange(len(rows)), rows] = 0
        similarity[i] = together.sum(1) / n_others

    np.fill_diagonal(similarity, 1)
    return similarity


def write_human(path: Path, human: HumanSimilarity) -> None:
    """Write the file; the same content gives the same bytes."""
    with new_hdf5(path) as file:
        file.attrs.update({"source": human.source, "synthetic": human.synthetic})
        file.create_dataset(
            "things_concept", data=human.things_concept.astype(object), dtype=h5py.string_dtype()
        )
        file["similarity"] = human.similarity
        file.create_dataset(
            "categories", data=human.categories.astype(object), dtype=h5py.string_dtype()
        )
        file["category"] = human.category


def write_no_human(path: Path, why: str) -> None:
    """Write a file that says why there is no human similarity of this dataset."""
    with new_hdf5(path) as file:
        file.attrs["why"] = why


def read_human(path: Path) -> HumanSimilarity | str:
    """Read what was written; the reason in words, where there is no human similarity.

    Raises InputError if the file is missing, damaged or of another kind.
    """
    try:
        with h5py.File(path, "r") as file:
            if "why" in file.attrs:
                return str(file.attrs["why"])
            return HumanSimilarity(
                file["things_concept"].asstr()[:],
                file["similarity"][:],
                file["categories"].asstr()[:],
                file["category"][:],
                str(file.attrs["source"]),
                bool(file.attrs["synthetic"]),
            )
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: holds no human similarity ({error}); {HUMAN_AGAIN}"
        ) from error
