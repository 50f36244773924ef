"""The runs of a protocol: which subjects each trains on, which it is tested on, and all of them side by side.

Every run starts from a fresh initialisation; there is one for each fold of the protocol and each seed. Nothing but
`select_on: test` ever opens the test split.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from tqdm import tqdm

from pipeline.decoding.model import Notes, save_model
from pipeline.decoding.samples import Shelf
from pipeline.decoding.training import Trained, derive_seeds, held_out, train
from pipeline.devices import pick_device
from pipeline.eeg.recordings import read_shape
from pipeline.errors import InputError
from pipeline.files import replacing, sha256
from pipeline.images.embeddings import Embeddings, read_embeddings
from pipeline.sections import Block, Runs, Train
from pipeline.unfinished import unfinished
from pipeline.workers import fitting, side_by_side

PACKAGES = ("torch", "numpy", "braindecode")  # whose versions decide the weights
RUN_BYTES = 1_000_000_000  # of a process beside the EEG that it holds: torch, the model and its activations


@dataclass(frozen=True)
class Run:
    """One model: the fold of the protocol, the seed, and the subjects it is trained and tested on."""

    fold: str
    seed: int
    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.fold}-seed-{self.seed}"


def plan(protocol: str, subjects: list[str], seeds: list[int]) -> list[Run]:
    """The runs of a protocol: `pooled`, `within-subject` or `leave-one-subject-out`."""
    if protocol == "pooled":
        folds = [("pooled", subjects, subjects)]
    elif protocol == "within-subject":
        folds = [(subject, [subject], [subject]) for subject in subjects]
    else:
        if len(subjects) < 2:
            raise InputError(f"leave-one-subject-out needs two subjects or more and has {len(subjects)}: set subjects")
        folds = [(f"without-{left}", [s for s in subjects if s != left], [left]) for left in subjects]
    return [Run(fold, seed, tuple(on), tuple(tested)) for fold, on, tested in folds for seed in seeds]


def seeds_of(seed: int, seeds: int | list[int], key: str = "train.seeds") -> list[int]:
    """A number of seeds counts from `seed`; a list is taken as it is."""
    if isinstance(seeds, int):
        return list(range(seed, seed + seeds))
    if len(set(seeds)) != len(seeds):
        raise InputError(f"{key} = {seeds} names a seed twice, which would count one run as two: name it once")
    return seeds


@dataclass(frozen=True)
class Source:
    """A file and its hash: a process that reads a file once for many runs must notice if it has become another."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Source":
        return cls(path.resolve(), sha256(path))


@lru_cache(maxsize=1)
def training_eeg(eeg: tuple[Source, ...]) -> Shelf:
    """Of these subjects; this process keeps the last one asked for, for its next runs."""
    return Shelf([source.path for source in eeg], "train")


@lru_cache(maxsize=1)
def averaged_test_eeg(eeg: tuple[Source, ...]) -> Shelf:
    """Likewise; the repetitions of an image are averaged."""
    return Shelf([source.path for source in eeg], "test")


@lru_cache(maxsize=4)
def _embeddings(source: Source, block: Block | Literal["mix"], views: str, views_in_gallery: str) -> Embeddings:
    return read_embeddings(source.path, block, views, views_in_gallery)


def embeddings_of(source: Source, parameters: Train) -> Embeddings:
    """What these parameters learn and are tested on; this process keeps the last few."""
    return _embeddings(source, parameters.block, parameters.views, parameters.views_in_gallery)


def train_run(
    run: Run,
    eeg: Mapping[str, Source],
    embeddings: Embeddings,
    parameters: Train,
    state: Path,
    step: Callable[[], None],
) -> tuple[Trained, Notes]:
    """Train one run; `eeg` are the prepared files of all subjects, by name.

    Only the files of `run.trained_on` are opened, and those of `run.tested_on` if `select_on` is test, so that nothing
    else can leak. Interrupted, it goes on from the last epoch in `state`. `step` is called once an epoch.
    """
    paths = [eeg[subject].path for subject in run.trained_on]
    samples, rows = training_eeg(_held(run, eeg)).samples(paths, embeddings)
    selection, seeds = None, derive_seeds(run.seed, run.fold)
    if parameters.select_on == "validation":
        mask = held_out(samples.things_concept[rows], parameters.validation_concepts, seeds.concepts)
        rows, selection = rows[~mask], samples.take(rows[mask])
    elif parameters.select_on == "test":
        tested, of_run = averaged_test_eeg(tuple(eeg.values())).samples(
            [eeg[one].path for one in run.tested_on], embeddings
        )
        selection = tested.take(of_run)
    device, values = pick_device(parameters.device), torch.from_numpy(embeddings.values)
    # Where an operation has no deterministic form torch warns. A CPU needs no switch: its operations all have one.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    learned = None if embeddings.learned is None else torch.from_numpy(embeddings.learned)
    trained = train(
        samples, rows, selection, values, parameters, seeds, device, state, step, embeddings.blocks, learned
    )
    return trained, Notes(
        fold=run.fold,
        seed=run.seed,
        trained_on=list(run.trained_on),
        tested_on=list(run.tested_on),
        protocol=parameters.protocol,
        selected_on=parameters.select_on,
        views=embeddings.views,
        views_in_gallery=embeddings.views_in_gallery,
        selected_epoch=trained.epoch,
        collapsed=trained.collapsed,
    )


