"""Run many tasks side by side on Dask workers: local processes, SLURM jobs, or your own cluster.

A worker gets one task at a time; the other tasks wait at the scheduler. So no worker is idle while
there is work, and when a worker dies, only the task that ran on it is blamed. That task is tried
again on another worker. It is given up when `MAX_LOSSES` workers in a row died of it without any
progress between.

Why not Dask's own `client.map`:

- With few tasks, it sends some of them to busy workers in advance. Only a "data producer" waits at
  the scheduler until a worker is free, and a task can be marked as one only in a graph
  (`_data_producer` of the private class `dask._task_spec.Task`).
- Dask leaves a result at its worker until we ask for it. If the worker dies before, the task runs
  again. Here a task sends its result to this process as an event, as soon as it is done.
- Dask counts the dead workers of a key. Here each attempt has a key of its own, so that the count
  starts anew for a task that made progress.
"""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.compute.clusters import MAX_LOSSES, connect
from pipeline.compute.machine import free_memory, gpu_ids, n_cores
from pipeline.compute.progress import ProgressDisplay
from pipeline.errors import InputError

if TYPE_CHECKING:  # the import takes a second, and most commands need no workers
    from distributed import Client

Task = TypeVar("Task")
Result = TypeVar("Result")
Step = Callable[[], None]

MAX_SUBMITTED = 500  # tasks at the scheduler at a time; more than anybody has workers
REPORT_EVERY = 0.5  # s; a worker reports its steps at most this often


