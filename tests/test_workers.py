"""Real worker processes, some of which are killed."""

import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from dask import config
from dask.system import CPU_COUNT
from distributed import Client

from pipeline.compute.workers import max_local_workers, side_by_side
from pipeline.errors import InputError

Step = Callable[[], None]
STEPS = 20
HERE = Path(__file__).parent


def outcomes(work: Callable, tasks: list, where: str = "local", n_workers: int = 2) -> dict:
    """What became of each task: its result or its exception."""
    runs = side_by_side(
        work,
        tasks,
        where,
        n_workers,
        label="train",
        name=lambda task: f"run-{task[1]}",
        steps=len_of,
    )
    found = {task: future.exception() or future.result() for task, future in runs}
    assert len(found) == len(tasks)
    return found


def len_of(_: tuple) -> int:
    return STEPS


def wait_for(there: Callable[[], bool], reason: str) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, reason
        time.sleep(0.05)


def resumable(task: tuple[Path, int], step: Step) -> int:
    """Counts to STEPS and goes on from where an earlier attempt was killed; its result is a sum over all steps."""
    folder, i = task
    state = folder / f"{i}.state"
    done, total = map(int, state.read_text().split()) if state.exists() else (0, 0)
    for _ in range(done):
        step()
    while done < STEPS:
        time.sleep(0.05)
        done, total = done + 1, total + i * (done + 1)
        new = state.with_suffix(f".{os.getpid()}")
        new.write_text(f"{done} {total}")
        new.replace(state)
        step()
    return total


