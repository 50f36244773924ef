"""What Dask costs: the start of two local workers, each trivial task on them, and this process's memory for thousands.

    python -m benchmarks.workers

Ten steps a task, so that progress is told too.
"""

import time
from collections.abc import Callable

import psutil

from benchmarks import write_latest
from pipeline.compute.workers import side_by_side

N_TASKS = 5000


def trivial(task: int, step: Callable[[], None]) -> int:
    for _ in range(10):
        step()
    return task


def main() -> None:
    started, marks, process = time.perf_counter(), {}, psutil.Process()
    runs = side_by_side(
        trivial, range(N_TASKS), "local", 2, label="benchmark", name=str, steps=lambda _: 10
    )
    for n, (task, future) in enumerate(runs, 1):
        assert future.result() == task
        if n in (1, 500, 1001, N_TASKS):
            marks[n] = time.perf_counter(), process.memory_info().rss / 1e6
    (first, _), (thousand, _) = marks[1], marks[1001]
    grown = marks[N_TASKS][1] - marks[500][1]
    print(
        f"first task after {first - started:.1f} s, then {thousand - first:.1f} ms a task (1,000 tasks, 2 workers)"
    )
    print(
        f"memory of the main process after 500 tasks {marks[500][1]:.0f} MB, after {N_TASKS} {grown:+.0f} MB"
    )
    write_latest(
        {
            "task_overhead_ms": round(thousand - first, 1),
            "tasks_main_process_growth_mb": round(grown),
        }
    )


if __name__ == "__main__":
    main()
