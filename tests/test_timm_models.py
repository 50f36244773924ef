"""Against timm itself: the same weights, the same pixels."""

import argparse
import collections
import contextlib
import datetime
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform

from pipeline.errors import InputError
from pipeline.images.models.table import find_alignment, find_model
from pipeline.images.models.timm_models import check_name, load_encoder, make_random
from pipeline.images.models.vit import ImageEncoder
from stages import weights

TINY = "vit_tiny_patch16_224"
SMALL = "test_vit"  # six blocks of 64 channels, for what any ViT shows
WIDTH = 64
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
    own = create_transform(
        **options, crop_pct=1.0, crop_mode="squash"
    )  # as timm resizes a whole picture
    pixels = own(picture())[None]
    torch.testing.assert_close(
        (encoder.framing(picture())[None] / 255 - encoder.mean) / encoder.sd, pixels
    )
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
    assert (
        str(config["mean"]) in encoder.preprocessing
        and config["interpolation"] in encoder.preprocessing
    )


def test_bfloat16_is_near_float32_and_is_used(file: Path, name: str) -> None:
    encoder = load_encoder(file, name)
    images = torch.rand(
        2, 3, encoder.framing.side, encoder.framing.side, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        [exact] = encoder(images)
        encoder.arithmetic = torch.bfloat16
        [near] = encoder(images)
    cosine = torch.nn.functional.cosine_similarity(exact, near.float())
    assert not torch.equal(exact, near.float()) and cosine.min() > 0.99


def test_what_a_model_has_not_is_told(name: str, file: Path) -> None:
    encoder = load_encoder(file, name)
    images = torch.zeros(1, 3, encoder.framing.side, encoder.framing.side)
    with pytest.raises(
        InputError, match=f"has the blocks 1 to {encoder.n_blocks} and last, not 99"
    ):
        encoder(images, (99,))
    with pytest.raises(InputError, match="embed.tokens is mean: .* set it to cls"):
        encoder(images, ("last",), "mean")
    with pytest.raises(
        InputError, match=f"timm/{name} has only the unaligned encoder; set encoder to unaligned"
    ):
        find_alignment(f"timm/{name}", "dreamsim")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", "has no model vit_tiny_patch16_225; is it vit_tiny_patch16_224"),
        (f"{TINY}.nobody", f"has no model {TINY}.nobody; is it {TINY}"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "has no model hf-hub"),
        ("local-dir:/tmp/model", "has no model local-dir"),
        ("../x", r"has no model ../x; timm.list_models\(\) in Python gives the names"),
        ("", "has no model"),
        (
            "vit_base_patch16_sapiens2",
            "takes 3 x 1024 x 768 values, and pictures are made RGB squares here",
        ),
        (
            "deepseek_vit_412m_enc",
            "gives many tokens of a picture and not one embedding; name another model",
        ),
    ],
)
def test_a_name_that_timm_has_not_is_told(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_model(f"timm/{name}")


def test_a_name_with_a_tag_is_timms() -> None:
    check_name(f"{TINY}.augreg_in21k")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Random weights of the small ViT by name."""
    folder = tmp_path_factory.mktemp("state")
    make_random(SMALL, "weights", folder)
    return safetensors.torch.load_file(folder / "weights")


def features(encoder: ImageEncoder) -> torch.Tensor:
    return encoder(random_pixels(encoder.framing.side))[0]


def random_pixels(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def timms_features(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What timm's own model gives for the same pixels."""
    model: Any = timm.create_model(SMALL, num_classes=0)
    model.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith("head.")}
    )
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        return model.eval()((random_pixels(config["input_size"][1]) - mean) / std)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def with_head(state: dict[str, torch.Tensor], **head: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("head.")} | head


