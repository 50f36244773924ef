"""Somebody's own EEG or MEG, made into the same chunks as that of the published datasets.

The folder of a subject (see `subject_folder`) names its files and trials:
1. `used_trials`: which of the trials are used.
2. `subject_epochs`: all files are read by MNE, one after the other (`opened`, `recordings`).
3. `session_steps`: each session is whitened or z-scored by its training trials (`preprocess.mvnn`,
   `.normalise`).

Axes: N conditions (images), R repetitions, C channels, T samples.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from pipeline.datasets.entry import Modality, RawEeg
from pipeline.datasets.image_table import SPLITS, Split
from pipeline.datasets.own.opened import LOOK_AGAIN, require_rate_and_window
from pipeline.datasets.own.subject_epochs import read_files
from pipeline.datasets.own.subject_folder import RECORDINGS, read_subject_folder
from pipeline.datasets.own.used_trials import count_repetitions, find_used_trials
from pipeline.datasets.session_steps import UNITS_OF_WHITENED, split_by_session
from pipeline.datasets.sessions import (
    StoredEpochs,
    gather,
    require_one_normalisation,
    whitening_caveats,
)
from pipeline.errors import InputError
from pipeline.sections import Preprocess

UNITS = "V (EEG); T (magnetometers) and T/m (gradiometers) of MEG"
UNITS_OF: dict[Modality, str] = {"EEG": "V", "MEG": "T (magnetometers) and T/m (gradiometers)"}

READING_BYTES = 300 << 20  # memory for the epochs that are read at once, and for chunks
SET_BYTES = 5  # memory for each byte of an EEGLAB file, whose float32 values become float64


def find_subjects(folder: Path) -> dict[str, Path]:
    """The folders that the download wrote, by subject."""
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RECORDINGS}"))}


def memory_needed(path: Path, preprocess: Preprocess) -> int:
    """The bytes of memory that `open_eeg` takes.

    Raises InputError where a file is missing, or where `preprocess` asks for what these files do
    not allow.
    """
    require_one_normalisation(preprocess)
    subject = read_subject_folder(path)
    if subject.kind == "raw":
        require_rate_and_window(preprocess, path)

    files = [Path(file.path) for file in subject.files]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: is missing; put it back, or {LOOK_AGAIN}")

    # MNE reads all of an EEGLAB file of epochs.
    sets = [file for file in files if file.suffix == ".set" and subject.kind == "epochs"]
    return READING_BYTES + round(SET_BYTES * max(map(_bytes_of_set, sets), default=0))


def _bytes_of_set(file: Path) -> int:
    values = file.with_suffix(".fdt")
    return file.stat().st_size + (values.stat().st_size if values.is_file() else 0)


@contextmanager
def open_eeg(
    path: Path, images: Mapping[Split, pd.DataFrame], preprocess: Preprocess
) -> Iterator[RawEeg]:
    """The EEG or MEG of one subject, whose folder is `path`, see `RawEeg`.

    When the context is entered, all trials are read. They wait in the folder for temporary files
    (see `Scratch`), float64; nothing stays there. In memory are some hundred epochs, or one EEGLAB
    file of epochs.

    Raises InputError for a file that is missing, damaged or unlike the subject's first one, a
    channel, session, interval or rate that the recordings do not have, and values that are not
    finite.
    """
    require_one_normalisation(preprocess)
    subjects = find_subjects(path.parent).values()
    trials, caveats_of_trials = find_used_trials(path, subjects, images, preprocess)

    with ExitStack() as stack:
        subject = read_subject_folder(path)
        layout, scratch, caveats_of_files = read_files(subject, trials, preprocess, path, stack)
        stored = StoredEpochs(scratch, (len(layout.ch_names), len(layout.times)))
        sessions = split_by_session(trials, stored, preprocess, path)

        counts = {split: count_repetitions(trials, split, len(images[split])) for split in SPLITS}
        chunks = {
            split: gather([session[split] for session in sessions], counts[split])
            for split in SPLITS
        }
        caveats = [*whitening_caveats(preprocess), *caveats_of_trials, *caveats_of_files]
        yield RawEeg(
            layout,
            chunks,
            tuple(dict.fromkeys(caveats)),  # each once
            None if all(len(set(counts[split])) == 1 for split in SPLITS) else counts,
            is_z_scored=preprocess.normalise == "session",
            units=UNITS_OF[layout.modality] if preprocess.mvnn == "none" else UNITS_OF_WHITENED,
        )
