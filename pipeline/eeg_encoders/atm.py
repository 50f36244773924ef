"""ATM with the ShallowNet-like convolution, arXiv 2403.07721.

Layers as in https://github.com/dongyangli-del/EEG_Image_decode (models/atms.py), which starts from torch's own first
weights. Deliberate differences: see `AtmS`.
"""

import math

import torch
from torch import Tensor, nn

from pipeline.eeg_encoders.encoder import EegEncoder, require_samples
from pipeline.eeg_encoders.nice import Nice


class AtmS(EegEncoder):
    """EEG (B, C, T) -> features: one transformer layer whose tokens are the channels, then NICE's convolutions.

    Deliberate differences from the published code, whose MLP projector is not part of this encoder:

    * Nothing belongs to one subject (no subject token, no subject-wise layers), so that the encoder can be applied to
      a subject who was not in training.
    * The position of the channel is added to each token, a fixed sinusoid, as in the paper; the code leaves it out.
    * The width of the tokens is the number of samples, rounded up to a multiple of the heads (published: 250 for 250
      samples, with heads of 62).
    * `dropout` is that of the convolutions; in the transformer it is half of it (published: 0.5 and 0.25).
    """

    HEADS = 4
    HIDDEN = 256

    def __init__(self, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        require_samples("atm-s", n_times, Nice.WINDOW)
        width = math.ceil(n_times / self.HEADS) * self.HEADS
        self.embed = nn.Linear(n_times, width)
        self.register_buffer("positions", sinusoids(n_chans, width), persistent=False)
        self.dropout = nn.Dropout(dropout / 2)
        self.attend = nn.TransformerEncoderLayer(
            width, self.HEADS, self.HIDDEN, dropout / 2, activation="gelu", batch_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.convolutions = Nice(n_chans, width, sfreq, dropout)
        self.output_size = self.convolutions.output_size

    def plain(self, eeg: Tensor) -> Tensor:
        """The layers one after the other: what `forward` must equal."""
        return self.convolutions.plain(self.attended(eeg))

    def forward(self, eeg: Tensor) -> Tensor:
        return self.convolutions(self.attended(eeg))

    def attended(self, eeg: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, width)."""
        return self.norm(self.attend(self.dropout(self.embed(eeg) + self.positions)))


def sinusoids(n_positions: int, width: int) -> Tensor:
    """Sines (even columns) and cosines (odd columns) of falling frequency: (n_positions, width), as in 1706.03762."""
    rate = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(n_positions)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
