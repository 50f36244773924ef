import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t

import stages.compare
from pipeline.compare.comparison import compare
from pipeline.compare.explained import explain_difference
from pipeline.compare.power import design_of
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.params import read_params
from pipeline.sections import Evaluate
from stages.results import print_comparison

N = 20


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (
            "encodr=unaligned",
            "--baseline is encodr=unaligned: params.yaml has no key encodr; is it encoder[?]",
        ),
        (
            "train.eeg_encodr=nice",
            "params.yaml has no key train.eeg_encodr; is it train.eeg_encoder[?]",
        ),
        (
            "aligned",
            "--baseline is aligned: expected a parameter and its value, such as encoder=aligned",
        ),
        ("seed=1", "should set the same parameters, got seed=1 and encoder=aligned"),
        (
            "encoder=aligned alignment=glocal",
            "should set the same parameters, got encoder=aligned alignment=glocal and encoder=al",
        ),
        (
            "encoder=unaligned alignmen=glocal",
            "--baseline is alignmen=glocal: params.yaml has no key alignmen; is it alignment[?]",
        ),
    ],
)
def test_a_side_that_sets_no_parameter_is_told_before_dvc_runs(baseline: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stages.compare.main(baseline=baseline)


def test_two_alignments_of_the_unaligned_encoder_are_told_before_dvc_runs() -> None:
    message = (
        "alignment=dreamsim and alignment=glocal give the same: the encoder is unaligned on both "
        "sides, .*; make compare BASELINE='encoder=aligned alignment=dreamsim' "
        "OTHER='encoder=aligned alignment=glocal'$"
    )
    with pytest.raises(InputError, match=message):
        stages.compare.main(baseline="alignment=dreamsim", other="alignment=glocal")


def test_an_alignment_that_the_backbone_has_not_is_told_before_dvc_runs() -> None:
    sides = {
        side: f"encoder=aligned alignment={kind}"
        for side, kind in (("baseline", "dreamsim"), ("other", "glocal"))
    }
    message = (
        "the side encoder=aligned alignment=glocal cannot be made: alignment is 'glocal': "
        "synclr_vitb16 is aligned by dreamsim alone"
    )
    with pytest.raises(InputError, match=message):
        stages.compare.main(**sides)


def test_each_parameter_of_a_side_is_given_to_dvc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(stages.compare.subprocess, "run", run)
    side = "encoder=aligned preprocess.channels=[O1, Oz]  alignment=glocal"
    with pytest.raises(InputError, match="the side encoder=aligned preprocess.channels"):
        stages.compare.evaluate(side, 3, tmp_path / "other.h5")
    of_experiment = commands[0]
    values = [of_experiment[i + 1] for i, word in enumerate(of_experiment) if word == "-S"]
    assert values == [
        "encoder=aligned",
        "preprocess.channels=[O1, Oz]",
        "alignment=glocal",
        "train.seeds=3",
    ]


def test_one_evaluation_is_not_enough() -> None:
    with pytest.raises(
        InputError, match="give two evaluations, or none to have DVC make them: got 1"
    ):
        stages.compare.main([Path("a.h5")])


def parameters() -> Evaluate:
    return Evaluate(
        **read_params(Path("params.yaml")).evaluate.model_dump()
        | {"resamples": 1000, "top_k": [1, 5]}
    )


def scored(
    subject: str, right: np.ndarray, seed: int = 1, collapsed: bool = False, fold: str = "pooled"
) -> SubjectResult:
    """A run that retrieves these images first and every other one second."""
    similarity = np.full((N, N), 0.1, np.float32)
    np.fill_diagonal(similarity, 0.5)
    wrong = np.flatnonzero(~right)
    similarity[wrong, (wrong + 1) % N] = 0.6
    sides = np.zeros((2, N, 3), np.float32)
    return SubjectResult(fold, seed, subject, 5, collapsed, 10.0, *sides, similarity)


def evaluation(encoder: str, runs: list[SubjectResult], **changes: object) -> Similarities:
    ids = np.array([f"test_images/{i}.jpg" for i in range(N)], dtype=object)
    made_with = {
        "dataset": "things-eeg2",
        "synthetic": False,
        "backbone": "synclr_vitb16",
        "encoder": encoder,
    }
    made_with |= {
        "protocol": "pooled",
        "selected_on": "validation",
        "settings": {"train": {"epochs": 100}},
    }
    return Similarities(ids, ids, ids, runs, made_with | changes)


def first(n: int) -> np.ndarray:
    return np.arange(N) < n


def pair(
    n_subjects: int,
    unaligned: int = 8,
    aligned: int = 14,
    seeds: tuple[int, ...] = (1, 2, 3),
    own_models: bool = False,
) -> tuple[list[SubjectResult], list[SubjectResult]]:
    """Of 20 images that many are right in each subject, one more or less from subject to subject and seed to seed."""
    names = [f"sub-{i:02}" for i in range(1, n_subjects + 1)]
    runs = [
        [
            scored(name, first(n + (i + seed) % 2), seed, fold=name if own_models else "pooled")
            for seed in seeds
            for i, name in enumerate(names)
        ]
        for n in (unaligned, aligned)
    ]
    return runs[0], runs[1]


def compared(
    unaligned: list[SubjectResult], aligned: list[SubjectResult], **changes: object
) -> dict:
    sides = evaluation("unaligned", unaligned, **changes), evaluation("aligned", aligned, **changes)
    return compare(*sides, parameters(), 0)


def test_a_difference_by_hand():
    """Ten subjects, four seeds, each with six images more: only images vary, and six of twenty differ."""
    result = compared(*pair(10, seeds=(1, 2, 3, 4)))
    top1 = result["metrics"]["top1_acc"]
    assert (top1["unaligned"], top1["aligned"], top1["difference"]) == pytest.approx(
        (0.425, 0.725, 0.3)
    )
    assert result["ci95_over"] == ["seeds", "subjects", "test images"]
    difference = np.array(
        [0.0] * 8 + [0.5] + [1.0] * 5 + [0.5] + [0.0] * 5
    )  # by image, of the means over subjects
    error = difference.std() / N**0.5  # of the bootstrap
    assert top1["p"] == pytest.approx(2 * t.sf(0.3 / error, N - 1), rel=0.3)
    assert np.ptp(top1["ci95"]) == pytest.approx(2 * t.ppf(0.975, N - 1) * error, rel=0.1)
    assert np.ptp(top1["ci95_these_models"]) == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert result["verdict"] == "better"
    assert result["answer"].startswith(
        "The aligned encoder decodes better: top-1 72.5 % against 42.5 %, +30.0 points"
    )
    assert (
        "over seeds, subjects and test images; 20-way, pooled, 10 subjects, 4 seeds"
        in result["answer"]
    )
    assert "synthetic" not in result["answer"]


def test_what_lies_behind_is_asked_of_the_same_pairs():
    unaligned, aligned = (
        evaluation(encoder, runs)
        for encoder, runs in zip(("unaligned", "aligned"), pair(6), strict=True)
    )
    comparison = compare(unaligned, aligned, parameters(), 0)
    behind = explain_difference(aligned, unaligned, parameters(), 0, "nobody asked")
    assert behind["calibrated"]["as trained"] == comparison["metrics"]["top1_acc"]

    collapsed = [dataclasses.replace(result, collapsed=True) for result in aligned.results]
    other = evaluation("aligned", collapsed)
    assert explain_difference(unaligned, other, parameters(), 0, "nobody asked") == {}


def test_the_parts_add_up():
    result = compared(*pair(4, seeds=(2,)))
    rows = result["per_subject"]
    assert (
        [row["subject"] for row in rows]
        == ["sub-01", "sub-02", "sub-03", "sub-04"]
        == result["subjects"]
    )
    assert [row["aligned"]["top1_acc"] for row in rows] == [0.7, 0.75, 0.7, 0.75]
    for encoder in ("unaligned", "aligned"):
        mean = result["metrics"]["top1_acc"][encoder]
        assert np.mean([row[encoder]["top1_acc"] for row in rows]) == pytest.approx(mean)
        assert np.mean(result["per_image"][encoder]["top1_acc"]) == pytest.approx(mean)
        counts = result["cosines"][encoder]
        assert (sum(counts["matched"]), sum(counts["mismatched"])) == (4 * N, 4 * N * (N - 1))
    assert len(result["cosines"]["edges"]) == len(counts["matched"]) + 1
    assert np.array(result["per_image"]["aligned"]["top1_acc"])[[0, 14, 19]].tolist() == [
        1.0,
        0.5,
        0.0,
    ]
    json.dumps(result)


def drawn_runs(fold: str, gain: float, rng: np.random.Generator) -> list[SubjectResult]:
    """Right answers of 8 subjects and 3 seeds, some images easier and some subjects better."""
    chance = np.linspace(0.2, 0.7, N) + np.linspace(-0.1, 0.1, 8)[:, None] + gain  # (S, N)
    return [
        scored(f"sub-{i}", rng.random(N) < chance[i], seed, fold=fold.format(i))
        for seed in (1, 2, 3)
        for i in range(8)
    ]


def test_the_claim_is_that_of_the_mean_squares():
    """The parts by hand: subjects, images, what both hold once, and seeds, pairs of them half as much again."""
    rng = np.random.default_rng(4)
    sides = [drawn_runs("pooled", gain, rng) for gain in (0.0, 0.2)]
    result = compared(*sides)
    ranks = [[run.queries()["rank"] for run in side] for side in sides]
    first, second = (np.array(side).reshape(3, 8, N) == 1 for side in ranks)
    differences = second.astype(float) - first

    of_pairs = differences.mean(0)
    rest = of_pairs - of_pairs.mean(1)[:, None] - of_pairs.mean(0) + of_pairs.mean()
    subjects = of_pairs.mean(1).var(ddof=1) / 8
    images = of_pairs.mean(0).var(ddof=1) / N
    noise = (rest**2).sum() / (7 * (N - 1)) / (8 * N)
    seeds = differences.mean((1, 2)).var(ddof=1) / 3
    seeds += sum(side.mean((1, 2)).var(ddof=1) / 3 for side in (first, second))
    total = max(subjects + images - noise + seeds / 2, subjects, images, seeds / 2)

    top1 = result["metrics"]["top1_acc"]
    # Degrees of freedom between those of the seeds and those of all: the error is what is asked.
    half = np.ptp(top1["ci95"]) / 2
    assert 1.9 * total**0.5 < half < 2.8 * total**0.5
    assert result["variances"]["subjects x test images"] == pytest.approx(
        noise * 8 * N - result["variances"]["seeds x subjects x test images"] / 3, abs=1e-9
    )
    by_seed = [side.mean((1, 2)) for side in (first, second)]
    assert result["seed_correlation"] == pytest.approx(np.corrcoef(*by_seed)[0, 1])


def test_models_of_one_subject_each_have_no_seeds_in_common():
    rng = np.random.default_rng(5)
    result = compared(*(drawn_runs("only-{}", gain, rng) for gain in (0.0, 0.2)))
    assert "seeds" not in result["variances"]
    assert result["variances"]["seeds x subjects x test images"] > 0.1
    alone = compared(*pair(8, seeds=(1,)))
    assert alone["variances"]["seeds"] is None and alone["seed_correlation"] is None


def test_the_other_way_round_changes_the_sign_only():
    there, back = compared(*pair(10)), compared(*pair(10)[::-1])
    assert back["metrics"]["top1_acc"]["difference"] == pytest.approx(
        -there["metrics"]["top1_acc"]["difference"]
    )
    assert back["metrics"]["top1_acc"]["ci95"] == pytest.approx(
        [-end for end in there["metrics"]["top1_acc"]["ci95"]][::-1]
    )
    assert back["metrics"]["top1_acc"]["p"] == there["metrics"]["top1_acc"]["p"]
    assert back["verdict"] == "worse" and "decodes worse" in back["answer"]


def test_no_difference_is_no_claim():
    result = compared(*pair(10, unaligned=10, aligned=10, seeds=(1, 2)))
    top1 = result["metrics"]["top1_acc"]
    assert (top1["unaligned"], top1["aligned"], top1["difference"], top1["p"]) == pytest.approx(
        (0.525, 0.525, 0, 1)
    )
    assert top1["ci95"] == pytest.approx((0, 0)) and top1["ci95_these_models"] == (0.0, 0.0)
    assert result["verdict"] == "no difference shown"
    assert result["answer"].startswith("No difference between the encoders is shown")


def test_a_difference_that_subjects_do_not_share_is_not_shown():
    """Five subjects gain and five lose nearly as much: images alone would say that little varies."""
    names = [f"sub-{i:02}" for i in range(1, 11)]
    unaligned = [scored(name, first(10), seed) for name in names for seed in (1, 2)]
    aligned = [
        scored(name, first(16 if i < 5 else 5), seed)
        for i, name in enumerate(names)
        for seed in (1, 2)
    ]
    result = compared(unaligned, aligned)
    low, high = result["metrics"]["top1_acc"]["ci95"]
    assert low < 0 < high and result["metrics"]["top1_acc"]["p"] > 0.5
    assert result["verdict"] == "no difference shown"


def test_a_difference_that_seeds_do_not_share_is_not_shown():
    """One lucky seed of three moves all ten subjects and all images together, and speaks for no other seed."""
    names = [f"sub-{i:02}" for i in range(1, 11)]
    unaligned = [scored(name, first(8), seed) for name in names for seed in (1, 2, 3)]
    aligned = [
        scored(name, first(20 if seed == 1 else 8), seed) for name in names for seed in (1, 2, 3)
    ]
    result = compared(unaligned, aligned)
    low, high = result["metrics"]["top1_acc"]["ci95"]
    assert low < 0 < high and result["verdict"] == "no difference shown"
    least, most = result["metrics"]["top1_acc"]["ci95_these_models"]
    assert 0 < least < most


def test_one_seed_of_a_model_that_subjects_share_is_no_claim():
    """However clear the figures look."""
    result = compared(*pair(10, unaligned=2, aligned=18, seeds=(1,)))
    assert result["verdict"] == "no claim" and result["ci95_over"] == []
    top1 = result["metrics"]["top1_acc"]
    assert top1["ci95"] is None and top1["p"] is None and top1["ci95_these_models"][0] > 0.5
    assert result["answer"].startswith(
        "No claim can be made from one seed: top-1 92.5 % against 12.5 %, +80.0 points"
    )
    assert (
        "over test images, for these models alone; 20-way, pooled, 10 subjects, 1 seed)"
        in result["answer"]
    )
    assert "`make compare SEEDS=5` trains five" in result["answer"]
    json.dumps(result)


def test_models_of_one_subject_each_make_subjects_enough():
    """What seeds change in them differs from subject to subject already."""
    result = compared(*pair(10, seeds=(1,), own_models=True))
    assert result["ci95_over"] == ["subjects", "test images"] and result["verdict"] == "better"
    assert compared(*pair(5, seeds=(1,), own_models=True))["verdict"] == "no claim"
    assert compared(*pair(5, own_models=True))["ci95_over"] == ["seeds", "test images"]


CLOSED = {"closed_form": True}


def test_models_without_seeds_need_one_run():
    """No chance moved them: subjects and test images are all that varies, of a pooled model too."""
    result = compared(*pair(10, seeds=(1,)), **CLOSED)
    assert result["ci95_over"] == ["subjects", "test images"] and result["verdict"] == "better"
    assert "20-way, pooled, 10 subjects, without seeds)" in result["answer"]
    assert result["without_seeds"] == ["unaligned", "aligned"]

    few = compared(*pair(5, seeds=(1,)), **CLOSED)
    assert few["verdict"] == "no claim" and few["metrics"]["top1_acc"]["p"] is None
    assert few["answer"].startswith("No claim can be made from 5 subjects, it takes 6: top-1 ")

    # As the same models in several runs: whatever their seeds are called
    again = compare(
        evaluation("unaligned", pair(10, seeds=(1,))[0], **CLOSED),
        evaluation(
            "aligned",
            [dataclasses.replace(run, seed=7) for run in pair(10, seeds=(1,))[1]],
            **CLOSED,
        ),
        parameters(),
        0,
    )
    assert again["metrics"]["top1_acc"] == result["metrics"]["top1_acc"]


def settings(eeg_encoder: str) -> dict:
    return {"settings": {"train": {"epochs": 100, "eeg_encoder": eeg_encoder}}}


def test_a_model_without_seeds_stands_beside_each_seed_of_the_other():
    """Its own part of the variance is nothing, and the seeds of the other side count as ever."""
    baseline, deep = pair(10)
    ridge = [run for run in baseline if run.seed == 2]
    sides = (
        evaluation("unaligned", ridge, **settings("ridge"), **CLOSED),
        evaluation("unaligned", deep, **settings("nice")),
    )
    result = compare(*sides, parameters(), 0)
    assert result["differs_in"] == "EEG encoder" and result["seeds"] == [1, 2, 3]
    assert result["ci95_over"] == ["seeds", "subjects", "test images"]
    assert "10 subjects, 3 seeds of nice)" in result["answer"]
    assert len(result["runs"]) == 3 and result["without_seeds"] == ["ridge"]

    top1 = result["metrics"]["top1_acc"]
    assert top1["ridge"] == np.mean([np.mean(first(8 + i % 2)) for i in range(10)])
    repeated = [dataclasses.replace(run, seed=seed) for seed in (1, 2, 3) for run in ridge]
    same = compare(
        evaluation("unaligned", repeated, **settings("a")),
        evaluation("unaligned", deep, **settings("b")),
        parameters(),
        0,
    )
    assert top1["p"] == same["metrics"]["top1_acc"]["p"]

    back = compare(*sides[::-1], parameters(), 0)["metrics"]["top1_acc"]
    assert back["difference"] == -top1["difference"] and back["p"] == top1["p"]

    one_seed = evaluation("unaligned", pair(10, seeds=(1,))[1], **settings("nice"))
    assert compare(sides[0], one_seed, parameters(), 0)["verdict"] == "no claim"


def test_few_subjects_cannot_speak_for_others():
    result = compared(*pair(2))
    assert result["ci95_over"] == ["seeds", "test images"]
    assert result["verdict"] == "better"  # in these two
    assert result["answer"].startswith(
        "In these 2 subjects, too few to speak for others, the aligned encoder decodes better: top-1 "
    )
    assert compared(*pair(1))["answer"].startswith(
        "In this 1 subject, too few to speak for others, the aligned"
    )


def test_the_spread_of_seeds_is_that_of_their_means():
    """Two subjects with models of their own: the variance of the mean is a quarter of the sum of theirs."""
    unaligned = [scored(name, first(8), seed, fold=name) for name in "ab" for seed in (1, 2)]
    aligned = [
        scored(name, first(8 + 4 * seed), seed, fold=name) for name in "ab" for seed in (1, 2)
    ]
    result = compared(unaligned, aligned)
    top1 = result["metrics"]["top1_acc"]
    assert result["seeds"] == [1, 2] and "2 seeds" in result["answer"]
    assert (
        top1["difference"] == pytest.approx(0.3)
        and result["per_image"]["aligned"]["top1_acc"][13] == 0.5
    )
    of_a_mean = np.var([0.6, 0.8], ddof=1) / 2
    of_images = np.var([0.0] * 8 + [1.0] * 4 + [0.5] * 4 + [0.0] * 4) / N
    seeds, images = 2 * of_a_mean / 4, of_images
    df = (seeds + images) ** 2 / (2 * (seeds / 2) ** 2 + images**2 / (N - 1))
    assert np.ptp(top1["ci95"]) == pytest.approx(
        2 * t.ppf(0.975, df) * (seeds + images) ** 0.5, rel=0.1
    )


def drawn_across(
    n_training: int, n_subjects: int, seeds: tuple[int, ...], gain: float = 0.2
) -> tuple[list[SubjectResult], list[SubjectResult]]:
    """Right answers of models of each training person on the people of another recording."""
    rng = np.random.default_rng(8)
    chance = np.linspace(0.2, 0.6, N)  # some images are easier
    # What the second side does for a person who trains, one who is tested and an image
    own = [0.1 * rng.standard_normal(shape) for shape in ((n_training, 1, 1), (n_subjects, 1), N)]
    chances = np.broadcast_to(chance, (n_training, n_subjects, N)), chance + gain + sum(own)
    unaligned, aligned = (
        [
            scored(f"sub-{s}", rng.random(N) < of_side[f, s], seed, fold=f"from-sub-{f}")
            for f in range(n_training)
            for seed in seeds
            for s in range(n_subjects)
        ]
        for of_side in chances
    )
    return unaligned, aligned


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_people_who_train_and_people_who_are_tested_are_crossed(n_seeds: int) -> None:
    """The parts by hand, from the mean squares of models, subjects and images."""
    sides = drawn_across(7, 6, tuple(range(n_seeds)))
    result = compared(*sides, protocol="across")
    assert result["ci95_over"] == ["training people", "subjects", "test images"]
    assert "over training people, subjects and test images; 20-way, across" in result["answer"]

    ranks = [np.array([run.queries()["rank"] for run in side]) for side in sides]
    first, second = ((rank == 1).reshape(7, n_seeds, 6, N).mean(1) for rank in ranks)
    parts = variances_of_mean(second - first)
    # Three parts hold the noise, and two are taken off.
    total = parts["f"] + parts["s"] + parts["n"] - parts["fn"] - parts["sn"]
    df = total**2 / (parts["f"] ** 2 / 6 + parts["s"] ** 2 / 5 + parts["n"] ** 2 / (N - 1))

    top1 = result["metrics"]["top1_acc"]
    assert total > max(parts.values())
    assert top1["difference"] == pytest.approx((second - first).mean())
    half = t.ppf(0.975, df) * total**0.5
    assert np.ptp(top1["ci95"]) / 2 == pytest.approx(half, rel=0.08)  # the bootstrap is by chance


def variances_of_mean(values: np.ndarray) -> dict[str, float]:
    """What each set of the axes f, s, n adds to the variance of the mean of `values` (F, S, N)."""
    parts = {}
    for axes in ("f", "s", "n", "fn", "sn"):
        inside = tuple(i for i, axis in enumerate("fsn") if axis in axes)
        others = tuple(i for i in range(3) if i not in inside)
        effect = values.mean(others, keepdims=True)
        for axis in inside:
            effect = effect - effect.mean(axis, keepdims=True)
        df = np.prod([values.shape[axis] - 1 for axis in inside])
        parts[axes] = float(np.square(effect).sum() / df / effect.size)
    return parts


def test_a_fold_is_its_share_of_the_mean() -> None:
    """Models of two people on three others: the luck of each model moves half of the mean."""
    sides = [
        [
            scored(f"sub-{s}", first(n[fold, seed]), seed, fold=fold)
            for fold in ("from-a", "from-b")
            for seed in (1, 2)
            for s in range(3)
        ]
        for n in (
            dict.fromkeys([("from-a", 1), ("from-a", 2), ("from-b", 1), ("from-b", 2)], 8),
            {("from-a", 1): 12, ("from-a", 2): 16, ("from-b", 1): 14, ("from-b", 2): 14},
        )
    ]
    result = compared(*sides, protocol="across")
    assert result["ci95_over"] == ["seeds", "test images"]
    assert "p = " in result["answer"] and "not over the people who trained" in result["answer"]
    assert result["answer"].startswith("In these 3 subjects, too few to speak for others")

    # Of one fold alone, by two seeds
    seeds = np.var([0.2, 0.4], ddof=1) / 2 / 4
    by_image = np.array([0.0] * 8 + [1.0] * 4 + [0.75] * 2 + [0.25] * 2 + [0.0] * 4)
    images = by_image.var() / N
    df = (seeds + images) ** 2 / (seeds**2 / 1 + images**2 / (N - 1))
    half = t.ppf(0.975, df) * (seeds + images) ** 0.5
    assert np.ptp(result["metrics"]["top1_acc"]["ci95"]) / 2 == pytest.approx(half, rel=0.1)


def test_models_of_few_people_and_one_seed_are_no_claim_about_others() -> None:
    result = compared(*drawn_across(3, 6, (1,)), protocol="across")
    assert result["verdict"] == "no claim"
    assert result["ci95_over"] == [] and result["metrics"]["top1_acc"]["p"] is None


def test_many_who_train_speak_for_few_who_are_tested() -> None:
    result = compared(*drawn_across(6, 2, (1,)), protocol="across")
    assert result["ci95_over"] == ["training people", "test images"]
    assert result["answer"].startswith("In these 2 subjects, too few to speak for others")
    assert "not over the people who trained" not in result["answer"]


def test_one_model_of_all_who_train_speaks_for_no_others_of_them() -> None:
    result = compared(*pair(8), protocol="across")
    assert result["ci95_over"] == ["seeds", "subjects", "test images"]
    assert "subjects and test images, not over the people who trained; 20-way" in result["answer"]
    assert "people who trained" not in compared(*pair(8))["answer"]


def test_no_plan_is_made_across_recordings() -> None:
    """The variances of crossed folds are left out, and those of one model are no plan either."""
    result = compared(*drawn_across(6, 6, (1, 2)), protocol="across")
    assert "variances" not in result
    for comparison in (result, compared(*pair(8), protocol="across")):
        with pytest.raises(InputError, match="protocol across, and no plan is made"):
            design_of(comparison)


def test_nothing_is_claimed_of_collapsed_runs():
    unaligned, aligned = pair(3, seeds=(1,))
    broken = [dataclasses.replace(aligned[0], collapsed=True), *aligned[1:]]
    result = compared(unaligned, broken)
    assert result["verdict"] == "no claim"
    assert (
        result["answer"] == "No claim can be made: of 1 runs of each encoder, 1 aligned collapsed."
    )
    assert [row["subject"] for row in result["per_subject"]] == ["sub-02", "sub-03"]
    nothing = compared([dataclasses.replace(one, collapsed=True) for one in unaligned], aligned)
    assert nothing["verdict"] == "no claim" and "metrics" not in nothing
    json.dumps(nothing)


def test_what_the_figures_come_from_is_said():
    assert "The data are synthetic" in compared(*pair(2), synthetic=True)["answer"]
    assert "selected on the test set" in compared(*pair(2), selected_on="test")["answer"]


def of_another_protocol(side: Similarities) -> Similarities:
    return dataclasses.replace(side, made_with=side.made_with | {"protocol": "within-subject"})


def of_other_epochs(side: Similarities) -> Similarities:
    return dataclasses.replace(
        side, made_with=side.made_with | {"settings": {"train": {"epochs": 50}}}
    )


def of_another_seed(side: Similarities) -> Similarities:
    return dataclasses.replace(
        side, results=[dataclasses.replace(one, seed=7) for one in side.results]
    )


def of_fewer_subjects(side: Similarities) -> Similarities:
    return dataclasses.replace(side, results=side.results[1:])


def of_other_images(side: Similarities) -> Similarities:
    return dataclasses.replace(side, image_ids=side.image_ids[::-1])


def of_the_other_encoder(side: Similarities) -> Similarities:
    return dataclasses.replace(side, made_with=side.made_with | {"encoder": "unaligned"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_protocol, r"differ in protocol \(pooled; within-subject\) too"),
        (of_other_epochs, r"differ in settings.train.epochs \(100; 50\) too"),
        (of_another_seed, r"differ in runs \(\['pooled-seed-1'\]; \['pooled-seed-7'\]\)"),
        (of_fewer_subjects, "differ in subjects"),
        (of_other_images, "differ in the test images too, and so not in the encoder alone"),
        (of_the_other_encoder, "differ in nothing"),
    ],
)
def test_runs_that_differ_in_more_than_the_encoder_are_refused(change, message):
    unaligned, aligned = pair(3, seeds=(1,))
    with pytest.raises(InputError, match=message):
        compare(
            evaluation("unaligned", unaligned),
            change(evaluation("aligned", aligned)),
            parameters(),
            0,
        )
    compare(evaluation("unaligned", unaligned), evaluation("aligned", aligned), parameters(), 0)


