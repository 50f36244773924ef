"""Score the trained model on the test images: the metrics, their values per subject, and the top-k curve."""

import json
from pathlib import Path

from pipeline.embeddings import read_embeddings
from pipeline.evaluation import evaluate
from pipeline.files import replacing
from pipeline.model import load_model
from pipeline.params import read_params
from pipeline.recordings import read_split
from stages import run


def main(params: Path, eeg: Path, embeddings: Path, model: Path, metrics: Path, per_subject: Path, top_k: Path) -> str:
    p = read_params(params)
    trained, notes = load_model(model)
    recordings = [read_split(path, "test", average=True) for path in sorted(eeg.glob("*.h5"))]
    table, curve = evaluate(trained, recordings, read_embeddings(embeddings), p.evaluate.top_k)
    means = table.drop(columns=["subject", "n_way"]).mean()
    summary = {
        **means.to_dict(),
        "n_way": int(table["n_way"].iloc[0]),
        "chance_top1": 1 / int(table["n_way"].iloc[0]),
        "n_subjects": len(table),
        "dataset": p.dataset,
        "synthetic": p.dataset == "sample",
        "backbone": p.backbone,
        "encoder": p.encoder,
        **{key: notes[key] for key in ("protocol", "selected_on", "selected_epoch", "seed")},
    }
    for path, frame in ((per_subject, table), (top_k, curve)):
        with replacing(path) as temporary:
            frame.to_csv(temporary, index=False)
    with replacing(metrics) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["synthetic"]:
        print("synthetic data: these figures show that the pipeline works and mean nothing about brains")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    print(f"{p.encoder}: {shown} ({summary['n_way']}-way, chance {summary['chance_top1']:.3f}, {len(table)} subjects)")
    return str(metrics)


if __name__ == "__main__":
    run(main)
