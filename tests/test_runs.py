import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline.errors import InputError
from pipeline.evaluate.similarities import read_similarities
from pipeline.images.embeddings import read_embeddings, write_embeddings
from pipeline.sections import Runs
from pipeline.train.inputs import find_subjects
from pipeline.train.loop import train_together
from pipeline.train.many import train_many
from pipeline.train.model import load_model
from pipeline.train.placement import how_many
from pipeline.train.protocols import Run, plan, seeds_of
from pipeline.train.runs import train_all
from stages import evaluate
from tests.tiny import forget_trainings, quick_recipe

pytestmark = pytest.mark.usefixtures("cache")

HERE = Runs(where="local", workers=1)
SUBJECTS = ["sub-01", "sub-02"]


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/model.safetensors"))}


def changed(data: Path, target: Path, subjects: list[str], split: str) -> Path:
    """A copy of the EEG in which one split of these subjects is noise."""
    shutil.copytree(data / "eeg", target)
    for subject in subjects:
        with h5py.File(target / f"{subject}.h5", "r+") as file:
            eeg = file[split]["eeg"]
            eeg[:] = np.random.default_rng(1).standard_normal(eeg.shape)
    return target


def test_the_runs_of_each_protocol():
    three = ["a", "b", "c"]
    assert plan("pooled", three, [1]) == [Run("pooled", 1, ("a", "b", "c"), ("a", "b", "c"))]
    assert plan("within-subject", three, [1, 2])[:3] == [
        Run("a", 1, ("a",), ("a",)),
        Run("a", 2, ("a",), ("a",)),
        Run("b", 1, ("b",), ("b",)),
    ]
    for run in plan("leave-one-subject-out", three, [5]):
        assert not set(run.trained_on) & set(run.tested_on) and len(run.trained_on) == 2
    with pytest.raises(
        InputError, match="needs two subjects or more and has 1: name more in `subjects`, or choose"
    ):
        plan("leave-one-subject-out", ["a"], [1])
    assert plan("within-subject", ["a"], [1])


def test_seeds_are_counted_or_listed():
    assert seeds_of(42, 3) == [42, 43, 44]
    assert seeds_of(42, [7, 191]) == [7, 191]
    with pytest.raises(InputError, match="names a seed twice"):
        seeds_of(42, [7, 191, 7])


