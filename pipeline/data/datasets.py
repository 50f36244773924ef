"""The datasets by name. To add one, add an entry here: everything else takes what the entry says."""

from dataclasses import replace

from pipeline.data import sample, sources, things_eeg2
from pipeline.data.entry import Dataset
from pipeline.data.published import ON_THINGS_EEG2

THINGS_EEG2 = Dataset(
    source=sources.THINGS_EEG2,
    find_subjects=things_eeg2.find_subjects,
    read_metadata=things_eeg2.read_metadata,
    open_eeg=things_eeg2.open_eeg,
    open_images=things_eeg2.open_images,
    units="as released: whitened (multivariate noise normalisation), no physical unit",
    caveats=(
        "The release was whitened with a covariance of training and test EEG together: everybody who uses it shares "
        "that leak.",
    ),
    published=ON_THINGS_EEG2,
)

# In the published layout, so that all that reads the published data reads it too.
SAMPLE = replace(THINGS_EEG2, source=sample.make_raw, caveats=(), may_share_images=True, synthetic=True)

DATASETS: dict[str, Dataset] = {"sample": SAMPLE, "things-eeg2": THINGS_EEG2}
