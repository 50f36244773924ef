"""A stage that is run by another Python than the project's ends in one sentence, and what it says helps."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANOTHER_PYTHON = [sys.executable, "-S"]  # without site-packages


def run(
    command: list[str], folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ")
    return line


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's files with a `.venv` of their own, which has the packages that this Python has."""
    for name in ("stages", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "Makefile",
        "checkout.sh",
        "pyproject.toml",
        "constraints.txt",
        "dvc.yaml",
        ".gitignore",
    ):
        shutil.copy(ROOT / name, tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)

    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True
    )
    [packages] = (tmp_path / ".venv/lib").glob("*/site-packages")
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / ".venv/installed").touch()
    return tmp_path


def test_a_python_without_the_packages_is_told_to_activate_the_one_that_has_them(
    project: Path,
) -> None:
    told = sentence(run([*ANOTHER_PYTHON, "-m", "stages.health", "--help"], project))
    assert (
        f"error: {sys.executable} (Python 3." in told
        and " has no package typer; type in the project's" in told
    )

    remedy = told.partition("folder: ")[2]
    assert (
        run(["bash", "-c", f"{remedy} && python -m stages.health --help"], project).returncode == 0
    )


def test_the_python_of_the_project_is_told_to_install_what_it_lacks(project: Path) -> None:
    [packages] = (project / ".venv/lib").glob("*/site-packages")
    (packages / "packages.pth").unlink()
    told = sentence(run([".venv/bin/python", "-m", "stages.health"], project))
    assert told.endswith(" has no package typer; type in the project's folder: make -B setup")

    plan = run(["make", "-n", "-B", "setup"], project).stdout  # without -B make takes it for done
    assert (
        "pip install" in plan and "pip install" not in run(["make", "-n", "setup"], project).stdout
    )


@pytest.mark.parametrize("stage", sorted(path.stem for path in Path("stages").glob("[a-z]*.py")))
def test_no_stage_ends_in_a_traceback_for_a_missing_package(stage: str) -> None:
    if stage == "interpreter":
        return
    assert "has no package typer" in sentence(run([*ANOTHER_PYTHON, "-m", f"stages.{stage}"]))


def as_stage(module: str, before: str) -> str:
    """A program that runs a stage as `python -m` does."""
    return f"import runpy, sys; {before}; runpy.run_module('stages.{module}', run_name='__main__', alter_sys=True)"


def test_a_package_that_a_stage_imports_late_is_told_too() -> None:
    done = run([sys.executable, "-c", as_stage("health", "sys.modules['h5py'] = None")])
    assert " has no package h5py; type in the project's folder: " in sentence(done)


def test_a_module_of_the_project_that_is_missing_shows_where() -> None:
    done = run([sys.executable, "-c", as_stage("health", "sys.modules['pipeline.files'] = None")])
    assert (
        done.returncode == 1 and "Traceback" in done.stderr and "stages/__init__.py" in done.stderr
    )


def test_an_old_python_is_told_which_is_needed() -> None:
    done = run([*ANOTHER_PYTHON, "-c", as_stage("train", "sys.version_info = (3, 10, 13)")])
    told = sentence(done)
    assert (
        "(Python 3.10) runs this stage, which needs Python 3.11 or newer; type in the project's folder: "
        in told
    )


@pytest.mark.parametrize("name", ["__init__", "interpreter"])
def test_an_old_python_can_read_what_tells_it(name: str) -> None:
    ast.parse((ROOT / f"stages/{name}.py").read_text(), feature_version=(3, 7))
