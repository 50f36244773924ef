"""Time and memory of preparing a full-size raw subject, against reading it and resampling the same epochs by MNE alone.

Run as `python -m benchmarks.preprocess_raw [share]`; it needs about 20 GB of disk in the temporary folder and half an
hour. A share below 1 takes that part of the images. Every task runs in a process of its own; noise instead of EEG.
"""

import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

from benchmarks import write_latest

N = {"train": 16540, "test": 200}
SOA, ENDS = 200, 1200  # samples from image to image, and before the first and after the last one
PAPER = {"channels": "all", "sfreq": 250.0, "window": [0.0, 0.996], "baseline": [-0.2, 0.0]}
PAPER |= {"mvnn": "epochs", "mvnn_from": "training"}


def counts(share: float) -> dict:
    return {split: max(4, round(share * n)) for split, n in N.items()}


def make_subject(folder: Path, share: float) -> None:
    """63 channels and the stimuli of four sessions, in the published layout, not compressed; a session in memory."""
    import numpy as np

    from pipeline.datasets.channels import POSTERIOR
    from pipeline.datasets.raw_files import FILES, REPETITIONS, SESSIONS

    rng = np.random.default_rng(0)
    ch_names = [*POSTERIOR, *(f"E{i}" for i in range(46)), "stim"]
    with zipfile.ZipFile(folder / "sub-01.zip", "w", zipfile.ZIP_STORED) as archive:
        for session in SESSIONS:
            for split, n in counts(share).items():
                images = np.arange(n) if split == "test" else np.arange(session % 2, n, 2)
                order = rng.permutation(np.repeat(images, REPETITIONS[split])) + 1
                data = np.empty((64, 2 * ENDS + SOA * len(order)))
                for row in data[:-1]:
                    row[:] = 1e-5 * rng.standard_normal(len(row), np.float32)
                data[-1] = 0
                data[-1, ENDS : ENDS + SOA * len(order) : SOA] = order
                fields = {
                    "raw_eeg_data": data,
                    "ch_names": ch_names,
                    "ch_types": ["eeg"] * 63 + ["stim"],
                }
                name = f"sub-01/ses-{session:02d}/{FILES[split]}"
                with archive.open(name, "w", force_zip64=True) as member:
                    np.save(
                        member,
                        fields | {"sfreq": 1000, "highpass": 0.01, "lowpass": 100},
                        allow_pickle=True,
                    )


def ours(folder: Path, share: float) -> None:
    import pandas as pd

    from pipeline.datasets.things_eeg2_raw import open_eeg

    images = {split: pd.DataFrame(index=range(n)) for split, n in counts(share).items()}
    with open_eeg(folder / "sub-01.zip", images, SimpleNamespace(**PAPER)) as raw:
        for chunks in raw.chunks.values():
            for _ in chunks:
                pass


def plain(folder: Path, share: float) -> None:
    """It runs whatever the file names, and so is for the file made above only; nothing is whitened, sorted or kept."""
    import mne
    import numpy as np

    with zipfile.ZipFile(folder / "sub-01.zip") as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                fields = np.load(member, allow_pickle=True).item()
            info = mne.create_info(fields["ch_names"], fields["sfreq"], fields["ch_types"])
            raw = mne.io.RawArray(fields.pop("raw_eeg_data"), info, verbose=False)
            events = mne.find_events(raw, "stim", verbose=False)
            raw.drop_channels("stim")
            for start in range(0, len(events), 200):
                epochs = mne.Epochs(
                    raw,
                    events[start : start + 200],
                    tmin=-0.2,
                    tmax=1.0,
                    preload=True,
                    verbose=False,
                )
                epochs.resample(250.0, verbose=False)


def measure(task: str, folder: Path, share: float) -> tuple[float, float]:
    """Seconds and MB at the peak."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.preprocess_raw", task, str(folder), str(share)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, float(out.split()[-1])


def main(share: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, _ = measure("make_subject", folder, share)
        size = (folder / "sub-01.zip").stat().st_size / 1e6
        print(
            f"a subject with {share:g} of the images: {size:.0f} MB of zip, made in {seconds:.0f} s",
            flush=True,
        )
        (ours_s, ours_mb), (plain_s, plain_mb) = (
            measure("ours", folder, share),
            measure("plain", folder, share),
        )
    print(f"prepared        {ours_s:6.0f} s  {ours_mb:6.0f} MB peak")
    print(f"read, resample  {plain_s:6.0f} s  {plain_mb:6.0f} MB peak")
    print(f"ratio           {ours_s / plain_s:6.2f}    {ours_mb / plain_mb:6.2f}")
    if share == 1:
        write_latest(
            {
                "preprocess_raw_peak_rss_mb": round(ours_mb),
                "preprocess_raw_vs_mne_time": round(ours_s / plain_s, 3),
            }
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        main(float(sys.argv[1]) if len(sys.argv) == 2 else 1)
    else:
        {"make_subject": make_subject, "ours": ours, "plain": plain}[sys.argv[1]](
            Path(sys.argv[2]), float(sys.argv[3])
        )
        print(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024)
            / 1e6
        )
