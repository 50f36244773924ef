"""Random weights in the layouts of timm's SigLIP2 and of AligNet's.

The encoders are narrow, so that the sample dataset is embedded in minutes. As in
`stand_ins.dreamsim`, each number comes from one fixed seed, in float64 and rounded to float32.
"""

from pathlib import Path

import numpy as np
import safetensors.numpy

from pipeline.files import replacing
from pipeline.images.models.siglip2 import PREFIX, head_shapes
from pipeline.images.stand_ins.dreamsim import Weights, vit_weights

GRID = 14  # patches a side
SHARE = 0.3  # size of AligNet's change, relative to the weights that it changes


def make_files(file: str, aligned_file: str, folder: Path, width: int = 64) -> None:
    """Write `folder`/`file`, SigLIP2 with width / 64 heads, and `folder`/`aligned_file`."""
    rng = np.random.default_rng([20240, *b"weights"])
    weights = vit_weights(width, 16, GRID, rng)
    del weights["cls_token"]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    weights |= _pooling_weights(width, rng)
    _save(folder / file, weights)

    aligned = {}
    for name, value in weights.items():
        change = SHARE * value.std() * rng.standard_normal(value.shape)
        aligned[f"{PREFIX}{name}"] = value + change
    for name, shape in head_shapes(width).items():
        aligned[name] = rng.standard_normal(shape)
    _save(folder / aligned_file, aligned)


def _pooling_weights(width: int, rng: np.random.Generator) -> Weights:
    """Attention pooling whose query looks at different places in different images."""
    shapes = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}

    weights = {"attn_pool.latent": rng.standard_normal((1, 1, width))}
    for layer, (n_out, n_in) in shapes.items():
        matrix = 1.5 * rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)
        weights[f"attn_pool.{layer}.weight"] = matrix
        weights[f"attn_pool.{layer}.bias"] = np.zeros(n_out)
    weights["attn_pool.norm.weight"] = np.ones(width)
    weights["attn_pool.norm.bias"] = np.zeros(width)
    return weights


def _save(target: Path, weights: Weights) -> None:
    arrays = {name: value.astype(np.float32) for name, value in weights.items()}
    with replacing(target) as part:
        part.write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))
