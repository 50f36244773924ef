"""The runs of a study: planned, run once, kept, and the same as the train and evaluate stages make them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from distributed import LocalCluster

from pipeline.errors import InputError
from pipeline.evaluate.scoring import score, score_average
from pipeline.images.embeddings import read_embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Across, Runs, Study, Train
from pipeline.study.people import StudyRecording, find_study_recordings
from pipeline.study.results import Trial, TrialResult
from pipeline.study.trials import plan_study, run_study
from pipeline.train.inputs import (
    HashedFile,
    SecondRecording,
    cached_embeddings,
    find_subjects,
)
from pipeline.train.model import load_model
from pipeline.train.protocols import plan
from pipeline.train.runs import train_all, train_runs
from stages.study import main
from tests.tiny import forget_trainings, make_embeddings, quick_recipe

pytestmark = pytest.mark.usefixtures("cache")

KINDS = {"one": {"dreamsim": False}, "two": {"dreamsim": False, "other": True}}


@pytest.fixture(scope="module")
def data(data, tmp_path_factory) -> Path:
    """eeg/ of two subjects, and the embeddings of two image models, of which one has two kinds of alignment."""
    base = tmp_path_factory.mktemp("trials")
    (base / "eeg").symlink_to(data / "eeg")
    make_second(data / "eeg", base / "eeg_second")
    image_ids = read_embeddings(data / "embeddings.h5", "last").image_ids
    for seed, name in enumerate(
        ("one/unaligned", "one/dreamsim", "two/unaligned", "two/dreamsim", "two/other")
    ):
        make_embeddings(base / f"embeddings/{name}.h5", image_ids, seed)
    return base


def make_second(eeg: Path, folder: Path) -> None:
    """A second recording of the same pictures: two other people, and a louder amplifier."""
    folder.mkdir()
    for path in eeg.iterdir():
        copy = Path(shutil.copy(path, folder / f"other-{path.name}"))
        with h5py.File(copy, "r+") as file:
            file.attrs["subject"] = copy.stem
            for split in ("train", "test"):
                values = file[split]["eeg"][:]
                noise = np.random.default_rng(len(values)).standard_normal(values.shape)
                file[split]["eeg"][:] = 3 * values + noise


@pytest.fixture(scope="module")
def workers() -> Iterator[Runs]:
    """A worker for all tests of this file: to start one takes longer than the runs.

    Of several at once: test_workers.
    """
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield Runs(where=cluster.scheduler_address, workers="auto")


def study(**changes: object) -> Study:
    grid = {
        "backbones": ["one"],
        "alignments": ["dreamsim"],
        "blocks": ["last"],
        "eeg_encoders": ["nice-recipe"],
        "protocols": ["within-subject"],
        "recordings": ["first"],
        "seeds": 1,
    }
    return Study(**grid | changes)


ACROSS = Across(dataset="other", subjects="all", train_on="both", models="pooled", test_on="second")


def planned(
    grid: Study, subjects: list[str], others: Sequence[str] = (), models: str = "pooled"
) -> list[Trial]:
    """The trials of a grid on the people of the first recording, and of the second if there is one."""
    file = HashedFile(Path(), "")
    recordings = {"first": StudyRecording("sample", dict.fromkeys(subjects, file))}
    if others:
        recordings["second"] = StudyRecording("other", dict.fromkeys(others, file))
    across = ACROSS.model_copy(update={"models": models})
    return plan_study(grid, 42, recordings, across, KINDS)


def test_the_grid(data):
    trials = planned(study(backbones=["one", "two"], alignments=["dreamsim", "other"]), ["a", "b"])
    assert len(trials) == len(set(trials)) == 2 * 3 * 2  # subjects, (model, alignment), encoders
    assert {(trial.cell.backbone, trial.cell.alignment) for trial in trials} == {
        ("one", "dreamsim"),
        ("two", "dreamsim"),
        ("two", "other"),
    }
    blocks = planned(
        study(blocks=[6, "last"], protocols=["pooled", "within-subject"], seeds=[3, 5]), ["a"]
    )
    assert {trial.cell.block for trial in blocks} == {"6", "last"} and {
        trial.run.seed for trial in blocks
    } == {3, 5}
    only_last = study(backbones=["two"], alignments=["dreamsim", "other"], blocks=[6, "last"])
    cells = {(trial.cell.alignment, trial.cell.block) for trial in planned(only_last, ["a"])}
    assert cells == {("dreamsim", "6"), ("dreamsim", "last"), ("other", "last")}
    with pytest.raises(
        InputError, match="study.alignments is other and one has dreamsim: name one that it has"
    ):
        planned(study(alignments=["other"]), ["a"])
    with pytest.raises(InputError, match="study.seeds = .* names a seed twice"):
        planned(study(seeds=[1, 1]), ["a"])


def test_an_encoder_without_seeds_runs_once_and_mixes_no_blocks():
    trials = planned(
        study(eeg_encoders=["nice", "ridge"], blocks=["last", "mix"], seeds=[3, 5]), ["a"]
    )
    runs = [
        (t.cell.eeg_encoder, t.cell.block, t.run.seed) for t in trials if t.encoder == "aligned"
    ]
    of_nice = {("nice", block, seed) for block in ("last", "mix") for seed in (3, 5)}
    assert sorted(runs) == sorted(of_nice | {("ridge", "last", 3)})


BOTH = {"recordings": ["first", "second"], "protocols": ["within-subject", "across"]}


def test_the_recording_is_an_axis_of_the_grid():
    """In the protocol across in both directions, whatever `across` says of who trains."""
    trials = planned(study(**BOTH), ["a", "b"], ["other-c"])
    people = {
        (trial.cell.protocol, trial.cell.trained_dataset, trial.cell.tested_dataset): set()
        for trial in trials
    }
    for trial in trials:
        cell = trial.cell
        of_cell = people[cell.protocol, cell.trained_dataset, cell.tested_dataset]
        of_cell.add((trial.run.trained_on, trial.run.tested_on))
    assert people == {
        ("within-subject", "sample", "sample"): {(("a",), ("a",)), (("b",), ("b",))},
        ("within-subject", "other", "other"): {(("other-c",), ("other-c",))},
        ("across", "sample", "other"): {(("a", "b"), ("other-c",))},
        ("across", "other", "sample"): {(("other-c",), ("a", "b"))},
    }

    # The models are those that `across.models` says
    second = study(recordings=["second"], protocols=["across"])
    trials = planned(second, ["a", "b"], ["other-c", "other-d"], "within-subject")
    assert {(trial.run.fold, trial.run.trained_on, trial.run.tested_on) for trial in trials} == {
        ("from-other-c", ("other-c",), ("a", "b")),
        ("from-other-d", ("other-d",), ("a", "b")),
    }


def test_only_the_recordings_that_are_used_are_read(data, tmp_path):
    datasets = {"first": "sample", "second": "other"}
    folders = {"first": data / "eeg", "second": tmp_path}
    assert list(find_study_recordings(study(), datasets, folders)) == ["first"]
    with pytest.raises(InputError, match=f"{tmp_path}: holds no subject's EEG"):
        find_study_recordings(study(protocols=["across"]), datasets, folders)
    with pytest.raises(InputError, match="the study uses the second recording, and no folder"):
        find_study_recordings(study(recordings=["second"]), datasets, folders | {"second": None})
    folders = {"first": tmp_path, "second": data / "eeg_second"}
    assert list(find_study_recordings(study(recordings=["second"]), datasets, folders)) == [
        "second"
    ]


def test_two_recordings_that_do_not_fit_are_told_before_any_run(data, tmp_path):
    shutil.copytree(data / "eeg_second", tmp_path / "eeg_second")
    (tmp_path / "eeg").symlink_to(data / "eeg")
    for path in (tmp_path / "eeg_second").iterdir():
        with h5py.File(path, "r+") as file:
            file["ch_names"][0] = "Cz"
    with pytest.raises(InputError, match="has channels Cz .*; set preprocess.channels"):
        find(tmp_path, study(**BOTH))
    find(tmp_path, study(recordings=["second"]))


def run(
    data: Path, where: Runs, parameters: Train | None = None, **changes: object
) -> list[TrialResult]:
    grid = study(**changes)
    recordings = find(data, grid)
    answers, failures = run_study(
        plan_study(grid, 1, recordings, ACROSS, KINDS),
        recordings.values(),
        data / "embeddings",
        parameters or quick_recipe(),
        where,
    )
    assert not failures
    return answers


def find(data: Path, grid: Study) -> dict[str, StudyRecording]:
    datasets = {"first": "sample", "second": "other"}
    folders = {"first": data / "eeg", "second": data / "eeg_second"}
    return find_study_recordings(grid, datasets, folders)


VIEWS = {"views": "draw", "views_in_gallery": "mean"}
ON_TEST = {"select_on": "test"}
RIDGE = {"eeg_encoder": "ridge"}


@pytest.mark.parametrize(
    ("protocol", "changes", "normalise"),
    [
        ("pooled", {}, "none"),
        ("pooled", VIEWS, "none"),
        ("within-subject", {}, "none"),
        ("leave-one-subject-out", {}, "none"),
        ("pooled", {}, "average"),
        ("pooled", ON_TEST, "average"),
        ("pooled", RIDGE, "average"),
        ("leave-one-subject-out", RIDGE, "none"),
    ],
)
def test_a_run_of_a_study_is_that_of_the_train_and_evaluate_stages(
    data, workers, tmp_path, protocol, changes, normalise
):
    if normalise == "average":
        data = prepared_with_average(data, tmp_path / "data")
    recipe = quick_recipe(protocol=protocol, **changes)
    both = run(data, workers, recipe, protocols=[protocol], eeg_encoders=[recipe.eeg_encoder])
    answers = {
        (one.trial.run.fold, one.subject): one for one in both if one.trial.encoder == "aligned"
    }
    cache = data / "embeddings/one/dreamsim.h5"
    forget_trainings()
    train_all(data / "eeg", cache, tmp_path / "model", recipe, 1, Runs(where="local", workers=1))
    models = [load_model(folder) for folder in sorted(tmp_path.glob("model/*/"))]
    evaluate = read_params(Path("params.yaml")).evaluate.model_copy(update={"top_k": [1, 3]})
    recordings = (
        read_split(path, "test", average=False) for path in sorted((data / "eeg").iterdir())
    )
    outcomes, axes = score(
        recordings, models, cached_embeddings(HashedFile.of(cache), recipe), evaluate, seed=1
    )
    assert len(outcomes) == len(answers) == 2
    order = np.argsort(axes.image_ids)
    for outcome in outcomes:
        answer = answers[outcome.result.fold, outcome.result.subject]
        assert answer.selected_epoch == outcome.result.selected_epoch
        for name, values in outcome.full.items():
            np.testing.assert_allclose(
                answer.queries[name], values[order], rtol=1e-5, atol=1e-6, err_msg=name
            )


def prepared_with_average(data: Path, copy: Path) -> Path:
    """The same EEG, to be normalised where it is used: only the attribute tells it."""
    shutil.copytree(data, copy)
    for path in (copy / "eeg").iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["normalise"] = "average"
    return copy


def test_nothing_is_run_twice(data, workers, cache):
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.glob("study/*.h5")}

    def told(answers: list[TrialResult]) -> dict[object, bytes]:
        return {(one.trial, one.subject): one.queries["nice_loss"].tobytes() for one in answers}

    first, before = told(run(data, workers)), kept()
    assert len(first) == len(before) == 2 * 2
    assert told(run(data, workers)) == first and kept() == before
    more = told(run(data, workers, seeds=2))
    assert before.items() < kept().items() and len(kept()) == 2 * len(before), (
        "only the new seed was trained"
    )
    assert first.items() < more.items()
    both = run(data, workers, backbones=["two"], alignments=["dreamsim", "other"])
    assert len(both) == 2 * 2 * 2, "both cells have an unaligned side"
    assert len(kept()) == 8 + 3 * 2, "which was trained once"
    run(data, workers, parameters=quick_recipe(learning_rate=0.001))
    assert len(kept()) == 14 + 4, "another parameter is another run"


@pytest.mark.parametrize("protocol", ["within-subject", "leave-one-subject-out"])
def test_runs_that_are_trained_together_answer_as_alone(
    data, workers, cache, monkeypatch, protocol
):
    alone = {
        (one.trial, one.subject): one for one in run(data, workers, seeds=2, protocols=[protocol])
    }
    shutil.rmtree(cache)
    monkeypatch.setattr(
        "pipeline.study.trials.on_gpus", lambda *_: True
    )  # a group for each image encoder
    together = run(data, workers, seeds=2, protocols=[protocol])
    assert len(together) == len(alone) == 2 * 2 * 2
    for one in together:
        reference = alone[one.trial, one.subject]
        np.testing.assert_allclose(
            one.queries["nice_loss"], reference.queries["nice_loss"], rtol=0.01
        )
    assert not list(cache.glob("study/unfinished/*")), "no state of a run that is done is kept"


def test_a_training_of_the_study_is_one_of_the_train_stage(data, workers, cache, monkeypatch):
    """With as many threads: nothing is trained again."""
    run(data, workers)
    monkeypatch.setattr("pipeline.train.runs.train_many", None)
    eeg = find_subjects(data / "eeg")
    embeddings = HashedFile.of(data / "embeddings/one/dreamsim.h5")
    recipe = quick_recipe(protocol="within-subject")
    runs = plan("within-subject", list(eeg), [1])
    folders = cache / "trained", cache / "states"
    results = train_runs(runs, eeg, embeddings, recipe, *folders, lambda: None)
    assert [notes["fold"] for _, notes in results] == ["sub-01", "sub-02"]


@pytest.mark.parametrize("select_on", ["validation", "test"])
def test_models_of_one_recording_are_tested_on_the_people_of_the_other(
    data, workers, tmp_path, monkeypatch, select_on
):
    """As the train and evaluate stages do it; and what is trained by either is trained for both."""
    recipe = quick_recipe(protocol="across", select_on=select_on)
    grid = {"protocols": ["across"], "recordings": ["second"]}
    answers = [one for one in run(data, workers, recipe, **grid) if one.trial.encoder == "aligned"]
    assert {(one.trial.cell.trained_dataset, one.subject) for one in answers} == {
        ("other", "sub-01"),
        ("other", "sub-02"),
    }

    monkeypatch.setattr("pipeline.train.runs.train_many", None)
    across = ACROSS.model_copy(update={"train_on": "second", "test_on": "first"})
    cache = data / "embeddings/one/dreamsim.h5"
    [notes] = train_all(
        data / "eeg",
        cache,
        tmp_path,
        recipe,
        1,
        Runs(where="local", workers=1),
        SecondRecording(data / "eeg_second", across),
    )
    assert (notes["trained_on"], notes["tested_on"]) == (
        ["other-sub-01", "other-sub-02"],
        ["sub-01", "sub-02"],
    )
    model, _ = load_model(tmp_path / "across-seed-1")
    embeddings = cached_embeddings(HashedFile.of(cache), recipe)
    for answer in answers:
        recording = read_split(data / f"eeg/{answer.subject}.h5", "test", average=True)
        order = np.argsort(recording.image_ids)
        images = torch.from_numpy(embeddings.values[embeddings.rows(recording.image_ids)])
        scored = score_average(model, notes, answer.subject, recording.eeg, images).queries()
        for name, values in scored.items():
            np.testing.assert_allclose(answer.queries[name], values[order], rtol=1e-5, atol=1e-6)


def test_a_second_recording_runs_nothing_of_the_first_again(data, workers, cache):
    recipe = quick_recipe(eeg_encoder="ridge")
    ridge = {"eeg_encoders": ["ridge"]}
    run(data, workers, recipe, **ridge)
    before = {path: path.stat().st_mtime_ns for path in cache.glob("study/*.h5")}
    answers = run(data, workers, recipe, **ridge, **BOTH)
    after = {path: path.stat().st_mtime_ns for path in cache.glob("study/*.h5")}

    # Within-subject 2 people, and across 1 model, of each recording and of both encoders
    assert before.items() < after.items() and (len(before), len(after)) == (4, 12)
    datasets = {(one.trial.cell.trained_dataset, one.trial.cell.tested_dataset) for one in answers}
    assert datasets == {
        ("sample", "sample"),
        ("sample", "other"),
        ("other", "sample"),
        ("other", "other"),
    }


def test_other_data_are_other_runs(data, workers, tmp_path, cache):
    run(data, workers)
    other = shutil.copytree(data, tmp_path / "other")
    with h5py.File(other / "eeg/sub-02.h5", "r+") as file:
        file["train/eeg"][0] += 1
    run(other, workers)
    assert len(list(cache.glob("study/*.h5"))) == 4 + 2, "those of the other subject are the same"


def test_runs_that_fail_are_told_and_stop_no_other(data, workers, cache):
    grid = study(eeg_encoders=["nice-recipe", "no-such-encoder"])
    recordings = find(data, grid)
    trials = plan_study(grid, 1, recordings, ACROSS, KINDS)
    where = (recordings.values(), data / "embeddings")
    answers, failures = run_study(trials, *where, quick_recipe(), workers)
    assert len(answers) == len(failures) == 4
    assert {trial.cell.eeg_encoder for trial in failures} == {"no-such-encoder"}
    diverging = quick_recipe(
        learning_rate=1e9, warmup_start=0.5, gradient_clip="none", average_epochs="none"
    )
    trials = plan_study(study(), 1, recordings, ACROSS, KINDS)
    answers, failures = run_study(trials, *where, diverging, workers)
    assert {reason.split(" in epoch")[0] for reason in failures.values()} == {"training diverged"}


def test_a_damaged_file_is_told(data, workers, cache):
    run(data, workers)
    broken = next(cache.glob("study/*.h5"))
    broken.write_bytes(b"no HDF5")
    with pytest.raises(
        InputError, match=f"{broken.name}: is no whole run of a study .*; delete it, to have it run"
    ):
        run(data, workers)
    broken.unlink()
    assert len(run(data, workers)) == 4 and broken.stat().st_size > 1000


def run_stage(
    data: Path,
    folder: Path,
    workers: Runs,
    grid: dict[str, object] | None = None,
    **train: object,
) -> dict:
    """The stage as DVC runs it, on `one` alone; its metrics."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["study"] |= {
        "backbones": ["synclr_vitb16"],
        "protocols": ["within-subject"],
        "eeg_encoders": ["nice-recipe"],
        **(grid or {}),
    }
    values["across"] |= {"dataset": "sample-headset"}
    values["train"] |= quick_recipe(epochs=12).model_dump() | train
    values["evaluate"] |= {"resamples": 100, "top_k": [1, 3]}
    values["runs"] = workers.model_dump()
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / "embeddings").mkdir()
    (folder / "embeddings/synclr_vitb16").symlink_to(data / "embeddings/one")
    outs = [folder / name for name in ("study.csv", "study.json", "study", "study.html")]
    inputs = [folder / "params.yaml", data / "eeg", folder / "embeddings"]
    main(*inputs, *outs, second=data / "eeg_second")
    return json.loads(outs[1].read_text())