@pytest.mark.parametrize("protocol", ["pooled", "within-subject", "leave-one-subject-out"])
@pytest.mark.parametrize("select_on", ["validation", "last"])
def test_the_test_split_decides_nothing(data, tmp_path, protocol, select_on):
    parameters = quick_recipe(protocol=protocol, select_on=select_on)
    other = changed(data, tmp_path / "eeg", SUBJECTS, "test")
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", parameters, 1, HERE)
    train_all(other, data / "embeddings.h5", tmp_path / "b", parameters, 1, HERE)
    assert len(weights(tmp_path / "a")) == (1 if protocol == "pooled" else 2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("protocol", ["pooled", "within-subject"])
def test_a_control_learns_other_pairs_in_each_run_and_says_so(data, tmp_path, protocol):
    """Each seed and each fold has an order of its own; without the control the weights are others."""
    recipe = quick_recipe(protocol=protocol, seeds=2)
    control = recipe.model_copy(update={"control": "shuffled"})
    eeg, embeddings = data / "eeg", data / "embeddings.h5"
    train_all(eeg, embeddings, tmp_path / "real", recipe, 1, HERE)
    notes = train_all(eeg, embeddings, tmp_path / "control", control, 1, HERE)
    assert {
        of_run["train"]["control"] for _, of_run in map(load_model, runs_of(tmp_path / "control"))
    } == {"shuffled"}
    assert len(notes) == len(weights(tmp_path / "real"))
    real, shuffled = (weights(tmp_path / name) for name in ("real", "control"))
    assert all(real[name] != shuffled[name] for name in real)
    assert len(set(shuffled.values())) == len(shuffled)
    forget_trainings()
    train_all(eeg, embeddings, tmp_path / "again", control, 1, HERE)
    assert weights(tmp_path / "again") == shuffled


def runs_of(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir())


def test_true_pairs_do_not_select_the_epoch_of_a_control(data, tmp_path):
    recipe = quick_recipe(control="shuffled", select_on="test")
    message = "train.control is shuffled and train.select_on is test: .* set train.select_on to"
    with pytest.raises(InputError, match=message):
        train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", recipe, 1, HERE)


def test_selection_on_the_test_split_says_so_and_depends_on_it(data, tmp_path):
    parameters = quick_recipe(select_on="test")
    other = changed(data, tmp_path / "eeg", SUBJECTS, "test")
    [notes] = train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", parameters, 1, HERE)
    train_all(other, data / "embeddings.h5", tmp_path / "b", parameters, 1, HERE)
    assert notes["selected_on"] == "test"
    first, second = (pd.read_csv(tmp_path / name / "history.csv") for name in ("a", "b"))
    assert (first["train_loss"] == second["train_loss"]).all()
    assert (first["selection_loss"] != second["selection_loss"]).all()


def test_nothing_of_the_left_out_subject_is_used(data, tmp_path):
    parameters = quick_recipe(protocol="leave-one-subject-out")
    other = changed(data, tmp_path / "eeg", ["sub-02"], "train")
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", parameters, 1, HERE)
    train_all(other, data / "embeddings.h5", tmp_path / "b", parameters, 1, HERE)
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert before["without-sub-02-seed-1"] == after["without-sub-02-seed-1"]
    assert before["without-sub-01-seed-1"] != after["without-sub-01-seed-1"]


@pytest.mark.long
def test_side_by_side_gives_the_same_models(data, tmp_path):
    """But for the last bits, which depend on the number of threads a run gets."""
    parameters, two = (
        quick_recipe(protocol="within-subject", seeds=[3, 9]),
        HERE.model_copy(update={"workers": 2}),
    )
    notes = train_all(data / "eeg", data / "embeddings.h5", tmp_path / "b", parameters, 1, two)
    names = [(one["fold"], one["seed"]) for one in notes]
    forget_trainings()
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", parameters, 1, HERE)
    assert names == [("sub-01", 3), ("sub-01", 9), ("sub-02", 3), ("sub-02", 9)]
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("a", "b"))
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("protocol", ["within-subject", "leave-one-subject-out"])
@pytest.mark.parametrize("fit", [4, 1])
def test_runs_that_are_trained_together_give_the_same_models(
    data, tmp_path, monkeypatch, protocol, fit
):
    """As on a GPU, of which memory holds four or one; but for the last bits, as above."""
    parameters = quick_recipe(protocol=protocol, seeds=[3, 9])
    notes = train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", parameters, 1, HERE)
    forget_trainings()
    at_once = []

    def stack(setup, partitions, *others: object) -> list:
        if len(partitions) > fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        at_once.append(len(partitions))
        return train_together(setup, partitions, *others)

    monkeypatch.setattr("pipeline.train.many.train_together", stack)
    monkeypatch.setattr("pipeline.train.runs.on_gpus", lambda *_: True)
    together = train_all(data / "eeg", data / "embeddings.h5", tmp_path / "b", parameters, 1, HERE)
    assert at_once == [fit] * (4 // fit)
    for one, other in zip(notes, together, strict=True):
        assert one | {"selected_epoch": 0} == other | {"selected_epoch": 0}
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("a", "b"))
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy(), rtol=0.02, atol=1e-3)


def test_too_little_memory_for_one_model_is_told(data, tmp_path, monkeypatch):
    def stack(*_: object) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has")

    monkeypatch.setattr("pipeline.train.many.train_together", stack)
    told = "cpu has too little memory for one model: its next 0.54 GB do not fit; lower train.batch"
    with pytest.raises(InputError, match=told):
        train_all(data / "eeg", data / "embeddings.h5", tmp_path / "a", quick_recipe(), 1, HERE)


