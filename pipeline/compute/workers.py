"""Many runs side by side, on Dask (https://distributed.dask.org): in processes here, in SLURM jobs, or wherever a
scheduler that somebody started has workers.

A worker has one task and no other waits at it, so that none is idle while there is work, and only the task that ran is
blamed when a worker dies. That task goes on on another worker; it is given up when `LOSSES` workers in a row died of
it and it got no further meanwhile.
"""

import logging
import os
import pickle
import pkgutil
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.compute.machine import free_memory, memory_limit, n_cores
from pipeline.errors import InputError

if TYPE_CHECKING:  # a second to import: only those pay it who use it
    from distributed import Client, Scheduler, SpecCluster

Task = TypeVar("Task")
Result = TypeVar("Result")
Step = Callable[[], None]

LOSSES = 4
SUBMITTED = 500  # tasks that the scheduler knows of; more than anybody has workers
KEPT_UP_EVERY = 2  # s
TELL_EVERY = 0.5  # s; a worker tells of its steps at most so often
ANSWERS_WITHIN = 10.0  # s
SAME_VERSIONS = ("python", "dask", "distributed", "cloudpickle", "msgpack")
# Dask logs pages of a lost worker, where the user gets a sentence of ours
SILENT = logging.CRITICAL + 1
CONFIG: dict[str, Any] = {
    # A worker that holds the EEG is no cache to be spilled, and once paused it would never go on.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.low-level-log-length": 100,  # events kept, results among them
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": LOSSES - 1,
    "distributed.nanny.pre-spawn-environ": {},  # else OMP_NUM_THREADS=1, in this process too
}


