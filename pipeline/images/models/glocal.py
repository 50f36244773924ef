"""gLocal: a linear transform of a model's last embedding, fitted on people's judgements (arXiv 2306.04507).

`(x - mean) / std @ weights`, and `+ bias` where there is one, as thingsvision's `align` applies it. It is computed from
the unaligned cache. The files are those of github.com/LukasMut/gLocal, transforms/<model>/<module>/transform.npz.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
CHECKED = 8  # rows that are computed again, each alone

REFUSED = {"dino_vitb16", "dino_vitb16_patch", "dinov2_vitb14", "dinov2_vitb14_patch"}
WHY_REFUSED = (
    "the transforms that gLocal publishes for DINO ViT-B/16 and DINOv2 ViT-B/14 are one and the same file, so that at "
    "least one is another model's, and both are refused; set alignment to dreamsim or name another backbone"
)
CAVEAT = (
    "gLocal's transform was fitted on people's judgements about the concepts of THINGS, the test concepts among them: "
    "the image model has seen people compare what the EEG is tested on."
)


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
    """Read a published transform, which runs no code; InputError where it is not one."""
    with open_zip(path, LARGEST_MEMBER) as archive:
        arrays = {
            name.removesuffix(".npy"): read_member(archive, name) for name in archive.namelist()
        }
    found = {}
    for name, data in arrays.items():
        try:
            found[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path}: {name} is not an array of numbers ({error}); {HOW_TO_MEND}"
            ) from error
    shapes = {name: array.shape for name, array in found.items()}
    size = shapes.get("weights", (0,))[0] if shapes.get("weights") else 0
    expected = {"weights": (size, size), "bias": (size,), "mean": (), "std": ()}
    numbers = all(array.dtype.kind == "f" for array in found.values())
    whole = shapes | {"bias": shapes.get("bias", (size,))}
    if whole != expected or not size or not numbers or not found["std"] > 0:
        raise InputError(
            f"{path}: expected numbers: weights (D, D), mean and std alone, and maybe bias (D,), "
            f"got {', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'nothing'}; "
            f"{HOW_TO_REPLACE}"
        )
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"{path}: {name} has {(~np.isfinite(array)).sum()} values that are not finite; {HOW_TO_MEND}"
            )
    values = {name: array.astype(np.float64) for name, array in found.items()}
    return Transform(
        values["weights"],
        values.get("bias", np.zeros(size)),
        float(values["mean"]),
        float(values["std"]),
    )


def write_aligned(unaligned: Path, transform_file: Path, target: Path) -> None:
    """Write the aligned cache from the unaligned one, in seconds; an empty one that says why where that has no meaning.

    The transform is that of the block `last` of the CLS token: other blocks are not in it. InputError where the
    transform is not for embeddings of that size.
    """
    made_with, blocks = read_about(unaligned)
    if made_with.get("tokens") != "cls" or "last" not in blocks:
        lacks = (
            "embed.tokens: cls" if made_with.get("tokens") != "cls" else "last among embed.blocks"
        )
        write_no_embeddings(
            target, f"gLocal transforms the CLS token after the last block, and needs {lacks}"
        )
        return
    views = [ORIGINAL, *(name.removesuffix("/last") for name in blocks if name.endswith("/last"))]
    transform, cached = read_transform(transform_file), read_embeddings(unaligned, "last")
    size = cached.values.shape[1]
    if size != len(transform.weights):
        raise InputError(
            f"{transform_file}: transforms embeddings of {len(transform.weights)} numbers, and "
            f"those of {unaligned} have {size}; {HOW_TO_REPLACE}"
        )
    rows = np.unique(np.linspace(0, len(cached.values) - 1, CHECKED).astype(int))
    aligned = []
    for view in views:
        name = "last" if view == ORIGINAL else f"{view}/last"
        before = read_embeddings(unaligned, "last", view, view).values
        values = transform(before)
        measured = health.measure(
            values, rows, np.concatenate([transform(before[[row]]) for row in rows])
        )
        health.check(
            measured,
            f"{target} (from {transform_file.name}): block {name}",
            tells_images_apart=view == ORIGINAL,
        )
        feature = f"{blocks[name]['feature']}, transformed by gLocal"
        aligned.append((name, values, measured | {"feature": feature}))
    made_with |= {
        "encoder": "aligned",
        "alignment": "glocal",
        "aligned_by": json.dumps(
            {"transform": transform_file.name, "sha256": sha256(transform_file)}, sort_keys=True
        ),
        "caveat": CAVEAT,
        "only": "gLocal transforms the last block alone",
    }
    write_embeddings(target, list(cached.image_ids), aligned, made_with)
