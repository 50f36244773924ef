"""Ridge regression: scikit-learn's weights and penalty, by either system of equations, and the known answers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor

from pipeline.eeg_encoders import ridge
from pipeline.eeg_encoders.encoder import LinearFit
from pipeline.eeg_encoders.ridge import RATIOS, fit_ridge
from pipeline.errors import InputError


def draw(n: int, p: int, d: int = 7, noise: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, p) of unequal size with a mean, linear answers (n, d) with noise, and folds (n,)."""
    rng = np.random.default_rng([n, p])
    x = rng.standard_normal((n, p)) * np.geomspace(3, 0.1, p) + rng.standard_normal(p)
    y = x @ rng.standard_normal((p, d)) + noise * rng.standard_normal((n, d)) + 5
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(rng.permutation(n) % 3)


def fit(x: Tensor, y: Tensor, fold: Tensor, **options: tuple[float, ...]) -> LinearFit:
    probes = (fold == 0).nonzero()[:5, 0]
    return fit_ridge(lambda rows: (x[rows], y[rows]), fold, probes, **options)


def errors_by_loop(x: Tensor, y: Tensor, fold: Tensor, penalties: list[float]) -> list[float]:
    """The error of each penalty on held-out folds, by scikit-learn and a loop."""
    errors = []
    for penalty in penalties:
        held_out = [
            (y[fold == k] - torch.from_numpy(predict(x, y, fold, k, penalty))).square().sum().item()
            for k in range(3)
        ]
        errors.append(sum(held_out))
    return errors


def predict(x: Tensor, y: Tensor, fold: Tensor, k: int, penalty: float) -> np.ndarray:
    model = Ridge(alpha=penalty).fit(x[fold != k], y[fold != k])
    return model.predict(x[fold == k])


def mean_eigenvalue(x: Tensor) -> float:
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    return values[values > 1e-9 * values[0]].sum().item() / min(x.shape)


BOTH = pytest.mark.parametrize(
    ("n", "p"), [(90, 20), (60, 59), (30, 50)], ids=["features", "nearly square", "responses"]
)


@BOTH
def test_weights_and_penalty_are_those_of_scikit_learn(n, p, monkeypatch):
    monkeypatch.setattr(ridge, "VALUES_AT_ONCE", 11 * p)  # several parts, the last one smaller
    monkeypatch.setattr(ridge, "COLUMNS_AT_ONCE", 7)
    x, y, fold = draw(n, p)
    result = fit(x, y, fold)

    penalties = [ratio * mean_eigenvalue(x) for ratio in RATIOS]
    errors = errors_by_loop(x, y, fold, penalties)
    assert result.penalty == pytest.approx(penalties[int(np.argmin(errors))])
    assert 0 < np.argmin(errors) < len(RATIOS) - 1  # the data ask for a choice

    reference = Ridge(alpha=result.penalty).fit(x, y)
    np.testing.assert_allclose(result.weight, reference.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(result.bias, reference.intercept_, rtol=1e-8)

    total = sum((y[fold == k] - y[fold != k].mean(0)).square().sum().item() for k in range(3))
    assert result.r2 == pytest.approx(1 - min(errors) / total)

    without = predict(x, y, fold, 0, result.penalty)[:5]
    np.testing.assert_allclose(result.predictions, without, rtol=1e-8)


@BOTH
def test_the_penalty_is_that_of_ridge_cv_where_each_response_is_a_fold(n, p):
    """RidgeCV leaves one response out; its own error is of all data's mean, ours of the others' mean."""
    x, y, _ = draw(n, p)
    x, y = x - x.mean(0), y - y.mean(0)
    penalties = [ratio * mean_eigenvalue(x) for ratio in RATIOS]
    result = fit(x, y, torch.arange(n))
    assert result.penalty == pytest.approx(RidgeCV(penalties).fit(x, y).alpha_)


@BOTH
def test_single_precision_chooses_alike_and_is_near(n, p):
    x, y, fold = draw(n, p)
    exact = fit(x, y, fold)
    single = fit(x.float(), y.float(), fold)
    assert single.penalty == pytest.approx(exact.penalty, rel=1e-4)
    assert single.weight.dtype == torch.float32
    assert (single.weight - exact.weight).norm() < 1e-4 * exact.weight.norm()


def test_both_systems_of_equations_give_the_same():
    x, y, fold = draw(40, 39)
    by_features = ridge._ByFeatures(lambda rows: (x[rows], y[rows]), fold, 39)
    by_responses = ridge._ByResponses(lambda rows: (x[rows], y[rows]), fold, 39)
    for penalty in (0.1, 10.0, 1000.0):
        assert by_features.error(penalty) == pytest.approx(by_responses.error(penalty))
        for one, other in zip(by_features.solve(penalty), by_responses.solve(penalty), strict=True):
            torch.testing.assert_close(one, other)
    assert by_features.error_of_mean() == pytest.approx(by_responses.error_of_mean())


@pytest.mark.parametrize("n", [400, 90], ids=["features", "responses"])
def test_a_linear_truth_is_recovered(n):
    x, y, fold = draw(n, 100, noise=1e-6)
    weight = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0].T
    result = fit(x, y, fold, ratios=tuple(10.0**decade for decade in range(-9, 1)))
    if n > 100:
        np.testing.assert_allclose(result.weight, weight, atol=1e-4)
        assert result.r2 > 0.9999
    else:  # more unknowns than responses: not found, but what was seen is answered
        seen = x @ result.weight.T + result.bias
        assert (seen - y).square().mean() < 1e-6 * y.var()


def test_noise_gets_a_large_penalty_and_explains_nothing():
    x, _, fold = draw(200, 30)
    y = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 50)))
    result = fit(x, y, fold)
    assert result.penalty > 50 * mean_eigenvalue(x)
    assert abs(result.r2) < 0.01


@pytest.mark.parametrize(
    ("lowest", "seen"),
    [
        (1, [3, 2, 1, 0]),
        (3, [3, 2, 4]),
        (5, [3, 2, 4, 5, 6]),
        (0, [3, 2, 1, 0]),
        (9, [3, 2, 4, 5, 6]),
    ],
)
def test_the_search_goes_downhill_from_the_middle(lowest, seen):
    class Valley:
        asked: list[float] = []

        def error(self, penalty: float) -> float:
            self.asked.append(penalty)
            return abs(penalty - lowest)

    valley = Valley()
    valley.asked = []
    found = ridge._search(valley, [0, 1, 2, 3, 4, 5, 6])
    assert found == (min(lowest, 6), max(0, lowest - 6)) and valley.asked == seen


def test_equations_that_do_not_fit_into_memory_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(ridge, "free_memory", lambda: 1000)
    x, y, fold = draw(90, 20)
    with pytest.raises(InputError, match="ridge of 20 values a response and 90 responses needs"):
        fit(x, y, fold)


@BOTH
def test_eeg_that_does_not_vary_is_told(n, p):
    x, y, fold = draw(n, p)
    with pytest.raises(InputError, match="the training EEG is the same in all responses"):
        fit(torch.zeros_like(x), y, fold)
