"""Which epoch: the last one of all the data, or the one that held-out concepts choose?

    python -m benchmarks.epochs accuracy [SIZE ...]      # 800: eight minutes on one core; 16540: for a GPU
    python -m benchmarks.epochs claims [PROTOCOL ...]    # pooled, within-subject: for a GPU
    python -m benchmarks.epochs curves FOLDER            # of real trainings, in seconds

`accuracy` and `claims` are simulated (benchmarks/simulated.py). The recipe is params.yaml with `select_on: validation`,
where a tenth of the concepts is held out, and with `last`. The test EEG chooses nothing. Its noise has a twentieth of
the variance, as if responses were averaged.

`accuracy`: encoder `nice`, all epochs, one subject, so many training images, three strengths of the signal. Seed s
decides the data and the training, in both arms alike: the difference is paired, its standard error is over the seeds.

`claims`: how often a comparison claims a difference where there is none, with data, epochs, `same` and `equal` as in
benchmarks/calibration.py. Both arms see the same data, seeds and pairs of runs.

`curves`: CSV files with the columns run, sub, split (VAL or TEST), epoch and top1 (a share): a row an epoch and split.

All models of an arm are trained at once, which a GPU makes quick.
"""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.calibration import SETTINGS, WORSE, compare_dataset, dataset, show
from benchmarks.simulated import Data, embed, recipe, similarities, simulate
from pipeline.compute.devices import be_deterministic, device_name, pick_device
from pipeline.errors import InputError
from pipeline.evaluate.similarities import SubjectResult
from pipeline.sections import Train
from pipeline.train.draws import derive_seeds
from pipeline.train.many import train_many
from pipeline.train.protocols import Run, plan
from pipeline.train.samples import Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup, Trained

ARMS = ("validation", "last")


@dataclass(frozen=True)
class Size:
    """The training images of one subject, and signals at which top-1 by validation is some 25, 50 and 80 %."""

    n_concepts: int
    per_concept: int
    signals: tuple[float, float, float]


SIZES = {
    "800": Size(n_concepts=200, per_concept=4, signals=(0.22, 0.28, 0.36)),
    # As many as THINGS-EEG2 has: for a GPU. Of the signals only the second was looked at
    "16540": Size(n_concepts=1654, per_concept=10, signals=(0.09, 0.12, 0.16)),
}
N_SEEDS = 8


@dataclass(frozen=True)
class Design:
    """Of `claims`: how many datasets and trainings, and how many seeds a side of a comparison has."""

    n_datasets: int
    n_seeds: int
    seeds_compared: int
    comparisons: int = 5  # of a kind in each dataset


DESIGNS = {"pooled": Design(20, 6, 3), "within-subject": Design(20, 2, 1)}


@dataclass(frozen=True)
class Scene:
    """Simulated data, an image model, and the runs that are trained on them."""

    data: Data
    embeddings: Tensor
    runs: list[Run]


def train_scenes(scenes: Sequence[Scene], parameters: Train) -> list[list[Trained]]:
    """Train all runs of all scenes at once: the data of the scenes lie one after the other."""
    device = pick_device(parameters.device)
    be_deterministic(device)
    samples, embeddings, rows = join(scenes)
    partitions = [
        divide(samples, scene_rows, run, parameters)
        for scene, scene_rows in zip(scenes, rows, strict=True)
        for run in scene.runs
    ]

    setup = Setup(samples, embeddings, parameters, device)
    n_epochs = len(partitions) * parameters.epochs
    with (
        TemporaryDirectory() as states,
        tqdm(total=n_epochs, unit="epoch", leave=False, disable=None) as bar,
    ):
        results = iter(train_many(setup, partitions, Path(states), bar.update))
    return [[trained_model(next(results)) for _ in scene.runs] for scene in scenes]


def join(scenes: Sequence[Scene]) -> tuple[Samples, Tensor, list[np.ndarray]]:
    """The samples and embeddings of all scenes, and which samples are those of each scene."""
    samples = [scene.data.samples for scene in scenes]
    n_images = np.cumsum([0] + [len(scene.embeddings) for scene in scenes])
    n_samples = np.cumsum([0] + [len(part.eeg) for part in samples])
    joined = Samples(
        eeg=torch.cat([part.eeg for part in samples]),
        image_row=torch.cat(
            [part.image_row + int(first) for part, first in zip(samples, n_images, strict=False)]
        ),
        subject=np.concatenate([part.subject for part in samples]),
        things_concept=np.concatenate([part.things_concept for part in samples]),
        sfreq=samples[0].sfreq,
    )
    rows = [np.arange(*ends) for ends in zip(n_samples, n_samples[1:], strict=False)]
    return joined, torch.cat([scene.embeddings for scene in scenes]), rows


