import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, nct, t

import stages.power
from pipeline.compare.power import (
    Design,
    design_of,
    least_difference,
    power,
    scaled,
    subjects_needed,
    uncertain_factors,
)
from pipeline.compare.variances import correlation_over_seeds, variance_components
from pipeline.errors import InputError
from pipeline.evaluate.statistics import (
    Variance,
    t_test,
    variance_of_mean,
    variance_over_seeds,
)

COMPONENTS = {
    "seeds": 0.0004,
    "subjects": 0.0015,
    "test images": 0.02,
    "seeds x subjects": 0.0002,
    "seeds x test images": 0.03,
    "subjects x test images": 0.02,
    "seeds x subjects x test images": 0.2,
}
POOLED = Design("pooled", 3, 10, 200, COMPONENTS, 0.5)


def of_protocol(protocol: str) -> Design:
    """Where each subject has seeds of its own, seeds bring nothing to all subjects."""
    components = {
        name: component
        for name, component in COMPONENTS.items()
        if protocol == "pooled" or "seeds" not in name or "subjects" in name
    }
    return replace(POOLED, protocol=protocol, components=components)


def draw(rng: np.random.Generator, n_seeds: int, n_subjects: int, n_images: int) -> np.ndarray:
    """Crossed effects with the variances of COMPONENTS."""
    shape = {"seeds": n_seeds, "subjects": n_subjects, "test images": n_images}
    values = np.zeros(tuple(shape.values()))
    for name, component in COMPONENTS.items():
        levels = [n if factor in name.split(" x ") else 1 for factor, n in shape.items()]
        values = values + component**0.5 * rng.standard_normal(levels)
    return values


def test_the_components_are_those_of_the_analysis_of_variance_by_hand():
    """Two factors: the mean square of each less that of both, by the number of values alike."""
    scores = np.random.default_rng(0).normal(0, 1, (8, 30))
    scores += np.linspace(-2, 2, 8)[:, None] + np.linspace(-1, 1, 30)
    by_subject, by_image = scores.mean(1), scores.mean(0)
    rest = scores - by_subject[:, None] - by_image + scores.mean()
    both = (rest**2).sum() / (7 * 29)
    components = variance_components(scores[None], models_are_shared=True)
    assert components["subjects"] == pytest.approx((30 * by_subject.var(ddof=1) - both) / 30)
    assert components["test images"] == pytest.approx((8 * by_image.var(ddof=1) - both) / 8)
    assert components["subjects x test images"] == pytest.approx(both)
    assert components["seeds"] is None and components["seeds x subjects x test images"] is None


def test_planted_components_are_found():
    rng = np.random.default_rng(1)
    found = [variance_components(draw(rng, 8, 12, 60), True) for _ in range(60)]
    for name, component in COMPONENTS.items():
        values = np.array([components[name] for components in found])
        error = values.std(ddof=1) / len(values) ** 0.5
        # Cut at zero, so rather too large.
        assert component - 4 * error < values.mean() < component + 4 * error + 0.0003


def test_seeds_of_one_subject_each_are_within_the_subjects():
    rng = np.random.default_rng(2)
    of_subjects = rng.normal(0, 0.3, (1, 400, 1))
    of_seeds = rng.normal(0, 0.2, (3, 400, 1))
    values = of_subjects + of_seeds + rng.normal(0, 1, (3, 400, 20))
    components = variance_components(values, models_are_shared=False)
    assert set(components) == {
        "subjects",
        "test images",
        "seeds x subjects",
        "subjects x test images",
        "seeds x subjects x test images",
    }
    assert components["seeds x subjects"] == pytest.approx(0.04, abs=0.01)
    assert components["subjects"] == pytest.approx(0.09, abs=0.015)
    assert components["seeds x subjects x test images"] == pytest.approx(1, abs=0.03)


def missing_power(critical: float, error: float, difference: float) -> float:
    return float(nct.sf(critical, 9, difference / error)) - 0.8


def test_one_source_of_variation_gives_the_power_of_students_test():
    """Ten subjects whose differences have an sd of 4.1 and 3.4 points, as those of real trainings."""
    for sd in (0.041, 0.034):
        design = Design("within-subject", 1, 10, 200, {"subjects": sd**2}, 0.0)
        critical = t.ppf(0.975, 9)
        for difference in (0.01, 0.03, 0.05):
            exact = nct.sf(critical, 9, difference / (sd / 10**0.5))
            assert power(design, difference) == pytest.approx(exact)
        missing = partial(missing_power, critical, sd / 10**0.5)
        least = brentq(missing, 0.001, 0.2)
        assert least_difference(design) == pytest.approx(least, abs=1e-5)
        assert round(100 * least, 1) == (4.1 if sd == 0.041 else 3.4)


def test_power_grows_with_all_that_there_is_more_of():
    for protocol in ("pooled", "within-subject", "leave-one-subject-out"):
        design = of_protocol(protocol)
        for name in ("n_seeds", "n_subjects", "n_images"):
            powers = [power(replace(design, **{name: n}), 0.03) for n in (4, 8, 16, 64)]
            assert powers == sorted(powers) and powers[0] < powers[-1]
        powers = [power(design, difference) for difference in (0.0, 0.02, 0.05, 0.2)]
        assert powers == sorted(powers) and powers[0] < 0.026 and powers[-1] > 0.99
        assert power(scaled(design, 2), 0.04) < power(design, 0.04)
    assert power(of_protocol("leave-one-subject-out"), 0.04) < power(
        of_protocol("within-subject"), 0.04
    )


