"""Against open_clip, transformers and DINO's own code: the same weights, the same pictures."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline.errors import InputError
from pipeline.images.models.published_vits import VITS, load_encoder
from pipeline.images.models.table import IMAGE_MODELS
from pipeline.untrusted.weights import read_weights
from tests.dreamsim_offline import make_dino

WIDTH, PROJECTED = 64, 48
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module", params=VITS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random weights in the published layout; biases, norms and scales are disturbed, which all are 0 or 1."""
    folder = tmp_path_factory.mktemp(name)
    IMAGE_MODELS[name].stand_in(folder)
    path = folder / IMAGE_MODELS[name].file
    rewrite(path, disturb)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    saved = read_weights(path)
    saved = {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in saved.items()
    }
    change(saved.get("state_dict", saved))
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(saved, path)
    else:
        torch.save(saved, path)


def disturb(weights: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for key, value in weights.items():
        if value.ndim == 1 and value.is_floating_point():
            weights[key] = value + 0.1 * torch.randn(value.shape, generator=generator)


def pictures() -> list[Image.Image]:
    """Noise, and something smooth, of several shapes."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)) for _ in range(2)]
    noise = Image.fromarray(rng.integers(0, 256, (500, 500, 3), dtype=np.uint8))
    return [small[0].resize((500, 500)), small[1].resize((640, 231)), noise]


def peer_of(name: str, path: Path) -> Callable[[Tensor], Tensor]:
    """The authors' own network with these weights, every one of them."""
    saved = read_weights(path)
    if name == "clip_vitl14":
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "projection_dim": PROJECTED}
        config = CLIPVisionConfig(
            **sizes, num_hidden_layers=24, num_attention_heads=1, patch_size=14
        )
        assert config.hidden_act == "quick_gelu" and config.image_size == 224
        model = CLIPVisionModelWithProjection(config)
        own = {
            key: value
            for key, value in saved.items()
            if key.startswith("vis") and "position_ids" not in key
        }
        model.load_state_dict(own)
        return lambda pixels: model.eval()(pixels).image_embeds
    if name.startswith("open_clip"):
        state = {
            key.removeprefix("module."): value
            for key, value in saved.get("state_dict", saved).items()
        }
        model = VisionTransformer(
            224, 14, WIDTH, 24, 1, 4.0, output_dim=PROJECTED, act_layer=nn.GELU
        )
        model.load_state_dict(
            {key[7:]: value for key, value in state.items() if key.startswith("visual.")}
        )
    else:
        model = (
            make_dino(WIDTH, 8)
            if name == "dino_vitb8"
            else make_dino(WIDTH, 14, depth=24, dinov2=True)
        )
        model.load_state_dict(saved)
    return model.eval()


def transform_of(name: str) -> Callable[[Image.Image], Tensor]:
    """As thingsvision prepares a picture: with open_clip's or CLIP's own function, else with torchvision's."""
    tag = {"clip_vitl14": "openai", "open_clip_vitl14_laion400m": "laion400m_e32"} | {
        "open_clip_vitl14_laion2b": "laion2b_s32b_b82k"
    }
    if name in tag:
        config = open_clip.get_pretrained_cfg("ViT-L-14", tag[name])
        return open_clip.image_transform(
            224, is_train=False, mean=config["mean"], std=config["std"]
        )
    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(*IMAGENET),
    ]
    return transforms.Compose(steps)


