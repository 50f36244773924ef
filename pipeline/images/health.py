"""Is an embedding cache sound? Measured before it is written, and only a sound one is."""

import numpy as np
from scipy.stats import spearmanr

from pipeline.errors import InputError

N_PAIRS = 10_000  # drawn at random, to see how alike the embeddings of different images are
MOST_ALIKE = 0.99  # median cosine of pairs; above, the embeddings hardly depend on the image
MOST_DUPLICATES = 0.01  # largest share of rows that may repeat another one
# Least centred cosine with the reference: errors below 1 % of what tells images apart
AGREEMENT = 0.99

Health = dict[str, int | float]


def measure(values: np.ndarray, rows: np.ndarray, reference: np.ndarray) -> Health:
    """Measures of embeddings (N, D), for `metrics/embeddings.json`.

    `reference` (M, D) is the plain recomputation of some `rows` (M,). `median_cosine` is that of
    random pairs. `reference_cosine` is the lowest cosine of a row with its reference.
    `reference_cosine_centred` is the same after the mean of all rows was subtracted from both:
    where all embeddings share a large part, the plain cosine is near one whatever the error.
    """
    generator = np.random.default_rng(0)
    first = generator.integers(len(values), size=N_PAIRS)
    # Between 1 and N - 1 rows further, so that no image is paired with itself
    second = (first + generator.integers(1, max(2, len(values)), size=N_PAIRS)) % len(values)
    pair_cosines = _cosine(values[first], values[second])

    mean = values.mean(axis=0, dtype=np.float64)
    reference_cosines = _cosine(values[rows], reference)
    centred_cosines = _cosine(values[rows] - mean, reference - mean)
    return {
        "rows": len(values),
        "dimensions": values.shape[1],
        "non_finite": int((~np.isfinite(values)).sum()),
        "duplicates": len(values) - len(np.unique(values, axis=0)),
        "median_cosine": round(float(np.median(pair_cosines)), 5),
        "reference_cosine": round(float(reference_cosines.min()), 5),
        "reference_cosine_centred": round(float(centred_cosines.min()), 5),
    }


def check(health: Health, name: str, tells_images_apart: bool) -> None:
    """InputError where a measure is out of bounds; `name` says which block of which cache.

    Early blocks may be nearly the same for all images: for them, pass `tells_images_apart` False.
    The comparisons are written so that NaN is out of bounds.
    """
    if health["non_finite"]:
        raise InputError(
            f"{name}: {health['non_finite']} values are not finite; set embed.precision to "
            "float32, or, if it is that, name another backbone: the numbers of this one grow too "
            "large"
        )

    if tells_images_apart and not health["median_cosine"] <= MOST_ALIKE:
        raise InputError(
            f"{name}: the embeddings of different images are nearly the same (median cosine "
            f"{health['median_cosine']:.4f}, expected at most {MOST_ALIKE}); see that the images "
            "are not all alike and that the weights are those of the backbone, or, if only early "
            "blocks are kept, add last to embed.blocks"
        )
    if tells_images_apart and health["duplicates"] > MOST_DUPLICATES * health["rows"]:
        raise InputError(
            f"{name}: {health['duplicates']} of {health['rows']} embeddings repeat another one, "
            f"expected at most {MOST_DUPLICATES:.0%}; see that the images differ, and that none "
            "has two names"
        )

    if not health["reference_cosine_centred"] >= AGREEMENT:
        raise InputError(
            f"{name}: the embeddings differ from a float32 recomputation on the CPU (centred "
            f"cosine {health['reference_cosine_centred']:.4f}, expected at least {AGREEMENT}); set "
            "embed.precision to float32, or, if it is that, embed.device to cpu"
        )


def agreement_with_people(embeddings: np.ndarray, similarity: np.ndarray) -> float:
    """Whether the images that are alike for a model are alike for people: Spearman over all pairs.

    `embeddings` (N, D) are compared by cosine, `similarity` (N, N) is people's of the concepts.
    """
    values = embeddings.astype(np.float64)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    pairs = np.triu_indices(len(unit), 1)
    return round(float(spearmanr((unit @ unit.T)[pairs], similarity[pairs]).statistic), 5)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, float64; NaN where a row is zero."""
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
