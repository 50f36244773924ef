"""Planted near misses: answers that follow a space, answers that do not, hubs, ties, and how often p is wrong."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from pipeline.compare.explained import compare_near_misses
from pipeline.datasets.human import HumanSimilarity
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain import near_misses
from pipeline.explain.concepts import tabulate_concepts
from pipeline.explain.near_misses import (
    ANSWERS,
    FIRST_FIVE,
    FIRST_WRONG,
    SAME_CATEGORY,
    has_near_misses,
    measure_near_misses,
    percentiles,
    permutation_p,
    retrieved_first,
    retrieved_instead,
    tabulate_near_misses,
)
from pipeline.explain.rsa import cosine_similarity
from pipeline.params import read_params

N = 60
PARAMETERS = read_params(Path("params.yaml")).evaluate.model_copy(update={"resamples": 500})


def result(similarity: np.ndarray, subject: str = "sub-01", seed: int = 1) -> SubjectResult:
    empty = np.empty((len(similarity), 0), np.float32)
    values = similarity.astype(np.float32)
    return SubjectResult("pooled", seed, subject, 1, False, 10.0, empty, empty, values)


def space(seed: int, n: int = N, n_dims: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_dims))


def answers(images: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Similarities (N, N) of noisy responses with images, float64."""
    rng = np.random.default_rng([1, seed])  # not the draws of `space`
    responses = images + noise * rng.standard_normal(images.shape)
    both = cosine_similarity(np.vstack([responses, images]))
    return both[: len(images), len(images) :]


def test_percentiles_by_hand() -> None:
    similarity = np.array([[9, 1, 2, 2], [5, 9, 5, 5], [3, 2, 9, 1], [0, -1, -2, 9]])
    expected = [[0.5, 1 / 6, 4 / 6, 4 / 6], [0.5] * 4, [5 / 6, 3 / 6, 0.5, 1 / 6]]
    expected.append([5 / 6, 3 / 6, 1 / 6, 0.5])
    assert percentiles(similarity) == pytest.approx(np.array(expected))
    # Any rising function of the similarities gives the same.
    assert (percentiles(np.exp(similarity)) == percentiles(similarity)).all()


def test_what_is_retrieved_instead_has_images_before_and_after_the_match() -> None:
    similarity = np.array([[0.5, 0.9, 0.4, 0.1], [0, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 0]])
    expected = [[0, 0.5, 0.5, 0], [1 / 3, 0, 1 / 3, 1 / 3], [0, 0.5, 0, 0.5], [0, 0.5, 0.5, 0]]
    assert retrieved_instead(similarity, 2) == pytest.approx(np.array(expected))  # ties share
    # How similar the match itself is changes nothing.
    better = similarity + np.diag([5, 0, 5, 5])
    assert (retrieved_instead(better, 2) == retrieved_instead(similarity, 2)).all()

    # The first row is wrong, the second right, the others wrong; a tie with the match is wrong.
    first = retrieved_first(similarity)
    assert first.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    tie = np.ones((3, 3))
    assert retrieved_first(tie) == pytest.approx((1 - np.eye(3)) / 2)
    assert retrieved_instead(np.full((3, 3), np.nan), 5) == pytest.approx((1 - np.eye(3)) / 2)


def test_answers_that_follow_a_space_are_near_in_it_and_at_chance_in_another() -> None:
    images, other = space(1), space(2)
    runs = [
        result(answers(images, 1.0, 10 * s + seed), f"sub-0{s}", seed)
        for s in range(1, 5)
        for seed in (1, 2)
    ]
    spaces = {"own": cosine_similarity(images), "other": cosine_similarity(other)}
    table = tabulate_near_misses(runs, spaces, draw_resamples(4, N, 1000, 0), 0)
    assert table["answers"].tolist() == [ANSWERS[0]] * 2 + [ANSWERS[1]] * 2

    own, another = (table[table["alike_by"] == name] for name in ("own", "other"))
    assert (own["excess"] > 0.2).all() and (own["excess_low"] > 0.1).all()
    assert (own["p"] == 1 / 5001).all()
    assert (another["excess"].abs() < 0.05).all() and (another["p"] > 0.01).all()
    excess = (table["retrieved"] - table["chance"]).to_numpy()
    assert table["excess"].to_numpy() == pytest.approx(excess)


