"""Prepare the EEG that may not be pushed: one's own recordings, one HDF5 file a subject.

DVC pushes an output as a whole or not at all. So this is a stage of its own, whose output is never
pushed, and `preprocess` only leads there. For published datasets the folder stays empty.
"""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from stages import run


def main(params: Path, raw: Path, image_table: Path, private_eeg: Path) -> str:
    p = read_params(params)
    private_eeg.mkdir(parents=True, exist_ok=True)  # DVC wants each output to be there
    dataset = DATASETS[p.dataset]
    if dataset.may_push_eeg:
        return ""
    prepare_subjects(dataset, raw, image_table, private_eeg, p.preprocess)
    return str(private_eeg)


if __name__ == "__main__":
    run(main)