def test_left_out_subjects_are_not_as_many_repetitions():
    """Their models share training subjects, so that the interval is wider than of models of one subject each."""
    names = [f"sub-{i:02}" for i in range(8)]
    runs = [
        [scored(name, first(n + i * gain), fold=name) for i, name in enumerate(names)]
        for n, gain in ((8, 0), (9, 1))
    ]
    widths = []
    for protocol in ("within-subject", "leave-one-subject-out"):
        low, high = compared(*runs, protocol=protocol)["metrics"]["top1_acc"]["ci95"]
        widths.append(high - low)
    assert widths[1] > 1.05 * widths[0]


EMBEDDED = {
    "backbone": "synclr_vitb16",
    "checkpoint": "a.zip",
    "checkpoint_sha256": "1",
    "preprocessing": "x",
}
RECIPE = {
    "eeg_encoder": "nice",
    "eeg_weights": "none",
    "eeg_encoder_frozen": False,
    "block": "last",
    "views": "original",
    "views_in_gallery": "original",
    "control": "none",
    "epochs": 100,
}
SETTINGS = {"train": RECIPE, "embeddings": EMBEDDED}
SETTINGS |= {f"eeg of sub-{i:02}": {"channels": ["O1", "Oz"], "dtype": "float32"} for i in (1, 2)}


