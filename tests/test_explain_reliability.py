import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluate.masking import average_groups, average_some
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.reliability import (
    across_subjects,
    as_vectors,
    find,
    half_sizes,
    measure_halves,
    tabulate_reliability,
)
from pipeline.params import read_params
from pipeline.preprocess.normalisation import normalise
from pipeline.train.model import ContrastiveModel, ModelSizes

N, R, C, T = 30, 12, 4, 70
SIZES = [1, 2, 6]
DRAWS = 4


def responses(strength: float, subject: int, n_images: int = N, shared: bool = True) -> np.ndarray:
    """EEG (N, R, C, T): a pattern for each image, which subjects share or do not, and white noise."""
    of_pattern = np.random.default_rng(0 if shared else 100 + subject)
    pattern = of_pattern.standard_normal((n_images, 1, C, T))
    noise = np.random.default_rng([1, subject]).standard_normal((n_images, R, C, T))
    return (strength * pattern + noise).astype(np.float32)


def models(*folds: tuple[str, int, list[str]]) -> list:
    """An untrained model of its own for each fold, seed and subjects tested."""
    recipe = read_params(Path("params.yaml")).train
    loaded = []
    for number, (fold, seed, subjects) in enumerate(folds):
        torch.manual_seed(number)
        model = ContrastiveModel(ModelSizes(C, T, 100.0, 6), recipe).eval()
        loaded.append((model, {"fold": fold, "seed": seed, "tested_on": subjects}))
    return loaded


def halves(eeg: np.ndarray, subject: str = "sub-01", by: list | None = None, **changes: object):
    by = by or models(("pooled", 1, [subject]))
    arguments = {"to_normalise": False, "models": by, "sizes": SIZES, "draws": DRAWS, "seed": 3}
    return measure_halves(subject, eeg, **arguments | changes)


def plain_retrieval(first: np.ndarray, second: np.ndarray) -> float:
    """Loops in place of matrices: how often the correlation of two responses is the highest."""
    patterns = []
    for half in (first, second):
        centred = half - half.mean(0)
        sd = [np.sqrt((centred[:, c] ** 2).mean()) for c in range(C)]
        patterns.append([np.concatenate([x[c] / sd[c] for c in range(C)]) for x in centred])
    right = 0
    for i, x in enumerate(patterns[0]):
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in patterns[1]]
        right += all(cosines[i] > cosine for j, cosine in enumerate(cosines) if j != i)
    return right / len(first)


@pytest.mark.parametrize(
    ("strength", "about"), [(0.05, 0.05), (0.1, 0.17), (0.15, 0.52), (0.25, 0.99)]
)
def test_a_planted_signal_is_found_as_often_as_a_plain_program_finds_it(strength, about):
    """Ours and the plain program, on the noise of 12 other subjects each."""
    measured = [
        halves(responses(strength, 50 + i), draws=2, sizes=[6]).within["EEG"].mean()
        for i in range(12)
    ]

    expected = []
    for number in range(12):
        rng = np.random.default_rng([7, number])
        eeg = responses(strength, 70 + number)
        order = rng.permutation(R)
        first, second = eeg[:, order[:6]].mean(1), eeg[:, order[6:]].mean(1)
        expected += [plain_retrieval(first, second), plain_retrieval(second, first)]
    assert np.mean(measured) == pytest.approx(np.mean(expected), abs=0.06)
    assert np.mean(measured) == pytest.approx(about, abs=0.06)


def test_the_two_sides_of_a_split_are_those_of_a_plain_program():
    eeg = responses(0.08, 2)
    measured = halves(eeg, draws=1).within["EEG"]
    for n, found in zip(SIZES, measured, strict=True):
        rng = np.random.default_rng([3, n, *b"sub-01"])
        first, second = average_groups(eeg, n, 2, 1, rng)[:, 0].astype(float)
        plain = (plain_retrieval(first, second) + plain_retrieval(second, first)) / 2
        assert found.mean() == pytest.approx(plain)


def test_noise_on_one_side_is_easier_than_on_both():
    """Why half against half is no ceiling of retrieval, whose images have no noise."""
    half_finds_half, half_finds_pattern = [], []
    for number in range(12):
        eeg = responses(0.15, 30 + number)
        first, second = as_vectors(eeg[:, :6].mean(1)), as_vectors(eeg[:, 6:].mean(1))
        pattern = as_vectors(responses(1e6, 0)[:, 0])
        half_finds_half.append(find(first, second).mean())
        half_finds_pattern.append(find(first, pattern).mean())
    assert 0.4 < np.mean(half_finds_half) < 0.6
    assert np.mean(half_finds_pattern) > 0.9


def test_noise_is_at_chance_and_more_repetitions_of_a_signal_are_better():
    many = [halves(responses(0.0, subject, 40)).within for subject in range(12)]
    for space in ("EEG", "encoder"):
        mean = np.mean([within[space] for within in many])
        # 12 subjects x 3 sizes x 40 images; 4 splits of the same repetitions hardly add to them
        assert mean == pytest.approx(1 / 40, abs=3 * (1 / 40 / (12 * 3 * 40)) ** 0.5)

    for space in ("EEG", "encoder"):
        one, two, six = halves(responses(0.15, 1)).within[space].mean(1)
        assert one < two < six


def test_the_groups_share_no_repetition_and_the_first_is_what_evaluate_draws():
    # Repetition r is the number 2 ** r: the sum of a group says which ones are in it.
    eeg = np.broadcast_to(2.0 ** np.arange(R)[:, None, None], (5, R, 1, 1))
    sums = 3 * average_groups(eeg, 3, 2, 4, np.random.default_rng(0))
    first, second = sums.round().astype(int)
    assert ((first & second) == 0).all()
    assert [bin(x).count("1") for x in (*first.ravel(), *second.ravel())] == [3] * 40
    np.testing.assert_array_equal(
        average_groups(eeg, 3, 2, 4, np.random.default_rng(0))[0],
        average_some(eeg, 3, 4, np.random.default_rng(0)),
    )


