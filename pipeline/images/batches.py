"""Batches of images, embedded by all cores or GPUs, each saved in a file.

Each core of a CPU embeds a batch by itself, so that no core waits for another. A view of a batch
passes the encoder by itself, so that its numbers do not depend on the other views. The next batches
are decoded meanwhile.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import replacing, save_array
from pipeline.images.decoding import Batch, Decoder, Decoding, DecodingPool
from pipeline.images.models.vit import ImageEncoder
from pipeline.sections import ResolvedEmbed

CPU_BATCH_SIZE = 8  # images in one forward pass on a CPU; with 32 a ViT-B takes an eighth longer
THREADS_PER_GPU = 2  # one computes while the other copies


@dataclass(frozen=True)
class Replica:
    """The encoder on a device, for one thread; threads of one device share the encoder."""

    device: torch.device
    image_encoder: ImageEncoder


def make_replicas(image_encoder: ImageEncoder, device: torch.device) -> list[Replica]:
    """One entry for each thread that embeds: one for each core, or some for each GPU."""
    if device.type == "cpu":
        return [Replica(device, image_encoder)] * torch.get_num_threads()

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [Replica(gpu, copy.deepcopy(image_encoder).to(gpu)) for gpu in gpus] * THREADS_PER_GPU


def make_pool(decoder: Decoder, batch_size: int, replicas: list[Replica]) -> DecodingPool:
    """What decodes for these replicas: processes for a GPU, threads for a CPU."""
    on_gpu = replicas[0].device.type == "cuda"
    return DecodingPool(decoder, batch_size, len(replicas), in_processes=on_gpu)


def embed_batches(
    replicas: list[Replica],
    batches: Sequence[Batch],
    pool: DecodingPool,
    parameters: ResolvedEmbed,
    count: Callable[[int], None],
) -> None:
    """Embed each batch and save it in its file; a replica that is free takes the next batch.

    After each batch `count` gets its number of images, from one thread at a time.
    """
    n_threads = torch.get_num_threads()
    lock = Lock()

    torch.set_num_threads(1)  # for each replica: there are as many replicas as there were threads
    try:
        decoding = Decoding(batches, pool)
        with ThreadPoolExecutor(len(replicas)) as threads:
            futures = [
                threads.submit(_embed_decoded, replica, decoding, parameters, count, lock)
                for replica in replicas
            ]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                # After an error or Ctrl-C, the other threads finish their batch and stop.
                decoding.stop()
    finally:
        torch.set_num_threads(n_threads)


def _embed_decoded(
    replica: Replica,
    decoding: Decoding,
    parameters: ResolvedEmbed,
    count: Callable[[int], None],
    lock: Lock,
) -> None:
    """Embed and save batches until there are no more."""
    device = replica.device
    on_gpu = device.type == "cuda"
    n_fitting = parameters.batch_size if on_gpu else min(parameters.batch_size, CPU_BATCH_SIZE)

    with torch.cuda.stream(torch.cuda.Stream(device)) if on_gpu else nullcontext():
        while batch := decoding.take():
            values = []
            for pixels in batch.views:
                features, n_fitting = embed_batch(
                    replica.image_encoder, pixels, parameters, device, n_fitting
                )
                values.append(features)
            decoding.free(batch)

            with replacing(batch.file) as temporary, temporary.open("wb") as stream:
                save_array(stream, np.stack(values))
            with lock:
                count(batch.views.shape[1])


def embed_batch(
    image_encoder: ImageEncoder,
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
                _forward(image_encoder, part, parameters, device)
                for part in images.split(n_fitting)
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
    image_encoder: ImageEncoder, images: Tensor, parameters: ResolvedEmbed, device: torch.device
) -> np.ndarray:
    """Images (B, 3, side, side) uint8 -> all blocks side by side, (B, sum of D) float32."""
    pixels = images.to(device).float() / 255
    features = image_encoder(pixels, parameters.blocks, parameters.tokens)
    return torch.cat(features, dim=1).float().cpu().numpy()
