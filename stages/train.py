"""Train the EEG encoders of the protocol, one a fold and seed, against the cached embeddings."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.eeg_encoders.table import has_closed_form
from pipeline.params import read_params
from pipeline.sections import Train
from pipeline.train.closed_form import UNUSED
from pipeline.train.model import Notes
from pipeline.train.runs import train_all
from stages import run, show


def main(params: Path, eeg: Path, embeddings: Path, model: Path) -> str:
    p = read_params(params)
    runs = train_all(eeg, embeddings, model, p.train, p.seed, p.runs)

    if has_closed_form(p.train.eeg_encoder):
        _show_fits(p.train.eeg_encoder, runs, p.train.protocol)
        return f"{len(runs)} models to {model}"

    rows = [
        {key: notes[key] for key in ("fold", "seed", "selected_epoch", "collapsed")}
        for notes in runs
    ]
    show(f"{p.train.protocol}, {p.train.epochs} epochs, selected on {p.train.select_on}", rows)
    if any(notes["collapsed"] for notes in runs):
        print("collapsed to nearly one embedding: such a run is no result")
    return f"{len(runs)} models to {model}"


def _show_fits(eeg_encoder: str, runs: Sequence[Notes], protocol: str) -> None:
    """What was found in closed form, and which keys have no say in it."""
    rows = [
        {
            "fold": notes["fold"],
            "penalty": f"{notes['penalty']:.3g}",
            "R2 on held-out concepts": notes["held_out_r2"],
        }
        for notes in runs
    ]
    show(f"{protocol}, {eeg_encoder}, in closed form", rows)
    used = ", ".join(name for name in Train.model_fields if name not in UNUSED)
    print(
        f"{eeg_encoder} has no use for seeds (several count once), epochs, batches, rates, dropout "
        f"and projectors: of the section train it reads {used}"
    )


if __name__ == "__main__":
    run(main)
