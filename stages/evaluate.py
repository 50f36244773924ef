"""Score the trained models on the test images: the metrics, tables of them, and the similarities behind them."""

from pathlib import Path
from typing import Any

from pipeline.datasets.table import DATASETS
from pipeline.errors import TRAIN_AGAIN, InputError
from pipeline.evaluate.evaluation import summarise_block_weights, tabulate
from pipeline.evaluate.scoring import score
from pipeline.evaluate.similarities import Similarities, settings_of, write_similarities
from pipeline.files import replacing
from pipeline.images.embeddings import read_about, read_embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import read_split
from pipeline.train.model import load_model
from stages import run, show, write_json


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    model: Path,
    metrics: Path,
    similarities: Path,
    tables: list[Path],
) -> str:
    """`tables` are CSV files, named after what is in them."""
    p = read_params(params)
    models = [
        load_model(folder) for folder in sorted(path for path in model.iterdir() if path.is_dir())
    ]
    if not models:
        raise InputError(f"{model}: holds no trained model; {TRAIN_AGAIN}")
    notes = models[0][1]
    files = [
        eeg / f"{subject}.h5"
        for subject in sorted({name for _, notes in models for name in notes["tested_on"]})
    ]
    recordings = (read_split(path, "test", average=False) for path in files)
    dataset = DATASETS[p.dataset]
    made_with = {
        "dataset": p.dataset,
        "synthetic": dataset.synthetic,
        "backbone": p.backbone,
        "encoder": p.encoder,
        "alignment": p.alignment if p.encoder == "aligned" else "none",
        "block": notes["train"]["block"],
        "protocol": notes["protocol"],
        "selected_on": notes["selected_on"],
    }
    trained = notes["train"]
    cache = read_embeddings(
        embeddings, trained["block"], trained["views"], trained["views_in_gallery"]
    )
    made_with |= {"views": cache.views, "views_in_gallery": cache.views_in_gallery}
    if cache.blocks:
        made_with["mixed_blocks"] = ", ".join(cache.blocks)
    scores, axes = score(recordings, models, cache, p.evaluate, p.seed)
    summary, frames = tabulate(scores, axes, made_with, p.evaluate, p.seed)
    summary |= summarise_block_weights(notes for _, notes in models)
    of_images = read_about(embeddings)[0].get("caveat")
    summary["caveats"] = [*dataset.caveats, *([of_images] if of_images else []), *axes.caveats]
    everything = Similarities(
        image_ids=axes.image_ids,
        concept=axes.concept,
        things_concept=axes.things_concept,
        results=[subject.result for subject in scores],
        made_with=made_with | {"settings": settings_of(notes["train"], files, embeddings)},
    )
    write_similarities(similarities, everything)
    for path in tables:
        with replacing(path) as temporary:
            frames[path.stem].to_csv(temporary, index=False)
    print_summary(write_json(metrics, summary), p.evaluate.top_k)
    return str(metrics)


def print_summary(summary: dict[str, Any], top_k: list[int]) -> None:
    if summary["synthetic"]:
        print(
            "synthetic data: these figures show that the pipeline works and mean nothing about brains"
        )
    for caveat in summary["caveats"]:
        print(caveat)
    if summary["collapsed"]:
        left_out = summary["n_collapsed"] < summary["n_runs"]
        consequence = "are left out of the means" if left_out else "are no result"
        print(f"{summary['n_collapsed']} of {summary['n_runs']} runs collapsed: they {consequence}")
    names = ["nice_loss", *(f"top{k}_acc" for k in top_k), "matched_cosine", "mismatched_cosine"]
    low, high = summary["ci95_low"], summary["ci95_high"]
    rows = [
        {"metric": name, "value": summary[name], "low": low[name], "high": high[name]}
        for name in names
    ]
    if "block_weights" in summary:
        told = ", ".join(
            f"{name} {weight:.2f}" for name, weight in summary["block_weights"].items()
        )
        print(f"weights of the blocks, mean of the runs: {told}")
    gallery = f"{summary['n_way']}-way, {summary['n_subjects']} subjects"
    show(f"{summary['encoder']}, {gallery}; chance of top-1 {summary['chance_top1']:.3f}", rows)


if __name__ == "__main__":
    run(main)
