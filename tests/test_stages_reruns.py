"""Through DVC: a rerun costs only what changed, and going back costs nothing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.clone import COMPARED, Project, project_after_its_first_run, ran


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


def asked(project: Project, *targets: str) -> list[str]:
    """The stages that DVC would run, as the parameters and the records of the code are now."""
    return ran(project.run("dvc", "repro", "--dry", *targets))


def test_an_experiment_runs_what_changed_and_going_back_runs_nothing(project):
    """The server is gone by now: nothing of this needs the network."""
    experiment = ("dvc", "exp", "run", "train", "-S")
    assert ran(project.run(*experiment, "train.epochs=2")) == ["train"]
    assert asked(project) == ["evaluate", "explain", "report"]
    assert ran(project.run(*experiment, "train.epochs=3")) == []
    assert project.run("git", "status", "--porcelain") == ""  # dvc.lock is as it was


def test_another_encoder_asks_only_what_learns_from_it(project):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    project.set(encoder="aligned")
    try:
        # The report is asked once what it shows has been computed.
        assert asked(project) == ["train", "baseline", "evaluate", "explain"]
    finally:
        params.write_bytes(shipped)


@pytest.mark.long  # the same as the two tests above, with all stages run
def test_a_rerun_costs_only_what_changed(project):
    assert ran(project.run("dvc", "repro")) == []
    before = project.metrics()
    assert ran(project.run("dvc", "exp", "run", "-S", "encoder=aligned")) == [
        "train",
        "baseline",
        "evaluate",
        "explain",
        "report",
    ]
    assert project.metrics()["encoder"] == "aligned"
    compared = json.loads((project.folder / "metrics/evaluation.json").read_text())
    assert compared["top1_acc"] == project.metrics()["top1_acc"]
    difference, after = project.run("dvc", "metrics", "diff"), project.metrics()
    for name in COMPARED:
        assert name in difference or after[name] == before[name]
    project.run("dvc", "plots", "diff", "HEAD", "workspace", "--out", "plots")
    plots = (project.folder / "plots/index.html").read_text()
    assert "<DVC_METRIC" not in plots and all(
        name in plots for name in ("Contrastive loss", "top_k_acc_low", "sub-02")
    )
    assert '"rev": "HEAD"' in plots and '"rev": "workspace"' in plots
    back = project.run("dvc", "exp", "run", "-S", "encoder=unaligned")
    assert ran(back) == [] and project.metrics() == before


@contextmanager
def edits(project: Project) -> Iterator[None]:
    """The code may be edited, and is as it was afterwards."""
    shipped = {path: path.read_text() for path in (project.folder / "pipeline").rglob("*.py")}
    try:
        yield
    finally:
        for path, text in shipped.items():
            path.write_text(text)


def correct_docstrings_and_add_an_encoder(project: Project) -> None:
    """A docstring in every file, and another EEG encoder."""
    for path in (project.folder / "pipeline").rglob("*.py"):
        path.write_text(path.read_text().replace('"""', '"""Corrected. ', 1))
    encoders = project.folder / "pipeline/eeg_encoders/table.py"
    encoders.write_text(
        encoders.read_text().replace('    "nice": Nice,', '    "nice": Nice,\n    "mine": AtmS,')
    )


def change_the_chosen_encoder(project: Project) -> None:
    nice = project.folder / "pipeline/eeg_encoders/nice.py"
    nice.write_text(nice.read_text().replace("n_filters: int = 40", "n_filters: int = 41"))


def test_an_edit_asks_only_what_computes_with_it(project):
    with edits(project):
        correct_docstrings_and_add_an_encoder(project)
        project.run("dvc", "repro", "code")
        assert asked(project) == []

        change_the_chosen_encoder(project)
        project.run("dvc", "repro", "code")
        assert asked(project) == ["train", "evaluate", "explain"]
    assert ran(project.run("dvc", "repro")) == []
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.long  # the same as the test above, with all stages run
def test_an_edit_costs_only_what_computes_with_it(project):
    with edits(project):
        correct_docstrings_and_add_an_encoder(project)
        assert ran(project.run("dvc", "repro")) == []

        change_the_chosen_encoder(project)
        assert ran(project.run("dvc", "repro")) == ["train", "evaluate", "explain", "report"]
    assert ran(project.run("dvc", "repro")) == []
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.long
def test_another_block_costs_only_the_training(project):
    before = project.metrics()
    assert ran(project.run("dvc", "exp", "run", "-S", "train.block=6")) == [
        "train",
        "baseline",
        "evaluate",
        "explain",
        "report",
    ]
    after = project.metrics()
    assert (before["block"], after["block"]) == ("last", 6) and before["matched_cosine"] != after[
        "matched_cosine"
    ]
    assert "set it to one that is there, 6, last" in project.run(
        "dvc", "exp", "run", "-S", "train.block=7", fails=True
    )
    assert (
        ran(project.run("dvc", "exp", "run", "-S", "train.block=last")) == []
        and project.metrics() == before
    )


def test_another_alignment_leaves_the_unaligned_cache(project):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    project.set(alignment="glocal")
    try:
        assert asked(project, "embed") == ["embed@aligned"]
    finally:
        params.write_bytes(shipped)


def test_another_number_of_epochs_leaves_the_baseline(project):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    try:
        project.set(train__epochs=2, train__seeds=3, train__eeg_encoder="nice-recipe")
        assert asked(project, "baseline") == []
        project.set(train__remove_dc=True)
        assert asked(project, "baseline") == ["baseline"]
    finally:
        params.write_bytes(shipped)


# In `make test`: the record of the file is another one (test_outputs), and the stage depends on it.
@pytest.mark.long
def test_another_file_of_eeg_weights_asks_the_training_again(project, tmp_path):
    """Here no EEG encoder reads it, and the training is finished already."""
    weights = tmp_path / "model.safetensors"
    weights.write_text("first")
    try:
        project.set(train__eeg_weights=str(tmp_path))
        assert ran(project.run("dvc", "repro", "train")) == ["train"]
        assert ran(project.run("dvc", "repro", "train")) == []

        weights.write_text("another")
        assert ran(project.run("dvc", "repro", "train")) == ["train"]
    finally:
        project.run("git", "checkout", "-q", "params.yaml")
    assert ran(project.run("dvc", "repro")) == []
