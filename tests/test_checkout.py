"""What DVC needs of git is told before anything is installed, and the commands that are told help."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = "-S seed=2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of one stage that came as an archive, and a home in which git knows nobody."""
    folder = tmp_path / "a project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (folder / "params").mkdir()
    (folder / "params/recipe").write_text(RECIPE)
    (folder / "params.yaml").write_text("seed: 1\n")
    (folder / "dvc.yaml").write_text(
        "stages:\n  seed:\n    cmd: cp params.yaml out\n    params: [seed]\n    outs: [out]\n"
    )
    for name in ("Makefile", "checkout.sh", "pyproject.toml", "constraints.txt", ".gitattributes"):
        shutil.copy(ROOT / name, folder)
    (tmp_path / "home").mkdir()
    return folder


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In `folder`, by a user to whom nothing of this machine's git belongs."""
    of_git = {name for name in os.environ if name.startswith("GIT_")}
    environment = {
        **{name: value for name, value in os.environ.items() if name not in of_git},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder.parent / "home"),
        "XDG_CONFIG_HOME": str(folder.parent / "home"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.parent.parent),
        **environment,
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def check(folder: Path, **environment: str) -> tuple[int, str]:
    """The exit status of the check, and the one line that it tells."""
    done = run(folder, "/bin/sh", "checkout.sh", **environment)
    assert done.stderr.count("\n") <= 1 and not done.stdout
    return done.returncode, done.stderr


def follow(folder: Path, told: str, **environment: str) -> None:
    """Type what a sentence says."""
    done = run(folder, "/bin/sh", "-c", told.partition("type: ")[2], **environment)
    assert done.returncode == 0, done.stderr


def test_an_archive_becomes_a_repository_in_which_dvc_runs_experiments(folder: Path) -> None:
    done = run(folder, "make", "setup", "PYTHON=false")
    assert (
        done.returncode != 0 and "Installing" not in done.stdout and not (folder / ".venv").exists()
    )
    status, told = check(folder)
    assert status == 1 and told.startswith(
        "error: this folder is no git repository (it came as an archive?), and DVC"
    )
    assert told in done.stderr

    follow(folder, told)
    assert check(folder) == (0, "")
    done = run(folder, "dvc", "exp", "run", "-S", "seed=2")
    assert done.returncode == 0, done.stderr


def test_a_repository_without_a_commit_is_told(folder: Path) -> None:
    run(folder, "git", "init", "-q")
    status, told = check(folder)
    assert status == 1 and told.startswith(
        "error: this git repository has no commit yet, and DVC needs one; type: git c"
    )
    follow(folder, told)
    assert check(folder) == (0, "")


def damage_config(git: Path) -> None:
    (git / "config").write_text("[core\n")


def empty_head(git: Path) -> None:
    (git / "HEAD").write_text("")


def point_to_nothing(git: Path) -> None:
    shutil.rmtree(git)
    git.write_text("gitdir: /nowhere/else\n")


@pytest.mark.parametrize("damage", [damage_config, empty_head, point_to_nothing])
def test_a_damaged_repository_is_cloned_again(folder: Path, damage: Callable[[Path], None]) -> None:
    follow(folder, check(folder)[1])
    clone = folder.parent / "clone"
    run(folder, "git", "clone", "-q", str(folder), str(clone))
    damage(clone / ".git")
    status, told = check(clone)
    assert status == 1 and "cannot read this folder's repository: " in told
    assert told.endswith(
        "; clone the project again, and copy into the clone what is yours (params.yaml, data)\n"
    )

    shutil.rmtree(clone)
    run(folder, "git", "clone", "-q", str(folder), str(clone))
    assert check(clone) == (0, "")


@pytest.fixture
def repository(folder: Path) -> Path:
    follow(folder, check(folder)[1])
    return folder


def test_a_folder_that_the_repository_around_it_ignores_is_told(repository: Path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    for name in ("dvc.yaml", "checkout.sh", "params"):
        (repository / name).rename(inner / name)
    home = str(repository.parent / "home")
    assert check(inner, HOME=home) == (0, "")

    (repository / ".gitignore").write_text("/inner\n")
    status, told = check(inner, HOME=home)
    assert status == 1 and f"error: the git repository at {repository} ignores this folder" in told
    follow(inner, told, HOME=home)
    assert check(inner, HOME=home) == (0, "")


def test_a_checkout_of_another_user_is_told(repository: Path) -> None:
    of_another_user = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    status, told = check(repository, **of_another_user)
    assert status == 1 and told.startswith(
        "error: this folder belongs to another user, which git and DVC refuse; if you"
    )
    follow(repository, told, **of_another_user)
    assert check(repository, **of_another_user) == (0, "")


def test_no_identity_is_a_note_for_only_experiments_need_one(repository: Path) -> None:
    (repository.parent / "home/.gitconfig").unlink()
    status, told = check(repository)
    assert status == 0 and told.startswith(
        "note: git does not know who you are, without which `dvc exp run` fails; type"
    )
    assert check(repository, GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="b") == (0, "")
    follow(repository, told)
    assert check(repository) == (0, "")


def test_a_worktree_of_git_is_a_checkout(repository: Path) -> None:
    run(repository, "git", "worktree", "add", "-q", "../other")
    assert check(repository.parent / "other") == (0, "")


def test_a_machine_without_git_is_told(folder: Path) -> None:
    status, told = check(folder, PATH="/nowhere")
    assert status == 1 and told.startswith("error: git is not installed")


@pytest.mark.long
def test_a_recipe_with_the_line_ends_of_windows_is_told_and_runs_by_what_is_told(
    repository: Path,
) -> None:
    recipe = repository / "params/recipe"
    recipe.write_bytes(RECIPE.replace("\n", "\r\n").encode())
    status, told = check(repository)
    assert status == 0 and told.startswith(
        "note: params/recipe has the line ends of Windows, which `dvc exp run` cannot"
    )

    follow(repository, told)
    assert (repository / "out").read_text() == "seed: 2\n"


def test_a_checkout_by_the_git_of_windows_has_no_windows_line_ends(repository: Path) -> None:
    clone = [
        "clone",
        "-q",
        "-c",
        "core.autocrlf=true",
        "-c",
        "core.eol=crlf",
        str(repository),
        "../clone",
    ]
    assert run(repository, "git", *clone).returncode == 0
    texts = {
        name: (repository.parent / "clone" / name).read_bytes()
        for name in ("params/recipe", "checkout.sh")
    }
    assert texts["params/recipe"] == RECIPE.encode() and b"\r" not in texts["checkout.sh"]