def test_pictures_and_embeddings_are_the_authors_own(name: str, file: Path) -> None:
    encoder, own, theirs = load_encoder(file, name), transform_of(name), []
    images = torch.stack([encoder.framing(picture) for picture in pictures()]).float() / 255
    normalised = torch.stack([own(picture.convert("RGB")) for picture in pictures()])
    vit = encoder.vits[0]
    torch.testing.assert_close((images - vit.mean) / vit.sd, normalised, rtol=0, atol=1e-6)
    with torch.inference_mode():
        [ours] = encoder(images)
        theirs = peer_of(name, file)(normalised)
    assert theirs.std() > 0.3
    print(f"{name}: largest difference {(ours - theirs).abs().max():.1e}")  # shown by pytest -rP
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_the_architecture_is_what_open_clip_has_for_that_name() -> None:
    config = open_clip.get_model_config("ViT-L-14")
    for name, tag in (("clip_vitl14", "openai"), ("open_clip_vitl14_laion2b", "laion2b_s32b_b82k")):
        ours, quick = (
            VITS[name].architecture,
            open_clip.get_pretrained_cfg("ViT-L-14", tag).get("quick_gelu", False),
        )
        assert (ours.n_blocks, ours.patch_size) == (
            config["vision_cfg"]["layers"],
            config["vision_cfg"]["patch_size"],
        )
        assert quick == (ours.activation is not nn.GELU) == (name == "clip_vitl14")
    assert not open_clip.get_pretrained_cfg("ViT-L-14", "laion400m_e32").get("quick_gelu", False)


def test_the_files_are_where_open_clip_gets_them() -> None:
    of_laion400m = IMAGE_MODELS["open_clip_vitl14_laion400m"].published[0]
    url = open_clip.get_pretrained_cfg("ViT-L-14", "laion400m_e32")["url"]
    assert (
        url == f"https://github.com/mlfoundations/open_clip/releases/download/{of_laion400m.path}"
    )
    of_laion2b = IMAGE_MODELS["open_clip_vitl14_laion2b"].published[0]
    assert of_laion2b.path.startswith(
        open_clip.get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k")["hf_hub"]
    )


def test_the_stand_in_has_the_same_bytes_each_time(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        IMAGE_MODELS[name].stand_in(tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# Faults


def lose_a_bias(weights: dict) -> None:
    del weights[next(key for key in weights if re.search(r"(blocks|layers)\.3\..*bias", key))]


def add_one(weights: dict) -> None:
    prefix = {
        "cls_token": "",
        "visual.class_embedding": "visual.",
        "module.visual.class_embedding": "module.visual.",
    }
    found = [start for key, start in prefix.items() if key in weights] or ["vision_model."]
    weights[f"{found[0]}extra"] = torch.zeros(3)


def widen(weights: dict) -> None:
    key = next(key for key in weights if "class_embedding" in key or key == "cls_token")
    weights[key] = torch.zeros(65)


def empty(weights: dict) -> None:
    weights.clear()
    weights["logit_scale"] = torch.tensor(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_a_bias, r"the weight blocks\.3\..*bias: expected .*, got (nothing|.128,.)"),
        (add_one, "the weight extra: expected nothing, got .3,."),
        (widen, "cls_token: expected .1, 1, a multiple of 64."),
        (empty, "should hold the weights of|got nothing"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(
    name: str, file: Path, change, message, tmp_path: Path
) -> None:
    damaged = tmp_path / file.name
    damaged.write_bytes(file.read_bytes())
    rewrite(damaged, change)
    with pytest.raises(InputError, match=message) as error:
        load_encoder(damaged, name)
    assert str(damaged) in str(error.value) and "\n" not in str(error.value)


def test_another_models_file_is_refused(name: str, file: Path) -> None:
    alike = {"open_clip_vitl14_laion400m", "open_clip_vitl14_laion2b"}  # which differ in no shape
    for other in VITS:
        if other != name and not {name, other} <= alike:
            with pytest.raises(InputError, match="another model's"):
                load_encoder(file, other)


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_is_no_file_of_weights_is_told_and_runs_nothing(
    name: str, file: Path, tmp_path: Path
) -> None:
    program = torch.jit.script(nn.Linear(2, 2))
    whole = file.read_bytes()
    for number, write in enumerate(
        (
            lambda path: path.write_bytes(whole[: len(whole) // 2]),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"<html>{not a model}"),
            lambda path: torch.save({"visual.x": Marker(tmp_path / "marker")}, path),
            lambda path: torch.save([1, 2], path),
            lambda path: torch.jit.save(program, str(path)),
        )
    ):
        path = tmp_path / f"{number}{file.suffix}"
        write(path)
        with pytest.raises(
            InputError, match="is not a (torch|safetensors) file|should hold a dict"
        ) as error:
            load_encoder(path, name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()
