"""Ridge beside every run: what the stage writes, what decides it, and the paired difference."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.compare.baseline import set_beside_baseline
from pipeline.compare.comparison import compare
from pipeline.datasets.human import write_no_human
from pipeline.evaluate.baseline import BASELINE
from pipeline.evaluate.similarities import Similarities, read_similarities
from pipeline.params import read_params
from pipeline.provenance import code_of
from stages import baseline, evaluate, explain, report, train
from stages.code import main as write_records
from tests.test_comparison import evaluation, first, pair, parameters, scored

pytestmark = pytest.mark.usefixtures("cache")

TABLES = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")
EXPLAINED = ("galleries", "calibration", "reliability", "rsa", "near_misses", "concepts")


def params(folder: Path, **changes: object) -> Path:
    """params.yaml with other values in the section train, and fewer draws."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["evaluate"] |= {"resamples": 200, "draws": 1}
    values["runs"]["workers"] = 1
    values["train"] |= {"epochs": 1, "batch_size": 12} | changes
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_baseline(data: Path, folder: Path, **changes: object) -> tuple[dict, pd.DataFrame]:
    outputs = folder / "baseline.h5", folder / "baseline.json", folder / "baseline.csv"
    baseline.main(params(folder, **changes), data / "eeg", data / "embeddings.h5", *outputs)
    return json.loads(outputs[1].read_text()), pd.read_csv(outputs[2])


def run_evaluation(data: Path, folder: Path, **changes: object) -> dict:
    inputs = params(folder, **changes), data / "eeg", data / "embeddings.h5", folder / "model"
    train.main(*inputs)
    outputs = folder / "details.json", folder / "evaluation.h5"
    evaluate.main(*inputs, *outputs, [folder / f"{name}.csv" for name in TABLES])
    explain_evaluation(data, folder)
    return json.loads(outputs[0].read_text())


def explain_evaluation(data: Path, folder: Path) -> None:
    write_no_human(folder / "human.h5", "nobody was asked")
    embeddings = [data / "embeddings.h5"] * 3  # of the evaluation, unaligned and aligned
    files = [folder / name for name in ("model", "evaluation.h5", "human.h5", "explanation.json")]
    inputs = folder / "params.yaml", data / "images.csv", data / "eeg"
    explain.main(*inputs, *embeddings, *files, [folder / f"{name}.csv" for name in EXPLAINED])


def write_page(folder: Path) -> str:
    names = "evaluation.h5", "model/history.csv", "details.json", "explanation.json"
    inputs = [folder / name for name in names]
    outputs = folder / "learning_curves.csv", folder / "pictures", folder / "report.html"
    report.main(
        folder / "params.yaml",
        folder,
        *inputs,
        folder / "comparison.json",
        Path("reference/learning_curve.csv"),
        *outputs,
        [folder / f"{name}.csv" for name in TABLES + EXPLAINED],
        folder / "baseline.h5",
    )
    return outputs[2].read_text()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """Only the words matter here."""
    monkeypatch.setattr(report, "read_thumbnails", lambda *_: None)
    monkeypatch.setattr(report, "draw_pictures", lambda *_: [])


@pytest.mark.parametrize("protocol", ["pooled", "within-subject", "leave-one-subject-out"])
def test_it_has_the_figures_of_a_run_of_ridge(data, tmp_path, protocol):
    summary, table = run_baseline(data, tmp_path, protocol=protocol)
    ridge = run_evaluation(data, tmp_path, protocol=protocol, eeg_encoder="ridge")
    for k in (1, 3, 5):
        name = f"top{k}_acc"
        assert summary[f"ridge_{name}"] == pytest.approx(ridge[name])
        assert summary[f"ridge_{name}_low"] == pytest.approx(ridge["ci95_low"][name])
        assert summary[f"ridge_{name}_high"] == pytest.approx(ridge["ci95_high"][name])
    assert summary["ridge_ci95_over"] == ridge["ci95_over"]
    assert "seeds" not in summary["ridge_ci95_not_over"] + ridge["ci95_not_over"]

    runs = pd.read_csv(tmp_path / "per_subject.csv")
    columns = ["fold", "subject", "top1_acc", "top1_acc_low", "top1_acc_high"]
    pd.testing.assert_frame_equal(table[columns], runs[columns])
    assert {row["fold"]: row["penalty"] for _, row in table.iterrows()} == ridge["penalty"]


def test_what_only_a_training_reads_changes_nothing(data, tmp_path):
    run_baseline(data, tmp_path)
    before = (tmp_path / "baseline.h5").read_bytes()
    run_baseline(data, tmp_path, epochs=9, seeds=4, select_on="test", eeg_encoder="nice")
    assert (tmp_path / "baseline.h5").read_bytes() == before
    run_baseline(data, tmp_path, remove_dc=True)
    assert (tmp_path / "baseline.h5").read_bytes() != before


