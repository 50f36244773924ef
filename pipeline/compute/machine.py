"""How much memory and how many cores this process may use: what its machine, container, batch job and limits leave.

Dask knows the machine, the affinity and a container. This adds what it does not read: the control group of the process
itself, in which SLURM and systemd put a job, what SLURM allotted where it enforces nothing, and `ulimit -v`.
"""

import math
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import psutil

MIB = 1 << 20
MEMORY_FILES = (
    "memory.limit_in_bytes",
    "memory.max",
    "memory.high",
)  # of control groups, version 1 and 2


def free_memory() -> int:
    """The bytes of memory that this process and its workers can still take."""
    return min(psutil.virtual_memory().available, memory_limit())


def memory_limit(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """The most bytes of memory that this process and its workers may take together, used or not.

    `root` is where /proc and /sys are.
    """
    from distributed.system import MEMORY_LIMIT  # here: it takes a while to import

    limits = [MEMORY_LIMIT, *_allotted_by_slurm(environ)]
    for folder in _control_groups("memory", root):
        limits += [int(text) for name in MEMORY_FILES if (text := _read(folder / name)).isdecimal()]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits)


def n_cores(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """How many cores this process may use, at least 1."""
    from dask.system import CPU_COUNT  # here: it takes a while to import

    counts = [CPU_COUNT]
    if (allotted := _cores_of_slurm(environ)) is not None:
        counts.append(allotted)
    for folder in _control_groups("cpu", root):
        version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        for quota in (version_1, _read(folder / "cpu.max")):
            match quota.split():
                case [time, period] if time.isdecimal() and period.isdecimal():
                    counts.append(math.ceil(int(time) / int(period)))
    return max(1, min(counts))


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those that it is in, of version 1 and 2; on Linux alone."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = ["", "unified"]
        elif controller in controllers.split(","):
            mounts = [controllers, controller]
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            yield from (
                root / "sys/fs/cgroup" / mount / folder for folder in (group, *group.parents)
            )


def _allotted_by_slurm(environ: Mapping[str, str]) -> Iterator[int]:
    """The bytes of memory that SLURM allotted to this job on this node; 0 stands for all there is."""
    in_all, by_core = (environ.get(f"SLURM_MEM_PER_{what}", "") for what in ("NODE", "CPU"))
    n_allotted = _cores_of_slurm(environ)
    if in_all.isdecimal() and int(in_all):
        yield int(in_all) * MIB
    if by_core.isdecimal() and int(by_core) and n_allotted is not None:
        yield int(by_core) * MIB * n_allotted


def _cores_of_slurm(environ: Mapping[str, str]) -> int | None:
    """The cores that SLURM allotted to this task, or, where it was asked for none by task, to the job on this node."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    return None


def _read(path: Path) -> str:
    """The text of a file of the kernel, "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
