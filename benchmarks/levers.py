"""What each lever does to top-1 in simulations: where its truth was planted, and where it was not.

    python -m benchmarks.levers [SEEDS]     # 105 runs with 3 seeds, some ten minutes on a free core

Simulated (benchmarks/simulated.py): one subject, 800 images of 200 concepts, 6 channels x 72 samples at 100 Hz, onset
at 0.28 s; the test has 100 images. A seed decides the data and the run, and the default and a lever are compared on the
same ones. The recipe is the default but for 25 epochs of batches of 64.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.simulated import Data, embed, pink, recipe, similarities, simulate
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

N_TEST, REPETITIONS = 100, 4
ONSET, N_TIMES = (
    28,
    72,
)  # samples; for the window more, of which it leaves as many: the encoder needs 65
BLOCKS = ("3", "6", "last")


@dataclass(frozen=True)
class Scene:
    """Training samples, test EEG (N, C, T), embeddings of three blocks (M, 3, D), and of a degraded view (M, D)."""

    samples: Samples
    test_eeg: Tensor
    blocks: Tensor
    degraded: Tensor


def plain(
    seed: int, signal: float = 0.12, n_concepts: int = 200, n_times: int = N_TIMES
) -> tuple[Scene, Data]:
    """The last block drives the EEG.

    Each earlier block shares half of its variance with the next, and the degraded view lacks half of what the EEG has.
    `signal` is as in `simulate`: what makes decoding harder gets more of it, so that no scene ends at chance or at 1.
    """
    sizes = {"n_subjects": 1, "n_concepts": n_concepts, "n_test": N_TEST, "shape": (6, n_times)}
    data = simulate(seed, signal=signal, common=1.0, **sizes, subject_spread=0)
    rng = np.random.default_rng([seed, 1])
    middle = related(data, rng)
    blocks = [embed(of, seed, 2.0) for of in (related(middle, rng), middle, data)]
    coarse = dataclasses.replace(
        data, latents=data.latents * (np.arange(data.latents.shape[1]) % 2)
    )
    return Scene(
        data.samples, data.test_eeg[0], torch.stack(blocks, dim=1), embed(coarse, seed, 2.0)
    ), data


def related(data: Data, rng: np.random.Generator) -> Data:
    """Latents that share half of their variance with these."""
    n = data.latents.shape[1]
    turned = data.latents @ np.linalg.qr(rng.standard_normal((n, n)))[0]
    return dataclasses.replace(
        data, latents=(turned + rng.standard_normal(turned.shape)) / np.sqrt(2)
    )


def unchanged(n_times: int, seed: int) -> Scene:
    return plain(seed, n_times=n_times)[0]


def changed(
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    signal: float,
    seed: int,
    n_times: int = N_TIMES,
) -> Scene:
    """Training and test EEG (N, C, T) changed alike."""
    scene, rng = plain(seed, signal, n_times=n_times)[0], np.random.default_rng([seed, 2])
    train_eeg, test_eeg = (
        torch.from_numpy(change(eeg.numpy(), rng)).float()
        for eeg in (scene.samples.eeg, scene.test_eeg)
    )
    return dataclasses.replace(
        scene, samples=dataclasses.replace(scene.samples, eeg=train_eeg), test_eeg=test_eeg
    )


def noise_above_25_hz(eeg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = np.fft.rfft(rng.standard_normal(eeg.shape))
    noise[..., np.fft.rfftfreq(eeg.shape[-1], 1 / 100) < 25] = 0
    return eeg + 2 * np.fft.irfft(noise, eeg.shape[-1])


def noise_before_onset(eeg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return eeg + 4 * pink(rng, *eeg.shape) * (np.arange(eeg.shape[-1]) < ONSET)


def offsets(eeg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return eeg + 3 * rng.standard_normal((*eeg.shape[:2], 1))


def jitter(eeg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shifts = rng.integers(-5, 6, len(eeg))
    return np.stack([np.roll(one, shift, axis=-1) for one, shift in zip(eeg, shifts, strict=True)])


def dead_channel_in_test(seed: int) -> Scene:
    scene, rng = plain(seed, 0.15)[0], np.random.default_rng([seed, 3])
    test_eeg = scene.test_eeg.clone()
    test_eeg[torch.arange(N_TEST), torch.from_numpy(rng.integers(0, test_eeg.shape[1], N_TEST))] = 0
    return dataclasses.replace(scene, test_eeg=test_eeg)


def middle_block(seed: int) -> Scene:
    scene, data = plain(seed, 0.2)
    rng = np.random.default_rng([seed, 4])
    blocks = [embed(of, seed, 2.0) for of in (related(data, rng), data, related(data, rng))]
    return dataclasses.replace(scene, blocks=torch.stack(blocks, dim=1))


def detail_in_the_original(seed: int) -> Scene:
    """The original has, beside what drives the EEG, detail of twice its size, which the degraded view lacks."""
    scene, data = plain(seed, 0.2)
    detail = np.random.default_rng([seed, 5]).standard_normal((len(data.latents), 40))
    original = scene.blocks[:, 2]
    own = detail @ np.random.default_rng(6).standard_normal((40, original.shape[1]))
    blocks = scene.blocks.clone()
    blocks[:, 2] += torch.from_numpy(2 * np.sqrt(data.latents.shape[1] / 40) * own).float()
    return dataclasses.replace(scene, blocks=blocks, degraded=original)


def offsets_of_embeddings(seed: int) -> Scene:
    scene, rng = plain(seed)[0], np.random.default_rng([seed, 7])
    shape = (len(scene.blocks), 1, 1)
    scale, offset = np.exp(rng.standard_normal(shape)), 10 * rng.standard_normal(shape)
    blocks = torch.from_numpy(scale).float() * (scene.blocks + torch.from_numpy(offset).float())
    return dataclasses.replace(scene, blocks=blocks)


def few_images(seed: int) -> Scene:
    return plain(seed, 0.3, n_concepts=50)[0]


def in_repetitions(samples: Samples, seed: int) -> Samples:
    """Four noisy repetitions of each image, whose mean is the sample; noise as that of the simulation."""
    noise = 2 * pink(np.random.default_rng([seed, 8]), REPETITIONS, *samples.eeg.shape)
    eeg = samples.eeg + torch.from_numpy(noise - noise.mean(0)).float()  # (R, M, C, T)
    repeated = samples.take(np.arange(len(samples.eeg)).repeat(REPETITIONS))
    return dataclasses.replace(repeated, eeg=eeg.transpose(0, 1).flatten(0, 1))


# lever: what it changes of the recipe, the scene in which it should help, and how that was planted
LEVERS = {
    "`block: 6`": ({"block": 6}, middle_block, "EEG driven by block 6"),
    "`block: mix`": ({"block": "mix"}, middle_block, "the same"),
    "`views: draw`": (
        {"views": "draw"},
        detail_in_the_original,
        "detail in the original that the EEG has not",
    ),
    "`views: mean`": ({"views": "mean"}, detail_in_the_original, "the same"),
    "both views `mean`": (
        {"views": "mean", "views_in_gallery": "mean"},
        detail_in_the_original,
        "the same",
    ),
    "`smoothing: 0.02`": (
        {"smoothing": 0.02},
        partial(changed, noise_above_25_hz, 0.2),
        "noise above 25 Hz, 1.4 x the rest",
    ),
    "`eeg_window`": (
        {"eeg_window": [ONSET / 100, 0.99]},
        partial(changed, noise_before_onset, 0.12, n_times=ONSET + N_TIMES),
        "noise before onset, 4 x the rest",
    ),
    "`remove_dc`": (
        {"remove_dc": True},
        partial(changed, offsets, 0.15),
        "an offset of each response and channel, 3 x the noise",
    ),
    "`average_random_repetitions: any`": (
        {"average_random_repetitions": "any"},
        few_images,
        "200 images, not 800",
    ),
    "`channel_dropout: 0.2`": (
        {"channel_dropout": 0.2},
        dead_channel_in_test,
        "one of 6 channels dead in each test response",
    ),
    "`time_shift: 0.05`": (
        {"time_shift": 0.05},
        partial(changed, jitter, 0.35),
        "onsets up to 0.05 s too early or late",
    ),
    "`normalise_embeddings`": (
        {"normalise_embeddings": True},
        offsets_of_embeddings,
        "embeddings of random offset and scale",
    ),
}


def top1(scene: Scene, seed: int, changes: dict) -> float:
    """Of a run of the default recipe with these changes, on the test images."""
    parameters, seeds, samples = (
        recipe(epochs=25, batch_size=64, **changes),
        derive_seeds(seed, "pooled"),
        scene.samples,
    )
    if parameters.average_random_repetitions != "none":
        samples = in_repetitions(samples, seed)
    mask = held_out(samples.things_concept, parameters.validation_concepts, seeds.concepts)
    views = torch.stack([scene.blocks[:, 2], scene.degraded], dim=1)
    learned = {"original": None, "draw": views, "mean": views.mean(1, keepdim=True)}[
        parameters.views
    ]
    embeddings = {"last": scene.blocks[:, 2], 6: scene.blocks[:, 1], "mix": scene.blocks}[
        parameters.block
    ]
    if parameters.views_in_gallery == "mean":
        embeddings = views.mean(1)
    trained = train(
        Setup(
            samples,
            embeddings,
            parameters,
            torch.device("cpu"),
            blocks=BLOCKS if parameters.block == "mix" else (),
            targets=learned,
        ),
        Partition(seeds, np.flatnonzero(~mask), samples.take(np.flatnonzero(mask))),
    )
    similarity = similarities(trained.model, scene.test_eeg, embeddings)
    return float((similarity.argmax(1) == np.arange(N_TEST)).mean())


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    torch.set_num_threads(1)
    started, defaults = time.monotonic(), {}
    shorter, longer = partial(unchanged, N_TIMES), partial(unchanged, ONSET + N_TIMES)

    def measured(make: Callable[[int], Scene], changes: dict) -> str:
        """The default in that scene, and the lever's difference to it, in points, with its spread over seeds."""
        if make not in defaults:
            defaults[make] = np.array([top1(make(seed), seed, {}) for seed in seeds])
        difference = 100 * (
            np.array([top1(make(seed), seed, changes) for seed in seeds]) - defaults[make]
        )
        return f"{100 * defaults[make].mean():.1f} | {difference.mean():+.1f} ({difference.std(ddof=1):.1f})"

    print(
        f"chance {100 / N_TEST:g} %; {len(seeds)} seeds; top-1 in %, differences in points (sd over seeds)\n"
    )
    print(
        "| lever | planted | default there | lever there | default, nothing planted | lever, nothing planted |"
    )
    print("|---|---|---|---|---|---|")
    for name, (changes, make, how) in LEVERS.items():
        planted = measured(make, changes)
        without = measured(longer if "eeg_window" in changes else shorter, changes)
        print(f"| {name} | {how} | {planted} | {without} |", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
