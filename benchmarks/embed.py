"""Embedding at the published width (ViT-B/16, 768) against `dreamsim`, and against what the machine allows.

Run as `python -m benchmarks.embed`: on a GPU if there is one, with counts that are meant for a
minute there, which has not been tried. Each figure is printed as soon as it is measured, and the
medians at the end. Weights are random, images noise with the spectrum and the size of photographs,
JPEG of 500 x 500 and 100 kB; each way goes from the images' zip to embeddings in a file. The ways
alternate, round by round, and a ratio is the median of those within a round, so that what else the
machine does weighs on all. dreamsim runs in a process of its own, as it comes. On a CPU it also
runs with threads that wait as patiently as those of the stages, which helps where others compute
too.

The bound is the time of the ViT's matrix products alone, every core with a batch of its own, in the quickest of the
ways and batch sizes; of the deepest block ours makes only the products that the CLS token needs. On a GPU it is the
time of decoding alone, on all cores, where that is longer. Memory is that of a process which does nothing else; the
processes that decode for a GPU are not counted.
"""

import copy
import io
import itertools
import operator
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import write_latest
from pipeline.compute.devices import device_name, pick_device
from pipeline.compute.machine import n_cores
from pipeline.images.acceleration import accelerate
from pipeline.images.batches import THREADS_PER_GPU, embed_batches, make_replicas
from pipeline.images.decoding import Batch, Decoder, Decoding, DecodingPool
from pipeline.images.embedder import resolve
from pipeline.images.models.dreamsim import load_encoder
from pipeline.images.models.vit import Framing, ImageEncoder
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.params import read_params
from pipeline.untrusted.pictures import Images, open_images

ROUNDS = {"cpu": 3, "cuda": 2}
BACKBONE, WIDTH, TOKENS, HEADS = "synclr_vitb16", 768, 197, 12

# Images in one measurement
IMAGES = {
    "cpu": {
        "decoded": 400,
        "bfloat16": 32,
        "float32": 32,
        "views": 16,
        "single": 4,
        "batched": 32,
    },
    "cuda": {
        "decoded": 2048,
        "bfloat16": 4096,
        "float32": 1024,
        "views": 512,
        "single": 32,
        "batched": 128,
    },
}

# The pictures of THINGS: pixels, and a quality that gives its 100 kB a file
PICTURES, SIDE, QUALITY = 200, 500, 80
IMAGES_ZIP = "training_images.zip"
PUBLISHED = 16_740 * 2  # images, both encoders

# Small on a CPU, so that the passes end together, as they nearly do with all the images.
BATCH = {"cpu": 8, "cuda": 256}
BOUND_BATCHES = {"cpu": (8,), "cuda": (128, 512)}
VIEWS = ["original", "blur-8", "low-resolution-22", "noise-0.098"]

SINGLE, BATCHED = "dreamsim, one at a time", "dreamsim, batches of 32"
PATIENT = ", patient threads"
OURS, DECODING = "ours, bfloat16", "zip, JPEG and framing alone, all cores"
WITH_VIEWS = f"ours, bfloat16, {len(VIEWS)} views of each image"

Rates = tuple[float, float]  # images a second, and images a second of one core's work


def say(text: str) -> None:
    """At once, also into a pipe."""
    print(text, flush=True)


class Plain:
    """`benchmarks/plain_embed.py` in a process of its own, in which threads wait as in the stages if `patient`."""

    def __init__(self, folder: Path, device: torch.device, patient: bool) -> None:
        policies = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
        environment = {
            key: value for key, value in os.environ.items() if patient or key not in policies
        }
        self.out = folder / f"plain-{patient}.npy"
        script, images = Path(__file__).with_name("plain_embed.py"), folder / IMAGES_ZIP
        command = [
            sys.executable,
            script,
            BACKBONE,
            folder / "dreamsim",
            images,
            device.type,
            self.out,
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(word) for word in command], env=environment, **pipes)

    def measure(self, names: list[str], batch_size: int) -> Rates:
        self.process.stdin.write(f"{batch_size} {' '.join(names)}\n")
        self.process.stdin.flush()
        answer = next(
            line for line in self.process.stdout if line.startswith("done ")
        )  # dreamsim prints, too
        wall, work = (len(names) / float(seconds) for seconds in answer.split()[1:])
        return wall, work

    def embed(self, names: list[str]) -> np.ndarray:
        self.measure(names, 32)
        return np.load(self.out)

    def end(self) -> None:
        # The processes that decode for a GPU hold its input open, so that closing it here says nothing.
        self.process.terminate()
        self.process.wait()


