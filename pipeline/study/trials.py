"""The trials of a study: trained, scored on the test images, stored under a hash of their inputs.

The answers, some kilobytes a run, stay in the folder `study` of the cache folder for ever: another
seed, image model or EEG encoder trains only what is new. All processes must see that folder. An
interrupted run leaves its state there and goes on from its last epoch, on any machine. Where a
process was believed dead, two may work at one run: they write the same bytes.
"""

import functools
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from pipeline.compute.devices import device_name, pick_device
from pipeline.compute.workers import side_by_side
from pipeline.eeg_encoders.table import has_closed_form
from pipeline.errors import PREPARE_AGAIN, InputError
from pipeline.evaluate.scoring import score_average
from pipeline.evaluate.similarities import Queries
from pipeline.files import cache_folder, check_folders, new_hdf5, unreadable
from pipeline.images.embeddings import Embeddings
from pipeline.provenance import code_hash, fingerprint
from pipeline.sections import Across, Runs, Study, Train
from pipeline.study.people import RecordingKey, StudyRecording, plan_runs, tested_recording
from pipeline.study.results import Cell, Trial, TrialResult
from pipeline.train import finished
from pipeline.train.closed_form import seeds_that_count, what_decides
from pipeline.train.draws import check_control
from pipeline.train.inputs import (
    HashedFile,
    averaged_test_eeg,
    cached_embeddings,
    hash_eeg_weights,
)
from pipeline.train.model import ContrastiveModel, Notes
from pipeline.train.placement import how_many, make_groups, name_of_group, on_gpus
from pipeline.train.protocols import seeds_of
from pipeline.train.runs import PACKAGES, train_runs
from pipeline.train.training import Trained

# Reads all code now, as this process has imported it: the files may change later
code_hash(__file__, PACKAGES, {})


@functools.cache
def code_with(eeg_encoder: str) -> str:
    """The hash of all code that a trial with this EEG encoder runs through."""
    return code_hash(__file__, PACKAGES, {"EEG_ENCODERS": [eeg_encoder]})


@dataclass(frozen=True)
class Job:
    """A trial with all that a process needs to run it."""

    trial: Trial
    training_eeg: Mapping[str, HashedFile]  # all subjects of the recording that trains
    test_eeg: Mapping[str, HashedFile]  # and of the one that is tested
    embeddings: HashedFile
    recipe: Train
    code: str  # the hash of the code
    file: Path  # where the answers are stored


def plan_study(
    study: Study,
    seed: int,
    recordings: Mapping[RecordingKey, StudyRecording],
    across: Across,
    kinds: Mapping[str, Mapping[str, bool]],
) -> list[Trial]:
    """The trials of the grid, both encoders in each cell.

    `recordings` are those that the study uses. `kinds` are the alignments of each image model; True
    where one has the block `last` alone.
    InputError where an image model has none of the study's alignments, or a seed is there twice.
    """
    # Before anything is trained: each image model must have something to be compared with.
    for backbone in study.backbones:
        if not set(kinds[backbone]) & set(study.alignments):
            available = ", ".join(kinds[backbone]) or "no alignment"
            raise InputError(
                f"study.alignments is {', '.join(study.alignments)} and {backbone} has "
                f"{available}: name one that it has, or take it out of study.backbones"
            )

    seeds = seeds_of(seed, study.seeds, "study.seeds")

    # True in `kinds`: aligned embeddings come from the unaligned ones of the block `last` alone.
    return [
        Trial(Cell(backbone, alignment, str(block), eeg_encoder, protocol, *datasets), encoder, run)
        for protocol in study.protocols
        for trained in study.recordings
        for datasets in [_datasets_of(protocol, trained, recordings)]
        for run in plan_runs(protocol, trained, recordings, across, seeds)
        for backbone in study.backbones
        for alignment in study.alignments
        for block in study.blocks
        if alignment in kinds[backbone] and (block == "last" or not kinds[backbone][alignment])
        for eeg_encoder in study.eeg_encoders
        # An encoder without seeds runs once, and learns no weights of blocks
        if run.seed in seeds_that_count(eeg_encoder, seeds)
        and not (block == "mix" and has_closed_form(eeg_encoder))
        for encoder in ("unaligned", "aligned")
    ]


def _datasets_of(
    protocol: str, trained: RecordingKey, recordings: Mapping[RecordingKey, StudyRecording]
) -> tuple[str, str]:
    """The datasets that train and test a cell."""
    tested = tested_recording(protocol, trained)
    return recordings[trained].dataset, recordings[tested].dataset


def cache_of(embeddings: Path, trial: Trial) -> Path:
    """Where the embeddings of a trial's images are, below the folder of all."""
    # All alignments of an image model share its unaligned cache.
    kind = trial.cell.alignment if trial.encoder == "aligned" else "unaligned"
    return embeddings / trial.cell.backbone / f"{kind}.h5"


