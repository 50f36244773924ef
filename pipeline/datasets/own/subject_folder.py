"""What is known of one subject of `dataset: own` before any EEG is read: a folder of two files.

    recordings.json    the subject's own files, which stay where they are: full path and sha256 each
    trials.csv         one row a trial that is used, in the order of sessions, files and time

The download writes these folders, `data/fetched/eeg/<subject>`, in the place of archives. So the
recordings are never copied, and a file or a column that was corrected changes the folder.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.files import replacing, unreadable

RECORDINGS = "recordings.json"
TRIALS = "trials.csv"

# * image_ids: the picture that was shown, as in the table of images.
# * session: counted from 1.
# * file: the position of its file in `recordings.json`, from 0.
# * position: of epochs, the row in the file from 0; of a raw recording, the sample at which the
#   picture appeared, counted from the first sample of the file.
COLUMNS = ["image_ids", "session", "file", "position"]

Kind = Literal["epochs", "raw"]


@dataclass(frozen=True)
class SubjectFile:
    """One file of a subject: its full path, and the sha256 that it had when it was looked at."""

    path: str
    sha256: str


@dataclass(frozen=True)
class SubjectFolder:
    """What the folder of a subject holds.

    * `kind`: whether its files are epochs or continuous (raw) recordings.
    * `files`: they are read in this order.
    * `trials`: the table with `COLUMNS`.
    """

    kind: Kind
    files: tuple[SubjectFile, ...]
    trials: pd.DataFrame


def write_subject_folder(folder: Path, subject: SubjectFolder) -> None:
    """Write both files; the same content gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"kind": subject.kind, "files": [asdict(file) for file in subject.files]}
    with replacing(folder / RECORDINGS) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    with replacing(folder / TRIALS) as temporary:
        subject.trials[COLUMNS].to_csv(temporary, index=False)


def read_subject_folder(folder: Path) -> SubjectFolder:
    """Read both files. Raises InputError where they are not as they were written."""
    try:
        about = json.loads((folder / RECORDINGS).read_text(encoding="utf-8"))
        files = tuple(SubjectFile(**file) for file in about["files"])
        # Text stays text: pandas would read a picture called "null" as missing.
        types = {"image_ids": str, "session": int, "file": int, "position": int}
        trials = pd.read_csv(folder / TRIALS, dtype=types, keep_default_na=False)
        return SubjectFolder(about["kind"], files, trials[COLUMNS])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(error, folder) or InputError(
            f"{folder}: is not the folder of a subject as it was written ({error}); {FETCH_AGAIN}"
        ) from error
