"""The baseline beside every run: ridge on the same EEG and embeddings, by the same protocol.

It is fitted and scored on the test images here, without the curves of an evaluation. Nothing of a
training decides it, so that another number of epochs does not run it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.compute.devices import be_deterministic, pick_device
from pipeline.errors import PREPARE_AGAIN, InputError
from pipeline.evaluate.evaluation import describe_interval
from pipeline.evaluate.scoring import score_average
from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import draw_resamples, mean_by_subject
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.recordings import read_split
from pipeline.sections import Train
from pipeline.train.closed_form import UNUSED, fit
from pipeline.train.draws import derive_seeds
from pipeline.train.inputs import (
    HashedFile,
    People,
    cached_embeddings,
    training_eeg,
    training_files,
)
from pipeline.train.notes import note
from pipeline.train.protocols import Run
from pipeline.train.training import Partition, Setup, Trained

BASELINE = "ridge"  # of the table of EEG encoders


@dataclass(frozen=True)
class Baseline:
    """The scores of each fold and subject, with the images in one order.

    `fits` has a row a fold and subject: `fold`, `subject`, `penalty`, `held_out_r2`.
    """

    image_ids: np.ndarray  # (N,) str
    concept: np.ndarray  # (N,) str
    things_concept: np.ndarray  # (N,) str
    results: list[SubjectResult]
    fits: pd.DataFrame


def baseline_recipe(**choices: Any) -> Train:
    """The section `train` of a baseline: these keys, and a fixed value for all that it ignores."""
    fixed = {"eeg_encoder": BASELINE, "control": "none"}
    return Train.model_validate(fixed | UNUSED | choices)


def fit_baseline(people: People, cache: HashedFile, recipe: Train, seed: int) -> Baseline:
    """Ridge in each fold of the protocol, on the test images of its subjects.

    `seed` is a name alone. InputError where the EEG, embeddings or memory do not suffice.
    """
    embeddings = cached_embeddings(cache, recipe)
    eeg = people.eeg
    runs = people.plan(recipe.protocol, [seed])
    first = read_split(eeg[runs[0].tested_on[0]].path, "test", average=True)
    image_ids = first.image_ids
    values = torch.from_numpy(embeddings.values[embeddings.rows(image_ids)])

    results = []
    fits = []
    for run in runs:
        trained = _fit(run, eeg, embeddings, recipe)
        notes = note(run, trained, embeddings, recipe)
        of_fit = {name: notes[name] for name in ("penalty", "held_out_r2")}
        for subject in run.tested_on:
            average = _test_eeg(eeg[subject], image_ids)
            results.append(score_average(trained.model, notes, subject, average, values))
            fits.append({"fold": run.fold, "subject": subject, **of_fit})
    return Baseline(
        image_ids, first.concept_in_split, first.things_concept, results, pd.DataFrame(fits)
    )


def _fit(run: Run, eeg: Mapping[str, HashedFile], embeddings: Embeddings, recipe: Train) -> Trained:
    """The model of a run, on the CPU."""
    device = pick_device(recipe.device)
    be_deterministic(device)
    loaded = training_eeg(training_files([run], eeg))
    samples = loaded.samples([eeg[name].path for name in run.trained_on], embeddings)

    targets = None if embeddings.targets is None else torch.from_numpy(embeddings.targets)
    setup = Setup(samples, torch.from_numpy(embeddings.values), recipe, device, targets)
    rows = np.flatnonzero(np.isin(samples.subject, run.trained_on))
    trained = fit(setup, Partition(derive_seeds(run.seed, run.fold), rows))
    return replace(trained, model=trained.model.cpu())


def _test_eeg(file: HashedFile, image_ids: np.ndarray) -> np.ndarray:
    """The averaged responses (N, C, T) of a subject to these images, in their order."""
    recording = read_split(file.path, "test", average=True)
    row_of_image = {image_id: row for row, image_id in enumerate(recording.image_ids)}
    if row_of_image.keys() != set(image_ids):
        raise InputError(
            f"{recording.subject}: the test images are not those of the first subject; "
            "set `subjects` to those who saw the same"
        )
    if not np.isfinite(recording.eeg).all():
        raise InputError(
            f"{recording.subject}: the test EEG holds values that are not finite; {PREPARE_AGAIN}"
        )
    return recording.eeg[[row_of_image[image_id] for image_id in image_ids]]


def tabulate_baseline(
    baseline: Baseline, protocol: str, top_k: Sequence[int], n_resamples: int, seed: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Top-k with their 95 % intervals, by name with `ridge_` before it; and a row a subject."""
    n_images = len(baseline.image_ids)
    subjects = [result.subject for result in baseline.results]
    ranks = [result.queries()["rank"] for result in baseline.results]
    resamples = draw_resamples(len(set(subjects)), n_images, n_resamples, seed)
    one_subject = draw_resamples(1, n_images, n_resamples, seed)

    table = baseline.fits.copy()
    summary: dict[str, Any] = {}
    for k in top_k:
        table[f"top{k}_acc"] = [(rank <= k).mean() for rank in ranks]
        correct = mean_by_subject(subjects, [rank <= k for rank in ranks])
        low, high = resamples.interval_of_mean(correct)
        summary |= {
            f"{BASELINE}_top{k}_acc": float(correct.mean()),
            f"{BASELINE}_top{k}_acc_low": low,
            f"{BASELINE}_top{k}_acc_high": high,
        }

    ends = [one_subject.interval_of_mean(rank[None] == 1) for rank in ranks]
    table["top1_acc_low"], table["top1_acc_high"] = np.transpose(ends)
    interval = describe_interval(baseline.fits, protocol, without_seeds=True)
    return summary | {f"{BASELINE}_{name}": value for name, value in interval.items()}, table
