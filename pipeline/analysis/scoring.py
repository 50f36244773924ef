"""Trained models on the test EEG of one subject after the other: the whole EEG, and EEG with something taken away."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.analysis.similarities import Scored
from pipeline.decoding.model import ContrastiveModel
from pipeline.decoding.retrieval import score_queries
from pipeline.decoding.training import EVALUATION_BATCH, project
from pipeline.eeg.masking import average_some, keep_window, mask_channel, windows
from pipeline.eeg.recordings import Recording
from pipeline.errors import InputError
from pipeline.images.embeddings import Embeddings
from pipeline.sections import Evaluate

WHOLE, WINDOW, CHANNEL = "whole", "window", "channel"  # variants of the EEG; the others are a number of repetitions


@dataclass(frozen=True)
class Axes:
    """What all subjects have in common; the first one decides the order of the images."""

    image_ids: np.ndarray  # (N,) str
    concept: np.ndarray  # (N,) str
    things_concept: np.ndarray  # (N,) str
    ch_names: tuple[str, ...]
    times: np.ndarray  # (T,), s
    n_repetitions: int
    windows: list[slice]  # of samples


@dataclass(frozen=True)
class Outcome:
    """One run on one subject: for each variant of the EEG what `score_queries` says of it, (V, N) float64."""

    scored: Scored
    queries: dict[str | int, dict[str, np.ndarray]]


def score(
    recordings: Iterable[Recording],
    models: list[tuple[ContrastiveModel, dict]],
    embeddings: Embeddings,
    parameters: Evaluate,
    seed: int,
) -> tuple[list[Outcome], Axes]:
    """Score the models of one protocol, each with its notes, on the test EEG (N, R, C, T) of their subjects.

    One recording at a time is in memory. All subjects must have seen the same test images, in any order.
    """
    outcomes, axes = [], None
    for recording in recordings:
        axes = axes or _axes(recording, parameters)
        eeg, values = _in_order(recording, axes), embeddings.values[embeddings.rows(axes.image_ids)]
        mine = [(model, notes) for model, notes in models if recording.subject in notes["tested_on"]]
        for model, _ in mine:
            _check(model, recording, values)
        variants = _variants(eeg, recording.subject, axes, parameters, seed)
        outcomes += _score_subject(mine, recording.subject, variants, torch.from_numpy(values))
    return outcomes, axes


def _axes(recording: Recording, parameters: Evaluate) -> Axes:
    """InputError where the parameters ask for more than the first subject has."""
    n_way, n_times = len(recording.image_ids), len(recording.times)
    if 1 not in parameters.top_k:
        raise InputError("evaluate.top_k must hold 1, which the curves and intervals are of")
    if max(parameters.top_k) >= n_way:
        raise InputError(
            f"evaluate.top_k holds {max(parameters.top_k)}, which among {n_way} test images is every answer: lower it"
        )
    width, step = (max(1, round(s * recording.sfreq)) for s in (parameters.window, parameters.window_step))
    if width > n_times:
        raise InputError(
            f"evaluate.window = {parameters.window} s is more than the {n_times / recording.sfreq:g} s of EEG: lower it"
        )
    return Axes(
        *(recording.image_ids, recording.concept_in_split, recording.things_concept),
        *(recording.ch_names, recording.times),
        n_repetitions=recording.eeg.shape[1],
        windows=windows(n_times, width, step),
    )


def _in_order(recording: Recording, axes: Axes) -> np.ndarray:
    """The EEG (N, R, C, T) in the common order of the images; InputError where it does not fit the first subject's."""
    if not np.isfinite(recording.eeg).all():
        raise InputError(
            f"{recording.subject}: the test EEG holds values that are not finite; run the preprocess stage again"
        )
    if set(recording.image_ids) != set(axes.image_ids):
        raise InputError(f"{recording.subject}: the test images are not those of the first subject; set subjects apart")
    alike = recording.ch_names == axes.ch_names and np.array_equal(recording.times, axes.times)
    if not alike or recording.eeg.shape[1] != axes.n_repetitions:
        raise InputError(
            f"{recording.subject}: channels, times or repetitions of the test EEG differ from the first subject's; "
            "run the preprocess stage again"
        )
    row_of = {image_id: row for row, image_id in enumerate(recording.image_ids)}
    order = [row_of[image_id] for image_id in axes.image_ids]
    return recording.eeg if order == sorted(order) else recording.eeg[order]