def fitting(needed_bytes: int, n_tasks: int, on_gpus: bool) -> int:
    """The workers that this machine has room for, at least 1: one a core or a GPU, each with `needed_bytes` free."""
    places = len(_gpus()) if on_gpus else n_cores()
    return max(1, min(places, n_tasks, free_memory() // needed_bytes))


def side_by_side(
    work: Callable[[Task, Step], Result],
    tasks: Sequence[Task],
    where: str,
    n_workers: int,
    *,
    label: str,
    name: Callable[[Task], str],
    steps: Callable[[Task], int],
) -> Iterator[tuple[Task, Future[Result]]]:
    """Run `work(task, step)` for each task; yield each with its finished future, in the order in which they finish.

    `where` is local (`n_workers` processes), slurm (at most so many jobs) or a scheduler's address, as tcp://host:8786.
    `work` calls `step()` for each of the `steps(task)` steps once it is done, also if an earlier attempt did it. A
    future has what `work` returned or raised, or InputError if its workers died of it; the other tasks go on.
    """
    import cloudpickle
    from dask._task_spec import Task as Node
    from distributed import KilledWorker

    finished: SimpleQueue[Any] = SimpleQueue()  # of Dask's futures, or what ends all
    with (
        _connected(where, min(n_workers, len(tasks)), finished.put) as (client, place),
        _Shown(label, [name(task) for task in tasks], [steps(task) for task in tasks]) as shown,
    ):
        shown.say(f"{label}: {len(tasks)} runs {place}; dashboard: {client.dashboard_link}")
        topic = f"steps-{client.id}"
        client.subscribe_topic(topic, shown.stepped)
        # Dask leaves a result with its worker until we ask, and would run the task again if that dies before.
        results: dict[int, bytes] = {}
        client.subscribe_topic(f"{topic}-results", lambda event: results.update([event[1]]))
        client.subscribe_topic("all", shown.changed)

        def submit(i: int, attempt: int) -> None:
            key = ("run", i, attempt)
            # A "data producer" waits at the scheduler until a worker is free; else a few tasks would wait at workers.
            node = Node(
                key, _run, cloudpickle.dumps((work, tasks[i])), i, topic, _data_producer=True
            )
            client.get({key: node}, [key], sync=False)[0].add_done_callback(finished.put)

        got_to = [0] * len(tasks)
        waiting = iter(range(len(tasks)))
        for i in islice(waiting, SUBMITTED):
            submit(i, 0)
        left = len(tasks)
        while left:
            dasks = finished.get()
            if isinstance(dasks, InputError):
                raise dasks
            _, i, attempt = dasks.key
            future: Future[Result] = Future()
            try:
                future.set_result(pickle.loads(results.pop(i) if i in results else dasks.result()))
            except CancelledError:
                raise InputError(
                    f"the scheduler at {where} is gone: start it, its workers and this again"
                ) from None
            except KilledWorker:
                if shown.done[i] > got_to[i]:
                    got_to[i] = shown.done[i]
                    submit(i, attempt + 1)
                    continue
                future.set_exception(InputError(_given_up(name(tasks[i]))))
            except Exception as error:  # whatever the task raised, for who called
                future.set_exception(error)
            del dasks  # and with it Dask's copy of the result
            left -= 1
            shown.finished(i)
            for following in islice(waiting, 1):
                submit(following, 0)
            yield tasks[i], future


def _given_up(name: str) -> str:
    return (
        f"{name}: {LOSSES} workers in a row died of it without a step done, most likely for want of memory: "
        "lower runs.workers, or take jobs with more memory"
    )


def _run(pickled: bytes, i: int, topic: str) -> bytes:
    """In a worker: the task, telling how far it is. What Dask cannot unpickle ends a worker; here it ends the task."""
    import cloudpickle
    from distributed import get_worker

    worker = get_worker()
    # CONFIG does not reach a worker that somebody started
    worker.memory_manager.memory_pause_fraction = False
    done, told = 0, 0.0

    def tell() -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            worker.log_event(topic, (i, done, str(worker.name), worker.address))

    def step() -> None:
        nonlocal done
        done += 1
        tell()

    tell()
    work, task = pickle.loads(pickled)
    result = cloudpickle.dumps(work(task, step))
    worker.log_event(f"{topic}-results", (i, result))
    return result


@contextmanager
def _connected(
    where: str, n_workers: int, trouble: Callable[[InputError], None]
) -> Iterator[tuple["Client", str]]:
    """A client of the workers, and where they are in words; `trouble` gets what shows later and ends all."""
    import dask
    from distributed import Client
    from distributed.utils import silence_logging_cmgr
    from distributed.versions import VersionMismatchWarning

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(CONFIG))
        stack.enter_context(silence_logging_cmgr(SILENT))
        if where == "local":
            cluster, place = stack.enter_context(_local(n_workers)), f"on {n_workers} local workers"
        elif where == "slurm":
            from pipeline.compute.slurm import slurm_cluster

            # It listens on the machine itself: from elsewhere it is seen through ssh -L.
            stack.enter_context(
                dask.config.set({"distributed.dashboard.link": "http://127.0.0.1:{port}/status"})
            )
            cluster = stack.enter_context(slurm_cluster(n_workers, CONFIG, trouble))
            place = f"in up to {n_workers} SLURM jobs"
        else:
            cluster, place = where, f"on the workers of {where}"
            _check_scheduler(where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # `_check_workers` says it
            client = stack.enter_context(
                Client(cluster, timeout=ANSWERS_WITHIN, set_as_default=False)
            )
        if cluster == where:
            _check_workers(client, where)
            client.run_on_scheduler(_set_up)
        if where == "local":
            stack.enter_context(_kept_up(cluster, n_workers))
        yield client, place


@contextmanager
def _kept_up(cluster: "SpecCluster", n_workers: int) -> Iterator[None]:
    """Start workers again that Dask gives up: one that was killed while it started, or took long to restart."""
    from distributed import Status
    from tornado.ioloop import PeriodicCallback

    def keep_up() -> None:
        for name, nanny in [*cluster.workers.items()]:
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(n_workers)  # starts those that are missing

    callback, loop = PeriodicCallback(keep_up, KEPT_UP_EVERY * 1000), cluster.loop
    assert loop is not None
    loop.add_callback(callback.start)
    try:
        yield
    finally:
        loop.add_callback(callback.stop)


def _check_scheduler(where: str) -> None:
    """InputError unless something answers at this address: Dask itself would try for long, and end in a traceback."""
    from distributed.comm import get_address_host_port

    try:
        address = get_address_host_port(where, strict=True)
        socket.create_connection(address, ANSWERS_WITHIN).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {where} ({error}): start one with `dask scheduler`, and give its address"
        ) from error


def _check_workers(client: "Client", where: str) -> None:
    """InputError unless the scheduler and its workers are of our versions, and each of the workers has one thread."""
    versions: Any = client.get_versions()
    ours = versions["client"]["packages"]
    for who, theirs in {"the scheduler": versions["scheduler"], **versions["workers"]}.items():
        for package in SAME_VERSIONS:
            if theirs["packages"][package] != ours[package]:
                raise InputError(
                    f"{where}: {package} is {theirs['packages'][package]} at {who} and {ours[package]} here: "
                    "start scheduler and workers from this project's .venv"
                )
    start = f"start workers with `dask worker {where} --nthreads 1`"
    try:
        client.wait_for_workers(1, ANSWERS_WITHIN)  # one that was lost may be on its way back
    except TimeoutError:
        raise InputError(f"{where} has no workers: {start}") from None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    try:
        for run in (client.run_on_scheduler, client.run):
            run(pkgutil.resolve_name, f"{__name__}:LOSSES")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{where}: {error} there: start scheduler and workers in this project's folder, from its .venv"
        ) from error
    if any(worker["nthreads"] > 1 for worker in workers):
        raise InputError(
            f"{where} has workers of several threads, and runs in one process share its random numbers: {start}"
        )


