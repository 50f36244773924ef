"""Every stage on a disk that is full, too small, read-only, or foreign: each must end in one sentence and lose nothing.

The disks are real: small ones in memory, mounted here, which takes root. Of each fault the sentence is printed; then
what it says is done, and the stage must go on to its end.

    python -m tests.full_disk [STAGE ...]
"""

import ctypes
import faulthandler
import importlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import yaml
from tqdm import tqdm

import stages
from pipeline.datasets.sample import make_human, make_raw
from pipeline.datasets.table import DATASETS, SAMPLE
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from tests.tiny import EXPLAINED, TINY, explain_evaluation, make_embeddings, make_prepared

BACKBONE = "synclr_vitb16"
LIMIT = 120  # seconds of a stage, which takes one or two: then it hangs
TABLES = ["per_subject", "top_k", "n_way", "repetitions", "time_course", "channels"]


@dataclass(frozen=True)
class Stage:
    """What it is called with: it writes below `data`, the disk that is tried; `{base}` is where its input lies."""

    arguments: str
    kb: int  # the size of a disk on which its output does not fit
    writes: str


EMBEDDINGS = f"{{base}}/embeddings/{BACKBONE}/unaligned.h5"
STAGES = {
    "download": Stage(
        "{base}/params.yaml data/fetched/eeg data/fetched/images data/fetched/image_metadata data/fetched/images.csv",
        200,
        "data/fetched",
    ),
    "preprocess": Stage(
        "{base}/params.yaml {base}/raw {base}/images.csv data/private data/eeg", 200, "data/eeg"
    ),
    "weights": Stage(f"{{base}}/params.yaml {BACKBONE} data/weights", 200, "data/weights"),
    "embed": Stage(
        f"{{base}}/params.yaml {BACKBONE} dreamsim {{base}}/images {{base}}/images.csv {{base}}/weights "
        f"{EMBEDDINGS} data/aligned.h5",
        8,
        "data/aligned.h5",
    ),
    "train": Stage(f"{{base}}/params.yaml {{base}}/eeg {EMBEDDINGS} data/model", 100, "data/model"),
    "evaluate": Stage(
        f"{{base}}/params.yaml {{base}}/eeg {EMBEDDINGS} {{base}}/model data/evaluation.json data/evaluation.h5 "
        + " ".join(f"data/{name}.csv" for name in TABLES),
        12,
        "data/evaluation.h5",
    ),
    "compare": Stage(
        "{base}/evaluation.h5 {base}/other.h5 --params {base}/params.yaml --comparison data/comparison.json",
        4,
        "data/comparison.json",
    ),
    "explain": Stage(
        f"{{base}}/params.yaml {{base}}/images.csv {{base}}/eeg {EMBEDDINGS} {EMBEDDINGS} {EMBEDDINGS} {{base}}/model "
        "{base}/evaluation.h5 {base}/human/similarity.h5 data/explanation.json "
        + " ".join(f"data/{name}.csv" for name in EXPLAINED),
        4,
        "data/galleries.csv",
    ),
    "report": Stage(
        "{base}/params.yaml {base}/images {base}/evaluation.h5 {base}/model/history.csv {base}/evaluation.json "
        "{base}/explanation.json {base}/no-comparison.json reference/learning_curve.csv data/learning_curves.csv "
        "data/pictures data/report.html "
        + " ".join(f"{{base}}/{name}.csv" for name in (*TABLES, *EXPLAINED))
        + " --baseline {base}/baseline.h5",
        100,
        "data/pictures",
    ),
    "study": Stage(
        "{base}/params.yaml {base}/eeg {base}/embeddings data/study.csv data/study.json data/study data/study.html",
        16,
        "data/study",
    ),
}

CACHE_KB = {
    "embed": 4,
    "train": 40,
    "study": 16,
}  # of the stages that compute into it: on such a disk it does not fit