def run_study(
    trials: Sequence[Trial],
    recordings: Collection[StudyRecording],
    embeddings: Path,
    recipe: Train,
    placement: Runs,
) -> tuple[list[TrialResult], dict[Trial, str]]:
    """Run the trials that were not run before; returns all answers, and why others failed.

    `recordings` are those that the trials name, `embeddings` the folder of all caches. The
    unaligned encoder is trained once for all kinds of alignment.
    InputError where the subjects did not see the same test images.
    """
    check_control(recipe)
    paths = sorted({cache_of(embeddings, trial) for trial in trials})
    caches = {path: HashedFile.of(path) for path in paths}
    folder = cache_folder().resolve() / "study"
    people = {recording.dataset: recording.eeg for recording in recordings}
    jobs = [
        _make_job(trial, people, caches[cache_of(embeddings, trial)], recipe, folder)
        for trial in trials
    ]

    # Several cells share the unaligned side: it is one file, and run once
    todo = list({job.file: job for job in jobs if not job.file.exists()}.values())
    n_done = len(jobs) - len(todo)
    print(f"study: {_count(len(jobs))}, of which {n_done} are there already", flush=True)

    reasons: dict[Path, str] = {}
    if todo:
        check_folders({folder: 0})
        reasons = _run_jobs(todo, recipe, placement)

    # By file again: cells that share a failed run all lack it.
    failures = {job.trial: reasons[job.file] for job in jobs if job.file in reasons}

    answers = []
    galleries = set()
    for job in jobs:
        if job.file not in reasons:
            for answer, image_ids in _read_answers(job):
                answers.append(answer)
                galleries.add(tuple(image_ids))
    if len(galleries) > 1:
        raise InputError(
            "the subjects did not see the same test images: set `subjects` to such as did"
        )
    return answers, failures


def _run_jobs(jobs: Sequence[Job], recipe: Train, placement: Runs) -> dict[Path, str]:
    """Run these jobs side by side; returns why some failed, by their files."""
    # As if a process held all recordings: it holds one, so that there is room at any rate
    eeg: dict[str, HashedFile] = {}
    for job in jobs:
        eeg |= job.training_eeg

    gpus = on_gpus(recipe, placement)
    n_workers = how_many(placement, [job.trial.run for job in jobs], eeg, gpus)
    futures = side_by_side(
        run_trials,
        _make_groups(jobs, n_workers, gpus),
        placement.where,
        n_workers,
        label="study",
        name=_name,
        steps=lambda group: len(group) * recipe.epochs,
    )

    reasons = {}
    for group, future in futures:
        error = future.exception()
        # A future that failed took its whole group along.
        group_reasons = [_describe(error)] * len(group) if error else future.result()
        for job, reason in zip(group, group_reasons, strict=True):
            if reason:
                reasons[job.file] = reason
                print(f"failed: {_name((job,))}: {reason}", flush=True)
    return reasons


def _make_job(
    trial: Trial,
    people: Mapping[str, Mapping[str, HashedFile]],
    embeddings: HashedFile,
    study_recipe: Train,
    folder: Path,
) -> Job:
    """The study's recipe with the choices of the cell, and a file named after all of its inputs.

    `people` are the subjects of each dataset.
    """
    cell = trial.cell
    training_eeg = people[cell.trained_dataset]
    test_eeg = people[cell.tested_dataset]
    changes = {
        "block": int(cell.block) if cell.block.isdecimal() else cell.block,
        "eeg_encoder": cell.eeg_encoder,
        "protocol": cell.protocol,
    }
    recipe = Train.model_validate(study_recipe.model_dump() | changes)

    run = trial.run
    # A test subject decides the answer as well: it is scored here.
    files = [training_eeg[subject].sha256 for subject in run.trained_on]
    files += [test_eeg[subject].sha256 for subject in run.tested_on]
    files += hash_eeg_weights(recipe)
    code = code_with(recipe.eeg_encoder)
    # The seed is in `run`. How many there are, and the device, make no other trial. The hash of the
    # weights is in `files`.
    settings = what_decides(recipe).model_dump(exclude={"seeds", "device", "eeg_weights"})
    key = fingerprint(code, files, embeddings.sha256, astuple(run), settings)
    file = folder / f"{key}.h5"
    return Job(trial, training_eeg, test_eeg, embeddings, recipe, code, file)


def _make_groups(jobs: Sequence[Job], n_workers: int, gpus: bool) -> list[tuple[Job, ...]]:
    """Jobs that are trained together: they differ in seed and fold alone.

    There are so many groups that each worker has one.
    """
    by_recipe: dict[object, list[Job]] = {}
    for job in jobs:
        datasets = (job.trial.cell.trained_dataset, job.trial.cell.tested_dataset)
        recipe = job.recipe.model_dump_json()
        by_recipe.setdefault((job.embeddings, recipe, datasets), []).append(job)
    # Parts of each recipe, so that there is a group for each worker.
    n_parts = math.ceil(n_workers / len(by_recipe))

    groups = []
    for same in by_recipe.values():
        groups += make_groups(same, same[0].recipe, n_parts, gpus)
    return groups