def ours(
    folder: Path,
    encoder: ImageEncoder,
    pool: DecodingPool,
    device: torch.device,
    precision: str,
    views: Sequence[str] = VIEWS[:1],
) -> Callable[[list[str]], np.ndarray]:
    """`embed(names)`: the passes of `embed_images`, with its threads and side files; gives the original's."""
    changed = {"precision": precision, "batch_size": BATCH[device.type], "views": list(views)}
    section = read_params(Path("params.yaml")).embed
    parameters = resolve(section.model_copy(update=changed), device)

    encoder = copy.deepcopy(encoder)
    accelerate(encoder, parameters.blocks, parameters.tokens, parameters.precision, device)
    replicas = make_replicas(encoder, device)

    def embed(names: list[str]) -> np.ndarray:
        batches = split(folder, names, parameters.batch_size)
        embed_batches(replicas, batches, pool, parameters, lambda n_images: None)
        return np.concatenate([np.load(batch.file)[0] for batch in batches])

    return embed


def split(folder: Path, names: list[str], size: int) -> list[Batch]:
    return [Batch(folder / f"{i:06}.npy", names[i : i + size]) for i in range(0, len(names), size)]


def make_pool_of(images: Images, device: torch.device, views: Sequence[str]) -> DecodingPool:
    """What decodes, as in `embed_images`; here it serves all rounds."""
    on_gpu = device.type == "cuda"
    n_users = THREADS_PER_GPU * torch.cuda.device_count() if on_gpu else torch.get_num_threads()
    decoder = Decoder(images, Framing(), views)
    return DecodingPool(decoder, BATCH[device.type], n_users, in_processes=on_gpu)


def decode_all(pool: DecodingPool, batch_size: int, names: list[str]) -> None:
    """As `embed_batches` has it done, for nobody."""
    decoding = Decoding(split(Path(), names, batch_size), pool)
    while batch := decoding.take():
        decoding.free(batch)


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
    layers = [
        linear(WIDTH, 3 * WIDTH),
        linear(WIDTH, WIDTH),
        linear(WIDTH, 4 * WIDTH),
        linear(4 * WIDTH, WIDTH),
    ]
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


def rates(run: Callable[..., object], images: Sequence[str] | range) -> Rates:
    wall, work = time.perf_counter(), seconds_of_cores()
    run(images)
    return len(images) / (time.perf_counter() - wall), len(images) / (seconds_of_cores() - work)


