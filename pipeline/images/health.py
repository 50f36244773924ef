"""Is an embedding cache sound? Measured before it is written, and only a sound one is."""

import numpy as np

from pipeline.errors import InputError

PAIRS = 10_000  # drawn at random, to see how alike the embeddings of different images are
COLLAPSED = 0.99  # median cosine of pairs above which the embeddings hardly depend on the image
SAME = 0.01  # largest share of rows that may repeat another one
# Least centred cosine with the recomputation: errors below 1 % of what tells images apart
AGREEMENT = 0.99

Health = dict[str, int | float]


def measure(values: np.ndarray, rows: np.ndarray, reference: np.ndarray) -> Health:
    """What `metrics/embeddings.json` says of embeddings (N, D), given a recomputation (M, D) of some rows (M,).

    `median_cosine` is that of random pairs. `reference_cosine` is the least one of a row with its recomputation, and
    `reference_cosine_centred` the same after the mean of all rows was taken from both: where all embeddings share a
    large part, the plain cosine is near one whatever the error.
    """
    generator = np.random.default_rng(0)
    first = generator.integers(len(values), size=PAIRS)
    second = (first + generator.integers(1, max(2, len(values)), size=PAIRS)) % len(values)
    mean = values.mean(axis=0, dtype=np.float64)
    return {
        "rows": len(values),
        "dimensions": values.shape[1],
        "non_finite": int((~np.isfinite(values)).sum()),
        "duplicates": len(values) - len(np.unique(values, axis=0)),
        "median_cosine": round(float(np.median(_cosine(values[first], values[second]))), 5),
        "reference_cosine": round(float(_cosine(values[rows], reference).min()), 5),
        "reference_cosine_centred": round(
            float(_cosine(values[rows] - mean, reference - mean).min()), 5
        ),
    }


def check(health: Health, name: str, tells_images_apart: bool) -> None:
    """InputError where a measure is out of bounds; early blocks need not tell images apart as a deep one must."""
    if health["non_finite"]:
        raise InputError(
            f"{name}: {health['non_finite']} values are not finite; set embed.precision to float32, or, if it is that, "
            "name another backbone: the numbers of this one grow too large"
        )
    if tells_images_apart and not health["median_cosine"] <= COLLAPSED:
        raise InputError(
            f"{name}: the embeddings of different images are nearly the same (median cosine "
            f"{health['median_cosine']:.4f}, expected at most {COLLAPSED}); see that the images "
            "are not all alike and that the weights are those of the backbone, or, if only early "
            "blocks are kept, add last to embed.blocks"
        )
    if tells_images_apart and health["duplicates"] > SAME * health["rows"]:
        raise InputError(
            f"{name}: {health['duplicates']} of {health['rows']} embeddings repeat another one, "
            f"expected at most {SAME:.0%}; see that the images differ, and that none has two names"
        )
    if not health["reference_cosine_centred"] >= AGREEMENT:
        raise InputError(
            f"{name}: the embeddings differ from a float32 recomputation on the CPU (centred "
            f"cosine {health['reference_cosine_centred']:.4f}, expected at least {AGREEMENT}); set "
            "embed.precision to float32, or, if it is that, embed.device to cpu"
        )


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(
        invalid="ignore"
    ):  # a zero row gives NaN; every check above is written so that NaN fails it
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
