"""EEG that may not be passed on: never pushed, and still read wherever DVC puts it. Through DVC, in a small project."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clone import ROOT, environment_of

pytestmark = pytest.mark.long

# A stage that prepares, the project's own links, and one that reads as training does: by the resolved path
PREPARE = """
import sys
from pathlib import Path
import h5py
import numpy as np

text = h5py.string_dtype("utf-8", 6)
Path("data/private_eeg").mkdir(parents=True, exist_ok=True)
for subject in ("sub-01", "sub-02"):
    with h5py.File(f"data/private_eeg/{subject}.h5", "w") as file:
        file.attrs.update({"subject": subject, "sfreq": 100.0})
        file.attrs.create("caveats", [], (0,), h5py.string_dtype())
        file["ch_names"] = np.array([b"Oz"], text)
        file["times"] = np.arange(50) / 100
        for split, shape in (("train", (6, 1, 50)), ("test", (3, 2, 1, 50))):
            for column in ("image_ids", "concept", "things_concept"):
                names = [f"{split}{i}".encode() for i in range(shape[0])]
                file[f"{split}/{column}"] = np.array(names, text)
            rng = np.random.default_rng([int(Path("seed").read_text()), *subject.encode()])
            file[f"{split}/eeg"] = rng.standard_normal(shape)
"""
LINK = """
from pathlib import Path
from pipeline.preprocess.preparation import link_subjects

link_subjects(Path("data/private_eeg"), Path("data/eeg"))
"""
TRAIN = """
import sys
from pathlib import Path
from pipeline.errors import InputError
from pipeline.preprocess.recordings import read_split
from stages import find_linked_files

find_linked_files([Path("data/eeg")])
try:
    files = [path.resolve() for path in sorted(Path("data/eeg").glob("*.h5"))]
    total = sum(read_split(file, "train", average=True).eeg.sum() for file in files)
except InputError as error:
    sys.exit(f"error: {error}")
Path("data/model").write_text(f"{total} {Path('params.yaml').read_text()}")
"""
STAGES = """
stages:
  private_eeg:
    cmd: python prepare.py
    deps: [seed]
    outs:
    - data/private_eeg:
        push: false
  preprocess:
    cmd: python link.py
    deps: [data/private_eeg]
    outs: [data/eeg]
  train:
    cmd: python train.py
    deps: [data/eeg]
    params: [rate]
    outs: [data/model]
"""
FILES = {"prepare.py": PREPARE, "link.py": LINK, "train.py": TRAIN, "dvc.yaml": STAGES}
FILES |= {"seed": "1", "params.yaml": "rate: 1\n", ".gitignore": "/data/\n"}


class Project:
    """A folder under git and DVC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = environment_of(folder.parent) | {"PYTHONPATH": str(ROOT)}

    def run(self, *command: str, fails: bool = False) -> str:
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

    def ran(self, *command: str) -> list[str]:
        lines = self.run("dvc", *command).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("private") / "project")
    project.folder.mkdir()
    for name, text in FILES.items():
        (project.folder / name).write_text(text)
    project.run("git", "init", "-q")
    project.run("dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc/config", project.folder / ".dvc/config")
    assert project.ran("repro") == ["private_eeg", "preprocess", "train"]
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "first")
    return project


def test_a_push_uploads_none_of_it_and_a_colleague_gets_a_sentence(
    project: Project, tmp_path: Path
) -> None:
    remote = ("dvc", "remote", "add", "--local", "-f", "-d", "shared", str(tmp_path / "remote"))
    project.run(*remote)
    project.run("dvc", "push")
    uploaded = [path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert len(uploaded) == 4  # two files that lead there, their folder, the model
    for path in (project.folder / "data/private_eeg").iterdir():
        content = path.read_bytes()
        for begin in range(0, len(content), 512):
            piece = content[begin : begin + 64]
            assert len(set(piece)) < 20 or not any(piece in other for other in uploaded)

    colleague = Project(tmp_path / "colleague")
    project.run("git", "clone", "-q", ".", str(colleague.folder))
    colleague.run(*remote)
    colleague.run("dvc", "pull", "preprocess", "train")
    run = ("dvc", "exp", "run", "--pull", "--allow-missing", "-S", "rate=9")
    refusal = colleague.run(*run, fails=True)
    assert "private_eeg/sub-01.h5, which is missing, because `dvc push` never uploads" in refusal
    assert "Traceback" not in refusal


def test_what_was_deleted_comes_back_without_work(project: Project) -> None:
    shutil.rmtree(project.folder / "data/private_eeg")
    assert project.ran("repro") == []
    shutil.rmtree(project.folder / "data")
    project.run("dvc", "checkout")
    assert project.ran("repro", "--force", "--single-item", "train") == ["train"]


def test_other_eeg_runs_what_depends_on_it(project: Project) -> None:
    (project.folder / "seed").write_text("2")
    assert project.ran("repro") == ["private_eeg", "preprocess", "train"]
    (project.folder / "seed").write_text("1")
    assert project.ran("repro") == []


@pytest.mark.parametrize("link", ["hardlink", "copy", "symlink"])
def test_it_is_found_however_dvc_links_it(project: Project, link: str) -> None:
    project.run("dvc", "config", "--local", "cache.type", link)
    project.run("dvc", "checkout", "--relink")
    path = project.folder / "data/eeg/sub-01.h5"
    assert (path.is_symlink(), path.stat().st_nlink > 1) == (
        link == "symlink",
        link == "hardlink",
    )
    assert project.ran("repro", "--force", "--single-item", "train") == ["train"]
    # And in the folder of an experiment; the cache has its links there too
    rate = {"hardlink": 2, "copy": 3, "symlink": 4}[link]
    assert project.ran("exp", "run", "--temp", "-S", f"rate={rate}") == ["train"]
