"""Answers of a study that nobody trained: which images each run retrieves first is drawn, or said."""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from pipeline.sections import Across
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.train.protocols import Run, plan, plan_across

ENCODERS = ("unaligned", "aligned")
FACTS = {
    "dataset": "things-eeg2",
    "synthetic": False,
    "selected_on": "validation",
    "caveats": ["A caveat."],
}


def cells(
    backbones: Iterable[str] = ("clip_vitb32", "synclr_vitb16"),
    eeg_encoders: Iterable[str] = ("atm-s", "nice"),
    protocols: Iterable[str] = ("pooled",),
    blocks: Iterable[str] = ("last",),
    datasets: Iterable[tuple[str, str]] = (("things-eeg2", "things-eeg2"),),
) -> list[Cell]:
    """`datasets` are pairs, of which the first one trains and the second one is tested."""
    grid = product(backbones, blocks, eeg_encoders, protocols, datasets)
    return [
        Cell(backbone, "dreamsim", block, eeg, protocol, *pair)
        for backbone, block, eeg, protocol, pair in grid
    ]


def trials(cell: Cell, subjects: Sequence[str], seeds: Iterable[int]) -> list[Trial]:
    return [
        Trial(cell, encoder, run)
        for encoder in ENCODERS
        for run in runs(cell.protocol, subjects, list(seeds))
    ]


def runs(protocol: str, subjects: Sequence[str], seeds: list[int]) -> list[Run]:
    """In the protocol across one model of two people of another recording, tested on `subjects`."""
    if protocol != "across":
        return plan(protocol, list(subjects), seeds)
    across = Across(
        dataset="alljoined", subjects="all", train_on="first", models="pooled", test_on="second"
    )
    return plan_across(across, ["other-01", "other-02"], subjects, seeds)


def names(n: int) -> list[str]:
    return [f"sub-{i:02}" for i in range(1, n + 1)]


def answer(trial: Trial, subject: str, right: np.ndarray, collapsed: bool = False) -> TrialResult:
    """One that has these of the N images first, and each other one second."""
    others = np.zeros(len(right))
    queries = {"nice_loss": 1 + others, "matched_cosine": 0.5 + others, "mismatched_cosine": others}
    ranks = dict.fromkeys(("rank", "image_to_eeg_rank"), np.where(right, 1.0, 2.0))
    queries |= {"mismatched_square": others, **ranks}
    return TrialResult(trial, subject, 7, collapsed, "cpu", 1.5, queries)


def draw(
    of: Sequence[Cell],
    n_subjects: int,
    seeds: Iterable[int],
    gains: Sequence[float],
    n_images: int = 50,
    rng: int = 0,
) -> list[TrialResult]:
    """Random answers of a grid: in cell i the aligned encoder has top-1 higher by about gains[i].

    Some people's EEG tells more than others', and some images are easier, for all; each run has some luck.
    """
    random, seeds = np.random.default_rng(rng), list(seeds)
    people, images = (
        0.1 * random.standard_normal(n_subjects),
        0.15 * random.standard_normal(n_images),
    )
    answers = []
    for cell, gain in zip(of, gains, strict=True):
        for trial in trials(cell, names(n_subjects), seeds):
            top1 = 0.4 + gain * (trial.encoder == "aligned") + 0.01 * random.standard_normal()
            for subject in trial.run.tested_on:
                chance = top1 + people[int(subject[-2:]) - 1] + images
                answers.append(answer(trial, subject, random.random(n_images) < chance))
    return answers
