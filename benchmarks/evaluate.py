"""Time and memory of evaluate, explain and report at full size: 10 subjects x 200 images x 80 repetitions, 17 x 100, 768-d.

    python -m benchmarks.evaluate          # five seeds; needs 1.1 GB of disk in the temporary folder
    python -m benchmarks.evaluate large    # the paper's data, 63 x 250 in float16, one seed: 5.1 GB

EEG, images and embeddings are noise and the models are untrained, which costs the same; the parameters are those of
params.yaml. The stages run as commands.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import mne
import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks import write_latest
from pipeline.datasets.human import HumanSimilarity, write_human
from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.sample import CH_NAMES
from pipeline.evaluate.similarities import Similarities, write_similarities
from pipeline.images.embeddings import write_embeddings
from pipeline.params import read_params
from pipeline.train.model import ContrastiveModel, ModelSizes, save_model

SUBJECTS = [f"sub-{i:02}" for i in range(1, 11)]
REFERENCE = Path(
    "reference/learning_curve.csv"
).absolute()  # joined to a folder, an absolute path stays what it is
SHAPES = {"": (200, 80, 17, 100), "large": (200, 80, 63, 250)}
SEEDS = {"": range(42, 47), "large": range(42, 43)}
TABLES = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")
EXPLAINED = ("galleries", "calibration", "reliability", "rsa", "near_misses", "concepts")
N_CONCEPTS, IMAGES_PER_CONCEPT = 1654, 10  # of training


def make_inputs(folder: Path, size: str) -> None:
    shape, sfreq = SHAPES[size], 250.0 if size else 100.0
    montage = mne.channels.make_standard_montage("standard_1005").ch_names
    rng = np.random.default_rng(0)
    ids = np.array([f"test_images/{i:05}_concept/image.jpg" for i in range(shape[0])], dtype=object)
    (folder / "eeg").mkdir()
    for subject in SUBJECTS:
        with h5py.File(folder / f"eeg/{subject}.h5", "w") as file:
            file.attrs.update({"subject": subject, "sfreq": sfreq, "caveats": []})
            file["ch_names"] = montage[: shape[2]] if size else CH_NAMES
            file["times"] = np.arange(shape[3]) / sfreq - (0 if size else 0.2)
            eeg = file.create_dataset("test/eeg", shape, np.float16 if size else np.float32)
            for image in range(shape[0]):
                eeg[image] = rng.standard_normal(shape[1:], np.float32)
            for name in ("image_ids", "concept", "things_concept"):
                file[f"test/{name}"] = ids
    make_images(folder, ids, rng)
    sizes = ModelSizes(shape[2], shape[3], sfreq, 768, start=0 if size else -0.2)
    for seed in SEEDS[size]:
        make_model(folder / f"model/pooled-seed-{seed}", sizes, seed)
    (folder / "model/history.csv").write_text(
        "epoch,train_loss\n" + "".join(f"{n},{5 / n}\n" for n in range(1, 101))
    )
    (folder / "comparison.json").write_text('{"sha256": {}}')
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images/test_images.zip", "w") as archive:
        for image_id in ids:
            with archive.open(image_id, "w") as file:
                Image.fromarray(rng.integers(0, 256, (500, 500, 3), np.uint8)).save(file, "JPEG")


def make_model(folder: Path, sizes: ModelSizes, seed: int) -> None:
    torch.manual_seed(seed)
    notes = {
        "fold": "pooled",
        "seed": seed,
        "protocol": "pooled",
        "tested_on": SUBJECTS,
        "selected_on": "validation",
        "selected_epoch": 1,
        "collapsed": False,
    }
    save_model(ContrastiveModel(sizes, read_params(Path("params.yaml")).train), folder, notes)


def make_images(folder: Path, test_ids: np.ndarray, rng: np.random.Generator) -> None:
    """The image table, the cache of all images, what people say of the test concepts, and no baseline."""
    train = pd.DataFrame(
        [
            {"image_ids": f"training_images/{c:05}/{i}.jpg", "concept": f"{c:05}"}
            for c in range(N_CONCEPTS)
            for i in range(IMAGES_PER_CONCEPT)
        ]
    )
    test = pd.DataFrame({"image_ids": test_ids, "concept": test_ids})
    images = {
        split: table.assign(things_concept=table["concept"])
        for split, table in (("train", train), ("test", test))
    }
    write_image_table(folder / "images.csv", images)

    ids = [*train["image_ids"], *test_ids]
    embeddings = rng.standard_normal((len(ids), 768), np.float32)
    write_embeddings(folder / "embeddings.h5", ids, [("last", embeddings, {})], {})

    alike = np.corrcoef(rng.standard_normal((len(test_ids), 66)))
    category = rng.random((len(test_ids), 53)) < 0.024  # as many members as THINGS' categories have
    names = np.array([f"category {i}" for i in range(53)], dtype=object)
    people = HumanSimilarity(test_ids, alike, names, category, "simulated", True)
    write_human(folder / "human.h5", people)
    nothing = np.array([], dtype=object)
    about = {"left_out": "not measured here", "settings": {}}
    write_similarities(folder / "baseline.h5", Similarities(nothing, nothing, nothing, [], about))


def cpu_seconds() -> float:
    """Of all stages so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    size = " ".join(sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, size)
        tables = [f"{table}.csv" for table in TABLES]
        evaluated = ["eeg", "embeddings.h5", "model", "evaluation.json", "evaluation.h5", *tables]
        behind = [f"{table}.csv" for table in EXPLAINED]
        explained = ["images.csv", "eeg", *["embeddings.h5"] * 3, "model", "evaluation.h5"]
        explained += ["human.h5", "explanation.json", *behind]
        reported = [
            "images",
            "evaluation.h5",
            "model/history.csv",
            "evaluation.json",
            "explanation.json",
            "comparison.json",
        ]
        reported += [REFERENCE, "learning_curves.csv", "pictures", "report.html", *tables, *behind]
        start = time.perf_counter()
        stages = {"evaluate": evaluated, "explain": explained, "report": reported}
        for stage, paths in stages.items():
            command = [
                sys.executable,
                "-m",
                f"stages.{stage}",
                "params.yaml",
                *(str(folder / path) for path in paths),
                *(["--baseline", str(folder / "baseline.h5")] if stage == "report" else []),
            ]
            started = time.perf_counter(), cpu_seconds()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            of_stage = time.perf_counter() - started[0]
            cpu = cpu_seconds() - started[1]
            print(f"{stage}: {of_stage:.1f} s ({cpu:.1f} s of CPU)", flush=True)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        n_way = json.loads((folder / "evaluation.json").read_text())["n_way"]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    of = f"10 subjects x {n_way} images x 80 repetitions, {SHAPES[size][2]} x {SHAPES[size][3]}, {len(SEEDS[size])} seeds"
    print(f"all three, {of}: {seconds:.1f} s ({cpu_seconds():.1f} s of CPU), {peak:.0f} MB peak")
    key = f"evaluate_{size or 'full_size'}"
    write_latest({f"{key}_s": round(seconds, 1), f"{key}_peak_rss_mb": round(peak)})


if __name__ == "__main__":
    main()
