"""Published figures on THINGS-EEG2, 200-way, each with its protocol: what a result may be read beside.

Unlike protocols do not compare: trained on a subject and tested on the same (within-subject), tested on a subject who
was not in training (leave-one-subject-out), or trained on all ten together and tested on each of them (pooled).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Accuracies in percent, means over 10 subjects."""

    method: str
    source: str
    protocol: str
    top1: float
    top5: float | None
    note: str


_RECIPE = (
    "re-implementation of arXiv 2502.03081",
    "pooled",
    "17 channels, 100 Hz, one seed; epoch chosen on the test set",
)
_PAPER = "arXiv 2502.03081", "within-subject", "63 channels, 250 Hz, 5 seeds; as others quote it"
_NICE = "scored against other images of the concept: another task"
_SHALLOW = "middle layers of the image encoder, 5 seeds"
_SHALLOW_LEFT_OUT = f"{_SHALLOW}; table 1 of its first version, others quote 22.4 / 50.8"
_UBP = "17 channels, 250 Hz; stops on the training loss, last epoch reached"
_UBP_LEFT_OUT = "17 channels, 250 Hz; stops on other subjects' responses to the test images"
_NEUROBRIDGE = "its code writes the epoch with the lowest test loss, and the last; which is printed is not known"
_SAMGA = "stops and selects on test top-1"


def _both(method: str, source: str, within: tuple[float, float], left_out: tuple[float, float], *notes: str) -> list:
    """Both protocols; one note for both, or one each."""
    protocols = (("within-subject", within, notes[0]), ("leave-one-subject-out", left_out, notes[-1]))
    return [Published(method, source, protocol, *accuracies, note) for protocol, accuracies, note in protocols]


PUBLISHED = (
    Published("NICE + SynCLR, unaligned", _RECIPE[0], _RECIPE[1], 47.7, 79.9, _RECIPE[2]),
    Published("NICE + SynCLR, aligned", _RECIPE[0], _RECIPE[1], 65.0, 92.3, _RECIPE[2]),
    Published("NICE + SynCLR, unaligned", _PAPER[0], _PAPER[1], 44.2, None, _PAPER[2]),
    Published("NICE + SynCLR, aligned", _PAPER[0], _PAPER[1], 58.4, None, _PAPER[2]),
    *_both("NICE", "arXiv 2308.13234", (16.1, 43.6), (6.2, 21.4), _NICE),
    *_both("ATM-S", "arXiv 2403.07721", (28.5, 60.4), (11.8, 33.7), "best test epoch"),
    *_both("UBP", "arXiv 2503.04207", (50.9, 79.7), (12.4, 33.4), _UBP, _UBP_LEFT_OUT),
    *_both("NeuroBridge", "arXiv 2511.06836", (63.2, 89.9), (19.0, 45.9), _NEUROBRIDGE),
    *_both("Shallow Alignment", "arXiv 2601.21948", (82.6, 97.7), (21.8, 49.4), _SHALLOW, _SHALLOW_LEFT_OUT),
    *_both("SAMGA", "arXiv 2604.17782", (91.3, 98.8), (34.4, 64.8), _SAMGA),
)
