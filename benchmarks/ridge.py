"""Ridge at the release's size, against scikit-learn's RidgeCV in one run: 16,540 x 17 x 100 a subject, 768-d.

    python -m benchmarks.ridge [SUBJECTS]   # within-subject, by default 10
    python -m benchmarks.ridge pooled       # one fit of all 10
    python -m benchmarks.ridge large        # one subject at the paper's size, 63 x 250
    python -m benchmarks.ridge claims [N]   # how often a comparison of two ridges is wrong, on N datasets (400)

The EEG is simulated: 1/f noise, and a little that is linear in the embeddings. RidgeCV (leave one response out) tries
three penalties on the last subject. Memory is the peak of this process before RidgeCV.

For the claims each dataset (benchmarks/simulated.py, as in benchmarks/calibration.py) is drawn anew, and so each claim
is independent of the others. `equal` are two image models of one quality, each with noise of its own; `better` is one
with less noise. All subjects of the dataset are asked, and the first three of them alone.
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.linear_model import Ridge, RidgeCV

from benchmarks import calibration, write_latest
from benchmarks.simulated import Data, recipe, similarities
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.sections import Evaluate, Train
from pipeline.train.closed_form import fit
from pipeline.train.draws import derive_seeds
from pipeline.train.protocols import plan
from pipeline.train.samples import Samples
from pipeline.train.training import Partition, Setup, Trained

N, PER_CONCEPT, D = 16_540, 10, 768
MODELS = {"first": calibration.WORSE, "equal": calibration.WORSE, "better": 4.0}
NONE = np.empty(0)
SHAPES = {"": (17, 100), "large": (63, 250)}


@cache
def _recipe() -> Train:
    return recipe(eeg_encoder="ridge")


@cache
def _parameters() -> Evaluate:
    return calibration.evaluate_parameters()


def draw_subject(eeg: np.ndarray, embeddings: np.ndarray, seed: int) -> None:
    """Fill EEG (N, C, T)."""
    rng = np.random.default_rng(seed)
    shape = eeg.shape[1:]
    mixing = rng.standard_normal((D, np.prod(shape)), np.float32) / np.sqrt(D)
    for start in range(0, N, 1_654):
        part = slice(start, start + 1_654)
        noise = rng.standard_normal((1_654, *shape), np.float32).cumsum(-1)
        noise -= 0.97 * np.pad(noise, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        eeg[part] = noise + 0.3 * (embeddings[part] @ mixing).reshape(-1, *shape)


def make_samples(n_subjects: int, shape: tuple[int, int]) -> tuple[Samples, torch.Tensor]:
    embeddings = np.random.default_rng(0).standard_normal((N, D), np.float32)
    eeg = np.empty((n_subjects * N, *shape), np.float32)
    for subject in range(n_subjects):
        draw_subject(eeg[subject * N : (subject + 1) * N], embeddings, subject + 1)
    concepts = np.repeat([f"{i:05}" for i in range(N // PER_CONCEPT)], PER_CONCEPT)
    samples = Samples(
        torch.from_numpy(eeg),
        torch.arange(N).repeat(n_subjects),
        np.repeat([f"sub-{s:02}" for s in range(1, n_subjects + 1)], N),
        np.tile(concepts, n_subjects),
        sfreq=100.0,
    )
    return samples, torch.from_numpy(embeddings)


def time_fit(samples: Samples, embeddings: torch.Tensor) -> tuple[Trained, float, float]:
    """The model, and the seconds by the clock and of all cores."""
    setup = Setup(samples, embeddings, _recipe(), torch.device("cpu"))
    partition = Partition(derive_seeds(0, "ridge"), np.arange(len(samples.eeg)))
    started = time.perf_counter(), time.process_time()
    trained = fit(setup, partition)
    return trained, time.perf_counter() - started[0], time.process_time() - started[1]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def describe(trained: Trained) -> str:
    [row] = trained.history.to_dict("records")
    return f"penalty {row['penalty']:.3g}, R2 on held-out concepts {row['held_out_r2']:.3f}"


def compare_with_sklearn(trained: Trained, samples: Samples, embeddings: torch.Tensor) -> float:
    """Print how near the weights are, and return the seconds of RidgeCV."""
    x = trained.model.standard_eeg(samples.eeg).flatten(1).double().numpy()
    y = embeddings.double().numpy()
    penalty = trained.history["penalty"][0]
    exact = Ridge(alpha=penalty, solver="cholesky").fit(x, y).coef_
    found = trained.model.eeg_projector.weight.detach().double().numpy()
    off = np.linalg.norm(found - exact) / np.linalg.norm(exact)

    penalties = [penalty / 10, penalty, penalty * 10]
    started = time.perf_counter()
    cores = time.process_time()
    chosen = RidgeCV(penalties).fit(x, y).alpha_
    seconds = time.perf_counter() - started
    print(f"weights off scikit-learn's (float64) by {off:.1e} of their norm")
    cores = time.process_time() - cores
    print(f"RidgeCV: {seconds:.1f} s ({cores:.1f} s of cores), penalty {chosen:.3g}")
    return seconds


def ask(protocol: str, number: int) -> list[tuple[int, str, str, float]]:
    """Of one dataset (subjects, model, verdict, points)."""
    torch.set_num_threads(1)
    data = calibration.dataset(protocol, number)
    names = sorted(set(data.samples.subject))
    found = []
    for n_subjects in (len(names), 3):
        subjects = names[:n_subjects]
        sides = {
            model: score(protocol, data, subjects, calibration.embed(data, 10 * number + i, noise))
            for i, (model, noise) in enumerate(MODELS.items())
        }
        for model in ("equal", "better"):
            result = calibration.compare(
                sides["first"], replace_encoder(sides[model]), _parameters(), 0
            )
            points = 100 * result["metrics"]["top1_acc"]["difference"]
            found.append((n_subjects, model, result["verdict"], points))
    return found


def score(protocol: str, data: Data, subjects: list[str], embeddings: torch.Tensor) -> Similarities:
    """Ridge in each fold of these subjects."""
    results = []
    for run in plan(protocol, subjects, [0]):
        rows = np.flatnonzero(np.isin(data.samples.subject, run.trained_on))
        setup = Setup(data.samples, embeddings, _recipe(), torch.device("cpu"))
        trained = fit(setup, Partition(derive_seeds(0, run.fold), rows))
        for subject in run.tested_on:
            eeg = data.test_eeg[subjects.index(subject)]
            cosines = similarities(trained.model, eeg, embeddings)
            scale = trained.model.logit_scale.item()
            results.append(
                SubjectResult(run.fold, 0, subject, 0, False, scale, NONE, NONE, cosines)
            )
    ids = np.arange(len(cosines)).astype(str).astype(object)
    about = {
        "dataset": "simulated",
        "synthetic": True,
        "protocol": protocol,
        "selected_on": "validation",
        "closed_form": True,
        "encoder": "unaligned",
        "settings": {},
    }
    return Similarities(ids, ids, ids, results, about)


def replace_encoder(side: Similarities) -> Similarities:
    return replace(side, made_with=side.made_with | {"encoder": "aligned"})


def count_claims(n_datasets: int) -> None:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for protocol in calibration.SETTINGS:
            answers = pool.map(ask, [protocol] * n_datasets, range(n_datasets), chunksize=8)
            table = pd.DataFrame(
                [answer for of_dataset in answers for answer in of_dataset],
                columns=["subjects", "model", "verdict", "points"],
            )
            for (n_subjects, model), rows in table.groupby(["subjects", "model"], sort=False):
                claims = rows["verdict"].isin(["better", "worse"])
                interval = binomtest(int(claims.sum()), len(claims)).proportion_ci()
                print(
                    f"{protocol}, {n_subjects} subjects, {model}: claims {100 * claims.mean():.1f} % "
                    f"of {len(claims)} ({100 * interval.low:.1f} to {100 * interval.high:.1f}), "
                    f"worse {(rows['verdict'] == 'worse').sum()}; {rows['points'].mean():+.1f} points",
                    flush=True,
                )


def main(mode: str, n_datasets: int) -> None:
    if mode == "claims":
        count_claims(n_datasets)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    n_subjects = int(mode) if mode.isdecimal() else 10
    if mode == "pooled":
        trained, seconds, of_cores = time_fit(*make_samples(n_subjects, SHAPES[""]))
        print(
            f"pooled, 10 subjects: {seconds:.1f} s ({of_cores:.1f} s of cores), {peak_gb():.1f} GB; {describe(trained)}"
        )
        write_latest({"ridge pooled s": seconds})
        return
    if mode == "large":
        trained, seconds, of_cores = time_fit(*make_samples(1, SHAPES["large"]))
        print(
            f"63 x 250, one subject: {seconds:.0f} s ({of_cores:.0f} s of cores), {peak_gb():.1f} GB; {describe(trained)}"
        )
        write_latest({"ridge large s": seconds})
        return

    samples, embeddings = make_samples(1, SHAPES[""])
    seconds = []
    of_cores = []
    for subject in range(n_subjects):
        draw_subject(samples.eeg.numpy(), embeddings.numpy(), subject + 1)
        trained, of_subject, cores = time_fit(samples, embeddings)
        seconds.append(of_subject)
        of_cores.append(cores)
        print(
            f"subject {subject + 1}: {of_subject:.1f} s ({cores:.1f} s of cores); {describe(trained)}",
            flush=True,
        )
    print(
        f"{n_subjects} subjects: {sum(seconds):.1f} s ({sum(of_cores):.1f} s of cores), "
        f"{peak_gb():.2f} GB"
    )

    of_sklearn = compare_with_sklearn(trained, samples, embeddings)
    ratio = of_sklearn / np.mean(seconds)
    print(f"ratio to RidgeCV: {ratio:.1f}")
    write_latest({"ridge s": sum(seconds), "ridge ratio to RidgeCV": ratio})


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else "10", int(arguments[1]) if len(arguments) > 1 else 400)
