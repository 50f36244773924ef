"""Which trained models decode an EEG, and of what they were made."""

from pathlib import Path

from pipeline.errors import TRAIN_AGAIN, InputError, suggestion
from pipeline.evaluate.scoring import Models
from pipeline.train.made_with import MadeWith, read_made_with
from pipeline.train.model import load_model, load_models
from pipeline.train.protocols import name_run


def find_models(
    path: Path, subject: str | None = None, fold: str | None = None
) -> tuple[Models, MadeWith | None]:
    """The models that decode together, each with its notes, and what they were made with.

    `path` is the folder of one model (such as data/model/pooled-seed-42), or the folder of all,
    data/model. Of all, those of one fold are taken, the seeds of which are averaged: `fold`, such
    as `pooled`; else the fold that was tested on `subject`; else the only fold that there is.
    Models that collapsed are left out, unless all did. None in the place of what they were made
    with if a folder does not say it.

    Raises InputError where `path` holds no model, several folds could be meant, or the models were
    not made with the same data.
    """
    if (path / "model.json").is_file():
        return [load_model(path)], read_made_with(path)
    if not any(path.glob("*/model.json")):
        fact = "holds no trained model" if path.is_dir() else "there is no such folder"
        raise InputError(
            f"{path}: {fact}; give the folder of a model, such as data/model/pooled-seed-42, or "
            f"data/model; {TRAIN_AGAIN}"
        )

    models = _of_one_fold(path, load_models(path), subject, fold)
    models = [(model, notes) for model, notes in models if not notes["collapsed"]] or models

    all_made_with = [read_made_with(path / name_run(n["fold"], n["seed"])) for _, n in models]
    first = all_made_with[0]
    for (_, notes), made_with in zip(models, all_made_with, strict=True):
        if first is None or made_with is None:
            return models, None
        if (made_with["eeg"], made_with["embeddings"]) != (first["eeg"], first["embeddings"]):
            raise InputError(
                f"{path}: {name_run(notes['fold'], notes['seed'])} was made with other EEG or "
                "another image model than the others, so that their answers have no mean: give "
                "the folder of one model"
            )
    return models, first


def _of_one_fold(path: Path, models: Models, subject: str | None, fold: str | None) -> Models:
    folds = list(dict.fromkeys(notes["fold"] for _, notes in models))
    if fold is None and subject is not None:
        # Pooled models were tested on each subject, all others on one.
        tested = [n["fold"] for _, n in models if subject in n["tested_on"]]
        fold = tested[0] if tested else None
    if fold is None and len(folds) == 1:
        [fold] = folds

    if fold is None:
        reason = f"none was tested on {subject}" if subject else "nothing tells whose EEG this is"
        raise InputError(
            f"{path}: holds models of the folds {', '.join(folds)}, and {reason}: choose one with "
            f"--fold, such as --fold {folds[0]}"
        )
    if fold not in folds:
        raise InputError(
            f"{path}: has no models of the fold {fold}, it has {', '.join(folds)}"
            f"{suggestion(fold, folds)}"
        )
    return [(model, notes) for model, notes in models if notes["fold"] == fold]
