"""What each factor of a comparison adds to the variance of one paired difference.

The difference of one seed, subject and test image is right - right, so -1, 0 or 1. Its variance
is a sum of components, one for each factor and one for each set of factors together. They are
estimated from the mean squares of the analysis of variance (Cornfield and Tukey 1956,
doi 10.1214/aoms/1177728067). In a mean over R seeds, S subjects and N images each component is
divided by the number of its levels: that tells what another design would find.

Axes: R seeds, S subjects, N test images.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

SEEDS = "seeds"
SUBJECTS = "subjects"
IMAGES = "test images"
FACTORS = (SEEDS, SUBJECTS, IMAGES)
SEPARATOR = " x "


def variance_components(
    differences: np.ndarray, models_are_shared: bool
) -> dict[str, float | None]:
    """The components by name, such as `seeds` and `seeds x subjects`, from `differences` (R, S, N).

    With `models_are_shared` a seed is one model for all subjects. Else seed 1 of one subject has
    nothing in common with seed 1 of another one: there are no components `seeds` and `seeds x test
    images`, and `seeds x subjects` is all that the seeds of a subject bring.

    No component is below 0. One that has a factor of a single level cannot be told and is None:
    what it adds is within the others, for that level alone.
    """
    components: dict[str, float | None] = {}
    for factors in _subsets(range(3)):
        if any(differences.shape[axis] == 1 for axis in factors):
            component = None
        elif models_are_shared:
            component = _crossed_component(differences, factors)
        else:
            component = _nested_component(differences, factors)

        of_all_subjects = 0 in factors and 1 not in factors
        if models_are_shared or not of_all_subjects:
            name = SEPARATOR.join(FACTORS[axis] for axis in factors)
            # An estimate may be negative, and a variance is not.
            components[name] = None if component is None else max(0.0, component)
    return components


def correlation_over_seeds(baseline: np.ndarray, other: np.ndarray) -> float | None:
    """How much both sides (R,) share the luck of a seed; None if R is 1 or a side does not vary."""
    if len(baseline) < 2 or not np.ptp(baseline) or not np.ptp(other):
        return None
    return float(np.corrcoef(baseline, other)[0, 1])


def _crossed_component(differences: np.ndarray, factors: tuple[int, ...]) -> float:
    """The component of these axes, where all are crossed.

    A mean square holds the components of all sets of factors around its own. Alternating signs
    leave its own, times the number of values with the same levels of these factors.
    """
    several = [axis for axis in range(3) if differences.shape[axis] > 1]
    squares = sum(
        (-1) ** (len(around) - len(factors)) * _mean_square(differences, around)
        for around in _subsets(several)
        if set(factors) <= set(around)
    )
    n_alike = differences.size / np.prod([differences.shape[axis] for axis in factors])
    return float(squares / n_alike)


def _nested_component(differences: np.ndarray, factors: tuple[int, ...]) -> float:
    """The component of these axes, where each subject has seeds of its own."""
    n_seeds, n_subjects, _ = differences.shape
    if 0 in factors:
        # The seeds within each subject, and the mean over subjects.
        within = [differences[:, [subject]] for subject in range(n_subjects)]
        axes = tuple(axis for axis in factors if axis != 1)
        return float(np.mean([_crossed_component(values, axes) for values in within]))

    component = _crossed_component(differences.mean(0)[None], factors)
    if 1 in factors and n_seeds > 1:
        # The mean over few seeds still holds some of them.
        component -= _nested_component(differences, (0, *factors)) / n_seeds
    return component


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets but the empty one, the small ones first."""
    return [subset for size in range(1, len(axes) + 1) for subset in combinations(axes, size)]


def _mean_square(values: np.ndarray, axes: tuple[int, ...]) -> float:
    """The mean square of the interaction of these axes; of one axis, that between its levels."""
    averaged = tuple(axis for axis in range(values.ndim) if axis not in axes)
    effect = values.mean(averaged, keepdims=True)
    for axis in axes:
        effect = effect - effect.mean(axis, keepdims=True)

    df = np.prod([values.shape[axis] - 1 for axis in axes])
    n_alike = np.prod([values.shape[axis] for axis in averaged])
    return float(n_alike * np.square(effect).sum() / df)