@pytest.mark.long
def test_a_killed_stage_goes_on_where_it_was(data, tmp_path, cache):
    """SIGKILL in the second of two runs; then the same call ends with the very bytes of an undisturbed run."""
    parameters, inputs = quick_recipe(epochs=30, seeds=2), (data / "eeg", data / "embeddings.h5")
    values = yaml.safe_load(Path("params.yaml").read_text()) | {
        "train": parameters.model_dump(),
        "runs": HERE.model_dump(),
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [
        sys.executable,
        "-m",
        "stages.train",
        tmp_path / "params.yaml",
        *inputs,
        tmp_path / "killed",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(cache.glob("training/*/pooled-seed-43/*.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(cache.glob("training/*/pooled-seed-42/*.pt"))
    shutil.rmtree(tmp_path / "killed")  # as DVC does before it runs a stage again
    train_all(*inputs, tmp_path / "killed", parameters, values["seed"], HERE)
    assert not list(cache.glob("training/*/")), (
        "the states are kept until all runs are done, and no longer"
    )
    forget_trainings()
    train_all(*inputs, tmp_path / "whole", parameters, values["seed"], HERE)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def count_trainings(monkeypatch) -> list[int]:
    """How many models each call trains, from now on."""
    counts = []

    def counting(setup, partitions, *others: object) -> list:
        counts.append(len(partitions))
        return train_many(setup, partitions, *others)

    monkeypatch.setattr("pipeline.train.runs.train_many", counting)
    return counts


def test_a_finished_training_is_read_and_another_seed_or_fold_is_trained(
    data, tmp_path, monkeypatch
):
    """Models, notes and history are those that it had; what decides nothing may be another."""
    inputs = data / "eeg", data / "embeddings.h5"
    counts = count_trainings(monkeypatch)
    within = quick_recipe(protocol="within-subject", seeds=[3])
    train_all(*inputs, tmp_path / "first", within, 1, HERE)
    more = within.model_copy(update={"seeds": [3, 9]})
    train_all(*inputs, tmp_path / "more", more, 1, HERE)
    assert counts == [1, 1] + [1, 1]  # two subjects, and the second seed of both

    for name in ("sub-01-seed-3", "sub-02-seed-3"):
        for file in ("model.safetensors", "history.csv"):
            first, again = (tmp_path / out / name / file for out in ("first", "more"))
            assert first.read_bytes() == again.read_bytes()
        _, notes = load_model(tmp_path / "more" / name)
        assert notes["train"]["seeds"] == [3, 9] and notes["fold"] == name[:6]

    changed_recipe = within.model_copy(update={"dropout": 0.25})
    train_all(*inputs, tmp_path / "other", changed_recipe, 1, HERE)
    assert len(counts) == 6
    other = changed(data, tmp_path / "eeg", ["sub-02"], "train")
    train_all(other, inputs[1], tmp_path / "eeg-changed", within, 1, HERE)
    assert len(counts) == 7


@pytest.mark.parametrize("damage", ["cut", "bit", "text"])
def test_a_damaged_training_is_trained_again(data, tmp_path, cache, monkeypatch, capsys, damage):
    inputs = data / "eeg", data / "embeddings.h5"
    train_all(*inputs, tmp_path / "first", quick_recipe(), 1, HERE)
    [file] = cache.glob("trained/*.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-10]
    elif damage == "bit":
        content[-10] ^= 1
    else:
        content = bytearray(b"no weights")
    file.write_bytes(content)

    counts = count_trainings(monkeypatch)
    train_all(*inputs, tmp_path / "again", quick_recipe(), 1, HERE)
    assert counts == [1] and f"{file}: the finished training is damaged" in capsys.readouterr().out
    assert weights(tmp_path / "first") == weights(tmp_path / "again")
    train_all(*inputs, tmp_path / "third", quick_recipe(), 1, HERE)
    assert counts == [1]


def test_the_weights_of_mixed_blocks_are_noted(data, tmp_path):
    """In model.json those of the selected epoch, in the history those of every epoch, by the blocks of the cache."""
    ids = read_embeddings(data / "embeddings.h5", "last").image_ids
    rng = np.random.default_rng(1)
    blocks = [
        (name, rng.standard_normal((len(ids), 20)).astype(np.float32), {})
        for name in ("last", 11, 2)
    ]
    write_embeddings(tmp_path / "blocks.h5", ids, blocks, {})
    [notes] = train_all(
        data / "eeg", tmp_path / "blocks.h5", tmp_path / "out", quick_recipe(block="mix"), 1, HERE
    )
    history = pd.read_csv(tmp_path / "out/history.csv").set_index("epoch")
    _, saved = load_model(tmp_path / "out/pooled-seed-1")
    assert list(saved["block_weights"]) == ["2", "11", "last"]
    for name, weight in saved["block_weights"].items():
        assert history[f"weight_of_block_{name}"][notes["selected_epoch"]] == pytest.approx(weight)


def test_the_views_are_those_of_the_parameters_and_noted(data, tmp_path):
    """Learned from the other view, tested on the original: another training, the same gallery."""

    def trained(name: str, **changes: str) -> pd.DataFrame:
        recipe = quick_recipe(select_on="test", **changes)
        [notes] = train_all(data / "eeg", data / "embeddings.h5", tmp_path / name, recipe, 1, HERE)
        _, saved = load_model(tmp_path / f"{name}/pooled-seed-1")
        told = {"draw": "draw of original, blur-8"}.get(recipe.views, recipe.views)
        assert (saved["views"], saved["views_in_gallery"]) == (told, recipe.views_in_gallery)
        assert (notes["views"], notes["views_in_gallery"]) == (told, recipe.views_in_gallery)
        return pd.read_csv(tmp_path / name / "history.csv")

    original, blurred = trained("original"), trained("blurred", views="blur-8")
    drawn, gallery = trained("drawn", views="draw"), trained("gallery", views_in_gallery="blur-8")
    losses = [history["train_loss"].iloc[-1] for history in (original, blurred, drawn)]
    assert len(set(losses)) == 3 and (gallery["train_loss"] == original["train_loss"]).all()
    assert (gallery["selection_loss"] != original["selection_loss"]).all()
    cached = read_embeddings(data / "embeddings.h5", "last")
    write_embeddings(tmp_path / "plain.h5", cached.image_ids, [("last", cached.values, {})], {})
    train_all(
        data / "eeg",
        tmp_path / "plain.h5",
        tmp_path / "plain",
        quick_recipe(select_on="test"),
        1,
        HERE,
    )
    assert weights(tmp_path / "plain") == weights(tmp_path / "original"), (
        "views that are not used change nothing"
    )
    similarities = tmp_path / "evaluation.h5"
    evaluate.main(
        Path("params.yaml"),
        data / "eeg",
        data / "embeddings.h5",
        tmp_path / "drawn",
        tmp_path / "evaluation.json",
        similarities,
        [],
    )
    summary, kept = (
        json.loads((tmp_path / "evaluation.json").read_text()),
        read_similarities(similarities).made_with,
    )
    for told in (summary, kept):
        assert (told["views"], told["views_in_gallery"]) == ("draw of original, blur-8", "original")


def test_slurm_needs_a_number_of_jobs(data):
    eeg, runs = find_subjects(data / "eeg"), plan("within-subject", SUBJECTS, [1])
    with pytest.raises(
        InputError, match="runs.workers is auto and runs.where slurm: set runs.workers to the most"
    ):
        how_many(Runs(where="slurm", workers="auto"), runs, eeg, gpus=False)
    assert how_many(Runs(where="slurm", workers=8), runs, eeg, gpus=False) == 2


@pytest.mark.parametrize(("of_torch", "n_cores", "expected"), [(1, 8, 1), (2, 8, 2), (2, 1, 1)])
def test_a_run_has_no_more_threads_than_torch_and_the_machine(
    data, tmp_path, monkeypatch, of_torch, n_cores, expected
):
    """OMP_NUM_THREADS sets the number that torch starts with."""
    monkeypatch.setattr("pipeline.train.runs.n_cores", lambda: n_cores)
    torch.set_num_threads(of_torch)
    train_all(data / "eeg", data / "embeddings.h5", tmp_path, quick_recipe(epochs=1), 1, HERE)
    assert torch.get_num_threads() == expected


def test_a_folder_without_models_is_told(data, tmp_path):
    outs = tmp_path / "evaluation.json", tmp_path / "evaluation.h5", []
    (tmp_path / "model").mkdir()
    with pytest.raises(
        InputError,
        match="model: holds no trained model; train it again with `dvc repro --single-item",
    ):
        evaluate.main(
            Path("params.yaml"), data / "eeg", data / "embeddings.h5", tmp_path / "model", *outs
        )
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "model", quick_recipe(), 1, HERE)
    evaluate.main(
        Path("params.yaml"), data / "eeg", data / "embeddings.h5", tmp_path / "model", *outs
    )


def test_an_empty_folder_is_told(data, tmp_path):
    with pytest.raises(InputError, match="holds no subject's EEG"):
        train_all(tmp_path, data / "embeddings.h5", tmp_path / "out", quick_recipe(), 1, HERE)


def test_a_subject_that_does_not_fit_is_told_before_anything_is_trained(data, tmp_path):
    """Not finite in the test EEG, which no training reads."""
    shutil.copytree(data / "eeg", tmp_path / "eeg")
    (tmp_path / "eeg/._sub-01.h5").write_bytes(b"Mac OS X")
    with h5py.File(tmp_path / "eeg/sub-02.h5", "r+") as file:
        file["test/eeg"][3, 0, 1, 5] = np.nan
    parameters = quick_recipe(protocol="within-subject")
    with pytest.raises(
        InputError, match="sub-02.h5: the test EEG of condition 3 .* is not finite in channel Oz"
    ):
        train_all(tmp_path / "eeg", data / "embeddings.h5", tmp_path / "out", parameters, 1, HERE)
    assert not (tmp_path / "out").exists()

    (tmp_path / "eeg/sub-02.h5").unlink()
    [notes] = train_all(
        tmp_path / "eeg", data / "embeddings.h5", tmp_path / "out", parameters, 1, HERE
    )
    assert notes["trained_on"] == ["sub-01"]
