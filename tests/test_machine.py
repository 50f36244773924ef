"""Memory and cores: what batch systems, control groups and limits leave to a process."""

import subprocess
import sys
from pathlib import Path

import pytest
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from pipeline.compute.machine import free_memory, memory_limit, n_cores

MIB = 1 << 20


def make_files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A machine without control groups, as macOS."""
    return tmp_path


def test_without_limits_it_is_the_machine(nothing: Path) -> None:
    assert memory_limit(nothing, {}) == MEMORY_LIMIT
    assert n_cores(nothing, {}) == CPU_COUNT
    assert 0 < free_memory() <= MEMORY_LIMIT


@pytest.mark.parametrize(
    ("cgroup", "file", "text"),
    [
        # version 2: SLURM's, of the process, of a step above it, of the root as in a container
        (
            "0::/system.slice/job_7/step_0",
            "sys/fs/cgroup/system.slice/job_7/step_0/memory.max",
            "300000000",
        ),
        (
            "0::/system.slice/job_7/step_0",
            "sys/fs/cgroup/system.slice/job_7/memory.max",
            "300000000",
        ),
        (
            "0::/system.slice/job_7/step_0",
            "sys/fs/cgroup/system.slice/job_7/memory.high",
            "300000000",
        ),
        ("0::/", "sys/fs/cgroup/memory.max", "300000000"),
        # version 1, and both at once
        (
            "4:memory:/slurm/job_7",
            "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes",
            "300000000",
        ),
        (
            "4:cpu,memory:/slurm/job_7",
            "sys/fs/cgroup/cpu,memory/slurm/memory.limit_in_bytes",
            "300000000",
        ),
        ("4:memory:/docker/a\n0::/a", "sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000"),
        ("1:name=systemd:/\n0::/a", "sys/fs/cgroup/unified/a/memory.max", "300000000"),
    ],
)
def test_the_memory_of_a_control_group(cgroup: str, file: str, text: str, tmp_path: Path) -> None:
    make_files(tmp_path, **{"proc/self/cgroup": cgroup, file: text})
    assert memory_limit(tmp_path, {}) == 300_000_000


def test_a_control_group_without_limit_limits_nothing(tmp_path: Path) -> None:
    make_files(
        tmp_path,
        **{
            "proc/self/cgroup": "4:memory,cpu:/a\n0::/a",
            "sys/fs/cgroup/memory,cpu/a/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory,cpu/a/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/memory,cpu/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/a/memory.max": "max",
            "sys/fs/cgroup/a/cpu.max": "max 100000",
        },
    )
    assert memory_limit(tmp_path, {}) == MEMORY_LIMIT
    assert n_cores(tmp_path, {}) == CPU_COUNT


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "300"}, 300),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all there is
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}, 300),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 200),
        ({"SLURM_MEM_PER_CPU": "100"}, None),
        ({"SLURM_MEM_PER_NODE": "unknown"}, None),
    ],
)
def test_the_memory_of_a_slurm_job(environ: dict, expected: int | None, nothing: Path) -> None:
    assert memory_limit(nothing, environ) == (expected * MIB if expected else MEMORY_LIMIT)


@pytest.mark.parametrize(
    "environ",
    [{"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "2"}, {"SLURM_CPUS_ON_NODE": "1"}],
)
def test_the_cores_of_a_slurm_job(environ: dict, nothing: Path) -> None:
    assert n_cores(nothing, environ) == 1


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/job/step", {"sys/fs/cgroup/job/cpu.max": "100000 100000"}),
        ("0::/job", {"sys/fs/cgroup/job/cpu.max": "50000 100000"}),  # half a core is one
        (
            "3:cpu,cpuacct:/job",
            {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
        ),
    ],
)
def test_the_cores_of_a_control_group(cgroup: str, files: dict, tmp_path: Path) -> None:
    make_files(tmp_path, **{"proc/self/cgroup": cgroup} | files)
    assert n_cores(tmp_path, {}) == 1


def test_the_memory_of_ulimit() -> None:
    script = (
        "import resource; from pipeline.compute.machine import memory_limit\n"
        "import distributed.system\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))\n"
        "print(memory_limit())"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert int(out) <= 4 << 30
