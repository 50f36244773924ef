import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.decoding import PART_SIZE, Batch, Decoder, Decoding, DecodingPool
from pipeline.images.models.vit import Framing
from pipeline.untrusted.pictures import open_images

N = 75  # more images than the memory of a Decoding holds at once
IDS = [f"training_images/{i:02}.png" for i in range(N)]
VIEWS = ["original", "blur-2.6", "noise-0.098"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with a zip of pictures of noise, each of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "training_images.zip", "w") as archive:
        for i, name in enumerate(IDS):
            pixels = rng.integers(0, 256, (200 + i, 250 - i, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            archive.writestr(name, file.getvalue())
    return folder


def batches_of(size: int) -> list[Batch]:
    return [Batch(Path(f"{i}.npy"), IDS[i : i + size]) for i in range(0, N, size)]


def decode_all(batches: list[Batch], pool: DecodingPool, n_users: int) -> dict:
    """The pixels of each batch by its file; several threads take the batches."""
    pixels = {}
    decoding = Decoding(batches, pool)

    def use() -> None:
        while batch := decoding.take():
            pixels[batch.file] = batch.views.clone()
            decoding.free(batch)

    threads = [threading.Thread(target=use) for _ in range(n_users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pixels


@pytest.mark.parametrize("in_processes", [False, True])
@pytest.mark.parametrize(("batch_size", "n_users"), [(4, 3), (PART_SIZE + 1, 2), (N, 1)])
def test_the_pixels_are_those_of_each_picture_decoded_alone(
    pictures, batch_size, n_users, in_processes
):
    batches = batches_of(batch_size)
    with open_images(pictures, IDS) as images:
        decoder = Decoder(images, Framing(), VIEWS)
        expected = decoder.empty(N)
        for i, image_id in enumerate(IDS):
            decoder.decode(image_id, expected[:, i])

        with DecodingPool(decoder, batch_size, n_users, in_processes) as pool:
            for again in (batches, batches[::-1]):  # the pool serves several times
                pixels = decode_all(again, pool, n_users)

                assert pixels.keys() == {batch.file for batch in batches}
                in_order = torch.cat([pixels[batch.file] for batch in batches], dim=1)
                assert torch.equal(in_order, expected)


@pytest.mark.parametrize("in_processes", [False, True])
def test_a_damaged_picture_is_told_after_the_batches_before_it(pictures, tmp_path, in_processes):
    with (
        zipfile.ZipFile(pictures / "training_images.zip") as whole,
        zipfile.ZipFile(tmp_path / "training_images.zip", "w") as damaged,
    ):
        for name in IDS:
            content = whole.read(name)
            damaged.writestr(name, content[:99] if name == IDS[9] else content)

    with open_images(tmp_path, IDS) as images:
        decoder = Decoder(images, Framing(), ["original"])
        with DecodingPool(decoder, 4, 1, in_processes) as pool:
            decoding = Decoding(batches_of(4), pool)
            for expected in batches_of(4)[:2]:
                batch = decoding.take()
                assert batch.file == expected.file
                decoding.free(batch)
            with pytest.raises(InputError, match=f"^{IDS[9]}: cannot be decoded"):
                decoding.take()
            decoding.stop()
            assert decoding.take() is None


def test_a_killed_process_is_told_in_one_sentence(pictures):
    with open_images(pictures, IDS) as images:
        decoder = Decoder(images, Framing(), ["original"])
        before = psutil.Process().children()
        with DecodingPool(decoder, 4, 1, in_processes=True) as pool:
            decoding = Decoding(batches_of(4), pool)
            for child in psutil.Process().children():
                if child not in before:
                    child.kill()
            with pytest.raises(InputError, match="a process that decodes images was killed"):
                while batch := decoding.take():
                    decoding.free(batch)


DECODE_AND_WAIT = """
import sys, time
from pathlib import Path
from pipeline.images.decoding import Batch, Decoder, Decoding, DecodingPool
from pipeline.images.models.vit import Framing
from pipeline.untrusted.pictures import open_images

folder, *ids = sys.argv[1:]
with open_images(Path(folder), ids) as images:
    batches = [Batch(Path("x"), [image_id]) for image_id in ids]
    decoder = Decoder(images, Framing(), ["original"])
    Decoding(batches, DecodingPool(decoder, 1, 1, in_processes=True)).take()
    print("decoded", flush=True)
    time.sleep(600)
"""


@pytest.mark.long
def test_no_process_stays_behind_when_the_one_that_forked_it_is_killed(pictures):
    command = [sys.executable, "-c", DECODE_AND_WAIT, str(pictures), *IDS[:8]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "decoded\n"
        children = psutil.Process(process.pid).children()
        assert children
        os.kill(process.pid, signal.SIGKILL)

    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
