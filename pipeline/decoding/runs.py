"""The runs of a protocol: which subjects each trains on, which it is tested on, and all of them side by side.

Every run starts from a fresh initialisation; there is one for each fold of the protocol and each seed. Nothing but
`select_on: test` ever opens the test split.
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.decoding.model import Notes, save_model
from pipeline.decoding.training import derive_seeds, held_out, read_samples, train
from pipeline.devices import pick_device
from pipeline.errors import InputError
from pipeline.files import replacing, sha256
from pipeline.images.embeddings import read_embeddings
from pipeline.sections import Train
from pipeline.unfinished import unfinished

PACKAGES = ("torch", "numpy", "braindecode")  # whose versions decide the weights


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


def seeds_of(seed: int, seeds: int | list[int]) -> list[int]:
    """A number of seeds counts from `seed`; a list is taken as it is."""
    if isinstance(seeds, int):
        return list(range(seed, seed + seeds))
    if len(set(seeds)) != len(seeds):
        raise InputError(f"train.seeds = {seeds} names a seed twice, which would count one run as two: name it once")
    return seeds


def train_all(eeg_dir: Path, embeddings: Path, out: Path, parameters: Train, seed: int) -> list[Notes]:
    """Train every run of the protocol, `parameters.workers` side by side: a folder of `out` each, and the mean history.

    Returns the notes of each run, as in its model.json. After an interruption finished runs are not repeated and
    the others go on from their last epoch: states are kept in the cache folder, keyed by a hash of data, parameters and
    code, until all runs are done. A worker holds the EEG of its run once and about 0.5 GB besides.
    """
    files = {path.stem: path for path in sorted(eeg_dir.glob("*.h5"))}
    if not files:
        raise InputError(f"{eeg_dir}: holds no subject's EEG; run the preprocess stage first")
    runs = plan(parameters.protocol, list(files), seeds_of(seed, parameters.seeds))
    workers = min(parameters.workers, len(runs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    inputs = [sha256(path) for path in (*files.values(), embeddings)]
    decided_by = [inputs, [run.name for run in runs], parameters.model_dump(exclude={"workers"}), threads]
    with (
        unfinished("training", __file__, PACKAGES, decided_by) as states,
        tqdm(total=len(runs) * parameters.epochs, unit="epoch", desc=f"train {len(runs)} x", disable=None) as bar,
    ):
        task = partial(_train_run, files, embeddings, out, parameters, states, threads)
        notes = [task(run, bar.update) for run in runs] if workers == 1 else _in_processes(task, runs, workers, bar)
    histories = pd.concat(pd.read_csv(out / run.name / "history.csv") for run in runs)
    with replacing(out / "history.csv") as temporary:
        histories.groupby("epoch", as_index=False).mean().to_csv(temporary, index=False)
    return notes


def _train_run(
    files: dict[str, Path],
    embeddings: Path,
    out: Path,
    parameters: Train,
    states: Path,
    threads: int,
    run: Run,
    progress: Callable[[], None],
) -> Notes:
    """Train one run and write its folder.

    Only the files of `run.trained_on` are opened, and those of `run.tested_on` if `select_on` is test, so that nothing
    else can leak.
    """
    torch.set_num_threads(threads)
    cache = read_embeddings(embeddings, parameters.block)
    samples = read_samples([files[subject] for subject in run.trained_on], "train", cache)
    rows, selection, seeds = np.arange(len(samples.eeg)), None, derive_seeds(run.seed, run.fold)
    if parameters.select_on == "validation":
        mask = held_out(samples.things_concept, parameters.validation_concepts, seeds.concepts)
        rows, selection = rows[~mask], samples.take(rows[mask])
    elif parameters.select_on == "test":
        selection = read_samples([files[subject] for subject in run.tested_on], "test", cache)
    device, values = pick_device(parameters.device), torch.from_numpy(cache.values)
    # Where an operation has no deterministic form torch warns. A CPU needs no switch: its operations all have one.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    state = states / f"{run.name}.pt"
    trained = train(samples, rows, selection, values, parameters, seeds, device, state, progress, cache.blocks)
    notes = Notes(
        fold=run.fold,
        seed=run.seed,
        trained_on=list(run.trained_on),
        tested_on=list(run.tested_on),
        protocol=parameters.protocol,
        selected_on=parameters.select_on,
        selected_epoch=trained.epoch,
        collapsed=trained.collapsed,
    )
    save_model(trained.model.cpu(), out / run.name, notes)
    with replacing(out / run.name / "history.csv") as temporary:
        trained.history.to_csv(temporary, index=False)
    return notes


def _in_processes(task: Callable[..., Notes], runs: list[Run], workers: int, bar: tqdm) -> list[Notes]:
    """The runs in processes of their own; each epoch of each moves the one bar on."""
    context = get_context("spawn")  # a forked copy of torch's threads can hang
    epochs = context.Queue()
    with ProcessPoolExecutor(workers, context, _report_to, (epochs,)) as pool:
        futures = [pool.submit(_train_and_tell, task, run) for run in runs]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                while not epochs.empty():
                    bar.update(epochs.get())
        except BrokenProcessPool as error:
            raise InputError("a run was killed, most likely for want of memory: lower train.workers") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


_epochs: "Queue[int]"  # in a worker: where it tells that an epoch is over


def _report_to(epochs: "Queue[int]") -> None:
    global _epochs
    _epochs = epochs


def _train_and_tell(task: Callable[..., Notes], run: Run) -> Notes:
    return task(run, lambda: _epochs.put(1))
