"""The similarities behind every figure, as an HDF5 file: each model's answers to all test images.

Axes: N test images, P dimensions of the projected space.

/                      attributes: dataset, synthetic, backbone, encoder, protocol, selected_on;
                       `caveat`: that of the image model, if it has one; `settings`: everything
                       else that decides the figures, as JSON
/image_ids (N,)        the test images; every axis N below has their order
/concept (N,)          their concepts within the test set
/things_concept (N,)   their concepts in THINGS
/<run>/                one group a run, such as `pooled-seed-42`; attributes: fold, seed,
                       selected_epoch, collapsed, logit_scale (1 / temperature)
/<run>/images (N, P)   projected images, unit vectors, float32
/<run>/<subject>/      one group a subject tested; attribute: subject
    eeg (N, P)         projected responses, averaged over repetitions, unit vectors, float32
    similarity (N, N)  cosine similarity of response i (row) with image j (column), float32
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from pipeline.errors import EVALUATE_AGAIN, InputError
from pipeline.files import new_hdf5, unreadable
from pipeline.retrieval import score_queries
from pipeline.train.protocols import name_run

RUN_ATTRIBUTES = ("fold", "seed", "selected_epoch", "collapsed", "logit_scale")
IMAGE_NAMES = ("image_ids", "concept", "things_concept")

# Keys that `settings_of` drops. The first ones cannot change a result.
NOT_COMPARED = {"seeds", "workers", "device", "versions", "h5py_version", "numpy_version"}
# These differ between the two image encoders by design.
NOT_COMPARED |= {"alignment", "encoder", "aligned_by", "caveat", "only"}

# The figures of each test image from `retrieval.score_queries`, float64, by name.
Queries = dict[str, np.ndarray]


@dataclass(frozen=True)
class SubjectResult:
    """One run's model on one subject's averaged test EEG; shapes and dtypes as in the file."""

    fold: str
    seed: int
    subject: str
    selected_epoch: int
    collapsed: bool
    logit_scale: float
    images: np.ndarray
    eeg: np.ndarray
    similarity: np.ndarray

    @property
    def run(self) -> str:
        return name_run(self.fold, self.seed)

    def queries(self) -> Queries:
        """The figures of each test image, (N,) each."""
        queries = score_queries(torch.from_numpy(self.similarity), self.logit_scale)
        return {name: values.numpy() for name, values in queries.items()}


@dataclass(frozen=True)
class Similarities:
    """The whole file. `made_with` holds its attributes, with `settings` as a dictionary."""

    image_ids: np.ndarray  # (N,) str
    concept: np.ndarray  # (N,) str
    things_concept: np.ndarray  # (N,) str
    results: list[SubjectResult]
    made_with: dict[str, Any]

    @property
    def valid_results(self) -> list[SubjectResult]:
        """Those of runs that did not collapse; all if all collapsed. The metrics do the same."""
        return [result for result in self.results if not result.collapsed] or self.results


def write_similarities(path: Path, similarities: Similarities) -> None:
    """Write the file; the same content gives the same bytes."""
    with new_hdf5(path) as file:
        # HDF5 attributes cannot be dictionaries.
        for key, value in similarities.made_with.items():
            file.attrs[key] = json.dumps(value, sort_keys=True) if key == "settings" else value

        for name in IMAGE_NAMES:
            text = getattr(similarities, name).astype(object)
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())

        for result in similarities.results:
            _write_result(file.require_group(result.run), result)


def _write_result(run: h5py.Group, result: SubjectResult) -> None:
    # All subjects of a run share its model, and so the projected images.
    if "images" not in run:
        run["images"] = result.images
        run.attrs.update({key: getattr(result, key) for key in RUN_ATTRIBUTES})

    run[f"{result.subject}/eeg"] = result.eeg
    run[f"{result.subject}/similarity"] = result.similarity
    run[result.subject].attrs["subject"] = result.subject


def read_similarities(path: Path) -> Similarities:
    """Read what `write_similarities` wrote.

    Raises InputError if the file is missing, damaged or of another kind.
    """
    try:
        with h5py.File(path, "r") as file:
            made_with = _attributes(file)
            made_with["settings"] = json.loads(made_with["settings"])

            # Groups are runs, and within a run subjects; all else are arrays.
            runs = [member for member in file.values() if isinstance(member, h5py.Group)]
            results = [
                _read_result(member)
                for run in runs
                for member in run.values()
                if isinstance(member, h5py.Group)
            ]
            image_names = {name: file[name].asstr()[:] for name in IMAGE_NAMES}
            return Similarities(**image_names, results=results, made_with=made_with)
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        fault = unreadable(error, path)
        raise fault or InputError(
            f"{path}: holds no similarities of the evaluate stage ({error}); {EVALUATE_AGAIN}"
        ) from error


def _read_result(subject: h5py.Group) -> SubjectResult:
    run = subject.parent
    return SubjectResult(
        **_attributes(run),
        subject=subject.attrs["subject"],
        images=run["images"][:],
        eeg=subject["eeg"][:],
        similarity=subject["similarity"][:],
    )


def settings_of(
    recipe: Mapping[str, Any], eeg: list[Path], embeddings: Path
) -> dict[str, dict[str, Any]]:
    """What decides the figures besides image encoder, subjects and seeds.

    These are `recipe`, the train section of the parameters, and the attributes of the files `eeg`
    and `embeddings`, which say how they were made. The keys in NOT_COMPARED are dropped.
    """
    files = {"embeddings": embeddings} | {f"eeg of {path.stem}": path for path in eeg}
    parts: dict[str, Mapping[str, Any]] = {"train": recipe}
    for name, path in files.items():
        with h5py.File(path, "r") as file:
            parts[name] = _attributes(file)

    return {
        name: {key: value for key, value in part.items() if key not in NOT_COMPARED}
        for name, part in parts.items()
    }


def _attributes(group: h5py.Group) -> dict[str, Any]:
    """Attributes as JSON can hold them: lists and plain numbers in place of NumPy's types."""
    return {
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in group.attrs.items()
    }
