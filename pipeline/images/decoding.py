"""Pictures decoded while the encoder works: the next batches wait in memory.

For a CPU, threads decode. A GPU embeds thousands of images a second, and threads cannot keep up
with it: during a fifth of the work on a picture Python lets only one thread run, so that not more
than five cores are busy. So processes decode for a GPU. They are forked, and write the pixels into
memory that they share with this process. The pixels are the same.
"""

import math
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pipeline.compute.machine import n_cores
from pipeline.errors import InputError
from pipeline.images.models.vit import Framing
from pipeline.images.views import degrade
from pipeline.untrusted.pictures import Images

BATCHES_AHEAD = 2  # decoded in advance, for each thread that embeds
PART_SIZE = 16  # images that a thread or a process decodes in one go


@dataclass(frozen=True)
class Batch:
    """Images that are embedded together, and the file of their embeddings, (V, B, sum of D)."""

    file: Path
    image_ids: list[str]


@dataclass(frozen=True)
class DecodedBatch:
    """The pixels of a batch: `views` is (V, B, 3, side, side) uint8, in the memory `slot`."""

    file: Path
    views: Tensor
    slot: int


@dataclass(frozen=True)
class Decoder:
    """Makes the views of images, of the size that the encoder takes."""

    images: Images
    framing: Framing
    views: Sequence[str]

    def empty(self, n_images: int) -> Tensor:
        """Memory for the views of so many images, (V, B, 3, side, side) uint8.

        Processes that are forked later share it.
        """
        shape = len(self.views), n_images, 3, self.framing.side, self.framing.side
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)

    def decode(self, image_id: str, target: Tensor) -> None:
        """Write the views of one image into `target`, (V, 3, side, side) uint8.

        InputError if the image is damaged.
        """
        picture = self.framing(self.images.read(image_id))
        for view, pixels in zip(self.views, target, strict=True):
            pixels.copy_(degrade(picture, view, image_id))


# Decodes images into the memory `slot`, from the row `start` on
DecodePart = Callable[[int, int, list[str]], None]


class DecodingPool:
    """Threads or processes that decode, and the memory that they fill, for batches of one size.

    They start with the first batch, and end with the context. `n_users` threads use batches at
    once.
    """

    def __init__(self, decoder: Decoder, batch_size: int, n_users: int, in_processes: bool) -> None:
        self.n_ahead = max(1, BATCHES_AHEAD // len(decoder.views)) * n_users

        # As many as there can be batches at once: waiting, being decoded or in use.
        self.memory = [decoder.empty(batch_size) for _ in range(self.n_ahead + n_users)]

        n_workers = n_cores()  # not all cores of a node that others use too
        decode_part = partial(_decode_part, decoder, self.memory)
        self._pool: Executor
        if in_processes:
            fork = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(n_workers, fork, _start_process, (decode_part,))
            self._decode_part: DecodePart = _decode_part_in_process
        else:
            self._pool = ThreadPoolExecutor(n_workers)
            self._decode_part = decode_part

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def decode(self, image_ids: list[str], slot: int) -> list[Future[None]]:
        """Let these images be decoded into the memory of this number, in several parts."""
        return [
            self._pool.submit(self._decode_part, slot, start, image_ids[start : start + PART_SIZE])
            for start in range(0, len(image_ids), PART_SIZE)
        ]


class Decoding:
    """Batches decoded in order, in a pool; threads take them in turn.

    The memory of a batch is filled again, once its user has given it back with `free`.
    """

    def __init__(self, batches: Sequence[Batch], pool: DecodingPool) -> None:
        self._pool = pool
        self._free_slots = deque(range(len(pool.memory)))
        self._to_start = iter(batches)
        self._started: deque[tuple[DecodedBatch, list[Future[None]]]] = deque()
        self._lock = threading.Lock()
        for _ in range(pool.n_ahead):
            self._start_next()

    def take(self) -> DecodedBatch | None:
        """The next batch, once it is decoded; None after the last one, and after `stop`.

        InputError where an image is damaged.
        """
        with self._lock:
            try:
                self._start_next()
                if not self._started:
                    return None

                batch, parts = self._started.popleft()
                for part in parts:
                    part.result()
                return batch
            except BrokenProcessPool:
                raise InputError(
                    "a process that decodes images was killed, as happens where there is too "
                    "little memory: run this where there is more, or end other programs"
                ) from None

    def free(self, batch: DecodedBatch) -> None:
        """The memory of this batch is not used any more."""
        self._free_slots.append(batch.slot)

    def stop(self) -> None:
        """Nobody gets another batch."""
        with self._lock:
            self._to_start = iter(())
            for _, parts in self._started:
                for part in parts:
                    part.cancel()
            self._started.clear()

    def _start_next(self) -> None:
        """Let the next batch be decoded, if there is one."""
        batch = next(self._to_start, None)
        if batch is None:
            return

        slot = self._free_slots.popleft()
        views = self._pool.memory[slot][:, : len(batch.image_ids)]
        parts = self._pool.decode(batch.image_ids, slot)
        self._started.append((DecodedBatch(batch.file, views, slot), parts))


def _decode_part(
    decoder: Decoder, memory: list[Tensor], slot: int, start: int, image_ids: list[str]
) -> None:
    for row, image_id in enumerate(image_ids, start):
        decoder.decode(image_id, memory[slot][:, row])


# What a process that decodes has inherited; it cannot be sent to it with each call.
_inherited: DecodePart


def _decode_part_in_process(slot: int, start: int, image_ids: list[str]) -> None:
    _inherited(slot, start, image_ids)


def _start_process(decode_part: DecodePart) -> None:
    """The first call in a process that decodes."""
    global _inherited
    _inherited = decode_part
    torch.set_num_threads(1)  # torch's other threads are not there after a fork

    # Ctrl-C reaches this process too. The one that forked it answers, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that forked it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
