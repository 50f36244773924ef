"""Score the trained models on the test images: metrics, tables, and the similarities behind."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders import table as eeg_encoders
from pipeline.errors import TRAIN_AGAIN, InputError
from pipeline.evaluate.chance import describe_chance
from pipeline.evaluate.evaluation import (
    headline,
    summarise_block_weights,
    summarise_fits,
    tabulate,
)
from pipeline.evaluate.scoring import Models, score
from pipeline.evaluate.similarities import Similarities, settings_of, write_similarities
from pipeline.files import replacing
from pipeline.images.embeddings import Embeddings, read_about, read_embeddings
from pipeline.params import Params, read_params
from pipeline.preprocess.recordings import (
    find_recordings,
    read_caveats,
    read_modality,
    read_split,
)
from pipeline.train.card import write_card
from pipeline.train.made_with import FILE, MadeWith, read_made_with
from pipeline.train.model import Notes, load_models
from pipeline.train.protocols import name_recordings, name_run
from stages import SECOND, run, show, write_json


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    model: Path,
    details: Path,
    similarities: Path,
    summaries: list[Path],
    card: Annotated[Path | None, typer.Option(help="the models' card, with their score")] = None,
    second: Annotated[Path | None, typer.Option(help=SECOND)] = None,
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
    others = find_recordings(second) if second else {}
    made_with |= describe_across(p, models, others)
    subjects = sorted({name for _, notes in models for name in notes["tested_on"]})
    files = [others.get(subject, eeg / f"{subject}.h5") for subject in subjects]
    made_with |= name_modality(files[0])
    # A generator: the EEG of one subject at a time is in memory.
    recordings = (read_split(path, "test", average=False) for path in files)
    scores, axes = score(recordings, models, cache, p.evaluate, p.seed)

    summary, frames = tabulate(scores, axes, made_with, p.evaluate, p.seed)
    summary |= summarise_block_weights(notes for _, notes in models)
    summary |= summarise_fits(notes for _, notes in models)

    # What restricts the figures: the dataset, the image model, and how the EEG was prepared.
    summary["caveats"] = [
        *caveats_of_datasets(made_with),
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

    if card is not None:
        write_scored_card(card, model, models, summary, p.evaluate.top_k)

    print_summary(summary, p.evaluate.top_k)
    return str(details)


def write_scored_card(
    card: Path, folder: Path, models: Models, summary: dict[str, Any], top_k: Sequence[int]
) -> None:
    """Write the card that the train stage left in the folder of the models, with their score."""
    low = summary["ci95_low"]
    high = summary["ci95_high"]
    rows = [
        {
            "name": f"top-{k} of {summary['n_way']}",
            "value": summary[name],
            "interval": f"{low[name]:.3f} to {high[name]:.3f}",
            "chance": k / summary["n_way"],
        }
        for k in top_k
        for name in [f"top{k}_acc"]
    ]

    runs = "1 run" if summary["n_runs"] == 1 else f"the mean of {summary['n_runs']} runs"
    about = (
        f"Of {runs} on the test EEG of {summary['n_subjects']} subjects. The interval is over "
        f"{summary['ci95_over']}, and not over {summary['ci95_not_over']}. "
        f"{describe_chance(summary)}"
    )
    write_card(
        card,
        [notes for _, notes in models],
        models[0][0].sizes,
        models[0][0].recipe,
        [made_with_of(folder / name_run(notes["fold"], notes["seed"])) for _, notes in models],
        synthetic=summary["synthetic"],
        caveats=caveats_of_datasets(summary),
        score={"rows": rows, "about": about},
    )


def made_with_of(folder: Path) -> MadeWith:
    """Of what a model was made. Raises InputError where its folder does not say it."""
    made_with = read_made_with(folder)
    if made_with is None:
        raise InputError(f"{folder}: lacks {FILE}, which the train stage writes; {TRAIN_AGAIN}")
    return made_with


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


def describe_across(p: Params, models: Models, second: Container[str]) -> dict[str, Any]:
    """Of the protocol across, whose people trained and whose are tested; else nothing.

    `second` are the subjects of the second recording. The evaluation is one of the dataset that is
    tested.
    """
    if models[0][1]["protocol"] != "across":
        return {}
    trained_on = [subject for _, notes in models for subject in notes["trained_on"]]
    tested_on = models[0][1]["tested_on"]
    names = (p.dataset, p.across.dataset, second)
    return {
        "dataset": name_recordings(tested_on, *names),
        "trained_dataset": name_recordings(trained_on, *names),
        "n_training_subjects": len(set(trained_on)),
    }


def caveats_of_datasets(made_with: Mapping[str, Any]) -> list[str]:
    """The sentences of the dataset that is tested and of those that were trained on, each once."""
    names = [made_with["dataset"], *made_with.get("trained_dataset", "").split(" and ")]
    sentences = [caveat for name in names if name for caveat in DATASETS[name].caveats]
    return list(dict.fromkeys(sentences))


def name_modality(recording: Path) -> dict[str, str]:
    """What was recorded, where it is not EEG; all subjects have the channels of this one."""
    modality = read_modality(recording)
    return {} if modality == "EEG" else {"modality": modality}


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
