"""Through DVC: files of the user in a stage's output are not deleted, and those outside of it are never stale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = """
stages:
  own_files:
    cmd: python -m stages.own_files params.yaml data/own_files/dataset.json data/own_files/weights.json
    always_changed: true
    deps:
    - params.yaml
    outs:
    - data/own_files/dataset.json
    - data/own_files/weights.json
  preprocess:
    cmd: python -m stages.make data/eeg
    deps:
    - data/own_files/dataset.json
    outs:
    - data/eeg
"""
# A stage that writes two files and is killed between them, or fails, if so told.
MAKE = """
import os, sys
from pathlib import Path
from stages import run
from pipeline.errors import InputError

def main(eeg: Path) -> str:
    eeg.mkdir(parents=True)
    (eeg / "sub-01.h5").write_text("first")
    how = Path("how").read_text() if Path("how").exists() else ""
    if how == "killed":
        os.kill(os.getpid(), 9)
    if how == "fails":
        raise InputError("no second subject")
    (eeg / "sub-02.h5").write_text("second")
    return str(eeg)

if __name__ == "__main__":
    run(main)
"""


class Project:
    """A clone with this project's look at the user's files and a stage that writes data/eeg."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "stages").mkdir()
        for name in ("__init__.py", "own_files.py", "outputs.py", *OTHERS):
            shutil.copy(ROOT / "stages" / name, folder / "stages")
        (folder / "stages/make.py").write_text(MAKE)
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
        (folder / "dvc.yaml").write_text(STAGES)
        shutil.copy(ROOT / "params.yaml", folder)
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run("dvc", "config", "cache.type", "hardlink,copy")

    def run(self, *command: str, fails: bool = False) -> str:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, fails: bool = False) -> str:
        return self.run("dvc", "repro", fails=fails)

    def set(self, key: str, value: object) -> None:
        path = self.folder / "params.yaml"
        lines = [
            f"  {key}: {value}" if line.startswith(f"  {key}: ") else line for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines) + "\n")


OTHERS = sorted(path.name for path in (ROOT / "stages").glob("*.py") if path.name in ("interpreter.py",))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def ran(output: str) -> bool:
    return "Running stage 'preprocess'" in output


@pytest.mark.parametrize("link", ["hardlink,copy", "copy"])
def test_a_file_of_the_user_in_an_output_ends_the_run(project: Project, link: str) -> None:
    project.run("dvc", "config", "cache.type", link)
    own = project.folder / "data/eeg/sub-03.h5"
    own.parent.mkdir(parents=True)
    own.write_text("a week of recording")
    output = project.repro(fails=True)
    assert "error: data/eeg/sub-03.h5: no stage has made it" in output and "Traceback" not in output
    assert own.read_text() == "a week of recording"

    own.rename(project.folder / "sub-03.h5")  # what the sentence says
    assert ran(project.repro())
    assert not ran(project.repro())

    shutil.copy(project.folder / "sub-03.h5", own)  # beside what the stage has made, or in its place
    assert "data/eeg/sub-03.h5: no stage" in project.repro(fails=True)
    own.unlink()
    made = project.folder / "data/eeg/sub-01.h5"
    made.unlink()
    made.write_text("my own preparation")
    assert "data/eeg/sub-01.h5: no stage" in project.repro(fails=True)
    assert made.read_text() == "my own preparation"
    made.unlink()  # "or delete it if it is a damaged file of a stage"
    assert ran(project.run("dvc", "repro", "--force", "preprocess"))
    assert made.read_text() == "first"


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_what_a_stage_leaves_half_made_is_its_own(project: Project, how: str) -> None:
    (project.folder / "how").write_text(how)
    project.repro(fails=True)
    assert (project.folder / "data/eeg/sub-01.h5").read_text() == "first"
    (project.folder / "how").write_text("")
    assert ran(project.repro())
    assert (project.folder / "data/eeg/sub-02.h5").read_text() == "second"


@pytest.mark.parametrize("key", ["own_copy", "things_images", "weights_file"])
def test_a_corrected_file_of_the_same_name_is_seen_and_one_that_has_not_changed_is_not_read(
    project: Project, key: str, tmp_path: Path
) -> None:
    (project.folder / "dvc.yaml").write_text(
        STAGES.replace(
            "    - data/own_files/dataset.json\n    outs:\n    - data/eeg",
            f"    - data/own_files/{'weights' if key == 'weights_file' else 'dataset'}.json\n    outs:\n    - data/eeg",
        )
    )
    brought = tmp_path / "brought/sub-01.zip"
    brought.parent.mkdir()
    brought.write_text("first")
    project.set(key, brought if key == "weights_file" else brought.parent)
    assert ran(project.repro())
    assert not ran(project.repro())
    brought.write_text("mended")
    assert ran(project.repro())
    assert not ran(project.repro())
    project.set(key, "none")
    assert ran(project.repro())
