"""Decode an EEG recording with trained models: for each response the nearest pictures of a gallery.

This is no stage of the pipeline, but a command for what it has made: any model, any recording that
has its channels, and any pictures.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image

from pipeline.datasets.table import DATASETS
from pipeline.decode.decoding import decode
from pipeline.decode.gallery import embed_pictures, read_gallery
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
from pipeline.files import replacing, sha256
from pipeline.images.embeddings import Embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import Split
from pipeline.report.decoded_page import pictures_to_show, write_decoded_page
from pipeline.report.template import records
from pipeline.train.made_with import MadeWith
from pipeline.untrusted.pictures import decode_image, open_images
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
    page: Annotated[
        Path | None, typer.Option(help="an HTML page to write, with the pictures")
    ] = None,
    archives: Annotated[
        Path, typer.Option(help="for --page: the zips with the images of the cache")
    ] = Path("data/fetched/images"),
    params: Path = Path("params.yaml"),
) -> str:
    p = read_params(params)
    require_inputs(eeg, embeddings, images)

    subject = eeg.stem if eeg.suffix == PREPARED else None
    models, made_with = find_models(model, subject, fold)
    first, _ = models[0]
    if subject is not None:
        responses = read_prepared(eeg, split, first, made_with, single_trials)
    else:
        responses = read_epochs(eeg, first, made_with, image_column, single_trials)
    gallery, notes = open_gallery(embeddings, images, models, made_with, weights)

    decoded = decode(
        models,
        responses,
        gallery,
        only_seen=images is None and not all_images,
        n_nearest=nearest,
        n_resamples=p.evaluate.resamples,
        seed=p.seed,
    )
    with replacing(out) as temporary:
        decoded.table.to_csv(temporary, index=False)
    print_nearest(decoded.table)

    warnings = restrictions(models, made_with, subject, split)
    saw_test = saw_the_test(models, subject, split)
    sentences = [
        *responses.notes,
        *notes,
        *describe_unscored(responses, decoded),
        describe_models(models),
        describe_score(decoded.score, p.evaluate.resamples, saw_test),
    ]
    print("\n".join([*warnings, *sentences]))

    scores = score_rows(decoded.score)
    if scores:
        show("Is the picture that was seen among the nearest?", scores)
    if page is None:
        return str(out)

    pictures = None
    if images is not None or p.evaluate.embed_images or may_be_shared(made_with):
        pictures = read_pictures(pictures_to_show(decoded), images, archives)
    write_decoded_page(
        page,
        decoded=decoded,
        pictures=pictures,
        title=f"{eeg.name} · {model}",
        warnings=warnings,
        sentences=sentences,
        scores=scores,
        settings={"model": str(model), "EEG": str(eeg), "gallery": str(embeddings or images)},
        hashes={str(path): sha256(path) for path in (eeg, embeddings, out) if path is not None},
    )
    return f"{out} and {page}"


def require_inputs(eeg: Path, embeddings: Path | None, images: Path | None) -> None:
    """InputError unless the EEG and one gallery are named, and are there."""
    if (embeddings is None) == (images is None):
        raise InputError(
            "name the pictures to compare the EEG with: --embeddings CACHE (an embedding cache) or "
            "--images FOLDER (pictures, which are embedded), one of the two"
        )
    for path in (eeg, embeddings):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: there is no such file; name one that is there")


def may_be_shared(made_with: MadeWith | None) -> bool:
    """Whether the images that the model was trained with may be passed on."""
    dataset = None if made_with is None else DATASETS.get(made_with["dataset"])
    return dataset is not None and dataset.may_share_images


def read_pictures(
    image_ids: Sequence[str], folder: Path | None, archives: Path
) -> dict[str, Image.Image]:
    """The pictures by image id: files below the user's own folder, else images in zips."""
    if folder is not None:
        # An id is the name of the gallery and the path below the folder.
        files = {image_id: folder / image_id.partition("/")[2] for image_id in image_ids}
        return {name: decode_image(file.read_bytes(), name) for name, file in files.items()}
    if not archives.is_dir():
        raise InputError(
            f"{archives}: there is no such folder of zips, whose images the page shows; fetch them "
            "with `dvc repro download`, or name the folder with --archives"
        )
    with open_images(archives, image_ids) as images:
        return {image_id: images.read(image_id) for image_id in image_ids}


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


def name_of(picture: str) -> str:
    """The file of a picture without its folders; the table that is written has the whole path."""
    return picture.rpartition("/")[2]


def print_nearest(table: pd.DataFrame) -> None:
    """Print the nearest pictures of the first responses, a row each."""
    rows = []
    for _, places in table[table["response"] < SHOWN].groupby("response"):
        [first, *_] = nearest = records(places.head(SHOWN_NEAREST))
        line = {"response": first["response"], "seen": name_of(first["seen"]) or "not known"}
        for place in nearest:
            mark = " *" if place["is_seen"] else ""
            line[f"{place['place']}."] = f"{name_of(place['picture'])} {place['cosine']:.3f}{mark}"
        rows.append(line)

    n = table["response"].nunique()
    which = f"the first {SHOWN} of {n}" if n > SHOWN else f"all {n}"
    show(f"Nearest pictures and their cosine, {which} responses; * was seen", rows)


if __name__ == "__main__":
    run(main)
