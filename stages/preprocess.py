"""Write each subject's EEG to one HDF5 file.

What may not be pushed goes to a folder of its own, which stays empty for published datasets.
Training repetitions are averaged unless `preprocess.average_repetitions` is false. Test repetitions
stay apart.
"""

from pathlib import Path

import h5py

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from stages import run, show


def main(params: Path, raw: Path, image_table: Path, eeg: Path, private_eeg: Path) -> str:
    p = read_params(params)
    private_eeg.mkdir(parents=True, exist_ok=True)  # DVC wants each output to be there
    files = prepare_subjects(DATASETS[p.dataset], raw, image_table, eeg, p.preprocess, private_eeg)
    rows = []
    for path in files:
        with h5py.File(path, "r") as file:
            shapes = {
                split: " x ".join(map(str, file[split]["eeg"].shape)) for split in ("train", "test")
            }
        rows.append({"subject": path.stem} | shapes)
    show("EEG: conditions x (repetitions) x channels x samples", rows)
    return f"{len(rows)} subjects to {eeg}"


if __name__ == "__main__":
    run(main)
