"""No encoder at all: the EEG as one row of numbers.

With the EEG's projector of `train/model.py` behind it, this is the multilayer perceptron that three
groups use as their EEG encoder. Their layers, with 17 channels and 250 samples: 4250 values,
Linear to 1024, a residual of [GELU, Linear, Dropout 0.3], LayerNorm: 5,404,672 parameters.

Papers: UBP, arXiv 2503.04207; NeuroBridge, arXiv 2511.06836; SAMGA, arXiv 2604.17782.
Code: github.com/HaitaoWuTJU/Uncertainty-aware-Blur-Prior, class EEGProjectLayer;
github.com/feroooooo/NeuroBridge and github.com/LinJiang8/SAMGA, class EEGProject.
"""

from torch import Tensor

from pipeline.eeg_encoders.encoder import EegEncoder


class Flatten(EegEncoder):
    """EEG (..., B, C, T) float -> (..., B, C * T), channel after channel. It has no weights.

    So `draw_weights` draws nothing: the projector starts as torch draws it, as in the codes above.
    """

    stackable = True

    def __init__(self, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        self.output_size = n_chans * n_times

    def forward(self, eeg: Tensor) -> Tensor:
        return eeg.flatten(-2)