def side(
    n: int, settings: dict | None = None, encoder: str = "unaligned", **changes: object
) -> Similarities:
    runs = [
        scored(name, first(n + (seed > 1)), seed)
        for seed in (1, 2, 3)
        for name in ("sub-01", "sub-02")
    ]
    about = {"block": "last", "alignment": "none", "settings": settings or SETTINGS}
    about |= {"views": "original", "views_in_gallery": "original"}
    return evaluation(encoder, runs, **about | changes)


def with_settings(**sections: dict) -> dict:
    return {
        name: of | sections.get(name.replace(" ", "_").replace("-", "_"), {})
        for name, of in SETTINGS.items()
    }


DINO = EMBEDDED | {
    "backbone": "dino_vitb16",
    "checkpoint": "b.zip",
    "checkpoint_sha256": "2",
    "preprocessing": "y",
}
DRAWN = with_settings(train={"views": "draw"})
BLURRED = with_settings(train={"views": "blur-8", "views_in_gallery": "blur-8"})
OCCIPITAL = {"channels": ["O1"]}
MIXED = with_settings(train={"block": "mix"})
BASELINES = {
    "alignment": side(8, encoder="aligned", alignment="dreamsim"),
    "mixed blocks": side(8, MIXED, block="mix", mixed_blocks="6, last"),
}
PAIRS = {
    "alignment": (side(14, encoder="aligned", alignment="glocal"), "dreamsim", "glocal"),
    "backbone": (
        side(14, with_settings(embeddings=DINO), backbone="dino_vitb16"),
        "synclr_vitb16",
        "dino_vitb16",
    ),
    "block": (side(14, with_settings(train={"block": 6}), block=6), "last", "6"),
    "mixed blocks": (side(14, MIXED, block="mix", mixed_blocks="3, last"), "6, last", "3, last"),
    "views": (side(14, BLURRED, views="blur-8", views_in_gallery="blur-8"), "original", "blur-8"),
    "views in gallery": (
        side(
            14, with_settings(train={"views_in_gallery": "mean"}), views_in_gallery="mean of a, b"
        ),
        "original",
        "mean of a, b",
    ),
    "EEG encoder": (side(14, with_settings(train={"eeg_encoder": "atm-s"})), "nice", "atm-s"),
    "EEG weights": (side(14, with_settings(train={"eeg_weights": ["86a4"]})), "none", "86a4"),
    "frozen EEG encoder": (
        side(14, with_settings(train={"eeg_encoder_frozen": True})),
        "False",
        "True",
    ),
    "channels": (
        side(14, with_settings(eeg_of_sub_01=OCCIPITAL, eeg_of_sub_02=OCCIPITAL)),
        "O1 Oz",
        "O1",
    ),
    "control": (
        side(14, with_settings(train={"control": "shuffled"}), control="shuffled"),
        "none",
        "shuffled",
    ),
}


