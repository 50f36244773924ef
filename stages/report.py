"""Draw the pictures of an evaluation and put all about it into one HTML page."""

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from pipeline.compare.baseline import set_beside_baseline
from pipeline.datasets.table import DATASETS
from pipeline.errors import InputError
from pipeline.evaluate.similarities import read_similarities
from pipeline.files import replacing, sha256
from pipeline.params import read_params
from pipeline.report.page import cosines, learning_curves, write_report
from pipeline.report.pictures import draw_pictures, read_thumbnails
from stages import run, show


def main(
    params: Path,
    images: Path,
    similarities: Path,
    history: Path,
    evaluation: Path,
    explanation: Path,
    comparison: Path,
    published_curve: Path,
    curves: Path,
    pictures: Path,
    page: Path,
    tables: list[Path],
    baseline: Annotated[Path | None, typer.Option(help="that of the baseline stage")] = None,
) -> str:
    """`tables` are CSV files of the stages evaluate and explain, named after what is in them."""
    p = read_params(params)

    # What the other stages have found
    summary = json.loads(evaluation.read_text())
    scored = read_similarities(similarities)
    frames = {path.stem: pd.read_csv(path) for path in tables}
    compared = _comparison_of(similarities, comparison)

    beside = None
    if baseline is not None:
        beside = set_beside_baseline(
            scored, read_similarities(baseline), p.evaluate, summary["seed"]
        )

    # Some datasets do not allow that their images are passed on.
    dataset = DATASETS[summary["dataset"]]
    shows_images = dataset.may_share_images or p.evaluate.embed_images
    thumbnails = read_thumbnails(images, scored.image_ids.tolist()) if shows_images else None

    learning = learning_curves(pd.read_csv(history), pd.read_csv(published_curve), summary)
    with replacing(curves) as temporary:
        learning.to_csv(temporary, index=False)

    pictures.mkdir(parents=True, exist_ok=True)
    drawn = draw_pictures(
        pictures, scored, frames["channels"], cosines(scored, summary, compared), thumbnails
    )

    write_report(
        page,
        evaluation=summary,
        explanation=json.loads(explanation.read_text()),
        tables=frames,
        curves=learning,
        comparison=compared,
        beside=beside,
        settings=scored.made_with["settings"] | {"evaluate": p.evaluate.model_dump()},
        pictures=drawn,
        published=dataset.published,
        may_share_images=dataset.may_share_images,
        shows_images=shows_images,
        hashes={
            str(path): sha256(path)
            for path in (evaluation, explanation, similarities, history, *tables)
        },
    )

    files = [*(picture.path for picture in drawn), page]
    show("report", [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in files])
    return str(page)


def _comparison_of(similarities: Path, comparison: Path) -> dict[str, Any] | None:
    """The last comparison, or None if it is not of these similarities."""
    if not comparison.exists():
        return None
    try:
        compared = json.loads(comparison.read_text())
        is_of_these = sha256(similarities) in compared["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{comparison}: holds no comparison ({error!r}); run `make compare`"
        ) from error
    return compared if is_of_these else None


if __name__ == "__main__":
    run(main)
