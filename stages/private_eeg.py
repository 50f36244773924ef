"""Prepare the EEG that may not be pushed: one's own recordings, one HDF5 file a subject.

DVC pushes an output as a whole or not at all. So this is a stage of its own, whose output is never
pushed, and `preprocess` only leads there. For published datasets it holds a note alone.
"""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from stages import run, write_note

NOTE = "Empty: the EEG of this dataset may be passed on, and lies in data/eeg."


def main(params: Path, raw: Path, image_table: Path, private_eeg: Path) -> str:
    p = read_params(params)
    dataset = DATASETS[p.dataset]
    if dataset.may_push_eeg:
        write_note(private_eeg, NOTE)
        return ""

    prepare_subjects(dataset, raw, image_table, private_eeg, p.preprocess)
    return str(private_eeg)


if __name__ == "__main__":
    run(main)