def seconds_of_cores() -> float:
    """Of this process and of those that it has started; dreamsim's waits while ours compute."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in children)


def make_files(folder: Path) -> None:
    """A checkpoint, as it is and unpacked, and a zip of pictures."""
    with ThreadPoolExecutor(n_cores()) as pool:
        checkpoint = pool.submit(make_checkpoint, BACKBONE, folder, embed_dim=WIDTH)
        with zipfile.ZipFile(folder / IMAGES_ZIP, "w") as archive:
            for i, picture in enumerate(pool.map(make_picture, range(PICTURES))):
                archive.writestr(f"training_images/{i:05}.jpg", picture)
        checkpoint.result()

    with zipfile.ZipFile(folder / f"dreamsim_{BACKBONE}_checkpoint.zip") as archive:
        archive.extractall(folder / "dreamsim")


def make_picture(seed: int) -> bytes:
    """A JPEG of colours and amplitudes that fall with frequency."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = 1 / SIDE
    white = np.random.default_rng(seed).standard_normal((3, SIDE, SIDE))
    light, red, blue = np.fft.irfft2(np.fft.rfft2(white) / frequency**1.1, s=(SIDE, SIDE))

    pixels = np.stack([light + 0.3 * red, light, light + 0.3 * blue], axis=-1)
    scaled = np.clip(128 + 60 * pixels / light.std(), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(scaled).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def picture_names(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / IMAGES_ZIP) as archive:
        return archive.namelist()


def load(folder: Path) -> ImageEncoder:
    return load_encoder(folder / f"dreamsim_{BACKBONE}_checkpoint.zip", BACKBONE, "aligned")[0]


def repeated(names: list[str], n: int) -> list[str]:
    return [*itertools.islice(itertools.cycle(names), n)]


def print_peaks(folder: Path) -> None:
    """Of embedding in bfloat16: the process, and the GPU if there is one, in MB."""
    device, names = pick_device("auto"), picture_names(folder)
    with (
        open_images(folder, names) as images,
        make_pool_of(images, device, VIEWS[:1]) as pool,
    ):
        embed = ours(folder, load(folder), pool, device, "bfloat16")
        embed(repeated(names, IMAGES[device.type]["bfloat16"]))

    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
    if device.type == "cuda":
        print(torch.cuda.max_memory_reserved() / 1e6)


def peaks(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.embed", str(folder)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    measured = [round(float(line)) for line in lines]
    gpu = f", GPU {measured[1]} MB" if len(measured) > 1 else ""
    say(f"peak memory: process {measured[0]} MB{gpu}")
    return dict(zip(("embed_peak_rss_mb", "embed_peak_gpu_mb"), measured, strict=False))


def main() -> None:
    started = time.perf_counter()
    device = pick_device("auto")
    processor = platform.processor() or platform.machine()
    say(f"{device_name(device)}, {processor}, {n_cores()} of {os.cpu_count()} cores")
    say(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "dreamsim", "pillow")))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        say(f"weights and {PICTURES} pictures made: {time.perf_counter() - started:.1f} s")
        with (
            open_images(folder, picture_names(folder)) as images,
            make_pool_of(images, device, VIEWS[:1]) as pool,
            make_pool_of(images, device, VIEWS) as pool_of_views,
        ):
            figures = compare(folder, pool, pool_of_views, device)
        write_latest(figures | peaks(folder))
    say(f"{time.perf_counter() - started:.0f} s in all, imports not counted")


def compare(
    folder: Path, pool: DecodingPool, pool_of_views: DecodingPool, device: torch.device
) -> dict[str, float]:
    names, n = picture_names(folder), IMAGES[device.type]
    # How threads wait matters only where they compute.
    suffixes = {"": False} | ({PATIENT: True} if device.type == "cpu" else {})
    plain = {suffix: Plain(folder, device, patient) for suffix, patient in suffixes.items()}

    encoder = load(folder)
    fast = {
        precision: ours(folder, encoder, pool, device, precision)
        for precision in ("bfloat16", "float32")
    }
    views = ours(folder, encoder, pool_of_views, device, "bfloat16", VIEWS)

    def rates_of_views() -> Rates:
        """Each view counts as an image."""
        wall, work = rates(views, repeated(names, n["views"]))
        return len(VIEWS) * wall, len(VIEWS) * work

    decode = partial(decode_all, pool, BATCH[device.type])
    ways: dict[str, Callable[[], Rates]] = {
        DECODING: partial(rates, decode, repeated(names, n["decoded"]))
    }
    for precision, embed in fast.items():
        ways[f"ours, {precision}"] = partial(rates, embed, repeated(names, n[precision]))
    ways[WITH_VIEWS] = rates_of_views
    ways |= ways_of_products(device)
    if device.type == "cuda":
        # The first pass of a kind takes longer on a GPU, and the processes that decode are forked.
        # dreamsim is being loaded meanwhile.
        for label, measure in ways.items():
            say(line("before the rounds: " + label, measure()))

    batched = repeated(names, n["batched"])
    for suffix, script in plain.items():
        ways[SINGLE + suffix] = partial(script.measure, repeated(names, n["single"]), 1)
        ways[BATCHED + suffix] = partial(script.measure, batched, 32)

    reference = plain[""].embed(batched)
    figures = {}
    for precision, embed in fast.items():
        figures[f"embed_{precision}_cosine"] = least_cosine(embed(batched), reference, precision)

    measured: dict[str, list[Rates]] = {label: [] for label in ways}
    for i in range(ROUNDS[device.type]):
        for label, measure in ways.items():
            measured[label].append(measure())
            say(line(f"round {i + 1}: {label}", measured[label][-1]))
    for script in plain.values():
        script.end()
    return figures | report(measured, device)


