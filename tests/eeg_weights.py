"""Random weights of pretrained EEG encoders, in the layouts in which they are published."""

import json
from pathlib import Path
from unittest.mock import patch

import safetensors.torch
import torch
from torch import nn

# braindecode/labram-pretrained has windows of 15 s and no head
LABRAM = {"n_times": 3000, "n_chans": 128, "n_outputs": 0}
POSITIONS = {"O1": [-0.03, -0.11, 0.01], "Oz": [0.0, -0.12, 0.02], "O2": [0.03, -0.11, 0.01]}
POSITIONS |= {"Pz": [0.0, -0.08, 0.08], "P7": [-0.07, -0.07, 0.0], "FP1": [-0.03, 0.08, -0.01]}


def publish(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the folder that a user would have downloaded; returns it."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "reve":
        return _publish_reve(folder)

    from braindecode import models

    if name == "labram":
        network = models.Labram(**LABRAM)
    else:
        network = models.CBraMod(return_encoder_output=True)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # no zeros and ones
    network.save_pretrained(folder)
    return folder


def _publish_reve(folder: Path) -> Path:
    """As brain-bzh/reve-base: no head, and the query that pools; with the table of positions."""
    from braindecode.models import reve

    with patch.object(reve, "RevePositionBank", nn.Module):
        network = reve.REVE(n_times=200, n_chans=1, n_outputs=1)
    weights = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("final_layer.")
    }
    weights["cls_query_token"] = torch.randn(1, 1, 512)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "positions.json").write_text(json.dumps(POSITIONS))
    return folder
