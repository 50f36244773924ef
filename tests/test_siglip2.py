"""Against timm's own model, and against the resampling of OpenCV."""

import json
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
from timm.layers import GELUTanh
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.evaluate.similarities import settings_of
from pipeline.images.embeddings import read_about, read_embeddings
from pipeline.images.models import timm_models
from pipeline.images.models.siglip2 import (
    PREFIX,
    TIMM_NAME,
    OpenCvFraming,
    head_shapes,
    load_aligned,
    load_unaligned,
)
from pipeline.images.models.table import IMAGE_MODELS, OwnCheckpoint, find_alignment
from pipeline.images.models.vit import ImageEncoder
from stages import embed, weights
from tests.tiny import make_few_images

WIDTH = 64
MODEL = IMAGE_MODELS["siglip2_vitb16"]
ALIGNED = find_alignment("siglip2_vitb16", "alignet")
assert isinstance(ALIGNED, OwnCheckpoint)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins; biases and norms, which are all 0 or 1, are disturbed."""
    folder = tmp_path_factory.mktemp("siglip2")
    MODEL.stand_in(folder)
    generator = torch.Generator().manual_seed(0)
    for path in folder.iterdir():
        saved = safetensors.torch.load_file(path)
        for name, value in saved.items():
            if value.ndim == 1:
                saved[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
        safetensors.torch.save_file(saved, path)
    return folder


def of_timm(state: dict[str, Tensor], **options: Any) -> Any:
    """timm's own model with these weights, every one of them."""
    model = timm.create_model(
        "vit_base_patch16_siglip_224", num_classes=0, embed_dim=WIDTH, num_heads=1, **options
    )
    model.load_state_dict(state)
    return model.eval()


def picture(height: int = 300, width: int = 200) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def pooled(encoder: ImageEncoder, image: Image.Image) -> Tensor:
    with torch.inference_mode():
        return encoder(encoder.framing(image)[None].float() / 255)[0]


def test_the_base_is_timms_model_and_pictures(files: Path) -> None:
    encoder, notes = load_unaligned(files / MODEL.file)
    model = of_timm(safetensors.torch.load_file(files / MODEL.file))
    config: Any = timm.get_pretrained_cfg(TIMM_NAME)
    own = create_transform(
        config.input_size,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=1.0,
        crop_mode="squash",
    )
    with torch.inference_mode():
        expected = model(own(picture())[None])
    torch.testing.assert_close(pooled(encoder, picture()), expected, rtol=1e-5, atol=1e-5)
    assert (notes, encoder.n_blocks, config.hf_hub_id) == ({}, 12, f"timm/{TIMM_NAME}")
    assert MODEL.published[0].path.startswith(f"{config.hf_hub_id}/resolve/")


