"""Bring each subject's EEG into one HDF5 file: training images averaged over repetitions, test repetitions kept."""

from pathlib import Path

from pipeline.eeg import preprocess
from pipeline.params import read_params
from stages import run


def main(params: Path, raw: Path, metadata: Path, eeg: Path) -> str:
    preprocess(raw, metadata, eeg, **read_params(params).preprocess.model_dump())
    return f"{len(list(eeg.iterdir()))} subjects to {eeg}"


if __name__ == "__main__":
    run(main)
