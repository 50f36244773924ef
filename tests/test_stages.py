"""The whole pipeline as a user runs it, through DVC, on a tiny dataset that a look-alike of OSF serves on loopback."""

import json

import pytest

from tests.clone import COMPARED, Project, project_after_its_first_run, ran


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


def test_the_pipeline_runs_from_the_published_archives_to_metrics(project):
    metrics = project.metrics()
    assert (metrics["n_way"], metrics["n_subjects"], metrics["seed"]) == (6, 2, 42)
    assert (metrics["synthetic"], metrics["selected_on"], metrics["encoder"]) == (
        False,
        "validation",
        "unaligned",
    )
    assert {*COMPARED} <= metrics.keys()
    assert len((project.folder / "metrics/per_subject.csv").read_text().splitlines()) == 1 + 2
    assert project.run("git", "status", "--porcelain") == ""  # no out is left for git to see


def test_the_caches_health_is_among_the_metrics(project):
    health = json.loads((project.folder / "metrics/embeddings.json").read_text())
    assert health.keys() == {"unaligned", "aligned"}
    for blocks in health.values():
        assert blocks.keys() == {"6", "last"}
        assert all(
            block["rows"] == 30
            and block["reference_cosine"] > 0.9999
            and -1 <= block["people_spearman"] <= 1
            for block in blocks.values()
        )
    assert (
        health["unaligned"]["last"]["median_cosine"] != health["aligned"]["last"]["median_cosine"]
    )
    assert "embeddings.json" in project.run("dvc", "metrics", "show")


@pytest.mark.long
def test_a_colleague_trains_without_images_or_weights(project, tmp_path):
    """What `dvc push` left on a remote, a fresh clone with an empty cache pulls."""
    remote = ["dvc", "remote", "add", "--local", "-d", "shared", str(tmp_path / "remote")]
    project.run(*remote)
    project.run("dvc", "push")
    environment = project.environment | {"ALIGNED_EEG_CACHE": str(tmp_path / "cache")}
    colleague = Project(tmp_path / "clone", environment, cold=environment)
    project.run("git", "clone", "-q", ".", str(colleague.folder))
    colleague.run(*remote)
    colleague.run("dvc", "pull", "embed", "preprocess")
    there = {str(path.relative_to(colleague.folder)) for path in colleague.folder.glob("data/*")}
    assert there == {"data/eeg", "data/embeddings"}
    output = colleague.run(
        "dvc", "exp", "run", "--pull", "--allow-missing", "-S", "encoder=aligned", "-S", "seed=1"
    )
    assert ran(output) == ["train", "baseline", "evaluate", "explain", "report"]
    inputs = [path for path in colleague.folder.glob("data/fetched/**/*") if path.is_file()]
    # The names of the images alone, and what people say of their concepts
    assert {path.name for path in inputs if path.parent.name != "human"} == {"images.csv"}
    assert (colleague.folder / "data/fetched/human/similarity.h5").is_file()
    assert colleague.metrics()["encoder"] == "aligned" and colleague.metrics()["top1_acc"] >= 0


@pytest.mark.long
def test_a_run_is_repeated_to_the_last_bit(project):
    """dvc.lock, with the hash of each out, stays as it was; the server is gone, the download comes from the cache."""
    project = project.with_a_python_of_its_own()
    before = (project.folder / "dvc.lock").read_bytes()
    stages = ["download", "embed@aligned", "train"]
    assert (
        ran(project.run("dvc", "repro", "--force", "--no-run-cache", "--single-item", *stages))
        == stages
    )
    assert (project.folder / "dvc.lock").read_bytes() == before
