"""The table of EEG encoders: a name of `train.eeg_encoder`, and what makes it; see `encoder.EegEncoder`.

Another encoder is a class and a line here.
"""

from collections.abc import Callable
from functools import partial

from pipeline.eeg_encoders.atm import AtmS
from pipeline.eeg_encoders.braindecode_networks import BraindecodeEncoder
from pipeline.eeg_encoders.encoder import EegEncoder
from pipeline.eeg_encoders.nice import Nice, NiceRecipe
from pipeline.errors import InputError, suggestion

EEG_ENCODERS: dict[str, Callable[..., EegEncoder]] = {
    "nice-recipe": NiceRecipe,
    "nice": Nice,
    "atm-s": AtmS,
    "eegnet": partial(BraindecodeEncoder, "eegnet"),
    "shallow": partial(BraindecodeEncoder, "shallow"),
    "deep4": partial(BraindecodeEncoder, "deep4"),
    "eegconformer": partial(BraindecodeEncoder, "eegconformer"),
}


def make_eeg_encoder(
    name: str, *, n_chans: int, n_times: int, sfreq: float, dropout: float
) -> EegEncoder:
    """A freshly initialised encoder for EEG (B, n_chans, n_times) at `sfreq` (Hz).

    Raises InputError for an unknown name, for too few samples and, for braindecode's, where it is not installed.
    """
    if name not in EEG_ENCODERS:
        near = suggestion(name, EEG_ENCODERS)
        raise InputError(
            f"train.eeg_encoder = {name} is not known: choose one of {', '.join(EEG_ENCODERS)}{near}"
        )
    return EEG_ENCODERS[name](n_chans=n_chans, n_times=n_times, sfreq=sfreq, dropout=dropout)


def can_be_stacked(name: str) -> bool:
    """Whether models with this encoder can be trained many at once, see `EegEncoder.stackable`."""
    made_by = EEG_ENCODERS.get(name)
    return isinstance(made_by, type) and issubclass(made_by, EegEncoder) and made_by.stackable
