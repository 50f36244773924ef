"""The whole pipeline as a user runs it, through DVC, on a tiny dataset that a look-alike of OSF serves on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.table import SAMPLE
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from tests.osf_server import serve

ROOT = Path(__file__).parent.parent
TINY = Size(
    train_concepts=12,
    images_per_concept=2,
    test_concepts=6,
    train_repetitions=2,
    test_repetitions=3,
)
CODE = ["stages", "pipeline", "reference", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"]
CODE += [".dvc/config", ".dvc/.gitignore", ".dvc/plots"]


@dataclass(frozen=True)
class Project:
    """A clone with a cache of its own."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, fails: bool = False) -> str:
        """Standard output and error together; checks the exit status."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def stage(self, name: str, *arguments: str, fails: bool = False) -> str:
        return self.run(
            sys.executable, "-m", f"stages.{name}", "params.yaml", *arguments, fails=fails
        )

    def metrics(self) -> dict:
        return json.loads((self.folder / "metrics/details.json").read_text())

    def set(self, **values: object) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in values.items():
            section, _, name = key.rpartition("__")
            (params[section] if section else params)[name] = value
        path.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    base = tmp_path_factory.mktemp("clone")
    folder, published = base / "project", base / "published"
    make_raw(
        "all",
        published / "anp5v",
        published / "y63gw",
        published / "y63gw/image_metadata.npy",
        TINY,
    )
    release = published / "releases/v0.2.1-checkpoints"
    make_checkpoint("synclr_vitb16", release)
    for name in CODE:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / "metrics").mkdir()
    (folder / "metrics/comparison.json").write_text('{"sha256": []}')
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ALIGNED_EEG_CACHE": str(base / "cache"),
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{
            f"GIT_{who}_{what}": "tests@localhost"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    clone = Project(folder, environment)
    with serve(
        {"anp5v": published / "anp5v", "y63gw": published / "y63gw"}, published / "releases"
    ) as server:
        clone.set(
            dataset="things-eeg2",
            download__osf_api=server.api,
            download__dreamsim_releases=server.releases,
            train__epochs=3,
            train__batch_size=16,
            embed__blocks=[6, "last"],
            evaluate__resamples=200,
        )
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
            clone.run("git", *command)
        clone.run("dvc", "repro")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "first run")
    yield clone
    subprocess.run(["chmod", "-R", "u+w", str(base)], check=True)
    shutil.rmtree(base)


def ran(output: str) -> list[str]:
    """The stages that ran, but for the looks at the user's files and at the code, which are made each time."""
    stages = [
        line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")
    ]
    return [stage for stage in stages if stage not in ("own_files", "code")]


def test_the_pipeline_runs_from_the_published_archives_to_metrics(project):
    metrics = project.metrics()
    assert (metrics["n_way"], metrics["n_subjects"], metrics["seed"]) == (6, 2, 42)
    assert (metrics["synthetic"], metrics["selected_on"], metrics["encoder"]) == (
        False,
        "validation",
        "unaligned",
    )
    assert {
        "nice_loss",
        "top1_acc",
        "top3_acc",
        "top5_acc",
        "matched_cosine",
        "mismatched_cosine",
    } <= metrics.keys()
    assert len((project.folder / "metrics/per_subject.csv").read_text().splitlines()) == 1 + 2
    assert project.run("git", "status", "--porcelain") == ""  # no out is left for git to see


def test_a_rerun_costs_only_what_changed(project):
    """The server is gone by now: nothing of this needs the network."""
    assert ran(project.run("dvc", "repro")) == []
    before = project.metrics()
    assert ran(project.run("dvc", "exp", "run", "-S", "encoder=aligned")) == [
        "train",
        "evaluate",
        "report",
    ]
    assert project.metrics()["encoder"] == "aligned"
    compared = json.loads((project.folder / "metrics/evaluation.json").read_text())
    assert compared["top1_acc"] == project.metrics()["top1_acc"]
    difference, after = project.run("dvc", "metrics", "diff"), project.metrics()
    for name in (
        "nice_loss",
        "top1_acc",
        "top3_acc",
        "top5_acc",
        "matched_cosine",
        "mismatched_cosine",
    ):
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
        assert ran(project.run("dvc", "repro")) == ["train", "evaluate", "report"]
    finally:
        for path, text in shipped.items():
            path.write_text(text)
    assert ran(project.run("dvc", "repro")) == []
    assert project.run("git", "status", "--porcelain") == ""


