"""The results of a study: a grid of cells, in each of which both image encoders were trained."""

from dataclasses import dataclass

import numpy as np

from pipeline.train.protocols import Run


@dataclass(frozen=True, order=True)
class Cell:
    """One comparison of the two image encoders, which have all other choices in common.

    `trained_dataset` and `tested_dataset` are the datasets whose people train the models and test
    them. They differ in the protocol across alone.
    """

    backbone: str
    alignment: str
    block: str
    eeg_encoder: str
    protocol: str
    trained_dataset: str
    tested_dataset: str


@dataclass(frozen=True)
class Trial:
    """One training: a run of the cell's protocol, with the unaligned or the aligned encoder."""

    cell: Cell
    encoder: str
    run: Run


@dataclass(frozen=True)
class TrialResult:
    """One trained model on one subject's test EEG.

    `queries` are the figures of `retrieval.score_queries` for each of the N test images: (N,)
    float64 by name.
    """

    trial: Trial
    subject: str
    selected_epoch: int
    collapsed: bool
    device: str
    seconds: float
    queries: dict[str, np.ndarray]
