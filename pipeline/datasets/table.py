"""The datasets by name. To add one, add an entry: the rest of the library takes what it says."""

from dataclasses import replace

from pipeline.datasets import (
    alljoined,
    sample,
    sample_headset,
    sources,
    things_eeg2,
    things_eeg2_raw,
    things_meg,
)
from pipeline.datasets.entry import Dataset
from pipeline.datasets.image_table import read_image_table
from pipeline.datasets.own import eeg
from pipeline.datasets.published import ON_THINGS_EEG2

THINGS_EEG2 = Dataset(
    source=sources.THINGS_EEG2,
    find_subjects=things_eeg2.find_subjects,
    read_metadata=things_eeg2.read_metadata,
    open_eeg=things_eeg2.open_eeg,
    memory_needed=things_eeg2.memory_needed,
    units="as released: whitened (multivariate noise normalisation), no physical unit",
    caveats=(
        "The release was whitened with a covariance of training and test EEG together: everybody "
        "who uses it shares that leak.",
    ),
    human=sources.THINGS_SIMILARITY,
    published=ON_THINGS_EEG2,
)

# The synthetic sample has the published layout, so that the readers above read it too.
SAMPLE = replace(
    THINGS_EEG2,
    source=sample.make_raw,
    caveats=(),
    may_share_images=True,
    synthetic=True,
    planted=sample.PLANTED,
    human=sample.make_human,
)

# The same pictures, shown to other people with other channels.
SAMPLE_HEADSET = replace(SAMPLE, source=sample_headset.make_raw)

# The raw recordings: channels, rate, window and noise normalisation are free. The same images.
THINGS_EEG2_RAW = replace(
    THINGS_EEG2,
    source=sources.THINGS_EEG2_RAW,
    open_eeg=things_eeg2_raw.open_eeg,
    memory_needed=things_eeg2_raw.memory_needed,
    units=things_eeg2_raw.UNITS,
    caveats=(),
)

# The images of THINGS-EEG2, shown to other people with consumer hardware.
ALLJOINED = Dataset(
    source=sources.ALLJOINED,
    find_subjects=alljoined.find_subjects,
    read_metadata=things_eeg2.read_metadata,
    open_eeg=alljoined.open_eeg,
    memory_needed=alljoined.memory_needed,
    units=alljoined.UNITS,
    may_push_eeg=False,
    human=sources.THINGS_SIMILARITY,
)

THINGS_MEG = Dataset(
    source=sources.THINGS_MEG,
    find_subjects=things_meg.find_subjects,
    read_metadata=things_meg.read_metadata,
    open_eeg=things_meg.open_eeg,
    memory_needed=things_meg.memory_needed,
    units=things_meg.UNITS,
    caveats=things_meg.CAVEATS,
    human=sources.THINGS_SIMILARITY,
)

# The user's own recordings and pictures. Nobody has published anything on them.
OWN = Dataset(
    source=sources.OwnFiles(),
    find_subjects=eeg.find_subjects,
    read_metadata=read_image_table,
    open_eeg=eeg.open_eeg,
    memory_needed=eeg.memory_needed,
    units=eeg.UNITS,
    may_push_eeg=False,
)

DATASETS: dict[str, Dataset] = {
    "sample": SAMPLE,
    "sample-headset": SAMPLE_HEADSET,
    "things-eeg2": THINGS_EEG2,
    "things-eeg2-raw": THINGS_EEG2_RAW,
    "alljoined": ALLJOINED,
    "things-meg": THINGS_MEG,
    "own": OWN,
}