@pytest.mark.parametrize("thing", PAIRS)
def test_any_one_thing_can_be_compared(thing):
    other, a, b = PAIRS[thing]
    baseline = BASELINES.get(thing, side(8))
    result = compare(baseline, other, parameters(), 0)
    assert (result["differs_in"], result["baseline"], result["other"]) == (thing, a, b)
    assert result["metrics"]["top1_acc"]["difference"] == pytest.approx(0.3)
    assert f"with the {thing} {b} decoding is better than with {a}: top-1" in result["answer"]
    reverse = compare(other, baseline, parameters(), 0)
    assert reverse["metrics"]["top1_acc"]["difference"] == pytest.approx(-0.3)
    assert reverse["metrics"]["top1_acc"]["p"] == result["metrics"]["top1_acc"]["p"]
    assert f"with the {thing} {a} decoding is worse than with {b}: top-1" in reverse["answer"]


def test_a_control_is_compared_with_nothing_but_a_control_or_that_very_run():
    control = {"settings": with_settings(train={"control": "shuffled"}), "control": "shuffled"}
    with pytest.raises(InputError, match="differ in encoder and control: compare one thing"):
        compare(side(8), side(14, encoder="aligned", **control), parameters(), 0)
    both = compare(side(8, **control), side(14, encoder="aligned", **control), parameters(), 0)
    assert "trained on shuffled images (train.control): a control" in both["answer"]


