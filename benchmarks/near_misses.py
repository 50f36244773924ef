"""How often the figures of near misses claim what is not there, and what they find: simulated answers, no training.

    python -m benchmarks.near_misses [runs | PROTOCOL ...]     # 10 minutes on a free core, all of them

People have a space of the concepts, and an image model shares a part of it (`share`, of the variance). A response is the
embedding of the image seen with noise: a subject's own, which both models get alike, and what a seed does to all responses
alike. A concept is in those of 20 categories in whose direction people's space reaches far: as with THINGS, a fifth of all are
in none, and some in several. `pipeline.explain.near_misses` is asked of one model, `pipeline.compare.explained` of two:

    unrelated   the model shares nothing with people: how often p is at most 0.05, and how often the interval lacks 0
    related     it shares a part: how often the interval lacks the true excess, the mean over all datasets
    equal       two models that share as much, each its own part: how often a difference is claimed
    nearer      one shares more: how often that is found
    quieter     both share as much, and the noise of one is smaller, so that it decodes better
"""

import sys
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from tqdm import tqdm

from benchmarks.calibration import evaluate_parameters
from pipeline.compare.explained import compare_near_misses
from pipeline.datasets.human import HumanSimilarity
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import ALPHA, draw_resamples
from pipeline.explain import near_misses
from pipeline.explain.near_misses import ANSWERS, PEOPLE, SAME_CATEGORY, tabulate_near_misses
from pipeline.explain.rsa import cosine_similarity
from pipeline.train.protocols import plan

N_IMAGES, N_SUBJECTS, N_DIMS = 100, 8, 10
SHARE, NOISE = 0.3, 0.8
N_DATASETS = 200
CATEGORY_FROM = 1.43  # standard deviations: a fifth of the concepts are in no category
IDS = np.array([f"{i:05}" for i in range(N_IMAGES)], dtype=object)
QUESTIONS = [(answers, space) for answers in ANSWERS for space in (PEOPLE, SAME_CATEGORY)]
DESIGNS = {"pooled": (3, 5), "within-subject": (1, 5), "leave-one-subject-out": (5,)}  # seeds


@dataclass(frozen=True)
class Model:
    share: float = SHARE
    noise: float = NOISE


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) / N_DIMS**0.5


def draw(number: int, protocol: str, n_seeds: int, models: list[Model]) -> tuple:
    """People and the results of each model."""
    rng = np.random.default_rng([number, n_seeds, len(protocol)])
    # A common part: some concepts and images are rather like all others, which makes hubs.
    people = unit(rng, N_IMAGES, N_DIMS) + 0.5 * unit(rng, N_DIMS)
    subjects = [f"sub-{i:02}" for i in range(1, N_SUBJECTS + 1)]
    own_noise = {subject: unit(rng, N_IMAGES, N_DIMS) for subject in subjects}

    sides = []
    for model in models:
        own = unit(rng, N_IMAGES, N_DIMS) + 0.5 * unit(rng, N_DIMS)
        images = model.share**0.5 * people + (1 - model.share) ** 0.5 * own
        turn = np.linalg.qr(rng.standard_normal((N_DIMS, N_DIMS)))[0]
        results = []
        for fold in plan(protocol, subjects, list(range(n_seeds))):
            of_seed = np.eye(N_DIMS) + 0.3 * unit(rng, N_DIMS, N_DIMS)
            for subject in fold.tested_on:
                noise = own_noise[subject] @ turn + 0.5 * unit(rng, N_IMAGES, N_DIMS)
                responses = (images + model.noise * noise) @ of_seed
                both = cosine_similarity(np.vstack([responses, images]))
                similarity = both[:N_IMAGES, N_IMAGES:].astype(np.float32)
                about = fold.fold, fold.seed, subject, 1, False, 10.0
                results.append(SubjectResult(*about, np.empty(0), np.empty(0), similarity))
        sides.append(results)
    return ask_people(people), sides


