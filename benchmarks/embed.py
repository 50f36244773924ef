"""Embedding at the published width (ViT-B/16, 768) against `dreamsim`, and against what the machine allows.

Run as `python -m benchmarks.embed`: on a GPU if there is one. Weights are random, images those of the sample; each way
goes from the images' zip to embeddings in a file. The ways alternate, round by round, and a ratio is the median of
those within a round, so that what else the machine does weighs on all. dreamsim runs in processes of its own: once as
it comes, and once with threads that wait as patiently as those of the stages, which helps where others compute too.
The bound is the time of the ViT's matrix products alone, every core with a batch of its own, in the quickest of the
ways and batch sizes; of the deepest block ours makes only the products that the CLS token needs.
"""

import functools
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import write_latest
from pipeline.data.archives import read_member
from pipeline.data.images import decode_image
from pipeline.data.sample import make_raw
from pipeline.devices import device_name, pick_device
from pipeline.images.acceleration import accelerate
from pipeline.images.dreamsim import load_encoder
from pipeline.images.dreamsim_stand_in import make_checkpoint
from pipeline.images.embedder import _embed_all
from pipeline.images.views import degrade
from pipeline.images.vit import Framing
from pipeline.params import read_params
from pipeline.sections import Embed

ROUNDS = 5
BACKBONE, WIDTH, TOKENS, HEADS = "synclr_vitb16", 768, 197, 12
IMAGES = {"cpu": {"single": 4, "batched": 32, "ours": 64}, "cuda": {"single": 64, "batched": 512, "ours": 8192}}
BATCH = {"cpu": 8, "cuda": 32}  # small, so that the passes end together, as they nearly do with all the images
BOUND_BATCHES = {"cpu": (8, 32), "cuda": (32, 128)}
PUBLISHED = 16_740 * 2  # images, both encoders
VIEWS = ["original", "blur-8", "low-resolution-22", "noise-0.098"]
SINGLE, BATCHED = "dreamsim, one at a time", "dreamsim, batches of 32"
WITH_VIEWS = f"ours, bfloat16, {len(VIEWS)} views of each image"


class Plain:
    """`benchmarks/plain_embed.py` in a process of its own, in which threads wait as in the stages if `patient`."""

    def __init__(self, folder: Path, device: torch.device, patient: bool) -> None:
        policies = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
        environment = {key: value for key, value in os.environ.items() if patient or key not in policies}
        self.out = folder / f"plain-{patient}.npy"
        script, images = Path(__file__).with_name("plain_embed.py"), folder / "images" / "training_images.zip"
        command = [sys.executable, script, BACKBONE, folder / "dreamsim", images, device.type, self.out]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(word) for word in command], env=environment, **pipes)

    def measure(self, names: list[str], batch_size: int) -> tuple[float, float]:
        self.process.stdin.write(f"{batch_size} {' '.join(names)}\n")
        self.process.stdin.flush()
        answer = next(line for line in self.process.stdout if line.startswith("done "))  # dreamsim prints, too
        return tuple(len(names) / float(seconds) for seconds in answer.split()[1:])

    def embed(self, names: list[str]) -> np.ndarray:
        self.measure(names, 32)
        return np.load(self.out)

    def end(self) -> None:
        self.process.communicate()


def ours(
    folder: Path, archive: zipfile.ZipFile, device: torch.device, precision: str, views: Sequence[str] = VIEWS[:1]
) -> Callable:
    """`embed(names)`: the passes of `embed_images`, with its threads and side files; gives the original's."""
    changed = {"precision": precision, "batch_size": BATCH[device.type], "views": list(views)}
    parameters = Embed(**read_params(Path("params.yaml")).embed.model_dump() | changed)
    encoder, _ = load_encoder(folder / f"dreamsim_{BACKBONE}_checkpoint.zip", BACKBONE, "aligned")
    accelerate(encoder, parameters.blocks, parameters.tokens, parameters.precision, device)

    def decode(name: str) -> torch.Tensor:
        picture = Framing()(decode_image(read_member(archive, name), name))
        return torch.stack([degrade(picture, view, name) for view in views])

    def embed(names: list[str]) -> np.ndarray:
        size = parameters.batch_size
        todo = [(folder / f"{i:06}.npy", names[i : i + size]) for i in range(0, len(names), size)]
        with tqdm(disable=True) as bar:
            _embed_all(encoder, todo, decode, parameters, device, bar)
        return np.concatenate([np.load(file)[0] for file, _ in todo])

    return embed


@torch.inference_mode()
def products(size: int, device: torch.device, packed: bool) -> Callable[[], None]:
    """One pass of the matrix products that a ViT-B/16 makes of `size` images, bfloat16."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    def linear(n_in: int, n_out: int, tokens: int = TOKENS) -> Callable[[], torch.Tensor]:
        x, weight, bias = random(size * tokens, n_in), random(n_out, n_in), random(n_out)
        if not packed:
            return lambda: F.linear(x, weight, bias)
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")

    patches = linear(WIDTH, WIDTH, TOKENS - 1)
    layers = [linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH), linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)]
    query, key, value = random(3, size * HEADS, TOKENS, WIDTH // HEADS)
    weights = random(size * HEADS, TOKENS, TOKENS)

    @torch.inference_mode()
    def run() -> None:
        patches()
        for _ in range(12):
            for layer in layers:
                layer()
            torch.matmul(query, key.transpose(1, 2))
            torch.matmul(weights, value)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def at_once(run: Callable[[], None], n_threads: int, _: range) -> None:
    """In so many threads, each of which computes alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(n_threads) as pool:
        for done in [pool.submit(run) for _ in range(n_threads)]:
            done.result()
    torch.set_num_threads(before)


