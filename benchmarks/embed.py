"""Embedding at the published width (ViT-B/16, 768) against `dreamsim`, and against what the machine allows.

Run as `python -m benchmarks.embed`: on a GPU if there is one. Weights are random, images noise with the spectrum and
the size of photographs, JPEG of 500 x 500 and 100 kB; each way goes from the images' zip to embeddings in a file. The
ways alternate, round by round, and a ratio is the median of those within a round, so that what else the machine does
weighs on all. dreamsim runs in processes of its own: once as it comes, and once with threads that wait as patiently as
those of the stages, which helps where others compute too. The bound is the time of the ViT's matrix products alone,
every core with a batch of its own, in the quickest of the ways and batch sizes; of the deepest block ours makes only
the products that the CLS token needs. On a GPU it is the time of decoding alone, on all cores, where that is longer.
Memory is that of a process which does nothing else.
"""

import functools
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import write_latest
from pipeline.compute.devices import device_name, pick_device
from pipeline.compute.machine import n_cores
from pipeline.images.acceleration import accelerate
from pipeline.images.batches import Batch, Decoder, embed_batches, make_replicas
from pipeline.images.models.dreamsim import load_encoder
from pipeline.images.models.vit import Framing
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.params import read_params
from pipeline.sections import Embed
from pipeline.untrusted.archives import read_member
from pipeline.untrusted.pictures import Images, decode_image

ROUNDS = 3
BACKBONE, WIDTH, TOKENS, HEADS = "synclr_vitb16", 768, 197, 12
IMAGES = {
    "cpu": {"single": 4, "batched": 32, "ours": 32},
    "cuda": {"single": 64, "batched": 512, "ours": 8192},
}
VIEWED = {"cpu": 16, "cuda": 2048}  # images in all their views
DECODED = 400  # images, at least
IMAGES_ZIP = "training_images.zip"
PICTURES, SIDE, QUALITY = (
    200,
    500,
    80,
)  # of THINGS: pixels, and a quality that gives its 100 kB a file
# Small on a CPU, so that the passes end together, as they nearly do with all the images.
BATCH = {"cpu": 8, "cuda": 256}
BOUND_BATCHES = {"cpu": (8,), "cuda": (128, 512)}
PUBLISHED = 16_740 * 2  # images, both encoders
VIEWS = ["original", "blur-8", "low-resolution-22", "noise-0.098"]
SINGLE, BATCHED = "dreamsim, one at a time", "dreamsim, batches of 32"
OURS, DECODING = "ours, bfloat16", "zip, JPEG and framing alone, all cores"
WITH_VIEWS = f"ours, bfloat16, {len(VIEWS)} views of each image"


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

    def measure(self, names: list[str], batch_size: int) -> tuple[float, float]:
        self.process.stdin.write(f"{batch_size} {' '.join(names)}\n")
        self.process.stdin.flush()
        answer = next(
            line for line in self.process.stdout if line.startswith("done ")
        )  # dreamsim prints, too
        return tuple(len(names) / float(seconds) for seconds in answer.split()[1:])

    def embed(self, names: list[str]) -> np.ndarray:
        self.measure(names, 32)
        return np.load(self.out)

    def end(self) -> None:
        self.process.communicate()


def ours(
    folder: Path,
    archive: zipfile.ZipFile,
    device: torch.device,
    precision: str,
    views: Sequence[str] = VIEWS[:1],
) -> Callable:
    """`embed(names)`: the passes of `embed_images`, with its threads and side files; gives the original's."""
    changed = {"precision": precision, "batch_size": BATCH[device.type], "views": list(views)}
    parameters = Embed(**read_params(Path("params.yaml")).embed.model_dump() | changed)
    encoder, _ = load_encoder(folder / f"dreamsim_{BACKBONE}_checkpoint.zip", BACKBONE, "aligned")
    accelerate(encoder, parameters.blocks, parameters.tokens, parameters.precision, device)

    def fingerprint(name: str) -> tuple[str, int, int]:
        return name, 0, 0  # not used: no batch is looked for in a cache

    images = Images(lambda name: read_member(archive, name), fingerprint)
    decoder = Decoder(images, encoder.framing, views)
    replicas = make_replicas(encoder, device)

    def embed(names: list[str]) -> np.ndarray:
        size = parameters.batch_size
        batches = [
            Batch(folder / f"{i:06}.npy", names[i : i + size]) for i in range(0, len(names), size)
        ]
        with tqdm(disable=True) as bar:
            embed_batches(replicas, batches, decoder, parameters, bar)
        return np.concatenate([np.load(batch.file)[0] for batch in batches])

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


