"""Batches of images: decoded by threads, embedded by all cores or GPUs, each saved in a file.

Threads decode the next batches while the devices compute. Each image is decoded once for all its
views. Each core of a CPU embeds a batch by itself, so that no core waits for another. A view of a
batch passes the encoder by itself, so that its numbers do not depend on the other views.
"""

import copy
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.compute.machine import n_cores
from pipeline.errors import InputError
from pipeline.files import replacing, save_array
from pipeline.images.models.vit import Framing, ImageEncoder
from pipeline.images.views import degrade
from pipeline.sections import ResolvedEmbed
from pipeline.untrusted.pictures import Images

CPU_BATCH_SIZE = 8  # images in one forward pass on a CPU; with 32 a ViT-B takes an eighth longer
THREADS_PER_GPU = 2  # one computes while the other copies
BATCHES_AHEAD = 2  # decoded in advance, for each thread that embeds


@dataclass(frozen=True)
class Batch:
    """Images that are embedded together, and the file of their embeddings, (V, B, sum of D)."""

    file: Path
    image_ids: list[str]


@dataclass(frozen=True)
class DecodedBatch:
    """The pixels of a batch: `views` is (V, B, 3, side, side) uint8."""

    file: Path
    views: Tensor


@dataclass(frozen=True)
class Replica:
    """The encoder on a device, for one thread; threads of one device share the encoder."""

    device: torch.device
    encoder: ImageEncoder


@dataclass(frozen=True)
class Decoder:
    """Makes the views of images, of the size that the encoder takes."""

    images: Images
    framing: Framing
    views: Sequence[str]

    def empty(self, n_images: int, pinned: bool = False) -> Tensor:
        """Memory for the views of so many images, (V, B, 3, side, side) uint8."""
        shape = len(self.views), n_images, 3, self.framing.side, self.framing.side
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)

    def decode(self, image_id: str, target: Tensor) -> None:
        """Write the views of one image into `target`, (V, 3, side, side) uint8.

        InputError if the image is damaged.
        """
        picture = self.framing(self.images.read(image_id))
        for view, pixels in zip(self.views, target, strict=True):
            pixels.copy_(degrade(picture, view, image_id))


def make_replicas(encoder: ImageEncoder, device: torch.device) -> list[Replica]:
    """One entry for each thread that embeds: one for each core, or some for each GPU."""
    if device.type == "cpu":
        return [Replica(device, encoder)] * torch.get_num_threads()

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [Replica(gpu, copy.deepcopy(encoder).to(gpu)) for gpu in gpus] * THREADS_PER_GPU


def embed_batches(
    replicas: list[Replica],
    batches: Sequence[Batch],
    decoder: Decoder,
    parameters: ResolvedEmbed,
    bar: tqdm,
) -> None:
    """Embed each batch and save it in its file; a replica that is free takes the next batch."""
    n_threads = torch.get_num_threads()
    pinned = replicas[0].device.type == "cuda"
    n_ahead = max(1, BATCHES_AHEAD // len(decoder.views)) * len(replicas)
    queue = _Queue(_decode_batches(batches, decoder, pinned, n_ahead), bar)

    torch.set_num_threads(1)  # for each replica: there are as many replicas as there were threads
    try:
        with ThreadPoolExecutor(len(replicas)) as pool:
            futures = [
                pool.submit(_embed_queue, replica, queue, parameters) for replica in replicas
            ]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                # After an error or Ctrl-C, the other threads finish their batch and stop.
                queue.close()
    finally:
        torch.set_num_threads(n_threads)


class _Queue:
    """Decoded batches that threads take in turn, and the progress bar that they share."""

    def __init__(self, batches: Generator[DecodedBatch, None, None], bar: tqdm) -> None:
        self._batches = batches
        self._bar = bar
        self._lock = threading.Lock()

    def take(self) -> DecodedBatch | None:
        """The next batch; None after the last one."""
        with self._lock:
            return next(self._batches, None)

    def count(self, n_images: int) -> None:
        """Move the bar by so many images, which are embedded and saved."""
        with self._lock:
            self._bar.update(n_images)

    def close(self) -> None:
        """Stop decoding: no thread gets another batch."""
        with self._lock:
            self._batches.close()


def _decode_batches(
    batches: Sequence[Batch], decoder: Decoder, pinned: bool, n_ahead: int
) -> Generator[DecodedBatch, None, None]:
    """The batches in order. While one is used, threads decode the next `n_ahead` ones."""
    with ThreadPoolExecutor(n_cores()) as pool:  # not all cores of a node that others use too
        waiting: deque[tuple[DecodedBatch, list[Future[None]]]] = deque()
        try:
            for batch in batches:
                views = decoder.empty(len(batch.image_ids), pinned)
                futures = [
                    pool.submit(decoder.decode, image_id, views[:, i])
                    for i, image_id in enumerate(batch.image_ids)
                ]
                waiting.append((DecodedBatch(batch.file, views), futures))
                if len(waiting) > n_ahead:
                    yield _finish(*waiting.popleft())

            while waiting:
                yield _finish(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(batch: DecodedBatch, futures: list[Future[None]]) -> DecodedBatch:
    """The batch, once all its images are decoded; InputError where one is damaged."""
    for future in futures:
        future.result()
    return batch


def _embed_queue(replica: Replica, queue: _Queue, parameters: ResolvedEmbed) -> None:
    """Embed and save batches until there are no more."""
    device = replica.device
    on_gpu = device.type == "cuda"
    n_fitting = parameters.batch_size if on_gpu else min(parameters.batch_size, CPU_BATCH_SIZE)

    with torch.cuda.stream(torch.cuda.Stream(device)) if on_gpu else nullcontext():
        while batch := queue.take():
            values = []
            for pixels in batch.views:
                features, n_fitting = embed_batch(
                    replica.encoder, pixels, parameters, device, n_fitting
                )
                values.append(features)

            with replacing(batch.file) as temporary, temporary.open("wb") as stream:
                save_array(stream, np.stack(values))
            queue.count(batch.views.shape[1])


def embed_batch(
    encoder: ImageEncoder,
    images: Tensor,
    parameters: ResolvedEmbed,
    device: torch.device,
    n_fitting: int,
) -> tuple[np.ndarray, int]:
    """Embed images (B, 3, side, side) uint8, at most `n_fitting` of them at once.

    Returns all blocks side by side, (B, sum of D) float32, and how many images the memory of the
    device holds at once. InputError where it holds not even one.
    """
    while True:
        try:
            parts = [
                _forward(encoder, part, parameters, device) for part in images.split(n_fitting)
            ]
            return np.concatenate(parts), n_fitting
        except torch.OutOfMemoryError:
            if n_fitting == 1:
                raise InputError(
                    f"{device} has too little memory for one image: end other programs, or set "
                    "embed.device to cpu"
                ) from None

        n_fitting = n_fitting // 2
        torch.cuda.empty_cache()
        tqdm.write(f"{device} has too little memory: going on with {n_fitting} images at once")


@torch.inference_mode()
def _forward(
    encoder: ImageEncoder, images: Tensor, parameters: ResolvedEmbed, device: torch.device
) -> np.ndarray:
    """Images (B, 3, side, side) uint8 -> all blocks side by side, (B, sum of D) float32."""
    pixels = images.to(device, non_blocking=True).float() / 255
    features = encoder(pixels, parameters.blocks, parameters.tokens)
    return torch.cat(features, dim=1).float().cpu().numpy()
