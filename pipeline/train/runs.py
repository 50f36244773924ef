"""The runs of a protocol: which subjects each trains on, which it is tested on, and all of them side by side.

Every run starts from a fresh initialisation; there is one for each fold of the protocol and each seed. Nothing but
`select_on: test` learns anything of the test split: of all others it is only checked that it can be used.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.compute.devices import be_deterministic, pick_device
from pipeline.compute.machine import n_cores
from pipeline.compute.unfinished import unfinished
from pipeline.compute.workers import max_local_workers, side_by_side
from pipeline.errors import InputError
from pipeline.files import check_folders, replacing, sha256
from pipeline.images.embeddings import Embeddings, read_embeddings
from pipeline.preprocess.recordings import check_recordings, find_recordings, read_shape
from pipeline.sections import BlockChoice, Runs, Train
from pipeline.train.model import Notes, save_model, stackable
from pipeline.train.samples import Samples, Shelf
from pipeline.train.training import Split, Trained, derive_seeds, held_out, train_many

T = TypeVar("T")

PACKAGES = ("torch", "numpy", "braindecode")  # whose versions decide the weights
# Of a process beside the EEG that it holds: torch, the model and its activations
RUN_BYTES = 1_000_000_000


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
            raise InputError(
                f"leave-one-subject-out needs two subjects or more and has {len(subjects)}: "
                "name more in `subjects`, or choose another protocol"
            )
        folds = [
            (f"without-{left}", [s for s in subjects if s != left], [left]) for left in subjects
        ]
    return [
        Run(fold, seed, tuple(on), tuple(tested)) for fold, on, tested in folds for seed in seeds
    ]


def seeds_of(seed: int, seeds: int | list[int], key: str = "train.seeds") -> list[int]:
    """A number of seeds counts from `seed`; a list is taken as it is."""
    if isinstance(seeds, int):
        return list(range(seed, seed + seeds))
    if len(set(seeds)) != len(seeds):
        raise InputError(
            f"{key} = {seeds} names a seed twice, which would count one run as two: name it once"
        )
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
def _embeddings(
    source: Source, block: BlockChoice | Literal["mix"], views: str, views_in_gallery: str
) -> Embeddings:
    return read_embeddings(source.path, block, views, views_in_gallery)


def embeddings_of(source: Source, parameters: Train) -> Embeddings:
    """What these parameters learn and are tested on; this process keeps the last few."""
    return _embeddings(source, parameters.block, parameters.views, parameters.views_in_gallery)


def train_runs(
    runs: Sequence[Run],
    eeg: Mapping[str, Source],
    embeddings: Embeddings,
    parameters: Train,
    states: Path,
    step: Callable[[], None],
) -> list[tuple[Trained, Notes] | InputError]:
    """Train these runs, many at once if the recipe can be stacked; of each the model and notes, or why it failed.

    `eeg` are the prepared files of all subjects, by name; only those of the subjects that a run is trained on are
    opened, and those of `tested_on` if `select_on` is test, so that nothing else can leak. Interrupted, they go on from
    the last epoch in the folder `states`. `step` is called once an epoch and run.
    """
    device, values = pick_device(parameters.device), torch.from_numpy(embeddings.values)
    be_deterministic(device)
    learned = None if embeddings.learned is None else torch.from_numpy(embeddings.learned)

    def read(shelf: Shelf, subjects: Iterable[tuple[str, ...]]) -> Samples:
        return shelf.samples(
            [eeg[subject].path for subject in sorted(set().union(*subjects))], embeddings
        )

    samples, tested = read(training_eeg(_held(runs, eeg)), (run.trained_on for run in runs)), None
    if parameters.select_on == "test":
        tested = read(averaged_test_eeg(tuple(eeg.values())), (run.tested_on for run in runs))
    splits = [_split(run, samples, tested, parameters) for run in runs]
    all_trained = train_many(
        samples, splits, values, parameters, device, states, step, embeddings.blocks, learned
    )
    return [
        trained
        if isinstance(trained, InputError)
        else (trained, _notes(run, trained, embeddings, parameters))
        for run, trained in zip(runs, all_trained, strict=True)
    ]


def _split(run: Run, samples: Samples, tested: Samples | None, parameters: Train) -> Split:
    seeds = derive_seeds(run.seed, run.fold)
    rows = np.flatnonzero(np.isin(samples.subject, run.trained_on))
    if tested is not None:
        return Split(seeds, rows, tested, np.flatnonzero(np.isin(tested.subject, run.tested_on)))
    if parameters.select_on == "last":
        return Split(seeds, rows, None, rows[:0])
    mask = held_out(samples.things_concept[rows], parameters.validation_concepts, seeds.concepts)
    return Split(seeds, rows[~mask], samples, rows[mask])


def _notes(run: Run, trained: Trained, embeddings: Embeddings, parameters: Train) -> Notes:
    return Notes(
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


def _held(runs: Sequence[Run], eeg: Mapping[str, Source]) -> tuple[Source, ...]:
    """Whose training EEG a process holds for these runs: one subject's, or everybody's for all folds on several."""
    subjects = set().union(*(run.trained_on for run in runs))
    return tuple(eeg[subject] for subject in (subjects if len(subjects) == 1 else eeg))


def on_gpus(parameters: Train, where: Runs) -> bool:
    """Whether the runs go on GPUs; on other machines that is known only if `train.device` is cuda."""
    if where.where != "local":
        return parameters.device == "cuda"
    return pick_device(parameters.device).type == "cuda"


def how_many(where: Runs, runs: Sequence[Run], eeg: Mapping[str, Source], gpus: bool) -> int:
    """How many of these runs go side by side; of a Dask scheduler's address it decides nothing."""
    if where.workers != "auto":
        return min(where.workers, len(runs))
    if where.where == "slurm":
        raise InputError(
            "runs.workers is auto and runs.where slurm: set runs.workers to the most jobs you want at once"
        )
    if len(runs) == 1:
        return 1
    held = {_held(runs, eeg)} if gpus else {_held([run], eeg) for run in runs}
    needed = max(sum(_training_bytes(source.path) for source in sources) for sources in held)
    return max_local_workers(needed + RUN_BYTES, len(runs), on_gpus=gpus)


