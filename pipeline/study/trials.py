"""The trials of a study, each trained, scored on the test images, and kept under a hash of all that decides it.

Kept are the answers, some kilobytes a run, in the folder `study` of the cache folder, for ever: another seed, image
model or EEG encoder trains only what is new. All processes must see that folder; a run that is interrupted leaves its
state there and goes on from its last epoch, on whatever machine. Two processes at the same run, after one of them was
given up for lost, write the same bytes.
"""

import functools
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from pipeline.compute.devices import device_name, pick_device
from pipeline.compute.workers import side_by_side
from pipeline.errors import PREPARE_AGAIN, InputError
from pipeline.evaluate.scoring import score_whole
from pipeline.evaluate.similarities import Queries
from pipeline.files import cache_folder, check_folders, new_hdf5, unreadable
from pipeline.images.embeddings import Embeddings
from pipeline.provenance import code_hash, fingerprint
from pipeline.sections import Runs, Study, Train
from pipeline.study.results import Answer, Cell, Failure, Trial
from pipeline.train.inputs import HashedFile, averaged_test_eeg, cached_embeddings
from pipeline.train.model import ContrastiveModel, Notes
from pipeline.train.placement import how_many, make_groups, name_of_group, on_gpus
from pipeline.train.protocols import Run, plan, seeds_of
from pipeline.train.runs import PACKAGES, train_runs
from pipeline.train.training import Trained

code_hash(__file__, PACKAGES, {})  # reads all the code now, as this process has imported it


@functools.cache
def code_with(eeg_encoder: str) -> str:
    """The hash of all code that a trial with this EEG encoder runs through."""
    return code_hash(__file__, PACKAGES, {"EEG_ENCODERS": [eeg_encoder]})


@dataclass(frozen=True)
class Task:
    """A trial with all that a process needs to run it."""

    trial: Trial
    eeg: dict[str, HashedFile]
    embeddings: HashedFile
    parameters: Train
    code: str
    kept: Path

    @property
    def run(self) -> Run:
        trial = self.trial
        return Run(trial.fold, trial.seed, trial.trained_on, trial.tested_on)


def plan_study(
    study: Study, seed: int, subjects: list[str], kinds: Mapping[str, Mapping[str, bool]]
) -> list[Trial]:
    """The trials of the grid, both encoders in each cell.

    `kinds` are the alignments that each image model has, and of each whether it is of the block `last` alone.
    """
    for backbone in study.backbones:
        if not set(kinds[backbone]) & set(study.alignments):
            there = ", ".join(kinds[backbone]) or "no alignment"
            raise InputError(
                f"study.alignments is {', '.join(study.alignments)} and {backbone} has {there}: name one that it has, "
                "or take it out of study.backbones"
            )
    seeds = seeds_of(seed, study.seeds, "study.seeds")
    return [
        Trial(Cell(backbone, alignment, str(block), eeg_encoder, protocol), encoder, **asdict(run))
        for protocol in study.protocols
        for run in plan(protocol, subjects, seeds)
        for backbone in study.backbones
        for alignment in study.alignments
        for block in study.blocks
        if alignment in kinds[backbone] and (block == "last" or not kinds[backbone][alignment])
        for eeg_encoder in study.eeg_encoders
        for encoder in ("unaligned", "aligned")
    ]


def cache_of(embeddings: Path, trial: Trial) -> Path:
    """Where the embeddings of a trial's images are, below the folder of all."""
    kind = trial.cell.alignment if trial.encoder == "aligned" else "unaligned"
    return embeddings / trial.cell.backbone / f"{kind}.h5"


def run_study(
    trials: Sequence[Trial],
    eeg: Mapping[str, HashedFile],
    embeddings: Path,
    parameters: Train,
    where: Runs,
) -> tuple[list[Answer], list[Failure]]:
    """Run the trials that were not run before; what all of them answer, and which failed and why.

    `eeg` are the prepared subjects by name. The unaligned encoder is trained once for all kinds of alignment.
    """
    caches = {
        path: HashedFile.of(path)
        for path in sorted({cache_of(embeddings, trial) for trial in trials})
    }
    folder = cache_folder().resolve() / "study"
    tasks = [
        _task(trial, eeg, caches[cache_of(embeddings, trial)], parameters, folder)
        for trial in trials
    ]
    todo = list({task.kept: task for task in tasks if not task.kept.exists()}.values())
    print(
        f"study: {_count(len(tasks))}, of which {len(tasks) - len(todo)} are there already",
        flush=True,
    )
    reasons = {}
    if todo:
        check_folders({folder: 0})
        gpus = on_gpus(parameters, where)
        n_workers = how_many(where, [task.run for task in todo], eeg, gpus)
        groups = _groups(todo, n_workers, gpus)
        for group, future in side_by_side(
            run_trials,
            groups,
            where.where,
            n_workers,
            label="study",
            name=_name,
            steps=lambda group: len(group) * parameters.epochs,
        ):
            error = future.exception()
            for task, reason in zip(
                group, [_told(error)] * len(group) if error else future.result(), strict=True
            ):
                if reason:
                    reasons[task.kept] = reason
                    print(f"failed: {_name((task,))}: {reason}", flush=True)
    failures = [Failure(task.trial, reasons[task.kept]) for task in tasks if task.kept in reasons]
    answers, galleries = [], set()
    for task in tasks:
        if task.kept not in reasons:
            for answer, image_ids in _read_answers(task):
                answers.append(answer)
                galleries.add(tuple(image_ids))
    if len(galleries) > 1:
        raise InputError(
            "the subjects did not see the same test images: set `subjects` to such as did"
        )
    return answers, failures


