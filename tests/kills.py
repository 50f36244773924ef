"""Kill a study again and again at random moments: a worker, or all of it. Its table must come out byte for byte as
that of an undisturbed one, with no run done twice that was whole.

    python -m tests.kills [KILLS [SEED]]
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from tests.tiny import make_embeddings, make_prepared

EPOCHS = 150
OUTS = ("study.csv", "study.json", "study", "study.html")


def main(n_kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        image_ids = make_prepared(base)
        for place, name in enumerate(("unaligned", "dreamsim")):
            make_embeddings(base / f"embeddings/synclr_vitb16/{name}.h5", image_ids, place)
        write_params(base / "params.yaml")
        start(base, "whole").wait()
        killed = {"main": 0, "workers": 0}
        process = start(base, "killed")
        while sum(killed.values()) < n_kills:
            time.sleep(chance.uniform(0.1, 6))
            if process.poll() is not None:  # done: begin with an empty cache again
                assert process.returncode == 0
                compare(base)
                subprocess.run(["rm", "-r", base / "cache-killed"], check=True)
                process = start(base, "killed")
                continue
            workers = workers_of(process.pid)
            if not workers or chance.random() < 0.3:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                killed["main"] += 1
                process = start(base, "killed")
            else:
                chance.choice(workers).kill()
                killed["workers"] += 1
            print(f"killed: {killed}, {len(list(base.glob('cache-killed/study/*.h5')))} runs are whole", flush=True)
        assert process.wait() == 0
        compare(base)
    print(f"{n_kills} kills: table, summary and page as without them")


def write_params(path: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    quick = {"epochs": EPOCHS, "batch_size": 12, "projection_size": 16, "validation_concepts": 0.25, "device": "cpu"}
    values["train"] |= quick
    values["evaluate"] |= {"resamples": 200}
    values["study"] |= {"backbones": ["synclr_vitb16"]}
    path.write_text(yaml.safe_dump(values))


def start(base: Path, name: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ALIGNED_EEG_CACHE": str(base / f"cache-{name}")}
    outs = [base / name / out for out in OUTS]
    command = [sys.executable, "-m", "stages.study", base / "params.yaml", base / "eeg", base / "embeddings", *outs]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that run trials: those that Dask's nannies have spawned."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def compare(base: Path) -> None:
    for name in ("study.csv", "study.json", "study.html"):
        assert (base / "killed" / name).read_bytes() == (base / "whole" / name).read_bytes(), name
    assert not list(base.glob("cache-killed/study/*.pt")), "no state of an unfinished run is left"


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*arguments[:1] or [20], *arguments[1:2] or [0])
