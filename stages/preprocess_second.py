"""Write the EEG of the second recording to one HDF5 file a subject, by the same `preprocess`.

The names of its subjects begin with that of the dataset, so that they differ from those of the
first recording: `sample-headset-sub-01`.
"""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import link_subjects, prepare_subjects
from stages import run, write_note
from stages.preprocess import show_subjects


def main(params: Path, second: Path, private_eeg: Path, eeg: Path) -> str:
    p = read_params(params)
    if p.across.dataset == "none":
        write_note(eeg, "Empty: there is no second recording (across.dataset: none).")
        return ""

    dataset = DATASETS[p.across.dataset]
    if dataset.may_push_eeg:
        files = prepare_subjects(
            dataset,
            second / "eeg",
            second / "images.csv",
            eeg,
            p.preprocess,
            prefix=f"{p.across.dataset}-",
        )
    else:
        files = link_subjects(private_eeg, eeg)

    show_subjects(files)
    return f"{len(files)} subjects to {eeg}"


if __name__ == "__main__":
    run(main)
