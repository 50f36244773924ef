"""What the user sees while tasks run: a bar for each worker and one for all, and lines above.

Without a terminal only the lines are printed. Everything goes to the error stream.
"""

from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

SPEED_OVER = 600  # s; the time that remains is estimated from the speed in the last ten minutes


class ProgressDisplay:
    """The progress of tasks with these `names`, each of so many `steps`.

    A task is known by its index in these lists. It may be given up after `max_losses` dead workers
    in a row: the line about the last of them does not say that the task goes on.
    """

    def __init__(self, label: str, names: list[str], steps: list[int], max_losses: int) -> None:
        self.names = names
        self.steps = steps
        self.max_losses = max_losses
        self.n_done = [0] * len(names)  # the most steps that any attempt at a task has reported
        self.n_losses: Counter[int] = Counter()  # dead workers of a task

        self.workers: dict[str, tuple[str, int]] = {}  # address: (name, index of its task)
        self.bars: dict[str, TaskID] = {}  # by the name of the worker

        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=SPEED_OVER,
        )
        self.bar_of_all = self.progress.add_task(label, total=sum(steps))

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

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, soft_wrap=True, markup=False)

    def on_step(self, event: tuple[float, tuple[int, int, str, str]]) -> None:
        """A worker reports: (time, (index of its task, steps done, its name, its address))."""
        i, n_done, worker, address = event[1]
        self.workers[address] = (worker, i)
        if worker not in self.bars:
            self.bars[worker] = self.progress.add_task("")

        self.progress.update(
            self.bars[worker],
            description=f"  worker {worker}: {self.names[i]}",
            total=self.steps[i],
            completed=n_done,
            visible=True,
        )
        self._count(i, n_done)

    def on_worker_event(self, event: tuple[float, dict[str, Any]]) -> None:
        """Dask reports on a worker: (time, facts). We print only the loss of one."""
        facts = event[1]
        if facts["action"] != "remove-worker" or facts["expected"]:
            return

        address = facts["worker"]
        # A worker that never reported has no name yet: its address stands for it.
        worker, _ = self.workers.pop(address, (address, None))
        if worker in self.bars:
            self.progress.update(self.bars[worker], visible=False)

        for _, i, _ in facts["processing-tasks"]:  # keys ("run", index, attempt) of workers.py
            self.n_losses[i] += 1
            is_last = self.n_losses[i] % self.max_losses == 0
            outlook = "" if is_last else f"; {self.names[i]} goes on elsewhere"
            self.print(f"worker {worker} was lost{outlook}")

    def finish(self, i: int) -> None:
        """Task `i` has ended: hide the bar of its worker, and count all its steps."""
        for worker, task in self.workers.values():
            if task == i:
                self.progress.update(self.bars[worker], visible=False)
        self._count(i, self.steps[i])

    def _count(self, i: int, n_done: int) -> None:
        """Note that `n_done` steps of task `i` are done. A repeated attempt takes none back."""
        self.n_done[i] = max(self.n_done[i], n_done)
        self.progress.update(self.bar_of_all, completed=sum(self.n_done))
