"""Trained models on the test EEG, subject by subject: the full EEG, and EEG with a part masked.

Axes: N test images, R repetitions, C channels, T samples, W windows of time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import EMBED_AGAIN, PREPARE_AGAIN, TRAIN_AGAIN, InputError
from pipeline.evaluate.masking import average_some, keep_window, mask_channel, windows
from pipeline.evaluate.similarities import Queries, SubjectResult
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.normalisation import normalise
from pipeline.preprocess.recordings import Recording
from pipeline.retrieval import score_queries
from pipeline.sections import Evaluate
from pipeline.train.model import ContrastiveModel, Notes
from pipeline.train.projection import project, project_eeg

Models = list[tuple[ContrastiveModel, Notes]]


@dataclass(frozen=True)
class SharedAxes:
    """What the test EEG of all subjects shares. The first subject sets the order of the images."""

    image_ids: np.ndarray  # (N,) str
    concept: np.ndarray  # (N,) str
    things_concept: np.ndarray  # (N,) str
    ch_names: tuple[str, ...]
    times: np.ndarray  # (T,), s
    n_repetitions: int
    windows: list[slice]  # of samples
    sensor_positions: np.ndarray | None = None  # (C, 2), see `Recording`
    to_normalise: bool = False  # each average of repetitions, see `Recording`


@dataclass(frozen=True)
class Scores:
    """One run on one subject: the figures of each test image, with the full EEG and masked."""

    result: SubjectResult
    full: Queries  # (N,) each
    windows: Queries  # (W, N) each: all but one window masked
    channels: Queries  # (C, N) each: one channel masked
    repetitions: dict[int, Queries]  # by the number that is averaged: (draws, N) each


def score(
    recordings: Iterable[Recording],
    models: Models,
    embeddings: Embeddings,
    parameters: Evaluate,
    seed: int,
) -> tuple[list[Scores], SharedAxes]:
    """Score the models of one protocol, each with its notes, on the test EEG of their subjects.

    The EEG of a recording is (N, R, C, T). All subjects must have seen the same test images, in
    any order. Only one recording at a time is in memory. The random draws of repetitions depend
    on seed, subject and parameters only, not on the other subjects or the models.

    Raises InputError if EEG, embeddings, models and parameters do not fit together.
    """
    scores: list[Scores] = []
    axes = None
    for recording in recordings:
        axes = axes or shared_axes(recording, parameters)
        eeg = in_shared_order(recording, axes)
        # Joined by image id: no file's order of rows counts.
        values = embeddings.values[embeddings.rows(axes.image_ids)]

        models_of_subject = [
            (model, notes) for model, notes in models if recording.subject in notes["tested_on"]
        ]
        for model, _ in models_of_subject:
            _check_sizes(model, recording, values, embeddings.blocks)

        scores += _score_subject(
            models_of_subject,
            recording.subject,
            eeg,
            torch.from_numpy(values),
            axes,
            parameters,
            seed,
        )

    if axes is None:
        raise InputError(f"there is no test EEG to score; {TRAIN_AGAIN}")
    return scores, axes


def shared_axes(recording: Recording, parameters: Evaluate) -> SharedAxes:
    """The axes of the first subject.

    Raises InputError if the parameters ask for more than this recording has.
    """
    n_way = len(recording.image_ids)
    n_times = len(recording.times)
    if 1 not in parameters.top_k:
        raise InputError("evaluate.top_k must hold 1, which the curves and intervals are of")
    if max(parameters.top_k) >= n_way:
        raise InputError(
            f"evaluate.top_k holds {max(parameters.top_k)}, which among {n_way} test images is "
            "every answer: lower it"
        )

    # Seconds become samples, at least one.
    width = max(1, round(parameters.window * recording.sfreq))
    step = max(1, round(parameters.window_step * recording.sfreq))
    if width > n_times:
        raise InputError(
            f"evaluate.window = {parameters.window} s is more than the "
            f"{n_times / recording.sfreq:g} s of EEG: lower it"
        )

    return SharedAxes(
        image_ids=recording.image_ids,
        concept=recording.concept_in_split,
        things_concept=recording.things_concept,
        ch_names=recording.ch_names,
        sensor_positions=recording.sensor_positions,
        times=recording.times,
        n_repetitions=recording.eeg.shape[1],
        windows=windows(n_times, width, step),
        to_normalise=recording.to_normalise,
    )


def in_shared_order(recording: Recording, axes: SharedAxes) -> np.ndarray:
    """The EEG (N, R, C, T) with the images in the order of the first subject.

    Raises InputError if the recording does not fit the first subject's.
    """
    if not np.isfinite(recording.eeg).all():
        raise InputError(
            f"{recording.subject}: the test EEG holds values that are not finite; {PREPARE_AGAIN}"
        )
    if set(recording.image_ids) != set(axes.image_ids):
        raise InputError(
            f"{recording.subject}: the test images are not those of the first subject; "
            "set `subjects` to those who saw the same"
        )

    same_channels = recording.ch_names == axes.ch_names
    same_times = np.array_equal(recording.times, axes.times)
    same_repetitions = recording.eeg.shape[1] == axes.n_repetitions
    same_normalisation = recording.to_normalise == axes.to_normalise
    if not (same_channels and same_times and same_repetitions and same_normalisation):
        raise InputError(
            f"{recording.subject}: channels, times or repetitions of the test EEG differ from the "
            f"first subject's, or preprocess.normalise does; {PREPARE_AGAIN}"
        )

    # Indexing copies the EEG: rows that are in order already are returned as they are.
    row_of_image = {image_id: row for row, image_id in enumerate(recording.image_ids)}
    order = [row_of_image[image_id] for image_id in axes.image_ids]
    return recording.eeg if order == sorted(order) else recording.eeg[order]


def _check_sizes(
    model: ContrastiveModel, recording: Recording, values: np.ndarray, blocks: tuple[str, ...]
) -> None:
    """Raises InputError if EEG or embeddings are not of the kind that the model was trained on."""
    sizes = model.sizes
    n_chans, n_times = recording.eeg.shape[2:]
    if (n_chans, n_times) != (sizes.n_chans, sizes.n_times):
        raise InputError(
            f"{recording.subject}: the model was trained on {sizes.n_chans} channels x "
            f"{sizes.n_times} samples and the test EEG has {n_chans} x {n_times}; {TRAIN_AGAIN}"
        )
    # A thousandth of a sample is allowed for rounding.
    if abs(recording.times[0] - sizes.start) > 1e-3 / sizes.sfreq:
        raise InputError(
            f"{recording.subject}: the model was trained on EEG from {sizes.start:g} s on and the "
            f"test EEG starts at {recording.times[0]:g} s; {TRAIN_AGAIN}"
        )

    if blocks != tuple(sizes.blocks):
        raise InputError(
            f"the model was trained on {_describe_blocks(sizes.blocks)} and these embeddings are "
            f"of {_describe_blocks(blocks)}; {TRAIN_AGAIN}"
        )

    if values.shape[-1] != sizes.embedding_size:
        raise InputError(
            f"the model was trained on embeddings of {sizes.embedding_size} dimensions and these "
            f"have {values.shape[-1]}; {TRAIN_AGAIN}"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"the embeddings of the test images hold values that are not finite; {EMBED_AGAIN}"
        )


def _describe_blocks(blocks: Sequence[str]) -> str:
    return f"a mix of the blocks {', '.join(blocks)}" if blocks else "one block"


def _score_subject(
    models: Models,
    subject: str,
    eeg: np.ndarray,
    values: Tensor,
    axes: SharedAxes,
    parameters: Evaluate,
    seed: int,
) -> list[Scores]:
    """The scores of each model on the EEG (N, R, C, T) of one subject."""
    # Summed in float64, so that the mean of many repetitions keeps its digits.
    average = eeg.mean(axis=1, dtype=np.float64)  # (N, C, T)
    if axes.to_normalise:
        average = normalise(average)
    average = average.astype(eeg.dtype)
    results = [score_average(model, notes, subject, average, values) for model, notes in models]

    # The masked variants are made one at a time, because all of them would fill the memory.
    by_window = _score_variants(
        (keep_window(average, window) for window in axes.windows), models, results
    )
    by_channel = _score_variants(
        (mask_channel(average, channel) for channel in range(len(axes.ch_names))), models, results
    )

    by_size = {}
    for n in sorted(set(parameters.repetitions)):
        if n < axes.n_repetitions:
            # What is drawn depends neither on the other numbers nor on the other subjects.
            rng = np.random.default_rng([seed, n, *subject.encode()])
            averages = average_some(eeg, n, parameters.draws, rng)
            if axes.to_normalise:
                averages = normalise(averages)
            by_size[n] = _score_variants(averages, models, results)

    return [
        Scores(
            result=result,
            full=result.queries(),
            windows=by_window[i],
            channels=by_channel[i],
            repetitions={n: by_model[i] for n, by_model in by_size.items()},
        )
        for i, result in enumerate(results)
    ]


def _score_variants(
    variants: Iterable[np.ndarray], models: Models, results: list[SubjectResult]
) -> list[Queries]:
    """For each model the queries of V variants (N, C, T) of a subject's EEG, (V, N) each."""
    # Only the EEG changes from variant to variant: images were projected once.
    images = [torch.from_numpy(result.images) for result in results]
    by_model: list[list[dict[str, Tensor]]] = [[] for _ in models]
    for variant in variants:
        eeg = torch.from_numpy(variant).float()
        for i, (model, _) in enumerate(models):
            similarity = cosines(project_eeg(model, eeg), images[i])
            by_model[i].append(score_queries(similarity, results[i].logit_scale))

    return [_stack(queries) for queries in by_model]


