"""Real jobs of a real SLURM, of one node."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import pytest
import yaml

from pipeline.compute.workers import side_by_side
from pipeline.errors import InputError
from tests.slurm import missing, slurm

if missing():
    pytest.skip(
        f"no SLURM here (apt install slurm-wlm munge): {', '.join(missing())}",
        allow_module_level=True,
    )

STEPS = 30
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def a_slurm():
    with slurm() as env, pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield


JOBS = {"cores": 1, "memory": "1GB", "walltime": "00:10:00", "queue": "short", "death-timeout": 20}


@pytest.fixture(autouse=True)
def environment_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("PYTHONPATH", str(HERE))  # for the functions of this file
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path / "config"))
    configure(tmp_path)
    yield
    dask.config.refresh()


def configure(folder: Path, **changes: object) -> None:
    """What users have in ~/.config/dask, and less patience."""
    values = {
        "jobqueue": {"slurm": JOBS | changes},
        "distributed": {"deploy": {"lost-worker-timeout": "2s"}},
    }
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/dask.yaml").write_text(yaml.safe_dump(values))
    dask.config.refresh(paths=[str(folder / "config")])


def outcomes(work, tasks, n_jobs=2) -> dict:
    runs = side_by_side(
        work,
        tasks,
        "slurm",
        n_jobs,
        label="train",
        name=lambda task: f"run-{task[1]}",
        steps=len_of,
    )
    return {task: future.exception() or future.result() for task, future in runs}


def len_of(_: tuple) -> int:
    return STEPS


def resumable(task: tuple[Path, int], step) -> list[str]:
    """STEPS steps, one a line of a file, that an earlier job may have begun; the jobs that did them."""
    folder, i = task
    path = folder / f"{i}.steps"
    done = path.read_text().splitlines() if path.exists() else []
    for n in range(STEPS):
        if n == len(done):
            time.sleep(0.2)
            done.append(os.environ["SLURM_JOB_ID"])
            path.write_text("\n".join(done))
        step()
    return done


def environment(task: tuple[Path, int], step) -> dict:
    names = (
        "SLURM_JOB_ID",
        "SLURM_CPUS_PER_TASK",
        "ALIGNED_EEG_CACHE",
        "OMP_WAIT_POLICY",
        "OMP_NUM_THREADS",
    )
    memory = [
        dask.config.get(f"distributed.worker.memory.{name}")
        for name in ("target", "spill", "pause")
    ]
    return {name: os.environ.get(name) for name in names} | {"memory": memory, "cwd": os.getcwd()}


def queued() -> list[str]:
    return subprocess.run(
        ["squeue", "--noheader", "--format=%A"], capture_output=True, text=True
    ).stdout.split()


def test_tasks_run_in_jobs_with_our_settings(tmp_path, capfd):
    tasks = [(tmp_path, i) for i in range(4)]
    found = outcomes(environment, tasks)
    for values in found.values():
        assert values.pop("SLURM_JOB_ID").isdigit()
        assert values == {
            "SLURM_CPUS_PER_TASK": "1",
            "ALIGNED_EEG_CACHE": os.environ["ALIGNED_EEG_CACHE"],
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "memory": [False, False, False],
            "cwd": os.getcwd(),
        }
    wait_for(lambda: not queued(), "jobs are left")
    assert capfd.readouterr().err.startswith("train: 4 runs in up to 2 SLURM jobs")


def test_a_cancelled_job_is_replaced_and_its_task_goes_on(tmp_path, capfd):
    def cancel() -> str:
        wait_for(lambda: len(steps_of(tmp_path, 0)) > 3, "no job begins")
        job = steps_of(tmp_path, 0)[-1]
        subprocess.run(["scancel", job], check=True)
        return job

    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(cancel)
        first, second = outcomes(resumable, [(tmp_path, 0), (tmp_path, 1)], n_jobs=1).values()
    assert len(first) == len(second) == STEPS
    assert list(dict.fromkeys(first)) == [cancelled.result(), second[0]]
    assert "was lost; run-0 goes on elsewhere" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_job_outlives_the_main_process(tmp_path, how):
    code = "import sys, test_slurm as t; t.outcomes(t.resumable, [(t.Path(sys.argv[1]), i) for i in (0, 1)])"
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    command = [sys.executable, "-c", code, str(tmp_path)]
    main = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(steps_of(tmp_path, 0)) > 3, "no job begins")
    main.send_signal(how)
    assert main.wait(30) == -how
    wait_for(lambda: not queued(), "jobs are left")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cores": None}, "SLURM jobs need cores and memory: say in .*jobqueue.yaml.*\n.*slurm:\n"),
        ({"queue": "nowhere"}, "SLURM takes no such job .*invalid partition"),
        (
            {"python": "/no/python"},
            "SLURM jobs end before their worker reports: see their output in .*slurm",
        ),
    ],
)
def test_what_slurm_cannot_run_is_told(tmp_path, monkeypatch, wrong, message):
    monkeypatch.setattr("pipeline.compute.slurm.ASK_EVERY", 1.0)
    configure(tmp_path, **wrong)
    with pytest.raises(InputError, match=f"(?s){message}"):
        outcomes(environment, [(tmp_path, i) for i in range(3)])
    wait_for(lambda: not queued(), "jobs are left")


def steps_of(folder: Path, i: int) -> list[str]:
    path = folder / f"{i}.steps"
    return path.read_text().split() if path.exists() else []


def wait_for(there, reason: str) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, reason
        time.sleep(0.1)
