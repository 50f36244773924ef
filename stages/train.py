"""Train the EEG encoders of the protocol, one a fold and seed, against the cached embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.eeg_encoders.table import has_closed_form
from pipeline.params import Params, read_params
from pipeline.preprocess.recordings import find_recordings
from pipeline.sections import Train
from pipeline.train.card import write_card
from pipeline.train.closed_form import UNUSED
from pipeline.train.inputs import SecondRecording
from pipeline.train.made_with import describe_data, write_made_with
from pipeline.train.model import Notes, load_model
from pipeline.train.protocols import name_recordings, name_run
from pipeline.train.runs import train_all
from stages import SECOND, run, show


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    model: Path,
    second: Annotated[Path | None, typer.Option(help=SECOND)] = None,
) -> str:
    p = read_params(params)
    both = SecondRecording(second, p.across) if second else None
    runs = train_all(eeg, embeddings, model, p.train, p.seed, p.runs, both)
    others = find_recordings(second) if second else {}
    describe_models(p, find_recordings(eeg), others, embeddings, model, runs)

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


def describe_models(
    p: Params,
    first: Mapping[str, Path],
    second: Mapping[str, Path],
    embeddings: Path,
    model: Path,
    runs: Sequence[Notes],
) -> None:
    """Write what each model was made with into its folder, and a card of all for people.

    `first` and `second` are the prepared files of the two recordings, by subject.
    """
    recordings = {**first, **second}
    all_made_with = []
    for notes in runs:
        dataset = name_recordings(notes["trained_on"], p.dataset, p.across.dataset, second)
        made_with = describe_data(dataset, recordings, notes["trained_on"], embeddings)
        write_made_with(model / name_run(notes["fold"], notes["seed"]), made_with)
        all_made_with.append(made_with)

    # The models share their sizes and their recipe.
    model_of_first, _ = load_model(model / name_run(runs[0]["fold"], runs[0]["seed"]))
    write_card(
        model / "README.md",
        runs,
        model_of_first.sizes,
        model_of_first.recipe,
        all_made_with,
        # Not looked up in the table of datasets: its code would then decide a training.
        synthetic=p.dataset.startswith("sample"),
    )


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