def test_its_record_of_code_is_of_ridge_and_of_no_training(tmp_path):
    record = tmp_path / "baseline.json"
    write_records(Path("params.yaml"), [record])
    code = json.loads(record.read_text())
    assert code == code_of(Path("stages/baseline.py"), {"EEG_ENCODERS": [BASELINE]})
    assert "pipeline/eeg_encoders/ridge.py" in code
    assert not {"pipeline/train/stack.py", "pipeline/eeg_encoders/nice.py"} & code.keys()


def test_the_page_sets_the_run_beside_it(data, tmp_path):
    summary, _ = run_baseline(data, tmp_path)
    run = run_evaluation(data, tmp_path, epochs=20, standardise_eeg=True)
    assert not run["collapsed"]
    page = write_page(tmp_path)
    row = (
        page.split('id="beside-ridge"')[1]
        .split('<tr data-metric="top1_acc"><th scope="row">top1_acc</th>')[1]
        .split("</tr>")[0]
    )
    difference = run["top1_acc"] - summary["ridge_top1_acc"]
    for value in (summary["ridge_top1_acc"], run["top1_acc"], difference):
        assert f"{value:.3f}</data>" in row
    assert "nice-recipe − ridge" in page and "Thick lines: ridge" in page


def test_the_page_of_ridge_itself_has_no_learning_curves_and_no_seeds(data, tmp_path):
    run_baseline(data, tmp_path)
    run_evaluation(data, tmp_path, eeg_encoder="ridge")
    page = write_page(tmp_path)
    assert "Without a baseline: this run is ridge itself" in page
    assert "no learning curves" in page and "chart-loss" not in page
    assert "ridge, in closed form" in page and "One seed shows no spread" not in page


def test_without_a_baseline_the_page_says_why(data, tmp_path, capsys):
    summary, table = run_baseline(data, tmp_path, block="mix")
    assert summary == {} and table.empty
    assert "without the baseline: " in capsys.readouterr().out
    run_evaluation(data, tmp_path)
    assert "Without a baseline: " in write_page(tmp_path)


def beside(run: Similarities, ridge: Similarities) -> dict:
    return set_beside_baseline(run, ridge, parameters(), 0)


def test_the_difference_is_that_of_a_comparison():
    ridge, deep = pair(10)
    ridge = [result for result in ridge if result.seed == 2]
    settings = {"settings": {"train": {"eeg_encoder": "ridge"}}, "closed_form": True}
    of_ridge = evaluation("aligned", ridge, **settings)
    of_deep = evaluation("aligned", deep, settings={"train": {"eeg_encoder": "nice"}})

    found = beside(of_deep, of_ridge)
    compared = compare(of_ridge, of_deep, parameters(), 0)
    top1, other = (result["metrics"]["top1_acc"] for result in (found, compared))
    assert (top1["baseline"], top1["run"]) == (other["ridge"], other["nice"])
    for name in ("difference", "ci95", "p", "ci95_these_models"):
        assert top1[name] == other[name]
    assert found["ci95_over"] == ["seeds", "subjects", "test images"]
    assert [row["subject"] for row in found["per_subject"]] == compared["subjects"]


def test_without_whole_runs_there_is_no_claim():
    ridge = evaluation("aligned", pair(10, seeds=(1,))[0])
    deep = pair(10)[1]
    one_collapsed = [replace(run, collapsed=run.seed == 3) for run in deep]
    found = beside(evaluation("aligned", one_collapsed), ridge)
    assert found["ci95_over"] == [] and found["metrics"]["top1_acc"]["p"] is None
    assert found["metrics"]["top1_acc"]["difference"] > 0
    assert found["no_claim_because"].startswith("some runs collapsed")
    one_seed = evaluation("aligned", pair(10, seeds=(1,))[1])
    assert beside(one_seed, ridge)["no_claim_because"].startswith("one seed does not tell")

    all_collapsed = [replace(run, collapsed=True) for run in deep]
    assert beside(evaluation("aligned", all_collapsed), ridge) == {"left_out": "all runs collapsed"}
    other_subjects = evaluation("aligned", [scored("sub-99", first(8))])
    assert "of other subjects" in beside(evaluation("aligned", deep), other_subjects)["left_out"]


def test_the_seed_is_a_name_alone(data, tmp_path):
    run_baseline(data, tmp_path)
    one = read_similarities(tmp_path / "baseline.h5")
    values = yaml.safe_load((tmp_path / "params.yaml").read_text()) | {"seed": 7}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    outputs = tmp_path / "baseline.h5", tmp_path / "baseline.json", tmp_path / "baseline.csv"
    baseline.main(tmp_path / "params.yaml", data / "eeg", data / "embeddings.h5", *outputs)
    other = read_similarities(tmp_path / "baseline.h5")
    assert read_params(tmp_path / "params.yaml").seed == 7
    for mine, theirs in zip(one.results, other.results, strict=True):
        np.testing.assert_array_equal(mine.similarity, theirs.similarity)
