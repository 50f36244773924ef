"""What lies behind the score: figures of the evaluation, its models and its EEG; none is trained.

They stand beside the numbers that people compare, never among them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from pipeline.datasets.human import HumanSimilarity, read_human
from pipeline.datasets.image_table import read_image_table
from pipeline.evaluate.scoring import Models
from pipeline.evaluate.similarities import Similarities, read_similarities
from pipeline.evaluate.statistics import Resamples, draw_resamples
from pipeline.explain.calibration import ranks, tabulate_calibration
from pipeline.explain.concepts import tabulate_concepts
from pipeline.explain.galleries import count_ahead, tabulate_galleries
from pipeline.explain.near_misses import PEOPLE, tabulate_near_misses
from pipeline.explain.responses import explain_responses
from pipeline.explain.rsa import cosine_similarity
from pipeline.files import replacing
from pipeline.images.embeddings import Embeddings, read_about, read_embeddings
from pipeline.params import Params, read_params
from pipeline.preprocess.recordings import find_recordings, read_split
from pipeline.sections import Evaluate
from pipeline.train.model import load_models
from pipeline.train.projection import project_images
from pipeline.train.protocols import name_run
from stages import SECOND, run, show, write_json

# What a result says of itself, copied into the file of figures
FACTS = ("dataset", "synthetic", "backbone", "encoder", "alignment", "block", "protocol")


def main(
    params: Path,
    image_table: Path,
    eeg: Path,
    embeddings: Path,
    unaligned: Path,
    aligned: Path,
    model: Path,
    similarities: Path,
    human: Path,
    explanation: Path,
    tables: list[Path],
    second: Annotated[Path | None, typer.Option(help=SECOND)] = None,
) -> str:
    """`embeddings` are those of the evaluation, `unaligned` and `aligned` all that there are.

    `human` is how alike people find the concepts; `tables` are CSV files, named after what they
    hold.
    """
    p = read_params(params)
    scored = read_similarities(similarities)
    n_subjects = len({result.subject for result in scored.valid_results})
    n_images = len(scored.image_ids)
    resamples = draw_resamples(n_subjects, n_images, p.evaluate.resamples, p.seed)

    valid = {result.run for result in scored.valid_results}
    models = [
        (loaded, notes)
        for loaded, notes in load_models(model)
        if name_run(notes["fold"], notes["seed"]) in valid
    ]
    trained = models[0][0].recipe
    caches = {"unaligned": unaligned, "aligned": aligned}
    encoders = {
        name: read_embeddings(path, trained.block)
        for name, path in caches.items()
        if has_block(path, trained.block)
    }

    galleries = larger_galleries(scored, image_table, embeddings, models, p.evaluate, resamples)
    calibration = calibrate_at_test_time(scored, p.evaluate, resamples)
    others = find_recordings(second) if second else {}
    subjects = sorted({result.subject for result in scored.valid_results})
    files = [others.get(subject, eeg / f"{subject}.h5") for subject in subjects]
    summaries, of_responses = look_at_responses(scored, files, encoders, models, p)

    people = read_human(human)
    of_errors = look_at_errors(scored, people, encoders, resamples, p.seed)

    frames = {"galleries": galleries, "calibration": calibration}
    frames |= of_responses | of_errors
    for path in tables:
        with replacing(path) as temporary:
            frames[path.stem].to_csv(temporary, index=False)
    facts = {name: scored.made_with[name] for name in FACTS}
    if "modality" in scored.made_with:  # absent of EEG
        facts["modality"] = scored.made_with["modality"]
    facts |= {"n_resamples": p.evaluate.resamples, "human_similarity": describe_people(people)}
    write_json(explanation, facts | summaries)

    print_frame("Among more images", galleries, ["gallery", "n_way", "top1_acc", "chance"])
    print_frame("Calibrated at test time", calibration, ["method", "top1_acc", "chance"])
    print_frame("Wrong answers", of_errors["near_misses"], ["answers", "alike_by", "excess", "p"])
    for summary in summaries.values():
        print(summary["answer"] if "answer" in summary else summary["why"])
    return str(explanation)


def look_at_errors(
    scored: Similarities,
    people: HumanSimilarity | str,
    encoders: Mapping[str, Embeddings],
    resamples: Resamples,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """What is retrieved in place of the image that was seen, overall and concept by concept."""
    concepts = scored.things_concept.tolist()
    of_people = None if isinstance(people, str) else people.of(concepts)
    same_category = None if isinstance(people, str) else people.same_category(concepts)
    spaces = {} if of_people is None else {PEOPLE: of_people}
    for name, cache in encoders.items():
        spaces[name] = cosine_similarity(cache.values[cache.rows(scored.image_ids)])
    return {
        "near_misses": tabulate_near_misses(
            scored.valid_results, spaces, resamples, seed, same_category
        ),
        "concepts": tabulate_concepts(scored, of_people),
    }


def describe_people(people: HumanSimilarity | str) -> dict[str, str | bool | int]:
    """Whose similarity the near misses are by, and how many concepts are in a category.

    `why` alone where there is none.
    """
    if isinstance(people, str):
        return {"why": people}
    return {
        "source": people.source,
        "synthetic": people.synthetic,
        "n_concepts": len(people.things_concept),
        "n_in_a_category": int(people.category.any(axis=1).sum()),
    }


def larger_galleries(
    scored: Similarities,
    image_table: Path,
    embeddings: Path,
    models: Models,
    parameters: Evaluate,
    resamples: Resamples,
) -> pd.DataFrame:
    """How often the image is found among the training images too; a row a gallery."""
    by_run = {name_run(notes["fold"], notes["seed"]): loaded for loaded, notes in models}
    trained = models[0][0].recipe
    cache = read_embeddings(embeddings, trained.block, trained.views, trained.views_in_gallery)

    training = read_image_table(image_table)["train"]
    values = torch.from_numpy(cache.values[cache.rows(training["image_ids"].to_numpy())])
    concept, concepts = pd.factorize(training["things_concept"])

    results = scored.valid_results
    # Each model projects the training images once, for all its subjects.
    projected = {name: project_images(loaded, values).numpy() for name, loaded in by_run.items()}
    ahead = [count_ahead(result, projected[result.run], concept) for result in results]
    return tabulate_galleries(
        [result.subject for result in results],
        ahead,
        np.bincount(concept, minlength=len(concepts)),
        parameters.n_way,
        parameters.top_k,
        resamples,
    )


def calibrate_at_test_time(
    scored: Similarities, parameters: Evaluate, resamples: Resamples
) -> pd.DataFrame:
    """How often the image is found where all test responses are seen at once; a row a method."""
    results = scored.valid_results
    return tabulate_calibration(
        [result.subject for result in results],
        [ranks(result) for result in results],
        parameters.top_k,
        resamples,
    )


def look_at_responses(
    scored: Similarities,
    files: Sequence[Path],
    encoders: Mapping[str, Embeddings],
    models: Models,
    p: Params,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """What the test EEG tells without a retrieved image: summaries and tables by name.

    `files` are the prepared EEG of the subjects.
    """
    # A generator: the EEG of one subject at a time is in memory.
    recordings = (read_split(path, "test", average=False) for path in files)
    modality = scored.made_with.get("modality", "EEG")
    return explain_responses(recordings, models, encoders, p.evaluate, p.seed, modality)


def has_block(cache: Path, block: int | str) -> bool:
    """Whether a cache has the block that was trained on: an aligned one may lack it, or all."""
    about, attributes = read_about(cache)
    blocks = [name for name in attributes if "/" not in name]
    if "why" in about:
        return False
    return len(blocks) > 1 if block == "mix" else str(block) in blocks


def print_frame(title: str, frame: pd.DataFrame, columns: list[str]) -> None:
    """Print these columns as a table."""
    rows = frame[columns].itertuples(index=False)
    show(title, [dict(zip(columns, row, strict=True)) for row in rows])


if __name__ == "__main__":
    run(main)
