"""Train the EEG encoders of the protocol, one a fold and seed, against the cached embeddings."""

from pathlib import Path

from pipeline.params import read_params
from pipeline.runs import train_all
from stages import run


def main(params: Path, eeg: Path, embeddings: Path, model: Path) -> str:
    p = read_params(params)
    runs = train_all(eeg, embeddings, model, p.train, p.seed)
    for notes in runs:
        if notes["collapsed"]:
            print(f"{notes['fold']}, seed {notes['seed']}: collapsed to nearly one embedding; this is no result")
    epochs = ", ".join(str(notes["selected_epoch"]) for notes in runs)
    return f"{len(runs)} models (epoch {epochs} of {p.train.epochs}) to {model}"


if __name__ == "__main__":
    run(main)
