"""Write the EEG of the second recording to one HDF5 file a subject, by the same `preprocess`."""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import link_subjects
from stages import run, write_note
from stages.preprocess import show_subjects
from stages.private_eeg_second import prepare_second


def main(params: Path, second: Path, private_eeg: Path, eeg: Path) -> str:
    p = read_params(params)
    if p.across.dataset == "none":
        write_note(eeg, "Empty: there is no second recording (across.dataset: none).")
        return ""

    if DATASETS[p.across.dataset].may_push_eeg:
        files = prepare_second(p.across.dataset, second, eeg, p.preprocess)
    else:
        files = link_subjects(private_eeg, eeg)

    show_subjects(files)
    return f"{len(files)} subjects to {eeg}"


if __name__ == "__main__":
    run(main)