def test_halves_are_normalised_after_their_repetitions_are_averaged():
    eeg = responses(0.1, 1)
    measured = halves(eeg, to_normalise=True, draws=1)
    first, second = average_groups(eeg, 6, 2, 1, np.random.default_rng([3, 6, *b"sub-01"]))[:, 0]
    expected = find(as_vectors(normalise(first)), as_vectors(normalise(second)))
    np.testing.assert_array_equal(measured.within["EEG"][-1], expected)


def test_neither_unit_nor_a_response_that_all_images_share_counts():
    eeg = responses(0.1, 1)[:, 0]
    moved = 1e-6 * eeg * np.array([1, 5, 0.2, 3])[:, None] + 1e-3
    torch.testing.assert_close(
        as_vectors(eeg), as_vectors(moved.astype(np.float32)), atol=2e-3, rtol=0
    )


def test_equal_responses_find_nothing():
    same = np.ones((5, C, T), np.float32)
    assert not find(as_vectors(same), as_vectors(same)).any()


def test_each_run_of_a_subject_takes_its_share_of_the_splits():
    """Two runs of one model, two splits each, are one run with four."""
    eeg = responses(0.15, 1)
    model, notes = models(("pooled", 1, ["sub-01"]))[0]
    twice = [(model, notes), (model, notes | {"seed": 2})]
    np.testing.assert_allclose(
        halves(eeg, by=twice).within["encoder"], halves(eeg, by=twice[:1]).within["encoder"]
    )
    # And with more runs than splits each run has one.
    many = halves(eeg, by=[(model, notes)] * 5, draws=2).within["encoder"]
    assert many.shape == (3, N)


def test_across_subjects_the_model_of_the_one_who_asks_sees_both():
    names = ["sub-01", "sub-02", "sub-03"]
    by = models(*((f"without-{name}", 1, [name]) for name in names))
    subjects = [halves(responses(0.3, i), name, by) for i, name in enumerate(names)]

    found = across_subjects(subjects, "encoder")
    asking, other = subjects[1], subjects[2]
    one, two = (side.projected["without-sub-02"].astype(float) for side in (asking, other))
    similarity = (one @ two.T).astype(np.float32)
    right = (similarity >= similarity.diagonal()[:, None]).sum(1) == 1
    np.testing.assert_array_equal(found[1, 2], right)
    assert np.isnan(found[0, 0]).all()


def test_what_subjects_share_is_found_across_them_and_what_is_their_own_is_not():
    names = ["sub-01", "sub-02", "sub-03", "sub-04"]
    by = models(("pooled", 1, names))
    for shared, expected in ((True, 1.0), (False, 1 / N)):
        subjects = [
            halves(responses(0.3, i, shared=shared), name, by) for i, name in enumerate(names)
        ]
        table = tabulate_reliability(subjects, SIZES, draw_resamples(4, N, 500, 0))
        across = table[(table["space"] == "EEG") & (table["subjects"] == "across")].iloc[0]
        assert across["top1_acc"] == pytest.approx(expected, abs=0.05)
        assert across["top1_acc_low"] - 1e-9 <= across["top1_acc"] <= across["top1_acc_high"] + 1e-9

        within = table[(table["space"] == "EEG") & (table["subjects"] == "within")]
        assert within["top1_acc"].iloc[-1] == pytest.approx(1, abs=0.01)
        assert list(within["n_repetitions"]) == SIZES
        assert (table["chance"] == 1 / N).all()


def test_the_interval_across_subjects_equals_a_plain_bootstrap():
    names = ["sub-01", "sub-02", "sub-03"]
    by = models(("pooled", 1, names))
    subjects = [halves(responses(0.08, i), name, by) for i, name in enumerate(names)]
    resamples = draw_resamples(3, N, 300, 0)
    found = across_subjects(subjects, "EEG")

    means = []
    for subject_counts, image_counts in zip(resamples.subjects, resamples.images, strict=True):
        drawn = np.repeat(np.arange(3), subject_counts.astype(int))
        images = np.repeat(np.arange(N), image_counts.astype(int))
        pairs = [found[i, j, images].mean() for i in drawn for j in drawn if i != j]
        if pairs:
            means.append(np.mean(pairs))
    table = tabulate_reliability(subjects, SIZES, resamples)
    row = table[(table["space"] == "EEG") & (table["subjects"] == "across")].iloc[0]
    assert [row["top1_acc_low"], row["top1_acc_high"]] == pytest.approx(
        np.quantile(means, [0.025, 0.975])
    )


def test_one_subject_has_no_rows_across_subjects():
    table = tabulate_reliability([halves(responses(0.1, 1))], SIZES, draw_resamples(1, N, 100, 0))
    assert set(table["subjects"]) == {"within"}


def test_the_sizes_end_with_half_of_all_repetitions():
    assert half_sizes(80, [1, 2, 5, 10, 20, 40]) == [1, 2, 5, 10, 20, 40]
    assert half_sizes(12, [1, 2, 5, 10]) == [1, 2, 5, 6]
    assert half_sizes(3, [1, 2, 5]) == [1]


def test_a_subject_does_not_depend_on_the_others():
    eeg = responses(0.1, 1)
    by = models(("pooled", 1, ["sub-01", "sub-02"]))
    first = halves(eeg, by=by)
    again = halves(eeg, by=by)
    for field in dataclasses.fields(first):
        np.testing.assert_equal(getattr(first, field.name), getattr(again, field.name))
