"""How alike people find the concepts of the test images.

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

/                      attributes: source, in words, and synthetic; or `why` alone, where there is
                       no human similarity of this dataset
/things_concept (N,)   the concepts of the test images, each once
/similarity (N, N)     float64, from 0 to 1, symmetric; 1 for a concept with itself
Axes: N concepts of the test images, M concepts of the published file, D dimensions.
"""

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
    source: str
    synthetic: bool

    def of(self, things_concept: Sequence[str]) -> np.ndarray:
        """The similarities (n, n) of these concepts, in their order.

        Raises InputError for a concept that is not there.
        """
        row_of = {concept: row for row, concept in enumerate(self.things_concept)}
        missing = [concept for concept in things_concept if concept not in row_of]
        if missing:
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise InputError(
                f"there is no human similarity of the test concept {missing[0]}{others}: that in "
                f"data/fetched/human was made for another dataset; {HUMAN_AGAIN}"
            )
        rows = [row_of[concept] for concept in things_concept]
        return self.similarity[np.ix_(rows, rows)]


def measure_similarity(
    embedding_file: Path,
    words_file: Path,
    things_concept: Sequence[str],
    source: str,
    synthetic: bool,
) -> HumanSimilarity:
    """Read the published files, and compute the similarity of the concepts, in their order.

    A concept is named as in `00001_aardvark` or `aardvark`. Raises InputError where a file is not
    as published, or has no row of a concept.
    """
    words = _read_words(words_file)
    embedding = _read_embedding(embedding_file, len(words))
    concepts = list(dict.fromkeys(things_concept))
    rows = find_rows(words, concepts, words_file)
    return HumanSimilarity(
        np.array(concepts, dtype=object), triplet_similarity(embedding, rows), source, synthetic
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
                str(file.attrs["source"]),
                bool(file.attrs["synthetic"]),
            )
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: holds no human similarity ({error}); {HUMAN_AGAIN}"
        ) from error
