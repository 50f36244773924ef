import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.datasets.image_table import read_image_table, write_image_table
from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.table import SAMPLE
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.images import batches
from pipeline.images.batches import embed_batch
from pipeline.images.decoding import DecodingPool
from pipeline.images.embedder import N_REFERENCE_IMAGES, embed_images, resolve
from pipeline.images.embeddings import read_embeddings, read_health
from pipeline.images.models.dreamsim import load_encoder
from pipeline.images.models.table import IMAGE_MODELS, Load
from pipeline.images.models.vit import Framing
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.images.views import degrade
from pipeline.sections import Embed
from pipeline.untrusted.pictures import Images
from tests.tiny import shipped_params

TINY = Size(
    train_concepts=12,
    images_per_concept=2,
    test_concepts=6,
    train_repetitions=2,
    test_repetitions=3,
)
N = 12 * 2 + 6
CHECKPOINT = "dreamsim_synclr_vitb16_checkpoint.zip"
VIEWS = ["original", "blur-2.6", "low-resolution-22", "noise-0.098"]
ALIGNED = IMAGE_MODELS["synclr_vitb16"].aligned["dreamsim"]
NAMES = {"backbone": "synclr_vitb16", "encoder": "aligned", "alignment": "dreamsim"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with images/, images.csv and a small checkpoint."""
    base = tmp_path_factory.mktemp("embedder")
    make_raw([], base / "eeg", base / "images", base / "image_metadata", TINY)
    write_image_table(base / "images.csv", SAMPLE.read_metadata(base / "image_metadata"))
    make_checkpoint("synclr_vitb16", base, embed_dim=64)
    return base


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parameters(**changes: object) -> Embed:
    return Embed(
        **shipped_params().embed.model_dump() | {"batch_size": 4, "device": "cpu"} | changes
    )


def embed(
    data: Path, target: Path, images: Path | None = None, load: Load = ALIGNED, **changes: object
) -> Path:
    inputs = data / "images.csv", images or data / "images", load, data / CHECKPOINT
    embed_images(*inputs, target, NAMES, parameters(**changes), torch.device("cpu"))
    return target


def ids(data: Path) -> list[str]:
    return [
        name
        for split in read_image_table(data / "images.csv").values()
        for name in split["image_ids"]
    ]


def side_files(cache: Path) -> list[Path]:
    return list(cache.glob("embedding/*/[!.]*.npy"))


def with_member(data: Path, target: Path, name: str, content: bytes) -> Path:
    """A copy of the image archives in which one image of the training archive is another."""
    shutil.copytree(data / "images", target)
    (target / "training_images.zip").unlink()
    with (
        zipfile.ZipFile(data / "images" / "training_images.zip") as old,
        zipfile.ZipFile(target / "training_images.zip", "w") as new,
    ):
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return target


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The ids of the images that are decoded, as they are."""
    names, read = [], Images.read

    def counting(images: Images, image_id: str) -> Image.Image:
        names.append(image_id)
        return read(images, image_id)

    monkeypatch.setattr(Images, "read", counting)
    return names


def test_each_row_is_its_image_embedded_alone(data, tmp_path):
    path = embed(data, tmp_path / "aligned.h5", blocks=[6, "last"])
    encoder, _ = load_encoder(data / CHECKPOINT, "synclr_vitb16", "aligned")
    archives = {p.stem: zipfile.ZipFile(p) for p in (data / "images").glob("*.zip")}
    for block in (6, "last"):
        cached = read_embeddings(path, block)
        assert list(cached.image_ids) == ids(data) and cached.values.shape == (N, 64)
        for row in (0, 3, 4, 23, 24, N - 1):  # on both sides of a batch's and of the split's border
            name = cached.image_ids[row]
            picture = Image.open(io.BytesIO(archives[name.split("/")[0]].read(name))).convert("RGB")
            with torch.inference_mode():
                [expected] = encoder(Framing()(picture)[None].float() / 255, [block])
            np.testing.assert_allclose(
                cached.values[row], expected[0], rtol=0, atol=1e-5 * float(expected.abs().max())
            )


def test_each_view_is_the_degraded_picture_embedded_alone(data, tmp_path):
    path = embed(data, tmp_path / "aligned.h5", blocks=[6, "last"], views=VIEWS)
    encoder, _ = load_encoder(data / CHECKPOINT, "synclr_vitb16", "aligned")
    archives = {p.stem: zipfile.ZipFile(p) for p in (data / "images").glob("*.zip")}
    for block in (6, "last"):
        cached = np.stack(
            [read_embeddings(path, block, view, view).values for view in VIEWS], axis=1
        )
        assert cached.shape == (N, 4, 64)
        for row in (0, 4, N - 1):
            name = ids(data)[row]
            picture = Framing()(
                Image.open(io.BytesIO(archives[name.split("/")[0]].read(name))).convert("RGB")
            )
            views = torch.stack([degrade(picture, view, name) for view in VIEWS])
            with torch.inference_mode():
                [expected] = encoder(views.float() / 255, [block])
            np.testing.assert_allclose(
                cached[row], expected, rtol=0, atol=1e-5 * float(expected.abs().max())
            )
    assert all(np.linalg.norm(cached[:, 0] - cached[:, v], axis=1).min() > 0.01 for v in (1, 2, 3))


@pytest.mark.long
def test_the_original_is_the_same_with_views_and_without(data, tmp_path):
    """So is each view whatever the others are."""
    plain = embed(data, tmp_path / "plain.h5", precision="bfloat16")
    several = embed(data, tmp_path / "several.h5", precision="bfloat16", views=VIEWS)
    one = embed(data, tmp_path / "one.h5", precision="bfloat16", views=["original", VIEWS[3]])
    with h5py.File(plain) as before, h5py.File(several) as after, h5py.File(one) as other:
        assert "views" not in before and dict(before.attrs) == dict(after.attrs)
        for a, b in (
            (before["embeddings/last"], after["embeddings/last"]),
            (other[f"views/{VIEWS[3]}/last"], after[f"views/{VIEWS[3]}/last"]),
        ):
            assert (
                np.array_equal(a[:], b[:])
                and a.attrs["reference_cosine"] == b.attrs["reference_cosine"]
            )


def test_how_much_it_is_is_told_in_one_line(data, tmp_path, capsys):
    embed(data, tmp_path / "x.h5", blocks=[3, "last"], views=VIEWS[:3])
    size = 3 * 2 * N * 64 * 4 / 1e6
    [line] = capsys.readouterr().out.splitlines()
    told = f"embed x: 3 x 2 x {N} (views x blocks x images) = {size:.2f} MB, done in about "
    assert line.startswith(told) and re.fullmatch(r"\d+:\d\d:\d\d", line.removeprefix(told))


def test_the_file_is_the_same_whatever_the_number_of_threads(data, tmp_path):
    first = embed(data, tmp_path / "a.h5", blocks=["last", 3], tokens="mean", precision="bfloat16")
    torch.set_num_threads(3)
    second = embed(data, tmp_path / "b.h5", blocks=["last", 3], tokens="mean", precision="bfloat16")
    assert torch.get_num_threads() == 3
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.long
def test_the_file_is_the_same_when_processes_decode(data, tmp_path, monkeypatch):
    """As for a GPU: each image is decoded outside of this process, but for those of the reference."""
    first = embed(data, tmp_path / "a.h5", views=VIEWS)
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "another"))

    def in_processes(*arguments: object, **_: object) -> DecodingPool:
        return DecodingPool(*arguments, in_processes=True)

    monkeypatch.setattr(batches, "DecodingPool", in_processes)
    assert embed(data, tmp_path / "b.h5", views=VIEWS).read_bytes() == first.read_bytes()

    with zipfile.ZipFile(data / "images" / "training_images.zip") as archive:
        cut = archive.read(ids(data)[17])[:5000]
    damaged = with_member(data, tmp_path / "images", ids(data)[17], cut)
    with pytest.raises(InputError, match=f"{ids(data)[17]}: cannot be decoded"):
        embed(data, tmp_path / "x.h5", damaged)


