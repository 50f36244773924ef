"""Dask workers as SLURM jobs, by dask-jobqueue (https://jobqueue.dask.org) and the user's own configuration of it.

What dask-jobqueue 0.9 leaves to us: a job that SLURM refused, or ended before its worker reported, is not submitted
again; and workers that nobody needs any more hold their jobs to the end.
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

ASK_EVERY = 30.0  # s; so often squeue is asked, if at all
BEGUN_IN_VAIN = 3  # jobs that end before their worker reports, if no worker ever did: more of them would do so too
PASSED_ON = (
    "ALIGNED_EEG_",
    "CUBLAS_",
    "GOMP_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
)  # variables of the environment
EXAMPLE = """jobqueue:
  slurm:
    cores: 4
    memory: 16GB
    walltime: "04:00:00"
    queue: gpu
    job-extra-directives: ["--gres=gpu:1"]"""


def slurm_cluster(
    n_jobs: int, config: Mapping[str, object], trouble: Callable[[InputError], None]
) -> "SLURMCluster":
    """A cluster of at most `n_jobs` jobs, never more than there are tasks left, each one worker of one thread.

    `config` is the Dask configuration of the workers. InputError where SLURM takes no such job; `trouble` gets the
    one that shows later.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster  # which makes Ctrl-C an exit that looks like success

    signal.signal(signal.SIGINT, on_interrupt)
    settings = dask.config.get("jobqueue.slurm")
    if settings["cores"] is None or settings["memory"] is None:
        file = Path(dask.config.PATH) / "jobqueue.yaml"
        raise InputError(
            f"SLURM jobs need cores and memory: say in {file}, after your cluster's rules:\n{EXAMPLE}"
        )
    log_folder = Path(settings["log-directory"] or cache_folder() / "slurm")
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        job_cpu=settings["job-cpu"] or settings["cores"],
        job_script_prologue=[
            *_exports(settings["cores"], config),
            *settings["job-script-prologue"],
        ],
        log_directory=str(log_folder),
        # Whoever reaches a scheduler can run code as its user, so it asks for the certificate that is made here.
        security=True,
        shared_temp_directory=settings["shared-temp-directory"] or str(cache_folder()),
        scheduler_options=settings["scheduler-options"] | {"dashboard_address": "127.0.0.1:0"},
        silence_logs=False,
        name="slurm",
    )
    try:
        tried = subprocess.run(
            ["sbatch", "--test-only"], input=cluster.job_script(), capture_output=True, text=True
        )
    except FileNotFoundError:
        cluster.close()
        raise InputError(
            "there is no SLURM here (no sbatch): run this where jobs are submitted from"
        ) from None
    if tried.returncode != 0:
        cluster.close()
        raise InputError(
            f"SLURM takes no such job ({tried.stderr.strip()}): change jobqueue.slurm in {dask.config.PATH}"
        )
    cluster.adapt(Adaptive=_Jobs, minimum=0, maximum=n_jobs, log_folder=log_folder, trouble=trouble)
    return cluster


def _exports(cores: int, config: Mapping[str, object]) -> list[str]:
    """Lines of the job's script: this project's code, the variables of this process, and Dask's configuration."""
    python_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {
        name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    variables = threads | {
        name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)
    }
    variables |= {"PYTHONPATH": os.pathsep.join(python_path)}
    variables |= {
        f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(config[key])
        for key in config
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


class _Jobs(Adaptive):
    """As many jobs as tasks are left; those that SLURM refused or ended early are submitted again."""

    cluster: "SLURMCluster"

    def __init__(
        self,
        cluster: "SLURMCluster",
        *,
        log_folder: Path,
        trouble: Callable[[InputError], None],
        **limits: Any,
    ) -> None:
        super().__init__(cluster, **limits)
        self.log_folder, self.trouble = log_folder, trouble
        self.asked = time.monotonic()
        self.arrived: set[str] = set()
        self.in_vain = 0

    async def target(self) -> int:
        return sum(
            task.state not in ("memory", "erred") for task in self.cluster.scheduler.tasks.values()
        )

    async def recommendations(self, target: int) -> dict[str, Any]:
        jobs = self.cluster.workers
        self.arrived |= {jobs[name].job_id for name in self.observed if name in jobs}
        if time.monotonic() - self.asked > ASK_EVERY and any(
            job.job_id not in self.arrived for job in jobs.values()
        ):
            self.asked = time.monotonic()
            for name, job_id in await self._gone():
                del jobs[name]  # and so it is submitted again
                self.in_vain += job_id is not None
            if self.in_vain >= BEGUN_IN_VAIN and not self.arrived:
                self.trouble(
                    InputError(
                        f"SLURM jobs end before their worker reports: see their output in {self.log_folder}"
                    )
                )
        return await super().recommendations(target)

    async def _gone(self) -> list[tuple[str, str | None]]:
        """Name and job of the workers that never reported and have no job any more."""
        jobs = {
            name: job.job_id
            for name, job in self.cluster.workers.items()
            if job.job_id not in self.arrived
        }
        command = ["squeue", "--noheader", "--format=%A", "--user", getpass.getuser()]
        asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        if asked.returncode != 0:  # SLURM's controller is down for a moment: the next time
            return []
        queued = asked.stdout.split()
        return [(name, job_id) for name, job_id in jobs.items() if job_id not in queued]