def divide(samples: Samples, rows: np.ndarray, run: Run, parameters: Train) -> Partition:
    """What a run learns from, and what chooses its epoch, as the train stage has it."""
    seeds = derive_seeds(run.seed, run.fold)
    rows = rows[np.isin(samples.subject[rows], run.trained_on)]
    if parameters.select_on == "last":
        return Partition(seeds, rows)

    concepts = samples.things_concept[rows]
    mask = held_out(concepts, parameters.validation_concepts, seeds.concepts)
    return Partition(seeds, rows[~mask], samples, rows[mask])


def trained_model(result: Trained | InputError) -> Trained:
    if isinstance(result, InputError):
        raise result
    result.model.cpu()
    return result


def score(scene: Scene, run: Run, trained: Trained) -> list[SubjectResult]:
    """On the test EEG of each subject that the run is tested on."""
    subjects = sorted(set(scene.data.samples.subject))
    return [
        SubjectResult(
            run.fold,
            run.seed,
            subject,
            trained.epoch,
            trained.collapsed,
            trained.model.logit_scale.item(),
            np.empty(0),
            np.empty(0),
            similarities(
                trained.model, scene.data.test_eeg[subjects.index(subject)], scene.embeddings
            ),
        )
        for subject in run.tested_on
    ]


def top1(results: Sequence[SubjectResult]) -> float:
    """Mean over subjects, in percent."""
    shares = [(r.similarity.argmax(1) == np.arange(len(r.similarity))).mean() for r in results]
    return 100 * float(np.mean(shares))


def measure(scenes: Sequence[Scene], arm: str) -> pd.DataFrame:
    """A row a scene of one run: top-1 in percent, the chosen epoch, and seconds (the mean of all)."""
    parameters = recipe(eeg_encoder="nice", select_on=arm)

    # Other work on the machine takes no part in the time of the process
    clock = time.monotonic if pick_device("auto").type == "cuda" else time.process_time
    began = clock()
    trained = train_scenes(scenes, parameters)
    seconds = (clock() - began) / len(scenes)

    return pd.DataFrame(
        {
            "top1": [
                top1(score(scene, scene.runs[0], models[0]))
                for scene, models in zip(scenes, trained, strict=True)
            ],
            "epoch": [models[0].epoch for models in trained],
            "seconds": seconds,
        }
    )


def simulated_scene(size: Size, signal: float, seed: int) -> Scene:
    data = simulate(
        seed,
        signal=signal,
        common=2.0,
        n_subjects=1,
        n_concepts=size.n_concepts,
        per_concept=size.per_concept,
        shape=(6, 100),
        subject_spread=0.0,  # else the strength of the signal differs between the seeds
    )
    subjects = sorted(set(data.samples.subject))
    return Scene(data, embed(data, seed, 2.0), plan("pooled", subjects, [seed]))


def show_accuracy(size: str, signal: float, arms: dict[str, pd.DataFrame]) -> None:
    """A row of the table in docs/protocols.md."""
    by_arm = [arms[arm] for arm in ARMS]
    cells = [f"{arm['top1'].mean():.1f} ({arm['top1'].std():.1f})" for arm in by_arm]
    difference = by_arm[1]["top1"] - by_arm[0]["top1"]
    error = difference.std() / len(difference) ** 0.5
    epoch = by_arm[0]["epoch"]
    ratio = by_arm[1]["seconds"].mean() / by_arm[0]["seconds"].mean()
    print(
        f"| {size} | {signal} | {cells[0]} | {cells[1]} | {difference.mean():+.1f} ({error:.1f}) "
        f"| {epoch.mean():.0f} ({epoch.min()} to {epoch.max()}) | {ratio:.2f} |",
        flush=True,
    )


def warm_up() -> None:
    """The first training of a process takes some seconds more."""
    scene = simulated_scene(SIZES["800"], signal=0.3, seed=0)
    train_scenes([scene], recipe(eeg_encoder="nice", epochs=1))


def accuracy(sizes: Sequence[str]) -> None:
    print(f"{N_SEEDS} seeds; top-1 of 100 in %, mean (sd); difference in points (standard error)\n")
    print(
        "| images | signal | validation | last | difference | epoch chosen (range) | time, last / validation |"
    )
    print("|---|---|---|---|---|---|---|")
    warm_up()
    for size in sizes:
        for signal in SIZES[size].signals:
            scenes = [simulated_scene(SIZES[size], signal, seed) for seed in range(N_SEEDS)]
            arms = {arm: measure(scenes, arm) for arm in ARMS}
            show_accuracy(size, signal, arms)


def compare_equals(
    protocol: str, arm: str, numbers: Sequence[int], pool: Executor
) -> list[list[tuple]]:
    """The comparisons of each of these datasets, as `compare_dataset` returns them."""
    setting = SETTINGS[protocol]
    design = DESIGNS[protocol]
    parameters = recipe(epochs=setting.epochs, batch_size=setting.batch_size, select_on=arm)
    scenes = [
        equal_scene(protocol, number, model) for number in numbers for model in ("first", "second")
    ]
    scored = [
        score_seeds(scene, models)
        for scene, models in zip(scenes, train_scenes(scenes, parameters), strict=True)
    ]

    jobs = []
    for number, first, second in zip(numbers, scored[::2], scored[1::2], strict=True):
        runs = {"first": first, "second": second}
        seeds = [design.seeds_compared]
        jobs.append(pool.submit(compare_dataset, protocol, number, runs, design.comparisons, seeds))
    return [job.result() for job in jobs]


