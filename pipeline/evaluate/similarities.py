"""What every trained model makes of the test images, as an HDF5 file: cosine similarities and where they come from.

/                      attributes: dataset, synthetic, backbone, encoder, protocol, selected_on; `settings`, all else
                       that decides the figures, as JSON
/image_ids (N,)        the test images, in the order of every N below; /concept, /things_concept likewise
/<run>/                one group a run, such as `pooled-seed-42`; attributes: fold, seed, selected_epoch, collapsed,
                       logit_scale (1 / temperature)
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

ABOUT_A_RUN = ("fold", "seed", "selected_epoch", "collapsed", "logit_scale")
# Left out of the settings: what cannot change a result, and what differs between the encoders by design.
NO_SETTINGS = {"seeds", "workers", "device", "versions", "h5py_version", "numpy_version"}
NO_SETTINGS |= {"alignment", "encoder", "aligned_by", "caveat", "only"}

Queries = dict[str, np.ndarray]  # what `score_queries` says of each test image, float64, by name


@dataclass(frozen=True)
class Scored:
    """One run's model on one subject's averaged test EEG; the arrays as in the file."""

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
        """(N,) each."""
        queries = score_queries(torch.from_numpy(self.similarity), self.logit_scale)
        return {name: values.numpy() for name, values in queries.items()}


@dataclass(frozen=True)
class Similarities:
    """The whole file; `made_with` are its attributes, `settings` as a dictionary."""

    image_ids: np.ndarray  # (N,) str
    concept: np.ndarray
    things_concept: np.ndarray
    scored: list[Scored]
    made_with: dict[str, Any]


def write_similarities(path: Path, similarities: Similarities) -> None:
    """Write the file; the same content gives the same bytes."""
    with new_hdf5(path) as file:
        for key, value in similarities.made_with.items():
            file.attrs[key] = json.dumps(value, sort_keys=True) if key == "settings" else value
        for name in ("image_ids", "concept", "things_concept"):
            file.create_dataset(
                name, data=getattr(similarities, name).astype(object), dtype=h5py.string_dtype()
            )
        for scored in similarities.scored:
            run = file.require_group(scored.run)
            if "images" not in run:
                run["images"] = scored.images
                run.attrs.update({key: getattr(scored, key) for key in ABOUT_A_RUN})
            run[f"{scored.subject}/eeg"], run[f"{scored.subject}/similarity"] = (
                scored.eeg,
                scored.similarity,
            )
            run[scored.subject].attrs["subject"] = scored.subject


def read_similarities(path: Path) -> Similarities:
    """Read what `write_similarities` wrote; InputError if it is not such a file."""
    try:
        with h5py.File(path, "r") as file:
            made_with = _attributes(file)
            runs = [run for run in file.values() if isinstance(run, h5py.Group)]
            return Similarities(
                image_ids=file["image_ids"].asstr()[:],
                concept=file["concept"].asstr()[:],
                things_concept=file["things_concept"].asstr()[:],
                scored=[
                    _read_scored(group)
                    for run in runs
                    for group in run.values()
                    if isinstance(group, h5py.Group)
                ],
                made_with=made_with | {"settings": json.loads(made_with["settings"])},
            )
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        fault = unreadable(error, path)
        raise fault or InputError(
            f"{path}: holds no similarities of the evaluate stage ({error}); {EVALUATE_AGAIN}"
        ) from error


def settings_of(
    recipe: Mapping[str, Any], eeg: list[Path], embeddings: Path
) -> dict[str, dict[str, Any]]:
    """What decides the figures besides encoder, subjects and seeds: the recipe, and how EEG and embeddings were made.

    `recipe` is the train section of the parameters. Without NO_SETTINGS.
    """
    parts = {"train": recipe}
    for name, path in [
        ("embeddings", embeddings),
        *((f"eeg of {path.stem}", path) for path in eeg),
    ]:
        with h5py.File(path, "r") as file:
            parts[name] = _attributes(file)
    return {
        name: {key: value for key, value in of.items() if key not in NO_SETTINGS}
        for name, of in parts.items()
    }


def _attributes(group: h5py.Group) -> dict[str, Any]:
    """Attributes as JSON knows them."""
    return {
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in group.attrs.items()
    }


def _read_scored(group: h5py.Group) -> Scored:
    run = group.parent
    return Scored(
        **_attributes(run),
        subject=group.attrs["subject"],
        images=run["images"][:],
        eeg=group["eeg"][:],
        similarity=group["similarity"][:],
    )