def _task(
    trial: Trial,
    eeg: Mapping[str, HashedFile],
    embeddings: HashedFile,
    parameters: Train,
    folder: Path,
) -> Task:
    block = int(trial.cell.block) if trial.cell.block.isdecimal() else trial.cell.block
    changes = {
        "block": block,
        "eeg_encoder": trial.cell.eeg_encoder,
        "protocol": trial.cell.protocol,
    }
    own = Train.model_validate(parameters.model_dump() | changes)
    files = [eeg[subject].sha256 for subject in (*trial.trained_on, *trial.tested_on)]
    run = [trial.fold, trial.seed, trial.trained_on, trial.tested_on]
    code = code_with(own.eeg_encoder)
    key = fingerprint(
        code, files, embeddings.sha256, run, own.model_dump(exclude={"seeds", "device"})
    )
    return Task(trial, dict(eeg), embeddings, own, code, folder / f"{key}.h5")


def _groups(tasks: Sequence[Task], n_workers: int, gpus: bool) -> list[tuple[Task, ...]]:
    """Those that are trained together: alike but for seed and fold, and so many groups that each worker has one."""
    alike: dict[object, list[Task]] = {}
    for task in tasks:
        alike.setdefault((task.embeddings, task.parameters.model_dump_json()), []).append(task)
    n_parts = math.ceil(n_workers / len(alike))
    return [
        group
        for each in alike.values()
        for group in make_groups(each, each[0].parameters, n_parts, gpus)
    ]


def run_trials(tasks: tuple[Task, ...], step: Callable[[], None]) -> list[str]:
    """Train, score and keep these trials, alike but for seed and fold; why each failed, "" where it did not.

    All on one core or GPU, so that no result depends on how many there are.
    """
    if any(task.code != code_with(task.parameters.eeg_encoder) for task in tasks):
        raise InputError(
            "this worker runs another version of the code than the study: start it again, in this project's folder"
        )
    torch.set_num_threads(1)
    started, first, reasons = time.monotonic(), tasks[0], []
    cache = cached_embeddings(first.embeddings, first.parameters)
    states = first.kept.parent / "unfinished" / fingerprint([task.kept.stem for task in tasks])
    states.mkdir(parents=True, exist_ok=True)
    found = train_runs(
        [task.run for task in tasks], first.eeg, cache, first.parameters, states, step
    )
    seconds = (time.monotonic() - started) / len(tasks)
    for task, result in zip(tasks, found, strict=True):
        reasons.append(str(result) if isinstance(result, InputError) else "")
        if not isinstance(result, InputError):
            _score_and_keep(task, *result, cache, seconds)
    shutil.rmtree(
        states, ignore_errors=True
    )  # another process at the same runs may have been quicker
    return reasons


def _score_and_keep(
    task: Task, trained: Trained, notes: Notes, cache: Embeddings, seconds: float
) -> None:
    started, model = time.monotonic(), trained.model.cpu()
    with new_hdf5(task.kept) as file:
        device = device_name(pick_device(task.parameters.device))
        about = {"device": device, "selected_epoch": trained.epoch, "collapsed": trained.collapsed}
        file.attrs.update(about | {"seconds": seconds + time.monotonic() - started})
        for subject in task.trial.tested_on:
            ids, queries = _ask(model, notes, subject, task.eeg, cache)
            group = file.create_group(subject)
            group.create_dataset("image_ids", data=ids.astype(object), dtype=h5py.string_dtype())
            for name, values in queries.items():
                group[name] = values


def _ask(
    model: ContrastiveModel,
    notes: Notes,
    subject: str,
    eeg: Mapping[str, HashedFile],
    cache: Embeddings,
) -> tuple[np.ndarray, Queries]:
    """The ids of the test images, sorted, and what the model makes of the responses to them."""
    samples = averaged_test_eeg(tuple(eeg.values())).samples([eeg[subject].path], cache)
    rows = np.flatnonzero(samples.subject == subject)
    ids = cache.image_ids[samples.image_row[rows]]
    rows = rows[np.argsort(ids)]
    whole = samples.eeg[rows]
    if not whole.isfinite().all():
        raise InputError(
            f"{subject}: the test EEG holds values that are not finite; {PREPARE_AGAIN}"
        )
    values = torch.from_numpy(cache.values[samples.image_row[rows]])
    return np.sort(ids), score_whole(model, notes, subject, whole.numpy(), values).queries()


def _read_answers(task: Task) -> list[tuple[Answer, np.ndarray]]:
    """Each with the ids of the test images in their order."""
    try:
        with h5py.File(task.kept, "r") as file:
            return [
                (
                    Answer(
                        trial=task.trial,
                        subject=subject,
                        selected_epoch=int(file.attrs["selected_epoch"]),
                        collapsed=bool(file.attrs["collapsed"]),
                        device=str(file.attrs["device"]),
                        seconds=float(file.attrs["seconds"]),
                        queries={
                            name: values[:] for name, values in group.items() if name != "image_ids"
                        },
                    ),
                    group["image_ids"].asstr()[:],
                )
                for subject, group in file.items()
            ]
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise unreadable(error, task.kept) or InputError(
            f"{task.kept}: is no whole run of a study ({error}); delete it, to have it run again"
        ) from error


def _told(error: BaseException) -> str:
    """One line on why a run failed."""
    if isinstance(error, InputError):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"


def _name(tasks: Sequence[Task]) -> str:
    cell, encoder = tasks[0].trial.cell, tasks[0].trial.encoder
    runs = name_of_group([task.run for task in tasks])
    return f"{cell.backbone} {encoder}, block {cell.block}, {cell.eeg_encoder}, {runs}"


def _count(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"
