"""Prepare the EEG of the second recording, if it may not be pushed (see `private_eeg`)."""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from stages import run, write_note


def main(params: Path, second: Path, private_eeg: Path) -> str:
    p = read_params(params)
    if p.across.dataset == "none" or DATASETS[p.across.dataset].may_push_eeg:
        write_note(private_eeg, "Empty: no second recording is there that may not be passed on.")
        return ""

    prepare_subjects(
        DATASETS[p.across.dataset],
        second / "eeg",
        second / "images.csv",
        private_eeg,
        p.preprocess,
        prefix=f"{p.across.dataset}-",
    )
    return str(private_eeg)


if __name__ == "__main__":
    run(main)