def test_the_predicted_power_is_what_the_test_finds():
    """Planted differences in crossed effects, and the share of them that the test claims."""
    rng, difference, n, found = np.random.default_rng(3), 0.045, 500, 0
    # What a seed brings to the mean of one seed; both sides share as much of their luck as gives 0.5.
    of_a_seed = 0.0004 + 0.0002 / 10 + 0.03 / 200 + 0.2 / 2000
    for _ in range(n):
        values = draw(rng, 3, 10, 200) + difference
        shared, own = (0.75 * of_a_seed) ** 0.5 * rng.standard_normal(3), values.mean((1, 2)) / 2

        by_subject, by_image, pairs = values.mean((0, 2)), values.mean((0, 1)), values.mean(0)
        rest = pairs - by_subject[:, None] - by_image + pairs.mean()
        parts = [
            variance_of_mean(by_subject),
            variance_of_mean(by_image),
            Variance(-(rest**2).sum() / (9 * 199) / 2000, np.inf),
            variance_over_seeds(shared - own, shared + own),
        ]
        found += t_test(values.mean(), parts)[1] <= 0.05
    low, high = binomtest(found, n).proportion_ci(0.99)
    assert low < power(POOLED, difference) < high


def test_the_number_of_subjects_is_the_least_that_suffices():
    design = replace(POOLED, n_seeds=10)
    for difference in (0.04, 0.05, 0.06):
        needed = subjects_needed(design, difference)
        assert power(replace(design, n_subjects=needed), difference) >= 0.8
        assert power(replace(design, n_subjects=needed - 1), difference) < 0.8
    assert subjects_needed(design, 0.1) == 6  # fewer speak for no others
    # Images and seeds alone vary too much.
    assert subjects_needed(POOLED, 0.02) is None
    assert subjects_needed(scaled(POOLED, 0), 0.02) == 6


def test_few_seeds_leave_the_variances_uncertain():
    low, high = uncertain_factors(POOLED)
    assert low < 1 < high
    more = uncertain_factors(replace(POOLED, n_seeds=20, n_subjects=60))
    assert low < more[0] < 1 < more[1] < high


def test_the_correlation_over_seeds():
    first, second = np.random.default_rng(0).normal(0, 1, (2, 6))
    expected = np.corrcoef(first, second)[0, 1]
    assert correlation_over_seeds(first, second) == pytest.approx(expected)
    assert correlation_over_seeds(first[:1], second[:1]) is None
    assert correlation_over_seeds(np.ones(6), second) is None


def comparison(**changes: object) -> dict:
    names = [f"sub-{i:02}" for i in range(1, 11)]
    return {
        "protocol": "pooled",
        "subjects": names,
        "seeds": [1, 2, 3],
        "n_way": 200,
        "selected_on": "validation",
        "synthetic": True,
        "variances": COMPONENTS,
        "seed_correlation": 0.5,
    } | changes


def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(comparison(**changes)))
    assert stages.power.main(path) == ""
    return " ".join(capsys.readouterr().out.split())


def test_the_table_of_seeds_and_subjects(tmp_path, capsys):
    text = printed(tmp_path, capsys)
    assert "Subjects that find a difference with 80 % power: pooled, 200 test images" in text
    assert "seeds 2 points 5 points 10 points found with 10 subjects" in text
    for n_seeds in (5, 10):
        needed = subjects_needed(replace(POOLED, n_seeds=n_seeds), 0.05)
        assert f" {n_seeds} over 200 {needed} (" in text
    assert " 3 over 200 over 200 6 (" in text and "6.2 points" in text
    assert "They come from 3 seeds and 10 subjects" in text
    assert "The data are synthetic" in text and "twice" not in text


def test_one_seed_cannot_tell_what_seeds_bring(tmp_path, capsys):
    with pytest.raises(InputError, match="one seed, which cannot tell how much seeds vary"):
        printed(tmp_path, capsys, seeds=[1])

    of_subjects = {name: value for name, value in COMPONENTS.items() if "seeds" not in name}
    changes = {"protocol": "leave-one-subject-out", "seeds": [1], "variances": of_subjects}
    text = printed(tmp_path, capsys, **changes, seed_correlation=None)
    assert "cannot be told from one seed" in text and "about twice the variance" in text
    assert " 3 " not in text.split("It holds")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": ["sub-01"]}, "has one subject, which tells nothing about others"),
        ({"seeds": [1], "without_seeds": ["a", "b"]}, "neither side of the comparison has seeds"),
        ({"protocol": None, "variances": 3}, "holds no comparison .*run `make compare SEEDS=3`"),
    ],
)
def test_what_cannot_be_planned_from_is_told(tmp_path, capsys, changes, message):
    with pytest.raises(InputError, match=message):
        printed(tmp_path, capsys, **changes)


def test_an_older_comparison_is_told(tmp_path):
    older = {name: value for name, value in comparison().items() if name != "variances"}
    with pytest.raises(InputError, match="holds no variances: it is of an older version"):
        design_of(older)
    with pytest.raises(InputError, match="holds no comparison"):
        stages.power.main(tmp_path / "none.json")
