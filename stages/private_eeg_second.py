"""Prepare the EEG of the second recording, if it may not be pushed (see `private_eeg`)."""

from pathlib import Path

from pipeline.datasets.table import DATASETS
from pipeline.params import read_params
from pipeline.preprocess.preparation import prepare_subjects
from pipeline.sections import Preprocess
from stages import run, write_note


def main(params: Path, second: Path, private_eeg: Path) -> str:
    p = read_params(params)
    if p.across.dataset == "none" or DATASETS[p.across.dataset].may_push_eeg:
        write_note(private_eeg, "Empty: no second recording is there that may not be passed on.")
        return ""

    prepare_second(p.across.dataset, second, private_eeg, p.preprocess)
    return str(private_eeg)


def prepare_second(dataset: str, second: Path, out: Path, parameters: Preprocess) -> list[Path]:
    """Prepare what `download_second` has put into `second`.

    The names of the subjects begin with that of the dataset, so that they differ from those of the
    first recording: `sample-headset-sub-01`.
    """
    return prepare_subjects(
        DATASETS[dataset],
        second / "eeg",
        second / "images.csv",
        out,
        parameters,
        prefix=f"{dataset}-",
    )


if __name__ == "__main__":
    run(main)
