"""Write each subject's EEG to one HDF5 file.

Training repetitions are averaged unless `preprocess.average_repetitions` is false. Test repetitions
stay apart. EEG that may not be pushed is prepared already (see `private_eeg`), and the files lead
there.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import link_subjects, prepare_subjects
from stages import run, show


def main(params: Path, raw: Path, image_table: Path, private_eeg: Path, eeg: Path) -> str:
    p = read_params(params)
    dataset = DATASETS[p.dataset]
    if dataset.may_push_eeg:
        files = prepare_subjects(dataset, raw, image_table, eeg, p.preprocess)
    else:
        files = link_subjects(private_eeg, eeg)

    show_subjects(files)
    return f"{len(files)} subjects to {eeg}"


def show_subjects(files: Sequence[Path]) -> None:
    """Print the shape of each subject's EEG."""
    rows = []
    for path in files:
        with h5py.File(path, "r") as file:
            shapes = {
                split: " x ".join(map(str, file[split]["eeg"].shape)) for split in ("train", "test")
            }
        rows.append({"subject": path.stem} | shapes)
    show("EEG: conditions x (repetitions) x channels x samples", rows)


if __name__ == "__main__":
    run(main)
