"""Time and memory of `preprocess` on a full-size subject, against unzip + `np.load` + mean + save.

Run as `python -m benchmarks.preprocess`; needs about 5 GB of disk in the temporary folder. Every task runs in a process
of its own; a figure is the better one of two rounds.
"""

import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks import write_latest

ROUNDS = 2
SHAPES = {"training": (16540, 4, 17, 100), "test": (200, 80, 17, 100)}
CH_NAMES = [f"channel {i}" for i in range(17)]


def make_subject(folder: Path) -> None:
    """The published layout at full size: `raw/sub-01.zip`, deflated, and `image_metadata.npy`; the values are noise."""
    import numpy as np

    (folder / "raw").mkdir()
    random = np.random.default_rng(0)
    times = np.round(np.arange(-20, 80) * 0.01, 2)
    with zipfile.ZipFile(
        folder / "raw" / "sub-01.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive:
        for name, shape in SHAPES.items():
            data = random.standard_normal(shape)
            with archive.open(
                f"sub-01/preprocessed_eeg_{name}.npy", "w", force_zip64=True
            ) as member:
                np.save(
                    member, {"preprocessed_eeg_data": data, "ch_names": CH_NAMES, "times": times}
                )
    metadata = {}
    for split, shape in zip(("train", "test"), SHAPES.values(), strict=True):
        concepts = [f"{i // 10 + 1:05d}_concept" for i in range(shape[0])]
        metadata[f"{split}_img_concepts"] = metadata[f"{split}_img_concepts_THINGS"] = concepts
        metadata[f"{split}_img_files"] = [f"image_{i % 10:02d}.jpg" for i in range(shape[0])]
    np.save(folder / "image_metadata.npy", metadata)


def ours(folder: Path) -> None:
    from pipeline.datasets.image_table import write_image_table
    from pipeline.datasets.table import THINGS_EEG2
    from pipeline.params import read_params
    from pipeline.preprocess.preparation import prepare_subjects

    parameters = read_params(Path("params.yaml")).preprocess.model_copy(update={"workers": 1})
    write_image_table(
        folder / "images.csv", THINGS_EEG2.read_metadata(folder / "image_metadata.npy")
    )
    prepare_subjects(
        THINGS_EEG2, folder / "raw", folder / "images.csv", folder / "ours", parameters
    )


def plain(folder: Path) -> None:
    """What most published code does; it runs whatever the file names, and so is for the file made above only."""
    import h5py
    import numpy as np

    with zipfile.ZipFile(folder / "raw" / "sub-01.zip") as archive:
        archive.extractall(folder / "unzipped")
    with h5py.File(folder / "plain.h5", "w") as file:
        for name in SHAPES:
            path = folder / "unzipped" / "sub-01" / f"preprocessed_eeg_{name}.npy"
            data = np.load(path, allow_pickle=True).item()["preprocessed_eeg_data"]
            file[name] = (data.mean(axis=1) if name == "training" else data).astype(np.float32)


def measure(task: str, folder: Path) -> tuple[float, float]:
    """Seconds and MB: the peak resident memory of the process plus that of its largest child."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.preprocess", task, str(folder)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, float(out.split()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, _ = measure("make_subject", folder)
        size = (folder / "raw" / "sub-01.zip").stat().st_size / 1e6
        print(f"a full-size subject: {size:.0f} MB of zip, made in {seconds:.0f} s")
        rounds = [measure("ours", folder) + measure("plain", folder) for _ in range(ROUNDS)]
    ours_s, ours_mb, plain_s, plain_mb = (min(values) for values in zip(*rounds, strict=True))
    print(f"preprocess   {ours_s:6.1f} s  {ours_mb:6.0f} MB peak")
    print(f"plain numpy  {plain_s:6.1f} s  {plain_mb:6.0f} MB peak")
    print(f"ratio        {ours_s / plain_s:6.2f}    {ours_mb / plain_mb:6.2f}")
    write_latest(
        {
            "preprocess_peak_rss_mb": round(ours_mb),
            "preprocess_seconds": round(ours_s, 2),
            "preprocess_vs_numpy_time": round(ours_s / plain_s, 3),
            "preprocess_vs_numpy_memory": round(ours_mb / plain_mb, 3),
        }
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        {"make_subject": make_subject, "ours": ours, "plain": plain}[sys.argv[1]](Path(sys.argv[2]))
        peaks = [
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        print(sum(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6)
