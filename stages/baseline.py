"""Fit and score ridge, the baseline beside every run, on the same EEG, embeddings and protocol."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from pipeline.errors import InputError
from pipeline.evaluate.baseline import (
    BASELINE,
    Baseline,
    baseline_recipe,
    fit_baseline,
    tabulate_baseline,
)
from pipeline.evaluate.similarities import Similarities, write_similarities
from pipeline.files import replacing
from pipeline.params import read_params
from pipeline.train.inputs import HashedFile, SecondRecording, find_people
from stages import SECOND, run, show, write_json


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    similarities: Path,
    metrics: Path,
    table: Path,
    second: Annotated[Path | None, typer.Option(help=SECOND)] = None,
) -> str:
    p = read_params(params)
    recipe = baseline_recipe(
        protocol=p.train.protocol,
        block=p.train.block,
        views=p.train.views,
        views_in_gallery=p.train.views_in_gallery,
        standardise_eeg=p.train.standardise_eeg,
        eeg_window=p.train.eeg_window,
        smoothing=p.train.smoothing,
        remove_dc=p.train.remove_dc,
        normalise_embeddings=p.train.normalise_embeddings,
        device=p.train.device,
    )

    both = SecondRecording(second, p.across) if second else None
    people = find_people(eeg, p.train.protocol, both)
    why = ""
    try:
        baseline = fit_baseline(people, HashedFile.of(embeddings), recipe, p.seed)
        summary, rows = tabulate_baseline(
            baseline, p.train.protocol, p.evaluate.top_k, p.evaluate.resamples, p.seed
        )
    except InputError as error:
        # Whoever trains another encoder need not do without it
        why = str(error)
        print(f"without the baseline: {why} (`dvc repro -f baseline` tries it again)")
        baseline, summary, rows = NOTHING, {}, pd.DataFrame(columns=["fold", "subject"])

    about: dict[str, Any] = {"protocol": p.train.protocol, "left_out": why, "settings": {}}
    write_similarities(
        similarities,
        Similarities(
            baseline.image_ids, baseline.concept, baseline.things_concept, baseline.results, about
        ),
    )
    write_json(metrics, summary)
    with replacing(table) as temporary:
        rows.to_csv(temporary, index=False)
    if not why:
        show(f"{BASELINE}, {p.train.protocol}", [dict(row) for _, row in rows.iterrows()])
    return f"{similarities}, {metrics}, {table}"


NO_IMAGES = np.array([], dtype=object)
NOTHING = Baseline(NO_IMAGES, NO_IMAGES, NO_IMAGES, [], pd.DataFrame())

if __name__ == "__main__":
    run(main)
