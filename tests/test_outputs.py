"""Through DVC: files of the user in a stage's output are not deleted, and those outside of it are never stale."""

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from dvc.exceptions import ReproductionError
from dvc.repo import Repo

from stages.outputs import SLACK
from stages.own_files import main

ROOT = Path(__file__).parent.parent
STAGES = """
stages:
  own_files:
    cmd: >-
      python -m stages.own_files params.yaml
      data/own_files/dataset.json data/own_files/human.json data/own_files/weights.json
      data/own_files/eeg_weights.json data/own_files/recordings.json data/own_files/pictures.json
    always_changed: true
    deps:
    - params.yaml
    outs:
    - data/own_files/dataset.json
    - data/own_files/eeg_weights.json
    - data/own_files/human.json
    - data/own_files/pictures.json
    - data/own_files/recordings.json
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

    def __init__(self, folder: Path, links: str = "hardlink,copy") -> None:
        self.folder = folder
        (folder / "stages").mkdir(parents=True)
        for name in ("__init__.py", "interpreter.py", "outputs.py", "own_files.py"):
            shutil.copy(ROOT / "stages" / name, folder / "stages")
        (folder / "stages/make.py").write_text(MAKE)
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
        (folder / "dvc.yaml").write_text(STAGES)
        shutil.copy(ROOT / "params.yaml", folder)
        with Repo.init(str(folder), no_scm=True) as repo, repo.config.edit() as config:
            config["cache"]["type"] = links

    def repro(self, **options: object) -> bool:
        """What `dvc repro` does, without the 2 s of its start; whether the stage preprocess ran."""
        with contextlib.chdir(self.folder), Repo() as repo:
            return "preprocess" in {stage.name for stage in repo.reproduce(**options)}

    def refusal(self, capfd: pytest.CaptureFixture[str]) -> str:
        """What a `dvc repro` that fails prints."""
        with pytest.raises(ReproductionError):
            self.repro()
        return capfd.readouterr().err

    def set(self, key: str, value: object) -> None:
        path = self.folder / "params.yaml"
        lines = [
            f"  {key}: {value}" if line.startswith(f"  {key}: ") else line
            for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def with_this_python(monkeypatch: pytest.MonkeyPatch, quick_programs: str) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PATH", quick_programs, prepend=os.pathsep)


@pytest.mark.parametrize("links", ["hardlink,copy", pytest.param("copy", marks=pytest.mark.long)])
def test_a_file_of_the_user_in_an_output_ends_the_run(
    tmp_path: Path, links: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path / "project", links)
    own = project.folder / "data/eeg/sub-03.h5"
    own.parent.mkdir(parents=True)
    own.write_text("a week of recording")
    refusal = project.refusal(capfd)
    assert "error: data/eeg/sub-03.h5: no stage has made it" in refusal
    assert "Traceback" not in refusal
    assert own.read_text() == "a week of recording"

    own.rename(project.folder / "sub-03.h5")  # what the sentence says
    assert project.repro()
    assert not project.repro()

    time.sleep(SLACK)  # what is written sooner after a stage counts as its own
    shutil.copy(
        project.folder / "sub-03.h5", own
    )  # beside what the stage has made, or in its place
    assert "data/eeg/sub-03.h5: no stage" in project.refusal(capfd)
    own.unlink()
    made = project.folder / "data/eeg/sub-01.h5"
    made.unlink()
    made.write_text("my own preparation")
    assert "data/eeg/sub-01.h5: no stage" in project.refusal(capfd)
    assert made.read_text() == "my own preparation"
    made.unlink()  # "or delete it if it is a damaged file of a stage"
    assert project.repro(targets="preprocess", force=True)
    assert made.read_text() == "first"


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_what_a_stage_leaves_half_made_is_its_own(
    tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path / "project")
    (project.folder / "how").write_text(how)
    project.refusal(capfd)
    assert (project.folder / "data/eeg/sub-01.h5").read_text() == "first"
    (project.folder / "how").write_text("")
    assert project.repro()
    assert (project.folder / "data/eeg/sub-02.h5").read_text() == "second"


RECORD_FILES = ("dataset", "human", "weights", "eeg_weights", "recordings", "pictures")


def test_a_corrected_file_is_seen_and_an_unchanged_one_is_not_read(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    brought = tmp_path / "brought/sub-01.zip"
    brought.parent.mkdir()
    brought.write_text("first")
    project.set("own_copy", brought.parent)
    assert project.repro()
    assert not project.repro()

    brought.write_text("mended")  # under the same name
    assert project.repro()


def test_what_people_say_has_a_record_of_its_own(tmp_path: Path) -> None:
    """A list of words that is added to the copies has nothing else fetched again."""
    project = Project(tmp_path / "project")
    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "sub-01.zip").write_text("EEG")
    project.set("own_copy", brought)
    paths = [tmp_path / f"{name}.json" for name in RECORD_FILES]

    def records() -> list[str]:
        with contextlib.chdir(project.folder):
            main(project.folder / "params.yaml", *paths)
        return [path.read_text() for path in paths]

    before = records()
    for name in ("spose_embedding_66d_sorted.txt", "Categories_final_20200131.tsv"):
        (brought / name).write_text("1 2")
        after = records()
        changed = [old != new for old, new in zip(before, after, strict=True)]
        assert changed == [record == "human" for record in RECORD_FILES]
        before = after


RECORDS = {"own_copy": 0, "things_images": 0, "weights_file": 2, "eeg_weights": 3}
RECORDS |= {"features_file": 2, "features_file_aligned": 2}
RECORDS |= {"eeg": 4, "split": 4, "images": 5}


@pytest.mark.parametrize("key", RECORDS)
def test_the_record_follows_the_file(tmp_path: Path, key: str) -> None:
    """Another record has the stages run that depend on it; the same record, none."""
    project = Project(tmp_path / "project")
    brought = tmp_path / "brought/model.zip"
    brought.parent.mkdir()

    def record() -> str:
        paths = [tmp_path / f"{name}.json" for name in RECORD_FILES]
        with contextlib.chdir(project.folder):
            main(project.folder / "params.yaml", *paths)
        return paths[RECORDS[key]].read_text()

    without = record()
    project.set(
        key, brought if key.startswith(("weights", "features", "split")) else brought.parent
    )
    brought.write_text("first")
    first = record()
    assert first == record() != without

    brought.write_text("mended")
    assert record() not in (first, without)

    project.set(key, "none")
    assert record() == without
