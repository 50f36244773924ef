"""The table of EEG encoders: each value of `train.eeg_encoder`, and the class that it stands for.

To add an encoder, write a subclass of `encoder.EegEncoder` and add a line to the table.
"""

from collections.abc import Callable
from functools import partial

from pipeline.eeg_encoders.atm import AtmS
from pipeline.eeg_encoders.braindecode_networks import BraindecodeEncoder
from pipeline.eeg_encoders.encoder import EegEncoder
from pipeline.eeg_encoders.flatten import Flatten
from pipeline.eeg_encoders.nice import Nice, NiceRecipe
from pipeline.errors import InputError, suggestion

EEG_ENCODERS: dict[str, Callable[..., EegEncoder]] = {
    "nice-recipe": NiceRecipe,
    "nice": Nice,
    "atm-s": AtmS,
    "flatten": Flatten,
    "eegnet": partial(BraindecodeEncoder, "eegnet"),
    "shallow": partial(BraindecodeEncoder, "shallow"),
    "deep4": partial(BraindecodeEncoder, "deep4"),
    "eegconformer": partial(BraindecodeEncoder, "eegconformer"),
}


def make_eeg_encoder(
    name: str, *, n_chans: int, n_times: int, sfreq: float, dropout: float
) -> EegEncoder:
    """A freshly initialised encoder for EEG (B, n_chans, n_times) at `sfreq` (Hz).

    InputError for an unknown name, for too few samples, and where the encoder needs braindecode
    and braindecode is not installed.
    """
    if name not in EEG_ENCODERS:
        near = suggestion(name, EEG_ENCODERS)
        names = ", ".join(EEG_ENCODERS)
        raise InputError(f"train.eeg_encoder = {name} is not known: choose one of {names}{near}")
    return EEG_ENCODERS[name](n_chans=n_chans, n_times=n_times, sfreq=sfreq, dropout=dropout)


def can_be_stacked(name: str) -> bool:
    """Whether many models with this encoder can be trained at once, see `EegEncoder.stackable`."""
    encoder_class = EEG_ENCODERS.get(name)
    if not isinstance(encoder_class, type):  # a partial of a class that is not stackable
        return False
    return issubclass(encoder_class, EegEncoder) and encoder_class.stackable