def test_concepts_in_another_order_give_nothing() -> None:
    images = space(3)
    order = np.random.default_rng(0).permutation(N)
    spaces = {"shuffled": cosine_similarity(images[order])}
    runs = [result(answers(images, 1.0, s), f"sub-0{s}") for s in range(1, 5)]
    table = tabulate_near_misses(runs, spaces, draw_resamples(4, N, 500, 0), 0)
    assert (table["excess"].abs() < 0.05).all() and (table["p"] > 0.01).all()


def test_the_same_answer_to_all_responses_is_no_near_miss() -> None:
    """Hubs that people find like everything: far above 0.5, and nothing above chance."""
    people = space(4)
    people[:6] = 0.2 * people[:6] + 3  # near the mean of all that follow
    people[6:] += 3
    similarity = np.tile(np.r_[np.linspace(1, 0.9, 6), np.zeros(N - 6)], (N, 1))
    misses = measure_near_misses(
        retrieved_instead(similarity), percentiles(cosine_similarity(people))
    )
    assert misses.retrieved > 0.6 and abs(misses.retrieved - misses.chance) < 0.01


def test_finding_the_image_more_often_alone_changes_nothing() -> None:
    images, people = space(5), cosine_similarity(space(5) + space(6))
    similarity = answers(images, 1.0, 7)
    better = similarity + 0.5 * np.eye(N)
    first, second = (
        measure_near_misses(retrieved_instead(values), percentiles(people)).retrieved
        for values in (similarity, better)
    )
    assert first == second


def test_the_images_shares_have_the_excess_as_their_mean() -> None:
    alike = percentiles(cosine_similarity(space(8)))
    for weights in (
        retrieved_instead(answers(space(8), 1, 1)),
        retrieved_first(answers(space(8), 1, 1)),
    ):
        misses = measure_near_misses(weights, alike)
        assert misses.queries.mean() == pytest.approx(misses.retrieved - misses.chance)


def test_without_a_wrong_answer_there_is_no_first_wrong_one() -> None:
    runs = [result(2 * np.eye(N) - 1)]
    table = tabulate_near_misses(runs, {"own": np.eye(N)}, draw_resamples(1, N, 100, 0), 0)
    of_first = table[table["answers"] == FIRST_WRONG].iloc[0]
    assert of_first[["retrieved", "excess", "p"]].isna().all()
    assert table[table["answers"] == FIRST_FIVE]["retrieved"].notna().all()


def shares_of(category: np.ndarray) -> np.ndarray:
    """Which concepts share a category, as the file of people says it: (N, K) bool to (N, N)."""
    names = np.arange(len(category)).astype(str).astype(object)
    of_category = np.arange(category.shape[1]).astype(str).astype(object)
    nobody = np.eye(len(category))
    people = HumanSimilarity(names, nobody, of_category, category, "simulated", True)
    return people.same_category(names.tolist())


def of_sizes(*sizes: int) -> np.ndarray:
    """Categories of so many concepts, one after the other: (N, K) bool."""
    return np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=0)


def row_of_category(runs: list[SubjectResult], shares: np.ndarray, answers: str) -> pd.Series:
    n_subjects = len({run.subject for run in runs})
    resamples = draw_resamples(n_subjects, len(shares), 500, 0)
    table = tabulate_near_misses(runs, {}, resamples, 0, shares)
    assert table["alike_by"].tolist() == [SAME_CATEGORY] * 2
    return table[table["answers"] == answers].iloc[0]


def test_errors_within_the_category_have_a_share_of_one() -> None:
    """Ten categories of six: the five others come next, so that both kinds of answers are within."""
    shares = shares_of(of_sizes(*[6] * 10))
    rng = np.random.default_rng(0)
    runs = [
        result(shares + 0.5 * rng.random((N, N)) - 0.6 * np.eye(N), f"sub-{s:02}")
        for s in range(1, 5)
    ]
    for kind in ANSWERS:
        row = row_of_category(runs, shares, kind)
        assert row["retrieved"] == pytest.approx(1)
        assert row["chance"] == pytest.approx(5 / 59)  # of 59 others, five are of the category
        assert row["excess"] == pytest.approx(54 / 59) and row["p"] == 1 / 5001
        assert row["excess_low"] == pytest.approx(54 / 59)


