"""gLocal: a linear transform of a model's last embedding, fitted on people's judgements.

Source: arXiv 2306.04507.

`(x - mean) / std @ weights`, and `+ bias` where there is one, as thingsvision's `align` applies it.
The aligned cache is computed from the unaligned one. The files of the transforms are those of
github.com/LukasMut/gLocal, transforms/<model>/<module>/transform.npz, at the first upload (26 March
2024): a day later that of DINOv2 ViT-B/14 was overwritten by that of DINO ViT-B/16. The others are
today what they were then.
"""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.images import health
from pipeline.images.embeddings import (
    ORIGINAL,
    read_about,
    read_embeddings,
    write_embeddings,
    write_no_embeddings,
)
from pipeline.untrusted.archives import open_zip, read_member
from pipeline.untrusted.weights import HOW_TO_MEND, HOW_TO_REPLACE

LARGEST_MEMBER = 2**26  # bytes; 1024 x 1024 float64 are an eighth of it
COMMIT = "d1860d3e71c2e42cd345438c861f19478d15a95d"  # of the first upload
N_REFERENCE_ROWS = 8  # computed again, one row at a time

CAVEAT = (
    "gLocal's transform was fitted on people's judgements about the concepts of THINGS, the test "
    "concepts among them: the image model has seen people compare what the EEG is tested on."
)

# Where one unaligned cache serves both alignments, gLocal gets what DreamSim gets.
BESIDE_DREAMSIM = (
    "It was fitted on the middle of each picture (the shorter side resized to 256 pixels, of that "
    "224 x 224) and gets the whole picture here, as DreamSim does, and it transforms the token "
    "after the last LayerNorm, where DreamSim and the unaligned encoder give the one before: a "
    "difference between the two alignments may come from these too."
)
NOT_PROVED = (
    "That this transform fits DINOv2 ViT-B/14 is not proved: it is the file of the first upload "
    "(d1860d3), which was overwritten a day later by that of DINO ViT-B/16."
)
CAVEATS_BESIDE_DREAMSIM = {
    "dino_vitb16": f"{CAVEAT} {BESIDE_DREAMSIM}",
    "dinov2_vitb14": f"{CAVEAT} {BESIDE_DREAMSIM} {NOT_PROVED}",
}

# Embeddings (N, D) of any floating point type -> (N, D)
Step = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Transform:
    """`weights` (D, D), `bias` (D,), `mean` and `std` numbers, all float64."""

    weights: np.ndarray
    bias: np.ndarray
    mean: float
    std: float

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, D) float32, computed in float64."""
        values = (embeddings.astype(np.float64) - self.mean) / self.std
        return (values @ self.weights + self.bias).astype(np.float32)


def read_transform(path: Path) -> Transform:
    """Read a published transform without running code; InputError where it is not one."""
    arrays = _read_arrays(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    size = shapes["weights"][0] if shapes.get("weights") else 0

    expected = {"weights": (size, size), "bias": (size,), "mean": (), "std": ()}
    with_bias = {"bias": (size,)} | shapes  # a file may lack it
    all_numbers = all(array.dtype.kind == "f" for array in arrays.values())
    if with_bias != expected or not size or not all_numbers or not arrays["std"] > 0:
        contents = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"{path}: expected numbers: weights (D, D), mean and std alone, and maybe bias (D,), "
            f"got {contents or 'nothing'}; {HOW_TO_REPLACE}"
        )

    for name, array in arrays.items():
        n_wrong = (~np.isfinite(array)).sum()
        if n_wrong:
            raise InputError(
                f"{path}: {name} has {n_wrong} values that are not finite; {HOW_TO_MEND}"
            )

    return Transform(
        weights=arrays["weights"].astype(np.float64),
        bias=arrays.get("bias", np.zeros(size)).astype(np.float64),
        mean=float(arrays["mean"]),
        std=float(arrays["std"]),
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; InputError for the first one that cannot be read."""
    # An .npz file is a zip of .npy files.
    with open_zip(path, LARGEST_MEMBER) as archive:
        files = {
            name.removesuffix(".npy"): read_member(archive, name) for name in archive.namelist()
        }

    arrays = {}
    for name, data in files.items():
        try:
            arrays[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path}: {name} is not an array of numbers ({error}); {HOW_TO_MEND}"
            ) from error
    return arrays


def write_aligned(
    unaligned: Path,
    transform_file: Path,
    target: Path,
    caveat: str = CAVEAT,
    last_norm: nn.Module | None = None,
) -> None:
    """Write the aligned cache, computed from the unaligned one in seconds.

    gLocal transforms the CLS token after the last block. Where the unaligned cache lacks it, the
    aligned cache is empty and says why. Where the cache holds the token before the model's last
    LayerNorm, `last_norm` is that layer: the token passes it first. InputError where the transform
    is for embeddings of another size, or the result is not sound.
    """
    attributes, blocks = read_about(unaligned)
    if attributes.get("tokens") != "cls" or "last" not in blocks:
        setting = (
            "embed.tokens: cls" if attributes.get("tokens") != "cls" else "last among embed.blocks"
        )
        write_no_embeddings(
            target, f"gLocal transforms the CLS token after the last block, and needs {setting}"
        )
        return

    transform = read_transform(transform_file)
    cache = read_embeddings(unaligned, "last")
    size = cache.values.shape[1]
    if size != len(transform.weights):
        raise InputError(
            f"{transform_file}: transforms embeddings of {len(transform.weights)} numbers, and "
            f"those of {unaligned} have {size}; {HOW_TO_REPLACE}"
        )

    def align(embeddings: np.ndarray) -> np.ndarray:
        return transform(embeddings if last_norm is None else _normalise(embeddings, last_norm))

    # A block of a degraded view is called `<view>/last`.
    views = [ORIGINAL, *(name.removesuffix("/last") for name in blocks if name.endswith("/last"))]
    aligned = []
    for view in views:
        name = "last" if view == ORIGINAL else f"{view}/last"
        values, measures = _align_view(unaligned, view, align)
        health.check(
            measures,
            f"{target} (from {transform_file.name}): block {name}",
            tells_images_apart=view == ORIGINAL,
        )
        token = "CLS token after the last LayerNorm" if last_norm else blocks[name]["feature"]
        aligned.append((name, values, measures | {"feature": f"{token}, transformed by gLocal"}))

    transform_notes = {"transform": transform_file.name, "sha256": sha256(transform_file)}
    attributes |= {
        "encoder": "aligned",
        "alignment": "glocal",
        "aligned_by": json.dumps(transform_notes, sort_keys=True),
        "caveat": caveat,
        "only": "gLocal transforms the last block alone",
    }
    write_embeddings(target, list(cache.image_ids), aligned, attributes)


@torch.inference_mode()
def _normalise(embeddings: np.ndarray, norm: nn.Module) -> np.ndarray:
    """(N, D) -> (N, D) float64."""
    return copy.deepcopy(norm).double()(torch.from_numpy(embeddings).double()).numpy()


def _align_view(unaligned: Path, view: str, align: Step) -> tuple[np.ndarray, health.Health]:
    """The aligned embeddings of a view, (N, D) float32, and their health."""
    before = read_embeddings(unaligned, "last", view, view).values
    values = align(before)

    rows = np.unique(np.linspace(0, len(values) - 1, N_REFERENCE_ROWS).astype(int))
    reference = np.concatenate([align(before[[row]]) for row in rows])
    return values, health.measure(values, rows, reference)
