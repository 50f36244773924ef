"""The runs of a protocol, trained side by side and saved.

Only `select_on: test` learns anything of the test split. All other training only checks that the
test split can be used.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.compute.devices import be_deterministic, pick_device
from pipeline.compute.machine import n_cores
from pipeline.compute.unfinished import unfinished
from pipeline.compute.workers import side_by_side
from pipeline.eeg_encoders.table import EEG_ENCODERS, has_closed_form
from pipeline.errors import InputError
from pipeline.files import check_folders, replacing
from pipeline.images.embeddings import Embeddings
from pipeline.provenance import code_hash
from pipeline.sections import Runs, Train
from pipeline.train import finished
from pipeline.train.closed_form import fit_all, seeds_that_count
from pipeline.train.draws import check_control, derive_seeds, shuffle_images
from pipeline.train.inputs import (
    HashedFile,
    SecondRecording,
    averaged_test_eeg,
    cached_embeddings,
    find_people,
    hash_eeg_weights,
    training_eeg,
    training_files,
)
from pipeline.train.many import train_many
from pipeline.train.model import Notes, save_model
from pipeline.train.notes import note
from pipeline.train.placement import how_many, make_groups, name_of_group, on_gpus
from pipeline.train.protocols import Run, seeds_of
from pipeline.train.samples import LoadedEeg, Samples
from pipeline.train.selection import held_out
from pipeline.train.training import Partition, Setup, Trained

PACKAGES = ("torch", "numpy", "braindecode")  # their versions decide the weights

# Reads all code now, as this process has imported it: the files may change later
code_hash(__file__, PACKAGES, {"EEG_ENCODERS": list(EEG_ENCODERS)})

TrainGroup = Callable[[tuple[Run, ...], Callable[[], None]], list[Notes]]


def train_all(
    eeg_dir: Path,
    embeddings: Path,
    out: Path,
    recipe: Train,
    seed: int,
    placement: Runs,
    second: SecondRecording | None = None,
) -> list[Notes]:
    """Train every run of the protocol, side by side: a folder of `out` each, and the mean history.

    Returns the notes of each run, as in its model.json. A run that was finished before is not
    repeated (`finished`), and after an interruption the others go on from their last epoch: states
    are in the cache folder, under a hash of data, parameters and code, until all runs are done.
    `second` is used by the protocol across alone.
    InputError where the inputs cannot be used, or a run failed.
    """
    check_control(recipe)
    check_folders({out: 0})
    people = find_people(eeg_dir, recipe.protocol, second)
    eeg = people.eeg
    cache = HashedFile.of(embeddings)
    seeds = seeds_that_count(recipe.eeg_encoder, seeds_of(seed, recipe.seeds))
    runs = people.plan(recipe.protocol, seeds)

    gpus = on_gpus(recipe, placement)
    trained_on = {subject: eeg[subject] for run in runs for subject in run.trained_on}
    n_workers = how_many(placement, runs, trained_on, gpus)
    groups = make_groups(runs, recipe, n_workers, gpus)
    # torch's own number, unless a caller or OMP_NUM_THREADS has set a lower one
    threads = max(1, min(torch.get_num_threads(), n_cores() // n_workers))

    hashes = [file.sha256 for file in (*eeg.values(), cache)] + hash_eeg_weights(recipe)
    decided_by = [hashes, [run.name for run in runs], recipe.model_dump(), threads]
    chosen = {"EEG_ENCODERS": [recipe.eeg_encoder]}
    with unfinished("training", __file__, PACKAGES, chosen, decided_by) as states:
        trainings = finished.cache_of_trainings()
        work = partial(
            _train_and_save, eeg, cache, out.resolve(), recipe, trainings, states, threads
        )
        if n_workers == 1 and placement.where == "local":
            notes = _one_after_the_other(work, groups, recipe.epochs)
        else:
            notes = _side_by_side(work, groups, recipe.epochs, placement.where, n_workers)

    histories = pd.concat(pd.read_csv(out / run.name / "history.csv") for run in runs)
    with replacing(out / "history.csv") as temporary:
        histories.groupby("epoch", as_index=False).mean().to_csv(temporary, index=False)
    return notes


def _one_after_the_other(
    work: TrainGroup, groups: Sequence[tuple[Run, ...]], epochs: int
) -> list[Notes]:
    n_runs = sum(len(group) for group in groups)
    notes = []
    label = f"train {n_runs} x"
    with tqdm(total=n_runs * epochs, unit="epoch", desc=label, disable=None) as bar:
        for group in groups:
            notes += work(group, bar.update)
    return notes


def _side_by_side(
    work: TrainGroup, groups: Sequence[tuple[Run, ...]], epochs: int, where: str, n_workers: int
) -> list[Notes]:
    n_runs = sum(len(group) for group in groups)
    futures = dict(
        side_by_side(
            work,
            groups,
            where,
            n_workers,
            label=f"train {n_runs} x",
            name=name_of_group,
            steps=lambda group: len(group) * epochs,
        )
    )
    return [notes for group in groups for notes in futures[group].result()]


def _train_and_save(
    eeg: Mapping[str, HashedFile],
    cache: HashedFile,
    out: Path,
    recipe: Train,
    trainings: Path,
    states: Path,
    threads: int,
    runs: tuple[Run, ...],
    step: Callable[[], None],
) -> list[Notes]:
    """Train a group of runs and save those that succeeded; InputError if one failed."""
    torch.set_num_threads(threads)
    group_states = states / runs[0].name
    group_states.mkdir(exist_ok=True)
    results = train_runs(runs, eeg, cache, recipe, trainings, group_states, step)

    all_notes = []
    for run, result in zip(runs, results, strict=True):
        if not isinstance(result, InputError):
            trained, notes = result
            save_model(trained.model.cpu(), out / run.name, notes)
            with replacing(out / run.name / "history.csv") as temporary:
                trained.history.to_csv(temporary, index=False)
            all_notes.append(notes)

    for run, result in zip(runs, results, strict=True):
        if isinstance(result, InputError):
            raise InputError(f"{run.name}: {result}")
    return all_notes


def train_runs(
    runs: Sequence[Run],
    eeg: Mapping[str, HashedFile],
    cache: HashedFile,
    recipe: Train,
    trainings: Path,
    states: Path,
    step: Callable[[], None],
) -> list[tuple[Trained, Notes] | InputError]:
    """Train those of these runs that are not finished, many at once if the recipe can be stacked.

    Returns the model and notes of each run, or why it failed. `eeg` are the prepared files of all
    subjects, by name, and `cache` the embeddings. `trainings` is the folder of finished trainings,
    `states` that of interrupted ones.
    `step` is called once an epoch and run.
    """
    embeddings = cached_embeddings(cache, recipe)
    code = code_hash(__file__, PACKAGES, {"EEG_ENCODERS": [recipe.eeg_encoder]})
    files = {run: trainings / finished.name_of(run, eeg, cache, recipe, code) for run in runs}

    results: dict[Run, Trained | InputError] = {}
    for run, file in files.items():
        trained = finished.read(file, recipe)
        if trained is not None:
            results[run] = trained
            for _ in range(recipe.epochs):
                step()

    new_runs = [run for run in runs if run not in results]
    if new_runs:
        results |= _train_new(new_runs, eeg, embeddings, recipe, states, step)
    for run in new_runs:
        result = results[run]
        if isinstance(result, Trained):
            finished.write(files[run], result)

    return [_with_notes(run, results[run], embeddings, recipe) for run in runs]


def _train_new(
    runs: Sequence[Run],
    eeg: Mapping[str, HashedFile],
    embeddings: Embeddings,
    recipe: Train,
    states: Path,
    step: Callable[[], None],
) -> dict[Run, Trained | InputError]:
    """Train these runs, and return each model, or why there is none.

    Only files of `trained_on` are opened, and those of `tested_on` if `select_on` is test, so that
    nothing else can leak.
    """
    device = pick_device(recipe.device)
    be_deterministic(device)

    def read(loaded: LoadedEeg, subjects: Iterable[tuple[str, ...]]) -> Samples:
        names = sorted(set().union(*subjects))
        return loaded.samples([eeg[name].path for name in names], embeddings)

    loaded = training_eeg(training_files(runs, eeg))
    samples = read(loaded, (run.trained_on for run in runs))
    test_samples = None
    if recipe.select_on == "test":
        loaded = averaged_test_eeg(tuple(eeg.values()))
        test_samples = read(loaded, (run.tested_on for run in runs))

    targets = None if embeddings.targets is None else torch.from_numpy(embeddings.targets)
    values = torch.from_numpy(embeddings.values)
    setup = Setup(samples, values, recipe, device, targets, embeddings.blocks)
    if recipe.control == "shuffled":
        return {run: _train_control(run, setup, states, step) for run in runs}

    partitions = [_partition(run, samples, test_samples, recipe) for run in runs]
    return dict(zip(runs, _train_or_fit(setup, partitions, states, step), strict=True))


def _train_or_fit(
    setup: Setup, partitions: Sequence[Partition], states: Path, step: Callable[[], None]
) -> list[Trained | InputError]:
    """A model for each partition; by its closed form, where the EEG encoder has one."""
    if has_closed_form(setup.recipe.eeg_encoder):
        return fit_all(setup, partitions, step)
    return train_many(setup, partitions, states, step)


def _train_control(
    run: Run, setup: Setup, states: Path, step: Callable[[], None]
) -> Trained | InputError:
    """Train a run on shuffled images, alone: each run has an order of its own."""
    samples = shuffle_images(setup.samples, derive_seeds(run.seed, run.fold).control)
    partition = _partition(run, samples, None, setup.recipe)
    states = states / run.name
    states.mkdir(exist_ok=True)
    [result] = _train_or_fit(replace(setup, samples=samples), [partition], states, step)
    return result


def _partition(
    run: Run, samples: Samples, test_samples: Samples | None, recipe: Train
) -> Partition:
    """The rows that a run learns from, and those that select its epoch."""
    seeds = derive_seeds(run.seed, run.fold)
    rows = np.flatnonzero(np.isin(samples.subject, run.trained_on))

    if test_samples is not None:
        test_rows = np.flatnonzero(np.isin(test_samples.subject, run.tested_on))
        return Partition(seeds, rows, test_samples, test_rows)
    if recipe.select_on == "last" or has_closed_form(recipe.eeg_encoder):
        return Partition(seeds, rows)

    concepts = samples.things_concept[rows]
    mask = held_out(concepts, recipe.validation_concepts, seeds.concepts)
    return Partition(seeds, rows[~mask], samples, rows[mask])


def _with_notes(
    run: Run, trained: Trained | InputError, embeddings: Embeddings, recipe: Train
) -> tuple[Trained, Notes] | InputError:
    if isinstance(trained, InputError):
        return trained
    return trained, note(run, trained, embeddings, recipe)