def rates(run: Callable[..., object], images: Sequence[str] | range) -> tuple[float, float]:
    """Images a second, and images a second of one core's work."""
    wall, work = time.perf_counter(), time.process_time()
    run(images)
    return len(images) / (time.perf_counter() - wall), len(images) / (time.process_time() - work)


def decode_all(archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """With as many threads as `embed_batches` has for it, into one place each."""
    framing, targets = (
        Framing(),
        torch.empty(len(names), 3, Framing().side, Framing().side, dtype=torch.uint8),
    )

    def decode(name: str, target: torch.Tensor) -> None:
        target.copy_(framing(decode_image(read_member(archive, name), name)))

    with ThreadPoolExecutor(n_cores()) as pool:
        for _ in pool.map(decode, names, targets):
            pass


def make_files(folder: Path) -> None:
    """A checkpoint, as it is and unpacked, and a zip of pictures: colours and amplitudes that fall with frequency."""
    make_checkpoint(BACKBONE, folder, embed_dim=WIDTH)
    with zipfile.ZipFile(folder / f"dreamsim_{BACKBONE}_checkpoint.zip") as checkpoint:
        checkpoint.extractall(folder / "dreamsim")
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = 1 / SIDE
    with zipfile.ZipFile(folder / IMAGES_ZIP, "w") as archive:
        for i in range(PICTURES):
            noise = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE))) / frequency**1.1
            light, red, blue = np.fft.irfft2(noise, s=(SIDE, SIDE))
            pixels = np.stack([light + 0.3 * red, light, light + 0.3 * blue], axis=-1)
            file = io.BytesIO()
            scaled = np.clip(128 + 60 * pixels / light.std(), 0, 255).astype(np.uint8)
            Image.fromarray(scaled).save(file, "JPEG", quality=QUALITY)
            archive.writestr(f"training_images/{i:05}.jpg", file.getvalue())


def in_own_process(task: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.embed", task, str(folder)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def print_peaks(folder: Path) -> None:
    """Of embedding in bfloat16: the process, and the GPU if there is one, in MB."""
    device = pick_device("auto")
    with zipfile.ZipFile(folder / IMAGES_ZIP) as archive:
        ours(folder, archive, device, "bfloat16")(
            repeated(archive.namelist(), IMAGES[device.type]["ours"])
        )
    print(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e6
    )
    if device.type == "cuda":
        print(torch.cuda.max_memory_reserved() / 1e6)


def repeated(names: list[str], n: int) -> list[str]:
    return [*itertools.islice(itertools.cycle(names), n)]


def main() -> None:
    device, cores = pick_device("auto"), torch.get_num_threads()
    print(
        f"{device_name(device)}, {platform.processor() or platform.machine()}, {cores} of {os.cpu_count()} cores"
    )
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "dreamsim", "pillow")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_own_process("make", folder)
        with zipfile.ZipFile(folder / IMAGES_ZIP) as archive:
            figures = compare(folder, archive, device, cores)
        peaks = [round(float(peak)) for peak in in_own_process("peaks", folder)]
    print(
        f"peak memory: process {peaks[0]} MB" + (f", GPU {peaks[1]} MB" if len(peaks) > 1 else "")
    )
    keys = ("embed_peak_rss_mb", "embed_peak_gpu_mb")
    write_latest(figures | dict(zip(keys, peaks, strict=False)))


