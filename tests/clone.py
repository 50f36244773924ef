"""Clones of this project with a tiny dataset, on which the pipeline has run once through DVC.

The first run takes half a minute, so that all processes of the test suite share it: the first that needs it makes it,
and each file of tests works on a clone.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from pipeline.datasets.sample import Size, make_human, make_raw
from pipeline.datasets.sources import THINGS_SIMILARITY
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from tests.osf_server import serve
from tests.tiny import TINY

ROOT = Path(__file__).parent.parent
CODE = ["stages", "pipeline", "reference", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"]
CODE += [".dvc/config", ".dvc/.gitignore", ".dvc/plots"]

# Numbers that metrics/evaluation.json and metrics/details.json both have
COMPARED = ("nice_loss", "top1_acc", "top3_acc", "top5_acc", "matched_cosine", "mismatched_cosine")


@dataclass(frozen=True)
class Project:
    """A clone with a cache of its own."""

    folder: Path
    environment: dict[str, str]
    cold: dict[str, str]  # the environment without the quick `python3` and `dvc`

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
        command = ("python3", "-m", f"stages.{name}")
        return self.run(*command, "params.yaml", *arguments, fails=fails)

    def with_a_python_of_its_own(self) -> "Project":
        """The same clone, whose programs are no forks of one that hashes texts as the others do."""
        return replace(self, environment=self.cold)

    def metrics(self) -> dict:
        return json.loads((self.folder / "metrics/details.json").read_text())

    def set(self, **values: object) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in values.items():
            section, _, name = key.rpartition("__")
            (params[section] if section else params)[name] = value
        path.write_text(yaml.safe_dump(params))


def project_after_its_first_run(factory: pytest.TempPathFactory, programs: str) -> Project:
    """A clone. `programs` is the folder of a quick `python3` and `dvc`."""
    base = factory.mktemp("clone")
    environment = environment_of(base)
    warm = environment | {"PATH": f"{programs}:{environment['PATH']}"}
    project = Project(base / "project", warm, environment)
    clone(first_run(factory, warm), project)
    return project


def environment_of(base: Path) -> dict[str, str]:
    people = {
        f"GIT_{who}_{what}": "tests@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    return {
        **os.environ,
        **people,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ALIGNED_EEG_CACHE": str(base / "cache"),
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }


def first_run(factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The folder that all processes of this test suite share: `project` and `cache`. Nobody may change it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "first-run"
    with FileLock(shared / "first-run.lock"):
        if not folder.exists():
            making = factory.mktemp("first-run-in-the-making")
            environment = environment | {"ALIGNED_EEG_CACHE": str(making / "cache")}
            make_first_run(making, Project(making / "project", environment, environment))
            making.rename(folder)
    return folder


def make_first_run(base: Path, project: Project) -> None:
    """Publish a tiny dataset on a server that looks like OSF, and run the whole pipeline on it."""
    published = base / "published"
    make_raw(
        "all",
        published / "anp5v",
        published / "y63gw",
        published / "y63gw/image_metadata.npy",
        TINY,
    )
    publish_people(published / "bucket", TINY)
    make_checkpoint("synclr_vitb16", published / "releases/v0.2.1-checkpoints", embed_dim=64)
    put_code(project)

    nodes = {"anp5v": published / "anp5v", "y63gw": published / "y63gw"}
    with serve(nodes, published / "releases", bucket=published / "bucket") as server:
        project.set(
            dataset="things-eeg2",
            download__osf_api=server.api,
            download__dreamsim_releases=server.releases,
            download__openneuro=server.bucket,
            download__things_data=server.bucket,
            download__accept_new_versions=True,  # other concepts than the published ones
            train__epochs=3,
            train__batch_size=16,
            train__projection_size=16,
            embed__blocks=[6, "last"],
            evaluate__resamples=200,
        )
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
            project.run("git", *command)
        project.run("dvc", "repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "first run")


def publish_people(bucket: Path, size: Size) -> None:
    """What people say of the concepts of the sample, as OpenNeuro's bucket has it."""
    people = bucket / "ds004212/sourcedata/meg_paper"
    categories = bucket / THINGS_SIMILARITY.commit / THINGS_SIMILARITY.categories
    make_human(
        people / "spose_embedding_66d_sorted.txt", people / "names_1854.csv", categories, size
    )


def put_code(project: Project) -> None:
    """Copy the code of this project, with a comparison of nothing."""
    for name in CODE:
        source, target = ROOT / name, project.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (project.folder / "metrics").mkdir()
    (project.folder / "metrics/comparison.json").write_text('{"sha256": []}')


def clone(first: Path, project: Project) -> None:
    """With the caches of the first run. DVC's is of files that may not be written, which need no second copy."""

    def link_or_copy(source: str, target: str) -> None:
        if os.stat(source).st_mode & 0o200:
            shutil.copy2(source, target)
        else:
            os.link(source, target)

    subprocess.run(
        ["git", "clone", "-q", first / "project", project.folder],
        env=project.environment,
        check=True,
    )
    for name in ("project/.dvc/cache", "cache"):
        shutil.copytree(
            first / name, project.folder.parent / name, copy_function=link_or_copy, symlinks=True
        )
    project.run("dvc", "checkout")


def ran(output: str) -> list[str]:
    """The stages that ran, but for the looks at the user's files and at the code, which are made each time."""
    stages = [
        line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")
    ]
    return [stage for stage in stages if stage not in ("own_files", "code")]