def test_both_encoders_are_compared_and_the_workspace_stays(project, tmp_path):
    """On the parameters as they are, committed or not; then the files that were compared, given by hand."""
    shipped = (project.folder / "params.yaml").read_bytes()
    project.set(train__epochs=2)
    but_its_own = ("git", "diff", "--", ".", ":!metrics/comparison.json")
    before = project.run(*but_its_own)
    try:
        output = project.run(sys.executable, "-m", "stages.compare", "--seeds", "2")
        assert project.run(*but_its_own) == before
    finally:
        (project.folder / "params.yaml").write_bytes(shipped)
    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert (
        result["settings"]["train"]["epochs"] == 2
        and result["n_way"] == 6
        and result["seeds"] == [42, 43]
    )
    assert result["subjects"] == ["sub-01", "sub-02"] and result["answer"] in " ".join(
        output.split()
    )
    assert project.run("git", "status", "--porcelain") == " M metrics/comparison.json\n"
    assert "compare" not in project.run("dvc", "exp", "list", "--all-commits")
    printed = " ".join(project.run(sys.executable, "-m", "stages.results").split())
    assert (
        result["answer"] in printed
        and "data/evaluation.h5 is another run than those compared" in printed
    )
    evaluation = "data/evaluation.h5"
    refused = project.run(
        sys.executable, "-m", "stages.compare", evaluation, evaluation, fails=True
    )
    assert "error: the two evaluations differ in nothing" in refused and "Traceback" not in refused
    refused = project.run(
        sys.executable, "-m", "stages.compare", "--seeds", "2", evaluation, evaluation, fails=True
    )
    assert "error: --seeds is for evaluations that DVC makes" in refused
    project.run("git", "checkout", "metrics/comparison.json")


def test_an_interrupted_comparison_leaves_the_workspace_as_it_was(project):
    shipped = (project.folder / "params.yaml").read_bytes()
    project.set(train__epochs=5000)
    before, log = project.run("git", "diff"), project.folder / "compare.log"
    try:
        with log.open("w") as out:
            command = [sys.executable, "-m", "stages.compare"]
            options = {"cwd": project.folder, "env": project.environment, "start_new_session": True}
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
            states = Path(project.environment["ALIGNED_EEG_CACHE"]) / "training"
            deadline = time.monotonic() + 120
            while (
                not list(states.glob("*/*/*.pt"))
                and process.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) != 0
        assert list(states.glob("*/*/*.pt")), log.read_text()  # it was in the midst of training
        assert project.run("git", "diff") == before
    finally:
        (project.folder / "params.yaml").write_bytes(shipped)
        log.unlink()
    assert project.run("git", "status", "--porcelain") == ""
    assert "compare" not in project.run("dvc", "exp", "list", "--all-commits")


