"""Which files somebody's own recordings are, and whose: by names alone, nothing is opened.

Two layouts:

- A folder of epochs, nested as it likes: files of MNE (`sub-01-epo.fif`, `sub-01_ses-2_epo.fif`) or
  of EEGLAB (`sub-01.set`). The subject is `sub-XX` in the name of the file, else the folder
  directly in the folder of epochs, else the name of the file up to `-epo`. A file `-epo-1.fif` is
  a part of `-epo.fif`.
- A BIDS root of raw recordings (https://bids-specification.readthedocs.io): what lies in
  `sub-*/eeg`, `sub-*/meg` and the same in each session. `derivatives` is not read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.own.findings import Findings, first_few
from pipeline.datasets.own.recordings import epochs_files
from pipeline.datasets.own.subject_folder import Kind
from pipeline.errors import InputError, suggestion
from pipeline.files import files_below
from pipeline.sections import Own

EPOCHS_OF_MNE = re.compile(r"(.*)[-_]epo\.fif")
PART_OF_EPOCHS = re.compile(r"(.*[-_]epo)-\d+\.fif")
DATATYPES = ("eeg", "meg")  # of BIDS
RAW_ENDINGS = (".vhdr", ".edf", ".bdf", ".set", ".fif", ".ds", ".con", ".sqd")
# What people have beside epochs: named where there are no epochs at all
CONTINUOUS = re.compile(r".*(raw|meg|eeg|sss)\.fif|.*\.(vhdr|edf|bdf|cnt|mff|gdf)", re.IGNORECASE)


@dataclass(frozen=True)
class RecordingFile:
    """One file of a subject. `session` is what stands behind `ses-`, empty if nothing does."""

    path: Path
    subject: str
    session: str

    @property
    def events(self) -> Path:
        """The table of events of a raw recording."""
        stem = re.sub(r"(_split-\d+)?_(eeg|meg)\.\w+$", "", self.path.name)
        return self.path.with_name(f"{stem}_events.tsv")


@dataclass(frozen=True)
class Recordings:
    """All files of one kind, by subject, session and name."""

    folder: Path
    kind: Kind
    files: tuple[RecordingFile, ...]


def full_path(key: str, setting: str, expected: str) -> Path:
    """The path that a parameter names. Raises InputError unless it is in full and exists."""
    path = Path(setting).expanduser()
    # `dvc exp run` works in another folder, so a relative path would lead elsewhere.
    if setting == "none" or not path.is_absolute() or not path.exists():
        gone = ", and there is nothing at that path" if path.is_absolute() else ""
        raise InputError(f"{key} is {setting!r}: expected the full path of {expected}{gone}")
    return path


def find_recordings(settings: Own, findings: Findings) -> Recordings:
    """The files that `own.eeg` names.

    Raises InputError where it names no folder, or one without recordings. Notes what is wrong
    with the names of single files.
    """
    folder = full_path("own.eeg", settings.eeg, "a folder of epochs, or of a BIDS root")
    if not folder.is_dir():
        raise InputError(f"own.eeg is {settings.eeg!r}: is a file; name the folder that it lies in")

    paths = [Path(name) for name in files_below(folder)]
    paths = [path for path in paths if not _is_hidden(path.relative_to(folder))]

    files = _raw_files(folder)
    kind: Kind = "raw"
    # Derivatives of a BIDS root hold epochs in the same folders: those are a folder of epochs.
    if not files:
        files = _epochs_files(folder, paths, findings)
        kind = "epochs"
    if not files:
        raise InputError(_nothing_found(folder, paths))

    ordered = sorted(files, key=lambda file: natural_key(f"{file.subject}/{file.session}"))
    # Files of a session by their names; Python's sort keeps that order.
    return Recordings(folder, kind, tuple(ordered))


def choose_subjects(recordings: Recordings, subjects: list[str] | str) -> Recordings:
    """The files of these subjects. Raises InputError for one that is not there."""
    if subjects == "all":
        return recordings

    existing = list(dict.fromkeys(file.subject for file in recordings.files))
    missing = [subject for subject in subjects if subject not in existing]
    if missing:
        raise InputError(
            f"{recordings.folder}: no subject {', '.join(missing)}, there are "
            f"{first_few(existing, 20)}: choose of these in `subjects`"
            + suggestion(missing[0], existing)
        )
    files = tuple(file for file in recordings.files if file.subject in subjects)
    return Recordings(recordings.folder, recordings.kind, files)


def number_sessions(files: tuple[RecordingFile, ...]) -> dict[str, int]:
    """The number of each session of a subject, from 1.

    Where all their names are numbers, these; else they are counted in the order of their names.
    """
    labels = sorted({file.session for file in files}, key=natural_key)
    if all(label.isdecimal() and int(label) > 0 for label in labels):
        return {label: int(label) for label in labels}
    return {label: number for number, label in enumerate(labels, start=1)}


def companions(recordings: Recordings, file: RecordingFile) -> list[Path]:
    """All files that decide what is read as this recording, itself among them.

    Of epochs the parts of a large file, and the values beside a `.set`; of a raw recording the
    tables beside it and above it. What its events are is not among them.
    """
    if recordings.kind == "epochs":
        return epochs_files(file.path)

    stem = file.events.name.removesuffix("_events.tsv")
    paths = []
    parent = file.path.parent
    for path in sorted(parent.rglob("*")):
        name = str(path.relative_to(parent))
        describes = path.suffix in (".tsv", ".json") and not name.startswith("sub-")
        describes |= name.endswith(("_electrodes.tsv", "_coordsystem.json"))
        if path.is_file() and "_events." not in name and (name.startswith(f"{stem}_") or describes):
            paths.append(path)

    # A table that lies higher holds for all recordings below it.
    while parent != recordings.folder:
        parent = parent.parent
        for datatype in DATATYPES:
            paths += sorted(parent.glob(f"*_{datatype}.json"))
        paths += sorted(parent.glob("*_channels.tsv"))
    return paths


def natural_key(name: str) -> list[tuple[int, str]]:
    """For sorting: run-2 comes before run-10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _is_hidden(path: Path) -> bool:
    """Also what macOS writes beside a file: `._sub-01-epo.fif` is none."""
    return any(part.startswith(".") for part in path.parts)