def stacks(runs: Sequence[T], parameters: Train, n_workers: int, gpus: bool) -> list[tuple[T, ...]]:
    """Which of these runs, alike but for seed and fold, are handed out together: on GPUs as many as there are workers.

    On a CPU one model takes all that it has (`python -m benchmarks.train`), so that each goes alone.
    """
    size = math.ceil(len(runs) / n_workers) if gpus and stackable(parameters) else 1
    return [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]


def _training_bytes(path: Path) -> int:
    shape, dtype = read_shape(path, "train", average=False)
    return math.prod(shape) * min(dtype.itemsize, 4)


def train_all(
    eeg_dir: Path, embeddings: Path, out: Path, parameters: Train, seed: int, where: Runs
) -> list[Notes]:
    """Train every run of the protocol, side by side: a folder of `out` each, and the mean history.

    Returns the notes of each run, as in its model.json. After an interruption finished runs are not repeated and
    the others go on from their last epoch: states are kept in the cache folder, keyed by a hash of data, parameters and
    code, until all runs are done.
    """
    check_folders({out: 0})
    eeg, source = sources(eeg_dir), Source.of(embeddings)
    runs, gpus = (
        plan(parameters.protocol, list(eeg), seeds_of(seed, parameters.seeds)),
        on_gpus(parameters, where),
    )
    n_workers = how_many(where, runs, eeg, gpus)
    groups = stacks(runs, parameters, n_workers, gpus)
    threads = max(1, n_cores() // n_workers)
    inputs = [one.sha256 for one in (*eeg.values(), source)]
    decided_by = [inputs, [run.name for run in runs], parameters.model_dump(), threads]
    name = f"train {len(runs)} x"
    chosen = {"EEG_ENCODERS": [parameters.eeg_encoder]}
    with unfinished("training", __file__, PACKAGES, chosen, decided_by) as states:
        task = partial(_train_and_save, eeg, source, out.resolve(), parameters, states, threads)
        if n_workers == 1 and where.where == "local":
            with tqdm(
                total=len(runs) * parameters.epochs, unit="epoch", desc=name, disable=None
            ) as bar:
                notes = [each for group in groups for each in task(group, bar.update)]
        else:
            finished = dict(
                side_by_side(
                    task,
                    groups,
                    where.where,
                    n_workers,
                    label=name,
                    name=name_of_group,
                    steps=lambda group: len(group) * parameters.epochs,
                )
            )
            notes = [each for group in groups for each in finished[group].result()]
    histories = pd.concat(pd.read_csv(out / run.name / "history.csv") for run in runs)
    with replacing(out / "history.csv") as temporary:
        histories.groupby("epoch", as_index=False).mean().to_csv(temporary, index=False)
    return notes


def name_of_group(runs: Sequence[Run]) -> str:
    return runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def sources(eeg_dir: Path) -> dict[str, Source]:
    """The prepared subjects of a folder, by name; InputError unless they can be trained and tested together."""
    files = find_recordings(eeg_dir)
    if not files:
        raise InputError(
            f"{eeg_dir}: holds no subject's EEG; run the preprocess stage first (`dvc repro preprocess`)"
        )
    check_recordings(list(files.values()))
    return {subject: Source.of(path) for subject, path in files.items()}


def _train_and_save(
    eeg: Mapping[str, Source],
    embeddings: Source,
    out: Path,
    parameters: Train,
    states: Path,
    threads: int,
    runs: tuple[Run, ...],
    step: Callable[[], None],
) -> list[Notes]:
    """Those that trained are saved; InputError if one failed."""
    torch.set_num_threads(threads)
    cached = embeddings_of(embeddings, parameters)
    own_states = states / runs[0].name
    own_states.mkdir(exist_ok=True)
    found = dict(
        zip(runs, train_runs(runs, eeg, cached, parameters, own_states, step), strict=True)
    )
    all_notes = []
    for run, result in found.items():
        if not isinstance(result, InputError):
            trained, notes = result
            save_model(trained.model.cpu(), out / run.name, notes)
            with replacing(out / run.name / "history.csv") as temporary:
                trained.history.to_csv(temporary, index=False)
            all_notes.append(notes)
    for run, result in found.items():
        if isinstance(result, InputError):
            raise InputError(f"{run.name}: {result}")
    return all_notes
