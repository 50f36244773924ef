"""Why a run collapses to one embedding for all EEG, and what prevents it: 20 seeds at each strength of the signal.

    python -m benchmarks.collapse [SEEDS]     # 240 runs with 20 seeds, half an hour on two free cores

Simulated: 6,000 images of one subject, 8 channels x 72 samples. The EEG of an image is a mixture of 20 latents of it
(root mean square `signal`), a response that all images share (`common`), both in units of the noise, and 1/f noise;
its embedding is another mixture of the latents. The test, 200 images, has a twentieth of the noise's variance. Every
run is the recipe but for 12 epochs and what its row names, and keeps the epoch that the held-out concepts select.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.params import Train, read_params
from pipeline.retrieval import retrieval_metrics
from pipeline.training import Samples, held_out, project, train

N_IMAGES, PER_CONCEPT, N_TEST, N_LATENTS, SHAPE, D = 6000, 8, 200, 20, (8, 72), 128
PUBLISHED = {"standardise_eeg": False, "start_temperature": 0.07, "gradient_clip": "none", "learning_rate": 0.008}
VARIANTS = {
    "published": {},
    "standardise_eeg": {"standardise_eeg": True},
    "start_temperature 0.2": {"start_temperature": 0.2},
    "gradient_clip 1": {"gradient_clip": 1.0},
    "learning_rate 0.002": {"learning_rate": 0.002},
}
# (variant, signal, common): before and after at three strengths, why, and what else might help.
CASES = [(variant, signal, 7.0) for signal in (0.07, 0.2, 0.5) for variant in ("published", "standardise_eeg")]
CASES += [("published", 0.07, common) for common in (0.0, 1.8, 14.0)]
CASES += [(variant, 0.07, 7.0) for variant in list(VARIANTS)[2:]]


def pink(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """1/f noise of unit variance along the last axis."""
    frequency = np.fft.rfftfreq(shape[-1])
    frequency[0] = frequency[1]
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(shape)) * frequency**-0.5, shape[-1])
    return noise / noise.std()


def simulate(signal: float, common: float) -> tuple[Samples, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training samples and embeddings, test EEG and embeddings."""
    rng = np.random.default_rng(0)
    concepts = np.repeat(rng.standard_normal((N_IMAGES // PER_CONCEPT, N_LATENTS)), PER_CONCEPT, axis=0)
    train_latents = (concepts + 0.5 * rng.standard_normal(concepts.shape)) / np.sqrt(1.25)
    latents = np.concatenate([train_latents, rng.standard_normal((N_TEST, N_LATENTS))])
    embeddings = latents @ rng.standard_normal((N_LATENTS, D)) + 2 * rng.standard_normal((len(latents), D))
    embeddings += 4 * rng.standard_normal(D)  # embeddings of real images have a common part too
    after_onset = np.clip(np.arange(SHAPE[1]) - 28, 0, 10) / 10
    responses, shared = pink(rng, N_LATENTS, *SHAPE) * after_onset, pink(rng, *SHAPE) * after_onset
    evoked = np.einsum("nl,lct->nct", latents, responses)
    eeg = signal * evoked / evoked.std() + common * shared / np.sqrt(np.square(shared).mean())
    noise = pink(rng, len(latents), *SHAPE)
    noise[N_IMAGES:] /= np.sqrt(20)
    eeg, embeddings = torch.from_numpy(eeg + noise).float(), torch.from_numpy(embeddings).float()
    concept = np.repeat(np.arange(N_IMAGES // PER_CONCEPT).astype(str), PER_CONCEPT)
    samples = Samples(eeg[:N_IMAGES], torch.arange(N_IMAGES), np.repeat(["sub-01"], N_IMAGES), concept, 100.0)
    return samples, embeddings[:N_IMAGES], eeg[N_IMAGES:], embeddings[N_IMAGES:]


def run(case: tuple[str, float, float], seed: int) -> dict:
    torch.set_num_threads(1)
    variant, signal, common = case
    recipe = read_params(Path("params.yaml")).train.model_dump() | {"epochs": 12} | PUBLISHED | VARIANTS[variant]
    samples, embeddings, test_eeg, test_embeddings = simulate(signal, common)
    mask = held_out(samples.concept, 0.1, seed)
    selection = samples.take(np.flatnonzero(mask))
    trained = train(samples, np.flatnonzero(~mask), selection, embeddings, Train(**recipe), seed, torch.device("cpu"))
    eeg_side, image_side = project(trained.model, test_eeg, test_embeddings)
    scores = retrieval_metrics(eeg_side @ image_side.T, trained.model.logit_scale.item(), top_k=[1])
    made = {"seed": seed, "collapsed": trained.collapsed, "spread": trained.history["spread"].iloc[-1]}
    return made | {"top1": scores["top1_acc"], "loss": scores["nice_loss"]}


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(f"{seeds} seeds; chance: top-1 {1 / N_TEST}, loss {np.log(N_TEST):.3f}")
    print(f"{'variant':22} {'signal':>6} {'common':>6} {'collapsed':>9} {'spread':>6} {'top-1 (sd)':>15} {'loss':>6}")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        futures = [[pool.submit(run, case, seed) for seed in range(seeds)] for case in CASES]
        for (variant, signal, common), of_case in zip(CASES, futures, strict=True):
            runs = pd.DataFrame([future.result() for future in of_case])
            print(
                f"{variant:22} {signal:6} {common:6} {runs['collapsed'].mean():9.0%} {runs['spread'].mean():6.2f} "
                f"{runs['top1'].mean():7.3f} ({runs['top1'].std():.3f}) {runs['loss'].mean():6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
