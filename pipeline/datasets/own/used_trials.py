"""Which trials of one's own recordings are used.

All subjects must have the same test images, and as many repetitions of each. So of the test images
only those stay that every subject has seen in the chosen sessions, and of each the first R trials,
where R is the smallest number of trials that one of them has in one subject.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.own.subject_folder import read_subject_folder
from pipeline.datasets.session_steps import CHOOSE_SESSIONS
from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.sections import Preprocess


def find_used_trials(
    path: Path,
    subjects: Collection[Path],
    images: Mapping[Split, pd.DataFrame],
    preprocess: Preprocess,
) -> tuple[pd.DataFrame, list[str]]:
    """The trials of the subject in the folder `path` that are used, and sentences on the others.

    In the order of files, then of time. Columns beside those of the table (`COLUMNS` in
    `subject_folder`): `split`, and `image_row`, the row of the image in its split. `subjects` are
    the folders of all subjects.

    Raises InputError for a session or an image that does not exist, and where nothing of a split
    is left.
    """
    trials = read_subject_folder(path).trials
    trials = _with_images(_of_sessions(trials, preprocess, path), images, path)
    by_subject = np.array(
        [_test_repetitions(folder, images["test"], preprocess) for folder in subjects]
    )
    trials, caveats = _cut_test_trials(trials, by_subject, path)
    return trials, [*_caveats_of_sessions(preprocess), *caveats]


def _with_images(
    trials: pd.DataFrame, images: Mapping[Split, pd.DataFrame], path: Path
) -> pd.DataFrame:
    """The trials in the order of files, then of time, each with its split and image."""
    trials = trials.sort_values(["file", "position"], ignore_index=True)
    trials = trials.assign(split="", image_row=-1)
    for split in SPLITS:
        rows = pd.Index(images[split]["image_ids"]).get_indexer(pd.Index(trials["image_ids"]))
        trials.loc[rows >= 0, "split"] = split
        trials.loc[rows >= 0, "image_row"] = rows[rows >= 0]

    unknown = trials.loc[trials["split"] == "", "image_ids"]
    if len(unknown):
        raise InputError(
            f"{path}: shows the image {unknown.iloc[0]!a:.100}, which is not in the table of "
            f"images; {FETCH_AGAIN}"
        )
    for split in SPLITS:
        if not (trials["split"] == split).any():
            raise InputError(
                f"{path}: has no {split} trial in the sessions that are used, expected trials of "
                f"both splits; leave this subject out of `subjects`, or {CHOOSE_SESSIONS}"
            )
    return trials


def _of_sessions(trials: pd.DataFrame, preprocess: Preprocess, path: Path) -> pd.DataFrame:
    """The trials of the sessions that `preprocess.sessions` asks for."""
    if preprocess.sessions == "all":
        return trials

    existing = sorted(set(trials["session"]))
    absent = sorted(set(preprocess.sessions) - set(existing))
    if absent:
        raise InputError(
            f"{path}: has no session {absent[0]} (preprocess.sessions), it has "
            f"{', '.join(map(str, existing))}; {CHOOSE_SESSIONS}"
        )
    return trials[trials["session"].isin(preprocess.sessions)]


def _test_repetitions(
    folder: Path, test_images: pd.DataFrame, preprocess: Preprocess
) -> np.ndarray:
    """How often a subject saw each test image in the sessions that are used, (n_images,)."""
    trials = _of_sessions(read_subject_folder(folder).trials, preprocess, folder)
    rows = pd.Index(test_images["image_ids"]).get_indexer(pd.Index(trials["image_ids"]))
    return np.bincount(rows[rows >= 0], minlength=len(test_images))


def _cut_test_trials(
    trials: pd.DataFrame, by_subject: np.ndarray, path: Path
) -> tuple[pd.DataFrame, list[str]]:
    """The trials without the test trials that not all subjects have, and a sentence on these.

    `by_subject` (subjects, test images): how often each subject saw each image.
    """
    is_used = by_subject.min(axis=0) > 0
    if not is_used.any():
        raise InputError(
            f"{path.parent}: no test image was shown to all {len(by_subject)} subjects in the "
            "sessions that are used, expected the same test images for all; choose other test "
            f"images, or leave subjects out (`subjects`), or {CHOOSE_SESSIONS}"
        )

    fewest = by_subject[:, is_used].min()
    most = by_subject[:, is_used].max()
    is_test = trials["split"] == "test"
    by_session = trials.sort_values("session", kind="stable")  # and in it by file, then time
    number = by_session.groupby(["split", "image_row"]).cumcount()
    shown_to_all = is_used[trials["image_row"].where(is_test, 0)]
    trials = trials[~is_test | (shown_to_all & (number < fewest))].reset_index(drop=True)

    caveats = []
    if not is_used.all():
        caveats.append(
            f"{(~is_used).sum()} of {len(is_used)} test images were left out: not all subjects saw "
            "them."
        )
    if most > fewest:
        caveats.append(
            f"The subjects saw each test image {fewest} to {most} times. The first {fewest} trials "
            "were used, so that all images and subjects have as many."
        )
    return trials, caveats


def _caveats_of_sessions(preprocess: Preprocess) -> list[str]:
    if preprocess.sessions == "all":
        return []

    sessions = ", ".join(map(str, sorted(preprocess.sessions)))
    return [f"Of the sessions of each subject only {sessions} were used (preprocess.sessions)."]


def count_repetitions(trials: pd.DataFrame, split: Split, n_images: int) -> np.ndarray:
    """The repetitions of each image, (n_images,)."""
    return np.bincount(trials.loc[trials["split"] == split, "image_row"], minlength=n_images)