def kill_at_random(folder: Path, n_tasks: int, kills: int, seed: int, n_workers: int = 2) -> dict:
    """The grid of `resumable` tasks on workers of which one is killed every now and then, `kills` times in all."""
    tasks, draw, killed = [(folder, i) for i in range(n_tasks)], random.Random(seed), []
    over = threading.Event()

    def kill() -> None:
        wait_for(lambda: len(list(folder.glob("*.state"))) == n_workers, "the workers do not start")
        while len(killed) < kills and not over.wait(draw.uniform(0, 0.6)):
            if workers := workers_of(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed.append(time.monotonic())

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = outcomes(resumable, tasks, n_workers=n_workers)
    finally:
        over.set()
        thread.join()
    assert len(killed) == kills, (
        f"only {len(killed)} kills until all was done: more tasks are needed"
    )
    return {i: result for (_, i), result in found.items()}


def expected(n_tasks: int) -> dict[int, int]:
    return {i: i * STEPS * (STEPS + 1) // 2 for i in range(n_tasks)}


def workers_of(pid: int) -> list[int]:
    """The processes that Dask started; Python's own resource tracker is a child too."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def one_of_each(task: tuple[str, int], step: Step) -> int:
    kind, i = task
    if kind == "raises":
        raise ValueError(f"{i} is not to my taste")
    if kind == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "greedy":
        held = b"x" * 10**9
        time.sleep(30)
        del held
    return i * i


@pytest.mark.long
def test_workers_that_die_while_they_start_come_back(tmp_path):
    """Dask itself gives such a worker up, and without any would wait for ever."""
    over = threading.Event()

    def kill() -> None:
        wait_for(lambda: bool(list(tmp_path.glob("*.state"))), "the worker does not start")
        for _ in range(3):  # as soon as it has started again
            wait_for(lambda: bool(workers_of(os.getpid())) or over.is_set(), "no worker comes back")
            for pid in workers_of(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    thread = threading.Thread(target=kill)
    thread.start()
    with config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        found = outcomes(resumable, [(tmp_path, i) for i in range(2)], n_workers=1)
    over.set()
    thread.join()
    assert {i: result for (_, i), result in found.items()} == expected(2)


@pytest.mark.long
def test_what_fails_fails_alone_and_the_rest_is_as_in_turn(monkeypatch, capfd):
    monkeypatch.setattr(
        "distributed.system.MEMORY_LIMIT", 10**9
    )  # of which each of two workers gets half
    kinds = ["well", "kills", "raises", "well", "greedy", *["well"] * 7]
    tasks = [(kind, i) for i, kind in enumerate(kinds)]
    found = outcomes(one_of_each, tasks)
    for task in tasks:
        if task[0] == "well":
            assert found[task] == one_of_each(task, lambda: None)
        elif task[0] == "raises":
            assert repr(found[task]) == "ValueError('2 is not to my taste')"
        else:
            assert isinstance(found[task], InputError)
            assert str(found[task]).startswith(f"run-{task[1]}: 4 workers in a row died of it")
    out, err = capfd.readouterr()
    first, *lost = err.splitlines()
    assert out == ""
    assert first.startswith("train: 12 runs on 2 local workers; dashboard: http://127.0.0.1:")
    assert len(lost) == 8 and all(" was lost" in line for line in lost)
    assert sum(line.endswith("; run-1 goes on elsewhere") for line in lost) == 3


@pytest.mark.long
def test_workers_killed_at_random_moments(tmp_path):
    assert kill_at_random(tmp_path, 10, kills=5, seed=1) == expected(10)


def first_waits(task: tuple[Path, int], step: Step) -> int:
    """The first of four waits for all others, and would wait for ever if one of them waited at its worker."""
    folder, i = task
    (folder / str(i)).touch()
    if i == 0:
        wait_for(lambda: len(list(folder.iterdir())) == 4, "a task waits at a busy worker")
    return os.getpid()


def test_no_task_waits_at_a_busy_worker(tmp_path):
    found = outcomes(first_waits, [(tmp_path, i) for i in range(4)])
    first, *others = [found[tmp_path, i] for i in range(4)]
    assert len(set(others)) == 1 and first not in others


def environment(task: tuple[Path, int], step: Step) -> tuple[str, str | None]:
    """What a worker's environment says, of each worker once."""
    folder, i = task
    (folder / str(i)).touch()
    wait_for(lambda: len(list(folder.iterdir())) == 3, "there are not three workers")
    for _ in range(2):
        time.sleep(0.6)
        step()
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("OMP_NUM_THREADS")


@pytest.mark.long
def test_workers_share_out_the_gpus_and_are_shown_on_a_terminal(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # no test machine has two
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-ab12")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that there is a terminal
    found = outcomes(environment, [(tmp_path, i) for i in range(3)], n_workers=3)
    assert sorted(found.values()) == [("5", None), ("5", None), ("GPU-ab12", None)]
    assert "OMP_NUM_THREADS" not in os.environ
    err = capfd.readouterr().err
    assert all(f"worker {i}: run-" in err for i in range(3)) and "train" in err
    assert "60/60" in err and "1/20" in err


def test_as_many_workers_as_fit(monkeypatch):
    cores = CPU_COUNT
    assert max_local_workers(1, 1000, on_gpus=False) == cores
    assert max_local_workers(1, 1, on_gpus=False) == 1
    assert max_local_workers(10**15, 1000, on_gpus=False) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert max_local_workers(1, 1000, on_gpus=True) == 3
    assert max_local_workers(psutil.virtual_memory().available * 2 // 5, 1000, on_gpus=True) == 2
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1000)  # a container's
    assert max_local_workers(500, 1000, on_gpus=True) == 2


def endless(task: tuple[Path, int], step: Step) -> None:
    folder, i = task
    (folder / str(i)).touch()
    while True:
        time.sleep(0.1)
        step()


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_main_one(tmp_path, how):
    code = "import sys, test_workers as t; t.outcomes(t.endless, [(t.Path(sys.argv[1]), i) for i in (0, 1)])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    main = psutil.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, "the workers do not start")
    family = main.children(recursive=True)
    os.killpg(
        main.pid, how
    ) if how == signal.SIGINT else main.kill()  # a terminal interrupts the whole group
    main.wait(20)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    if how == signal.SIGINT:
        assert main.stderr.read().decode().rstrip().endswith("KeyboardInterrupt")


@contextmanager
def dask(*arguments: str) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        f"distributed.cli.dask_{arguments[0]}",
        *arguments[1:],
        "--no-dashboard",
    ]
    env = os.environ | {"PYTHONPATH": str(HERE)}
    with subprocess.Popen(command, cwd=HERE.parent, env=env, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.long
def test_the_workers_of_a_scheduler_that_somebody_started(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where, tasks = (
        f"tcp://127.0.0.1:{port}",
        [(kind, i) for i, kind in enumerate(["raises", "kills", "well", "well"])],
    )
    with pytest.raises(InputError, match=f"no Dask scheduler answers at {where} .*refused"):
        outcomes(one_of_each, tasks, where)
    with pytest.raises(InputError, match="no Dask scheduler answers at gpu-box .*like tcp://"):
        outcomes(one_of_each, tasks, "gpu-box")
    with dask("scheduler", "--host", "127.0.0.1", "--port", str(port)):
        wait_for(lambda: answers(port), "the scheduler does not start")
        with pytest.raises(
            InputError,
            match=f"{where} has no workers: start workers with `dask worker {where} --nth",
        ):
            outcomes(one_of_each, tasks, where)
        with dask("worker", where, "--nthreads", "2"):
            wait_for_workers(where, 1)
            with pytest.raises(InputError, match="workers of several threads"):
                outcomes(one_of_each, tasks, where)
        with dask("worker", where, "--nthreads", "1"), dask("worker", where, "--nthreads", "1"):
            wait_for_workers(where, 2)
            found = outcomes(one_of_each, tasks, where)
            assert [found[task] for task in tasks[2:]] == [4, 9]
            assert isinstance(found["raises", 0], ValueError) and isinstance(
                found["kills", 1], InputError
            )
            (tmp_path / "only_here.py").write_text("def work(task, step): return 1")
            monkeypatch.syspath_prepend(tmp_path)
            [error] = outcomes(importlib.import_module("only_here").work, tasks[:1], where).values()
            assert isinstance(error, ModuleNotFoundError)
            waiting = tmp_path / "waiting"
            waiting.mkdir()
            outcomes(first_waits, [(waiting, i) for i in range(4)], where)


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def wait_for_workers(where: str, n_workers: int) -> None:
    with Client(where, set_as_default=False) as client:
        client.wait_for_workers(n_workers, timeout=30)
