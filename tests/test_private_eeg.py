"""EEG that may not be passed on: never pushed, and still read wherever DVC puts it. Through DVC, on a tiny dataset."""

import shutil
from pathlib import Path

import h5py
import pytest

from tests.clone import Project, project_after_its_first_run, ran

pytestmark = pytest.mark.long

TRAIN_ALONE = ("dvc", "repro", "--force", "--single-item", "train")


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    """A clone whose dataset may not be pushed, on which the pipeline has run."""
    project = project_after_its_first_run(tmp_path_factory, quick_programs)
    table = project.folder / "pipeline/datasets/table.py"
    code = table.read_text()
    entry = "THINGS_EEG2 = Dataset(\n"
    assert code.count(entry) == 1
    table.write_text(code.replace(entry, f"{entry}    may_push_eeg=False,\n"))

    assert ran(project.run("dvc", "repro"))[:2] == ["private_eeg", "preprocess"]
    project.run("git", "commit", "-qam", "private")
    return project


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_takes_the_eeg_from_there(project: Project) -> None:
    assert project.metrics()["n_subjects"] == 2
    for path in (project.folder / "data/eeg").glob("*.h5"):
        with h5py.File(path) as file:
            where = Path(file["train/eeg"].file.filename).resolve()
            assert where == project.folder / "data/private_eeg" / path.name
            assert file["train"].attrs.keys() == set()
    assert "up to date" in project.run("dvc", "status") or not ran(project.run("dvc", "repro"))


def test_a_push_uploads_none_of_it(project: Project, tmp_path: Path) -> None:
    remote = ("dvc", "remote", "add", "--local", "-d", "-f", "shared", str(tmp_path / "remote"))
    project.run(*remote)
    project.run("dvc", "push")
    uploaded = {path: path.read_bytes() for path in files_below(tmp_path / "remote")}
    assert len(uploaded) > 10

    for path in (project.folder / "data/private_eeg").glob("*.h5"):
        with h5py.File(path) as file:
            for split in ("train", "test"):
                eeg = file[split]["eeg"]
                values = path.read_bytes()[eeg.id.get_offset() :][:256]
                assert len(set(values)) > 50  # values, not zeros
                assert not any(values in content for content in uploaded.values())

    # A colleague gets all that was pushed, and one sentence.
    environment = project.environment | {"ALIGNED_EEG_CACHE": str(tmp_path / "cache")}
    colleague = Project(tmp_path / "clone", environment, cold=environment)
    project.run("git", "clone", "-q", ".", str(colleague.folder))
    colleague.run(*remote)
    colleague.run("dvc", "pull", "embed", "preprocess", "train")
    refusal = colleague.run(
        "dvc", "exp", "run", "--pull", "--allow-missing", "-S", "seed=1", fails=True
    )
    assert "Traceback" not in refusal
    assert "data/eeg/sub-01.h5: leads to the EEG in data/private_eeg/sub-01.h5, which is" in refusal


def test_what_was_deleted_comes_back_without_work(project: Project) -> None:
    shutil.rmtree(project.folder / "data/private_eeg")
    refusal = project.run(*TRAIN_ALONE, fails=True)
    assert "which is missing, because `dvc push` never uploads" in refusal
    assert ran(project.run("dvc", "repro")) == []

    shutil.rmtree(project.folder / "data/private_eeg")
    shutil.rmtree(project.folder / "data/eeg")
    project.run("dvc", "checkout")
    assert ran(project.run(*TRAIN_ALONE)) == ["train"]


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_dvc_links_it_into_its_cache(project: Project, link: str) -> None:
    project.run("dvc", "config", "--local", "cache.type", link)
    project.run("dvc", "checkout", "--relink")
    path = project.folder / "data/eeg/sub-01.h5"
    assert path.is_symlink() == (link == "symlink")
    project.set(train__epochs=2, seed={"symlink": 11, "hardlink": 12, "copy": 13}[link])
    assert ran(project.run("dvc", "repro", "train")) == ["train"]  # with no finished training


def test_an_experiment_in_a_folder_of_its_own_finds_it(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "repro")
    output = project.run("dvc", "exp", "run", "--temp", "-S", "seed=21", "--name", "elsewhere")
    assert "preprocess" not in ran(output) and "train" in ran(output)