def test_random_errors_are_in_the_same_category_as_often_as_chance_says() -> None:
    """Large and small categories, and ten concepts that are in none."""
    category = of_sizes(20, 10, 10, 5, 5, 10)
    category[50:] = False
    shares = shares_of(category)
    rng = np.random.default_rng(1)
    runs = [result(rng.random((N, N)), f"sub-{s:02}", seed) for s in range(4) for seed in (1, 2, 3)]
    by_hand = (20 * 19 + 2 * 10 * 9 + 2 * 5 * 4) / (50 * 59)
    for kind in ANSWERS:
        row = row_of_category(runs, shares, kind)
        assert row["chance"] == pytest.approx(by_hand, abs=0.02)
        assert abs(row["excess"]) < 0.03 and row["p"] > 0.01
        assert row["excess_low"] < 0 < row["excess_high"]


def test_a_concept_without_a_category_is_not_asked_for() -> None:
    """Three pairs and two loners; what is retrieved for a loner changes nothing, as a retrieved one it counts."""
    category = of_sizes(2, 2, 2, 2)
    category[6:] = False
    shares = shares_of(category)
    weights = np.zeros((8, 8))
    weights[[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 6, 7]] = 1  # two of three pairs, then two loners
    misses = measure_near_misses(weights, shares)
    assert misses.retrieved == pytest.approx(4 / 6)

    of_loners = weights.copy()
    of_loners[6:, 0] = 1
    same = measure_near_misses(of_loners, shares)
    assert (same.retrieved, same.chance) == (misses.retrieved, misses.chance)
    assert (same.queries == misses.queries).all()
    assert same.queries.mean() == pytest.approx(same.retrieved - same.chance)

    # Where only loners are got wrong, nothing is asked.
    of_loners[:6] = 0
    assert not has_near_misses(of_loners, shares) and has_near_misses(weights, shares)
    assert np.isnan(measure_near_misses(of_loners, shares).retrieved)
    assert np.isnan(measure_near_misses(weights, np.full((8, 8), np.nan)).retrieved)


def test_errors_at_a_large_category_alone_are_no_near_misses() -> None:
    """Half of all concepts are animals; only they are got wrong, and what is retrieved instead is random."""
    shares = shares_of(of_sizes(30, *[3] * 10))
    rng = np.random.default_rng(2)
    similarity = [rng.random((N, N)) + np.diag(np.r_[np.zeros(30), np.ones(30)]) for _ in range(8)]
    runs = [result(values, f"sub-{s:02}") for s, values in enumerate(similarity)]
    row = row_of_category(runs, shares, FIRST_WRONG)
    # Half of what is retrieved is an animal, though over all concepts the share is half of that.
    assert row["retrieved"] == pytest.approx(0.5, abs=0.1)
    assert abs(row["excess"]) < 0.05 and row["p"] > 0.05


def test_percentiles_have_the_chance_of_the_other_concepts_alone() -> None:
    """Each concept has as many others that are more and less like it, so that its own row adds nothing."""
    alike = percentiles(cosine_similarity(space(8)))
    weights = retrieved_first(answers(space(8), 1, 1))
    of_others = (alike.sum(0) - 0.5) / (N - 1)
    expected = (weights * of_others).sum() / weights.sum()
    assert measure_near_misses(weights, alike).chance == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["people", "categories"])
