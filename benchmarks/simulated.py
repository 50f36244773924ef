"""Simulated EEG and embeddings, small enough that thousands of trainings fit into an hour of two cores."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pipeline.params import read_params
from pipeline.sections import Train
from pipeline.train.projection import project
from pipeline.train.samples import Samples

N_LATENTS, D = 20, 128


@dataclass(frozen=True)
class Data:
    """Training samples of S subjects, test EEG (S, N, C, T), and what the images hold, training then test (M, L)."""

    samples: Samples
    test_eeg: Tensor
    latents: np.ndarray


def pink(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """1/f noise of unit variance along the last axis."""
    frequency = np.fft.rfftfreq(shape[-1])
    frequency[0] = frequency[1]
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(shape)) * frequency**-0.5, shape[-1])
    return noise / noise.std()


def simulate(
    seed: int,
    *,
    signal: float,
    common: float,
    n_subjects: int,
    n_concepts: int,
    n_test: int = 100,
    shape: tuple[int, int] = (6, 72),
    per_concept: int = 4,
    subject_spread: float = 0.3,
    own_response: float = 1.0,
) -> Data:
    """EEG (C, T) = `shape` of an image: a mixture of its latents, a response that all images share, and 1/f noise.

    `signal` and `common` are the root mean squares of the first two in units of the noise, whose variance in the test
    is a twentieth. Images of a concept share most of their latents. A subject's response to a latent is one that all
    subjects have plus `own_response` times one of his own; the logarithm of his signal has the sd `subject_spread`.
    """
    rng = np.random.default_rng(seed)
    concepts = np.repeat(rng.standard_normal((n_concepts, N_LATENTS)), per_concept, axis=0)
    train_latents = (concepts + 0.5 * rng.standard_normal(concepts.shape)) / np.sqrt(1.25)
    latents = np.concatenate([train_latents, rng.standard_normal((n_test, N_LATENTS))])
    after_onset = np.clip(np.arange(shape[1]) - 28, 0, 10) / 10
    of_all = pink(rng, N_LATENTS, *shape)
    eeg = np.empty((n_subjects, len(latents), *shape), np.float32)
    for subject in range(n_subjects):
        responses = (of_all + own_response * pink(rng, N_LATENTS, *shape)) * after_onset
        evoked = np.einsum("nl,lct->nct", latents, responses)
        shared = pink(rng, *shape) * after_onset
        noise = pink(rng, len(latents), *shape)
        noise[len(train_latents) :] /= np.sqrt(20)
        strength = signal * np.exp(
            subject_spread * rng.standard_normal()
        )  # some people's EEG tells more than others'
        eeg[subject] = (
            strength * evoked / evoked.std()
            + common * shared / np.sqrt(np.square(shared).mean())
            + noise
        )
    n = len(train_latents)
    samples = Samples(
        eeg=torch.from_numpy(eeg[:, :n]).flatten(0, 1),
        image_row=torch.arange(n).repeat(n_subjects),
        subject=np.repeat([f"sub-{s:02}" for s in range(1, n_subjects + 1)], n),
        things_concept=np.tile(
            np.repeat(np.arange(n_concepts).astype(str), per_concept), n_subjects
        ),
        sfreq=100.0,
    )
    return Data(samples, torch.from_numpy(eeg[:, n:]), latents)


def embed(data: Data, seed: int, noise: float) -> Tensor:
    """An image model: a mixture of the latents (the same for every seed) plus noise of its own, (M, D) float32."""
    mixing = np.random.default_rng(1).standard_normal((N_LATENTS + 1, D))
    own = np.random.default_rng([2, seed]).standard_normal((len(data.latents), D))
    return torch.from_numpy(data.latents @ mixing[1:] + noise * own + 4 * mixing[0]).float()


def similarities(model: torch.nn.Module, eeg: Tensor, embeddings: Tensor) -> np.ndarray:
    """Cosines (N, N) of test EEG (N, C, T) with the embeddings of the last N images."""
    eeg_side, image_side = project(model, eeg, embeddings[-len(eeg) :])
    return (eeg_side @ image_side.T).numpy()


def recipe(**changes: object) -> Train:
    """params.yaml with changes, in projectors small enough for these data."""
    return Train(
        **read_params(Path("params.yaml")).train.model_dump() | {"projection_size": 64} | changes
    )


def published(name: str = "recipe", **changes: object) -> Train:
    """A file of params/, with changes; by default the re-implementation's, whose cosine takes the epochs that there are."""
    words = [
        line.removeprefix("-S train.")
        for line in Path("params", name).read_text().splitlines()
        if "train." in line
    ]
    values = yaml.safe_load("\n".join(word.replace("=", ": ") for word in words))
    return recipe(**values | {"cosine_epochs": "rest"} | changes)


def start_as_torch() -> AbstractContextManager:
    """Within it, models start otherwise than published: every bias, and the weights of Linear, as torch draws them."""

    def draw(model: nn.Module, zero_biases: bool) -> None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    return mock.patch("pipeline.eeg_encoders.nice.draw_normal_weights", draw)
