"""Which files somebody's own recordings are, whose, and in which order: by their names."""

from pathlib import Path

import pytest

from pipeline.datasets.own.files import (
    RecordingFile,
    companions,
    find_recordings,
    number_sessions,
)
from pipeline.datasets.own.findings import Findings
from pipeline.params import read_params

OWN = read_params(Path("params.yaml")).own


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path) -> tuple[str, list[tuple[str, str, str]]]:
    """The kind, and path, subject and session of each file."""
    findings = Findings()
    recordings = find_recordings(OWN.model_copy(update={"eeg": str(folder)}), findings)
    assert not findings.problems
    files = [
        (str(file.path.relative_to(folder)), file.subject, file.session)
        for file in recordings.files
    ]
    return recordings.kind, files


@pytest.mark.parametrize(
    ("name", "subject", "session"),
    [
        ("sub-01-epo.fif", "sub-01", ""),
        ("sub-01_ses-2_run-1_epo.fif", "sub-01", "2"),
        ("sub-01.set", "sub-01", ""),
        ("P1-epo.fif", "P1", ""),
        ("anna_epo.fif", "anna", ""),
        ("anna_ses-b_run-3_epo.set", "anna", "b"),
        ("anna/day1.set", "anna", ""),
        ("anna/ses-2/day1.set", "anna", "2"),
        ("ses-2/sub-07-epo.fif", "sub-07", "2"),
        ("sub-01/eeg/sub-01_task-see_epo.fif", "sub-01", ""),  # derivatives of a BIDS root
    ],
)
def test_the_subject_and_session_of_epochs(
    tmp_path: Path, name: str, subject: str, session: str
) -> None:
    touch(tmp_path, name)
    assert found(tmp_path) == ("epochs", [(name, subject, session)])


def test_what_is_no_file_of_epochs(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01-epo.fif", "sub-01-epo-1.fif", "sub-01-epo-2.fif", "sub-01-epo.csv")
    touch(tmp_path, "._sub-01-epo.fif", ".git/sub-02-epo.fif", "sub-01-ave.fif", "notes.txt")
    assert found(tmp_path) == ("epochs", [("sub-01-epo.fif", "sub-01", "")])


def test_files_are_in_the_order_of_subjects_sessions_and_runs(tmp_path: Path) -> None:
    names = [
        f"sub-{subject}_ses-{session}_run-{run}_epo.fif"
        for subject in ("2", "10")
        for session in ("1", "2", "11")
        for run in ("1", "2", "12")
    ]
    touch(tmp_path, *reversed(names))
    assert [name for name, _, _ in found(tmp_path)[1]] == names


def test_the_raw_recordings_of_a_bids_root(tmp_path: Path) -> None:
    touch(tmp_path, "dataset_description.json", "participants.tsv", "task-see_eeg.json")
    for name in ("sub-01/eeg/sub-01_task-see", "sub-02/ses-b/eeg/sub-02_ses-b_task-see"):
        touch(tmp_path, *(f"{name}_eeg.{ending}" for ending in ("vhdr", "eeg", "vmrk", "json")))
        touch(tmp_path, f"{name}_events.tsv", f"{name}_channels.tsv")
    touch(tmp_path, "sub-03/meg/sub-03_task-see_split-01_meg.fif")
    touch(tmp_path, "sub-03/meg/sub-03_task-see_split-02_meg.fif")
    touch(tmp_path, "derivatives/clean/sub-01/eeg/sub-01_task-see_epo.fif")
    assert found(tmp_path) == (
        "raw",
        [
            ("sub-01/eeg/sub-01_task-see_eeg.vhdr", "sub-01", ""),
            ("sub-02/ses-b/eeg/sub-02_ses-b_task-see_eeg.vhdr", "sub-02", "b"),
            ("sub-03/meg/sub-03_task-see_split-01_meg.fif", "sub-03", ""),
        ],
    )


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["", ""], {"": 1}),
        (["2", "1", "10"], {"1": 1, "2": 2, "10": 10}),
        (["02"], {"02": 2}),
        (["post", "pre"], {"post": 1, "pre": 2}),
        (["0", "1"], {"0": 1, "1": 2}),
    ],
)
def test_sessions_are_numbered(labels: list[str], numbers: dict[str, int]) -> None:
    files = [RecordingFile(Path(label), "sub-01", label) for label in labels]
    assert number_sessions(tuple(files)) == numbers


def test_the_files_that_decide_a_raw_recording(tmp_path: Path) -> None:
    """Its values, its tables and those above it: but not its events, nor those of another run."""
    touch(tmp_path, "dataset_description.json", "task-see_eeg.json", "task-see_channels.tsv")
    folder = tmp_path / "sub-01/eeg"
    first, other = "sub-01_task-see_run-1", "sub-01_task-see_run-10"
    for name in (first, other):
        touch(folder, *(f"{name}_eeg.{ending}" for ending in ("vhdr", "eeg", "vmrk", "json")))
        touch(folder, f"{name}_events.tsv", f"{name}_channels.tsv")
    touch(folder, "sub-01_electrodes.tsv", "sub-01_coordsystem.json")

    findings = Findings()
    recordings = find_recordings(OWN.model_copy(update={"eeg": str(tmp_path)}), findings)
    names = [path.name for path in companions(recordings, recordings.files[0])]
    assert sorted(names) == sorted(
        [f"{first}_eeg.{ending}" for ending in ("vhdr", "eeg", "vmrk", "json")]
        + [f"{first}_channels.tsv", "sub-01_electrodes.tsv", "sub-01_coordsystem.json"]
        + ["task-see_eeg.json", "task-see_channels.tsv"]
    )