def ways_of_products(device: torch.device) -> dict[str, Callable[[], Rates]]:
    ways = {}
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    for size in BOUND_BATCHES[device.type]:
        for packed in (False, True) if device_name(device) == "cpu (AVX512)" else (False,):
            run = partial(at_once, products(size, device, packed), n_threads)
            label = f"products alone, bfloat16, {size} images{', laid out' if packed else ''}"
            ways[label] = partial(rates, run, range(size * n_threads))
    return ways


def line(label: str, measured: Rates) -> str:
    return f"{label:70} {measured[0]:9.2f} images/s {measured[1]:9.2f} a second of one core"


def least_cosine(values: np.ndarray, reference: np.ndarray, precision: str) -> float:
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(reference, axis=1)
    least = float(((values * reference).sum(1) / norms).min())
    say(f"{precision} with dreamsim's float32: cosine at least {least:.6f} of {len(values)} images")
    return round(least, 6)


def report(measured: dict[str, list[Rates]], device: torch.device) -> dict[str, float]:
    """Medians and ratios."""
    n_rounds = ROUNDS[device.type]
    say(f"load {os.getloadavg()[0]:.1f}; median of {n_rounds} rounds, in brackets the best")
    speed = {}
    for label, rounds in measured.items():
        walls, works = zip(*rounds, strict=True)
        speed[label] = statistics.median(walls)
        say(
            f"{label:48} {speed[label]:8.2f} images/s ({max(walls):.2f})"
            f" {statistics.median(works):8.2f} a second of one core ({max(works):.2f})"
        )

    def ratio(label: str, others: list[str], column: int) -> float:
        """The median over rounds of this way's speed beside that of the one that is quickest by its median."""
        speeds = {name: [pair[column] for pair in rounds] for name, rounds in measured.items()}
        quickest = max(others, key=lambda name: statistics.median(speeds[name]))
        return statistics.median(map(operator.truediv, speeds[label], speeds[quickest]))

    quickest = max((label for label in measured if label.startswith("products")), key=speed.get)
    bound = DECODING if device.type == "cuda" and speed[DECODING] < speed[quickest] else quickest
    say(f"the bound: {bound}")

    per_core = statistics.median(work for _, work in measured[DECODING])
    figures = {
        "embed_decoded_per_s": round(speed[DECODING]),
        "embed_decoded_per_s_of_one_core": round(per_core),
        "embed_per_s": round(speed[OURS], 2),
    }
    for key, label, others in (
        ("embed_vs_dreamsim_single", OURS, [SINGLE]),
        ("embed_vs_dreamsim_batched", OURS, [BATCHED]),
        ("embed_vs_patient_dreamsim_single", OURS, [SINGLE + PATIENT]),
        ("embed_vs_patient_dreamsim_batched", OURS, [BATCHED + PATIENT]),
        ("embed_vs_matmul_bound", OURS, [quickest]),
        ("embed_vs_bound", OURS, [bound]),
        ("embed_views_vs_original", WITH_VIEWS, [OURS]),
        ("embed_float32_vs_dreamsim_batched", "ours, float32", [BATCHED, BATCHED + PATIENT]),
    ):
        in_run = [name for name in others if name in measured]
        if in_run:
            figures[key] = round(ratio(label, in_run, 0), 3)
            say(f"{key:34} {figures[key]:7.3f}; by the cores' work {ratio(label, in_run, 1):7.3f}")

    seconds = PUBLISHED / speed[OURS]
    figures["embed_published_s"] = round(seconds, 1)
    say(f"both encoders on all {PUBLISHED // 2} images, bfloat16: {seconds:.0f} s at this rate")
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print_peaks(Path(sys.argv[1]))