def test_what_was_planted_is_part_of_the_answer():
    planted = {"planted": "Planted here: something.", "synthetic": True}
    sides = (
        side(n, encoder=encoder, **planted) for n, encoder in ((8, "unaligned"), (14, "aligned"))
    )
    answer = compare(*sides, parameters(), 0)["answer"]
    assert "Planted here: something. The data are synthetic" in answer
    with pytest.raises(InputError, match="differ in planted"):
        compare(side(8, planted="a"), side(8, planted="b"), parameters(), 0)


OF_ALIGNET = EMBEDDED | {"checkpoint": "b", "checkpoint_sha256": "2", "preprocessing": "y"}


def test_the_caveats_of_the_image_models_are_part_of_the_answer():
    glocal = side(14, encoder="aligned", alignment="glocal", caveat="It saw the test concepts.")
    result = compare(BASELINES["alignment"], glocal, parameters(), 0)
    assert result["caveats"] == ["Of glocal: It saw the test concepts."]
    assert "). Of glocal: It saw the test concepts." in result["answer"]

    # On both sides alike
    shallow = side(
        8,
        with_settings(train={"block": 6}),
        block=6,
        encoder="aligned",
        alignment="glocal",
        caveat="It saw the test concepts.",
    )
    result = compare(glocal, shallow, parameters(), 0)
    assert result["caveats"] == ["Of last and 6: It saw the test concepts."]
    assert "caveat" not in result


