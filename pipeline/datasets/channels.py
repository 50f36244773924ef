"""The channels that `preprocess.channels` asks for."""

from collections.abc import Sequence
from typing import Literal

from pipeline.errors import InputError, suggestion

# The channels that THINGS-EEG2 released, in its order: `preprocess.channels: posterior`.
POSTERIOR = (
    *("Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5"),
    *("PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2"),
)

ChannelChoice = Literal["all", "posterior"] | Sequence[str]  # preprocess.channels


def choose_channels(ch_names: Sequence[str], choice: ChannelChoice, file: str) -> list[str]:
    """Those of `ch_names` that are chosen, in the order asked for.

    Raises InputError where a channel is absent from `file` or is named twice.
    """
    names = {"all": ch_names, "posterior": POSTERIOR}[choice] if isinstance(choice, str) else choice
    if not names or len(set(names)) != len(names):
        raise InputError(
            f"preprocess.channels is {' '.join(names) or 'empty'}; name each wanted channel once"
        )

    absent = [name for name in names if name not in ch_names]
    if absent:
        raise InputError(
            f"{file}: has no channel {absent[0]!a} (preprocess.channels), it has "
            f"{' '.join(ch_names)}" + suggestion(absent[0], ch_names)
        )
    return list(names)