def test_alignet_s_is_timms_model_with_its_gelu_and_pictures(files: Path) -> None:
    encoder, notes = load_aligned(files / ALIGNED.file)
    saved = safetensors.torch.load_file(files / ALIGNED.file)
    state = {
        name.removeprefix(PREFIX): value for name, value in saved.items() if name.startswith(PREFIX)
    }
    model = of_timm(state, act_layer=GELUTanh)
    assert {type(block.mlp.act) for block in model.blocks} == {type(model.attn_pool.mlp.act)}

    pixels = torch.from_numpy(inter_cubic(np.array(picture()))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = model(pixels.float())
        with_exact_gelu = of_timm(state)(pixels.float())
    ours = pooled(encoder, picture())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert (ours - with_exact_gelu).abs().max() > 5e-4
    assert notes == {"model": "AligNet SigLIP2-B"}


def test_the_layout_is_that_of_the_published_file() -> None:
    """162 weights of the encoder and 6 of three heads, which are 377.8 MB in float32."""
    with torch.device("meta"):
        model = timm.create_model(TIMM_NAME, num_classes=0)
    of_encoder = [value.numel() for value in model.state_dict().values()]
    of_heads = [int(np.prod(shape)) for shape in head_shapes(768).values()]
    assert (len(of_encoder), len(of_heads)) == (162, 6)
    n_bytes = 4 * (sum(of_encoder) + sum(of_heads))
    assert 377_786_744 - n_bytes < 25_000  # the header of the file


def inter_cubic(pixels: np.ndarray, side: int = 224) -> np.ndarray:
    """OpenCV's INTER_CUBIC of 8-bit pictures (H, W, 3), by its formula: cubic, a = -0.75."""

    def resize(values: np.ndarray) -> np.ndarray:
        """(n, ...) -> (side, ...), along the first axis."""
        n = len(values)
        place = (np.arange(side) + 0.5) * n / side - 0.5
        left = np.floor(place).astype(int)
        result = np.zeros((side, *values.shape[1:]))
        for step in (-1, 0, 1, 2):
            distance = np.abs(place - (left + step))
            near = 1.25 * distance**3 - 2.25 * distance**2 + 1
            far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
            weight = np.where(distance <= 1, near, far).reshape(-1, *[1] * (values.ndim - 1))
            result += weight * values[np.clip(left + step, 0, n - 1)]
        return result

    rows = resize(pixels.astype(float))
    both = resize(rows.swapaxes(0, 1)).swapaxes(0, 1)
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def pictures() -> list[np.ndarray]:
    """As large as those of THINGS, and of other shapes: noise, and something smooth."""
    rng = np.random.default_rng(0)
    noise = [
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for shape in ((500, 500), (375, 500), (640, 231), (224, 224), (100, 90))
    ]
    return [*noise, np.array(picture(500, 500))]


def test_pictures_are_resized_by_opencv_s_formula() -> None:
    for pixels in pictures():
        ours = OpenCvFraming()(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
        difference = np.abs(ours.astype(int) - inter_cubic(pixels))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-4


def test_pictures_are_resized_as_opencv_does() -> None:
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV is not installed (pip install opencv-python-headless)"
    )
    for pixels in pictures():
        ours = OpenCvFraming()(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
        expected = cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_CUBIC)
        difference = np.abs(ours.astype(int) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-4


def test_the_resize_is_not_the_antialiased_one() -> None:
    noise = Image.fromarray(pictures()[0])
    antialiased = np.array(noise.resize((224, 224), Image.Resampling.BICUBIC))
    ours = OpenCvFraming()(noise).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - antialiased).mean() > 20


def test_both_are_embedded_and_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    make_few_images(tmp_path)
    params = Path("params.yaml")
    weights.main(params, "siglip2_vitb16", tmp_path / "weights")
    caches = {kind: tmp_path / f"{kind}.h5" for kind in ("none", "alignet")}
    inputs = tmp_path / "images", tmp_path / "images.csv", tmp_path / "weights", caches["none"]
    for kind, cache in caches.items():
        embed.main(params, "siglip2_vitb16", kind, *inputs, cache)

    values = {kind: read_embeddings(cache, "last").values for kind, cache in caches.items()}
    assert values["none"].shape == values["alignet"].shape == (11, WIDTH)
    assert np.abs(values["none"] - values["alignet"]).max() > 0.1
    about = {kind: read_about(cache)[0] for kind, cache in caches.items()}
    assert "caveat" not in about["none"]
    assert "the test concepts among them" in about["alignet"]["caveat"]
    assert about["alignet"]["checkpoint"] == "alignet_siglip2_b.safetensors"
    assert json.loads(about["alignet"]["aligned_by"]) == {"model": "AligNet SigLIP2-B"}
    assert "without antialiasing, as OpenCV's INTER_CUBIC" in about["alignet"]["preprocessing"]
    both = [settings_of({}, [], cache)["embeddings"] for cache in caches.values()]
    differing = {key for key in both[0] | both[1] if both[0].get(key) != both[1].get(key)}
    assert differing == {"checkpoint", "checkpoint_sha256", "preprocessing"}


def test_the_stand_in_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        MODEL.stand_in(tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.norm.weight": None}, "the weight encoder.norm.weight: expected .* got nothing"),
        ({"encoder.norm.weight": torch.ones(65)}, r"expected \(a multiple of 64,\), got \(65,\)"),
        ({"encoder.blocks.3.mlp.fc1.bias": None}, "fc1.bias: expected .256,., got nothing"),
        ({"i1k_head.bias": torch.ones(9)}, r"i1k_head.bias: expected \(1000,\), got \(9,\)"),
        ({"extra": torch.ones(3)}, r"the weight extra: expected nothing, got \(3,\)"),
        ({"encoder.pos_embed": torch.full((1, 196, WIDTH), torch.nan)}, "are not finite"),
        ({"encoder.norm.bias": torch.ones(WIDTH, dtype=torch.int)}, "should hold the weights of"),
    ],
)
def test_another_file_is_told_in_one_sentence(
    change: dict[str, Any], message: str, files: Path, tmp_path: Path
) -> None:
    saved = safetensors.torch.load_file(files / ALIGNED.file) | change
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: v for name, v in saved.items() if v is not None}, path)
    with pytest.raises(InputError, match=message) as error:
        load_aligned(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_one_is_not_taken_for_the_other(files: Path) -> None:
    with pytest.raises(InputError, match="the weight encoder.norm.weight: expected .*got nothing"):
        load_aligned(files / MODEL.file)
    with pytest.raises(InputError, match="the weight norm.weight: expected .* got nothing"):
        load_unaligned(files / ALIGNED.file)


def test_a_model_of_timm_does_not_take_it(tmp_path: Path) -> None:
    """With timm's pictures and GELU its embeddings would be wrong, and nothing would tell."""
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    saved = {f"{PREFIX}{name}": torch.zeros(value.shape) for name, value in state.items()}
    saved |= {name: torch.zeros(shape) for name, shape in head_shapes(192).items()}
    path = tmp_path / "alignet.safetensors"
    safetensors.torch.save_file(saved, path)
    with pytest.raises(InputError, match="alignet.safetensors: 150 of 156 names") as error:
        timm_models.load_encoder(path, "vit_tiny_patch16_224")
    sentence = str(error.value)
    assert "was trained on as a part of another model" in sentence and "\n" not in sentence
    assert "set backbone to siglip2_vitb16 and alignment to alignet" in sentence


def test_whose_settings_a_file_of_the_user_gets_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-eeg2"}
    values["download"]["weights_file"] = str(tmp_path / "own.pt")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    torch.save({"weight": nn.Linear(2, 2).weight.data}, tmp_path / "own.pt")
    weights.main(tmp_path / "params.yaml", "timm/test_vit4", tmp_path / "weights")
    printed = " ".join(capsys.readouterr().out.split())
    assert "own.pt: gets the pictures and activations that timm has for timm/test_vit4" in printed
