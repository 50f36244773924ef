"""Score the trained models on the test images: metrics, tables, and the similarities behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders import table as eeg_encoders
from pipeline.evaluate.chance import describe_chance
from pipeline.evaluate.evaluation import (
    headline,
    summarise_block_weights,
    summarise_fits,
    tabulate,
)
from pipeline.evaluate.scoring import score
from pipeline.evaluate.similarities import Similarities, settings_of, write_similarities
from pipeline.files import replacing
from pipeline.images.embeddings import Embeddings, read_about, read_embeddings
from pipeline.params import Params, read_params
from pipeline.preprocess.recordings import read_caveats, read_split
from pipeline.train.model import Notes, load_models
from stages import run, show, write_json


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    model: Path,
    details: Path,
    similarities: Path,
    summaries: list[Path],
) -> str:
    """`summaries` are named after what they hold: evaluation.json, to compare, and CSV tables."""
    p = read_params(params)
    models = load_models(model)
    notes = models[0][1]  # all models share the settings that are read below
    trained = notes["train"]
    # The block and views that were trained on, whatever params.yaml says by now.
    cache = read_embeddings(
        embeddings, trained["block"], trained["views"], trained["views_in_gallery"]
    )
    made_with = describe(p, notes, cache)

    # Every subject that some model is tested on, read one after the other
    subjects = sorted({name for _, notes in models for name in notes["tested_on"]})
    files = [eeg / f"{subject}.h5" for subject in subjects]
    # A generator: the EEG of one subject at a time is in memory.
    recordings = (read_split(path, "test", average=False) for path in files)
    scores, axes = score(recordings, models, cache, p.evaluate, p.seed)

    summary, frames = tabulate(scores, axes, made_with, p.evaluate, p.seed)
    summary |= summarise_block_weights(notes for _, notes in models)
    summary |= summarise_fits(notes for _, notes in models)

    # What restricts the figures: the dataset, the image model, and how the EEG was prepared.
    summary["caveats"] = [
        *DATASETS[p.dataset].caveats,
        *eeg_encoders.caveats_of(trained["eeg_encoder"]),
        *caveats_of(embeddings),
        # A caveat may be of one subject alone, such as its bad channels. Each is said once.
        *dict.fromkeys(caveat for path in files for caveat in read_caveats(path)),
    ]

    caveat = {"caveat": " ".join(caveats_of(embeddings))} if caveats_of(embeddings) else {}

    # Which weights a pretrained EEG encoder started from counts, not where they lay
    weights = [sha256[:12] for sha256 in notes.get("eeg_weights", [])] or "none"
    settings = settings_of(trained | {"eeg_weights": weights}, files, embeddings)
    everything = Similarities(
        image_ids=axes.image_ids,
        concept=axes.concept,
        things_concept=axes.things_concept,
        results=[subject.result for subject in scores],
        made_with=made_with | caveat | {"settings": settings},
    )

    write_similarities(similarities, everything)
    summary = write_json(details, summary)

    for path in summaries:
        if path.suffix == ".json":
            # A few figures alone: `dvc exp show` makes a column of each.
            write_json(path, headline(summary, p.evaluate.top_k))
            continue
        with replacing(path) as temporary:
            frames[path.stem].to_csv(temporary, index=False)

    print_summary(summary, p.evaluate.top_k)
    return str(details)


def describe(p: Params, notes: Notes, cache: Embeddings) -> dict[str, Any]:
    """What an evaluation says of the data, the encoders and the training behind it."""
    made_with = {
        "dataset": p.dataset,
        "synthetic": DATASETS[p.dataset].synthetic,
        "planted": DATASETS[p.dataset].planted.get(p.sample.truth, ""),
        "backbone": p.backbone,
        "encoder": p.encoder,
        "alignment": p.alignment if p.encoder == "aligned" else "none",
        "block": notes["train"]["block"],
        "protocol": notes["protocol"],
        "selected_on": notes["selected_on"],
        "control": notes["train"]["control"],
        "views": cache.views,
        "views_in_gallery": cache.views_in_gallery,
    }

    # Of a learned mix of blocks, the blocks that were mixed
    if cache.blocks:
        made_with["mixed_blocks"] = ", ".join(cache.blocks)
    # Of an EEG encoder without seeds, that it has none
    if eeg_encoders.has_closed_form(notes["train"]["eeg_encoder"]):
        made_with["closed_form"] = True
    return made_with


def caveats_of(embeddings: Path) -> list[str]:
    """The caveat that a cache of embeddings carries, if any."""
    caveat = read_about(embeddings)[0].get("caveat")
    return [caveat] if caveat else []


def print_summary(summary: dict[str, Any], top_k: Sequence[int]) -> None:
    """Print what restricts the figures, and then the main figures as a table."""
    if summary["synthetic"]:
        print(
            "synthetic data: these figures show that the pipeline works and mean nothing about "
            "brains"
        )
    for caveat in summary["caveats"]:
        print(caveat)
    if summary["collapsed"]:
        left_out = summary["n_collapsed"] < summary["n_runs"]
        consequence = "are left out of the means" if left_out else "are no result"
        print(f"{summary['n_collapsed']} of {summary['n_runs']} runs collapsed: they {consequence}")

    if "block_weights" in summary:
        weights = ", ".join(
            f"{block} {weight:.2f}" for block, weight in summary["block_weights"].items()
        )
        print(f"weights of the blocks, mean of the runs: {weights}")

    low = summary["ci95_low"]
    high = summary["ci95_high"]
    names = ["nice_loss", *(f"top{k}_acc" for k in top_k), "matched_cosine", "mismatched_cosine"]
    rows = [
        {"metric": name, "value": summary[name], "low": low[name], "high": high[name]}
        for name in names
    ]
    gallery = f"{summary['n_way']}-way, {summary['n_subjects']} subjects"
    print(describe_chance(summary))
    show(f"{summary['encoder']}, {gallery}; chance of top-1 {summary['chance_top1']:.3f}", rows)


if __name__ == "__main__":
    run(main)
