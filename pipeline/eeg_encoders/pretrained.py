"""Pretrained networks of braindecode (https://braindecode.org) without classification heads.

| name      | network | paper            | a channel is known by          |
|-----------|---------|------------------|--------------------------------|
| `labram`  | LaBraM  | arXiv 2405.18765 | its name                       |
| `cbramod` | CBraMod | arXiv 2412.07236 | its neighbours in the order    |
| `reve`    | REVE    | arXiv 2510.21585 | its position, which a file has |

The weights are the user's: what is published lies in a folder, and `train.eeg_weights` names it.
A trained model holds all of its weights, and does not need that folder.

Shapes: EEG (B, C, T) -> features (B, output_size). These are braindecode's features of the network,
for each of C channels and each patch of a second 200 values (512 of REVE), in a row.
Deliberate differences: in the docstring of `PretrainedEncoder`.

Not here: BIOT knows pairs of electrodes, BENDR wants 20 fixed channels of which one is no
electrode, and EEGPT was trained at 256 Hz on windows of four seconds.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.braindecode_networks import require_braindecode
from pipeline.eeg_encoders.encoder import EegEncoder
from pipeline.errors import InputError, suggestion
from pipeline.untrusted.weights import HOW_TO_MEND, check_finite, is_weights, read_weights

SFREQ = 200.0  # Hz, of the EEG that all of them were trained on
PATCH = 200  # samples
SHORT_REST = 10  # samples: a longer rest makes one more patch

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # published names; one is enough
POSITIONS_FILE = "positions.json"
POSITIONS_PAGE = "https://huggingface.co/brain-bzh/reve-positions"


class PretrainedEncoder(EegEncoder):
    """EEG (B, C, T) float -> features (B, output_size); the EEG has a standard deviation of 1.

    It is resampled to 200 Hz as `mne.filter.resample` does. Then it is filled with zeros to
    whole patches, or up to `SHORT_REST` samples are cut off at its end. Then it is multiplied by
    `SCALE`. All of that is one product with a matrix.

    If `frozen`, the network keeps its weights and drops nothing.

    Deliberate differences from braindecode:

    * The classification head is left out.
    * The scale. Noise normalisation takes the unit of the EEG away, and `train.standardise_eeg`
      gives each channel a standard deviation of 1. `SCALE` is what that is to the network.
    * `dropout` is that of the features. Within the network it is as published.

    InputError for a channel that the network does not know, and where braindecode is not installed.
    """

    pretrained = True
    NAME: str
    PAGE: str  # where the weights are published
    SCALE: float
    STEP = PATCH  # samples from one patch to the next
    WIDTH = 200  # values for each channel and patch

    resampling: Tensor

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        sfreq: float,
        dropout: float,
        ch_names: Sequence[str],
        frozen: bool,
    ) -> None:
        super().__init__()
        require_braindecode(self.NAME)
        if len(ch_names) != n_chans:
            raise InputError(
                f"train.eeg_encoder = {self.NAME} needs the names of {n_chans} channels, and got "
                f"{len(ch_names)}: give ch_names"
            )
        self.ch_names = list(ch_names)
        self.frozen = frozen

        matrix = self.SCALE * resample_to_patches(n_times, sfreq, self.STEP)
        self.register_buffer("resampling", torch.from_numpy(matrix).float(), persistent=False)
        n_samples = matrix.shape[1]
        n_patches = 1 + (n_samples - PATCH) // self.STEP
        self.output_size = n_chans * n_patches * self.WIDTH

        self.network = self.make_network(n_samples)
        if frozen:
            self.network.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def make_network(self, n_samples: int) -> nn.Module:
        """braindecode's network for EEG (B, C, n_samples), with random weights."""

    @abstractmethod
    def features(self, eeg: Tensor) -> Tensor:
        """EEG (B, C, n_samples), resampled and scaled -> the network's features (B, ...)."""

    def forward(self, eeg: Tensor) -> Tensor:
        with torch.autocast(eeg.device.type, enabled=False):
            resampled = eeg @ self.resampling.to(eeg.dtype)
        return self.dropout(self.features(resampled).flatten(1))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    @classmethod
    def weight_files(cls, folder: str) -> list[Path]:
        """The published file of weights in this folder; InputError where it has none."""
        if folder == "none":
            raise InputError(
                f"the EEG encoder {cls.NAME} is pretrained, and train.eeg_weights is none: fetch "
                f"{WEIGHT_FILES[0]} from {cls.PAGE}, and set train.eeg_weights to the full path of "
                "its folder"
            )

        paths = [Path(folder).expanduser() / name for name in WEIGHT_FILES]
        files = [path for path in paths if path.is_file()]
        if not files:
            raise InputError(
                f"train.eeg_weights is {folder}, which is no folder with "
                f"{' or '.join(WEIGHT_FILES)} of {cls.NAME}: {cls._remedy()}"
            )
        return files[:1]

    def load_pretrained(self, folder: str) -> None:
        """Take over the published weights; InputError where a file is of another network."""
        path = self.weight_files(folder)[0]
        weights = self.adapt(self._read(path))

        shapes = _shapes(weights)
        expected_shapes = _shapes(self.network.state_dict())
        for name in [*expected_shapes, *shapes]:
            shape = shapes.get(name, "missing")
            expected = expected_shapes.get(name, "none")
            if shape != expected:
                raise InputError(
                    f"{path}: does not hold {self.NAME} as it is published: the weight {name} is "
                    f"{shape}, expected {expected}; {self._remedy()}"
                )
        self.network.load_state_dict(weights)

    def adapt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published weights that the network here has, without those of a head."""
        return {
            name: value for name, value in weights.items() if not name.startswith("final_layer.")
        }

    def _read(self, path: Path) -> dict[str, Tensor]:
        """The weights in a file, of which no code is run."""
        try:
            weights = read_weights(path)
            if not is_weights(weights):
                raise InputError(f"{path}: does not hold weights alone, by name; {HOW_TO_MEND}")
            check_finite(weights, str(path))
        except InputError as error:
            # The usual remedy is for weights of image models
            raise InputError(str(error).replace(HOW_TO_MEND, self._remedy())) from error
        return weights

    @classmethod
    def _remedy(cls) -> str:
        return f"fetch it again from {cls.PAGE}, and let train.eeg_weights name its folder"


class Labram(PretrainedEncoder):
    """LaBraM: a transformer of 12 layers over all patches; 5.8 million weights.

    Paper: Jiang et al., arXiv 2405.18765.
    Code: https://github.com/935963004/LaBraM; the network is braindecode's.

    It was trained on EEG in units of 0.1 mV. A standard deviation is taken for 10 µV. It has a
    learned embedding for each of 128 channel names.
    """

    NAME = "labram"
    PAGE = "https://huggingface.co/braindecode/labram-pretrained"
    SCALE = 0.1

    def make_network(self, n_samples: int) -> nn.Module:
        from braindecode.models import labram  # imported here, because it is an optional package

        require_channels(self.ch_names, labram.LABRAM_CHANNEL_ORDER, self.NAME)
        return labram.Labram(n_chans=len(self.ch_names), n_times=n_samples, n_outputs=0)

    def features(self, eeg: Tensor) -> Tensor:
        return self.network(eeg, return_features=True, ch_names=self.ch_names)["features"]

    def adapt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """With as many embeddings of time as there are patches: the first ones."""
        adapted = super().adapt(weights)
        n_rows = self.network.get_parameter("temporal_embedding").shape[1]
        if "temporal_embedding" in adapted:
            adapted["temporal_embedding"] = adapted["temporal_embedding"][:, :n_rows]
        return adapted


class CBraMod(PretrainedEncoder):
    """CBraMod: 12 layers of attention, half over channels and half over time; 4.9 million weights.

    Paper: Wang et al., arXiv 2412.07236.
    Code: https://github.com/wjq-learning/CBraMod; the network is braindecode's.

    It was trained on EEG in units of 0.1 mV. A standard deviation is taken for 10 µV. It takes any
    channels: it finds their places from their order, by a convolution over 19 channels in a row.
    """

    NAME = "cbramod"
    PAGE = "https://huggingface.co/braindecode/cbramod-pretrained"
    SCALE = 0.1

    def make_network(self, n_samples: int) -> nn.Module:
        from braindecode import models  # imported here, because it is an optional package

        return models.CBraMod(return_encoder_output=True)

    def features(self, eeg: Tensor) -> Tensor:
        return self.network(eeg, return_features=True)["features"]


class Reve(PretrainedEncoder):
    """REVE (base): a transformer of 22 layers over all patches; 69 million weights.

    Paper: El Ouahidi et al., arXiv 2510.21585.
    Code: the network is braindecode's.

    It was trained on EEG with a standard deviation of 1, cut off at 15. Patches overlap by 20
    samples. A channel is known by its position, which `positions.json` in the folder of the weights
    has for each name.
    """

    NAME = "reve"
    PAGE = "https://huggingface.co/brain-bzh/reve-base"
    SCALE = 1.0
    STEP = 180
    WIDTH = 512
    LARGEST = 15.0  # standard deviations
    caveats = (
        "The EEG encoder reve was pretrained on recordings of THINGS-EEG, as NeuralBench says: it "
        "may have seen the test EEG, though not which image was shown.",
    )

    positions: Tensor

    def make_network(self, n_samples: int) -> nn.Module:
        from braindecode.models import reve  # imported here, because it is an optional package

        n_chans = len(self.ch_names)
        self.register_buffer("positions", torch.zeros(n_chans, 3))

        # braindecode's network would fetch the table of all positions from the internet
        with patch.object(reve, "RevePositionBank", nn.Module):
            network = reve.REVE(n_chans=n_chans, n_times=n_samples, n_outputs=1)
        network.final_layer = nn.Identity()
        return network

    def features(self, eeg: Tensor) -> Tensor:
        clipped = eeg.clamp(-self.LARGEST, self.LARGEST)
        positions = self.positions.expand(len(eeg), -1, -1)
        return self.network(clipped, positions, return_features=True)["features"]

    @classmethod
    def weight_files(cls, folder: str) -> list[Path]:
        """The published file of weights in this folder, and the table of positions."""
        files = super().weight_files(folder)
        table = files[0].with_name(POSITIONS_FILE)
        if not table.is_file():
            raise InputError(
                f"train.eeg_weights is {folder}, where {POSITIONS_FILE} is missing beside the "
                f"weights of reve: fetch it from {POSITIONS_PAGE} into this folder"
            )
        return [*files, table]

    def load_pretrained(self, folder: str) -> None:
        """Take over the published weights, and the positions of the channels."""
        super().load_pretrained(folder)

        table = read_positions(self.weight_files(folder)[1])
        require_channels(self.ch_names, table, self.NAME)
        by_plain_name = {name.casefold(): position for name, position in table.items()}
        positions = [by_plain_name[name.casefold()] for name in self.ch_names]
        self.positions.copy_(torch.tensor(positions))

    def adapt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the query by which the published network pools its tokens."""
        adapted = super().adapt(weights)
        adapted.pop("cls_query_token", None)
        return adapted


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def require_channels(ch_names: Sequence[str], known: Iterable[str], encoder: str) -> None:
    """InputError for the first channel that an encoder does not know; case does not count."""
    names = list(known)
    plain_names = {name.casefold() for name in names}
    for name in ch_names:
        if name.casefold() not in plain_names:
            raise InputError(
                f"the EEG encoder {encoder} does not know the channel {name}: leave it out by "
                f"preprocess.channels, or choose cbramod, which takes any{suggestion(name, names)}"
            )


