"""Against timm itself: the same weights, the same pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform

from pipeline.errors import InputError
from pipeline.images.models import find_alignment, find_model
from pipeline.images.timm_models import check_name, load_encoder, make_random
from stages import weights

TINY = "vit_tiny_patch16_224"
NAMES = [TINY, "resnet18", "test_convnext", "test_vit4"]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    make_random(name, "weights", folder)
    return folder / "weights"


def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((300, 200))


def timms_own(name: str, file: Path) -> Any:
    model = timm.create_model(name)
    model.load_state_dict(safetensors.torch.load_file(file))
    model.reset_classifier(0)
    return model.eval()


def test_pixels_pooled_features_and_blocks_are_timms(name: str, file: Path) -> None:
    encoder, model = load_encoder(file, name), timms_own(name, file)
    config = model.pretrained_cfg
    options = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    own = create_transform(**options, crop_pct=1.0, crop_mode="squash")  # as timm resizes a whole picture
    pixels = own(picture())[None]
    torch.testing.assert_close((encoder.framing(picture())[None] / 255 - encoder.mean) / encoder.sd, pixels)
    images = encoder.framing(picture())[None].float() / 255
    with torch.inference_mode():
        second, last, again = encoder(images, (2, "last", 2))
        torch.testing.assert_close(last, model(pixels))
        torch.testing.assert_close(encoder(images)[0], model(pixels))
        after = model.forward_intermediates(pixels, indices=[1], intermediates_only=True)[0]
        if name == TINY:
            after = model.forward_intermediates(pixels, [1], True, intermediates_only=True)[0][1]
            torch.testing.assert_close(second, after[:, 0])
        else:
            torch.testing.assert_close(second, after.mean((2, 3)))
    assert torch.equal(second, again) and second.std() > 0.01
    assert str(config["mean"]) in encoder.preprocessing and config["interpolation"] in encoder.preprocessing


def test_bfloat16_is_near_float32_and_is_used(file: Path, name: str) -> None:
    encoder = load_encoder(file, name)
    images = torch.rand(2, 3, encoder.framing.side, encoder.framing.side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        [exact] = encoder(images)
        encoder.arithmetic = torch.bfloat16
        [near] = encoder(images)
    cosine = torch.nn.functional.cosine_similarity(exact, near.float())
    assert not torch.equal(exact, near.float()) and cosine.min() > 0.99


def test_what_a_model_has_not_is_told(name: str, file: Path) -> None:
    encoder = load_encoder(file, name)
    images = torch.zeros(1, 3, encoder.framing.side, encoder.framing.side)
    with pytest.raises(InputError, match=f"has the blocks 1 to {encoder.n_blocks} and last, not 99"):
        encoder(images, (99,))
    with pytest.raises(InputError, match="embed.tokens is mean: .* set it to cls"):
        encoder(images, ("last",), "mean")
    with pytest.raises(InputError, match=f"timm/{name} has only the unaligned encoder; set encoder to unaligned"):
        find_alignment(f"timm/{name}", "dreamsim")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", "has no model vit_tiny_patch16_225; is it vit_tiny_patch16_224"),
        (f"{TINY}.nobody", f"has no model {TINY}.nobody; is it {TINY}"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "has no model hf-hub"),
        ("local-dir:/tmp/model", "has no model local-dir"),
        ("../x", "has no model ../x"),
        ("", "has no model"),
    ],
)
def test_a_name_that_timm_has_not_is_told(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_model(f"timm/{name}")


def test_a_name_with_a_tag_is_timms() -> None:
    check_name(f"{TINY}.augreg_in21k")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".weights"])
@pytest.mark.parametrize("nest", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_files_as_people_have_them_are_read(nest: Callable, suffix: str, tmp_path: Path) -> None:
    make_random(TINY, "a", tmp_path)
    state = safetensors.torch.load_file(tmp_path / "a")
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(nest(state), path)
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(load_encoder(path, TINY)(images)[0], load_encoder(tmp_path / "a", TINY)(images)[0])


def test_a_file_that_does_not_fit_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is fetched in its place."""
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: pytest.fail("a download"))
    make_random("resnet18", "other", tmp_path)
    make_random(TINY, "whole", tmp_path)
    state = safetensors.torch.load_file(tmp_path / "whole")
    torch.save({key: value for key, value in state.items() if "blocks.3" not in key}, tmp_path / "lacks")
    torch.save(state | {"extra": torch.zeros(3)}, tmp_path / "more")
    torch.save(state | {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}, tmp_path / "head")
    torch.save({}, tmp_path / "empty")
    torch.save({"state_dict": 3}, tmp_path / "number")
    (tmp_path / "text").write_text("weights")
    for name in ("other", "lacks", "more", "head", "empty", "number", "text"):
        message = "does not hold the weights of timm's|should hold the weights|is not a torch file"
        with pytest.raises(InputError, match=message) as error:
            load_encoder(tmp_path / name, TINY)
        assert "\n" not in str(error.value)


def test_the_weights_are_a_file_that_the_user_names(tmp_path: Path) -> None:
    params, own = tmp_path / "params.yaml", tmp_path / "own.safetensors"
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-eeg2"}
    params.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=f"download.weights_file is none: the weights of timm/{TINY} are published"):
        weights.main(params, f"timm/{TINY}", tmp_path / "weights")
    make_random(TINY, own.name, tmp_path)
    values["download"]["weights_file"] = str(own)
    params.write_text(yaml.safe_dump(values))
    weights.main(params, f"timm/{TINY}", tmp_path / "weights")
    [copy] = (tmp_path / "weights").iterdir()
    assert copy.read_bytes() == own.read_bytes() and copy.stat().st_ino != own.stat().st_ino
    encoder, about = find_model(f"timm/{TINY}").unaligned(copy)
    assert (encoder.n_blocks, about) == (12, {})