def run_trials(jobs: tuple[Job, ...], step: Callable[[], None]) -> list[str]:
    """Train, score and store these trials, which differ in seed and fold alone.

    Returns why each failed, "" where it did not. All on one core or GPU, so that no result depends
    on how many there are.
    InputError where this process runs another version of the code.
    """
    if any(job.code != code_with(job.recipe.eeg_encoder) for job in jobs):
        raise InputError(
            "this worker runs another version of the code than the study: start it again, "
            "in this project's folder"
        )
    torch.set_num_threads(1)
    started = time.monotonic()

    first = jobs[0]
    embeddings = cached_embeddings(first.embeddings, first.recipe)
    # Named after the files of the group, so that another machine finds the state too.
    states = first.file.parent / "unfinished" / fingerprint([job.file.stem for job in jobs])
    states.mkdir(parents=True, exist_ok=True)
    runs = [job.trial.run for job in jobs]
    trainings = first.file.parents[1] / finished.KIND  # of the cache folder that all processes see
    # What a training may read
    eeg = dict(first.training_eeg)
    if first.recipe.select_on == "test":
        eeg |= first.test_eeg
    results = train_runs(runs, eeg, first.embeddings, first.recipe, trainings, states, step)
    seconds = (time.monotonic() - started) / len(jobs)

    reasons = []
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, InputError):
            reasons.append(str(result))
        else:
            reasons.append("")
            _score_and_store(job, *result, embeddings, seconds)

    # Another process at the same runs may already have removed them
    shutil.rmtree(states, ignore_errors=True)
    return reasons


def _score_and_store(
    job: Job, trained: Trained, notes: Notes, embeddings: Embeddings, seconds: float
) -> None:
    """Write the file of a trial; `seconds` went into its training."""
    started = time.monotonic()
    model = trained.model.cpu()  # scored on the CPU, whatever trained it
    with new_hdf5(job.file) as file:
        file.attrs.update(
            {
                "device": device_name(pick_device(job.recipe.device)),
                "selected_epoch": trained.epoch,
                "collapsed": trained.collapsed,
                "seconds": seconds + time.monotonic() - started,
            }
        )

        for subject in job.trial.run.tested_on:
            ids, queries = _score_subject(model, notes, subject, job.test_eeg, embeddings)
            group = file.create_group(subject)
            group.create_dataset("image_ids", data=ids.astype(object), dtype=h5py.string_dtype())
            for name, values in queries.items():
                group[name] = values


def _score_subject(
    model: ContrastiveModel,
    notes: Notes,
    subject: str,
    eeg: Mapping[str, HashedFile],
    embeddings: Embeddings,
) -> tuple[np.ndarray, Queries]:
    """The ids of the N test images, sorted, and the scores of the responses to them, (N,) by name.

    InputError where the test EEG is not finite.
    """
    loaded = averaged_test_eeg(tuple(eeg.values()))
    samples = loaded.samples([eeg[subject].path], embeddings)
    rows = np.flatnonzero(samples.subject == subject)
    ids = embeddings.image_ids[samples.image_row[rows]]
    # Sorted by id, so that the answers of all trials are about the same image in each row.
    rows = rows[np.argsort(ids)]

    responses = samples.eeg[rows]
    if not responses.isfinite().all():
        raise InputError(
            f"{subject}: the test EEG holds values that are not finite; {PREPARE_AGAIN}"
        )
    images = torch.from_numpy(embeddings.values[samples.image_row[rows]])
    scored = score_average(model, notes, subject, responses.numpy(), images)
    return np.sort(ids), scored.queries()


def _read_answers(job: Job) -> list[tuple[TrialResult, np.ndarray]]:
    """The answer of each subject, with the ids of the test images in their order."""
    answers = []
    try:
        with h5py.File(job.file, "r") as file:
            # Only subjects are groups: what is true of the whole trial is an attribute.
            for subject, group in file.items():
                answer = TrialResult(
                    trial=job.trial,
                    subject=subject,
                    selected_epoch=int(file.attrs["selected_epoch"]),
                    collapsed=bool(file.attrs["collapsed"]),
                    device=str(file.attrs["device"]),
                    seconds=float(file.attrs["seconds"]),
                    queries={name: group[name][:] for name in group if name != "image_ids"},
                )
                answers.append((answer, group["image_ids"].asstr()[:]))
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, job.file) or InputError(
            f"{job.file}: is no whole run of a study ({error}); delete it, to have it run again"
        ) from error
    return answers


def _describe(error: BaseException) -> str:
    """One line on why a run failed."""
    if isinstance(error, InputError):
        return str(error)
    text = str(error)
    first_line = text.splitlines()[0] if text else "no more is known"
    return f"{type(error).__name__}: {first_line}"


def _name(jobs: Sequence[Job]) -> str:
    cell = jobs[0].trial.cell
    encoder = jobs[0].trial.encoder
    runs = name_of_group([job.trial.run for job in jobs])
    choices = f"block {cell.block}, {cell.eeg_encoder}, {cell.trained_dataset}"
    return f"{cell.backbone} {encoder}, {choices}, {runs}"


def _count(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"
