"""Decode an EEG recording with trained models: for each response the nearest pictures of a gallery.

This is no stage of the pipeline, but a command for what it has made: any model, any recording that
has its channels, and any pictures.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from pipeline.decode.decoding import compare, score, tabulate
from pipeline.decode.gallery import embed_pictures, find_rows, read_gallery
from pipeline.decode.models import find_models
from pipeline.decode.responses import read_epochs, read_prepared
from pipeline.decode.sentences import (
    describe_models,
    describe_score,
    describe_unscored,
    restrictions,
    saw_the_test,
    score_rows,
)
from pipeline.errors import InputError
from pipeline.evaluate.scoring import Models
from pipeline.files import replacing
from pipeline.images.embeddings import Embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import Split
from pipeline.train.made_with import MadeWith
from stages import run, show

SHOWN = 10  # responses in the table on the terminal
SHOWN_NEAREST = 3  # pictures of each
PREPARED = ".h5"  # the files of the preprocess stage end so


def main(
    model: Annotated[Path, typer.Argument(help="folder of a model, or data/model for its seeds")],
    eeg: Annotated[Path, typer.Argument(help="a prepared subject (.h5), or epochs (.fif, .set)")],
    embeddings: Annotated[
        Path | None, typer.Option(help="the gallery: an embedding cache of the same image model")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="the gallery: a folder of pictures, which are embedded")
    ] = None,
    all_images: Annotated[
        bool, typer.Option(help="of a cache all images, not only those that this EEG saw")
    ] = False,
    split: Annotated[Split, typer.Option(help="of a prepared subject: test or train")] = "test",
    single_trials: Annotated[
        bool, typer.Option(help="each trial alone; otherwise those of a picture are averaged")
    ] = False,
    image_column: Annotated[
        str | None, typer.Option(help="of epochs: the column of the picture shown [stim_file]")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="of data/model: which fold, where nothing tells it")
    ] = None,
    nearest: Annotated[int, typer.Option(min=1, help="how many pictures of each response")] = 5,
    weights: Annotated[Path, typer.Option(help="the image model's files, for --images")] = Path(
        "data/fetched/weights"
    ),
    out: Annotated[Path, typer.Option(help="the table to write")] = Path("decoded.csv"),
    params: Path = Path("params.yaml"),
) -> str:
    p = read_params(params)
    if (embeddings is None) == (images is None):
        raise InputError(
            "name the pictures to compare the EEG with: --embeddings CACHE (an embedding cache) or "
            "--images FOLDER (pictures, which are embedded), one of the two"
        )
    subject = eeg.stem if eeg.suffix == PREPARED else None
    models, made_with = find_models(model, subject, fold)
    first, _ = models[0]

    if subject is not None:
        responses = read_prepared(eeg, split, first, made_with, single_trials)
    else:
        responses = read_epochs(eeg, first, made_with, image_column, single_trials)
    gallery, notes = open_gallery(embeddings, images, models, made_with, weights)

    # Which picture was seen, and which pictures it is looked for among
    seen_rows = find_rows(responses.seen.tolist(), gallery.image_ids.tolist())
    notes += describe_unscored(responses, seen_rows)
    rows = np.arange(len(gallery.image_ids))
    if images is None and not all_images and (seen_rows >= 0).any():
        rows, seen_rows = only_seen(seen_rows)

    similarity = compare(models, responses.eeg, gallery.values[rows])
    image_ids = gallery.image_ids[rows].tolist()
    table = tabulate(similarity, image_ids, responses, seen_rows, nearest)
    with replacing(out) as temporary:
        table.to_csv(temporary, index=False)

    result = score(similarity, seen_rows, p.evaluate.resamples, p.seed)
    told = [
        *restrictions(models, made_with, subject, split),
        *responses.notes,
        *notes,
        describe_models(models),
        describe_score(result, p.evaluate.resamples, saw_the_test(models, subject, split)),
    ]

    print_nearest(table)
    print("\n".join(told))
    if result is not None:
        show("Is the picture that was seen among the nearest?", score_rows(result))
    return str(out)


def open_gallery(
    embeddings: Path | None,
    images: Path | None,
    models: Models,
    made_with: MadeWith | None,
    weights: Path,
) -> tuple[Embeddings, list[str]]:
    """The pictures of a cache or a folder, and notes on them."""
    model, _ = models[0]
    if embeddings is not None:
        return read_gallery(embeddings, model, made_with)

    assert images is not None
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "gallery.h5"
        embed_pictures(images, cache, model, made_with, weights)
        return read_gallery(cache, model, made_with)


def only_seen(seen_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the pictures that were seen, in the order in which they were, and theirs anew.

    -1 stays -1.
    """
    rows = pd.unique(seen_rows[seen_rows >= 0])
    place = pd.Series(np.arange(len(rows)), index=rows)
    return rows, place.reindex(seen_rows, fill_value=-1).to_numpy()


def name_of(picture: str) -> str:
    """The file of a picture without its folders; the table that is written has the whole path."""
    return picture.rpartition("/")[2]


def print_nearest(table: pd.DataFrame) -> None:
    """Print the nearest pictures of the first responses, a row each."""
    rows = []
    for response, of_response in table[table["response"] < SHOWN].groupby("response"):
        row = {"response": response, "seen": name_of(of_response["seen"].iloc[0]) or "not known"}
        for nearest in of_response.head(SHOWN_NEAREST).itertuples():
            mark = " *" if nearest.is_seen else ""
            row[f"{nearest.place}."] = f"{name_of(nearest.picture)} {nearest.cosine:.3f}{mark}"
        rows.append(row)

    n = table["response"].nunique()
    first = f"the first {SHOWN} of {n}" if n > SHOWN else f"all {n}"
    show(f"Nearest pictures and their cosine, {first} responses; * was seen", rows)


if __name__ == "__main__":
    run(main)