def run(
    base: Path,
    name: str,
    cache: Path,
    *,
    fails: bool,
    change: Callable[[], None] = lambda: None,
) -> str:
    """Its sentence, or all that it prints; checks that there is no traceback, and how it ends.

    It runs in a copy of this process, which spares it the libraries' imports; `change` is called there before. A copy
    that hangs ends after `LIMIT` seconds, and its output says where it was.
    """
    arguments = STAGES[name].arguments.format(base=base).split()
    arguments = [f"{base}/{each}" if each.startswith("data/") else each for each in arguments]
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            faulthandler.dump_traceback_later(LIMIT, exit=True, file=2)
            os.environ["ALIGNED_EEG_CACHE"] = str(cache)
            sys.argv[1:] = arguments
            try:
                change()
                stages.run(importlib.import_module(f"stages.{name}").main)
            except SystemExit as ended:
                sys.stdout.flush()
                os._exit(int(ended.code or 0))
            except BaseException:
                traceback.print_exc()
            os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        text = output.read().decode()
    assert code == fails and "Traceback" not in text, f"ended with {code}: {text}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == fails, text
    return errors[0] if errors else text


@contextmanager
def disk(folder: Path, kb: int | None = None, options: str = "") -> Iterator[Callable[[str], None]]:
    """A disk in memory at a folder, of so many kB; yields what mounts it again with other options."""
    folder.mkdir(exist_ok=True)
    size = f"size={kb}k" if kb else "size=100m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{size}{options}", "tmpfs", folder], check=True)
    try:
        yield (
            lambda other: (
                subprocess.run(["mount", "-o", f"remount,{other}", folder], check=True) and None
            )
        )
    finally:
        subprocess.run(["umount", "-l", folder])


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".*.tmp*")]


def make_input(base: Path) -> None:
    """What the stages read: the input of each is what the one before it wrote."""
    DATASETS["sample"] = replace(
        SAMPLE, source=partial(make_raw, size=TINY), human=partial(make_human, size=TINY)
    )
    image_ids = make_prepared(base)
    make_checkpoint(BACKBONE, base / "weights", embed_dim=64)
    for place, name in enumerate(("unaligned", "dreamsim")):
        make_embeddings(base / f"embeddings/{BACKBONE}/{name}.h5", image_ids, place)
    values = yaml.safe_load(Path("params.yaml").read_text())
    quick = {
        "epochs": 3,
        "batch_size": 12,
        "projection_size": 16,
        "validation_concepts": 0.25,
        "device": "cpu",
    }
    values["train"] |= quick
    values["evaluate"] |= {"resamples": 200}
    values["study"] |= {"backbones": [BACKBONE], "seeds": 1}
    values["preprocess"] |= {"workers": 1}
    (base / "params.yaml").write_text(yaml.safe_dump(values))
    for name in ("train", "evaluate"):
        run(base, name, base / "cache-of-input", fails=False)
        for path in (base / "data").iterdir():
            shutil.move(path, base / path.name)
    caches = [
        base / f"embeddings/{BACKBONE}/{name}.h5" for name in ("unaligned", "unaligned", "dreamsim")
    ]
    # In a process of its own: one whose threads have computed must not fork, as `run` does
    inputs = base, base / "images.csv", base / "eeg", caches, base / "model"
    process = get_context("fork").Process(target=explain_evaluation, args=inputs)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0, f"the input of explain and report: {process.exitcode}"
    other = shutil.copy(base / "evaluation.h5", base / "other.h5")
    with h5py.File(other, "r+") as file:
        file.attrs["encoder"] = "another"


def full(base: Path, name: str) -> None:
    """The output's disk is too small; then there is room."""
    cache = base / f"cache-{name}"
    with disk(base / "data", STAGES[name].kb) as remount:
        if name == "compare":  # its file is smaller than the smallest disk
            (base / "data/mine").write_bytes(bytes(4096))
        told(f"{name}: output's disk full", run(base, name, cache, fails=True))
        assert not leftovers(base / "data", cache)
        remount("size=100m")
        run(base, name, cache, fails=False)
    shutil.rmtree(cache, ignore_errors=True)


def cache_full(base: Path, name: str) -> None:
    """The cache's disk is too small; then the folder is moved to a larger one."""
    if name not in CACHE_KB:
        return
    larger = base / "larger"
    with disk(base / "data"):
        with disk(base / "small", CACHE_KB[name]):
            cache = base / "small/cache"
            told(f"{name}: cache's disk full", run(base, name, cache, fails=True))
            assert not leftovers(cache)
            shutil.copytree(cache, larger)
        run(base, name, larger, fails=False)
    shutil.rmtree(larger, ignore_errors=True)


