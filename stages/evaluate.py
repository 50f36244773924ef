"""Score the trained models on the test images: the metrics, tables of them, and the similarities behind them."""

import json
from pathlib import Path

from pipeline.analysis.evaluation import tabulate
from pipeline.analysis.scoring import score
from pipeline.analysis.similarities import Similarities, settings_of, write_similarities
from pipeline.data.datasets import DATASETS
from pipeline.decoding.model import load_model
from pipeline.eeg.recordings import read_split
from pipeline.files import replacing
from pipeline.images.embeddings import read_embeddings
from pipeline.params import read_params
from stages import run, show


def main(
    params: Path, eeg: Path, embeddings: Path, model: Path, metrics: Path, similarities: Path, tables: list[Path]
) -> str:
    """`tables` are CSV files, named after what is in them."""
    p = read_params(params)
    models = [load_model(folder) for folder in sorted(path for path in model.iterdir() if path.is_dir())]
    notes = models[0][1]
    subjects = sorted({subject for _, notes in models for subject in notes["tested_on"]})
    files = [eeg / f"{subject}.h5" for subject in subjects]
    recordings = (read_split(path, "test", average=False) for path in files)
    outcomes, axes = score(recordings, models, read_embeddings(embeddings, notes["train"]["block"]), p.evaluate, p.seed)
    summary, frames = tabulate(outcomes, axes, p.evaluate, p.seed)
    n_way = len(axes.image_ids)
    made_with = {
        "dataset": p.dataset,
        "synthetic": DATASETS[p.dataset].synthetic,
        "backbone": p.backbone,
        "encoder": p.encoder,
        "alignment": p.alignment if p.encoder == "aligned" else "none",
        "block": notes["train"]["block"],
        "protocol": notes["protocol"],
        "selected_on": notes["selected_on"],
    }
    summary |= {"n_way": n_way, "chance_top1": 1 / n_way, **made_with, "seed": p.seed}
    summary["n_seeds"] = len({one.scored.seed for one in outcomes})
    made_with["settings"] = settings_of(notes, files, embeddings)
    names = (axes.image_ids, axes.concept, axes.things_concept)
    write_similarities(similarities, Similarities(*names, [one.scored for one in outcomes], made_with))
    for path in tables:
        with replacing(path) as temporary:
            frames[path.stem].to_csv(temporary, index=False)
    with replacing(metrics) as temporary:
        summary = json.loads(json.dumps(summary), parse_constant=lambda _: None)  # what is undefined is null
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["synthetic"]:
        print("synthetic data: these figures show that the pipeline works and mean nothing about brains")
    if summary["collapsed"]:
        left_out = summary["n_collapsed"] < summary["n_runs"]
        consequence = "are left out of the means" if left_out else "are no result"
        print(f"{summary['n_collapsed']} of {summary['n_runs']} runs collapsed: they {consequence}")
    rows = [
        {"metric": name, "value": summary[name], "low": summary["ci95_low"][name], "high": summary["ci95_high"][name]}
        for name in ("nice_loss", *(f"top{k}_acc" for k in p.evaluate.top_k), "matched_cosine", "mismatched_cosine")
    ]
    show(f"{p.encoder}, {n_way}-way, {summary['n_subjects']} subjects; chance of top-1 {1 / n_way:.3f}", rows)
    return str(metrics)


if __name__ == "__main__":
    run(main)
