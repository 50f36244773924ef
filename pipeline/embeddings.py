"""The embedding cache: an HDF5 file with one row an image beside the image's id, and what it was made with.

/                  attributes: backbone, encoder, feature, preprocessing, precision, device, checkpoint_sha256, lora,
                   versions
/embeddings (N, D) float32, training and test images in one table
/image_ids (N,)    the path in the image archives, such as `training_images/00001_aardvark/aardvark_01b.jpg`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.files import replacing


@dataclass(frozen=True)
class Embeddings:
    """One row an image: values (N, D) float32 and the N image ids, training and test images in one table."""

    values: np.ndarray
    image_ids: np.ndarray

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each id, in the order asked for, int64; InputError names the first id that is not there."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(image_ids)} images seen have no embedding, first {missing[0]}: "
                "were EEG and embeddings made from the same dataset? Run `dvc repro`"
            )
        return np.array([row_of[image_id] for image_id in image_ids], dtype=np.int64)


def write_embeddings(path: Path, embeddings: Embeddings, made_with: Mapping[str, str]) -> None:
    """Write a cache; the same embeddings and attributes give the same bytes."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset("embeddings", data=embeddings.values)
        dataset.dims[0].label, dataset.dims[1].label = "image", "dimension"
        file.create_dataset("image_ids", data=embeddings.image_ids, dtype=h5py.string_dtype())
        file.attrs.update(made_with)


def read_embeddings(path: Path) -> Embeddings:
    """Read a cache; InputError if it is not one."""
    try:
        with h5py.File(path, "r") as file:
            values, image_ids = file["embeddings"][:], file["image_ids"].asstr()[:]
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: is no embedding cache ({error}); run `dvc repro embed`") from error
    if values.ndim != 2 or len(values) != len(image_ids) or len(set(image_ids)) != len(image_ids):
        raise InputError(f"{path}: expected one row an image id, got {values.shape} values, {len(set(image_ids))} ids")
    return Embeddings(values.astype(np.float32), image_ids)