def ask_people(people: np.ndarray) -> HumanSimilarity:
    """Their similarity of the concepts, and 20 categories of them: what lies far in a direction and in its opposite."""
    category = np.hstack([people, -people]) > people.std() * CATEGORY_FROM
    names = np.array([f"{i:02}" for i in range(category.shape[1])], dtype=object)
    return HumanSimilarity(IDS, cosine_similarity(people), names, category, "simulated", True)


def top1(results: list[SubjectResult]) -> float:
    return 100 * float(np.mean([r.similarity.argmax(1) == np.arange(N_IMAGES) for r in results]))


def paired(number: int, protocol: str, n_seeds: int, models: list[Model]) -> list[tuple]:
    """Difference and p by QUESTIONS, and the difference of top-1 in points."""
    human, sides = draw(number, protocol, n_seeds, models)
    evaluations = [
        Similarities(
            IDS, IDS, IDS, results, {"encoder": name, "protocol": protocol, "settings": {}}
        )
        for name, results in zip(("unaligned", "aligned"), sides, strict=True)
    ]
    both = dict(zip(("unaligned", "aligned"), evaluations, strict=True))
    found = compare_near_misses(both, evaluate_parameters(), number, human)
    points = top1(sides[1]) - top1(sides[0])
    of_space = {PEOPLE: found["answers"], SAME_CATEGORY: found["same_category"]}
    rows = [of_space[space][kind] for kind, space in QUESTIONS]
    return [(row["difference"], row["p"], points) for row in rows]


def share(hits: np.ndarray) -> str:
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci()
    return f"{hits.mean():6.1%} of {len(hits)} ({low:.1%} to {high:.1%})"


def calibrate_runs() -> None:
    near_misses.N_PERMUTATIONS = 999
    print("one model, 8 subjects, 3 seeds, pooled")
    for name, model in (("unrelated", Model(share=0)), ("related", Model())):
        tables = []
        for number in tqdm(range(N_DATASETS), desc=name, disable=None):
            human, [results] = draw(number, "pooled", 3, [model])
            same_category = human.same_category(IDS.tolist())
            resamples = draw_resamples(N_SUBJECTS, N_IMAGES, 1000, number)
            spaces = {PEOPLE: human.similarity}
            tables.append(tabulate_near_misses(results, spaces, resamples, number, same_category))
        for i, (kind, space) in enumerate(QUESTIONS):
            rows = [table.iloc[i] for table in tables]
            excess, low, high, p = (
                np.array([row[key] for row in rows])
                for key in ("excess", "excess_low", "excess_high", "p")
            )
            truth = 0 if name == "unrelated" else excess.mean()
            outside = (low > truth) | (high < truth)
            print(
                f"{name:10} {kind:30} {space:13} excess {excess.mean():+.4f}  p <= {ALPHA}: {share(p <= ALPHA)}"
                f"  interval lacks {truth:+.3f}: {share(outside)}",
                flush=True,
            )


def calibrate_pairs(protocol: str) -> None:
    plain = Model()
    others = {"equal": plain, "nearer": Model(share=0.5), "quieter": Model(noise=0.6)}
    for n_seeds in DESIGNS[protocol]:
        for name, other in others.items():
            n = N_DATASETS if name == "equal" else 50
            found = [
                paired(number, protocol, n_seeds, [plain, other])
                for number in tqdm(range(n), desc=f"{protocol} {name}", disable=None)
            ]
            for i, (kind, space) in enumerate(QUESTIONS):
                difference, p, points = np.array([rows[i] for rows in found]).T
                print(
                    f"{protocol:22} {n_seeds} seeds {name:8} {kind:30} {space:13} top-1 {points.mean():+5.1f} points, "
                    f"near misses {difference.mean():+.4f}, claimed {share(p <= ALPHA)}",
                    flush=True,
                )


if __name__ == "__main__":
    for part in sys.argv[1:] or ("runs", *DESIGNS):
        if part == "runs":
            calibrate_runs()
        else:
            calibrate_pairs(part)
