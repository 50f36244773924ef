"""One file of somebody's own EEG or MEG, opened by MNE: epochs, or a raw recording of a BIDS root.

Read as `mne.read_epochs`, `mne.read_epochs_eeglab` and `mne_bids.read_raw_bids` read it, in V (EEG)
or T and T/m (MEG). So projections that the file holds are applied to the values that MNE returns.
"""

from contextlib import AbstractContextManager
from pathlib import Path

import mne  # loads its modules at the first use, so its types are in quotes here
import numpy as np

from pipeline.datasets.mne_files import faults_as_input_errors, fif_parts
from pipeline.errors import InputError

EPOCHS_SUFFIXES = (".fif", ".set")
EPOCHS_AGAIN = (
    "see whether mne.read_epochs (of .set: mne.read_epochs_eeglab) can read it, and write it anew"
)
RAW_AGAIN = "see whether mne_bids.read_raw_bids can read it, and correct what that says"


def open_epochs(path: Path) -> "mne.BaseEpochs":
    """The epochs of a FIF file (`-epo.fif`, with the parts that follow it) or of an EEGLAB `.set`.

    The values of a FIF file stay on the disk until they are asked for; those of a `.set` are in
    memory, float64. Raises InputError where the file cannot be read, is of another kind, or has
    neither EEG nor MEG channels.
    """
    if path.suffix not in EPOCHS_SUFFIXES:
        raise InputError(
            f"{path}: is not a file of epochs, expected .fif (MNE) or .set (EEGLAB); save it so, "
            "as with epochs.save in MNE"
        )

    # MNE would also warn of events that are not in the order of time, which changes nothing here.
    with _epochs_faults(path), mne.utils.use_log_level("error"):
        if path.suffix == ".set":
            # eog: EEGLAB has no type of channel in each file, and VEOG would be EEG.
            epochs = mne.read_epochs_eeglab(path, eog="auto")
        else:
            # Looked at first: MNE would open any file that a part names.
            fif_parts(path)
            epochs = mne.read_epochs(path, preload=False)
    _require_data(epochs.info, path)
    return epochs


def open_raw(path: Path) -> "mne.io.BaseRaw":
    """A continuous recording in a BIDS root, its values on the disk until they are asked for.

    Types and units of the channels, and which of them are bad, are those of channels.tsv; sensor
    positions those of electrodes.tsv. Raises InputError where the file or what belongs to it cannot
    be read, or where it has neither EEG nor MEG channels.
    """
    # Imported here: it takes half a second, which epochs need not wait for.
    from mne_bids import get_bids_path_from_fname, read_raw_bids

    with faults_as_input_errors(path, "a raw recording of a BIDS root", RAW_AGAIN):
        if path.suffix == ".fif":
            fif_parts(path)
        raw = read_raw_bids(get_bids_path_from_fname(path, verbose="error"), verbose="error")
    _require_data(raw.info, path)
    return raw


def epochs_files(path: Path) -> list[Path]:
    """The files that `open_epochs` reads: this one, then what it leads to, so that all can be
    hashed. Raises InputError where it cannot be read.
    """
    with _epochs_faults(path):
        if path.suffix == ".fif":
            return fif_parts(path)
    # EEGLAB writes the values into the .set, or into a file of the same name beside it.
    values = path.with_suffix(".fdt")
    return [path, values] if values.is_file() else [path]


def pick_data(info: "mne.Info") -> np.ndarray:
    """The positions (C,) of the channels that are used, int, in the order of the file.

    EEG if there are EEG channels, else MEG (magnetometers and gradiometers), never both. Bad
    channels are among them; EOG, stimulus and other channels are not. Empty where there are none,
    which `open_epochs` and `open_raw` refuse.
    """
    eeg = mne.pick_types(info, eeg=True, exclude=[])
    if len(eeg):
        return np.asarray(eeg)
    return np.asarray(mne.pick_types(info, meg=True, ref_meg=False, exclude=[]))


def _epochs_faults(path: Path) -> AbstractContextManager[None]:
    return faults_as_input_errors(path, "epochs of MNE or EEGLAB", EPOCHS_AGAIN)


def _require_data(info: "mne.Info", path: Path) -> None:
    if not len(pick_data(info)):
        types = ", ".join(sorted(set(info.get_channel_types())))
        raise InputError(
            f"{path}: has no EEG and no MEG channel, its channels are of type {types}; set their "
            "types (epochs.set_channel_types in MNE, the column `type` of channels.tsv in BIDS)"
        )