def read_positions(path: Path) -> dict[str, list[float]]:
    """REVE's table of electrodes: the position (x, y, z) of each by its name.

    InputError where the file is none.
    """
    try:
        table = json.loads(path.read_text())
        positions = {str(name): [float(number) for number in table[name]] for name in table}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is no table of positions ({error}); fetch it again from {POSITIONS_PAGE}"
        ) from error

    for name, position in positions.items():
        if len(position) != 3 or not np.isfinite(position).all():
            raise InputError(
                f"{path}: the position of {name} is {position}, expected three numbers; fetch it "
                f"again from {POSITIONS_PAGE}"
            )
    return positions


def resample_to_patches(n_times: int, sfreq: float, step: int) -> np.ndarray:
    """The matrix (n_times, n_samples) float64 by which EEG (..., n_times) becomes whole patches.

    The patches are at 200 Hz; `n_samples` is PATCH and a multiple of `step`. Samples beyond the end
    of the EEG are 0.
    """
    import mne  # imported here: it takes a second, and no other EEG encoder needs it

    # Resampling is linear: it is a product with what it makes of each unit vector
    resampled = np.eye(n_times)
    if sfreq != SFREQ:
        resampled = mne.filter.resample(resampled, up=SFREQ, down=sfreq, verbose=False)

    n_beyond = resampled.shape[1] - PATCH - SHORT_REST
    n_samples = PATCH + step * max(0, math.ceil(n_beyond / step))
    padded = np.zeros((n_times, n_samples))
    n_filled = min(n_samples, resampled.shape[1])
    padded[:, :n_filled] = resampled[:, :n_filled]
    return padded
