"""The table of EEG encoders: each value of `train.eeg_encoder`, and the class that it stands for.

To add an encoder, write a subclass of `encoder.EegEncoder` and add a line to the table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.eeg_encoders.atm import AtmS
from pipeline.eeg_encoders.braindecode_networks import BraindecodeEncoder
from pipeline.eeg_encoders.encoder import EegEncoder
from pipeline.eeg_encoders.flatten import Flatten
from pipeline.eeg_encoders.nice import Nice, NiceRecipe
from pipeline.eeg_encoders.pretrained import CBraMod, Labram, Reve
from pipeline.eeg_encoders.ridge import Ridge
from pipeline.errors import InputError, suggestion
from pipeline.sections import Train

EEG_ENCODERS: dict[str, Callable[..., EegEncoder]] = {
    "nice-recipe": NiceRecipe,
    "nice": Nice,
    "atm-s": AtmS,
    "flatten": Flatten,
    "ridge": Ridge,
    "eegnet": partial(BraindecodeEncoder, "eegnet"),
    "shallow": partial(BraindecodeEncoder, "shallow"),
    "deep4": partial(BraindecodeEncoder, "deep4"),
    "eegconformer": partial(BraindecodeEncoder, "eegconformer"),
    "labram": Labram,
    "cbramod": CBraMod,
    "reve": Reve,
}


def make_eeg_encoder(
    name: str,
    *,
    n_chans: int,
    n_times: int,
    sfreq: float,
    dropout: float,
    ch_names: Sequence[str] = (),
    frozen: bool = False,
) -> EegEncoder:
    """A freshly initialised encoder for EEG (B, n_chans, n_times) at `sfreq` (Hz).

    Only a pretrained encoder uses `ch_names`, the names of the channels, and can be `frozen`. Its
    method `load_pretrained` reads its weights.

    InputError for an unknown name, for too few samples, for a channel that the encoder does not
    know, and where the encoder needs braindecode and braindecode is not installed.
    """
    if name not in EEG_ENCODERS:
        near = suggestion(name, EEG_ENCODERS)
        names = ", ".join(EEG_ENCODERS)
        raise InputError(f"train.eeg_encoder = {name} is not known: choose one of {names}{near}")

    arguments: dict[str, Any] = {
        "n_chans": n_chans,
        "n_times": n_times,
        "sfreq": sfreq,
        "dropout": dropout,
    }
    if is_pretrained(name):
        arguments |= {"ch_names": ch_names, "frozen": frozen}
    return EEG_ENCODERS[name](**arguments)


def can_be_stacked(name: str) -> bool:
    """Whether many models with this encoder can be trained at once, see `EegEncoder.stackable`."""
    return _class_of(name).stackable


def is_pretrained(name: str) -> bool:
    """Whether this encoder starts from the user's file of weights (`train.eeg_weights`)."""
    return _class_of(name).pretrained


def has_closed_form(name: str) -> bool:
    """Whether the weights are found at once, without seeds and epochs: see `EegEncoder.fit`."""
    return _class_of(name).closed_form


def caveats_of(name: str) -> tuple[str, ...]:
    """Sentences that every result with this encoder must say."""
    return _class_of(name).caveats


def check_recipe(name: str, recipe: Train) -> None:
    """InputError where a recipe cannot train this encoder, such as one that is pretrained."""
    if is_pretrained(name) and not recipe.standardise_eeg:
        raise InputError(
            f"train.standardise_eeg is false, and the EEG encoder {name} is pretrained on EEG of a "
            "known size: set it to true"
        )
    if recipe.eeg_encoder_frozen and not is_pretrained(name):
        raise InputError(
            f"train.eeg_encoder_frozen is true, and the EEG encoder {name} is not pretrained, so "
            "that it would keep random weights: set it to false, or choose labram, cbramod or reve"
        )
    if has_closed_form(name) and recipe.block == "mix":
        raise InputError(
            f"train.block is mix, and the EEG encoder {name} learns no weights of blocks: set it "
            "to last or to the number of one block"
        )
    if has_closed_form(name) and recipe.select_on == "test":
        raise InputError(
            f"train.select_on is test, and the EEG encoder {name} has no epochs, and chooses its "
            "penalty on held-out training concepts alone: set it to validation or last"
        )


def weight_files(name: str, folder: str) -> list[Path]:
    """The files that this encoder starts from, by `train.eeg_weights`; none if not pretrained.

    InputError where the folder lacks one of them.
    """
    return _class_of(name).weight_files(folder)


def _class_of(name: str) -> type[EegEncoder]:
    """The class behind an entry; for an unknown name the base class, which can nothing."""
    entry = EEG_ENCODERS.get(name)
    if isinstance(entry, partial):
        entry = entry.func
    return entry if isinstance(entry, type) and issubclass(entry, EegEncoder) else EegEncoder