def compare(
    folder: Path, archive: zipfile.ZipFile, device: torch.device, cores: int
) -> dict[str, float]:
    names, n = archive.namelist(), IMAGES[device.type]
    single, batched, many = (repeated(names, n[key]) for key in ("single", "batched", "ours"))
    plain = {"": Plain(folder, device, False), ", patient threads": Plain(folder, device, True)}
    fast = {
        precision: ours(folder, archive, device, precision) for precision in ("float32", "bfloat16")
    }
    decode = functools.partial(decode_all, archive)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        DECODING: functools.partial(rates, decode, repeated(names, max(DECODED, len(many))))
    }
    for suffix, script in plain.items():
        ways[SINGLE + suffix] = functools.partial(script.measure, single, 1)
        ways[BATCHED + suffix] = functools.partial(script.measure, batched, 32)
    ways |= {
        f"ours, {precision}": functools.partial(rates, embed, many)
        for precision, embed in fast.items()
    }
    viewed = repeated(names, VIEWED[device.type])
    views = functools.partial(rates, ours(folder, archive, device, "bfloat16", VIEWS), viewed)
    ways[WITH_VIEWS] = lambda: tuple(len(VIEWS) * rate for rate in views())  # each view is an image
    for size in BOUND_BATCHES[device.type]:
        for packed in (False, True) if device_name(device) == "cpu (AVX512)" else (False,):
            run = functools.partial(
                at_once, products(size, device, packed), cores if device.type == "cpu" else 1
            )
            label = f"products alone, bfloat16, {size} images{', laid out' if packed else ''}"
            ways[label] = functools.partial(
                rates, run, range(size * cores if device.type == "cpu" else size)
            )
    reference, got = (
        plain[""].embed(batched),
        {precision: embed(batched) for precision, embed in fast.items()},
    )
    measured: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
    for _ in tqdm(range(ROUNDS), "rounds", disable=None):
        for label, measure in ways.items():
            measured[label].append(measure())
    for script in plain.values():
        script.end()
    return report(measured, reference, got, device)


def report(
    measured: dict[str, list[tuple[float, float]]],
    reference: np.ndarray,
    got: dict[str, np.ndarray],
    device: torch.device,
) -> dict[str, float]:
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

    speed = {
        label: statistics.median(wall for wall, _ in rounds) for label, rounds in measured.items()
    }
    quickest = max(
        (label for label in measured if label.startswith("products")),
        key=lambda label: speed[label],
    )
    bound = DECODING if device.type == "cuda" and speed[DECODING] < speed[quickest] else quickest
    print(f"the bound: {bound}")
    per_core = statistics.median(work for _, work in measured[DECODING])
    figures = {
        "embed_decoded_per_s": round(speed[DECODING]),
        "embed_decoded_per_s_of_one_core": round(per_core),
        "embed_per_s": round(speed[OURS], 2),
    }
    for key, label, others in (
        ("embed_vs_dreamsim_single", OURS, [SINGLE]),
        ("embed_vs_dreamsim_batched", OURS, [BATCHED]),
        ("embed_vs_patient_dreamsim_single", OURS, [SINGLE + ", patient threads"]),
        ("embed_vs_patient_dreamsim_batched", OURS, [BATCHED + ", patient threads"]),
        ("embed_vs_matmul_bound", OURS, [quickest]),
        ("embed_vs_bound", OURS, [bound]),
        ("embed_views_vs_original", WITH_VIEWS, [OURS]),
        (
            "embed_float32_vs_dreamsim_batched",
            "ours, float32",
            [BATCHED, BATCHED + ", patient threads"],
        ),
    ):
        figures[key] = round(ratio(label, others, 0), 3)
        print(f"{key:34} {figures[key]:7.3f}; by the cores' work {ratio(label, others, 1):7.3f}")
    for precision, values in got.items():
        cosine = (
            (values * reference).sum(1)
            / np.linalg.norm(values, axis=1)
            / np.linalg.norm(reference, axis=1)
        )
        figures[f"embed_{precision}_cosine"] = round(float(cosine.min()), 6)
        print(
            f"{precision} with dreamsim's float32: cosine at least {cosine.min():.6f} of {len(cosine)} images"
        )
    seconds = PUBLISHED / speed[OURS]
    figures["embed_published_s"] = round(seconds, 1)
    print(f"both encoders on all {PUBLISHED // 2} images, bfloat16: {seconds:.0f} s at this rate")
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        {"make": make_files, "peaks": print_peaks}[sys.argv[1]](Path(sys.argv[2]))
