"""Train the EEG encoder of all subjects together against the cached embeddings."""

from pathlib import Path

from pipeline.devices import pick_device
from pipeline.embeddings import read_embeddings
from pipeline.files import replacing
from pipeline.model import save_model
from pipeline.params import read_params
from pipeline.training import read_training_set, train
from stages import run


def main(params: Path, eeg: Path, embeddings: Path, model: Path) -> str:
    p = read_params(params)
    data = read_training_set(eeg, read_embeddings(embeddings))
    trained = train(data, p.train, p.seed, pick_device(p.train.device))
    notes = {"seed": p.seed, "protocol": "pooled", "selected_on": "validation", "selected_epoch": trained.epoch}
    save_model(trained.model, model, notes)
    with replacing(model / "history.csv") as temporary:
        trained.history.to_csv(temporary, index=False)
    return f"the weights of epoch {trained.epoch} of {p.train.epochs} to {model}"


if __name__ == "__main__":
    run(main)
