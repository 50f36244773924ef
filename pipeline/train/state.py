"""The state of an interrupted training, as a file."""

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.files import replacing
from pipeline.train.stack import Stack
from pipeline.train.training import Training


def save_state(path: Path, epoch: int, stack: Stack, trainings: Sequence[Training]) -> None:
    """Write all that the training needs to go on after this epoch."""
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    state = {
        "epoch": epoch,
        "stack": stack.state_dict(),
        "members": [training.state_dict() for training in trainings],
        "random": random,
    }
    # A stream, because torch hides the reason of an error where it opens the path itself
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def load_state(
    path: Path, device: torch.device, stack: Stack, trainings: Sequence[Training]
) -> int:
    """Put a training back to its last saved epoch, and return it; 0 where the file is damaged."""
    if not _is_whole(path):
        return 0
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)

    stack.load_state_dict(state["stack"])
    for training, values in zip(trainings, state["members"], strict=True):
        training.load_state_dict(values)

    torch.set_rng_state(state["random"]["cpu"].cpu())
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"].cpu())
    return state["epoch"]


def _is_whole(path: Path) -> bool:
    """Compare the file with its checksums, which torch does not do."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if archive.testzip() is None:
            return True

    tqdm.write(
        f"{path}: the state of the interrupted training is damaged, so the training starts again"
    )
    return False
