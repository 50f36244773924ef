"""Score the trained models on the test images: the metrics, their values per subject, and the top-k curve."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.embeddings import read_embeddings
from pipeline.evaluation import evaluate, summarise
from pipeline.files import replacing
from pipeline.model import load_model
from pipeline.params import read_params
from pipeline.recordings import read_split
from stages import run


def main(params: Path, eeg: Path, embeddings: Path, model: Path, metrics: Path, per_subject: Path, top_k: Path) -> str:
    p = read_params(params)
    tables, curves = [], []
    for folder in sorted(path for path in model.iterdir() if path.is_dir()):
        trained, notes = load_model(folder)
        cache = read_embeddings(embeddings, notes["block"])
        recordings = [read_split(eeg / f"{subject}.h5", "test", average=True) for subject in notes["tested_on"]]
        table, curve = evaluate(trained, recordings, cache, p.evaluate.top_k)
        kept = {key: notes[key] for key in ("fold", "seed", "selected_epoch", "collapsed")}
        tables.append(table.assign(**kept))
        curves.append(curve)
    table = pd.concat(tables, ignore_index=True)
    n_way = int(table["n_way"].iloc[0])
    summary = summarise(table) | {
        "n_way": n_way,
        "chance_top1": 1 / n_way,
        "dataset": p.dataset,
        "synthetic": p.dataset == "sample",
        "backbone": p.backbone,
        "encoder": p.encoder,
        "block": notes["block"],
        "protocol": notes["protocol"],
        "selected_on": notes["selected_on"],
        "seed": p.seed,
        "n_seeds": int(table["seed"].nunique()),
    }
    k = np.arange(1, n_way + 1)
    curve = pd.DataFrame({"k": k, "top_k_acc": np.concatenate(curves).mean(0), "chance": k / n_way})
    for path, frame in ((per_subject, table), (top_k, curve)):
        with replacing(path) as temporary:
            frame.to_csv(temporary, index=False)
    with replacing(metrics) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["synthetic"]:
        print("synthetic data: these figures show that the pipeline works and mean nothing about brains")
    if summary["collapsed"]:
        left_out = summary["n_collapsed"] < summary["n_runs"]
        consequence = "are left out of the means" if left_out else "are no result"
        print(f"{summary['n_collapsed']} of {summary['n_runs']} runs collapsed: they {consequence}")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in summary.items() if name.endswith(("_loss", "_acc")))
    print(f"{p.encoder}: {shown} ({n_way}-way, chance {1 / n_way:.3f}, {summary['n_subjects']} subjects)")
    return str(metrics)


if __name__ == "__main__":
    run(main)