def no_inodes(base: Path, name: str) -> None:
    with disk(base / "data", options=",nr_inodes=1") as remount:
        told(f"{name}: no inodes left", run(base, name, base / "cache", fails=True))
        remount("nr_inodes=1000")
        run(base, name, base / "cache", fails=False)
    shutil.rmtree(base / "cache", ignore_errors=True)


def read_only(base: Path, name: str) -> None:
    with disk(base / "data") as remount:
        remount("ro")
        told(f"{name}: output's disk read-only", run(base, name, base / "cache", fails=True))
        remount("rw")
        run(base, name, base / "cache", fails=False)
    shutil.rmtree(base / "cache", ignore_errors=True)


def cache_read_only(base: Path, name: str) -> None:
    """Of what is computed, another folder is named; what is fetched or kept already is read where it is."""
    with disk(base / "data"), disk(base / "cache") as remount:
        remount("ro")
        needed = name in CACHE_KB
        told(f"{name}: cache read-only", run(base, name, base / "cache", fails=needed))
        if needed:
            run(base, name, base / "own", fails=False)
            shutil.rmtree(base / "own", ignore_errors=True)


def no_right(base: Path, name: str) -> None:
    """No right to write; then it is given."""
    with disk(base / "data"):
        (base / "data").chmod(0o555)
        told(
            f"{name}: no right to write",
            run(base, name, base / "cache", fails=True, change=obey_modes),
        )
        (base / "data").chmod(0o755)
        run(base, name, base / "cache", fails=False, change=obey_modes)
    shutil.rmtree(base / "cache", ignore_errors=True)


def obey_modes() -> None:
    """What lets root write everywhere is given up, by this process and those that it starts (capabilities 1 and 2)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110
    sets[1] &= ~0b110
    libc.capset(header, sets)


def largest_file(base: Path, name: str) -> None:
    """`ulimit -f`; then none."""
    kb = STAGES[name].kb // 4
    with disk(base / "data"):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (kb * 1024, kb * 1024))
        told(f"{name}: ulimit -f {kb}", run(base, name, base / "cache", fails=True, change=limit))
        assert not leftovers(base / "data", base / "cache")
        run(base, name, base / "cache", fails=False)
    shutil.rmtree(base / "cache", ignore_errors=True)


def dangling(base: Path, name: str) -> None:
    """`data` is a link to a disk that is not there; then it is, and another one than the cache's."""
    os.rmdir(base / "data")
    (base / "data").symlink_to(base / "elsewhere")
    try:
        told(f"{name}: data is a link to nothing", run(base, name, base / "cache", fails=True))
        with disk(base / "elsewhere"):
            run(base, name, base / "cache", fails=False)
        os.rmdir(base / "elsewhere")
    finally:
        (base / "data").unlink()
        (base / "data").mkdir()
    shutil.rmtree(base / "cache", ignore_errors=True)


def in_the_way(base: Path, name: str) -> None:
    """A file where the folder of the output should be; then it is moved away."""
    with disk(base / "data"):
        place = base / STAGES[name].writes
        is_file = place.suffix or name == "study"
        place.mkdir() if is_file else place.write_text("mine")
        told(f"{name}: something else in its place", run(base, name, base / "cache", fails=True))
        assert place.is_dir() if is_file else place.read_text() == "mine"
        place.rename(base / "data/moved-away")
        run(base, name, base / "cache", fails=False)
    shutil.rmtree(base / "cache", ignore_errors=True)


def told(what: str, sentence: str) -> None:
    print(f"| {what} | {sentence.strip().splitlines()[-1]} |", flush=True)


FAULTS = [
    full,
    cache_full,
    no_inodes,
    read_only,
    cache_read_only,
    no_right,
    largest_file,
    dangling,
    in_the_way,
]


def main(names: list[str]) -> None:
    if os.geteuid() != 0:
        sys.exit("only root may mount disks: nothing was tried")
    tqdm.monitor_interval = 0  # no thread of the progress bars: it may hold a lock while we fork
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        for name in STAGES:
            importlib.import_module(f"stages.{name}")
        make_input(base)
        (base / "data").mkdir(exist_ok=True)
        failures = []
        for name in names or STAGES:
            for fault in FAULTS:
                try:
                    fault(base, name)
                except AssertionError as error:
                    failures.append(f"{name}: {fault.__name__}: {error}")
                    print("FAILED", failures[-1], flush=True)
                    shutil.rmtree(base / "cache", ignore_errors=True)
        sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
