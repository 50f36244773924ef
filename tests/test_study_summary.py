import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_grid import FACTS, answer, cells, draw, names, trials

from pipeline.compare.comparison import compare
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import holm
from pipeline.params import read_params
from pipeline.sections import Evaluate
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.study.summary import summarise

PARAMETERS = Evaluate(
    **read_params(Path("params.yaml")).evaluate.model_dump() | {"resamples": 300, "top_k": [1, 5]}
)
N = 20


def first(n: int) -> np.ndarray:
    return np.arange(N) < n


def certain(
    of: list[Cell], gains: list[int], n_subjects: int = 8, seeds: tuple[int, ...] = (1, 2, 3)
) -> list[TrialResult]:
    """In cell i the aligned encoder has gains[i] of 20 images more, of some 8; one more or less by subject and seed."""
    return [
        answer(
            trial,
            subject,
            first(
                8 + gain * (trial.encoder == "aligned") + (int(subject[-1]) + trial.run.seed) % 2
            ),
        )
        for cell, gain in zip(of, gains, strict=True)
        for trial in trials(cell, names(n_subjects), seeds)
        for subject in trial.run.tested_on
    ]


def summary_of(
    answers: list[TrialResult], failures: dict[Trial, str] | None = None, **facts: object
) -> dict:
    return summarise(answers, failures or {}, FACTS | facts, PARAMETERS, 0)[0]


def broken(answers: list[TrialResult], **of: object) -> list[TrialResult]:
    """The same with the runs whose cell, encoder, fold or seed is `of` collapsed."""
    return [
        dataclasses.replace(one, collapsed=True)
        if of.items() <= (vars(one.trial) | vars(one.trial.run)).items()
        else one
        for one in answers
    ]


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.9, 0.5, 0.0], [1.0, 1.0, 0.0]),
        ([0.02, 0.011], [0.022, 0.022]),  # none smaller than the one before
    ],
)
def test_holm_by_hand(p, corrected):
    assert holm(np.array(p)) == pytest.approx(corrected)


def test_what_is_planted_is_found_and_nothing_else():
    of = cells()
    summary = summary_of(certain(of, [6, 0, -5, 0]))
    assert [cell["verdict"] for cell in summary["cells"]] == [
        "better",
        "no difference shown",
        "worse",
    ] + ["no difference shown"]
    assert [cell["difference"]["top1_acc"]["mean"] for cell in summary["cells"]] == pytest.approx(
        [0.3, 0, -0.25, 0]
    )
    assert [cell["unaligned"]["top1_acc"] for cell in summary["cells"]] == pytest.approx(
        [0.425] * 4
    )
    assert summary["verdicts"] == {"better": 1, "worse": 1, "no difference shown": 2, "no claim": 0}
    p = [cell["p"] for cell in summary["cells"]]
    assert [cell["p_holm"] for cell in summary["cells"]] == holm(np.array(p)).tolist()
    assert p[0] < 0.05 / 4 < summary["cells"][0]["p_holm"] < 0.05 and p[1] == 1
    assert summary["answer"] == (
        "The aligned encoder decodes better in 1 of 4 cells and worse in 1; in 2 no difference is shown. Asked of "
        "top-1, with p ≤ 0.05 after Holm's correction over 4 cells (20-way, chance 5.0 %, pooled, 8 subjects, 3 "
        "seeds). The difference is +0.0 points in the middle cell, -25.0 to +30.0 in all."
    )
    assert (summary["n_runs"], summary["n_ok"], summary["n_way"], summary["chance_top1"]) == (
        24,
        24,
        20,
        0.05,
    )
    json.dumps(summary)


