"""Where Dask's workers come from, and how Dask is configured (https://distributed.dask.org)."""

import logging
import pkgutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.compute.machine import gpu_ids, memory_limit
from pipeline.errors import InputError

if TYPE_CHECKING:  # the import takes a second, and most commands need no workers
    from distributed import Client, Scheduler, SpecCluster

MAX_LOSSES = 4  # workers in a row that may die of a task without progress
RESTART_EVERY = 2  # s between two looks for local workers that are gone
TIMEOUT = 10.0  # s, for a scheduler to answer and for a first worker to appear
SAME_VERSIONS = ("python", "dask", "distributed", "cloudpickle", "msgpack")

# Dask logs pages about a lost worker. We print one line instead.
SILENT = logging.CRITICAL + 1

CONFIG: dict[str, Any] = {
    # Disable Dask's spill and pause: our memory is live EEG, and a paused worker never resumes.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    # Keep few events, because results are among them.
    "distributed.admin.low-level-log-length": 100,
    # A worker of one thread gets one task, and no other in advance.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": MAX_LOSSES - 1,
    # Else Dask sets OMP_NUM_THREADS=1, in this process too.
    "distributed.nanny.pre-spawn-environ": {},
}


@contextmanager
def connect(
    backend: str, n_workers: int, on_error: Callable[[InputError], None]
) -> Iterator[tuple["Client", str]]:
    """A client of the workers, and a phrase that says where they are.

    `backend` is local, slurm or the address of a scheduler, as in `workers.side_by_side`.
    `on_error` gets the InputError of a problem that shows only later and ends the whole run.
    Raises InputError where the workers cannot be had.
    """
    import dask
    from distributed.utils import silence_logging_cmgr

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(CONFIG))
        stack.enter_context(silence_logging_cmgr(SILENT))

        if backend == "local":
            processes = stack.enter_context(_local_cluster(n_workers))
            client = stack.enter_context(_open_client(processes))
            stack.enter_context(_restart_dead_workers(processes, n_workers))
            location = f"on {n_workers} local workers"

        elif backend == "slurm":
            from pipeline.compute.slurm import slurm_cluster

            # The dashboard listens on this machine only. Elsewhere users see it through ssh -L.
            link = "http://127.0.0.1:{port}/status"
            stack.enter_context(dask.config.set({"distributed.dashboard.link": link}))
            jobs = stack.enter_context(slurm_cluster(n_workers, CONFIG, on_error))
            client = stack.enter_context(_open_client(jobs))
            location = f"in up to {n_workers} SLURM jobs"

        else:
            _check_scheduler(backend)
            client = stack.enter_context(_open_client(backend))
            _check_workers(client, backend)
            client.run_on_scheduler(_configure_scheduler)  # it was started without our CONFIG
            location = f"on the workers of {backend}"

        yield client, location


def _open_client(cluster: "SpecCluster | str") -> "Client":
    """A client of a cluster, or of the scheduler at an address."""
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # _check_versions refuses these
        return Client(cluster, timeout=TIMEOUT, set_as_default=False)


# Workers on this machine


def _local_cluster(n_workers: int) -> "SpecCluster":
    """Spawned processes. Each has an equal share of the memory and, if there are GPUs, one GPU."""
    from distributed import Nanny, Scheduler, Security, SpecCluster

    # Whoever reaches a scheduler can run code as its user. So it listens on this machine only, and
    # a connection needs the certificate that is made here for this cluster.
    security = Security.temporary()
    secure = {"host": "127.0.0.1", "protocol": "tls://", "security": security}

    gpus = gpu_ids()
    workers = {}
    for i in range(n_workers):
        options = {
            "nthreads": 1,
            "memory_limit": memory_limit() // n_workers,
            "env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {},
            "silence_logs": SILENT,
        }
        workers[i] = {"cls": Nanny, "options": secure | options}

    scheduler = {"cls": Scheduler, "options": secure | {"dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers, scheduler, security=security)


@contextmanager
def _restart_dead_workers(cluster: "SpecCluster", n_workers: int) -> Iterator[None]:
    """Start workers again that Dask gives up: killed while they started, or slow to restart."""
    from distributed import Status
    from tornado.ioloop import PeriodicCallback

    def restart() -> None:
        for name, nanny in [*cluster.workers.items()]:
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(n_workers)  # starts as many as are missing

    loop = cluster.loop
    assert loop is not None
    # In the thread of the cluster, whose workers no other thread may change.
    callback = PeriodicCallback(restart, RESTART_EVERY * 1000)
    loop.add_callback(callback.start)
    try:
        yield
    finally:
        loop.add_callback(callback.stop)


# A scheduler that the user started


def _check_scheduler(address: str) -> None:
    """Raises InputError unless something answers at this address.

    Dask alone would try for a long time and end in a traceback.
    """
    from distributed.comm import get_address_host_port

    try:
        host_and_port = get_address_host_port(address, strict=True)
        socket.create_connection(host_and_port, TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`, "
            "and give its address"
        ) from error


def _check_workers(client: "Client", address: str) -> None:
    """Raises InputError unless the scheduler and its workers can run our tasks.

    They need our versions of Python and Dask, our code, and one thread in each worker.
    """
    _check_versions(client, address)

    start = f"start workers with `dask worker {address} --nthreads 1`"
    try:
        client.wait_for_workers(1, TIMEOUT)  # a lost worker may be on its way back
    except TimeoutError:
        raise InputError(f"{address} has no workers: {start}") from None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()

    try:  # can they import this module?
        for run in (client.run_on_scheduler, client.run):
            run(pkgutil.resolve_name, f"{__name__}:MAX_LOSSES")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{address}: {error} there: start scheduler and workers in this project's folder, "
            "from its .venv"
        ) from error

    if any(worker["nthreads"] > 1 for worker in workers):
        raise InputError(
            f"{address} has workers of several threads, and runs in one process share its random "
            f"numbers: {start}"
        )


def _check_versions(client: "Client", address: str) -> None:
    """Raises InputError unless scheduler and workers have our versions of SAME_VERSIONS."""
    versions: Any = client.get_versions()
    ours = versions["client"]["packages"]
    for member, theirs in {"the scheduler": versions["scheduler"], **versions["workers"]}.items():
        for package in SAME_VERSIONS:
            if theirs["packages"][package] != ours[package]:
                raise InputError(
                    f"{address}: {package} is {theirs['packages'][package]} at {member} and "
                    f"{ours[package]} here: start scheduler and workers from this project's .venv"
                )


def _configure_scheduler(dask_scheduler: "Scheduler") -> None:
    """Apply our CONFIG in a scheduler that started without it. Dask fills in the argument."""
    dask_scheduler.WORKER_SATURATION = CONFIG["distributed.scheduler.worker-saturation"]
    dask_scheduler.allowed_failures = CONFIG["distributed.scheduler.allowed-failures"]