def test_p_claims_no_more_than_it_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces of few dimensions with hubs, in which images err together, and people who see another space."""
    monkeypatch.setattr(near_misses, "N_PERMUTATIONS", 199)
    claims = 0
    n = 300
    for number in range(n):
        images = space(2 * number, 30, 2) + 0.7
        people = space(2 * number + 1, 30, 2) + 0.7
        weights = [
            retrieved_instead(answers(images, 0.5, 1000 * number + s)) / 30 for s in range(3)
        ]
        if kind == "people":
            likeness = percentiles(cosine_similarity(people))
        else:
            likeness = shares_of(people > 1.4)  # the half planes of two; some are in none
        claims += permutation_p(weights, likeness, number) <= 0.05
    assert binomtest(claims, n, 0.05).pvalue > 0.01


def test_concept_by_concept() -> None:
    names = np.array(["ant", "bat", "cat", "dog"], dtype=object)
    # The ant is found twice of four times; the bat is always taken for the cat; the dog ties.
    right, wrong = np.eye(4), np.eye(4)
    right[1] = wrong[1] = [0, 0.5, 0.9, 0.1]
    wrong[0] = [0.5, 0.1, 0.2, 0.9]
    human = np.array(
        [[1, 0.1, 0.2, 0.3], [0.1, 1, 0.9, 0.5], [0.2, 0.9, 1, 0.4], [0.3, 0.5, 0.4, 1]]
    )
    runs = [
        result(right, "sub-01", 1),
        result(right, "sub-01", 2),
        result(wrong, "sub-02", 1),
        result(wrong, "sub-02", 2),
    ]
    scored = Similarities(names + ".jpg", names, names, runs, {})
    table = tabulate_concepts(scored, human)
    assert table["concept"].tolist() == [*names] and table["image"].tolist() == [*(names + ".jpg")]
    assert table["top1_acc"].tolist() == [0.5, 0, 1, 1]
    assert table["subjects_right"].tolist() == [1, 0, 2, 2]
    assert table["mean_rank"].tolist() == [1.5, 2, 1, 1]
    assert table["taken_for"].tolist() == ["dog", "cat", "", ""]
    assert table["taken_for_share"].tolist()[:2] == [1, 1]
    assert table["people_percentile"].tolist()[:2] == pytest.approx([5 / 6, 5 / 6])
    assert table.loc[2:, ["taken_for_share", "people_percentile"]].isna().all(axis=None)
    assert "people_percentile" not in tabulate_concepts(scored, None)
    assert isinstance(table, pd.DataFrame)


def side(people: np.ndarray, share: float, draw: int) -> list[SubjectResult]:
    """Four subjects and three seeds of a model that shares a part of people's space, and errs by its own."""
    rng = np.random.default_rng([2, draw])
    images = share * people + (1 - share) * rng.standard_normal(people.shape)
    return [
        result(answers(images, 1.0, 100 * draw + 10 * s + seed), f"sub-{s:02}", seed)
        for s in range(1, 9)
        for seed in (1, 2, 3)
    ]


def evaluation(results: list[SubjectResult], encoder: str) -> Similarities:
    names = np.array([f"{i:05}" for i in range(N)], dtype=object)
    about = {"encoder": encoder, "protocol": "pooled", "settings": {}}
    return Similarities(names, names, names, results, about)


def compared(share: float, human: HumanSimilarity | str) -> dict:
    people = space(9)
    sides = {
        "unaligned": evaluation(side(people, 0.0, 1), "unaligned"),
        "aligned": evaluation(side(people, share, 2), "aligned"),
    }
    return compare_near_misses(sides, PARAMETERS, 0, human)


def test_a_side_whose_errors_follow_people_is_nearer_to_them() -> None:
    names = np.array([f"{i:05}" for i in range(N)], dtype=object)
    category = space(9) > 0.7
    alike = cosine_similarity(space(9))
    human = HumanSimilarity(names, alike, names[:4], category, "simulated", True)
    planted = compared(0.6, human)
    assert planted["source"] == "simulated" and planted["synthetic"]
    assert [*planted["same_category"]] == [*ANSWERS]
    for row in planted["same_category"].values():
        assert row["aligned"] > 0.05 and row["difference"] > 0.05
        assert row["difference"] == pytest.approx(row["aligned"] - row["unaligned"])
        assert row["p"] < 0.05 and row["ci95"][0] > 0
    for row in planted["answers"].values():
        assert row["aligned"] > 0.1 > abs(row["unaligned"])
        assert row["difference"] == pytest.approx(row["aligned"] - row["unaligned"])
        assert row["p"] < 0.01 and row["ci95"][0] > 0

    nothing = compared(0.0, human)
    assert [*nothing["answers"]] == [*ANSWERS]
    assert all(abs(row["difference"]) < 0.1 for row in nothing["answers"].values())


def test_without_people_a_comparison_says_why() -> None:
    assert compared(0.0, "nobody asked") == {"why": "nobody asked"}
    other = np.array([f"x{i:05}" for i in range(N)], dtype=object)
    category = np.ones((N, 1), dtype=bool)
    human = HumanSimilarity(other, np.eye(N), other[:1], category, "simulated", True)
    assert (
        "no human similarity of the test concept 00000 and 59 others" in compared(0, human)["why"]
    )