def rates(run: Callable[..., object], images: Sequence[str] | range) -> tuple[float, float]:
    """Images a second, and images a second of one core's work."""
    wall, work = time.perf_counter(), time.process_time()
    run(images)
    return len(images) / (time.perf_counter() - wall), len(images) / (time.process_time() - work)


def main() -> None:
    device, cores = pick_device("auto"), torch.get_num_threads()
    print(f"{device_name(device)}, {platform.processor() or platform.machine()}, {cores} of {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "dreamsim", "pillow")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_raw([], folder / "eeg", folder / "images", folder / "image_metadata.npy")
        make_checkpoint(BACKBONE, folder, embed_dim=WIDTH)
        with zipfile.ZipFile(folder / f"dreamsim_{BACKBONE}_checkpoint.zip") as checkpoint:
            checkpoint.extractall(folder / "dreamsim")
        with zipfile.ZipFile(folder / "images" / "training_images.zip") as archive:
            compare(folder, archive, device, cores)


def compare(folder: Path, archive: zipfile.ZipFile, device: torch.device, cores: int) -> None:
    names, n = archive.namelist(), IMAGES[device.type]
    single, batched, many = ([names[i % len(names)] for i in range(n[key])] for key in ("single", "batched", "ours"))
    plain = {"": Plain(folder, device, False), ", patient threads": Plain(folder, device, True)}
    fast = {precision: ours(folder, archive, device, precision) for precision in ("float32", "bfloat16")}
    ways: dict[str, Callable[[], tuple[float, float]]] = {}
    for suffix, script in plain.items():
        ways[SINGLE + suffix] = functools.partial(script.measure, single, 1)
        ways[BATCHED + suffix] = functools.partial(script.measure, batched, 32)
    ways |= {f"ours, {precision}": functools.partial(rates, embed, many) for precision, embed in fast.items()}
    views = functools.partial(rates, ours(folder, archive, device, "bfloat16", VIEWS), many)
    ways[WITH_VIEWS] = lambda: tuple(len(VIEWS) * rate for rate in views())  # each view is an image
    for size in BOUND_BATCHES[device.type]:
        for packed in (False, True) if device_name(device) == "cpu (AVX512)" else (False,):
            run = functools.partial(at_once, products(size, device, packed), cores if device.type == "cpu" else 1)
            label = f"products alone, bfloat16, {size} images{', laid out' if packed else ''}"
            ways[label] = functools.partial(rates, run, range(size * cores if device.type == "cpu" else size))
    reference, got = plain[""].embed(batched), {precision: embed(batched) for precision, embed in fast.items()}
    measured: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
    for _ in tqdm(range(ROUNDS), "rounds", disable=None):
        for label, measure in ways.items():
            measured[label].append(measure())
    for script in plain.values():
        script.end()
    report(measured, reference, got)


def report(measured: dict[str, list[tuple[float, float]]], reference: np.ndarray, got: dict[str, np.ndarray]) -> None:
    print(f"load {os.getloadavg()[0]:.1f}; median of {ROUNDS} rounds, in brackets the best")
    for label, rounds in measured.items():
        wall, work = ([pair[i] for pair in rounds] for i in range(2))
        print(
            f"{label:48} {statistics.median(wall):8.2f} images/s ({max(wall):.2f})"
            f" {statistics.median(work):8.2f} a second of one core ({max(work):.2f})"
        )

    def ratio(label: str, others: list[str], column: int) -> float:
        """The median over rounds of this way's speed beside that of the one that is quickest by its median."""
        speeds = {name: [pair[column] for pair in rounds] for name, rounds in measured.items()}
        quickest = max(others, key=lambda name: statistics.median(speeds[name]))
        return statistics.median(map(operator.truediv, speeds[label], speeds[quickest]))

    figures = {}
    for key, label, others in (
        ("embed_vs_dreamsim_single", "ours, bfloat16", [SINGLE]),
        ("embed_vs_dreamsim_batched", "ours, bfloat16", [BATCHED]),
        ("embed_vs_patient_dreamsim_single", "ours, bfloat16", [SINGLE + ", patient threads"]),
        ("embed_vs_patient_dreamsim_batched", "ours, bfloat16", [BATCHED + ", patient threads"]),
        ("embed_vs_matmul_bound", "ours, bfloat16", [label for label in measured if label.startswith("products")]),
        ("embed_views_vs_original", WITH_VIEWS, ["ours, bfloat16"]),
        ("embed_float32_vs_dreamsim_batched", "ours, float32", [BATCHED, BATCHED + ", patient threads"]),
    ):
        figures[key] = round(ratio(label, others, 0), 3)
        print(f"{key:34} {figures[key]:7.3f}; by the cores' work {ratio(label, others, 1):7.3f}")
    for precision, values in got.items():
        cosine = (values * reference).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(reference, axis=1)
        figures[f"embed_{precision}_cosine"] = round(float(cosine.min()), 6)
        print(f"{precision} with dreamsim's float32: cosine at least {cosine.min():.6f} of {len(cosine)} images")
    seconds = PUBLISHED / statistics.median(wall for wall, _ in measured["ours, bfloat16"])
    print(f"both encoders on all {PUBLISHED // 2} images, bfloat16: {seconds / 60:.0f} minutes at this rate")
    write_latest(figures)


if __name__ == "__main__":
    main()
