"""Against dreamsim itself: the same checkpoint files, the same pictures."""

import json
import shutil
import warnings
import zipfile
from pathlib import Path

import dreamsim
import numpy as np
import pytest
import torch
from dreamsim.model import PerceptualModel
from PIL import Image

from pipeline.encoders import load_encoder, preprocess
from pipeline.errors import InputError
from pipeline.sample_checkpoints import make_checkpoint

NAME = "dreamsim_synclr_vitb16_checkpoint.zip"


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in [(500, 480, 3), (31, 640, 3)]]


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> Path:
    """A random checkpoint of DreamSim's real ViT-B/16, in the published layout."""
    folder = tmp_path_factory.mktemp("weights")
    make_checkpoint("synclr_vitb16", folder, embed_dim=768)
    yield folder / NAME
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_checkpoint("synclr_vitb16", folder)
    return folder / NAME


def embed(checkpoint: Path, variant: str, pictures: list[Image.Image]) -> torch.Tensor:
    encoder, _ = load_encoder(checkpoint, "synclr_vitb16", variant)
    [embedded] = encoder(torch.stack([preprocess(picture) for picture in pictures]).float() / 255)
    return embedded


def test_both_variants_equal_dreamsim(full_size, pictures, tmp_path):
    with zipfile.ZipFile(full_size) as archive:
        archive.extractall(tmp_path)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # peft's, about dreamsim's adapting twice
        aligned, transform = dreamsim.dreamsim(
            dreamsim_type="synclr_vitb16", cache_dir=str(tmp_path), normalize_embeds=False, device="cpu"
        )
        unaligned = PerceptualModel("synclr_vitb16", "cls", "16", baseline=True, load_dir=str(tmp_path), device="cpu")
        images = torch.cat([transform(picture) for picture in pictures])
        expected = {"aligned": aligned.embed(images), "unaligned": unaligned.eval().embed(images)}
    shutil.rmtree(tmp_path)
    for variant, reference in expected.items():
        got = embed(full_size, variant, pictures)
        assert got.shape == (2, 768)
        torch.testing.assert_close(got, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))
    assert (expected["aligned"] - expected["unaligned"]).abs().max() > 0.01  # the adapter does something


def test_the_resize_equals_dreamsims(pictures):
    from torchvision import transforms

    whole = transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC)
    for picture in pictures:
        assert torch.equal(preprocess(picture).float() / 255, transforms.ToTensor()(whole(picture)))


def rewritten(small: Path, tmp_path: Path, changes: dict[str, bytes | None]) -> Path:
    """The archive with some members replaced or (None) left out."""
    target = tmp_path / NAME
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = changes.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def weights_without(small: Path, tmp_path: Path, change) -> Path:
    """The archive with `change` applied to the dict of weights."""
    with zipfile.ZipFile(small) as archive, archive.open("synclr_vit_b_16.pth") as file:
        saved = torch.load(file, weights_only=True)
    change(saved["model"])
    torch.save(saved, tmp_path / "weights.pth")
    return rewritten(small, tmp_path, {"synclr_vit_b_16.pth": (tmp_path / "weights.pth").read_bytes()})


def reshape(weights: dict) -> None:
    weights["module.visual.blocks.3.mlp.fc1.weight"] = torch.zeros(5, 5)


def drop_last_block(weights: dict) -> None:
    for name in [name for name in weights if ".blocks.11." in name]:
        del weights[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("module.visual.blocks.2.attn.qkv.bias"), "blocks.2.attn.qkv.bias: expected .*, got nothing"),
        (lambda w: w.update({"module.visual.extra": torch.zeros(3)}), "extra: expected nothing, got"),
        (lambda w: w.update({"other.name": torch.zeros(3)}), "should start with module.visual."),
        (reshape, r"fc1.weight: expected \(768, 192\), got \(5, 5\)"),
        (drop_last_block, r"blocks.11.attn.proj.bias: expected \(192,\), got nothing"),
        (lambda w: w.clear(), "not those of a ViT"),
    ],
)
@pytest.mark.parametrize("variant", ["unaligned", "aligned"])
def test_a_checkpoint_that_is_not_whole_is_refused(small, tmp_path, change, message, variant):
    with pytest.raises(InputError, match=message):
        load_encoder(weights_without(small, tmp_path, change), "synclr_vitb16", variant)


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(small, tmp_path):
    torch.save({"model": Marker(tmp_path / "marker")}, tmp_path / "weights.pth")
    hostile = rewritten(small, tmp_path, {"synclr_vit_b_16.pth": (tmp_path / "weights.pth").read_bytes()})
    with pytest.raises(InputError, match="not a torch file of weights"):
        load_encoder(hostile, "synclr_vitb16", "unaligned")
    assert not (tmp_path / "marker").exists()


FOLDER = "synclr_vitb16_single_lora"
CONFIG = {"r": 16, "lora_alpha": 0.5, "lora_dropout": 0.1, "bias": "none", "target_modules": ["qkv"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{FOLDER}/adapter_config.json": b"{"}, "not the configuration of a LoRA"),
        ({f"{FOLDER}/adapter_config.json": b"{}"}, "not the configuration of a LoRA"),
        ({f"{FOLDER}/adapter_config.json": json.dumps(CONFIG | {"use_dora": True}).encode()}, "sets use_dora"),
        ({f"{FOLDER}/adapter_config.json": json.dumps(CONFIG | {"bias": "all"}).encode()}, "expected bias 'none'"),
        ({f"{FOLDER}/adapter_config.json": json.dumps(CONFIG | {"r": 3}).encode()}, r"expected factors \(3, 192\)"),
        (
            {f"{FOLDER}/adapter_config.json": json.dumps(CONFIG | {"target_modules": ["fc1"]}).encode()},
            "they differ at",
        ),
        ({f"{FOLDER}/adapter_model.safetensors": b"junk"}, "not a safetensors file"),
        ({f"{FOLDER}/adapter_model.safetensors": None}, "adapter_model.bin"),
        ({"synclr_vit_b_16.pth": b"junk"}, "not a torch file of weights"),
        ({"synclr_vit_b_16.pth": None}, "synclr_vit_b_16.pth"),
    ],
)
def test_a_damaged_archive_is_told_in_one_sentence(small, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        load_encoder(rewritten(small, tmp_path, changes), "synclr_vitb16", "aligned")
    assert "\n" not in str(error.value)


def test_a_truncated_archive_is_refused(small, tmp_path):
    (tmp_path / NAME).write_bytes(small.read_bytes()[:-1000])
    with pytest.raises(InputError, match=NAME):
        load_encoder(tmp_path / NAME, "synclr_vitb16", "unaligned")
