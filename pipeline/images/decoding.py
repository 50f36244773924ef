"""Pictures decoded while the encoder works: the next batches wait in memory.

For a CPU, threads decode. A GPU embeds thousands of images a second, and threads cannot keep up
with it: during a fifth of the work on a picture Python lets only one thread run, so that not more
than five cores are busy. So processes decode for a GPU. They are forked, which takes no time, and
write the pixels into memory that they share with this process. The pixels are the same.
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


class Decoding:
    """Batches decoded in order; `n_users` threads take them in turn.

    The memory of a batch is filled again, once its user has given it back with `free`.
    """

    def __init__(
        self, batches: Sequence[Batch], decoder: Decoder, n_users: int, in_processes: bool
    ) -> None:
        n_ahead = max(1, BATCHES_AHEAD // len(decoder.views)) * n_users
        n_images = max((len(batch.image_ids) for batch in batches), default=1)

        # As many as there can be batches at once: waiting, being decoded or in use.
        self._memory = [decoder.empty(n_images) for _ in range(n_ahead + n_users)]
        self._free_slots = deque(range(len(self._memory)))

        self._pool, self._decode_part = _start_pool(decoder, self._memory, in_processes)
        self._to_start = iter(batches)
        self._started: deque[tuple[DecodedBatch, list[Future[None]]]] = deque()
        self._lock = threading.Lock()
        for _ in range(n_ahead):
            self._start_next()

    def take(self) -> DecodedBatch | None:
        """The next batch, once it is decoded; None after the last one, and after `stop`.

        InputError where an image is damaged.
        """
        with self._lock:
            self._start_next()
            if not self._started:
                return None

            batch, parts = self._started.popleft()
            try:
                for part in parts:
                    part.result()
            except BrokenProcessPool:
                raise InputError(
                    "a process that decodes images was killed, as happens where there is too "
                    "little memory: run this where there is more, or end other programs"
                ) from None
            return batch

    def free(self, batch: DecodedBatch) -> None:
        """The memory of this batch is not used any more."""
        self._free_slots.append(batch.slot)

    def stop(self) -> None:
        """End the threads or processes; nobody gets another batch."""
        with self._lock:
            self._to_start = iter(())
            self._started.clear()
            self._pool.shutdown(cancel_futures=True)

    def _start_next(self) -> None:
        """Let the next batch be decoded, if there is one."""
        batch = next(self._to_start, None)
        if batch is None:
            return

        slot = self._free_slots.popleft()
        n_images = len(batch.image_ids)
        parts = [
            self._pool.submit(
                self._decode_part, slot, start, batch.image_ids[start : start + PART_SIZE]
            )
            for start in range(0, n_images, PART_SIZE)
        ]
        views = self._memory[slot][:, :n_images]
        self._started.append((DecodedBatch(batch.file, views, slot), parts))


# Decodes images into the memory `slot`, from the row `start` on
DecodePart = Callable[[int, int, list[str]], None]


def _start_pool(
    decoder: Decoder, memory: list[Tensor], in_processes: bool
) -> tuple[Executor, DecodePart]:
    """Threads or processes, and what they are called with."""
    decode_part = partial(_decode_part, decoder, memory)
    n_workers = n_cores()  # not all cores of a node that others use too
    if not in_processes:
        return ThreadPoolExecutor(n_workers), decode_part

    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(n_workers, fork, _start_process, (decode_part,))
    return pool, _decode_part_in_process


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