def _held(run: Run, eeg: Mapping[str, Source]) -> tuple[Source, ...]:
    """Whose training EEG a process holds for this run: the subject's, or everybody's for all folds on several."""
    return (eeg[run.trained_on[0]],) if len(run.trained_on) == 1 else tuple(eeg.values())


def how_many(where: Runs, runs: Sequence[Run], eeg: Mapping[str, Source], device: torch.device) -> int:
    """How many of these runs go side by side; of a Dask scheduler's address it decides nothing."""
    if where.workers != "auto":
        return min(where.workers, len(runs))
    if where.where == "slurm":
        raise InputError(
            "runs.workers is auto and runs.where slurm: set runs.workers to the most jobs you want at once"
        )
    if len(runs) == 1:
        return 1
    held = {_held(run, eeg) for run in runs}
    needed = max(sum(_training_bytes(source.path) for source in sources) for sources in held)
    return fitting(needed + RUN_BYTES, len(runs), on_gpus=device.type == "cuda")


def _training_bytes(path: Path) -> int:
    shape, dtype = read_shape(path, "train", average=False)
    return math.prod(shape) * min(dtype.itemsize, 4)


def train_all(eeg_dir: Path, embeddings: Path, out: Path, parameters: Train, seed: int, where: Runs) -> list[Notes]:
    """Train every run of the protocol, side by side: a folder of `out` each, and the mean history.

    Returns the notes of each run, as in its model.json. After an interruption finished runs are not repeated and
    the others go on from their last epoch: states are kept in the cache folder, keyed by a hash of data, parameters and
    code, until all runs are done.
    """
    eeg, source = sources(eeg_dir), Source.of(embeddings)
    runs = plan(parameters.protocol, list(eeg), seeds_of(seed, parameters.seeds))
    n_workers = how_many(where, runs, eeg, pick_device(parameters.device))
    threads = max(1, (os.cpu_count() or 1) // n_workers)
    inputs = [one.sha256 for one in (*eeg.values(), source)]
    decided_by = [inputs, [run.name for run in runs], parameters.model_dump(), threads]
    name = f"train {len(runs)} x"
    with unfinished("training", __file__, PACKAGES, decided_by) as states:
        task = partial(_train_and_save, eeg, source, out.resolve(), parameters, states, threads)
        if n_workers == 1 and where.where == "local":
            with tqdm(total=len(runs) * parameters.epochs, unit="epoch", desc=name, disable=None) as bar:
                notes = [task(run, bar.update) for run in runs]
        else:
            finished = dict(
                side_by_side(
                    task,
                    runs,
                    where.where,
                    n_workers,
                    label=name,
                    name=lambda run: run.name,
                    steps=lambda run: parameters.epochs,
                )
            )
            notes = [finished[run].result() for run in runs]
    histories = pd.concat(pd.read_csv(out / run.name / "history.csv") for run in runs)
    with replacing(out / "history.csv") as temporary:
        histories.groupby("epoch", as_index=False).mean().to_csv(temporary, index=False)
    return notes


def sources(eeg_dir: Path) -> dict[str, Source]:
    """The prepared subjects of a folder, by name."""
    files = {path.stem: Source.of(path) for path in sorted(eeg_dir.glob("*.h5"))}
    if not files:
        raise InputError(f"{eeg_dir}: holds no subject's EEG; run the preprocess stage first")
    return files


def _train_and_save(
    eeg: Mapping[str, Source],
    embeddings: Source,
    out: Path,
    parameters: Train,
    states: Path,
    threads: int,
    run: Run,
    step: Callable[[], None],
) -> Notes:
    torch.set_num_threads(threads)
    cached = embeddings_of(embeddings, parameters)
    trained, notes = train_run(run, eeg, cached, parameters, states / f"{run.name}.pt", step)
    save_model(trained.model.cpu(), out / run.name, notes)
    with replacing(out / run.name / "history.csv") as temporary:
        trained.history.to_csv(temporary, index=False)
    return notes
