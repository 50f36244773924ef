"""How many runs an hour: the engine of the study with 1 and 2 workers, and the same runs one by one with `dvc exp run`.

On the sample as the last `dvc repro` left it, within-subject, one EEG encoder, one core a run; every run is trained
anew, in caches of their own. DVC's runs are those of a user without the engine: one experiment an encoder and seed, the
two subjects one after the other, evaluated by the evaluate stage. The engine's own cost is what a run takes beside its
training and scoring, which each process times itself.

    python -m benchmarks.study [SEEDS]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.params import read_params
from pipeline.sections import Runs, Study
from pipeline.study.people import StudyRecording
from pipeline.study.trials import plan_study, run_study
from pipeline.train.inputs import find_subjects

EEG_ENCODER, BACKBONE = "nice", "synclr_vitb16"


def main(n_seeds: int) -> None:
    p = read_params(Path("params.yaml"))
    if p.dataset != "sample" or p.backbone != BACKBONE:
        sys.exit(
            f"this benchmark is of the sample and {BACKBONE}: check out params.yaml and run dvc repro"
        )
    recording = StudyRecording(p.dataset, find_subjects(Path("data/eeg")))
    first = int(time.time())  # seeds of which DVC's cache knows no run
    seeds = list(range(first, first + n_seeds))
    grid = Study(
        backbones=[BACKBONE],
        alignments=["dreamsim"],
        blocks=["last"],
        eeg_encoders=[EEG_ENCODER],
        protocols=["within-subject"],
        recordings=["first"],
        seeds=seeds,
    )
    kinds = {BACKBONE: {"dreamsim": False}}
    trials = plan_study(grid, p.seed, {"first": recording}, p.across, kinds)
    an_hour = {}
    with tempfile.TemporaryDirectory() as folder:
        embeddings = Path(folder) / "embeddings" / BACKBONE
        embeddings.mkdir(parents=True)
        for name, cache in (("unaligned", "unaligned"), ("dreamsim", "aligned")):
            (embeddings / f"{name}.h5").symlink_to(Path(f"data/embeddings/{cache}.h5").resolve())
        for n_workers in (1, 2):
            os.environ["ALIGNED_EEG_CACHE"] = f"{folder}/cache-{n_workers}"
            where = Runs(where="local", workers=n_workers)
            started = time.monotonic()
            answers, failures = run_study(trials, [recording], embeddings.parent, p.train, where)
            wall = time.monotonic() - started
            assert not failures and len(answers) == len(trials)
            an_hour[f"{n_workers} workers"] = len(trials) / wall * 3600
            own = sum(answer.seconds for answer in answers)
            cost = (wall * n_workers - own) / len(trials)
            print(
                f"{n_workers} workers: {own / len(trials):.1f} s a run, and {cost:.2f} s of the engine",
                flush=True,
            )
        os.environ["ALIGNED_EEG_CACHE"] = f"{folder}/cache-dvc"
        started = time.monotonic()
        for encoder in ("unaligned", "aligned"):
            for seed in seeds:
                experiment(encoder, seed)
        an_hour["dvc exp run, one by one"] = len(trials) / (time.monotonic() - started) * 3600
    for name, rate in an_hour.items():
        print(f"{name}: {rate:.0f} runs an hour, {rate / an_hour['dvc exp run, one by one']:.2f} x")


def experiment(encoder: str, seed: int) -> None:
    """One experiment in a temporary folder, which changes nothing of the workspace."""
    name = f"bench-{os.getpid()}"
    values = {
        "encoder": encoder,
        "seed": seed,
        "train.protocol": "within-subject",
        "train.eeg_encoder": EEG_ENCODER,
        "runs.workers": 1,
    }
    sets = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    command = ["dvc", "exp", "run", "--quiet", "--temp", "--name", name, *sets, "evaluate"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    subprocess.run(["dvc", "exp", "remove", "--quiet", name], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