def max_local_workers(needed_bytes: int, n_tasks: int, on_gpus: bool) -> int:
    """How many workers fit on this machine, at least 1.

    Each takes a core (or a GPU) and `needed_bytes` of free memory, and needs a task.
    """
    n_devices = len(gpu_ids()) if on_gpus else n_cores()
    return max(1, min(n_devices, n_tasks, free_memory() // needed_bytes))


def side_by_side(
    work: Callable[[Task, Step], Result],
    tasks: Sequence[Task],
    backend: str,
    n_workers: int,
    *,
    label: str,
    name: Callable[[Task], str],
    steps: Callable[[Task], int],
) -> Iterator[tuple[Task, Future[Result]]]:
    """Run `work(task, step)` for each task; yield each task with its future as soon as it is done.

    `backend` is `local` (`n_workers` processes), `slurm` (at most `n_workers` jobs) or the address
    of a Dask scheduler, such as tcp://host:8786 (all its workers).

    A task has `steps(task)` steps. `work` calls `step()` after each of them, also for a step that
    an earlier attempt has done. `label` and `name(task)` are what the user sees.

    The future holds what `work` returned or raised, or InputError if the task was given up. The
    other tasks go on. Raises InputError where the workers cannot be had or the scheduler is lost.
    """
    names = [name(task) for task in tasks]
    # Each item is a finished future of Dask, or an InputError that ends the whole run.
    finished: SimpleQueue[Any] = SimpleQueue()

    with (
        connect(backend, min(n_workers, len(tasks)), finished.put) as (client, location),
        ProgressDisplay(label, names, [steps(task) for task in tasks], MAX_LOSSES) as display,
    ):
        dashboard = client.dashboard_link
        display.print(f"{label}: {len(tasks)} runs {location}; dashboard: {dashboard}")

        attempts = _Attempts(client, backend, work, tasks, names, display, finished)
        to_submit = iter(range(len(tasks)))
        for i in islice(to_submit, MAX_SUBMITTED):
            attempts.submit(i)

        n_left = len(tasks)
        while n_left:
            item = finished.get()
            if isinstance(item, InputError):
                raise item

            i, future = attempts.collect(item)
            del item  # it holds Dask's copy of the result
            if future is None:
                continue

            n_left -= 1
            display.finish(i)
            # One task leaves the scheduler, one comes: at most MAX_SUBMITTED are there.
            for next_i in islice(to_submit, 1):
                attempts.submit(next_i)
            yield tasks[i], future


class _Attempts(Generic[Task, Result]):
    """The attempts at each task, which is known by its index in `tasks`."""

    def __init__(
        self,
        client: "Client",
        backend: str,
        work: Callable[[Task, Step], Result],
        tasks: Sequence[Task],
        names: list[str],
        display: ProgressDisplay,
        finished: SimpleQueue[Any],
    ) -> None:
        self.client = client
        self.backend = backend
        self.work = work
        self.tasks = tasks
        self.names = names
        self.display = display
        self.finished = finished

        self.n_done_before = [0] * len(tasks)  # steps done when the current attempt began
        self.results: dict[int, bytes] = {}  # pickled, as they arrive

        # Named after this client: the scheduler of a user may serve others too.
        self.topic = f"steps-{client.id}"
        client.subscribe_topic(self.topic, display.on_step)
        client.subscribe_topic(f"{self.topic}-results", self._on_result)
        client.subscribe_topic("all", display.on_worker_event)  # Dask's own reports on its workers

    def _on_result(self, event: tuple[float, tuple[int, bytes]]) -> None:
        i, pickled = event[1]
        self.results[i] = pickled

    def submit(self, i: int, attempt: int = 0) -> None:
        """Give a task to the scheduler. Once it is done, its future is put into `finished`."""
        import cloudpickle
        from dask._task_spec import Task as GraphTask

        key = ("run", i, attempt)
        payload = cloudpickle.dumps((self.work, self.tasks[i]))
        graph_task = GraphTask(key, _run_task, payload, i, self.topic, _data_producer=True)

        [dask_future] = self.client.get({key: graph_task}, [key], sync=False)
        dask_future.add_done_callback(self.finished.put)

    def collect(self, dask_future: Any) -> tuple[int, Future[Result] | None]:
        """The index and the result (or exception) of a task; None if it was submitted again.

        Raises InputError where the scheduler is lost.
        """
        from distributed import KilledWorker

        _, i, attempt = dask_future.key
        future: Future[Result] = Future()
        try:
            # The event may be late; then Dask has the result.
            pickled = self.results.pop(i) if i in self.results else dask_future.result()
            future.set_result(pickle.loads(pickled))
        except CancelledError:
            raise InputError(
                f"the scheduler at {self.backend} is gone: start it, its workers and this again"
            ) from None
        except KilledWorker:
            n_done = self.display.n_done[i]
            # It made progress: a new key starts a new count of dead workers.
            if n_done > self.n_done_before[i]:
                self.n_done_before[i] = n_done
                self.submit(i, attempt + 1)
                return i, None
            future.set_exception(InputError(_why_given_up(self.names[i])))
        except Exception as error:  # whatever the task raised: the caller decides
            future.set_exception(error)

        return i, future


def _why_given_up(name: str) -> str:
    return (
        f"{name}: {MAX_LOSSES} workers in a row died of it without a step done, most likely for "
        "want of memory: lower runs.workers, or take jobs with more memory"
    )


def _run_task(payload: bytes, i: int, topic: str) -> bytes:
    """In a worker: run one task, report its steps, return its pickled result.

    `payload` is unpickled here and not by Dask: where that fails, Dask would end the worker, and
    here only the task ends.
    """
    import cloudpickle
    from distributed import get_worker

    worker = get_worker()
    # Our configuration does not reach a worker that the user started.
    worker.memory_manager.memory_pause_fraction = False
    n_done = 0
    last_report = 0.0

    def report() -> None:
        nonlocal last_report
        if time.monotonic() - last_report > REPORT_EVERY:
            last_report = time.monotonic()
            worker.log_event(topic, (i, n_done, str(worker.name), worker.address))

    def step() -> None:
        nonlocal n_done
        n_done += 1
        report()

    report()
    work, task = pickle.loads(payload)
    result = cloudpickle.dumps(work(task, step))
    worker.log_event(f"{topic}-results", (i, result))
    return result
