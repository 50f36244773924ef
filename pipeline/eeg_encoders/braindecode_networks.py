"""Four networks of braindecode (https://braindecode.org) without their classification heads.

| name           | network         | paper                          | least samples |
|----------------|-----------------|--------------------------------|---------------|
| `eegnet`       | EEGNet          | doi 10.1088/1741-2552/aace8c   | 32            |
| `shallow`      | ShallowFBCSPNet | doi 10.1002/hbm.23730          | 99            |
| `deep4`        | Deep4Net        | doi 10.1002/hbm.23730          | 76            |
| `eegconformer` | EEGConformer    | doi 10.1109/TNSRE.2022.3230250 | 99            |

Shapes: EEG (B, C, T) -> features (B, output_size), the flattened output of the last layer before
the head. The weights start as torch draws them.
Deliberate differences: in the docstring of `BraindecodeEncoder`.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.encoder import EegEncoder, require_samples
from pipeline.errors import InputError

# With these numbers of samples, one is left after the last pool.
LEAST_SAMPLES = {"eegnet": 32, "shallow": 99, "deep4": 76, "eegconformer": 99}
# braindecode merges two layers of these, and fails for one channel.
NEED_TWO_CHANNELS = ("shallow", "deep4")

DEEP4_SAMPLES = 441  # Deep4Net as published needs as many
# For fewer samples: braindecode itself would shrink the pools until no pooling is left.
DEEP4_SHORT = {
    "filter_time_length": 5,
    "filter_length_2": 5,
    "filter_length_3": 5,
    "filter_length_4": 5,
    "pool_time_length": 2,
    "pool_time_stride": 2,
}


class BraindecodeEncoder(EegEncoder):
    """EEG (B, C, T) float -> features (B, output_size), by the network called `name`.

    Deliberate differences from braindecode:

    * The classification head is left out.
    * EEGNet has temporal filters of half a second, as in its paper.
    * Deep4Net has kernels of 5 and pools of 2 samples if there are fewer than 441 samples. The
      EEGNet paper adapted Deep4Net to 128 Hz in this way.

    InputError for too few samples or channels, and where braindecode is not installed.
    """

    def __init__(self, name: str, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        require_samples(name, n_times, LEAST_SAMPLES[name])
        if n_chans < 2 and name in NEED_TWO_CHANNELS:
            raise InputError(
                f"train.eeg_encoder = {name} needs at least 2 channels: add to preprocess.channels"
            )

        self.network = _headless_network(name, n_chans, n_times, sfreq, dropout).eval()

        # Only the network itself knows its output size: ask by an example.
        with torch.no_grad():
            self.output_size = self(torch.zeros(1, n_chans, n_times)).shape[1]
        self.train()

    def forward(self, eeg: Tensor) -> Tensor:
        return self.network(eeg).flatten(1)


def check_installed(name: str) -> None:
    """InputError where this EEG encoder needs braindecode, and braindecode is not installed.

    Stages call this before their work begins.
    """
    if name in LEAST_SAMPLES:
        require_braindecode(name)


def require_braindecode(name: str) -> None:
    """InputError, which names this EEG encoder, where braindecode is not installed."""
    if find_spec("braindecode") is None:
        raise InputError(
            f"the EEG encoder {name} needs braindecode, which is not installed; type: "
            "pip install -e '.[braindecode]' -c constraints.txt"
        )


def _headless_network(
    name: str, n_chans: int, n_times: int, sfreq: float, dropout: float
) -> nn.Module:
    """braindecode's network; nn.Identity replaces its classification head."""
    check_installed(name)
    from braindecode import models  # imported here, because braindecode is an optional package

    common = {
        "n_chans": n_chans,
        "n_times": n_times,
        "sfreq": sfreq,
        "drop_prob": dropout,
        "n_outputs": 1,
    }
    if name == "eegnet":
        network = models.EEGNet(
            **common, kernel_length=round(sfreq / 2), final_layer_with_constraint=True
        )
    elif name == "shallow":
        network = models.ShallowFBCSPNet(**common)
    elif name == "deep4":
        network = models.Deep4Net(**common, **({} if n_times >= DEEP4_SAMPLES else DEEP4_SHORT))
    else:
        network = models.EEGConformer(**common, att_drop_prob=dropout)
        network.fc = nn.Identity()  # the first layers of its head

    network.final_layer = nn.Identity()
    return network
