"""Every image of the dataset through the frozen encoder, once for each of its views.

Threads decode the next images, each once for all its views, while the devices work: all GPUs, or all cores of the CPU,
each with a batch of its own, so that no core waits for another. A batch that is done is at once saved in the cache
folder, named by its images' names and checksums, in a folder named by all else that decides the numbers: after an
interruption, or with a mended archive, only the other batches are computed. It is kept for good, so that the pipeline
and the study, which DVC takes for different stages, share what either has computed. Two runs that would share such a
folder take turns. Each view of a batch passes the encoder by itself, so that its numbers do not depend on the others.
"""

import copy
import functools
import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.compute.devices import device_name
from pipeline.compute.machine import n_cores
from pipeline.compute.unfinished import unfinished
from pipeline.datasets.image_table import read_image_table
from pipeline.errors import InputError
from pipeline.files import check_folders, replacing, save_array, sha256
from pipeline.images import health
from pipeline.images.acceleration import accelerate
from pipeline.images.embeddings import ORIGINAL, Attributes, write_embeddings
from pipeline.images.models.table import Load
from pipeline.images.models.vit import Block, ImageEncoder
from pipeline.images.views import check_views, degrade
from pipeline.sections import Embed
from pipeline.untrusted.pictures import Images, open_images

IN_CPU_CACHE = 8  # images in one forward pass on a CPU; with 32 a ViT-B takes an eighth longer
RECOMPUTED = 8  # images that are embedded again, the plain way
TIMED = 64  # images after which the time of all is told
PASSES_PER_GPU = 2  # side by side, so that one computes while the other copies
AHEAD = 2  # batches decoded in advance for each pass
PACKAGES = ("torch", "torchvision", "timm", "pillow")  # whose versions decide the numbers

Pass = tuple[torch.device, ImageEncoder]  # where, and the encoder there
Decode = Callable[
    [str, Tensor], None
]  # an image's id; its views are written into (V, 3, side, side) uint8


