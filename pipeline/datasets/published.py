"""Published figures to read a result beside, each with its task and protocol.

Only figures of the same protocol compare:
- within-subject: trained and tested on the same subject
- leave-one-subject-out: tested on a subject who was not in training
- pooled: trained on all subjects together, tested on each of them
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row: the accuracies of a method in percent, means over subjects."""

    task: str  # dataset, gallery and number of subjects, in words
    method: str
    paper: str  # that reports the figures
    protocol: str
    top1: float
    top5: float | None
    note: str


_EEG2 = "THINGS-EEG2, 200-way, mean of 10 subjects"
_PAPER = "arXiv 2502.03081"
_REIMPLEMENTATION = f"re-implementation of {_PAPER}"

# Protocols
_WITHIN = "within-subject"
_LEFT_OUT = "leave-one-subject-out"

# Notes
_OF_REIMPLEMENTATION = "17 channels, 100 Hz, one seed; epoch chosen on the test set"
_OF_PAPER = "63 channels, 250 Hz, 5 seeds; as others quote it"
_NICE = "scored against other images of the concept: another task"
_UBP = "17 channels, 250 Hz; stops on the training loss, last epoch reached"
_UBP_LEFT_OUT = "17 channels, 250 Hz; stops on other subjects' responses to the test images"
_NEUROBRIDGE = (
    "its code writes the epoch with the lowest test loss, and the last; which is printed is not "
    "known"
)
_SHALLOW = "middle layers of the image encoder, 5 seeds"
_SHALLOW_LEFT_OUT = f"{_SHALLOW}; table 1 of its first version, others quote 22.4 / 50.8"
_SAMGA = "stops and selects on test top-1"

ON_THINGS_EEG2 = (
    Published(
        _EEG2,
        "NICE + SynCLR, unaligned",
        _REIMPLEMENTATION,
        "pooled",
        47.7,
        79.9,
        _OF_REIMPLEMENTATION,
    ),
    Published(
        _EEG2,
        "NICE + SynCLR, aligned",
        _REIMPLEMENTATION,
        "pooled",
        65.0,
        92.3,
        _OF_REIMPLEMENTATION,
    ),
    Published(_EEG2, "NICE + SynCLR, unaligned", _PAPER, _WITHIN, 44.2, None, _OF_PAPER),
    Published(_EEG2, "NICE + SynCLR, aligned", _PAPER, _WITHIN, 58.4, None, _OF_PAPER),
    Published(_EEG2, "NICE", "arXiv 2308.13234", _WITHIN, 16.1, 43.6, _NICE),
    Published(_EEG2, "NICE", "arXiv 2308.13234", _LEFT_OUT, 6.2, 21.4, _NICE),
    Published(_EEG2, "ATM-S", "arXiv 2403.07721", _WITHIN, 28.5, 60.4, "best test epoch"),
    Published(_EEG2, "ATM-S", "arXiv 2403.07721", _LEFT_OUT, 11.8, 33.7, "best test epoch"),
    Published(_EEG2, "UBP", "arXiv 2503.04207", _WITHIN, 50.9, 79.7, _UBP),
    Published(_EEG2, "UBP", "arXiv 2503.04207", _LEFT_OUT, 12.4, 33.4, _UBP_LEFT_OUT),
    Published(_EEG2, "NeuroBridge", "arXiv 2511.06836", _WITHIN, 63.2, 89.9, _NEUROBRIDGE),
    Published(_EEG2, "NeuroBridge", "arXiv 2511.06836", _LEFT_OUT, 19.0, 45.9, _NEUROBRIDGE),
    Published(_EEG2, "Shallow Alignment", "arXiv 2601.21948", _WITHIN, 82.6, 97.7, _SHALLOW),
    Published(
        _EEG2, "Shallow Alignment", "arXiv 2601.21948", _LEFT_OUT, 21.8, 49.4, _SHALLOW_LEFT_OUT
    ),
    Published(_EEG2, "SAMGA", "arXiv 2604.17782", _WITHIN, 91.3, 98.8, _SAMGA),
    Published(_EEG2, "SAMGA", "arXiv 2604.17782", _LEFT_OUT, 34.4, 64.8, _SAMGA),
)
