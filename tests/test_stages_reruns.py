"""Through DVC: a rerun costs only what changed, and going back costs nothing."""

import json

import pytest

from tests.clone import COMPARED, Project, project_after_its_first_run, ran


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


def test_a_rerun_costs_only_what_changed(project):
    """The server is gone by now: nothing of this needs the network."""
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


def test_an_edit_costs_only_what_computes_with_it(project):
    """A docstring in every file, and another EEG encoder; then a constant of the one that was chosen."""
    shipped = {path: path.read_text() for path in (project.folder / "pipeline").rglob("*.py")}
    nice, encoders = (
        project.folder / f"pipeline/eeg_encoders/{name}.py" for name in ("nice", "table")
    )
    try:
        for path, text in shipped.items():
            path.write_text(text.replace('"""', '"""Corrected. ', 1))
        encoders.write_text(
            encoders.read_text().replace(
                '    "nice": Nice,', '    "nice": Nice,\n    "mine": AtmS,'
            )
        )
        assert ran(project.run("dvc", "repro")) == []

        nice.write_text(nice.read_text().replace("n_filters: int = 40", "n_filters: int = 41"))
        assert ran(project.run("dvc", "repro")) == ["train", "evaluate", "explain", "report"]
    finally:
        for path, text in shipped.items():
            path.write_text(text)
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
        assert ran(project.run("dvc", "repro", "--dry", "embed")) == ["embed@aligned"]
    finally:
        params.write_bytes(shipped)


def test_another_number_of_epochs_leaves_the_baseline(project):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    try:
        project.set(train__epochs=2, train__seeds=3, train__eeg_encoder="nice-recipe")
        assert ran(project.run("dvc", "repro", "--dry", "baseline")) == []
        project.set(train__remove_dc=True)
        assert ran(project.run("dvc", "repro", "--dry", "baseline")) == ["baseline"]
    finally:
        params.write_bytes(shipped)


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