def test_the_cache_says_what_it_is(data, tmp_path):
    path = embed(data, tmp_path / "aligned.h5", blocks=["last", 12], precision="bfloat16")
    with h5py.File(path) as file:
        notes = dict(file.attrs)
        features = {
            block: dataset.attrs["feature"] for block, dataset in file["embeddings"].items()
        }
    assert notes["checkpoint"] == CHECKPOINT and notes["checkpoint_sha256"] == sha256(
        data / CHECKPOINT
    )
    assert (notes["backbone"], notes["encoder"], notes["tokens"]) == (
        "synclr_vitb16",
        "aligned",
        "cls",
    )
    assert (notes["precision"], notes["batch_size"]) == ("bfloat16", 4) and notes[
        "device"
    ].startswith("cpu (")
    assert (
        json.loads(notes["aligned_by"])["lora_alpha"] == 0.5 and "bicubic" in notes["preprocessing"]
    )
    assert all(name in notes["versions"] for name in ("torch ", "torchvision ", "timm ", "pillow "))
    assert (
        "before the last LayerNorm" in features["last"]
        and features["12"] == "CLS token after block 12"
    )
    health = read_health(path)["last"]
    assert (health["rows"], health["dimensions"], health["non_finite"], health["duplicates"]) == (
        N,
        64,
        0,
        0,
    )
    assert 0.999 < health["reference_cosine"] < 1 and health["median_cosine"] < 0.9