def test_another_block_costs_only_the_training(project):
    before = project.metrics()
    assert ran(project.run("dvc", "exp", "run", "-S", "train.block=6")) == [
        "train",
        "evaluate",
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


def test_the_caches_health_is_among_the_metrics(project):
    health = json.loads((project.folder / "metrics/embeddings.json").read_text())
    assert health.keys() == {"unaligned", "aligned"}
    for blocks in health.values():
        assert blocks.keys() == {"6", "last"}
        assert all(
            block["rows"] == 30 and block["reference_cosine"] > 0.9999 for block in blocks.values()
        )
    assert (
        health["unaligned"]["last"]["median_cosine"] != health["aligned"]["last"]["median_cosine"]
    )
    assert "embeddings.json" in project.run("dvc", "metrics", "show")


def test_a_colleague_trains_without_images_or_weights(project, tmp_path):
    """What `dvc push` left on a remote, a fresh clone with an empty cache pulls."""
    remote = ["dvc", "remote", "add", "--local", "-d", "shared", str(tmp_path / "remote")]
    project.run(*remote)
    project.run("dvc", "push")
    colleague = Project(
        tmp_path / "clone", project.environment | {"ALIGNED_EEG_CACHE": str(tmp_path / "cache")}
    )
    project.run("git", "clone", "-q", ".", str(colleague.folder))
    colleague.run(*remote)
    colleague.run("dvc", "pull", "embed", "preprocess")
    there = {str(path.relative_to(colleague.folder)) for path in colleague.folder.glob("data/*")}
    assert there == {"data/eeg", "data/embeddings"}
    output = colleague.run(
        "dvc", "exp", "run", "--pull", "--allow-missing", "-S", "encoder=aligned", "-S", "seed=1"
    )
    assert ran(output) == ["train", "evaluate", "report"]
    inputs = [*colleague.folder.glob("data/fetched/**/*")]
    assert not [path for path in inputs if path.is_file()]
    assert colleague.metrics()["encoder"] == "aligned" and colleague.metrics()["top1_acc"] >= 0


def test_a_run_is_repeated_to_the_last_bit(project):
    """dvc.lock, with the hash of each out, stays as it was; the server is gone, the download comes from the cache."""
    before = (project.folder / "dvc.lock").read_bytes()
    stages = ["download", "embed@aligned", "train"]
    assert (
        ran(project.run("dvc", "repro", "--force", "--no-run-cache", "--single-item", *stages))
        == stages
    )
    assert (project.folder / "dvc.lock").read_bytes() == before


def without_an_image(project: Project, tmp_path: Path) -> list[str]:
    shutil.copytree(project.folder / "data/fetched/images", tmp_path / "images")
    damaged = tmp_path / "images/test_images.zip"
    damaged.unlink()
    with (
        zipfile.ZipFile(project.folder / "data/fetched/images/test_images.zip") as old,
        zipfile.ZipFile(damaged, "w") as new,
    ):
        for name in [name for name in old.namelist() if not name.endswith("/")][1:]:
            new.writestr(name, old.read(name))
    inputs = [str(tmp_path / "images"), "data/fetched/images.csv", "data/fetched/weights"]
    return ["embed", "synclr_vitb16", "none", *inputs, *[str(tmp_path / "unaligned.h5")] * 2]


def truncated(project: Project, tmp_path: Path) -> list[str]:
    (tmp_path / "eeg").mkdir()
    whole = (project.folder / "data/fetched/eeg/sub-01.zip").read_bytes()
    (tmp_path / "eeg/sub-01.zip").write_bytes(whole[: len(whole) // 2])
    return ["preprocess", str(tmp_path / "eeg"), "data/fetched/images.csv", str(tmp_path / "out")]


def metadata_of_others(project: Project, tmp_path: Path) -> list[str]:
    other = Size(
        train_concepts=11,
        images_per_concept=2,
        test_concepts=6,
        train_repetitions=2,
        test_repetitions=3,
    )
    make_raw([], tmp_path / "eeg", tmp_path / "images", tmp_path / "image_metadata", other)
    write_image_table(tmp_path / "images.csv", SAMPLE.read_metadata(tmp_path / "image_metadata"))
    return ["preprocess", "data/fetched/eeg", str(tmp_path / "images.csv"), str(tmp_path / "out")]


def other_subject(project: Project, tmp_path: Path) -> list[str]:
    project.set(dataset="sample", subjects=["sub-77"])
    return [
        "download",
        *(str(tmp_path / name) for name in ("eeg", "images", "image_metadata", "images.csv")),
    ]


def misspelt_key(project: Project, tmp_path: Path) -> list[str]:
    project.set(encder="aligned")
    return ["train", "data/eeg", "data/embeddings/unaligned.h5", str(tmp_path / "model")]


def embeddings_of_others(project: Project, tmp_path: Path) -> list[str]:
    (tmp_path / "unaligned.h5").write_bytes(b"no HDF5")
    return ["train", "data/eeg", str(tmp_path / "unaligned.h5"), str(tmp_path / "model")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (without_an_image, "1 of 6 images are missing, the first is test_images/"),
        (truncated, "sub-01.zip"),
        (metadata_of_others, "22"),
        (other_subject, "sub-77"),
        (misspelt_key, "unknown key encder"),
        (embeddings_of_others, "is not a whole embedding cache"),
    ],
)
def test_bad_input_gets_one_sentence(
    project, tmp_path, prepare: Callable[[Project, Path], list[str]], message
):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    try:
        command = prepare(project, tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        output = project.stage(*command, fails=True)
    finally:
        params.write_bytes(shipped)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output
    assert {
        path for path in tmp_path.rglob("*") if path.is_file()
    } == before.keys()  # nothing half-written
