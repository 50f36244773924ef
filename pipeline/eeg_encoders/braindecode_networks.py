"""braindecode's networks without their classification heads; their first weights are those that torch draws."""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.encoder import EegEncoder, require_samples
from pipeline.errors import InputError

LEAST_SAMPLES = {
    "eegnet": 32,
    "shallow": 99,
    "deep4": 76,
    "eegconformer": 99,
}  # leave one sample after the last pool
DEEP4_SAMPLES = 441
DEEP4_SHORT = {
    "filter_time_length": 5,
    "filter_length_2": 5,
    "filter_length_3": 5,
    "filter_length_4": 5,
    "pool_time_length": 2,
    "pool_time_stride": 2,
}


class BraindecodeEncoder(EegEncoder):
    """One of braindecode's networks up to its classification head, the output flattened.

    EEGNet, doi 10.1088/1741-2552/aace8c, with temporal filters of half a second as in that paper; ShallowFBCSPNet and
    Deep4Net, doi 10.1002/hbm.23730; EEGConformer, doi 10.1109/TNSRE.2022.3230250. Deep4Net is built for 441 samples or
    more; with less, its kernels are 5 and its pools 2 samples long, as in the EEGNet paper, which so adapted it to
    128 Hz (braindecode would shrink them until no pooling is left).
    """

    def __init__(self, name: str, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        require_samples(name, n_times, LEAST_SAMPLES[name])
        if n_chans < 2 and name in (
            "shallow",
            "deep4",
        ):  # braindecode merges two layers and fails for one channel
            raise InputError(
                f"train.eeg_encoder = {name} needs at least 2 channels: add to preprocess.channels"
            )
        self.network = _headless_network(name, n_chans, n_times, sfreq, dropout).eval()
        with torch.no_grad():
            self.output_size = self(torch.zeros(1, n_chans, n_times)).shape[1]
        self.train()

    def forward(self, eeg: Tensor) -> Tensor:
        return self.network(eeg).flatten(1)


def check_installed(name: str) -> None:
    """InputError where this EEG encoder is one of braindecode's, and that is not installed: told before any work."""
    if name in LEAST_SAMPLES and find_spec("braindecode") is None:
        raise InputError(
            f"the EEG encoder {name} needs braindecode, which is not installed; type: "
            "pip install -e '.[braindecode]' -c constraints.txt"
        )


def _headless_network(
    name: str, n_chans: int, n_times: int, sfreq: float, dropout: float
) -> nn.Module:
    """braindecode's network, its classification head replaced by nothing."""
    check_installed(name)
    from braindecode import models  # here: it is an extra

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