def test_a_cell_says_what_compare_says():
    """To the last digit, with the same runs in the format of the evaluate stage."""
    random, ids = np.random.default_rng(0), np.arange(N).astype(str).astype(object)
    [cell] = cells(["clip_vitb32"], ["nice"])
    scored, answers = {"unaligned": [], "aligned": []}, []
    for trial in trials(cell, names(7), (1, 2)):
        for subject in trial.run.tested_on:
            similarity = (
                np.eye(N) * 0.5
                + 0.5 * random.standard_normal((N, N))
                + 0.2 * (trial.encoder == "aligned")
            )
            one = SubjectResult(
                trial.run.fold,
                trial.run.seed,
                subject,
                7,
                False,
                10.0,
                np.empty(0),
                np.empty(0),
                similarity,
            )
            scored[trial.encoder].append(one)
            answers.append(
                dataclasses.replace(answer(trial, subject, first(1)), queries=one.queries())
            )
    about = {key: FACTS[key] for key in ("dataset", "synthetic", "selected_on")} | {
        "protocol": "pooled"
    }
    sides = [
        Similarities(ids, ids, ids, runs, about | {"encoder": encoder, "settings": {}})
        for encoder, runs in scored.items()
    ]
    expected = compare(*sides, PARAMETERS, 0)
    [found] = summary_of(answers)["cells"]
    for metric in ("top1_acc", "top5_acc"):
        values = expected["metrics"][metric]
        difference = found["difference"][metric]
        assert difference["mean"] == pytest.approx(values["difference"])
        for name in ("ci95", "ci95_these_models"):
            assert difference[name] == pytest.approx(values[name])
        assert found["aligned"][metric] == pytest.approx(values["aligned"])
    assert found["p"] == pytest.approx(expected["metrics"]["top1_acc"]["p"])
    assert (found["ci95_over"], found["verdict"]) == (expected["ci95_over"], expected["verdict"])


@pytest.mark.long
def test_the_order_of_the_runs_changes_nothing():
    of = cells(blocks=("11", "last", "6"), protocols=("within-subject", "pooled"))
    answers = draw(of, 3, (1, 2), [0.1] * len(of), N)
    failures = dict.fromkeys(trials(of[0], names(3), (3,)), "no memory")
    written = []
    for order in (1, -1):
        in_order = dict([*failures.items()][::order])
        summary, table = summarise(answers[::order], in_order, FACTS, PARAMETERS, 0)
        written.append((json.dumps(summary), table.to_csv(index=False)))
    answers = [dataclasses.replace(one, device="cuda", seconds=0.1) for one in answers]
    summary, table = summarise(answers, failures, FACTS, PARAMETERS, 0)
    assert written[0] == written[1] == (json.dumps(summary), table.to_csv(index=False))
    places = list(
        dict.fromkeys(
            (cell["protocol"], cell["backbone"], cell["block"]) for cell in summary["cells"]
        )
    )
    assert [block for *_, block in places] == ["6", "11", "last"] * 4
    assert list(table["protocol"].unique()) == ["pooled", "within-subject"]


def test_the_table_has_a_row_a_run_and_subject():
    of = cells(["clip_vitb32"], ["nice"])
    failures = {trials(of[0], names(2), (9,))[1]: "the loss was not finite"}
    _, table = summarise(broken(certain(of, [3], 2), seed=2), failures, FACTS, PARAMETERS, 0)
    assert len(table) == 2 * 3 * 2 + 2
    assert table["status"].value_counts().to_dict() == {"ok": 8, "collapsed": 4, "failed": 2}
    row = table[
        (table["encoder"] == "aligned") & (table["seed"] == 1) & (table["subject"] == "sub-01")
    ].iloc[0]
    assert (row["top1_acc"], row["mean_rank"], row["n_way"], row["selected_epoch"]) == (
        11 / N,
        29 / N,
        N,
        7,
    )
    lost = table[table["status"] == "failed"]
    assert set(lost["reason"]) == {"the loss was not finite"} and lost["subject"].tolist() == names(
        2
    )
    assert lost[["top1_acc", "n_way", "selected_epoch"]].isna().all(axis=None) and set(
        lost["encoder"]
    ) == {"aligned"}
    assert ",ok,,7,20," in table.to_csv(index=False)  # whole numbers, though some are missing


