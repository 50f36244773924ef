"""Trained models on the test EEG of one subject after the other: the whole EEG, and EEG with something taken away."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import EMBED_AGAIN, PREPARE_AGAIN, TRAIN_AGAIN, InputError
from pipeline.evaluate.masking import average_some, keep_window, mask_channel, windows
from pipeline.evaluate.similarities import Queries, Scored
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.recordings import Recording
from pipeline.retrieval import score_queries
from pipeline.sections import Evaluate
from pipeline.train.model import ContrastiveModel, Notes
from pipeline.train.projection import project, project_eeg

Models = list[tuple[ContrastiveModel, Notes]]


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
    places: np.ndarray | None = None  # (C, 2), see `Recording`
    caveats: tuple[str, ...] = ()  # on how the EEG was prepared


@dataclass(frozen=True)
class Outcome:
    """One run on one subject, and its queries: of the whole EEG, and of EEG with something taken away."""

    scored: Scored
    whole: Queries  # (N,) each
    windows: Queries  # (W, N) each: all but one window taken away
    channels: Queries  # (C, N) each: one channel taken away
    repetitions: dict[int, Queries]  # how many are averaged, to (draws, N) each


def score(
    recordings: Iterable[Recording],
    models: Models,
    embeddings: Embeddings,
    parameters: Evaluate,
    seed: int,
) -> tuple[list[Outcome], Axes]:
    """Score the models of one protocol, each with its notes, on the test EEG (N, R, C, T) of their subjects.

    One recording at a time is in memory. All subjects must have seen the same test images, in any order. The draws of
    fewer repetitions depend on seed and subject only.
    """
    outcomes: list[Outcome] = []
    axes = None
    for recording in recordings:
        axes = axes or _axes(recording, parameters)
        eeg, values = _in_order(recording, axes), embeddings.values[embeddings.rows(axes.image_ids)]
        mine = [
            (model, notes) for model, notes in models if recording.subject in notes["tested_on"]
        ]
        for model, _ in mine:
            _check_sizes(model, recording, values, embeddings.blocks)
        outcomes += _score_subject(
            mine, recording.subject, eeg, torch.from_numpy(values), axes, parameters, seed
        )
    if axes is None:
        raise InputError(f"there is no test EEG to score; {TRAIN_AGAIN}")
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
    width, step = (
        max(1, round(s * recording.sfreq)) for s in (parameters.window, parameters.window_step)
    )
    if width > n_times:
        raise InputError(
            f"evaluate.window = {parameters.window} s is more than the {n_times / recording.sfreq:g} s of EEG: lower it"
        )
    return Axes(
        image_ids=recording.image_ids,
        concept=recording.concept_in_split,
        things_concept=recording.things_concept,
        ch_names=recording.ch_names,
        places=recording.places,
        caveats=recording.caveats,
        times=recording.times,
        n_repetitions=recording.eeg.shape[1],
        windows=windows(n_times, width, step),
    )


def _in_order(recording: Recording, axes: Axes) -> np.ndarray:
    """The EEG (N, R, C, T) in the common order of the images; InputError where it does not fit the first subject's."""
    if not np.isfinite(recording.eeg).all():
        raise InputError(
            f"{recording.subject}: the test EEG holds values that are not finite; {PREPARE_AGAIN}"
        )
    if set(recording.image_ids) != set(axes.image_ids):
        raise InputError(
            f"{recording.subject}: the test images are not those of the first subject; "
            "set `subjects` to those who saw the same"
        )
    alike = recording.ch_names == axes.ch_names and np.array_equal(recording.times, axes.times)
    if not alike or recording.eeg.shape[1] != axes.n_repetitions:
        raise InputError(
            f"{recording.subject}: channels, times or repetitions of the test EEG differ from the first subject's; "
            f"{PREPARE_AGAIN}"
        )
    row_of = {image_id: row for row, image_id in enumerate(recording.image_ids)}
    order = [row_of[image_id] for image_id in axes.image_ids]
    return recording.eeg if order == sorted(order) else recording.eeg[order]