def equal_scene(protocol: str, number: int, model: str) -> Scene:
    """Two image models differ in their noise alone."""
    data = dataset(protocol, number)
    embeddings = embed(data, 10 * number + ["first", "second"].index(model), WORSE)
    subjects = sorted(set(data.samples.subject))
    seeds = list(range(DESIGNS[protocol].n_seeds))
    return Scene(data, embeddings, plan(protocol, subjects, seeds))


def score_seeds(scene: Scene, models: Sequence[Trained]) -> list[list[SubjectResult]]:
    """The results of each seed, in all its folds."""
    by_seed: dict[int, list[SubjectResult]] = {}
    for run, trained in zip(scene.runs, models, strict=True):
        by_seed.setdefault(run.seed, []).extend(score(scene, run, trained))
    return list(by_seed.values())


def show_claims(protocol: str, arm: str, compared: Sequence[list[tuple]]) -> None:
    k = DESIGNS[protocol].seeds_compared
    print(f"\n{protocol}, {arm}, {len(compared)} datasets")
    print(
        "         seeds  points      claims  share    95 % binomial     se             former test"
    )
    for model, kind in (("first", "same"), ("second", "equal")):
        show(kind, k, [[row for row in rows if row[0] == model] for rows in compared])


def claims(protocols: Sequence[str]) -> None:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for protocol in protocols:
            for arm in ARMS:
                numbers = range(DESIGNS[protocol].n_datasets)
                show_claims(protocol, arm, compare_equals(protocol, arm, numbers, pool))


def curves(folder: Path) -> None:
    """The last epoch, the one of the highest validation top-1, and the best one on the test set."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise SystemExit(f"{folder} has no CSV files: name a folder that has some")
    print(
        "top-1 in %, mean (sd over subjects); differences in points (standard error over subjects)\n"
    )
    print(
        "| curves | trainings | epochs | last | by validation | best on test | last - validation | choosing on test |"
    )
    print("|---|---|---|---|---|---|---|---|")
    spreads = []
    for path in files:
        splits = read_curves(path)
        show_curves(
            path.stem, compare_epochs(splits["VAL"], splits["TEST"]), splits["TEST"].shape[1]
        )
        spreads.append(f"{path.stem}: {describe_spread(splits['TEST'])}")
    print("\nsd of the last epoch over seeds of a subject, and of the last ten epochs of a run:")
    print("\n".join(spreads))


def read_curves(path: Path) -> dict[str, pd.DataFrame]:
    """Top-1 in percent by split, a row a training (subject, run) and a column an epoch."""
    table = pd.read_csv(path)
    return {
        split: 100 * of_split.pivot(index=["sub", "run"], columns="epoch", values="top1")
        for split, of_split in table.groupby("split")
    }


def compare_epochs(validation: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Top-1 on the test set in the last epoch, in the one that validation chooses, and in the best one."""
    chosen = validation.to_numpy().argmax(1)  # of equal ones the first
    return pd.DataFrame(
        {
            "last": test.iloc[:, -1],
            "validation": test.to_numpy()[np.arange(len(test)), chosen],
            "best": test.max(axis=1),
        }
    )


def show_curves(name: str, by_training: pd.DataFrame, n_epochs: int) -> None:
    by_subject = by_training.groupby("sub").mean()
    cells = [f"{column.mean():.2f} ({column.std():.1f})" for _, column in by_subject.items()]
    for epoch in ("last", "best"):
        difference = by_subject[epoch] - by_subject["validation"]
        cells.append(f"{difference.mean():+.2f} ({difference.sem():.2f})")
    print(f"| {name} | {len(by_training)} | {n_epochs} | {' | '.join(cells)} |")


def describe_spread(test: pd.DataFrame) -> str:
    """Root mean variances, in points."""
    seeds = test.iloc[:, -1].groupby("sub").var().mean() ** 0.5
    epochs = test.iloc[:, -10:].var(axis=1).mean() ** 0.5
    return f"{seeds:.1f}, {epochs:.1f}"


def main() -> None:
    torch.set_num_threads(1)
    what, *names = sys.argv[1:] or [""]
    if what == "curves" and len(names) == 1:
        curves(Path(names[0]))
    elif what == "accuracy":
        accuracy(names or ["800"])
    elif what == "claims":
        claims(names or list(DESIGNS))
    else:
        raise SystemExit(__doc__)
    print(f"\n{device_name(pick_device('auto'))}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
