"""What the test responses tell without an image that is retrieved: their reliability and geometry.

Each subject's EEG is read once for both questions (`reliability`, `rsa`), and one subject at a time
is in memory.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import TRAIN_AGAIN, InputError
from pipeline.evaluate.scoring import Models, in_shared_order, shared_axes
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.reliability import (
    SubjectHalves,
    half_sizes,
    measure_halves,
    summarise_reliability,
    tabulate_reliability,
)
from pipeline.explain.rsa import crossnobis, embedding_distances, tabulate_rsa
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.recordings import Recording
from pipeline.sections import Evaluate

ONE_REPETITION = "each test image was shown once: there are no two halves to compare"
ONSET = -1e-9  # s; a time is a multiple of the sampling interval, but for rounding


def explain_responses(
    recordings: Iterable[Recording],
    models: Models,
    encoders: Mapping[str, Embeddings],
    parameters: Evaluate,
    seed: int,
    modality: str = "EEG",
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The summaries and tables by name, `reliability` and `rsa`.

    `recordings` are the subjects with models that count (`models`), their EEG (N, R, C, T).
    `encoders` are the caches `unaligned` and `aligned`, as far as they exist. `modality` is what
    the sentences call the responses. With one repetition the tables are empty, and each summary has
    `why` alone.

    Raises InputError if the recordings do not fit together, as `score` does.
    """
    axes = None
    halves: list[SubjectHalves] = []
    geometries: list[np.ndarray] = []
    for recording in recordings:
        axes = axes or shared_axes(recording, parameters)
        eeg = in_shared_order(recording, axes)
        if axes.n_repetitions < 2:
            return _nothing()

        sizes = half_sizes(axes.n_repetitions, parameters.repetitions)
        halves.append(
            measure_halves(
                recording.subject,
                eeg,
                axes.to_normalise,
                models,
                sizes,
                parameters.draws,
                seed,
            )
        )
        after_onset = slice(int(np.searchsorted(axes.times, ONSET)), None)
        geometries.append(crossnobis(eeg, [*axes.windows, after_onset]))

    if axes is None:
        raise InputError(f"there is no test EEG to look at; {TRAIN_AGAIN}")

    n_images = len(axes.image_ids)
    resamples = draw_resamples(len(halves), n_images, parameters.resamples, seed)
    reliability = tabulate_reliability(halves, sizes, resamples)
    distances = {
        name: embedding_distances(cache.values[cache.rows(axes.image_ids)])
        for name, cache in encoders.items()
    }
    centres = [float(axes.times[window].mean()) for window in axes.windows]
    rsa, over_time = tabulate_rsa(geometries, distances, centres, n_images, modality)

    summaries = {"reliability": summarise_reliability(reliability, modality), "rsa": rsa}
    return summaries, {"reliability": reliability, "rsa": over_time}


def _nothing() -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Tables with their first columns alone, so that they can be read."""
    summaries = {name: {"why": ONE_REPETITION} for name in ("reliability", "rsa")}
    reliability = pd.DataFrame(columns=["space", "subjects", "n_repetitions", "top1_acc"])
    return summaries, {"reliability": reliability, "rsa": pd.DataFrame(columns=["time"])}