def embed_images(
    image_table: Path,
    images_dir: Path,
    load: Load,
    checkpoint: Path,
    target: Path,
    names: dict[str, str],
    parameters: Embed,
    device: torch.device,
) -> None:
    """Embed the training and test images that the table names and write the cache, which says `names` of itself.

    On a CPU the file is byte-identical for the same inputs, parameters, versions and kind of CPU, however many cores
    there are and whether or not the run was interrupted. InputError, and no file, where an image is damaged or the
    embeddings are not sound.
    """
    if len(set(parameters.blocks)) < len(parameters.blocks):
        raise InputError(f"embed.blocks names a block twice: {parameters.blocks}; name each once")
    check_views(parameters.views)
    splits = read_image_table(image_table)
    image_ids = [image_id for split in ("train", "test") for image_id in splits[split]["image_ids"]]
    encoder, alignment = load(checkpoint)
    made_with: Attributes = {
        **names,
        "tokens": parameters.tokens,
        "preprocessing": encoder.preprocessing,
        "precision": parameters.precision,
        "batch_size": parameters.batch_size,
        "device": device_name(device),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint),
        "aligned_by": json.dumps(alignment, sort_keys=True) if alignment else "none",
        "versions": " ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    decided_by = [made_with, parameters.blocks, parameters.views]
    chosen = {"IMAGE_MODELS": [names["backbone"]]}
    with (
        open_images(images_dir, image_ids) as images,
        unfinished("embedding", __file__, PACKAGES, chosen, decided_by, keep=True) as folder,
    ):

        def decode(image_id: str, target: Tensor) -> None:
            picture = encoder.framing(images.read(image_id))
            for view, own in zip(parameters.views, target, strict=True):
                own.copy_(degrade(picture, view, image_id))

        rows = np.unique(np.linspace(0, len(image_ids) - 1, RECOMPUTED).astype(int))
        recomputed = _empty(encoder, parameters, len(rows))
        for place, row in enumerate(rows):
            decode(image_ids[row], recomputed[:, place])
        reference = [_one_by_one(encoder, view, parameters) for view in recomputed]
        if not all(np.isfinite(block).all() for blocks in reference for block in blocks):
            raise InputError(
                f"{checkpoint}: the {names['encoder']} encoder gives values that are not finite for a picture, though "
                "its weights are finite: they grow too large; name another backbone, or another file of weights"
            )
        accelerate(encoder, parameters.blocks, parameters.tokens, parameters.precision, device)
        batches = [
            image_ids[i : i + parameters.batch_size]
            for i in range(0, len(image_ids), parameters.batch_size)
        ]
        files = [folder / f"{_fingerprint(batch, images)}.npy" for batch in batches]
        n_views, n_features = len(parameters.views), sum(block.shape[1] for block in reference[0])
        todo = [
            (file, batch)
            for file, batch in zip(files, batches, strict=True)
            if not _is_whole(file, (n_views, len(batch), n_features))
        ]
        what = f"{n_views} x {len(parameters.blocks)} x {len(image_ids)} (views x blocks x images)"
        n_bytes = 4 * len(image_ids) * n_views * n_features
        n_todo = sum(len(batch) for _, batch in todo)
        n_done = len(image_ids) - n_todo
        in_cache = {folder: n_bytes * n_todo // len(image_ids)} if todo else {}
        check_folders({target.parent: n_bytes} | in_cache)
        passes = _passes(encoder, device)
        n_timed = max(
            len(passes), TIMED // parameters.batch_size
        )  # batches: one at least for each pass
        with tqdm(
            total=len(image_ids),
            initial=n_done,
            unit="image",
            desc=f"embed {target.stem}",
            disable=None,
        ) as bar:
            started = time.monotonic()
            _embed_all(passes, todo[:n_timed], decode, parameters, bar)
            seconds = (time.monotonic() - started) / n_timed * max(0, len(todo) - n_timed)
            left = str(timedelta(seconds=round(seconds)))  # h:mm:ss
            tqdm.write(
                f"embed {target.stem}: {what} = {n_bytes / 1e6:.2f} MB, done in about {left}"
            )
            _embed_all(passes, todo[n_timed:], decode, parameters, bar)
        features = {block: encoder.feature(block, parameters.tokens) for block in parameters.blocks}
        blocks = _checked(
            features, parameters.views, files, rows, reference, f"{target} (from {checkpoint.name})"
        )
        write_embeddings(target, image_ids, blocks, made_with)


def _fingerprint(image_ids: list[str], images: Images) -> str:
    """A batch by the names, sizes and checksums of its images, which are compared when an image is read."""
    return hashlib.sha256(repr(list(map(images.fingerprint, image_ids))).encode()).hexdigest()[:32]


def _is_whole(file: Path, shape: tuple[int, int, int]) -> bool:
    """Whether the cache holds this batch, (V, B, sum of D); what a disk damaged is computed again."""
    if not file.exists():
        return False
    try:
        values = np.load(file)
    except (ValueError, EOFError):  # cut short, or not numpy's any more
        values = np.empty(0)

    if values.shape == shape and np.isfinite(values).all():
        return True
    tqdm.write(f"{file}: damaged, and computed again")
    return False


@torch.inference_mode()
def _one_by_one(encoder: ImageEncoder, images: Tensor, parameters: Embed) -> list[np.ndarray]:
    """For each block (M, D): what the encoder as it was loaded gives for M single images, float32 on the CPU."""
    each = [
        encoder(image[None].float() / 255, parameters.blocks, parameters.tokens) for image in images
    ]
    return [torch.cat(rows).numpy() for rows in zip(*each, strict=True)]


def _passes(encoder: ImageEncoder, device: torch.device) -> list[Pass]:
    """The passes that go side by side: one for each core, or some for each GPU."""
    if device.type == "cpu":
        return [(device, encoder)] * torch.get_num_threads()
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [(gpu, copy.deepcopy(encoder).to(gpu)) for gpu in gpus] * PASSES_PER_GPU


def _empty(encoder: ImageEncoder, parameters: Embed, n_images: int, pinned: bool = False) -> Tensor:
    """Room for the views of so many images, (V, B, 3, side, side) uint8."""
    shape = len(parameters.views), n_images, 3, encoder.framing.side, encoder.framing.side
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def _embed_all(
    passes: list[Pass],
    todo: list[tuple[Path, list[str]]],
    decode: Decode,
    parameters: Embed,
    bar: tqdm,
) -> None:
    """Embed each batch and save it in its file; the passes take the batches as they come free."""
    n_threads, (device, encoder) = torch.get_num_threads(), passes[0]
    empty = functools.partial(_empty, encoder, parameters, pinned=device.type == "cuda")
    ahead = max(1, AHEAD // len(parameters.views)) * len(passes)
    decoded, turn = _decoded(todo, decode, empty, ahead), threading.Lock()

    def work(own: torch.device, encoder: ImageEncoder) -> None:
        fits = (
            min(parameters.batch_size, IN_CPU_CACHE) if own.type == "cpu" else parameters.batch_size
        )
        with torch.cuda.stream(torch.cuda.Stream(own)) if own.type == "cuda" else nullcontext():
            while True:
                with turn:
                    batch = next(decoded, None)
                if batch is None:
                    return
                file, views = batch
                values = []
                for images in views:
                    of_view, fits = embed_batch(encoder, images, parameters, own, fits)
                    values.append(of_view)
                with replacing(file) as temporary, temporary.open("wb") as stream:
                    save_array(stream, np.stack(values))
                with turn:
                    bar.update(views.shape[1])

    torch.set_num_threads(1)  # of each pass; there are as many passes as there were threads
    try:
        with ThreadPoolExecutor(len(passes)) as pool:
            try:
                for finished in as_completed([pool.submit(work, *own) for own in passes]):
                    finished.result()
            finally:  # one that failed, or Ctrl-C, stops the others after the batch that they are at
                with turn:
                    decoded.close()
    finally:
        torch.set_num_threads(n_threads)


def _decoded(
    todo: list[tuple[Path, list[str]]], decode: Decode, empty: Callable[[int], Tensor], ahead: int
) -> Generator[tuple[Path, Tensor], None, None]:
    """The batches in order; threads decode the next `ahead` ones in the meantime, each image into its place."""
    with ThreadPoolExecutor(n_cores()) as pool:  # not all cores of a node that others use too
        waiting: deque[tuple[Path, Tensor, list[Future[None]]]] = deque()
        try:
            for file, image_ids in todo:
                batch = empty(len(image_ids))
                images = [
                    pool.submit(decode, image_id, batch[:, i])
                    for i, image_id in enumerate(image_ids)
                ]
                waiting.append((file, batch, images))
                if len(waiting) > ahead:
                    yield _whole(*waiting.popleft())
            while waiting:
                yield _whole(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _whole(file: Path, batch: Tensor, images: list[Future[None]]) -> tuple[Path, Tensor]:
    for image in images:
        image.result()
    return file, batch


def embed_batch(
    encoder: ImageEncoder, images: Tensor, parameters: Embed, device: torch.device, fits: int
) -> tuple[np.ndarray, int]:
    """All blocks side by side, (B, sum of D) float32, and how many images fit in the device's memory at once."""
    while True:
        try:
            return np.concatenate(
                [_forward(encoder, part, parameters, device) for part in images.split(fits)]
            ), fits
        except torch.OutOfMemoryError:
            if fits == 1:
                raise InputError(
                    f"{device} has too little memory for one image: end other programs, or set embed.device to cpu"
                ) from None
        fits = fits // 2
        torch.cuda.empty_cache()
        tqdm.write(f"{device} has too little memory: going on with {fits} images at once")


@torch.inference_mode()
def _forward(
    encoder: ImageEncoder, images: Tensor, parameters: Embed, device: torch.device
) -> np.ndarray:
    pixels = images.to(device, non_blocking=True).float() / 255
    return (
        torch.cat(encoder(pixels, parameters.blocks, parameters.tokens), dim=1)
        .float()
        .cpu()
        .numpy()
    )


def _checked(
    features: dict[Block, str],
    views: list[str],
    files: list[Path],
    rows: np.ndarray,
    reference: list[list[np.ndarray]],
    where: str,
) -> Iterator[tuple[Block | str, np.ndarray, Attributes]]:
    """Each block of each view, the deepest first: name in the cache, values (N, D) and what it says of them.

    They are checked. A degraded view may tell images hardly apart, and may then be all rounding: this is told.
    """
    ends = np.cumsum([recomputed.shape[1] for recomputed in reference[0]])
    columns = [
        slice(end - recomputed.shape[1], end)
        for end, recomputed in zip(ends, reference[0], strict=True)
    ]
    deepest = max(features, key=_depth)
    for place, view in enumerate(views):
        found = zip(features, columns, reference[place], strict=True)
        for block, own, recomputed in sorted(found, key=lambda each: _depth(each[0]), reverse=True):
            name = block if view == ORIGINAL else f"{view}/{block}"
            values = np.concatenate([np.load(file, mmap_mode="r")[place, :, own] for file in files])
            measured = health.measure(values, rows, recomputed)
            try:
                health.check(
                    measured, f"{where}: block {name}", tells_images_apart=block == deepest
                )
            except InputError:
                if (
                    view == ORIGINAL
                    or measured["non_finite"]
                    or not measured["reference_cosine"] >= health.AGREEMENT
                ):
                    raise
                print(
                    f"{name}: the embeddings hardly tell images apart (median cosine {measured['median_cosine']}, "
                    f"{measured['duplicates']} repeat another one, centred cosine with a recomputation "
                    f"{measured['reference_cosine_centred']}); kept, as this is a degraded view"
                )
            yield name, values, {"feature": features[block], **measured}


def _depth(block: Block) -> float:
    return math.inf if block == "last" else block
