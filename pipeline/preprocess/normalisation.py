"""Each channel of a response centred and divided by its norm: `preprocess.normalise`.

As in the code of arXiv 2502.03081 (https://github.com/NonaRjb/AlignVis), which does it to each
repetition of EEG before it averages them (`trial`), and to the average of the repetitions of MEG
(`average`). Deliberate difference: the code adds 1e-8 to the norm. Here nothing is added, so that
the unit does not matter, and a channel that is 0 at all times stays 0.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:  # preparing EEG needs no torch, which takes a second to load
    from torch import Tensor

Eeg = TypeVar("Eeg", np.ndarray, "Tensor")


def normalise(eeg: Eeg) -> Eeg:
    """(x - mean(x)) / ||x|| over time, of EEG (..., C, T), floating point: the same shape and type.

    ||x|| is the norm before the mean is taken out, so that a second call changes the values again.
    """
    mean = eeg.mean(-1)[..., None]
    norm = (eeg**2).sum(-1)[..., None] ** 0.5
    return (eeg - mean) / (norm + (norm == 0))
