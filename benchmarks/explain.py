"""What the test responses tell without a retrieved image: time, memory, and how often it claims what is not there.

    python -m benchmarks.explain                # 10 subjects x 200 images x 80 repetitions, 17 x 100, five seeds
    python -m benchmarks.explain large          # the same at 63 x 250, one seed
    python -m benchmarks.explain calibration [N [SUBJECTS ...]]  # N simulations of each kind, or 400

EEG and embeddings are noise and the models are untrained, which costs the same.

The calibration simulates images with latents, which responses and image encoders share. Each encoder has a part of its
own too, of equal strength: neither is nearer to the EEG, whatever images are drawn. In some kinds the response of a
subject depends on these parts too, by chance on one more than on the other, as subjects may differ. Counted is how often
`pipeline.explain.rsa` claims a difference, and how wide its interval is, against the spread of what it estimates. In the
last kind one encoder is better.
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from benchmarks import write_latest
from pipeline.evaluate.statistics import ALPHA
from pipeline.explain.responses import explain_responses
from pipeline.explain.rsa import compare_geometries, crossnobis, embedding_distances
from pipeline.images.embeddings import Embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import Recording
from pipeline.train.model import ContrastiveModel, ModelSizes

SUBJECTS = [f"sub-{i:02}" for i in range(1, 11)]
N_IMAGES = 200
SIZES = {
    "": ((80, 17, 100), 5),
    "large": ((80, 63, 250), 1),
}  # repetitions, channels, samples; seeds

# Of the calibration
N, R, C, T = 40, 6, 6, 4
N_LATENTS, N_OWN = 8, 3


def responses(size: str) -> None:
    """Print the time and the peak memory of reliability and geometry at full size."""
    (n_repetitions, n_chans, n_times), n_seeds = SIZES[size]
    sfreq = 250.0 if size else 100.0
    start = 0.0 if size else -0.2
    ids = np.array([f"{i}" for i in range(N_IMAGES)], dtype=object)
    rng = np.random.default_rng(0)
    made = 0.0  # seconds that the noise took to draw

    def recordings() -> Iterator[Recording]:
        nonlocal made
        for subject in SUBJECTS:
            began = time.perf_counter()
            eeg = rng.standard_normal((N_IMAGES, n_repetitions, n_chans, n_times), np.float32)
            names = tuple(f"E{i}" for i in range(n_chans))
            times = np.arange(n_times) / sfreq + start
            made += time.perf_counter() - began
            yield Recording(subject, names, None, times, sfreq, (), eeg, ids, ids, ids)

    p = read_params(Path("params.yaml"))
    models = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        sizes = ModelSizes(n_chans, n_times, sfreq, 768, start=start)
        notes = {"fold": "pooled", "seed": seed, "tested_on": SUBJECTS}
        models.append((ContrastiveModel(sizes, p.train).eval(), notes))
    caches = {
        name: Embeddings(rng.standard_normal((N_IMAGES, 768), np.float32), ids)
        for name in ("unaligned", "aligned")
    }

    began, cpu = time.perf_counter(), time.process_time()
    explain_responses(recordings(), models, caches, p.evaluate, p.seed)
    seconds = time.perf_counter() - began - made
    cpu = time.process_time() - cpu - made
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= (1 if sys.platform == "darwin" else 1024) / 1e6
    print(
        f"reliability and geometry, 10 subjects x {N_IMAGES} images x {n_repetitions} repetitions, "
        f"{n_chans} x {n_times}, {n_seeds} seeds: {seconds:.1f} s ({cpu:.1f} s of CPU), "
        f"{peak:.0f} MB peak"
    )
    key = f"responses_{size or 'full_size'}"
    write_latest({f"{key}_s": round(seconds, 1), f"{key}_peak_rss_mb": round(peak)})


def draw(
    rng: np.random.Generator, n_subjects: int, strength: float, of_subjects: float, better: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Distances of the EEG of each subject (S, M), and of both encoders (M,).

    `strength` is that of the responses beside noise of 1, `of_subjects` how much they depend on
    what an encoder has alone, `better` by how much the aligned one has less of it.
    """
    latents = rng.standard_normal((N, N_LATENTS))
    own = {name: rng.standard_normal((N, N_OWN)) for name in ("unaligned", "aligned")}
    shared = rng.standard_normal((N_LATENTS, C * T))

    eeg = []
    for _ in range(n_subjects):
        response = latents @ (shared + 0.7 * rng.standard_normal(shared.shape))
        for part in own.values():
            weight = of_subjects * abs(rng.standard_normal())
            response += weight * part @ rng.standard_normal((N_OWN, C * T))
        noise = rng.standard_normal((N, R, C, T)) * np.exp(0.3 * rng.standard_normal((N, R, 1, 1)))
        trials = strength * response.reshape(N, 1, C, T) + noise
        eeg.append(crossnobis(trials, [slice(0, T)])[0])

    weights = rng.standard_normal((N_LATENTS, 20))
    parts = {"unaligned": 8 * own["unaligned"], "aligned": (8 - 8 * better) * own["aligned"]}
    encoders = {
        name: embedding_distances(np.hstack([latents @ weights, part]))
        for name, part in parts.items()
    }
    return np.stack(eeg), encoders


def calibration(n_simulations: int, numbers_of_subjects: list[int]) -> None:
    """Print how often a difference is claimed, for each number of subjects and kind of response."""
    for n_subjects in numbers_of_subjects:
        # Fewer than six subjects speak for themselves, and may not differ in what is asked.
        kinds = [("none", 0.0, 0.0, 0.0), ("weak", 0.1, 0.0, 0.0), ("strong", 0.3, 0.0, 0.0)]
        if n_subjects >= 6:
            kinds += [("weak, subjects differ", 0.1, 0.7, 0.0)]
            kinds += [("strong, subjects differ", 0.3, 0.7, 0.0)]
        kinds += [("strong, one is better", 0.3, 0.0, 0.5)]

        for name, *kind in kinds:
            claims, means, widths = 0, [], []
            for number in range(n_simulations):
                eeg, encoders = draw(np.random.default_rng([number, n_subjects]), n_subjects, *kind)
                difference = compare_geometries(eeg, encoders, N)["difference"]
                claims += difference["p"] <= ALPHA
                means.append(difference["mean"])
                widths.append(np.ptp(difference["ci95"]))
            low, high = binomtest(claims, n_simulations).proportion_ci(method="exact")
            print(
                f"{n_subjects:2} subjects, response {name}: {100 * claims / n_simulations:.1f} % of "
                f"{n_simulations} claim a difference ({100 * low:.1f} to {100 * high:.1f}); "
                f"it is {np.mean(means):+.4f}, SD {np.std(means):.4f}; "
                f"half an interval {np.mean(widths) / 2:.4f}",
                flush=True,
            )


def main() -> None:
    what = " ".join(sys.argv[1:2])
    if what == "calibration":
        n_simulations, *numbers_of_subjects = [*map(int, sys.argv[2:])] or [400]
        calibration(n_simulations, numbers_of_subjects or [1, 2, 6, 10])
    else:
        responses(what)


if __name__ == "__main__":
    main()
