"""How often the comparison claims what is not there, and how often it misses what is: real training, simulated EEG.

    python -m benchmarks.calibration [PROTOCOL ...]     # 40 minutes on two free cores, all three protocols

Each dataset (benchmarks/simulated.py) is drawn anew: subjects, images and noise. On it are trained, by params.yaml with
fewer epochs, ten seeds with the embeddings of one image model, ten with those of an equal one, whose noise is its own,
and on the first few datasets five with each of three better ones. Every comparison is
`pipeline.compare.comparison.compare` of runs drawn from these at random:

    same     two disjoint sets of seeds with the very same embeddings: only seeds differ
    equal    the same seeds with the embeddings of two equal models: seeds, subjects and images differ, as in real use
    +3 ...   the same seeds with those of a better model; `points` tells by how much it was better

`python -m benchmarks.calibration study` asks the same of whole grids (`pipeline.study.summary.summarise`) without any
training: it draws which images each run retrieves first, see `draw_study`. 20 minutes.

Comparisons of one dataset share runs. So beside the binomial interval of the share of claims (Clopper-Pearson, as if
all were independent) stands its standard error from the spread over the datasets, which are independent.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from benchmarks.simulated import Data, embed, recipe, similarities, simulate
from pipeline.compare.comparison import compare
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import ALPHA
from pipeline.params import read_params
from pipeline.sections import Evaluate
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.study.summary import ENCODERS, summarise
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train
from pipeline.train.protocols import plan
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

SEEDS = (1, 3, 5)
WORSE = 4.5  # noise of the embeddings
BETTER = {"+3": 4.2, "+5": 4.0, "+10": 3.5}
COMPARISONS = 200  # at least, for each kind and number of seeds


@dataclass(frozen=True)
class Setting:
    """Of one protocol; in each, top-1 is some 50 % of 100 images."""

    n_subjects: int
    signal: float
    epochs: int
    batch_size: int
    n_datasets: int
    n_planted: int = 6
    own_response: float = 1.0  # see `simulate`


SETTINGS = {
    "pooled": Setting(8, 0.3, 20, 256, 20),
    "within-subject": Setting(8, 0.35, 20, 64, 16),
    "leave-one-subject-out": Setting(6, 1.2, 15, 256, 12, own_response=0.25),
}


def dataset(protocol: str, number: int) -> Data:
    setting = SETTINGS[protocol]
    return simulate(
        number,
        signal=setting.signal,
        common=2.0,
        n_subjects=setting.n_subjects,
        n_concepts=60,
        own_response=setting.own_response,
    )


def run(protocol: str, number: int, model: str, seed: int) -> list[SubjectResult]:
    """All folds of one seed, with the embeddings of one image model."""
    torch.set_num_threads(1)
    setting, data = SETTINGS[protocol], dataset(protocol, number)
    parameters = recipe(epochs=setting.epochs, batch_size=setting.batch_size)
    noise, own = BETTER.get(model, WORSE), ["first", "second", *BETTER].index(model)
    embeddings = embed(data, 10 * number + own, noise)
    names = sorted(set(data.samples.subject))
    scored = []
    for fold in plan(protocol, names, [seed]):
        samples = data.samples.take(np.flatnonzero(np.isin(data.samples.subject, fold.trained_on)))
        seeds = derive_seeds(seed, fold.fold)
        mask = held_out(samples.things_concept, parameters.validation_concepts, seeds.concepts)
        selection, rows = samples.take(np.flatnonzero(mask)), np.flatnonzero(~mask)
        trained = train(
            Setup(samples, embeddings, parameters, torch.device("cpu")),
            Partition(seeds, rows, selection),
        )
        for subject in fold.tested_on:
            found = similarities(trained.model, data.test_eeg[names.index(subject)], embeddings)
            about = (
                fold.fold,
                seed,
                subject,
                trained.epoch,
                trained.collapsed,
                trained.model.logit_scale.item(),
            )
            scored.append(SubjectResult(*about, np.empty(0), np.empty(0), found))
    return scored


def claim(protocol: str, sides: list[list[list[SubjectResult]]]) -> tuple[str, float]:
    """Verdict and difference in points, of the runs of each side."""
    n = len(sides[0][0][0].similarity)
    ids = np.arange(n).astype(str).astype(object)
    about = {
        "dataset": "simulated",
        "synthetic": True,
        "protocol": protocol,
        "selected_on": "validation",
    }
    evaluations = []
    for encoder, runs in zip(("unaligned", "aligned"), sides, strict=True):
        # the seeds of the two sides count from 1, so that two sets of seeds compare as one
        scored = [replace(s, seed=i) for i, run in enumerate(runs, 1) for s in run]
        evaluations.append(
            Similarities(ids, ids, ids, scored, about | {"encoder": encoder, "settings": {}})
        )
    result = compare(*evaluations, evaluate_parameters(), 0)
    return result["verdict"], 100 * result["metrics"]["top1_acc"]["difference"]


def evaluate_parameters() -> Evaluate:
    return Evaluate(
        **read_params(Path("params.yaml")).evaluate.model_dump() | {"resamples": 300, "top_k": [1]}
    )


def compare_dataset(
    protocol: str,
    number: int,
    runs: dict[str, list[list[SubjectResult]]],
    each: int,
    seeds: Sequence[int] = SEEDS,
) -> list[tuple]:
    """Comparisons of one dataset, `each` with a model and a number of seeds: (model, seeds, verdict, points)."""
    torch.set_num_threads(1)
    rng, found = np.random.default_rng(number), []
    for k in seeds:
        for model, with_it in runs.items():
            for _ in range(each):
                drawn = rng.permutation(len(with_it))
                rows = (drawn[:k], drawn[k : 2 * k]) if model == "first" else (drawn[:k], drawn[:k])
                sides = [
                    [of[i] for i in side]
                    for of, side in zip((runs["first"], with_it), rows, strict=True)
                ]
                found.append((model, k, *claim(protocol, sides)))
    return found


def calibrate(protocol: str, pool: ProcessPoolExecutor) -> None:
    setting = SETTINGS[protocol]
    jobs = {}
    for number in range(setting.n_datasets):
        models = {"first": 10, "second": 10} | (
            dict.fromkeys(BETTER, 5) if number < setting.n_planted else {}
        )
        jobs[number] = {
            model: [pool.submit(run, protocol, number, model, seed) for seed in range(n)]
            for model, n in models.items()
        }
    each = -(-COMPARISONS // setting.n_datasets)
    compared = []
    for number, models in tqdm(jobs.items(), desc=protocol, unit="dataset", disable=None):
        runs = {model: [future.result() for future in futures] for model, futures in models.items()}
        compared.append(pool.submit(compare_dataset, protocol, number, runs, each))
    found = [future.result() for future in compared]
    seeds, scores = [], []
    for number in jobs:
        per_seed = np.array([top1(jobs[number]["first"][i].result()) for i in range(10)])
        both = np.array(
            [[top1(f.result()) for f in jobs[number][model]] for model in ("first", "second")]
        )
        scores.append(per_seed.mean())
        seeds.append((per_seed.var(ddof=1), np.cov(both)))
    spread, covariance = (
        np.mean([one[0] for one in seeds]) ** 0.5,
        np.mean([one[1] for one in seeds], axis=0),
    )
    print(
        f"\n{protocol}: {setting.n_datasets} datasets, {setting.n_subjects} subjects, top-1 {np.mean(scores):.1f} %, "
        f"sd over seeds {spread:.1f} points; correlation of two models' top-1 over the same seeds "
        f"{covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]):+.2f}"
    )
    print("         seeds  points      claims  share    95 % binomial     se wrong sign")
    for model, kind in [("first", "same"), ("second", "equal"), *zip(BETTER, BETTER, strict=True)]:
        for k in SEEDS:
            show(kind, k, [[one for one in of if one[:2] == (model, k)] for of in found])


def top1(scored: list[SubjectResult]) -> float:
    return 100 * float(
        np.mean([(s.similarity >= s.similarity.diagonal()[:, None]).sum(1) == 1 for s in scored])
    )


def show(kind: str, k: int, found: list[list[tuple]]) -> None:
    """One row, from the comparisons of each dataset."""
    by_dataset = [[one[2:] for one in of] for of in found if of]
    verdicts = [verdict for of in by_dataset for verdict, _ in of]
    claimed = [np.mean([verdict in ("better", "worse") for verdict, _ in of]) for of in by_dataset]
    n, total = verdicts.count("better") + verdicts.count("worse"), len(verdicts)
    low, high = binomtest(n, total).proportion_ci()
    points, error = (
        np.mean([points for of in by_dataset for _, points in of]),
        np.std(claimed, ddof=1),
    )
    print(
        f"{kind:8} {k:5} {points:+7.1f} {n:5}/{total:5} {n / total:6.1%} {low:7.1%} to {high:5.1%} "
        f"{error / len(claimed) ** 0.5:6.1%} {verdicts.count('worse') if kind in BETTER else '':>10}",
        flush=True,
    )


N_CELLS, N_SUBJECTS, N_IMAGES = 8, 10, 200
PLANTED = 0.4  # in logits, in every second cell
STUDIES = {0.0: 300, PLANTED: 100}  # of each protocol and number of seeds, by what is planted


def draw_study(protocol: str, n_seeds: int, gain: float, number: int) -> list[TrialResult]:
    """Which of the N images each run has first, by a logistic model of crossed random effects (sd in logits).

    All runs share how much a person's EEG tells (0.5) and how easy an image is (1). The encoders differ, by chance, in
    what they do for a person (0.2) and for an image (0.7), half of that variance in all cells alike, half in each cell
    anew; and each training has its luck (0.1). Where `gain` is 0 both encoders draw from the same distribution.
    """
    rng = np.random.default_rng([number, n_seeds, len(protocol)])
    subjects = [f"sub-{i:02}" for i in range(1, N_SUBJECTS + 1)]
    easy = 0.5 * rng.standard_normal((N_SUBJECTS, 1)) + rng.standard_normal(N_IMAGES)  # (S, N)

    def by_encoder() -> np.ndarray:
        person, image = (
            rng.standard_normal((2, N_SUBJECTS, 1)),
            rng.standard_normal((2, 1, N_IMAGES)),
        )
        return (0.2 * person + 0.7 * image) / 2**0.5  # (2, S, N)

    alike, zeros, answers = by_encoder(), np.zeros(N_IMAGES), []
    for i in range(N_CELLS):
        cell, own = Cell(f"model-{i}", "dreamsim", "last", "nice", protocol), by_encoder()
        level = 0.3 * rng.standard_normal()
        for e, encoder in enumerate(ENCODERS):
            for fold in plan(protocol, subjects, list(range(n_seeds))):
                trial = Trial(cell, encoder, fold)
                logit = (
                    level
                    + easy
                    + alike[e]
                    + own[e]
                    + 0.1 * rng.standard_normal()
                    + gain * e * (i % 2)
                )
                for subject in fold.tested_on:
                    right = rng.random(N_IMAGES) < 1 / (1 + np.exp(-logit[subjects.index(subject)]))
                    rank = np.where(right, 1.0, 2.0)
                    queries = {
                        "rank": rank,
                        "image_to_eeg_rank": rank,
                        "nice_loss": zeros,
                        "matched_cosine": zeros,
                    }
                    queries |= {"mismatched_cosine": zeros, "mismatched_square": zeros}
                    answers.append(TrialResult(trial, subject, 1, False, "cpu", 0.0, queries))
    return answers


def judge_study(
    protocol: str, n_seeds: int, gain: float, number: int
) -> tuple[list[str], list[float], list[float]]:
    """The verdict of each cell, its p before the correction, and its difference in points."""
    facts = {"synthetic": True, "selected_on": "validation", "caveats": []}
    answers = draw_study(protocol, n_seeds, gain, number)
    cells = summarise(answers, [], facts, evaluate_parameters(), number)[0]["cells"]
    points = [100 * cell["difference"]["top1_acc"]["mean"] for cell in cells]
    return [cell["verdict"] for cell in cells], [cell["p"] for cell in cells], points


def calibrate_study(pool: ProcessPoolExecutor) -> None:
    print(
        f"{N_CELLS} cells, {N_SUBJECTS} subjects, {N_IMAGES}-way; share of studies or cells, with its standard error"
    )
    for protocol, n_seeds in (
        ("pooled", 3),
        ("pooled", 5),
        ("within-subject", 1),
        ("within-subject", 5),
    ):
        for gain, n in STUDIES.items():
            jobs = [
                pool.submit(judge_study, protocol, n_seeds, gain, number) for number in range(n)
            ]
            found = [
                job.result()
                for job in tqdm(jobs, desc=protocol, unit="study", leave=False, disable=None)
            ]
            verdicts, p, points = (np.array(values) for values in zip(*found, strict=True))
            claimed, alone = np.isin(verdicts, ("better", "worse")), p <= ALPHA
            planted = (np.arange(N_CELLS) % 2 == 1) & (gain > 0)
            about = (
                f"planted {points[:, planted].mean():+.1f} points" if gain else "nothing planted"
            )
            told = f"a false claim in {_share(claimed[:, ~planted].any(1))} of studies"
            told += f", uncorrected {_share(alone[:, ~planted].any(1))}"
            if gain:
                right, wrong = (
                    (verdicts == verdict)[:, planted] for verdict in ("better", "worse")
                )
                told += f"; found {_share(right.mean(1))} of the planted, wrong sign {wrong.sum()}"
            print(f"{protocol}, {n_seeds} seeds, {about}: {told}", flush=True)


def _share(by_study: np.ndarray) -> str:
    """Of a value a study: mean, standard error, and how many there are."""
    error = np.std(by_study, ddof=1) / len(by_study) ** 0.5
    return f"{np.mean(by_study):.1%} (se {error:.1%}, {np.sum(by_study):g}/{len(by_study)})"


def main() -> None:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for protocol in sys.argv[1:] or SETTINGS:
            if protocol == "study":
                calibrate_study(pool)
            else:
                calibrate(protocol, pool)


if __name__ == "__main__":
    main()
