"""A SLURM of one node, this machine, for tests: real munged, slurmctld and slurmd, as the user who starts it.

python -m tests.slurm COMMAND ...     # runs the command with it
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
# No cgroups and no accounting: jobs are limited in time and not in memory.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SchedulerType=sched/backfill
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=2
OverTimeLimit=0
InactiveLimit=0
MinJobAge=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 RealMemory={memory} State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> list[str]:
    """The daemons that are not installed: `apt install slurm-wlm munge`."""
    return [name for name in DAEMONS if shutil.which(name, path=PATH) is None]


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Start it; yield the environment variables that its commands need; stop it and all jobs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(mode=0o700)
        folder.chmod(0o755)
        (folder / "munge").chmod(
            0o711
        )  # munged wants it so: others reach its socket and see nothing else
        (folder / "munge/key").touch(0o600)
        (folder / "munge/key").write_bytes(os.urandom(128))
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        values = {
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "folder": folder,
            "ports": ports,
        }
        (folder / "slurm.conf").write_text(CONFIGURATION.format(memory=memory, **values))
        env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        munge = [
            f"--{name.replace('_', '-')}={folder}/munge/{name.split('_')[0]}"
            for name in ("socket", "key_file", "pid_file", "log_file", "seed_file")
        ]
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", values["host"]],
        ):
            output = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            process = subprocess.Popen(command, env=os.environ | env, stdout=output, stderr=output)
            stack.callback(_stop, process)
            if command[0] == "munged":
                _wait(lambda: (folder / "munge/socket").exists(), folder)
        stack.callback(
            subprocess.run, ["scancel", "--user", values["user"]], env=os.environ | env, check=False
        )
        _wait(lambda: "idle" in _output(["sinfo", "--noheader", "--format=%t"], env), folder)
        yield env


def _output(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True).stdout


def _wait(ready: object, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        if time.monotonic() > deadline:
            logs = "".join(
                f"--- {path}\n{path.read_text()[-2000:]}"
                for path in folder.glob("*.*")
                if path.suffix in (".out", ".log")
            )
            raise RuntimeError(f"SLURM does not start:\n{logs}")
        time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with slurm() as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | environment).returncode)
