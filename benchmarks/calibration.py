"""How often the comparison claims what is not there, and how often it misses what is: real training, simulated EEG.

    python -m benchmarks.calibration [PROTOCOL ...] [FOLDER]    # an hour a protocol on a free core; with a number
                                                                # before the folder: of so many datasets only
    python -m benchmarks.calibration effects                    # without training: 4 minutes
    python -m benchmarks.calibration across                     # the same of one recording on another: 5 minutes
    python -m benchmarks.calibration curves FOLDER              # on the logs of real trainings: a minute
    python -m benchmarks.calibration study                      # of whole grids: 3 minutes

Each dataset (benchmarks/simulated.py) is drawn anew: subjects, images and noise. On it are trained, by params.yaml with
fewer epochs, ten seeds with the embeddings of one image model, five with those of an equal one, whose noise is its own,
and on a few datasets five with each of two better ones. Every comparison is of runs drawn from these at random, by the
test of `pipeline.compare.comparison.compare`:

    same     two disjoint sets of seeds with the very same embeddings: only seeds differ
    equal    the same seeds with the embeddings of two equal models: seeds, subjects and images differ, as in real use
    +5 ...   the same seeds with those of a better model; `points` tells by how much it was better

With a FOLDER the similarities are stored there, and what is there is not trained again: another test is then tried in
a minute. Beside our test stands the former one, with the same data.

`effects` draws which images each run retrieves first, see `draw_effects`: thousands of comparisons, so that the share
of false claims is known within half a point; beside what was found stands the power that pipeline.compare.power
predicts. `across` draws so for models that are trained on people of one recording and tested on those of another, see
`draw_across`. `curves` compares real trainings of one model, so that nothing is there to be found, and adds a
difference.
`study` asks the same of whole grids, as `pipeline.study.summary.summarise` does, see `draw_study`.

Comparisons of one dataset share runs. So beside the binomial interval of the share of claims (Clopper-Pearson, as if
all were independent) stands its standard error from the spread over the datasets, which are independent.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from benchmarks.simulated import Data, embed, recipe, similarities, simulate
from pipeline.compare.power import Design, power
from pipeline.compare.variances import variance_components
from pipeline.errors import InputError
from pipeline.evaluate.similarities import SubjectResult
from pipeline.evaluate.statistics import (
    ALPHA,
    MIN_SUBJECTS,
    Variance,
    holm,
    t_test,
    variance_of_mean,
    variance_over_seeds,
)
from pipeline.params import read_params
from pipeline.sections import Evaluate
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.study.summary import ENCODERS
from pipeline.train.draws import derive_seeds
from pipeline.train.loop import train_together
from pipeline.train.protocols import plan
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup

SEEDS = (1, 3, 5)
COMPARISONS = 200  # at least, for each kind and number of seeds


@dataclass(frozen=True)
class ImageModel:
    """Of a dataset: which noise its embeddings have, how much, and with how many seeds it is trained."""

    number: int
    noise: float
    n_seeds: int


WORSE = 4.5  # noise of the embeddings
MODELS = {"first": ImageModel(0, WORSE, 10), "second": ImageModel(1, WORSE, 5)}
BETTER = {"+5": ImageModel(3, 4.0, 5), "+10": ImageModel(4, 3.5, 5)}
KINDS = {"first": "same", "second": "equal"} | {name: name for name in BETTER}


@dataclass(frozen=True)
class Setting:
    """Of one protocol; in each, top-1 is some 50 % of 100 images. `planted` are the datasets with better models."""

    n_subjects: int
    signal: float
    epochs: int
    batch_size: int
    n_datasets: int
    planted: range = range(0, 6)
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


def runs(protocol: str, number: int, name: str, folder: Path | None) -> list[list[SubjectResult]]:
    """All folds of each seed with the embeddings of one image model; from the folder if they are there."""
    file = folder / f"{protocol}-{number}-{name}.npz" if folder else None
    if file and file.exists():
        return read_runs(file)

    trained = train_seeds(protocol, number, (MODELS | BETTER)[name])
    if file:
        write_runs(file, trained)
    return trained


def train_seeds(protocol: str, number: int, model: ImageModel) -> list[list[SubjectResult]]:
    """The seeds of a fold are trained together, which takes half the time."""
    torch.set_num_threads(1)
    setting, data = SETTINGS[protocol], dataset(protocol, number)
    parameters = recipe(epochs=setting.epochs, batch_size=setting.batch_size)
    embeddings = embed(data, 10 * number + model.number, model.noise)
    names = sorted(set(data.samples.subject))
    scored: list[list[SubjectResult]] = [[] for _ in range(model.n_seeds)]
    for fold in plan(protocol, names, [0]):
        samples = data.samples.take(np.flatnonzero(np.isin(data.samples.subject, fold.trained_on)))
        partitions = []
        for seed in range(model.n_seeds):
            seeds = derive_seeds(seed, fold.fold)
            mask = held_out(samples.things_concept, parameters.validation_concepts, seeds.concepts)
            selection = samples.take(np.flatnonzero(mask))
            partitions.append(Partition(seeds, np.flatnonzero(~mask), selection))
        setup = Setup(samples, embeddings, parameters, torch.device("cpu"))
        for seed, result in enumerate(train_together(setup, partitions)):
            if isinstance(result, InputError):
                raise result
            for subject in fold.tested_on:
                found = similarities(result.model, data.test_eeg[names.index(subject)], embeddings)
                scale = result.model.logit_scale.item()
                about = (fold.fold, seed, subject, result.epoch, result.collapsed, scale)
                scored[seed].append(SubjectResult(*about, np.empty(0), np.empty(0), found))
    return scored


RUN_FACTS = ("fold", "seed", "subject", "selected_epoch", "collapsed", "logit_scale")


def write_runs(file: Path, runs: list[list[SubjectResult]]) -> None:
    columns = {
        name: np.array([[getattr(result, name) for result in run] for run in runs])
        for name in (*RUN_FACTS, "similarity")
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, **columns)
    temporary.rename(file)


def read_runs(file: Path) -> list[list[SubjectResult]]:
    with np.load(file) as columns:
        facts = [columns[name].tolist() for name in RUN_FACTS]
        similarity = columns["similarity"]  # (R, T, N, N)
    nothing = np.empty(0)
    return [
        [SubjectResult(*about, nothing, nothing, found) for *about, found in zip(*run, strict=True)]
        for run in zip(*facts, similarity, strict=True)
    ]


def claim(protocol: str, sides: list[list[list[SubjectResult]]]) -> tuple[str, float, bool]:
    """Verdict and difference in points of the runs of each side, and whether the former test claims it."""
    first, second = (np.array([[right(s) for s in run] for run in side]) for side in sides)
    difference = float(second.mean() - first.mean())
    if any(result.collapsed for side in sides for run in side for result in run):
        return "no claim", 100 * difference, False

    verdict = "no difference shown"
    if our_p(protocol, first, second) <= ALPHA:
        verdict = "better" if difference > 0 else "worse"
    return verdict, 100 * difference, former_p(protocol, first, second) <= ALPHA


def right(result: SubjectResult) -> np.ndarray:
    """Which images are first, (N,)."""
    similarity = result.similarity
    return (similarity >= similarity.diagonal()[:, None]).sum(1) == 1


def former_p(protocol: str, first: np.ndarray, second: np.ndarray) -> float:
    """p of the former test of right answers (R, S, N): the noise counted twice, the seeds unpaired; 1 if no claim."""
    differences = second.astype(float) - first
    parts = factors_apart(protocol, differences)
    if protocol == "pooled":
        parts += [variance_of_mean(side.mean((1, 2))) for side in (first, second)]
    return p_of(differences, parts)


def our_p(protocol: str, first: np.ndarray, second: np.ndarray) -> float:
    """p as of `pipeline.compare.comparison.compare`, with mean squares in place of the bootstrap; 1 if no claim.

    So thousands of them take seconds. That `compare` has the same parts: tests/test_comparison.py.
    """
    differences = second.astype(float) - first
    _, n_subjects, n_images = differences.shape
    parts = factors_apart(protocol, differences)

    pairs = differences.mean(0)
    rest = pairs - pairs.mean(1, keepdims=True) - pairs.mean(0) + pairs.mean()
    noise = np.square(rest).sum() / (n_subjects - 1) / (n_images - 1) / rest.size
    parts.append(Variance(-float(noise), np.inf))
    if protocol == "pooled":
        parts.append(variance_over_seeds(first.mean((1, 2)), second.mean((1, 2))))
    return p_of(differences, parts)


def factors_apart(protocol: str, differences: np.ndarray) -> list[Variance]:
    """The parts of subjects and of images."""
    left_out = protocol == "leave-one-subject-out"
    by_subject, by_image = differences.mean((0, 2)), differences.mean((0, 1))
    return [variance_of_mean(by_subject, left_out), variance_of_mean(by_image)]


def p_of(differences: np.ndarray, parts: list[Variance]) -> float:
    p = t_test(float(differences.mean()), parts)[1]
    return 1.0 if np.isnan(p) else p


def evaluate_parameters() -> Evaluate:
    return Evaluate(
        **read_params(Path("params.yaml")).evaluate.model_dump() | {"resamples": 300, "top_k": [1]}
    )


Claim = tuple[str, int, str, float, bool]  # model, seeds, verdict, points, the former test


def compare_dataset(
    protocol: str,
    number: int,
    of_model: dict[str, list[list[SubjectResult]]],
    each: int,
    seeds: Sequence[int] = SEEDS,
) -> list[Claim]:
    """Comparisons of one dataset, `each` with a model and a number of seeds."""
    torch.set_num_threads(1)
    rng, found = np.random.default_rng(number), []
    first = of_model["first"]
    for k in seeds:
        for model, with_it in of_model.items():
            for _ in range(each):
                drawn = rng.permutation(len(with_it))
                rows = (drawn[:k], drawn[k : 2 * k]) if model == "first" else (drawn[:k], drawn[:k])
                sides = [
                    [side[i] for i in chosen]
                    for side, chosen in zip((first, with_it), rows, strict=True)
                ]
                found.append((model, k, *claim(protocol, sides)))
    return found


def train_and_compare(
    protocol: str, number: int, n_datasets: int, folder: Path | None
) -> tuple[list[Claim], np.ndarray]:
    """The comparisons of one dataset; and top-1 in %, (2, 5), of five seeds with either equal model."""
    setting = SETTINGS[protocol]
    models = [*MODELS, *(BETTER if number in setting.planted else ())]
    of_model = {model: runs(protocol, number, model, folder) for model in models}
    each = -(-COMPARISONS // n_datasets)
    levels = [[top1(run) for run in of_model[model][:5]] for model in MODELS]
    return compare_dataset(protocol, number, of_model, each), np.array(levels)


def calibrate(
    protocol: str, most: int | None, folder: Path | None, pool: ProcessPoolExecutor
) -> None:
    setting = SETTINGS[protocol]
    n_datasets = min(most or setting.n_datasets, setting.n_datasets)
    jobs = [
        pool.submit(train_and_compare, protocol, number, n_datasets, folder)
        for number in range(n_datasets)
    ]
    progress = tqdm(jobs, desc=protocol, unit="dataset", disable=None)
    found, levels = zip(*(job.result() for job in progress), strict=True)

    covariance = np.mean([np.cov(of_dataset) for of_dataset in levels], axis=0)
    spreads = covariance.diagonal() ** 0.5
    print(
        f"\n{protocol}: {n_datasets} datasets, {setting.n_subjects} subjects, "
        f"top-1 {np.mean(levels):.1f} %, sd over seeds {spreads.mean():.1f} points; correlation of two "
        f"models' top-1 over the same seeds {covariance[0, 1] / spreads.prod():+.2f}"
    )
    print(
        "         seeds  points      claims  share    95 % binomial     se wrong sign  former test"
    )
    for model, kind in KINDS.items():
        for k in SEEDS:
            show(kind, k, [[one for one in of if one[:2] == (model, k)] for of in found])


def top1(scored: list[SubjectResult]) -> float:
    return 100 * float(np.mean([right(result) for result in scored]))


def show(kind: str, k: int, found: list[list[Claim]]) -> None:
    """One row, from the comparisons of each dataset."""
    by_dataset = [[one[2:] for one in of] for of in found if of]
    every = [one for of in by_dataset for one in of]
    wrong = sum(verdict == "worse" for verdict, _, _ in every)
    n = wrong + sum(verdict == "better" for verdict, _, _ in every)
    low, high = binomtest(n, len(every)).proportion_ci()
    claimed = [
        np.mean([verdict in ("better", "worse") for verdict, _, _ in of]) for of in by_dataset
    ]
    error = np.std(claimed, ddof=1) / len(claimed) ** 0.5
    points = np.mean([points for _, points, _ in every])
    former = np.mean([former for _, _, former in every])
    print(
        f"{kind:8} {k:5} {points:+7.1f} {n:5}/{len(every):5} {n / len(every):6.1%} {low:7.1%} to {high:5.1%} "
        f"{error:6.1%} {wrong if kind in BETTER else '':>10} {former:12.1%}",
        flush=True,
    )


# Standard deviations of a latent that decides whether an image is first (probit). What both sides share: how much a
# person's EEG tells, how easy an image is, the luck of a seed. What each side has for itself. And what remains.
SHARED = {"subjects": 0.4, "images": 1.0, "pairs": 0.3, "seeds": 0.1, "seeds of images": 0.3}
OWN = {"subjects": 0.1, "images": 0.35, "pairs": 0.25, "seeds": 0.05, "seeds of images": 0.35}
REST = 0.6
HARDER = [
    ("pooled", 3, "subjects alike", {"subjects": 0.0}),
    ("pooled", 3, "seeds differ much", {"seeds": 0.15}),
    ("pooled", 5, "seeds differ much", {"seeds": 0.15}),
    ("within-subject", 3, "subjects alike", {"subjects": 0.0}),
    ("within-subject", 3, "subjects differ much", {"subjects": 0.3}),
]
GAIN = 0.25  # planted
N_FALSE, N_FOUND = 4000, 1000


def draw_effects(
    protocol: str,
    n_seeds: int,
    n_subjects: int,
    n_images: int,
    own: dict[str, float],
    gain: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Which images are first, (2, R, S, N): both sides alike but for `gain`.

    Where each subject has models of its own, so are its seeds. Where they are left out, each training subject does
    something to the models of the others, as much as a subject does when tested.
    """
    S, N = n_subjects, n_images
    # the seeds of shared models are the same for all subjects
    R = (n_seeds, 1 if protocol == "pooled" else S)

    def effects(sd: dict[str, float]) -> np.ndarray:
        drawn = sd["subjects"] * rng.standard_normal((S, 1))
        drawn = drawn + sd["images"] * rng.standard_normal(N)
        drawn = drawn + sd["pairs"] * rng.standard_normal((S, N))
        drawn = drawn + sd["seeds"] * rng.standard_normal((*R, 1))
        return drawn + sd["seeds of images"] * rng.standard_normal((*R, N))

    shared, sides = effects(SHARED), []
    for side in range(2):
        latent = shared + effects(own) + gain * side + REST * rng.standard_normal((n_seeds, S, N))
        if protocol == "leave-one-subject-out":
            trained_on = own["subjects"] * rng.standard_normal(S)
            latent += ((trained_on.sum() - trained_on) / (S - 1))[:, None]
        sides.append(latent > 0)
    return np.array(sides)


