"""Kill a study again and again at random moments: a worker, or all of it. Its table must come out byte for byte as
that of an undisturbed one, with no run done twice that was whole.

    python -m tests.kills [KILLS [SEED]]
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.tiny import make_embeddings, make_prepared

EPOCHS = 40
OUTS = ("study.csv", "study.json", "study", "study.html")


def main(n_kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        image_ids = make_prepared(base)
        for place, name in enumerate(("unaligned", "dreamsim")):
            make_embeddings(base / f"embeddings/synclr_vitb16/{name}.h5", image_ids, place)
        write_params(base / "params.yaml")
        assert start(base, "whole").wait() == 0
        killed = {"main": 0, "workers": 0}
        process = start(base, "killed")
        while sum(killed.values()) < n_kills:
            if not wait_until_training(base, process):  # it is done: once more, from nothing
                assert process.returncode == 0
                compare(base)
                shutil.rmtree(base / "cache-killed")
                process = start(base, "killed")
                continue
            time.sleep(chance.uniform(0, 3))
            workers = workers_of(process.pid)
            if not workers or chance.random() < 0.3:
                process.kill()
                process.wait()
                killed["main"] += 1
                process = start(base, "killed")
            else:
                chance.choice(workers).kill()
                killed["workers"] += 1
            print(
                f"killed: {killed}, {len(list(base.glob('cache-killed/study/*.h5')))} runs are whole",
                flush=True,
            )
        assert process.wait() == 0
        compare(base)
    print(f"{n_kills} kills: table, summary and page as without them")


def write_params(path: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    quick = {
        "epochs": EPOCHS,
        "batch_size": 12,
        "projection_size": 16,
        "validation_concepts": 0.25,
        "device": "cpu",
    }
    values["train"] |= quick
    values["evaluate"] |= {"resamples": 200}
    values["study"] |= {"backbones": ["synclr_vitb16"]}
    path.write_text(yaml.safe_dump(values))


def start(base: Path, name: str) -> subprocess.Popen[bytes]:
    (base / name).mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "stages.study",
        base / "params.yaml",
        base / "eeg",
        base / "embeddings",
        *OUTS,
    ]
    environment = os.environ | {
        "ALIGNED_EEG_CACHE": str(base / f"cache-{name}"),
        "PYTHONPATH": str(Path.cwd()),
    }
    return subprocess.Popen(command, cwd=base / name, env=environment, stdout=subprocess.DEVNULL)


def wait_until_training(base: Path, process: subprocess.Popen[bytes]) -> bool:
    """Until an epoch is over that was not yet, so that not all kills meet a process that starts; or it is done."""
    seen = states(base)
    while process.poll() is None:
        if states(base) - seen:
            return True
        time.sleep(0.05)
    return False


def states(base: Path) -> set[tuple[str, int]]:
    found = set()
    for path in base.glob("cache-killed/study/unfinished/*/*.pt"):
        with suppress(FileNotFoundError):  # its run is done by now
            found.add((path.parent.name, path.stat().st_mtime_ns))
    return found


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that run trials: those that Dask's nannies have spawned."""
    return [
        child
        for child in psutil.Process(pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]


def compare(base: Path) -> None:
    for name in ("study.csv", "study.json", "study.html"):
        assert (base / "killed" / name).read_bytes() == (base / "whole" / name).read_bytes(), name
    assert not list(base.glob("cache-killed/study/unfinished/*/*.pt")), (
        "no state of an unfinished run is left"
    )


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*arguments[:1] or [20], *arguments[1:2] or [0])
