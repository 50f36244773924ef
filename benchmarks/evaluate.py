"""Time and memory of evaluate and report at full size: 10 subjects x 200 images x 80 repetitions, 17 x 100, 768-d.

Run as `python -m benchmarks.evaluate`; needs 1.1 GB of disk in the temporary folder. EEG, images and embeddings are
noise and the model is untrained, which costs the same; the parameters are those of params.yaml. The stages run as
commands.
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
import numpy as np
import torch
from PIL import Image

from benchmarks import write_latest
from pipeline.data.sample import CH_NAMES
from pipeline.decoding.model import ContrastiveModel, ModelSizes, save_model
from pipeline.images.embeddings import write_embeddings
from pipeline.params import read_params

SUBJECTS = [f"sub-{i:02}" for i in range(1, 11)]
REFERENCE = Path("reference/learning_curve.csv").absolute()  # joined to a folder, an absolute path stays what it is
SHAPE = (200, 80, 17, 100)
TABLES = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")


def make_inputs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([f"test_images/{i:05}_concept/image.jpg" for i in range(SHAPE[0])], dtype=object)
    (folder / "eeg").mkdir()
    for subject in SUBJECTS:
        with h5py.File(folder / f"eeg/{subject}.h5", "w") as file:
            file.attrs.update({"subject": subject, "sfreq": 100.0})
            file["ch_names"] = CH_NAMES
            file["times"] = np.arange(-20, 80) / 100
            file["test/eeg"] = rng.standard_normal(SHAPE, np.float32)
            for name in ("image_ids", "concept", "things_concept"):
                file[f"test/{name}"] = ids
    embeddings = rng.standard_normal((SHAPE[0], 768), np.float32)
    write_embeddings(folder / "embeddings.h5", list(ids), [("last", embeddings, {})], {})
    torch.manual_seed(0)
    model = ContrastiveModel(ModelSizes(SHAPE[2], SHAPE[3], 100.0, 768), read_params(Path("params.yaml")).train)
    notes = {"fold": "pooled", "seed": 42, "tested_on": SUBJECTS, "selected_epoch": 1, "collapsed": False}
    save_model(model, folder / "model/pooled-seed-42", notes | {"protocol": "pooled", "selected_on": "validation"})
    (folder / "model/history.csv").write_text("epoch,train_loss\n" + "".join(f"{n},{5 / n}\n" for n in range(1, 101)))
    (folder / "comparison.json").write_text('{"sha256": {}}')
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images/test_images.zip", "w") as archive:
        for image_id in ids:
            with archive.open(image_id, "w") as file:
                Image.fromarray(rng.integers(0, 256, (500, 500, 3), np.uint8)).save(file, "JPEG")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        tables = [f"{table}.csv" for table in TABLES]
        evaluated = ["eeg", "embeddings.h5", "model", "evaluation.json", "evaluation.h5", *tables]
        reported = ["images", "evaluation.h5", "model/history.csv", "evaluation.json", "comparison.json"]
        reported += [REFERENCE, "learning_curves.csv", "pictures", "report.html", *tables]
        start = time.perf_counter()
        for stage, paths in (("evaluate", evaluated), ("report", reported)):
            command = [sys.executable, "-m", f"stages.{stage}", "params.yaml", *(str(folder / path) for path in paths)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        n_way = json.loads((folder / "evaluation.json").read_text())["n_way"]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    cpu = usage.ru_utime + usage.ru_stime
    size = f"10 subjects x {n_way} images x 80 repetitions"
    print(f"evaluate and report, {size}: {seconds:.1f} s ({cpu:.1f} s of CPU), {peak:.0f} MB peak")
    write_latest({"evaluate_full_size_s": round(seconds, 1), "evaluate_full_size_peak_rss_mb": round(peak)})


if __name__ == "__main__":
    main()