@pytest.mark.parametrize("encoder", ["unaligned", "aligned"])
def test_an_alignment_in_a_checkpoint_of_its_own_is_compared_and_its_pictures_are_told(encoder):
    base = side(8, encoder=encoder, alignment="dreamsim" if encoder == "aligned" else "none")
    alignet = side(14, with_settings(embeddings=OF_ALIGNET), encoder="aligned", alignment="alignet")
    result = compare(base, alignet, parameters(), 0)
    assert result["differs_in"] == ("alignment" if encoder == "aligned" else "encoder")
    [told] = result["caveats"]
    assert told.startswith("The two see the pictures prepared in different ways: ")
    assert told.endswith(f"{result['baseline']} (x), {result['other']} (y).")
    assert told in result["answer"]


@pytest.mark.parametrize("key", ["checkpoint_sha256", "preprocessing"])
def test_another_file_of_the_same_name_is_refused(key):
    other = side(
        14, with_settings(embeddings={key: "other"}), encoder="aligned", alignment="dreamsim"
    )
    with pytest.raises(InputError, match=f"differ in settings.embeddings.{key} .* too"):
        compare(side(8), other, parameters(), 0)


def test_a_mix_of_blocks_is_compared_with_a_block():
    mix = side(14, MIXED, block="mix", mixed_blocks="6, last")
    result = compare(side(8), mix, parameters(), 0)
    assert (result["differs_in"], result["baseline"], result["other"]) == ("block", "last", "mix")


