import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluate.similarities import (
    Similarities,
    SubjectResult,
    read_similarities,
    write_similarities,
)


@pytest.fixture
def similarities() -> Similarities:
    rng = np.random.default_rng(0)
    ids = np.array([f"test_images/{i}.jpg" for i in range(4)], dtype=object)

    def scored(seed: int, subject: str) -> SubjectResult:
        arrays = {"eeg": (4, 3), "similarity": (4, 4)}
        arrays = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()
        }
        return SubjectResult(
            "pooled", seed, subject, 3, False, 14.3, np.full((4, 3), seed, np.float32), **arrays
        )

    made_with = {
        "dataset": "sample",
        "synthetic": True,
        "settings": {"train": {"epochs": 2}, "eeg": [0.1]},
    }
    return Similarities(
        ids, ids, ids, [scored(seed, s) for seed in (1, 2) for s in ("sub-01", "sub-02")], made_with
    )


def test_what_is_written_is_read(similarities, tmp_path):
    write_similarities(tmp_path / "evaluation.h5", similarities)
    read = read_similarities(tmp_path / "evaluation.h5")
    assert read.made_with == similarities.made_with
    assert (read.image_ids == similarities.image_ids).all()
    for one, other in zip(read.results, similarities.results, strict=True):
        one, other = (dataclasses.asdict(scored) for scored in (one, other))
        for name, value in other.items():
            assert np.array_equal(one[name], value), name


def test_the_same_content_gives_the_same_bytes(similarities, tmp_path):
    for name in ("a.h5", "b.h5"):
        write_similarities(tmp_path / name, similarities)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def not_hdf5(path: Path) -> None:
    path.write_bytes(b"no HDF5")


def another_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.zeros((2, 2))


@pytest.mark.parametrize("make", [not_hdf5, another_file, lambda path: None])
def test_another_file_is_refused(tmp_path, make):
    make(tmp_path / "evaluation.h5")
    with pytest.raises(InputError, match="evaluation.h5: holds no similarities"):
        read_similarities(tmp_path / "evaluation.h5")