def _check_sizes(
    model: ContrastiveModel, recording: Recording, values: np.ndarray, blocks: tuple[str, ...]
) -> None:
    """InputError where EEG or embeddings are not what the model was trained on."""
    sizes, (n_chans, n_times) = model.sizes, recording.eeg.shape[2:]
    if (n_chans, n_times) != (sizes.n_chans, sizes.n_times):
        raise InputError(
            f"{recording.subject}: the model was trained on {sizes.n_chans} channels x {sizes.n_times} "
            f"samples and the test EEG has {n_chans} x {n_times}; {TRAIN_AGAIN}"
        )
    if abs(recording.times[0] - sizes.start) > 1e-3 / sizes.sfreq:
        raise InputError(
            f"{recording.subject}: the model was trained on EEG from {sizes.start:g} s on and the test EEG starts at "
            f"{recording.times[0]:g} s; {TRAIN_AGAIN}"
        )
    if blocks != tuple(sizes.blocks):
        raise InputError(
            f"the model was trained on {_told(sizes.blocks)} and these embeddings are of {_told(blocks)}; {TRAIN_AGAIN}"
        )
    if values.shape[-1] != sizes.embedding_size:
        raise InputError(
            f"the model was trained on embeddings of {sizes.embedding_size} dimensions and these have "
            f"{values.shape[-1]}; {TRAIN_AGAIN}"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"the embeddings of the test images hold values that are not finite; {EMBED_AGAIN}"
        )


def _told(blocks: Sequence[str]) -> str:
    return f"a mix of the blocks {', '.join(blocks)}" if blocks else "one block"


def _score_subject(
    models: Models,
    subject: str,
    eeg: np.ndarray,
    values: Tensor,
    axes: Axes,
    parameters: Evaluate,
    seed: int,
) -> list[Outcome]:
    whole = eeg.mean(axis=1, dtype=np.float64).astype(eeg.dtype)  # (N, C, T)
    scored = [score_whole(model, notes, subject, whole, values) for model, notes in models]
    images = [torch.from_numpy(one.images) for one in scored]

    def of_each_model(variants: Iterable[np.ndarray]) -> list[Queries]:
        """The queries of V variants (N, C, T), (V, N) each."""
        found: list[list[dict[str, Tensor]]] = [[] for _ in models]
        for variant in variants:
            responses = torch.from_numpy(variant).float()
            for of_model, (model, _), image_side, one in zip(
                found, models, images, scored, strict=True
            ):
                similarity = _similarity(project_eeg(model, responses), image_side)
                of_model.append(score_queries(similarity, one.logit_scale))
        return [
            {name: torch.stack([one[name] for one in many]).numpy() for name in many[0]}
            for many in found
        ]

    by_window = of_each_model(keep_window(whole, window) for window in axes.windows)
    by_channel = of_each_model(
        mask_channel(whole, channel) for channel in range(len(axes.ch_names))
    )
    rng = np.random.default_rng([seed, *subject.encode()])
    sizes = sorted(n for n in set(parameters.repetitions) if n < axes.n_repetitions)
    by_size = {n: of_each_model(average_some(eeg, n, parameters.draws, rng)) for n in sizes}
    return [
        Outcome(
            scored=one,
            whole=one.queries(),
            windows=by_window[i],
            channels=by_channel[i],
            repetitions={n: of_model[i] for n, of_model in by_size.items()},
        )
        for i, one in enumerate(scored)
    ]


def score_whole(
    model: ContrastiveModel, notes: Notes, subject: str, whole: np.ndarray, values: Tensor
) -> Scored:
    """A model on the averaged test EEG (N, C, T) of a subject; `values` are the embeddings of the N images."""
    eeg_side, image_side = project(model, torch.from_numpy(whole).float(), values)
    return Scored(
        fold=notes["fold"],
        seed=notes["seed"],
        subject=subject,
        selected_epoch=notes["selected_epoch"],
        collapsed=notes["collapsed"],
        logit_scale=model.logit_scale.item(),
        images=image_side.numpy(),
        eeg=eeg_side.numpy(),
        similarity=_similarity(eeg_side, image_side).numpy(),
    )


def _similarity(eeg_side: Tensor, image_side: Tensor) -> Tensor:
    """Cosines of unit vectors, rounded from double precision: equal images tie, whatever the order of the sums."""
    return (eeg_side.double() @ image_side.double().T).float()