def _set_up(dask_scheduler: "Scheduler") -> None:
    """In a scheduler that somebody started: what CONFIG says to ours."""
    dask_scheduler.WORKER_SATURATION = CONFIG["distributed.scheduler.worker-saturation"]
    dask_scheduler.allowed_failures = CONFIG["distributed.scheduler.allowed-failures"]


def _local(n_workers: int) -> "SpecCluster":
    """Processes of this machine, spawned; each has its share of the memory and, where there are GPUs, one of them."""
    from distributed import Nanny, Scheduler, Security, SpecCluster

    # Whoever reaches a scheduler can run code as its user: it listens to this machine alone, and to who has the
    # certificate, made for this cluster.
    safe = {"host": "127.0.0.1", "protocol": "tls://", "security": Security.temporary()}
    gpus = _gpus()
    workers = {}
    for i in range(n_workers):
        env = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}
        limits = {
            "nthreads": 1,
            "memory_limit": memory_limit() // n_workers,
            "env": env,
            "silence_logs": SILENT,
        }
        workers[i] = {"cls": Nanny, "options": safe | limits}
    scheduler = {"cls": Scheduler, "options": safe | {"dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers, scheduler, security=safe["security"])


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    n_gpus, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:n_gpus] if visible else [str(i) for i in range(n_gpus)]


class _Shown:
    """What the user sees: on a terminal a line for each worker and one for all, and what is said above them."""

    def __init__(self, label: str, names: list[str], steps: list[int]) -> None:
        self.names, self.steps = names, steps
        self.done = [0] * len(names)
        self.losses: Counter[int] = Counter()
        self.workers: dict[str, tuple[str, int]] = {}  # address: name, task
        self.rows: dict[str, TaskID] = {}
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        self.total = self.progress.add_task(label, total=sum(steps))

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def stepped(self, event: tuple[float, tuple[int, int, str, str]]) -> None:
        """A worker began a task or is further in it."""
        i, done, worker, address = event[1]
        self.workers[address] = worker, i
        if worker not in self.rows:
            self.rows[worker] = self.progress.add_task("")
        row, text = self.rows[worker], f"  worker {worker}: {self.names[i]}"
        self.progress.update(
            row, description=text, total=self.steps[i], completed=done, visible=True
        )
        self._reached(i, done)

    def changed(self, event: tuple[float, dict[str, Any]]) -> None:
        """Something happened to a worker: does it concern the user?"""
        what = event[1]
        if what["action"] != "remove-worker" or what["expected"]:
            return
        worker, _ = self.workers.pop(what["worker"], (what["worker"], None))
        if worker in self.rows:
            self.progress.update(self.rows[worker], visible=False)
        for _, i, _ in what["processing-tasks"]:
            self.losses[i] += 1
            goes_on = "" if self.losses[i] % LOSSES == 0 else f"; {self.names[i]} goes on elsewhere"
            self.say(f"worker {worker} was lost{goes_on}")

    def finished(self, i: int) -> None:
        for worker, task in self.workers.values():
            if task == i:
                self.progress.update(self.rows[worker], visible=False)
        self._reached(i, self.steps[i])

    def _reached(self, i: int, done: int) -> None:
        self.done[i] = max(self.done[i], done)
        self.progress.update(self.total, completed=sum(self.done))