def _check(model: ContrastiveModel, recording: Recording, values: np.ndarray) -> None:
    sizes, (n_chans, n_times) = model.sizes, recording.eeg.shape[2:]
    if (n_chans, n_times) != (sizes.n_chans, sizes.n_times):
        raise InputError(
            f"{recording.subject}: the model was trained on {sizes.n_chans} channels x {sizes.n_times} "
            f"samples and the test EEG has {n_chans} x {n_times}; run the train stage again"
        )
    if values.shape[1] != sizes.embedding_size:
        raise InputError(
            f"the model was trained on embeddings of {sizes.embedding_size} dimensions and these have "
            f"{values.shape[1]}; run the train stage again"
        )
    if not np.isfinite(values).all():
        raise InputError("the embeddings of the test images hold values that are not finite; run the embed stage again")


def _variants(
    eeg: np.ndarray, subject: str, axes: Axes, parameters: Evaluate, seed: int
) -> Iterator[tuple[str | int, np.ndarray]]:
    """EEG (N, C, T): the average of all repetitions first; the draws of fewer depend on seed and subject only."""
    whole = eeg.mean(axis=1, dtype=np.float64).astype(eeg.dtype)
    yield WHOLE, whole
    yield from ((WINDOW, keep_window(whole, window)) for window in axes.windows)
    yield from ((CHANNEL, mask_channel(whole, channel)) for channel in range(len(axes.ch_names)))
    rng = np.random.default_rng([seed, *subject.encode()])
    for n in sorted(n for n in set(parameters.repetitions) if n < axes.n_repetitions):
        yield from ((n, some) for some in average_some(eeg, n, parameters.draws, rng))


def _score_subject(
    models: list[tuple[ContrastiveModel, dict]],
    subject: str,
    variants: Iterator[tuple[str | int, np.ndarray]],
    values: Tensor,
) -> list[Outcome]:
    scored, queries = [], [defaultdict(list) for _ in models]
    for kind, variant in variants:
        eeg = torch.from_numpy(variant).float()
        for i, (model, notes) in enumerate(models):
            scale = model.logit_scale.item()
            if kind == WHOLE:
                eeg_side, image_side = project(model, eeg, values)
                kept = {key: notes[key] for key in ("fold", "seed", "selected_epoch", "collapsed")}
                sides = {"images": image_side.numpy(), "eeg": eeg_side.numpy()}
                similarity = _similarity(eeg_side, image_side)
                scored.append(
                    Scored(**kept, subject=subject, logit_scale=scale, **sides, similarity=similarity.numpy())
                )
            else:
                similarity = _similarity(_embed(model, eeg), torch.from_numpy(scored[i].images))
            queries[i][kind].append(score_queries(similarity, scale))
    stacked = [
        {kind: {name: np.stack([one[name] for one in many]) for name in many[0]} for kind, many in of_run.items()}
        for of_run in queries
    ]
    return [Outcome(*pair) for pair in zip(scored, stacked, strict=True)]


def _similarity(eeg_side: Tensor, image_side: Tensor) -> Tensor:
    """Cosines of unit vectors, rounded from double precision: equal images tie, whatever the order of the sums."""
    return (eeg_side.double() @ image_side.double().T).float()


@torch.inference_mode()
def _embed(model: ContrastiveModel, eeg: Tensor) -> Tensor:
    return torch.cat([model.embed_eeg(part) for part in eeg.split(EVALUATION_BATCH)])