def _raw_files(root: Path) -> list[RecordingFile]:
    """The raw recordings where BIDS has them."""
    files = []
    for datatype in DATATYPES:
        for path in sorted(root.glob(f"sub-*/{datatype}/*")) + sorted(
            root.glob(f"sub-*/ses-*/{datatype}/*")
        ):
            is_recording = path.stem.endswith(f"_{datatype}") and path.suffix in RAW_ENDINGS
            # Later parts of a recording in FIF: MNE follows the first one.
            is_part = re.search(r"_split-0*([2-9]|1\d)_", path.name)
            if is_recording and not is_part and not _is_hidden(path.relative_to(root)):
                subject = path.relative_to(root).parts[0]
                files.append(RecordingFile(path, subject, _session(path.relative_to(root))))
    return sorted(files, key=lambda file: natural_key(file.path.name))


def _epochs_files(folder: Path, paths: list[Path], findings: Findings) -> list[RecordingFile]:
    """The files of epochs; `paths` are all files in the folder."""
    files = []
    for path in sorted(paths, key=lambda path: natural_key(path.name)):
        part = PART_OF_EPOCHS.fullmatch(path.name)
        if part and not path.with_name(f"{part[1]}.fif").exists():
            findings.add_problem(
                "files",
                f"{path}: is a part of {part[1]}.fif, which is not beside it; put it there, or "
                "take this part away",
            )
        elif path.name.endswith(("epo.fif.gz", ".set.gz")):
            findings.add_problem("files", f"{path}: is compressed; unpack it with gunzip")
        elif EPOCHS_OF_MNE.fullmatch(path.name) or path.suffix == ".set":
            name = path.relative_to(folder)
            files.append(RecordingFile(path, _subject(name, findings), _session(name)))

    _check_doubles(files, findings)
    return files


def _subject(name: Path, findings: Findings) -> str:
    """Whose epochs a file holds; `name` is its path in the folder of epochs."""
    in_name = re.search(r"sub-[0-9A-Za-z]+", name.name)
    folder = name.parts[0] if len(name.parts) > 1 else ""
    folder_is_subject = re.fullmatch(r"sub-[0-9A-Za-z]+", folder)
    if in_name and folder_is_subject and in_name[0] != folder:
        findings.add_problem(
            "files",
            f"{name}: lies in the folder of {folder} and has the name of {in_name[0]}; rename one "
            "of them",
        )
    if in_name:
        return in_name[0]
    if folder:
        return folder

    match = EPOCHS_OF_MNE.fullmatch(name.name)
    stem = match[1] if match else re.sub(r"[-_]epo$", "", name.stem)
    return re.sub(r"[-_](ses|run|task|part)-[0-9A-Za-z]+", "", stem) or name.stem


def _session(name: Path) -> str:
    """What stands behind `ses-`, in the name of the file or else of a folder; empty if nothing."""
    labels = re.findall(r"(?:^|[/_-])ses-([0-9A-Za-z]+)", str(name))
    return labels[-1] if labels else ""


def _check_doubles(files: list[RecordingFile], findings: Findings) -> None:
    """Note epochs that are there twice: in two formats, or at two steps of their processing."""
    by_stem: dict[Path, list[str]] = {}
    steps: dict[str, set[str]] = {}
    for file in files:
        stem = re.sub(r"[-_]epo$", "", file.path.stem)
        by_stem.setdefault(file.path.with_name(stem), []).append(str(file.path))
        step = re.search(r"_(?:proc|desc)-([0-9A-Za-z]+)", file.path.name)
        steps.setdefault(file.subject, set()).add(step[0][1:] if step else "no proc-")

    for paths in by_stem.values():
        if len(paths) > 1:
            findings.add_problem(
                "files",
                f"{paths[0]}: the same epochs seem to be in {first_few(paths[1:])}, too; take one "
                "of them away",
            )
    for subject, names in steps.items():
        if len(names) > 1:
            findings.add_problem(
                "files",
                f"{subject}: has epochs of several steps of processing "
                f"({', '.join(sorted(names))}), which may be the same trials; put the ones to use "
                "into a folder of their own and let own.eeg name it",
            )


def _nothing_found(folder: Path, paths: list[Path]) -> str:
    """The sentence for a folder without recordings: what there is, and what to do."""
    expected = (
        f"{folder}: has no recordings, expected epochs (-epo.fif of MNE, .set of EEGLAB) or the "
        "sub-*/eeg or sub-*/meg of a BIDS root"
    )
    continuous = [path.name for path in paths if CONTINUOUS.fullmatch(path.name)]
    roots = [parent for parent in folder.parents if (parent / "dataset_description.json").is_file()]

    if continuous and roots:
        return f"{expected}, got a part of a BIDS root; let own.eeg name the root, {roots[0]}"
    if continuous:
        return (
            f"{expected}, got raw recordings ({first_few(continuous)}); make them a BIDS root with "
            "mne_bids.write_raw_bids, or save epochs of them with epochs.save"
        )
    names = sorted({path.name for path in paths}, key=natural_key)
    return f"{expected}, got {first_few(names) or 'an empty folder'}; name the folder that has them"
