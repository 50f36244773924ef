"""A `python3` and a `dvc` that start at once, for tests that start dozens of stages.

    folder = start_warm_python(os.getpid())  # it has both, and comes first in a PATH
    subprocess.run(["dvc", "repro"], env={"PATH": f"{folder}:{os.environ['PATH']}"})

Each stage spends some 4 seconds on importing torch, and dvc 2 on itself. Here one process imports these libraries, none
of this project, and each program is a fork of it: a process of its own that runs the same code, with the folder, the
environment, the files and the exit status that it would have. Two things are not as without it: all forks hash texts
alike, and a signal that is sent to the program reaches only the little process that waits for it. Tests of what is the
same in each run, or of what is interrupted, start a Python of their own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PROGRAMS = {"python3": "", "dvc": "-m dvc"}
LIBRARIES = [
    *("dvc.cli", "dvc.cli.parser", "dvc.api", "dvc.repo.experiments.run", "dvc.stage.run"),
    *("h5py", "httpx", "jinja2", "matplotlib.pyplot", "mne.channels", "pandas", "rich.table"),
    *("pydantic", "ruamel.yaml", "safetensors.torch", "scipy.optimize", "scipy.stats", "tenacity"),
    *("timm", "torch", "torchvision.transforms.v2", "tqdm", "typer"),
]


def start_warm_python(suite: int) -> str:
    """A folder with both programs, which is there until the process `suite` has ended."""
    folder = (
        tempfile.mkdtemp()
    )  # not in that of the tests: a socket has a name of 100 letters at most
    socket_file = Path(folder, "socket")
    for name, module in PROGRAMS.items():
        command = shlex.join([sys.executable, "-S", __file__, str(socket_file)])
        script = Path(folder, name)
        script.write_text(f'#!/bin/sh\nexec {command} {module} "$@"\n')
        script.chmod(0o755)

    # As the stages set it before they import these libraries.
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(socket_file), str(suite)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout.readline() == b"ready\n"
    return folder


def serve(address: str, suite: int) -> None:
    """Fork for each program that is asked for. Returns in the fork, when the program has ended.

    Returns, and takes the folder away, when the process `suite` has ended.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    vl_convert = importlib.import_module("vl_convert")
    vl_convert.javascript_bundle(vl_version="6.4")  # as pipeline/report/page.py; it is kept
    assert not {"pipeline", "stages", "tests"} & sys.modules.keys()
    gc.freeze()  # what is here now is collected in no fork, which would copy it

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(0.5)
        print("ready", flush=True)
        while True:
            try:
                client, _ = server.accept()
            except TimeoutError:
                if has_ended(suite):
                    shutil.rmtree(Path(address).parent)
                    return
                continue
            if not os.fork():
                break
            client.close()

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run(client)


def has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def run(client: socket.socket) -> None:
    """Run the program in another fork, and tell the client how it ended."""
    message, files, *_ = socket.recv_fds(client, 2**20, 3)
    order = json.loads(message)
    program = os.fork()
    if program:
        for file in files:
            os.close(file)
        _, status = os.waitpid(program, 0)
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)

    client.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[0] = order["folder"]
    sys.argv[1:] = order["arguments"]
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1

    # Python would take all modules apart before it ends, in which a fork has to copy them first: half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(address: str, arguments: list[str]) -> None:
    """What stands in the place of Python: have the program run, and end as it has ended."""
    if arguments[0] != "-m":
        os.execv(sys.executable, [sys.executable, *arguments])

    order = {
        "module": arguments[1],
        "arguments": arguments[2:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        socket.send_fds(client, [json.dumps(order).encode()], [0, 1, 2])
        code = int(client.recv(16))
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        start(sys.argv[1], sys.argv[2:])
