"""Dask workers as SLURM jobs, by dask-jobqueue (https://jobqueue.dask.org) and the user's settings.

dask-jobqueue 0.9 leaves two things to us: to submit a job again that SLURM refused, or that ended
before the first heartbeat of its worker; and to end the jobs of workers that nobody needs any more.
"""

import asyncio
import getpass
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Adaptive

from pipeline.errors import InputError
from pipeline.files import cache_folder

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster

ASK_EVERY = 30.0  # s between two calls of squeue

# Give up after 3 jobs that die before their first heartbeat: the next would die the same way.
MAX_EARLY_DEATHS = 3

# Variables of this process's environment that the jobs get, by how they begin
PASSED_ON = ("ALIGNED_EEG_", "CUBLAS_", "GOMP_", "HDF5_EXT_", "MKL_", "OMP_", "OPENBLAS_")

EXAMPLE = """jobqueue:
  slurm:
    cores: 4
    memory: 16GB
    walltime: "04:00:00"
    queue: gpu
    job-extra-directives: ["--gres=gpu:1"]"""


def slurm_cluster(
    n_jobs: int, config: Mapping[str, object], on_error: Callable[[InputError], None]
) -> "SLURMCluster":
    """A cluster of at most `n_jobs` jobs; each is one worker of one thread.

    There are never more jobs than unfinished tasks. `config` is the Dask configuration of the
    workers. Raises InputError where SLURM does not accept the job. `on_error` gets the InputError
    of a job that is accepted and then does not run.
    """
    # The import of dask_jobqueue makes Ctrl-C an exit that looks like success: take that back.
    on_interrupt = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    signal.signal(signal.SIGINT, on_interrupt)

    settings = dask.config.get("jobqueue.slurm")
    if settings["cores"] is None or settings["memory"] is None:
        file = Path(dask.config.PATH) / "jobqueue.yaml"
        raise InputError(
            f"SLURM jobs need cores and memory: say in {file}, after your cluster's rules:\n"
            f"{EXAMPLE}"
        )

    log_folder = Path(settings["log-directory"] or cache_folder() / "slurm")
    exports = _exports(settings["cores"], config)
    cluster = SLURMCluster(
        # One thread of Dask, so that a worker has one task; `job_cpu` is what SLURM allots.
        cores=1,
        processes=1,
        job_cpu=settings["job-cpu"] or settings["cores"],
        job_script_prologue=[*exports, *settings["job-script-prologue"]],
        log_directory=str(log_folder),
        # Whoever reaches a scheduler can run code as its user. So a connection needs the
        # certificate that is made here.
        security=True,
        shared_temp_directory=settings["shared-temp-directory"] or str(cache_folder()),
        scheduler_options=settings["scheduler-options"] | {"dashboard_address": "127.0.0.1:0"},
        silence_logs=False,
        name="slurm",
    )

    try:
        _check_job(cluster.job_script())
    except InputError:
        cluster.close()
        raise
    cluster.adapt(
        Adaptive=_Jobs, minimum=0, maximum=n_jobs, log_folder=log_folder, on_error=on_error
    )
    return cluster


def _check_job(script: str) -> None:
    """Raises InputError where SLURM does not accept this job script. Nothing is submitted."""
    command = ["sbatch", "--test-only"]
    try:
        test = subprocess.run(command, input=script, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError(
            "there is no SLURM here (no sbatch): run this where jobs are submitted from"
        ) from None
    if test.returncode != 0:
        raise InputError(
            f"SLURM takes no such job ({test.stderr.strip()}): change jobqueue.slurm in "
            f"{dask.config.PATH}"
        )


def _exports(cores: int, config: Mapping[str, object]) -> list[str]:
    """Lines of the job's script that set the environment of a worker.

    This project's code, the threads of numerical libraries, the PASSED_ON variables of this
    process, and Dask's configuration.
    """
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    variables = {name: str(cores) for name in threads}

    # The user's own settings overrule the number of threads.
    for name, value in os.environ.items():
        if name.startswith(PASSED_ON):
            variables[name] = value

    project = str(Path(__file__).parents[2])
    python_path = os.environ.get("PYTHONPATH")
    variables["PYTHONPATH"] = f"{project}{os.pathsep}{python_path}" if python_path else project

    # Dask reads a.b-c from DASK_A__B_C.
    for key, setting in config.items():
        name = f"DASK_{key.replace('.', '__').replace('-', '_').upper()}"
        variables[name] = str(setting)

    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


class _Jobs(Adaptive):
    """As many jobs as unfinished tasks; jobs that are gone before their heartbeat come again."""

    cluster: "SLURMCluster"

    def __init__(
        self,
        cluster: "SLURMCluster",
        *,
        log_folder: Path,
        on_error: Callable[[InputError], None],
        **limits: Any,
    ) -> None:
        super().__init__(cluster, **limits)
        self.log_folder = log_folder
        self.on_error = on_error
        self.last_asked = time.monotonic()  # s, the last call of squeue
        self.alive: set[str] = set()  # jobs whose worker has sent a heartbeat
        self.n_early_deaths = 0

    async def target(self) -> int:
        """How many jobs there should be: one for each unfinished task."""
        tasks = self.cluster.scheduler.tasks.values()
        # These two states are the last ones: done, and failed.
        return sum(task.state not in ("memory", "erred") for task in tasks)

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Forget the workers whose job is gone, so that Dask submits them again."""
        jobs = self.cluster.workers
        # `observed` are the workers that the scheduler knows: they have sent a heartbeat.
        self.alive |= {jobs[name].job_id for name in self.observed if name in jobs}

        is_time = time.monotonic() - self.last_asked > ASK_EVERY
        if is_time and any(job.job_id not in self.alive for job in jobs.values()):
            self.last_asked = time.monotonic()
            for name, job_id in await self._find_dead_jobs():
                del jobs[name]
                self.n_early_deaths += job_id is not None  # None: SLURM refused the job

            if self.n_early_deaths >= MAX_EARLY_DEATHS and not self.alive:
                self.on_error(
                    InputError(
                        "SLURM jobs end before their worker reports: see their output in "
                        f"{self.log_folder}"
                    )
                )
        return await super().recommendations(target)

    async def _find_dead_jobs(self) -> list[tuple[str, str | None]]:
        """(name of a worker, its job) of those that sent no heartbeat and are not in the queue."""
        silent = {}
        for name, job in self.cluster.workers.items():
            if job.job_id not in self.alive:
                silent[name] = job.job_id

        command = ["squeue", "--noheader", "--format=%A", "--user", getpass.getuser()]
        squeue = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        if squeue.returncode != 0:  # SLURM's controller may be down for a moment: ask again later
            return []

        queue = squeue.stdout.split()
        return [(name, job_id) for name, job_id in silent.items() if job_id not in queue]