# What lies beside the weights: numbers of numpy, paths, times, and configurations of argparse, Hydra and nobody.
BESIDE = {
    "epoch": 3,
    "metric": np.float64(71.2),
    "curve": np.arange(3),
    "args": argparse.Namespace(lr=1e-3, output=Path("/out")),
    "config": omegaconf.OmegaConf.create({"model": {"depth": 12, "sizes": [1, 2.5]}}),
    "started": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "counts": collections.defaultdict(int, a=1),
    "version": torch.__version__,
}


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, **BESIDE}, ""),
        (lambda state: {"model": state, **BESIDE}, ""),
        (lambda state: prefixed(state, "module."), "'module.' is taken off"),
        (lambda state: prefixed(state, "_orig_mod."), "'_orig_mod.' is taken off"),
        (
            lambda state: {"state_dict": prefixed(state, "model._orig_mod.")},
            "'model._orig_mod.' is taken off",
        ),
        (
            lambda state: {
                "state_dict": state,
                "state_dict_ema": {key: value + 1 for key, value in state.items()},
            },
            "holds state_dict and state_dict_ema, their moving average; state_dict is used",
        ),
        (with_head, ""),
        (
            lambda state: with_head(
                state, **{"head.weight": torch.ones(10, WIDTH), "head.bias": torch.ones(10)}
            ),
            "",
        ),
        (
            lambda state: with_head(
                state, **{"head.0.weight": torch.ones(5, WIDTH), "head.2.weight": torch.ones(2, 5)}
            ),
            "",
        ),
        (lambda state: prefixed(with_head(state), "module."), "'module.' is taken off"),
    ],
)
def test_weights_as_training_scripts_leave_them(
    save: Callable,
    said: str,
    state: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    torch.save(save(state), tmp_path / "model.pt")
    assert torch.equal(features(load_encoder(tmp_path / "model.pt", SMALL)), timms_features(state))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == bool(said) and all(said in line for line in lines)


def test_half_precision_becomes_float32(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    halves = {key: value.half() for key, value in state.items()}
    safetensors.torch.save_file(halves, tmp_path / "half.safetensors")
    encoder = load_encoder(tmp_path / "half.safetensors", SMALL)
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    assert torch.equal(
        features(encoder), timms_features({key: value.float() for key, value in halves.items()})
    )


def refused(path: Path, name: str = SMALL) -> str:
    """The sentence for a file that does not load."""
    with pytest.raises(InputError) as error:
        load_encoder(path, name)
    assert str(error.value).startswith(f"{path}") and "\n" not in str(error.value)
    return str(error.value)


def do_as_told(sentence: str, folder: Path) -> Path:
    """Run the line of Python that the sentence gives; it makes new.pt of old.pt."""
    match = re.search(r"torch\.save\(.*?'new\.pt'\)", sentence)
    assert match
    with contextlib.chdir(folder):
        exec(match[0], {"timm": timm, "torch": torch})
    return folder / "new.pt"


def test_weights_of_a_model_for_larger_pictures_are_refused(tmp_path: Path) -> None:
    large = timm.create_model(TINY, num_classes=0, img_size=384)
    torch.save(large.state_dict(), tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt", TINY)
    assert (
        "pos_embed: expected (1, 197, 192), which timm's vit_tiny_patch16_224 has, got (1, 577, 192)"
        in told
    )
    assert "they fit timm/vit_tiny_patch16_384: set backbone to that" in told
    assert load_encoder(tmp_path / "old.pt", "vit_tiny_patch16_384").framing.side == 384


def test_positions_that_fit_no_model_of_timm_are_resized_as_told(tmp_path: Path) -> None:
    odd = timm.create_model(TINY, num_classes=10, img_size=240)
    torch.save({"state_dict": odd.state_dict()}, tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt", TINY)
    assert (
        "pos_embed: expected (1, 197, 192), which timm's vit_tiny_patch16_224 has, got (1, 226, 192)"
        in told
    )
    assert features(load_encoder(do_as_told(told, tmp_path), TINY)).shape == (2, 192)


def test_a_whole_model_is_not_run_and_its_weights_are_saved_as_told(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = timm.create_model(SMALL)
    model.load_state_dict(state)
    torch.save(model, tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt")
    assert (
        "it holds timm.models.vision_transformer.VisionTransformer, which could run code and is not read"
        in told
    )
    assert torch.equal(
        features(load_encoder(do_as_told(told, tmp_path), SMALL)), timms_features(state)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_program_of_torchscript_is_not_run_and_its_weights_are_saved_as_told(
    tmp_path: Path,
) -> None:
    model = timm.create_model("test_vit4").eval()
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 160, 160)), tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt", "test_vit4")
    assert "it is a TorchScript program, which is not run" in told
    encoder = load_encoder(do_as_told(told, tmp_path), "test_vit4")
    assert torch.equal(encoder.state_dict()["model.pos_embed"], model.state_dict()["pos_embed"])


def test_another_pickle_protocol_is_saved_again_as_told(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "old.pt", pickle_protocol=4)
    told = refused(tmp_path / "old.pt")
    assert "it was saved with another pickle_protocol than 2" in told
    assert torch.equal(
        features(load_encoder(do_as_told(told, tmp_path), SMALL)), timms_features(state)
    )


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_beside_the_weights_is_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "hook": Hostile(tmp_path / "made")}, tmp_path / "old.pt")
    assert "it holds posix.mkdir, which could run code and is not read" in refused(
        tmp_path / "old.pt"
    )
    assert not (tmp_path / "made").exists()


def test_names_of_which_only_some_have_a_prefix(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    saved = prefixed(state, "model.") | {"loss.weight": torch.ones(10)}
    for content in ({"state_dict": saved}, prefixed(saved, "module.")):
        torch.save(content, tmp_path / "old.pt")
        told = refused(tmp_path / "old.pt")
        assert (
            "80 names of weights begin with 'model.' and 'loss.weight' does not: if you trust the file"
            in told
        )
        assert torch.equal(
            features(load_encoder(do_as_told(told, tmp_path), SMALL)), timms_features(state)
        )


class Hook:
    """Stands for an object of the user's own program."""


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            lambda state: {"student": state, "teacher": state},
            "holds the keys student, teacher; if you trust",
        ),
        (lambda state: {"epoch": 3, **state}, "holds the keys epoch, "),
        (
            lambda state: [3, state],
            "should hold a dict of weights and holds a list; if you trust the file",
        ),
        (
            lambda state: (state, {"lr": 1}),
            "should hold a dict of weights and holds a tuple; if you trust the file",
        ),
    ],
)
def test_weights_beside_other_things_are_saved_as_told(
    save: Callable, message: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(save(state), tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt")
    assert message in told
    assert torch.equal(
        features(load_encoder(do_as_told(told, tmp_path), SMALL)), timms_features(state)
    )


def test_of_a_dict_with_a_strange_object_the_weights_are_saved_as_told(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": state, "hook": Hook()}, tmp_path / "old.pt")
    told = refused(tmp_path / "old.pt")
    assert "or of a dict of several things ['state_dict'] in place of .state_dict()" in told
    told = told.replace("weights_only=False).state_dict()", "weights_only=False)['state_dict']")
    assert torch.equal(
        features(load_encoder(do_as_told(told, tmp_path), SMALL)), timms_features(state)
    )


def test_weights_of_another_model_are_read_once_backbone_names_it(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "old.pt")
    assert "set backbone to the model that they are of" in refused(tmp_path / "old.pt")
    assert load_encoder(tmp_path / "old.pt", "resnet18").n_blocks == 5


def test_files_as_people_have_them_are_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pth", ".weights"):
        save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
        save(state, tmp_path / f"model{suffix}")
        assert torch.equal(
            features(load_encoder(tmp_path / f"model{suffix}", SMALL)), timms_features(state)
        )


def test_a_file_that_does_not_fit_is_told_in_one_sentence(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is fetched in its place."""
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: pytest.fail("a download")
    )
    lacking = {key: value for key, value in state.items() if "blocks.3" not in key}
    for saved, message in (
        (
            timm.create_model("resnet18").state_dict(),
            "it lacks 78 of 78, the first is cls_token, and it has 122 that",
        ),
        (
            lacking,
            "it lacks 12 of 78, the first is blocks.3.norm1.weight; set backbone to the model that they are of",
        ),
        (state | {"extra": torch.zeros(3)}, "it has 1 that the model has not, the first is extra"),
        (
            state | {"norm.bias": torch.zeros(3)},
            r"norm.bias: expected (64,), which timm's .* has, got (3,); set backb",
        ),
        (
            state | {"norm.bias": torch.full((WIDTH,), torch.nan)},
            "the weight norm.bias has 64 values that are not finite, .* put a whole one in its place, .* --force",
        ),
        ({}, f"should hold the weights of {SMALL} by name, .* and holds nothing"),
        ({"state_dict": 3}, "holds the keys state_dict"),
        ({"teacher": state, "student": state}, "holds the keys teacher, student"),
    ):
        torch.save(saved, tmp_path / "old.pt")
        assert re.search(
            message.replace("(", r"\(").replace(")", r"\)"), refused(tmp_path / "old.pt")
        )
    (tmp_path / "text").write_text("weights")
    assert (
        "text is not a torch file of weights (Unsupported operand 119); if it is your"
        in refused(tmp_path / "text")
    )


def test_the_weights_are_a_file_that_the_user_names(tmp_path: Path) -> None:
    params, own = tmp_path / "params.yaml", tmp_path / "own.safetensors"
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-eeg2"}
    params.write_text(yaml.safe_dump(values))
    with pytest.raises(
        InputError,
        match=f"download.weights_file is none: the weights of timm/{SMALL} are published",
    ):
        weights.main(params, f"timm/{SMALL}", tmp_path / "weights")
    make_random(SMALL, own.name, tmp_path)
    values["download"]["weights_file"] = str(own)
    params.write_text(yaml.safe_dump(values))
    weights.main(params, f"timm/{SMALL}", tmp_path / "weights")
    [copy] = (tmp_path / "weights").iterdir()
    assert copy.read_bytes() == own.read_bytes() and copy.stat().st_ino != own.stat().st_ino
    encoder, about = find_model(f"timm/{SMALL}").unaligned(copy)
    assert (encoder.n_blocks, about) == (6, {})