def test_views_that_are_drawn_from_others_are_compared():
    few, more = (
        side(n, DRAWN, views=f"draw of original, {views}") for n, views in ((8, "a"), (14, "a, b"))
    )
    result = compare(few, more, parameters(), 0)
    assert (result["differs_in"], result["other"]) == ("views", "draw of original, a, b")


def test_the_unaligned_encoder_is_the_baseline_in_whatever_order():
    runs = pair(8)
    sides = evaluation("unaligned", runs[0]), evaluation("aligned", runs[1])
    there, back = (compare(*pair, parameters(), 0) for pair in (sides, sides[::-1]))
    assert json.dumps(there) == json.dumps(back)


def test_two_things_at_once_are_refused():
    both = side(
        14, with_settings(train={"block": 6}), block=6, encoder="aligned", alignment="dreamsim"
    )
    with pytest.raises(
        InputError, match="differ in encoder and block: compare one thing at a time"
    ):
        compare(side(8), both, parameters(), 0)
    for change in ({"dtype": "float64"}, {"window": [0, 1]}):
        with pytest.raises(
            InputError, match="they may differ in one of encoder, alignment, backbone"
        ):
            compare(side(8), side(8, with_settings(eeg_of_sub_01=change)), parameters(), 0)


def test_published_figures_of_the_dataset_are_printed_beside_it(capsys):
    for dataset, beside in (("things-eeg2", True), ("of a colleague", False)):
        result = compared(*pair(2), dataset=dataset)
        print_comparison(result)
        printed = capsys.readouterr().out
        assert "Aligned against unaligned" in printed and result["answer"] in " ".join(
            printed.split()
        )
        told = [
            "Published on THINGS-EEG2, 200-way, mean of 10 subjects",
            "this run, aligned",
            "ATM-S",
        ]
        assert [words in printed for words in told] == [beside] * 3