@pytest.mark.parametrize(
    ("device", "precision", "batch_size"), [("cpu", "float32", 32), ("cuda", "bfloat16", 256)]
)
def test_auto_is_what_suits_the_kind_of_device(device, precision, batch_size):
    shipped = shipped_params().embed
    assert (shipped.precision, shipped.batch_size) == ("auto", "auto")

    resolved = resolve(shipped, torch.device(device))
    assert (resolved.precision, resolved.batch_size) == (precision, batch_size)
    assert resolved.model_dump() == shipped.model_dump() | {
        "precision": precision,
        "batch_size": batch_size,
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_set_stays_beside_auto(device):
    for changes in ({"precision": "float32"}, {"precision": "bfloat16"}, {"batch_size": 7}):
        named = parameters(**({"precision": "auto", "batch_size": "auto"} | changes))
        resolved = resolve(named, torch.device(device)).model_dump()
        assert {key: resolved[key] for key in changes} == changes


def test_auto_gives_the_very_cache_and_batches_of_the_values_set(data, tmp_path, cache, decoded):
    chosen = embed(data, tmp_path / "auto.h5", precision="auto", batch_size="auto")
    files = side_files(cache)
    decoded.clear()

    named = embed(data, tmp_path / "set.h5", precision="float32", batch_size=32)

    assert chosen.read_bytes() == named.read_bytes()
    assert len(decoded) == N_REFERENCE_IMAGES and side_files(cache) == files


def test_a_block_that_there_is_not_is_told(data, tmp_path):
    with pytest.raises(InputError, match="has the blocks 1 to 12 and last, not 13"):
        embed(data, tmp_path / "x.h5", blocks=[13])
    with pytest.raises(InputError, match="embed.blocks names a block twice"):
        embed(data, tmp_path / "x.h5", blocks=[3, 3])


def test_a_corrupt_image_is_named_and_the_work_so_far_kept(data, tmp_path, cache, decoded):
    """The archive mended, the batches that were done are not computed again, though the archive is another file."""
    name = ids(data)[17]
    with zipfile.ZipFile(data / "images" / "training_images.zip") as archive:
        cut = archive.read(name)[:5000]
    damaged = with_member(data, tmp_path / "images", name, cut)
    with pytest.raises(InputError, match=f"{name}: cannot be decoded"):
        embed(data, tmp_path / "x.h5", damaged)
    assert (
        not (tmp_path / "x.h5").exists() and len(side_files(cache)) == 4
    )  # the batches of 4 before the 17th
    decoded.clear()
    embed(data, tmp_path / "x.h5")
    assert len(decoded) == N_REFERENCE_IMAGES + N - 16 and set(ids(data)[16:]) <= set(decoded)
    decoded.clear()
    embed(data, tmp_path / "again.h5")
    assert len(decoded) == N_REFERENCE_IMAGES, (
        "what was computed once, for another stage too, is kept"
    )
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "x.h5").read_bytes()
    assert (tmp_path / "x.h5").read_bytes() == embed(data, tmp_path / "whole.h5").read_bytes()


def test_what_decides_the_numbers_decides_what_is_reused(data, tmp_path, cache, decoded):
    name = ids(data)[17]
    with zipfile.ZipFile(data / "images" / "training_images.zip") as archive:
        damaged = with_member(data, tmp_path / "images", name, archive.read(name)[:5000])
    with pytest.raises(InputError):
        embed(data, tmp_path / "x.h5", damaged)
    for changes in (
        {"precision": "bfloat16"},
        {"tokens": "mean"},
        {"blocks": [3]},
        {"views": VIEWS[:2]},
    ):
        decoded.clear()
        embed(data, tmp_path / "x.h5", **changes)
        assert len(decoded) == N_REFERENCE_IMAGES + N


