"""The memory, the cores and the GPUs that this process may use.

Dask reads the limits of the machine, of the CPU affinity and of a container. Here come those that
Dask does not read: the control group of this process (SLURM and systemd put jobs into one), what
SLURM allotted where it does not enforce it, and `ulimit -v`.
"""

import math
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import psutil

MIB = 1 << 20  # bytes

# Files of a control group, version 1 and version 2
MEMORY_FILES = ("memory.limit_in_bytes", "memory.max", "memory.high")


def free_memory() -> int:
    """The bytes of memory that this process and its workers can still take."""
    return min(psutil.virtual_memory().available, memory_limit())


def memory_limit(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """The most bytes of memory that this process and its workers may take together.

    What they use already is part of it. `root` is the folder of /proc and /sys.
    """
    from distributed.system import MEMORY_LIMIT  # here, because the import takes a while

    limits = [MEMORY_LIMIT, *_slurm_memory(environ)]
    for folder in _control_groups("memory", root):
        texts = [_read(folder / name) for name in MEMORY_FILES]
        # "max" says that there is no limit, and so do the huge numbers of version 1.
        limits += [int(text) for text in texts if text.isdecimal()]

    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)

    return min(limits)


def n_cores(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """How many cores this process may use, at least 1. `root` is the folder of /proc and /sys."""
    from dask.system import CPU_COUNT  # here, because the import takes a while

    counts = [CPU_COUNT]
    slurm_cores = _slurm_cores(environ)
    if slurm_cores is not None:
        counts.append(slurm_cores)

    # A quota is "<time> <period>": so much CPU time in each period; 150000 100000 is 1.5 cores.
    for folder in _control_groups("cpu", root):
        version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        version_2 = _read(folder / "cpu.max")
        for quota in (version_1, version_2):
            match quota.split():
                case [time, period] if time.isdecimal() and period.isdecimal():
                    counts.append(math.ceil(int(time) / int(period)))

    return max(1, min(counts))


def gpu_ids() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch  # here, because the import takes a while

    n_gpus = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # A mask may name more GPUs than there are.
    return visible.split(",")[:n_gpus] if visible else [str(i) for i in range(n_gpus)]


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of all groups around it.

    Of version 1 and 2. Only Linux has any.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mounts = ["", "unified"]
        elif controller in controllers.split(","):  # version 1
            mounts = [controllers, controller]
        else:
            continue

        group = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for folder in (group, *group.parents):
                yield root / "sys/fs/cgroup" / mount / folder


def _slurm_memory(environ: Mapping[str, str]) -> Iterator[int]:
    """The bytes of memory that SLURM allotted to this job on this node; none where 0 says "all"."""
    of_node = environ.get("SLURM_MEM_PER_NODE", "")  # MiB
    if of_node.isdecimal() and int(of_node):
        yield int(of_node) * MIB

    of_core = environ.get("SLURM_MEM_PER_CPU", "")  # MiB
    cores = _slurm_cores(environ)
    if of_core.isdecimal() and int(of_core) and cores is not None:
        yield int(of_core) * MIB * cores


def _slurm_cores(environ: Mapping[str, str]) -> int | None:
    """The cores that SLURM allotted to this task, or else to the job on this node."""
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
