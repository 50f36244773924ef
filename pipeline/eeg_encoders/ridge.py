"""Ridge regression from the EEG onto the image embeddings: the baseline that has no seeds.

Hoerl and Kennard 1970, doi 10.1080/00401706.1970.10488634. The weights W (p, D) and the bias b (D,)
are those with the least sum of |y - x W - b|^2 + penalty * |W|^2, where x (p,) is a response, a
number a channel and sample, and y (D,) the embedding of the image that was seen. The penalty is
the one of `RATIOS` with the least squared error on responses to held-out concepts.

The same weights come from two systems of equations: one of p features, or one of n responses. The
smaller one is solved.

Axes: n responses, p features, D dimensions of the embeddings, m probes.
"""

from typing import Protocol

import torch
from torch import Tensor

from pipeline.compute.machine import free_memory
from pipeline.eeg_encoders.encoder import LinearFit, ReadPairs
from pipeline.eeg_encoders.flatten import Flatten
from pipeline.errors import InputError

# Penalties, as multiples of the mean eigenvalue of the products of the centred features
RATIOS = tuple(10.0**decade for decade in range(-2, 5))
VALUES_AT_ONCE = 1 << 24  # values of EEG that are in memory as features
COLUMNS_AT_ONCE = 256  # of the features' products, of which one half is computed
# Matrices of all equations that are in memory at once
BY_FEATURES = 6  # three folds, their sum, and two to solve it
BY_RESPONSES = 3  # the products, and two to solve them


class Ridge(Flatten):
    """EEG (..., B, C, T) float -> (..., B, C * T); its weights follow in the model, as one Linear.

    They are not learned step by step: `fit` finds them at once. Nothing in it is random.
    """

    stackable = False
    closed_form = True

    @staticmethod
    def fit(read: ReadPairs, fold: Tensor, probes: Tensor) -> LinearFit:
        return fit_ridge(read, fold, probes)


def fit_ridge(
    read: ReadPairs, fold: Tensor, probes: Tensor, ratios: tuple[float, ...] = RATIOS
) -> LinearFit:
    """Ridge regression, with the penalty that has the least error on held-out folds.

    `read` gives features (b, p) and embeddings (b, D) of any b of the n responses, float32 or
    float64, which is the precision of all that follows. `fold` (n,) int64 is the fold of each
    response, from 0. `probes` (m,) are responses of fold 0, for which the result has predictions
    by weights that did not see that fold.

    The error is looked at downhill: from the middle of `ratios` on until it rises.
    InputError where the equations do not fit into memory, or the features do not vary.
    """
    first, _ = read(torch.zeros(1, dtype=torch.long))
    n_features = first.shape[1]
    few_features = n_features < len(fold)
    _check_memory(few_features, len(fold), first)

    system = (_ByFeatures if few_features else _ByResponses)(read, fold, n_features)
    if not system.mean_eigenvalue > 0:
        raise InputError(
            "the training EEG is the same in all responses, and ridge finds nothing in it: look at "
            "the recordings, and at train.eeg_window"
        )
    penalty, error = _search(system, [ratio * system.mean_eigenvalue for ratio in ratios])
    weight, bias = system.solve(penalty)
    return LinearFit(
        weight.T.contiguous(),
        bias,
        penalty,
        r2=1 - error / system.error_of_mean(),
        predictions=system.predict_held_out(probes, penalty),
    )


def _check_memory(few_features: bool, n_responses: int, x: Tensor) -> None:
    """InputError where the equations for features x (b, p) do not fit into memory."""
    numbers = BY_FEATURES * x.shape[1] ** 2 if few_features else BY_RESPONSES * n_responses**2
    needed = numbers * x.element_size()
    free = torch.cuda.mem_get_info(x.device)[0] if x.is_cuda else free_memory()
    if needed > free:
        raise InputError(
            f"ridge of {x.shape[1]} values a response and {n_responses} responses needs "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: narrow "
            "train.eeg_window or preprocess.window, name fewer channels in preprocess.channels, "
            "or lower runs.workers"
        )