def test_the_stage_writes_table_answer_pictures_and_page(data, workers, tmp_path, cache):
    first = run_stage(data, tmp_path / "a", workers)
    assert first["synthetic"] and first["n_runs"] == first["n_ok"] == 2 * 2 * 2
    table = pd.read_csv(tmp_path / "a/study.csv")
    assert len(table) == 8 and set(table["status"]) <= {"ok", "collapsed"}
    assert [path.suffix for path in (tmp_path / "a/study").iterdir()] == [".png"]
    shutil.rmtree(cache)
    assert run_stage(data, tmp_path / "b", workers) == first
    assert (tmp_path / "b/study.csv").read_bytes() == (tmp_path / "a/study.csv").read_bytes()


def test_the_stage_says_who_trained_and_who_was_tested(data, workers, tmp_path, capsys):
    """In the table, the answer and the pictures."""
    summary = run_stage(data, tmp_path / "a", workers, {"eeg_encoders": ["ridge"]} | BOTH)
    assert summary["dataset"] == "sample and sample-headset"
    assert summary["datasets"] == ["sample", "sample-headset"]
    assert sum("The sample's" in caveat for caveat in summary["caveats"]) <= 1
    table = pd.read_csv(tmp_path / "a/study.csv")
    rows = table[["protocol", "trained_dataset", "tested_dataset", "subject"]].drop_duplicates()
    headset = ("other-sub-01", "other-sub-02")
    assert set(rows.itertuples(index=False, name=None)) == {
        *(("within-subject", "sample", "sample", name) for name in ("sub-01", "sub-02")),
        *(("within-subject", "sample-headset", "sample-headset", name) for name in headset),
        *(("across", "sample", "sample-headset", name) for name in headset),
        *(("across", "sample-headset", "sample", name) for name in ("sub-01", "sub-02")),
    }
    assert sorted(path.name for path in (tmp_path / "a/study").iterdir()) == [
        "cells-across-sample-headset-to-sample.png",
        "cells-across-sample-to-sample-headset.png",
        "cells-within-subject-sample-headset.png",
        "cells-within-subject-sample.png",
    ]
    printed = capsys.readouterr().out
    assert "trained on" in printed and "recordings sample and sample-headset" in printed


def test_a_study_of_which_runs_failed_says_so_and_how_many(data, workers, tmp_path):
    diverging = {
        "learning_rate": 1e9,
        "warmup_start": 0.5,
        "gradient_clip": "none",
        "average_epochs": "none",
    }
    with pytest.raises(InputError, match=r"8 of 8 runs are missing from .*study.csv"):
        run_stage(data, tmp_path / "a", workers, **diverging)
    summary = json.loads((tmp_path / "a/study.json").read_text())
    assert (
        summary["n_failed"] == len(summary["failed"]) == 8
        and "training diverged" in summary["failed"][0]["reason"]
    )
    assert "training diverged" in (tmp_path / "a/study.html").read_text()