def _stack(queries: list[dict[str, Tensor]]) -> Queries:
    """Queries of V variants, (N,) each, as arrays (V, N)."""
    return {
        name: torch.stack([variant[name] for variant in queries]).numpy() for name in queries[0]
    }


def score_average(
    model: ContrastiveModel, notes: Notes, subject: str, average: np.ndarray, values: Tensor
) -> SubjectResult:
    """A model on a subject's averaged test EEG (N, C, T); `values` are the images' embeddings."""
    eeg_side, image_side = project(model, torch.from_numpy(average).float(), values)
    return SubjectResult(
        fold=notes["fold"],
        seed=notes["seed"],
        subject=subject,
        selected_epoch=notes["selected_epoch"],
        collapsed=notes["collapsed"],
        logit_scale=model.logit_scale.item(),
        images=image_side.numpy(),
        eeg=eeg_side.numpy(),
        similarity=cosines(eeg_side, image_side).numpy(),
    )


def cosines(eeg_side: Tensor, image_side: Tensor) -> Tensor:
    """Cosine similarities (N, M), float32, of unit vectors (N, P) and (M, P).

    They are computed in float64 and then rounded, so that equal images tie exactly, whatever the
    order of the sums.
    """
    return (eeg_side.double() @ image_side.double().T).float()
