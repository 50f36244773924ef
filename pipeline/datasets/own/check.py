"""Somebody's own recordings and pictures, checked before anything is computed.

All files are looked at and all problems are collected. What comes out is what the download puts in
place: for each subject its files and trials (`subject_folder`), and the table of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.own.axes import NamedAxes, check_axes, count_samples
from pipeline.datasets.own.files import (
    RecordingFile,
    Recordings,
    choose_subjects,
    companions,
    find_recordings,
    natural_key,
    number_sessions,
)
from pipeline.datasets.own.findings import Findings
from pipeline.datasets.own.hashes import hash_files
from pipeline.datasets.own.pictures import (
    Pictures,
    check_links,
    count_bytes,
    find_pictures,
    image_id,
    match_pictures,
)
from pipeline.datasets.own.splits import (
    WORDS,
    check_sizes,
    describe_repetitions,
    find_concepts,
    find_splits,
    tell_repetitions,
)
from pipeline.datasets.own.subject_folder import Kind, SubjectFile, SubjectFolder
from pipeline.datasets.own.trials import Epoching, FileTrials, read_trials, uses_column
from pipeline.sections import Own

Images = Mapping[Split, pd.DataFrame]

# Rough, of two cores of a server without GPU, see docs/costs.md
BYTES_A_SECOND: Mapping[Kind, float] = {"epochs": 100e6, "raw": 25e6}  # of recordings, read
SECONDS_A_PICTURE = 0.19  # embedded with both encoders, ViT-B/16, bfloat16
VALUES_A_SECOND = 8e6  # of EEG, in training
TRAINING_EPOCHS = 100


@dataclass(frozen=True)
class Costs:
    """About what a run takes: bytes on the disk, and minutes."""

    eeg_bytes: float
    picture_bytes: int
    prepare: float
    embed: float
    train: float


@dataclass(frozen=True)
class Check:
    """What a check has found.

    * `findings`: problems and what is left out.
    * `rows`: a table with a row a subject, to be shown.
    * `images`: the pictures that are used, as a dataset's `read_metadata` returns them.
    * `subjects`: the files and trials of each subject.
    * `costs`: None where there is a problem.

    With a problem, `images` and `subjects` are empty.
    """

    findings: Findings
    rows: list[dict[str, object]]
    images: Images
    subjects: Mapping[str, SubjectFolder]
    costs: Costs | None = None


def check_own(
    settings: Own, subjects: list[str] | Literal["all"], epoching: Epoching, top_k: Sequence[int]
) -> Check:
    """Look at all files that `own` names, of these subjects. `top_k` is `evaluate.top_k`.

    No value of the EEG is read (of `.set` MNE reads all of it). Problems of single files, rows and
    names are collected; nothing is raised but for what the disk refuses.
    """
    findings = Findings()
    recordings = None
    pictures = None
    with findings.collecting("recordings"):
        recordings = choose_subjects(find_recordings(settings, findings), subjects)
    with findings.collecting("pictures"):
        pictures = find_pictures(settings.images)
    if recordings is None or pictures is None:
        return Check(findings, [], {}, {})

    files = _read_files(recordings, settings, epoching, findings)
    if not files and not findings.n_problems:
        findings.add_problem(
            "recordings",
            f"{recordings.folder}: no recording has trials that name a picture; let "
            "own.image_column name the column that says which picture was shown",
        )
    if not files:
        return Check(findings, [], {}, {})

    named = [NamedAxes(file.path.name, file.subject, read.axes) for file, read in files.items()]
    check_axes(named, recordings.kind, epoching, findings)
    trials = _join(files)
    trials = _find_pictures_of(trials, pictures, findings)
    if trials.empty:  # each of its names is a problem already
        return Check(findings, [], {}, {})
    trials, images = _choose(trials, pictures, settings, top_k, findings)

    rows = _describe(recordings, files, trials)
    if findings.n_problems:
        return Check(findings, rows, {}, {})
    folders = _subject_folders(recordings, trials)
    _check_copies(folders, findings)
    if findings.n_problems:
        return Check(findings, rows, {}, {})
    costs = _estimate(recordings, files, trials, images, pictures, epoching)
    return Check(findings, rows, images, folders, costs)


def _read_files(
    recordings: Recordings, settings: Own, epoching: Epoching, findings: Findings
) -> dict[RecordingFile, FileTrials]:
    """What each file holds; files that have no trials that can be used are left out."""
    files = {}
    for file in recordings.files:
        read = None
        with findings.collecting("files"):
            read = read_trials(file, recordings.kind, settings, epoching, findings)
        if read is not None and len(read.trials):
            files[file] = read
    return files


def _join(files: Mapping[RecordingFile, FileTrials]) -> pd.DataFrame:
    """The trials of all files, with `subject`, `session` (from 1) and `file`, its name."""
    by_subject: dict[str, list[RecordingFile]] = {}
    for file in files:
        by_subject.setdefault(file.subject, []).append(file)

    parts = []
    for subject, of_subject in by_subject.items():
        numbers = number_sessions(tuple(of_subject))
        for file in of_subject:
            part = files[file].trials.assign(
                subject=subject, session=numbers[file.session], file=str(file.path)
            )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _find_pictures_of(trials: pd.DataFrame, pictures: Pictures, findings: Findings) -> pd.DataFrame:
    """The trials whose picture is there, with the column `picture`, its path."""
    by_name = trials.drop_duplicates("name")
    matches = match_pictures(
        pictures, by_name["name"].tolist(), by_name["place"].tolist(), findings
    )
    trials = trials.assign(picture=trials["name"].map(matches))
    trials = trials[trials["picture"].notna()].reset_index(drop=True)
    check_links(pictures, trials["picture"].unique().tolist(), findings)

    # Machines may have the same picture in different folders, but not within one recording.
    names = trials.drop_duplicates(["file", "name", "picture"])
    for _, rows in names[names.duplicated(["file", "picture"], keep=False)].groupby(
        ["file", "picture"]
    ):
        first = rows.iloc[0]
        second = rows.iloc[1]
        findings.add_problem(
            "pictures that have two names",
            f"{second['place']}: {second['name']!r} and {first['name']!r} in {first['place']} both "
            f"mean {first['picture']}; give each picture one name",
        )
    return trials


def _choose(
    trials: pd.DataFrame,
    pictures: Pictures,
    settings: Own,
    top_k: Sequence[int],
    findings: Findings,
) -> tuple[pd.DataFrame, Images]:
    """The trials that are used, with the column `used_as` (train or test), and their images."""
    concepts = find_concepts(trials, pictures, settings, findings)
    # A problem of a concept is named already; without it no split can be found.
    trials = trials[trials["picture"].isin(concepts)]
    splits: dict[str, str] = {}
    with findings.collecting("splits"):
        splits = find_splits(trials, concepts, pictures, settings, findings)
        check_sizes(splits, top_k, findings)

    trials = trials.assign(used_as=trials["picture"].map(splits))
    is_used = trials["used_as"].notna()
    if uses_column(settings, "split"):
        is_used &= trials["split"].str.lower().map(WORDS) == trials["used_as"]
    trials = trials[is_used].reset_index(drop=True)
    tell_repetitions(trials, findings)

    images: dict[Split, pd.DataFrame] = {}
    for split in SPLITS:
        names = [name for name, value in splits.items() if value == split]
        names.sort(key=lambda name: (natural_key(concepts[name]), natural_key(name)))
        of_names = [concepts[name] for name in names]
        images[split] = pd.DataFrame(
            {
                "image_ids": list(map(image_id, names)),
                "concept": of_names,
                "things_concept": of_names,
            }
        )
    return trials, images


def _describe(
    recordings: Recordings, files: Mapping[RecordingFile, FileTrials], trials: pd.DataFrame
) -> list[dict[str, object]]:
    """A row a subject."""
    rows: list[dict[str, object]] = []
    for subject in dict.fromkeys(file.subject for file in files):
        of_subject = [read for file, read in files.items() if file.subject == subject]
        used = trials[trials["subject"] == subject]
        by_split = {split: used[used["used_as"] == split] for split in SPLITS}
        axes = of_subject[0].axes

        rows.append(
            {
                "subject": subject,
                "files": len(of_subject),
                "sessions": used["session"].nunique(),
                "epochs" if recordings.kind == "epochs" else "events": sum(
                    read.axes.n_trials for read in of_subject
                ),
                "used": len(used),
                "training pictures": by_split["train"]["picture"].nunique(),
                "repetitions": describe_repetitions(by_split["train"]),
                "test pictures": by_split["test"]["picture"].nunique(),
                "their repetitions": describe_repetitions(by_split["test"]),
                "channels": f"{len(axes.ch_names)} {axes.modality}",
                "Hz": f"{axes.sfreq:g}",
                "seconds": f"{axes.tmin:g} to {axes.tmax:g}",
            }
        )
    return rows


def _subject_folders(recordings: Recordings, trials: pd.DataFrame) -> dict[str, SubjectFolder]:
    """The folder of each subject. All files are read once for their hashes, if they are new."""
    by_path = {str(file.path): file for file in recordings.files}
    folders = {}
    for subject, rows in trials.groupby("subject", sort=False):
        paths = rows["file"].unique().tolist()
        files = tuple(
            SubjectFile(path, hash_files(companions(recordings, by_path[path]))) for path in paths
        )

        table = pd.DataFrame(
            {
                "image_ids": rows["picture"].map(image_id),
                "session": rows["session"],
                "file": rows["file"].map(paths.index),
                "position": rows["position"],
            }
        )
        folders[str(subject)] = SubjectFolder(recordings.kind, files, table)
    return folders


def _check_copies(folders: Mapping[str, SubjectFolder], findings: Findings) -> None:
    """A problem for each file that is a copy of another: its trials would count twice."""
    first_with: dict[str, str] = {}
    for folder in folders.values():
        for file in folder.files:
            first = first_with.setdefault(file.sha256, file.path)
            if first != file.path:
                findings.add_problem(
                    "files", f"{file.path}: is a copy of {first}; take one of them away"
                )


def _estimate(
    recordings: Recordings,
    files: Mapping[RecordingFile, FileTrials],
    trials: pd.DataFrame,
    images: Images,
    pictures: Pictures,
    epoching: Epoching,
) -> Costs:
    """float32, training repetitions averaged."""
    axes = next(iter(files.values())).axes
    n_chans, n_times = count_samples(axes, recordings.kind, epoching)

    is_test = trials["used_as"] == "test"
    counts = trials[~is_test].groupby("subject")["picture"].nunique()
    n_training = int(counts.sum())
    n_responses = n_training + int(is_test.sum())

    n_pictures = sum(map(len, images.values()))
    n_bytes = sum(path.stat().st_size for file in files for path in companions(recordings, file))
    return Costs(
        eeg_bytes=4.0 * n_responses * n_chans * n_times,
        picture_bytes=count_bytes(pictures, trials["picture"].unique().tolist()),
        prepare=n_bytes / BYTES_A_SECOND[recordings.kind] / 60,
        embed=n_pictures * SECONDS_A_PICTURE / 60,
        train=n_training * n_chans * n_times * TRAINING_EPOCHS / VALUES_A_SECOND / 60,
    )