def test_damaged_batches_in_the_cache_are_told_and_computed_again(
    data, tmp_path, cache, decoded, capsys
):
    whole = embed(data, tmp_path / "x.h5").read_bytes()
    cut, empty, not_finite, *_ = sorted(side_files(cache))
    values = np.load(not_finite)
    values[0, 0, 0] = np.nan
    np.save(not_finite, values)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    decoded.clear()

    again = embed(data, tmp_path / "again.h5").read_bytes()

    assert again == whole
    n_again = len(decoded) - N_REFERENCE_IMAGES
    assert 0 < n_again <= 3 * 4, "only the images of three batches"
    told = capsys.readouterr().out
    assert all(f"{file}: damaged, and computed again" in told for file in (cut, empty, not_finite))


def command(data: Path, tmp_path: Path, target: Path) -> list[str]:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["embed"] |= {"batch_size": 1, "blocks": [6, "last"], "views": VIEWS[:2], "device": "cpu"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    paths = [data / "images", data / "images.csv", data, tmp_path / "unaligned.h5", target]
    model = ["synclr_vitb16", "dreamsim"]
    return [
        sys.executable,
        "-m",
        "stages.embed",
        str(tmp_path / "params.yaml"),
        *model,
        *map(str, paths),
    ]


@pytest.mark.long
def test_a_killed_stage_goes_on_where_it_was(data, tmp_path, cache, decoded):
    """SIGKILL in the middle; then the same call ends with the very bytes of an undisturbed run."""
    target = tmp_path / "killed.h5"
    process = subprocess.Popen(
        command(data, tmp_path, target),
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(side_files(cache)) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(side_files(cache))
    assert 5 <= done < N and not target.exists()
    same = {"batch_size": 1, "blocks": [6, "last"], "views": VIEWS[:2]}
    embed(data, target, **same)
    assert len(decoded) == N_REFERENCE_IMAGES + N - done, (
        "an image is decoded once for all its views"
    )
    assert target.read_bytes() == embed(data, tmp_path / "whole.h5", **same).read_bytes()


def test_two_runs_at_once_take_turns(data, tmp_path, capsys):
    threads = [
        threading.Thread(target=embed, args=(data, tmp_path / f"{name}.h5")) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert "waiting for it" in capsys.readouterr().out


def test_embeddings_that_are_all_alike_are_not_written(data, tmp_path, cache):
    """As where every image is read as the same picture."""
    picture = io.BytesIO()
    Image.new("RGB", (300, 300), "grey").save(picture, "JPEG")
    (tmp_path / "images").mkdir()
    for split in ("training_images", "test_images"):
        with zipfile.ZipFile(tmp_path / "images" / f"{split}.zip", "w") as archive:
            for name in ids(data):
                if name.startswith(split):
                    archive.writestr(name, picture.getvalue())
    with pytest.raises(
        InputError, match="block last: the embeddings of different images are nearly the same"
    ):
        embed(data, tmp_path / "out" / "x.h5", tmp_path / "images", blocks=[3, "last"])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.long
def test_a_view_whose_embeddings_are_all_alike_is_told_and_kept(data, tmp_path, capsys):
    """As where the images differ in fine structure alone: here the upper half, mirrored, makes up for the lower one."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for split in ("training_images", "test_images"):
        with zipfile.ZipFile(tmp_path / "images" / f"{split}.zip", "w") as archive:
            for name in ids(data):
                if name.startswith(split):
                    pixels = 255 * generator.integers(2, size=(16, 16, 1), dtype=np.uint8).repeat(
                        3, axis=2
                    )
                    pixels[8:] = 255 - pixels[7::-1]
                    picture = io.BytesIO()
                    Image.fromarray(pixels).resize((224, 224), Image.Resampling.NEAREST).save(
                        picture, "PNG"
                    )
                    archive.writestr(name, picture.getvalue())
    views = ["original", "blur-64", "blur-2.6"]
    path = embed(
        data,
        tmp_path / "x.h5",
        tmp_path / "images",
        views=views,
        blocks=[3, "last"],
        precision="bfloat16",
    )
    health = read_health(path)
    # How low the blurred one is depends on the processor's bfloat16: 0.9 to 0.996.
    centred = {name: block["reference_cosine_centred"] for name, block in health.items()}
    assert centred["last"] > max(0.99, centred["blur-64/last"])
    told = capsys.readouterr().out.splitlines()[1:]
    assert told and all(
        "blur-64/" in line and "kept, as this is a degraded view" in line for line in told
    )


@pytest.mark.long
def test_a_degraded_view_that_is_computed_wrong_is_not_written(data, tmp_path):
    """Blurred pictures alone, and only side by side, get embeddings of the other sign."""

    def wrong(checkpoint: Path) -> tuple:
        encoder, adapter = ALIGNED(checkpoint)

        def turn(_: torch.nn.Module, inputs: tuple, outputs: list) -> list:
            turned = len(inputs[0]) > 1 and inputs[0].diff(dim=-1).abs().mean() < 0.001
            return [-values for values in outputs] if turned else outputs

        encoder.register_forward_hook(turn)
        return encoder, adapter

    with pytest.raises(
        InputError, match="block blur-64/last: the embeddings differ from a float32 recomputation"
    ):
        embed(data, tmp_path / "out" / "x.h5", load=wrong, views=["original", "blur-64"])
    assert not list((tmp_path / "out").iterdir())
    embed(data, tmp_path / "out" / "x.h5", load=wrong)


@pytest.mark.long
def test_embeddings_that_bfloat16_spoils_are_sound_in_float32_as_told(data, tmp_path):
    """As of an image model with numbers that bfloat16 is too coarse for."""

    def coarse(checkpoint: Path) -> tuple:
        encoder, adapter = ALIGNED(checkpoint)

        def spoil(encoder: torch.nn.Module, _: tuple, outputs: list) -> list:
            return (
                [-values for values in outputs] if encoder.arithmetic == torch.bfloat16 else outputs
            )

        encoder.register_forward_hook(spoil)
        return encoder, adapter

    with pytest.raises(
        InputError, match="set embed.precision to float32, or, if it is that, embed.device to cpu"
    ):
        embed(data, tmp_path / "x.h5", load=coarse, precision="bfloat16")
    assert embed(data, tmp_path / "x.h5", load=coarse, precision="float32").exists()


def test_a_checkpoint_of_nan_is_told_before_any_work(data, tmp_path, cache):
    def broken(checkpoint: Path) -> tuple:
        encoder, adapter = ALIGNED(checkpoint)
        encoder.vits[0].vit.blocks[5].mlp.fc1.bias.fill_(torch.nan)
        return encoder, adapter

    with pytest.raises(
        InputError, match=f"{CHECKPOINT}: the aligned encoder gives values that are not finite"
    ):
        embed(data, tmp_path / "x.h5", load=broken)
    assert not side_files(cache)


class Small:
    """Stands for a GPU with memory for so many images: each embedding is the image's first value."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, images: torch.Tensor, blocks: list, tokens: str) -> list[torch.Tensor]:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [images[:, 0, 0, :1] * 255]


def test_the_batch_halves_until_it_fits(capsys):
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 3, 2, 2)
    device = torch.device("cpu")
    values, fits = embed_batch(Small(3), images, parameters(batch_size=16), device, 16)
    assert np.allclose(values[:, 0], np.arange(11)) and fits == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        f"going on with {n} images at once" for n in (8, 4, 2)
    ]
    with pytest.raises(InputError, match="too little memory for one image"):
        embed_batch(Small(0), images, parameters(), device, 1)


@pytest.mark.long
def test_a_device_with_memory_for_two_images_gives_the_same_embeddings(
    data, tmp_path, capsys, monkeypatch
):
    def small(checkpoint: Path) -> tuple:
        encoder, adapter = ALIGNED(checkpoint)

        def refuse(_: torch.nn.Module, inputs: tuple) -> None:
            if len(inputs[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        encoder.register_forward_pre_hook(refuse)
        return encoder, adapter

    views = ["original", "blur-2.6"]
    path = embed(data, tmp_path / "small.h5", load=small, views=views)
    assert "going on with 2 images at once" in capsys.readouterr().out
    monkeypatch.setenv(
        "ALIGNED_EEG_CACHE", str(tmp_path / "another")
    )  # else the same batches are taken again
    plain = embed(data, tmp_path / "plain.h5", views=views)
    for view in views:
        got, expected = (read_embeddings(file, "last", view, view).values for file in (path, plain))
        assert got.shape == (N, 64)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
