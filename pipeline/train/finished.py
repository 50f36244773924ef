"""Finished trainings, which stay in the cache folder: each is trained once, and read from then on.

So another seed, subject or fold trains only what is new, in the train stage and in the study alike.
A training is a file, named by a hash of all that decides its weights: the code and versions, the
files that it reads, the recipe, what the run is, the kind of device and the number of threads. On a
GPU the last bits also depend on which models were trained together.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from pipeline.compute.devices import device_name, pick_device
from pipeline.files import cache_folder, check_folders, replacing
from pipeline.provenance import fingerprint
from pipeline.sections import Train
from pipeline.train.closed_form import what_decides
from pipeline.train.inputs import HashedFile, hash_eeg_weights
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.protocols import Run
from pipeline.train.training import Trained

KIND = "trained"  # the folder in the cache folder


def cache_of_trainings() -> Path:
    """The folder of finished trainings, as this process sees the cache folder."""
    return cache_folder().resolve() / KIND


def name_of(
    run: Run, eeg: Mapping[str, HashedFile], embeddings: HashedFile, recipe: Train, code: str
) -> str:
    """The name of this training's file; `code` is the hash of all code that it runs through."""
    subjects = run.trained_on
    if recipe.select_on == "test":
        subjects += run.tested_on

    decided_by = [
        [eeg[subject].sha256 for subject in subjects],
        embeddings.sha256,
        [run.fold, run.seed, subjects],
        what_decides(recipe).model_dump(exclude={"seeds", "device", "eeg_weights"}),
        hash_eeg_weights(recipe),
        device_name(pick_device(recipe.device)),
        torch.get_num_threads(),
    ]
    return f"{fingerprint(code, decided_by)}.safetensors"


def write(file: Path, trained: Trained) -> None:
    """Keep a training; InputError where the disk does not take it."""
    weights = trained.model.cpu().state_dict()
    about = {
        "sizes": asdict(trained.model.sizes),
        "history": trained.history.to_dict("records"),
        "epoch": trained.epoch,
        "collapsed": trained.collapsed,
        "sha256": _hash(weights),
    }
    content = safetensors.torch.save(weights, {"about": json.dumps(about)})

    check_folders({file.parent: len(content)})
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def read(file: Path, recipe: Train) -> Trained | None:
    """A training that was kept, its model with this recipe; None where there is no sound one."""
    if not file.exists():
        return None

    try:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()["about"])
        weights = safetensors.torch.load_file(file)
        is_sound = about["sha256"] == _hash(weights)
    except (SafetensorError, KeyError, TypeError, ValueError):  # cut short, or another file
        is_sound = False
    if not is_sound:
        tqdm.write(f"{file}: the finished training is damaged, and is trained again")
        return None

    model = ContrastiveModel(ModelSizes(**about["sizes"]), recipe)
    model.load_state_dict(weights)
    history = pd.DataFrame(about["history"])
    return Trained(model.eval(), history, about["epoch"], about["collapsed"])


def _hash(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