def judge_effects(
    protocol: str,
    n_seeds: int,
    n_subjects: int,
    n_images: int,
    own: dict[str, float],
    gain: float,
    n: int,
) -> pd.DataFrame:
    """A row for each of n drawn comparisons: p, that of the former test, the difference, variance components."""
    rows = []
    rng = np.random.default_rng([len(protocol), n_seeds, n_subjects, int(100 * gain)])
    for _ in range(n):
        sides = draw_effects(protocol, n_seeds, n_subjects, n_images, own, gain, rng)
        first, second = sides.astype(float)
        row = {
            "p": our_p(protocol, first, second),
            "former p": former_p(protocol, first, second),
            "difference": float((second - first).mean()),
        }
        if gain:
            by_seed = np.array([side.mean((1, 2)) for side in (first, second)])
            row |= variance_components(second - first, protocol == "pooled")
            row |= {
                "of sums": by_seed.sum(0).var(),
                "of differences": np.diff(by_seed, axis=0).var(),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def calibrate_effects(pool: ProcessPoolExecutor) -> None:
    """False claims, found differences and predicted power, for each protocol and number of seeds."""
    designs = [("pooled", 2), ("pooled", 3), ("pooled", 5)]
    designs += [(p, k) for p in ("within-subject", "leave-one-subject-out") for k in SEEDS]
    rows = [(p, k, 10, 200, "", OWN) for p, k in designs]
    rows += [("pooled", 3, 6, 100, "", OWN)]
    rows += [(p, k, 10, 200, name, OWN | change) for p, k, name, change in HARDER]

    jobs = {}
    for i, (protocol, k, n_subjects, n_images, _, own) in enumerate(rows):
        for gain, n in ((0.0, N_FALSE), (GAIN, N_FOUND)):
            about = (protocol, k, n_subjects, n_images, own, gain, n)
            jobs[i, gain] = pool.submit(judge_effects, *about)

    print(
        f"{N_FALSE} comparisons with nothing planted: share of claims, its 95 % binomial interval, of the former test; "
        f"{N_FOUND} with a difference: points, share found, of the former test, predicted"
    )
    for i, (protocol, k, n_subjects, n_images, name, _) in enumerate(rows):
        null, planted = (jobs[i, gain].result() for gain in (0.0, GAIN))
        n = int((null["p"] <= ALPHA).sum())
        low, high = binomtest(n, len(null)).proportion_ci()
        # the mean of the components, so that what is tested is the formula and not one estimate of them
        means = planted.drop(columns=["p", "former p"]).astype(float).mean().fillna(0.0)
        sums, differences = means["of sums"], means["of differences"]
        components = means.drop(["difference", "of sums", "of differences"]).to_dict()
        correlation = (sums - differences) / (sums + differences) if sums else 0.0
        design = Design(protocol, k, n_subjects, n_images, components, correlation)
        predicted = power(design, means["difference"])
        print(
            f"{protocol:22} {k} seeds {n_subjects:3} subjects {n_images} images {name:20} "
            f"{n / len(null):5.1%} ({low:.1%} to {high:.1%}) {(null['former p'] <= ALPHA).mean():5.1%}   "
            f"{100 * means['difference']:+.1f} {(planted['p'] <= ALPHA).mean():4.0%} "
            f"{(planted['former p'] <= ALPHA).mean():4.0%} {predicted:4.0%}",
            flush=True,
        )


# The same where people of one recording train (f) and those of another are tested (s), on images (n) by seeds (r)
AXES = "rfsn"
ACROSS_SHARED = {"f": 0.3, "s": 0.4, "n": 1.0, "fs": 0.1, "fn": 0.3, "sn": 0.3, "fsn": 0.1}
ACROSS_SHARED |= {"rf": 0.1, "rfs": 0.05, "rfn": 0.3}
ACROSS_OWN = {"f": 0.1, "s": 0.1, "n": 0.35, "fs": 0.05, "fn": 0.25, "sn": 0.25, "fsn": 0.1}
ACROSS_OWN |= {"rf": 0.05, "rfs": 0.05, "rfn": 0.35}
ACROSS_GAIN = 0.26  # planted
N_ACROSS = {0.0: N_FALSE, ACROSS_GAIN: N_FOUND}


@dataclass(frozen=True)
class Across:
    """A comparison of models of one recording on the people of another.

    `of_all`: one model a seed is trained on all `n_training` people. Else each of them has models of their own.
    `own` are the standard deviations by which the sides differ, in place of some of ACROSS_OWN.
    """

    of_all: bool
    n_seeds: int
    n_training: int = 10
    n_subjects: int = 20
    n_images: int = 200
    about: str = ""
    own: tuple[tuple[str, float], ...] = ()


# Who trains gives neither side an advantage: those who trained are all that is asked of
SAME_PEOPLE = (("f", 0.0),)
ACROSS = [Across(True, k, own=SAME_PEOPLE) for k in SEEDS]
ACROSS += [Across(True, k, about="of others who train") for k in (3, 5)]
ACROSS += [Across(False, k) for k in SEEDS]
ACROSS += [
    Across(False, 1, 6, 6, 100),
    Across(False, 3, 6, 6, 100),
    Across(False, 3, 20, 10),
    Across(False, 3, about="trainers alike", own=SAME_PEOPLE),
    Across(False, 3, about="trainers differ much", own=(("f", 0.3),)),
    Across(False, 3, about="tested differ much", own=(("s", 0.3),)),
    Across(False, 3, 3, 6, about="these trainers", own=SAME_PEOPLE),
    Across(False, 5, 3, 6, about="these trainers", own=SAME_PEOPLE),
    Across(False, 5, 3, 6, about="of others who train"),
]


def draw_across(design: Across, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Which images are first, (2, R, F, S, N), alike but for `gain`; F is 1 where one model is of all people.

    Seeds, people who train, people who are tested and images all have effects of their own and with each other. What
    those who train do to a model of all of them is the mean of what each does.
    """
    sizes = dict(zip(AXES, (design.n_seeds, 1, design.n_subjects, design.n_images), strict=True))
    if not design.of_all:
        sizes["f"] = design.n_training

    def noise(axes: str) -> np.ndarray:
        shape = [sizes[axis] if axis in axes else 1 for axis in AXES]
        return rng.standard_normal(shape, np.float32)

    def effects(sd: dict[str, float]) -> np.ndarray:
        drawn = np.zeros((1, 1, 1, 1), np.float32)
        for axes, size in sd.items():
            of_several = design.of_all and "f" in axes and "r" not in axes
            drawn = drawn + size / (design.n_training if of_several else 1) ** 0.5 * noise(axes)
        return drawn

    shared = effects(ACROSS_SHARED)
    own = ACROSS_OWN | dict(design.own)
    return np.array(
        [shared + effects(own) + gain * side + REST * noise(AXES) > 0 for side in range(2)]
    )


def across_p(design: Across, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """p as of `compare` of the answers (R, F, S, N) of either side, and of other tests; 1 if no claim.

    * `now`: the test.
    * `nothing off`: what two factors both hold stands in the parts of both.
    * `all off`: what people who train and people who are tested both hold is taken off too.
    * `fixed`: those who trained are taken for all there are; the seeds of each give the spread.
    """
    if design.of_all:
        return {"now": our_p("pooled", first[:, 0], second[:, 0])}

    differences = (second - first).mean(0)  # (F, S, N)
    n_training, n_subjects, n_images = differences.shape
    people, subjects, images = (
        variance_of_mean(differences.mean(others)) for others in ((1, 2), (0, 2), (0, 1))
    )
    of_answers = overlap(differences.mean(0), n_subjects - 1, n_images - 1)
    with_subjects = [subjects, images, Variance(-of_answers, np.inf)]

    by_seed = [side.mean((2, 3)) for side in (first, second)]  # (R, F) each
    seeds = [
        variance_over_seeds(*of_fold) for of_fold in zip(*(side.T for side in by_seed), strict=True)
    ]
    of_seeds = [Variance(part.value / n_training**2, part.df) for part in seeds]
    p = {"fixed": p_of(differences, [*with_subjects, *of_seeds])}
    if n_training < MIN_SUBJECTS:
        return p | {"now": p["fixed"]}

    of_models = overlap(differences.mean(1), n_training - 1, n_images - 1)
    parts = [people, *with_subjects, Variance(-of_models, np.inf)]
    p |= {"now": p_of(differences, parts)}
    p |= {"nothing off": p_of(differences, [people, subjects, images])}
    return p | {"all off": p_of(differences, [*parts, *people_counted_twice(differences)])}


def people_counted_twice(differences: np.ndarray) -> list[Variance]:
    """What the people who train and those who are tested both hold, (F, S, N); the noise in it is put back."""
    n_training, n_subjects, n_images = differences.shape
    df = (n_training - 1) * (n_subjects - 1)
    pairs = differences.mean(2)
    rest = differences - pairs[:, :, None]
    rest = rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean((0, 1))
    return [
        Variance(-overlap(pairs, n_training - 1, n_subjects - 1), df),
        Variance(float(np.square(rest).sum()) / df / (n_images - 1) / rest.size, np.inf),
    ]


def overlap(values: np.ndarray, *df: int) -> float:
    """The mean square of what rows and columns of `values` have together, over their number."""
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    return float(np.square(rest).sum() / np.prod(df) / rest.size)


def judge_across(design: Across, gain: float) -> pd.DataFrame:
    """A row for each drawn comparison: the difference and p by each test."""
    numbers = (
        design.of_all,
        design.n_seeds,
        design.n_training,
        design.n_subjects,
        len(design.about),
    )
    rng = np.random.default_rng([*map(int, numbers), int(100 * gain)])
    rows = []
    for _ in range(N_ACROSS[gain]):
        first, second = draw_across(design, gain, rng).astype(np.float32)
        difference = float((second - first).mean())
        rows.append({"difference": difference} | across_p(design, first, second))
    return pd.DataFrame(rows)


def calibrate_across(pool: ProcessPoolExecutor) -> None:
    """False claims, and the share found of a planted difference, for each design."""
    jobs = {
        (design, gain): pool.submit(judge_across, design, gain)
        for design in ACROSS
        for gain in N_ACROSS
    }
    print(
        f"{N_ACROSS[0.0]} comparisons with nothing planted: share of claims with its 95 % binomial interval, of other "
        f"tests; {N_ACROSS[ACROSS_GAIN]} with a difference: points, share found"
    )
    for design in ACROSS:
        null, planted = (jobs[design, gain].result() for gain in N_ACROSS)
        claims = int((null["now"] <= ALPHA).sum())
        low, high = binomtest(claims, len(null)).proportion_ci()
        others = {
            name: f"{(null[name] <= ALPHA).mean():.1%}"
            for name in ("nothing off", "all off", "fixed")
            if name in null
        }
        models = "of all" if design.of_all else "of each"
        print(
            f"{models:8} {design.n_seeds} seeds {design.n_training:2} train {design.n_subjects:2} tested "
            f"{design.n_images} images {design.about:22} {claims / len(null):5.1%} ({low:.1%} to {high:.1%}) "
            f"{100 * planted['difference'].mean():+.1f} {(planted['now'] <= ALPHA).mean():4.0%} {others}",
            flush=True,
        )


def calibrate_curves(folder: Path) -> None:
    """Real trainings of one model, logged as `run,sub,split,epoch,top1`, five runs a subject: see the head.

    Each comparison takes for each subject two disjoint sets of its runs. Nothing differs but seeds. Then a difference
    is added that varies over subjects by 3.5 points. Without answers by image, the interval is over subjects alone.
    """
    rng = np.random.default_rng(0)
    print(
        "real trainings, last epoch: sd over seeds within a subject, then for seeds: claims, found, predicted"
    )
    for file in sorted(folder.glob("*.csv")):
        log = pd.read_csv(file)
        last = log[(log["split"] == "TEST") & (log["epoch"] == log["epoch"].max())]
        by_subject = [100 * rows.to_numpy() for _, rows in last.groupby("sub")["top1"]]
        n_subjects = len(by_subject)
        if n_subjects < 6:
            continue
        within = float(np.mean([values.var(ddof=1) for values in by_subject]))
        print(f"{file.stem}: {n_subjects} subjects, {within**0.5:.1f} points")
        for k in (1, 2):
            claims, found, points = [], [], 4.0
            for _ in range(4000):
                drawn = [rng.permutation(values) for values in by_subject]
                luck = np.array([values[:k].mean() - values[k : 2 * k].mean() for values in drawn])
                claims.append(t_test(luck.mean(), [variance_of_mean(luck)])[1] <= ALPHA)
                effect = luck + points + 3.5 * rng.standard_normal(n_subjects)
                found.append(t_test(effect.mean(), [variance_of_mean(effect)])[1] <= ALPHA)
            components = {"subjects": 3.5**2, "seeds x subjects": 2 * within}
            predicted = power(Design("within-subject", k, n_subjects, 200, components, 0.0), points)
            print(f"  {k} seeds: {np.mean(claims):.1%}, {np.mean(found):.0%}, {predicted:.0%}")


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
        own = by_encoder()
        cell = Cell(f"model-{i}", "dreamsim", "last", "nice", protocol, "simulated", "simulated")
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
    """The verdict of each cell, its p before Holm's correction, and its difference in points.

    As in `pipeline.study.summary.summarise`, with p by `our_p`.
    """
    right_of: dict[tuple[str, str], dict[tuple[int, str], np.ndarray]] = {}
    for result in draw_study(protocol, n_seeds, gain, number):
        runs_of_side = right_of.setdefault((result.trial.cell.backbone, result.trial.encoder), {})
        runs_of_side[result.trial.run.seed, result.subject] = result.queries["rank"] == 1

    p, points = [], []
    for i in range(N_CELLS):
        sides = [right_of[f"model-{i}", encoder] for encoder in ENCODERS]
        first, second = (
            np.array([side[key] for key in sorted(side)]).reshape(n_seeds, N_SUBJECTS, -1)
            for side in sides
        )
        p.append(our_p(protocol, first, second))
        points.append(100 * float(second.mean() - first.mean()))

    verdicts = [
        "no difference shown" if corrected > ALPHA else "better" if difference > 0 else "worse"
        for corrected, difference in zip(holm(np.array(p)), points, strict=True)
    ]
    return verdicts, p, points


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
    arguments = sys.argv[1:]
    kinds = [
        name for name in arguments if name in (*SETTINGS, "effects", "across", "curves", "study")
    ]
    numbers = [int(name) for name in arguments if name.isdecimal()]
    folders = [Path(name) for name in arguments if name not in kinds and not name.isdecimal()]
    folder = folders[0] if folders else None
    if kinds == ["curves"]:
        return calibrate_curves(Path(arguments[-1]))

    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for kind in kinds or SETTINGS:
            if kind == "study":
                calibrate_study(pool)
            elif kind == "effects":
                calibrate_effects(pool)
            elif kind == "across":
                calibrate_across(pool)
            else:
                calibrate(kind, numbers[0] if numbers else None, folder, pool)
    return None


if __name__ == "__main__":
    main()
