import json

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluate.evaluation import (
    headline,
    summarise_block_weights,
    summarise_runs,
    tabulate,
)
from pipeline.evaluate.scoring import Scores, SharedAxes
from pipeline.evaluate.similarities import SubjectResult
from pipeline.sections import Evaluate
from tests.tiny import shipped_params

N = 8
POOLED = {"protocol": "pooled", "selected_on": "validation", "encoder": "aligned"}
NAMES = [
    "nice_loss",
    "rank",
    "image_to_eeg_rank",
    "matched_cosine",
    "mismatched_cosine",
    "mismatched_square",
]


def parameters(**changes: object) -> Evaluate:
    small = {"resamples": 400, "top_k": [1, 3], "n_way": [2, 4, 50]}
    return Evaluate(**shipped_params().evaluate.model_dump() | small | changes)


def axes() -> SharedAxes:
    ids = np.array([str(i) for i in range(N)], dtype=object)
    return SharedAxes(ids, ids, ids, ("O1", "O2"), np.arange(6) / 10, 4, [slice(0, 3), slice(3, 6)])


def outcome(
    subject: str,
    seed: int,
    ranks: list[int],
    collapsed: bool = False,
    fold: str = "pooled",
    epoch: int = 1,
) -> Scores:
    """A run of which only the ranks are known; half of the images are second best where the EEG is masked."""
    sides = (np.zeros((N, k), np.float32) for k in (2, 2, N))
    scored = SubjectResult(fold, seed, subject, epoch, collapsed, 1.0, *sides)
    whole = {name: np.zeros(N) for name in NAMES} | {"rank": np.array(ranks, float)}
    whole["image_to_eeg_rank"], whole["matched_cosine"] = np.ones(N), np.full(N, 0.5)
    less = {name: np.stack([values, values]) for name, values in whole.items()}
    less["rank"][1, : N // 2] = 2
    less["matched_cosine"] = np.array([[0.2] * N, [0.4] * N])
    return Scores(scored, whole, windows=less, channels=less, repetitions={1: less, 2: less})


ALL_FIRST, ALL_SECOND = [1] * N, [2] * N


@pytest.fixture
def two() -> list[Scores]:
    return [outcome("a", 1, ALL_FIRST), outcome("b", 1, ALL_SECOND)]


def test_the_weights_of_mixed_blocks_by_hand():
    """Mean and spread over the runs, collapsed ones left out unless all are; nothing where no blocks were mixed."""
    notes = [
        {"collapsed": weight == 0.9, "block_weights": {"6": weight, "last": 1 - weight}}
        for weight in (0.9, 0.2)
    ]
    assert summarise_block_weights(notes) == {"block_weights": {"6": 0.2, "last": 0.8}}
    both = summarise_block_weights([one | {"collapsed": True} for one in notes])
    assert both["block_weights"] == pytest.approx({"6": 0.55, "last": 0.45})
    assert both["sd_of_block_weights"] == pytest.approx(dict.fromkeys(("6", "last"), 0.7 / 2**0.5))
    assert summarise_block_weights([{"collapsed": False, "block_weights": {}}]) == {}


def test_the_curves_by_hand(two):
    summary, tables = tabulate(two, axes(), POOLED, parameters(), 0)
    assert (summary["top1_acc"], summary["mean_rank"], summary["median_rank"], summary["mrr"]) == (
        0.5,
        1.5,
        1.5,
        0.75,
    )
    assert tables["top_k"]["top_k_acc"].tolist() == [0.5] + [1.0] * (N - 1)
    assert tables["top_k"]["chance"].tolist() == [k / N for k in range(1, N + 1)]
    # Second best of 8: in a gallery of two the better one is the distractor with chance 1 / 7, of four with 3 / 7.
    assert tables["n_way"]["n_way"].tolist() == [2, 4, N]
    assert tables["n_way"]["top1_acc"].tolist() == pytest.approx(
        [(1 + 6 / 7) / 2, (1 + 4 / 7) / 2, 0.5]
    )
    assert tables["n_way"]["top3_acc"].isna().tolist() == [True, False, False]
    assert tables["n_way"]["chance"].tolist() == [1 / 2, 1 / 4, 1 / N]
    # Of subject a half of the images are lost in the second variant, of b all in both.
    assert tables["time_course"]["time"].tolist() == pytest.approx([0.1, 0.4])
    assert tables["time_course"]["top1_acc"].tolist() == [0.5, 0.25]
    assert tables["channels"]["ch_name"].tolist() == ["O1", "O2"]
    assert tables["channels"]["top1_acc_drop"].tolist() == [0, 0.25]
    assert tables["channels"]["matched_cosine_drop"].tolist() == pytest.approx([0.3, 0.1])
    assert tables["repetitions"]["n_repetitions"].tolist() == [1, 2, 4]
    assert tables["repetitions"]["top1_acc"].tolist() == [0.375, 0.375, 0.5]
    sd = np.std([0.5, 0.25], ddof=1)
    assert tables["repetitions"]["top1_acc_sd_over_draws"].tolist() == pytest.approx(
        [sd, sd, np.nan], nan_ok=True
    )


def test_the_curves_meet_the_metrics(two):
    """The last gallery, all repetitions and k = 1 are the same figure, with the same interval."""
    summary, tables = tabulate(two, axes(), POOLED, parameters(), 0)
    ends = (summary["ci95_low"]["top1_acc"], summary["ci95_high"]["top1_acc"])
    for name, row in (("n_way", -1), ("repetitions", -1)):
        last = tables[name].iloc[row]
        assert last["top1_acc"] == summary["top1_acc"]
        assert (last["top1_acc_low"], last["top1_acc_high"]) == pytest.approx(ends)
    first = tables["top_k"].iloc[0]
    assert first[["top_k_acc", "top_k_acc_low", "top_k_acc_high"]].tolist() == pytest.approx(
        [0.5, *ends]
    )
    assert ends == (0, 1)  # of two subjects, one at 1 and one at 0, each may be drawn twice


def test_seeds_are_averaged_before_anything_else():
    """Two seeds of one subject, top-1 of 1 and 0: each image is worth 0.5, and nothing is left to vary."""
    runs = [outcome("a", 1, ALL_FIRST), outcome("a", 2, ALL_SECOND)]
    summary, tables = tabulate(runs, axes(), POOLED, parameters(), 0)
    assert (
        summary["top1_acc"],
        summary["ci95_low"]["top1_acc"],
        summary["ci95_high"]["top1_acc"],
    ) == (0.5, 0.5, 0.5)
    assert summary["sd_over_seeds"]["top1_acc"] == pytest.approx(0.5**0.5)
    assert tables["top_k"]["top_k_acc"][0] == 0.5


def test_one_subject_has_no_spread_and_an_interval_over_images():
    summary, tables = tabulate(
        [outcome("a", 1, [1, 2] * (N // 2))], axes(), POOLED, parameters(), 0
    )
    assert summary["ci95_over"] == "test images" and "sd_over_subjects" not in summary
    assert 0 < summary["ci95_low"]["top1_acc"] < 0.5 < summary["ci95_high"]["top1_acc"] < 1
    assert tables["top_k"]["top_k_acc_sd_over_subjects"].isna().all()
    row = tables["per_subject"].iloc[0]
    assert row["top1_acc_low"] == summary["ci95_low"]["top1_acc"]


def test_collapsed_runs_are_in_no_curve():
    runs = [outcome("a", 1, ALL_FIRST), outcome("a", 2, ALL_SECOND, collapsed=True)]
    summary, tables = tabulate(runs, axes(), POOLED, parameters(), 0)
    assert (summary["top1_acc"], summary["n_collapsed"], summary["collapsed"]) == (1.0, 1, True)
    assert tables["top_k"]["top_k_acc"][0] == summary["ci95_low"]["top1_acc"] == 1.0
    assert len(tables["per_subject"]) == 2
    assert tabulate(runs[1:], axes(), POOLED, parameters(), 0)[0]["top1_acc"] == 0.0


def test_the_summary_is_json_and_says_what_it_is_of(two):
    summary = tabulate(two, axes(), POOLED, parameters(), 3)[0]
    json.dumps(summary)
    assert POOLED.items() <= summary.items()
    assert (summary["n_way"], summary["chance_top1"], summary["seed"], summary["n_seeds"]) == (
        N,
        1 / N,
        3,
        1,
    )


def test_what_is_no_metric_is_not_averaged():
    """The epochs of two runs, their seeds and the gallery are numbers too."""
    runs = [outcome("a", 1, ALL_FIRST, epoch=5), outcome("a", 2, ALL_SECOND, epoch=7)]
    summary, tables = tabulate(runs, axes(), POOLED, parameters(), 0)
    assert tables["per_subject"]["selected_epoch"].tolist() == [5, 7]
    assert (
        summary["sd_over_seeds"].keys() == summary["ci95_low"].keys() == summary["ci95_high"].keys()
    )
    assert not {"selected_epoch", "top1_acc_low"} & summary["ci95_low"].keys()


@pytest.mark.parametrize(
    ("protocol", "not_over"),
    [
        ("within-subject", "training images"),
        ("leave-one-subject-out", "training images and training subjects, which the folds share"),
    ],
)
def test_folds_that_share_training_subjects_are_told(protocol, not_over):
    folds = [
        outcome(name, 1, ranks, fold=name) for name, ranks in (("a", ALL_FIRST), ("b", ALL_SECOND))
    ]
    summary = tabulate(folds, axes(), POOLED | {"protocol": protocol}, parameters(), 0)[0]
    assert summary["ci95_over"] == "subjects, each with models of its own, and test images"
    assert summary["ci95_not_over"] == not_over
    one = tabulate(folds[:1], axes(), POOLED | {"protocol": protocol}, parameters(), 0)[0]
    assert one["ci95_not_over"] == "seeds, subjects and training images"


def table_of(rows: list[tuple[str, int, str, bool, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["fold", "seed", "subject", "collapsed", "top1_acc"])


def test_means_and_spread_by_hand():
    rows = [("pooled", 1, "a", False, 0.2), ("pooled", 1, "b", False, 0.4)]
    rows += [("pooled", 2, "a", False, 0.4), ("pooled", 2, "b", False, 0.6)]
    summary = summarise_runs(table_of(rows), ["top1_acc"])
    assert summary["top1_acc"] == pytest.approx(0.4)
    assert summary["sd_over_subjects"]["top1_acc"] == pytest.approx(0.2 / 2**0.5)  # of 0.3 and 0.5
    assert summary["sd_over_seeds"]["top1_acc"] == pytest.approx(0.2 / 2**0.5)
    assert (summary["n_subjects"], summary["n_runs"], summary["collapsed"]) == (2, 2, False)


def test_collapsed_runs_are_counted_and_not_averaged():
    rows = [("pooled", 1, "a", False, 0.5), ("pooled", 2, "a", True, 0.01)]
    summary = summarise_runs(table_of(rows), ["top1_acc"])
    assert summary["top1_acc"] == 0.5 and summary["collapsed"] is True
    assert (summary["n_runs"], summary["n_collapsed"]) == (2, 1)
    assert "sd_over_seeds" not in summary


def test_where_all_collapsed_their_figures_stand_and_say_so():
    rows = [("pooled", 1, "a", True, 0.02), ("pooled", 1, "b", True, 0.04)]
    summary = summarise_runs(table_of(rows), ["top1_acc"])
    assert summary["top1_acc"] == pytest.approx(0.03) and summary["collapsed"] is True


def test_the_headline_is_flat_and_says_what_the_summary_says(two: list[Scores]) -> None:
    made_with = POOLED | {"selected_on": "last", "synthetic": True}
    summary, _ = tabulate(two, axes(), made_with, parameters(), 0)
    figures = headline(summary, [1, 3])

    assert not any(isinstance(value, dict | list) for value in figures.values())
    assert len(figures) < 16
    low, high = figures.pop("top1_acc_low"), figures.pop("top1_acc_high")
    assert (low, high) == (summary["ci95_low"]["top1_acc"], summary["ci95_high"]["top1_acc"])
    assert figures.items() <= summary.items()