def test_runs_that_broke_leave_no_claim_and_are_told():
    """However clear the difference of those left is; and the other cells are corrected for their own number."""
    of = cells()
    answers = broken(certain(of, [6] * 4), cell=of[0], encoder="aligned", seed=2)
    gone = [
        trial
        for trial in trials(of[1], names(8), (1, 2, 3))
        if trial.encoder == "unaligned" and trial.run.seed > 1
    ]
    summary = summary_of(answers, dict.fromkeys(gone, "out of memory"))
    first_cell, second, *others = summary["cells"]
    for cell, n_pairs, why in (
        (first_cell, 2, "1 of 3 aligned runs collapsed"),
        (second, 1, "2 of 3 unaligned runs failed"),
    ):
        assert (cell["verdict"], cell["p"], cell["p_holm"], cell["ci95_over"]) == (
            "no claim",
            None,
            None,
            [],
        )
        assert cell["no_claim_because"] == why and cell["difference"]["top1_acc"]["ci95"] is None
        assert cell["difference"]["top1_acc"]["mean"] == pytest.approx(0.3)
        assert min(cell[encoder]["n_ok"] for encoder in ("unaligned", "aligned")) == n_pairs
    assert [cell["verdict"] for cell in others] == ["better", "better"]
    assert others[0]["p_holm"] == pytest.approx(min(1, 2 * others[0]["p"]))
    assert (summary["n_runs"], summary["n_ok"], summary["n_collapsed"], summary["n_failed"]) == (
        24,
        21,
        1,
        2,
    )
    assert summary["collapsed"] == [
        dataclasses.asdict(of[0]) | {"encoder": "aligned", "fold": "pooled", "seed": 2}
    ]
    assert [(run["seed"], run["reason"]) for run in summary["failed"]] == [
        (2, "out of memory"),
        (3, "out of memory"),
    ]
    assert (
        "in 2 no claim can be made: runs that collapsed, failed or have no partner (2 cells)"
        in summary["answer"]
    )
    assert "correction over 2 cells" in summary["answer"]


def test_answers_without_a_partner_leave_no_claim():
    answers = [
        one
        for one in certain(cells(), [6] * 4)
        if (one.trial.encoder, one.trial.run.seed) != ("aligned", 3)
    ]
    for cell in summary_of(answers)["cells"]:
        assert cell["no_claim_because"] == "8 without a partner of the other encoder"


def test_nothing_left_is_no_result():
    of = cells(["clip_vitb32"], ["nice"])
    failures = dict.fromkeys(trials(of[0], names(2), (1,)), "no memory")
    summary, table = summarise([], failures, FACTS, PARAMETERS, 0)
    assert summary["answer"] == "No result: of 2 runs 2 collapsed or failed, and no pair is left."
    assert (
        len(table) == 4
        and summary["n_way"] is None
        and summary["cells"][0]["verdict"] == "no claim"
    )
    collapsed = summary_of(broken(certain(of, [6])))
    assert collapsed["answer"].startswith("No result: of 6 runs 6 collapsed or failed")
    assert "top1_acc" not in collapsed["cells"][0]["aligned"]


def test_one_seed_of_pooled_models_is_no_claim():
    of = cells(["clip_vitb32"], protocols=("pooled", "within-subject"))
    summary = summary_of(certain(of, [6] * 4, seeds=(1,)))
    verdicts = {cell["protocol"]: cell["verdict"] for cell in summary["cells"]}
    assert verdicts == {"pooled": "no claim", "within-subject": "better"}
    assert (
        "in 2 no claim can be made: one seed of models that subjects share (2 cells)"
        in summary["answer"]
    )
    assert (
        "Pooled: better in 0 of 2, worse in 0. Within-subject: better in 2 of 2, worse in 0."
        in summary["answer"]
    )
    summary = summary_of(certain(of[::2], [6] * 2, seeds=(1,)))
    assert summary["answer"].startswith(
        "No claim can be made in any of 2 cells (20-way, chance 5.0 %, pooled, 8 subj"
    )
    assert all(
        cell["difference"]["top1_acc"]["ci95_these_models"][0] > 0 for cell in summary["cells"]
    )


PAIR = ("things-eeg2", "alljoined")
RECORDINGS = [PAIR[:1] * 2, PAIR[1:] * 2, PAIR, PAIR[::-1]]  # who trains, who is tested


def two_recordings(seeds: tuple[int, ...] = (1, 2, 3)) -> list[TrialResult]:
    """Of each recording alone, where nothing is planted, and of both across, where something is."""
    grid = [["clip_vitb32"], ["nice"]]
    alone = cells(*grid, ["within-subject"], datasets=RECORDINGS[:2])
    both = cells(*grid, ["across"], datasets=RECORDINGS[2:])
    return certain([*alone, *both], [0, 0, 6, -6], seeds=seeds)