class _System(Protocol):
    """The equations that ridge solves.

    `mean_eigenvalue` is that of the centred features' products, over those that are not zero.
    """

    mean_eigenvalue: float

    def error(self, penalty: float) -> float:
        """The squared error on each fold, by weights of the other folds: summed over all."""

    def error_of_mean(self) -> float:
        """The same of the mean embedding as the only answer."""

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weights (p, D) and bias (D,) of all responses."""

    def predict_held_out(self, probes: Tensor, penalty: float) -> Tensor:
        """Predictions (m, D) of responses of fold 0, by weights of the other folds.

        The error of this penalty is known.
        """


def _search(system: _System, penalties: list[float]) -> tuple[float, float]:
    """The penalty with the least error, and that error: from the middle one on downhill."""
    best = len(penalties) // 2
    error = system.error(penalties[best])
    for step in (-1, 1):
        first = best
        while 0 <= best + step < len(penalties):
            next_error = system.error(penalties[best + step])
            if next_error >= error:
                break
            best += step
            error = next_error
        if best != first:  # the other way is uphill
            break
    return penalties[best], error


def _solve(matrix: Tensor, right: Tensor, penalty: float) -> Tensor | None:
    """(matrix + penalty * 1)^-1 right; None where that is singular to rounding.

    `matrix` is symmetric and is overwritten.
    """
    matrix.diagonal().add_(penalty)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else torch.cholesky_solve(right, lower)


def _dot(a: Tensor, b: Tensor) -> float:
    """The sum of products, in float64."""
    return (a * b).sum(dtype=torch.float64).item()


class _Sums:
    """Sums over some responses x (p,) and embeddings y (D,), and over their products."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        """All zero; `x` (b, p) and `y` (b, D) tell sizes, precision and device."""
        p = x.shape[1]
        self.n = 0
        self.x = x.new_zeros(p)
        self.y = x.new_zeros(y.shape[1])
        self.xx = x.new_zeros(p, p)
        self.xy = x.new_zeros(p, y.shape[1])
        self.yy = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xy.addmm_(x.T, y)
        self.yy += _dot(y, y)

        # Symmetric: from the diagonal on. `mirror` does the rest
        for first in range(0, x.shape[1], COLUMNS_AT_ONCE):
            columns = slice(first, first + COLUMNS_AT_ONCE)
            self.xx[columns, first:].addmm_(x[:, columns].T, x[:, first:])

    def mirror(self) -> None:
        for first in range(0, len(self.xx), COLUMNS_AT_ONCE):
            last = first + COLUMNS_AT_ONCE
            self.xx[last:, first:last] = self.xx[first:last, last:].T

    def squared_error(self, weight: Tensor, bias: Tensor) -> float:
        """The sum of |y - x weight - bias|^2, without a look at any response."""
        of_weight = self._squared_predictions(weight) - 2 * _dot(weight, self.xy)
        of_both = 2 * _dot(bias, self.x @ weight)
        return self.squared_error_of(bias) + of_weight + of_both

    def squared_error_of(self, constant: Tensor) -> float:
        """The sum of |y - constant|^2."""
        return self.yy - 2 * _dot(constant, self.y) + self.n * _dot(constant, constant)

    def _squared_predictions(self, weight: Tensor) -> float:
        """The sum of |x weight|^2."""
        total = 0.0
        for first in range(0, len(self.xx), COLUMNS_AT_ONCE):
            columns = slice(first, first + COLUMNS_AT_ONCE)
            right = slice(first + COLUMNS_AT_ONCE, None)
            total += _dot(weight[columns], self.xx[columns, columns] @ weight[columns])
            # The products left of the diagonal are those right of it
            total += 2 * _dot(weight[columns], self.xx[columns, right] @ weight[right])
        return total


class _ByFeatures:
    """p equations, for fewer features than responses. Holds p x p sums of each fold."""

    def __init__(self, read: ReadPairs, fold: Tensor, n_features: int) -> None:
        self._read = read
        self._n_features = n_features
        self._without_first: dict[float, tuple[Tensor, Tensor]] = {}  # by penalty
        self._folds = [self._sum(rows) for rows in _rows_by_fold(fold)]
        self._all = _Sums(*read(torch.zeros(1, dtype=torch.long)))
        for sums in self._folds:
            self._all.n += sums.n
            self._all.yy += sums.yy
            for name in ("x", "y", "xx", "xy"):
                getattr(self._all, name).add_(getattr(sums, name))

        mean = self._all.x / self._all.n
        trace = self._all.xx.diagonal().sum() - self._all.n * mean.square().sum()
        self.mean_eigenvalue = trace.item() / len(mean)

    def _sum(self, rows: Tensor) -> _Sums:
        sums = None
        for part in _split(rows, self._n_features):
            x, y = self._read(part)
            sums = sums or _Sums(x, y)
            sums.add(x, y)
        assert sums is not None  # no fold is empty
        sums.mirror()
        return sums

    def error(self, penalty: float) -> float:
        total = 0.0
        for k, sums in enumerate(self._folds):
            solution = self._solve(penalty, without=sums)
            if solution is None:
                return torch.inf
            total += sums.squared_error(*solution)
            if k == 0:
                self._without_first[penalty] = solution
        return total

    def error_of_mean(self) -> float:
        total = 0.0
        for sums in self._folds:
            mean = (self._all.y - sums.y) / (self._all.n - sums.n)
            total += sums.squared_error_of(mean)
        return total

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        solution = self._solve(penalty)
        assert solution is not None  # it was solved for fewer responses before
        return solution

    def _solve(self, penalty: float, without: _Sums | None = None) -> tuple[Tensor, Tensor] | None:
        """Weights and bias of all responses, or of all but those of a fold."""
        n, x, y = self._all.n, self._all.x, self._all.y
        xx, xy = self._all.xx.clone(), self._all.xy.clone()
        if without is not None:
            n, x, y = n - without.n, x - without.x, y - without.y
            xx -= without.xx
            xy -= without.xy

        # Around the mean response and embedding: so the bias is not penalised
        weight = _solve(xx.addr_(x, x / n, alpha=-1), xy.addr_(x, y / n, alpha=-1), penalty)
        return None if weight is None else (weight, (y - x @ weight) / n)

    def predict_held_out(self, probes: Tensor, penalty: float) -> Tensor:
        weight, bias = self._without_first[penalty]
        parts = _split(probes, self._n_features)
        return torch.cat([self._read(part)[0] @ weight + bias for part in parts])


class _ByResponses:
    """n equations, for as many features as responses or more. Holds n x n products."""

    def __init__(self, read: ReadPairs, fold: Tensor, n_features: int) -> None:
        self._read = read
        self._n_features = n_features
        self._parts = _split(torch.arange(len(fold)), n_features)
        self._rows_by_fold = _rows_by_fold(fold)
        self._y = torch.cat([read(part)[1] for part in self._parts])

        n = len(fold)
        self._xx = self._y.new_empty(n, n)
        for i, rows in enumerate(self._parts):
            x = read(rows)[0]
            for columns in self._parts[i:]:
                x_of_columns = x if columns is rows else read(columns)[0]
                block = x @ x_of_columns.T
                self._xx[rows[:, None], columns] = block
                self._xx[columns[:, None], rows] = block.T

        trace = self._xx.diagonal().sum() - self._xx.mean(0).sum()
        self.mean_eigenvalue = trace.item() / n

    def error(self, penalty: float) -> float:
        total = 0.0
        for rows in self._rows_by_fold:
            predicted = self._predict(rows, self._all_but(rows), penalty)
            if predicted is None:
                return torch.inf
            missed = self._y[rows] - predicted
            total += _dot(missed, missed)
        return total

    def error_of_mean(self) -> float:
        total = 0.0
        for rows in self._rows_by_fold:
            missed = self._y[rows] - self._y[self._all_but(rows)].mean(0)
            total += _dot(missed, missed)
        return total

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        dual = self._solve(torch.arange(len(self._y)), penalty)
        assert dual is not None
        weight = self._y.new_zeros(self._n_features, self._y.shape[1])
        sum_x = self._y.new_zeros(self._n_features)
        for rows in self._parts:
            x = self._read(rows)[0]
            weight.addmm_(x.T, dual[rows])
            sum_x += x.sum(0)
        return weight, self._y.mean(0) - (sum_x / len(dual)) @ weight

    def predict_held_out(self, probes: Tensor, penalty: float) -> Tensor:
        predicted = self._predict(probes, self._all_but(self._rows_by_fold[0]), penalty)
        assert predicted is not None
        return predicted

    def _all_but(self, rows: Tensor) -> Tensor:
        mask = torch.ones(len(self._y), dtype=torch.bool)
        mask[rows] = False
        return mask.nonzero()[:, 0]

    def _solve(self, rows: Tensor, penalty: float) -> Tensor | None:
        """The weight of each of these responses, (n, D): 0 together in each dimension."""
        xx = self._xx[rows[:, None], rows]
        mean = xx.mean(0)
        y = self._y[rows]
        xx -= mean
        xx -= mean[:, None] - mean.mean()
        dual = _solve(xx, y - y.mean(0), penalty)
        return None if dual is None else dual - dual.mean(0)

    def _predict(self, rows: Tensor, training: Tensor, penalty: float) -> Tensor | None:
        """Predictions for some responses, by weights of the `training` ones."""
        dual = self._solve(training, penalty)
        if dual is None:
            return None
        mean = self._xx[training[:, None], training].mean(0)
        return (self._xx[rows[:, None], training] - mean) @ dual + self._y[training].mean(0)


def _rows_by_fold(fold: Tensor) -> list[Tensor]:
    return [(fold == number).nonzero()[:, 0] for number in range(int(fold.max()) + 1)]


def _split(rows: Tensor, n_features: int) -> tuple[Tensor, ...]:
    """Rows in parts of `VALUES_AT_ONCE`."""
    return rows.split(max(1, VALUES_AT_ONCE // n_features))
