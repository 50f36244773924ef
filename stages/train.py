"""Train the EEG encoders of the protocol, one a fold and seed, against the cached embeddings."""

from pathlib import Path

from pipeline.params import read_params
from pipeline.train.runs import train_all
from stages import run, show


def main(params: Path, eeg: Path, embeddings: Path, model: Path) -> str:
    p = read_params(params)
    runs = train_all(eeg, embeddings, model, p.train, p.seed, p.runs)

    rows = [
        {key: notes[key] for key in ("fold", "seed", "selected_epoch", "collapsed")}
        for notes in runs
    ]
    show(f"{p.train.protocol}, {p.train.epochs} epochs, selected on {p.train.select_on}", rows)
    if any(notes["collapsed"] for notes in runs):
        print("collapsed to nearly one embedding: such a run is no result")
    return f"{len(runs)} models to {model}"


if __name__ == "__main__":
    run(main)