def test_the_answer_says_who_trained_and_who_was_tested():
    summary = summary_of(two_recordings())
    assert summary["datasets"] == ["alljoined", "things-eeg2"]
    assert [
        (cell["protocol"], cell["trained_dataset"], cell["tested_dataset"], cell["verdict"])
        for cell in summary["cells"]
    ] == [
        ("across", "alljoined", "things-eeg2", "worse"),
        ("across", "things-eeg2", "alljoined", "better"),
        ("within-subject", "alljoined", "alljoined", "no difference shown"),
        ("within-subject", "things-eeg2", "things-eeg2", "no difference shown"),
    ]
    assert (
        "(20-way, chance 5.0 %, across and within-subject, recordings alljoined and things-eeg2, "
        "8 subjects, 3 seeds). In 2 cells of the protocol across the claim is about models of "
        "these training people alone. Across, trained on alljoined, tested on things-eeg2: better "
        "in 0 of 1, worse in 1. Across, trained on things-eeg2, tested on alljoined: better in 1 "
        "of 1, worse in 0. Within-subject, trained and tested on alljoined: better in 0 of 1"
    ) in summary["answer"]


def test_one_direction_is_named_and_one_seed_of_it_is_no_claim():
    [cell] = cells(["clip_vitb32"], ["nice"], ["across"], datasets=[PAIR])
    summary = summary_of(certain([cell], [6], seeds=(1,)))
    assert summary["answer"].startswith(
        "No claim can be made in any of 1 cell (20-way, chance 5.0 %, across, trained on "
        "things-eeg2, tested on alljoined, 8 subjects, 1 seed): one seed of models that subjects"
    )


def test_tables_of_two_studies_can_be_joined():
    """A row of each says by its dataset who trained and who was tested."""
    of_cells = [cells(["clip_vitb32"], ["nice"], datasets=[(name, name)]) for name in PAIR]
    tables = [summarise(certain(of, [3], 2), {}, FACTS, PARAMETERS, 0)[1] for of in of_cells]
    joined = pd.concat(tables)
    keys = [*(field.name for field in dataclasses.fields(Cell)), "encoder", "seed", "subject"]
    assert len(joined) == 2 * len(tables[0]) and not joined.duplicated(keys).any()


def test_few_subjects_speak_for_themselves():
    summary = summary_of(certain(cells(), [6] * 4, n_subjects=2))
    assert summary["answer"].startswith(
        "In these 2 subjects, too few to speak for others, the aligned encoder decodes"
    )
    assert {tuple(cell["ci95_over"]) for cell in summary["cells"]} == {("seeds", "test images")}
    one = cells(["clip_vitb32"], ["nice"], ["within-subject"])
    [cell] = summary_of(certain(one, [6], n_subjects=2, seeds=(1,)))["cells"]
    assert cell["no_claim_because"] == "one seed of fewer than 6 subjects"


def test_identical_encoders_are_no_claim():
    summary = summary_of(certain(cells(), [0] * 4))
    assert summary["verdicts"]["no difference shown"] == 4
    assert all(
        cell["difference"]["top1_acc"] == {"mean": 0, "ci95": (0, 0), "ci95_these_models": (0, 0)}
        for cell in summary["cells"]
    )


def test_what_flatters_or_means_nothing_is_said():
    summary = summary_of(certain(cells(), [1] * 4), synthetic=True, selected_on="test")
    assert (
        "selected on the test set" in summary["answer"]
        and "The data are synthetic" in summary["answer"]
    )
    assert summary["caveats"] == ["A caveat."]


def test_the_spread_of_a_side_by_hand():
    """Two subjects, two seeds: top-1 of 8 or 9 of 20 by subject + seed, so that all means are the same."""
    [cell] = summary_of(certain(cells(["clip_vitb32"], ["nice"]), [0], 2, (1, 2)))["cells"]
    side = cell["unaligned"]
    assert side["top1_acc"] == pytest.approx(0.425)
    assert (
        side["sd_over_subjects"]["top1_acc"]
        == side["sd_over_seeds"]["top1_acc"]
        == pytest.approx(0, abs=1e-12)
    )
    low, high = side["ci95"]["top1_acc"]
    assert low < 0.425 < high and side["ci95_over"] == "subjects and test images"
    assert (side["n_subjects"], side["n_seeds"], side["n_ok"]) == (2, 2, 2)


def test_top_1_is_what_a_study_asks_about():
    with pytest.raises(InputError, match="evaluate.top_k must hold 1"):
        summarise([], [], FACTS, PARAMETERS.model_copy(update={"top_k": [3]}), 0)
