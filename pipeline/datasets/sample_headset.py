"""A second recording of the sample's pictures: other people, with a consumer headset.

Published: nothing; all of it is made here, as in `sample`. With both recordings, models of one can
be tested on the people of the other.

Pictures and metadata are those of `sample` to the last byte, and so is what the EEG responds to
(`sample.truth`). The rest is as it is between a laboratory and a headset: other people, 32 channels
in an order of their own, weaker responses, more noise and fewer repetitions. The channels hold the
17 of `sample`; there, and by their names, people of both recordings respond alike in part
(`IN_COMMON`).
"""

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.datasets import sample
from pipeline.datasets.sample import Recording, Size, Truth

SUBJECTS = ("sub-01", "sub-02", "sub-03")
# Those of the consumer headset of Alljoined-1.6M, in its order
CH_NAMES = ["Cz", "FCz", "AFz", "Fp1", "F5", "F1", "CP5", "CP3", "CP1", "P1", "P3", "P5", "P7"]
CH_NAMES += ["PO7", "PO3", "O1", "Pz", "POz", "Oz", "O2", "PO4", "PO8", "P8", "P6", "P4", "P2"]
CH_NAMES += ["CP2", "CP4", "CP6", "F2", "F6", "Fp2"]

SIZE = Size(train_repetitions=2, test_repetitions=12)
# At a channel of `sample`, the correlation of what all people share there and here
IN_COMMON = 0.7
RESPONSE = 0.55  # strength of a response, in those of `sample`
NOISE = 1.25  # standard deviation of the noise, in those of `sample`


def make_raw(
    subjects: list[str] | Literal["all"],
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    size: Size = SIZE,
    truth: Truth = "aligned",
) -> None:
    """Write the EEG, the images and the metadata as published, see `sample.make_recording`."""
    headset = Recording(
        "sample-headset", "eeg of the headset", SUBJECTS, CH_NAMES, draw_kernel, NOISE
    )
    sample.make_recording(headset, subjects, eeg_dir, images_dir, metadata, size, truth)


def draw_kernel(rng: np.random.Generator) -> np.ndarray:
    """The response to each of the F contents, (F, 32, 100): by channels and times.

    When a response comes is as in `sample`. How it is mixed into channels is in part that of
    `sample`, in part the headset's, and in part the subject's own, drawn with `rng`.
    """
    bumps, laboratory = sample.shared_kernel()
    n_contents = laboratory.shape[1]

    mixing = sample.draws("kernel of the headset").standard_normal((2, n_contents, len(CH_NAMES)))
    in_both = [CH_NAMES.index(name) for name in sample.CH_NAMES]
    own = np.sqrt(1 - IN_COMMON**2) * mixing[..., in_both]
    mixing[..., in_both] = IN_COMMON * laboratory + own
    return RESPONSE * sample.mix(bumps, mixing, rng)
