"""The encoder made fast against the encoder as it was loaded."""

from pathlib import Path

import pytest
import torch

from pipeline.images.acceleration import accelerate
from pipeline.images.dreamsim import load_encoder
from pipeline.images.dreamsim_stand_in import make_checkpoint
from pipeline.images.vit import ImageEncoder

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
# A plain ViT; one with layer scale; three in a row, with QuickGELU, another LayerNorm and projections among them.
BACKBONES = ["synclr_vitb16", "dinov2_vitb14", "ensemble"]


@pytest.fixture(scope="module", params=BACKBONES)
def load(request, tmp_path_factory):
    """`load()` gives a fresh copy of a small encoder."""
    folder = tmp_path_factory.mktemp("weights")
    make_checkpoint(request.param, folder, embed_dim=64)
    path: Path = folder / f"dreamsim_{request.param}_checkpoint.zip"
    return lambda: load_encoder(path, request.param, "aligned")[0]


@torch.inference_mode()
def run(encoder: ImageEncoder, blocks: list, tokens: str) -> list[torch.Tensor]:
    return encoder(IMAGES, blocks, tokens)


@pytest.fixture(params=["this CPU", "no AVX-512"])
def capability(request, monkeypatch) -> None:
    """Both ways on any machine that has the wider registers."""
    if request.param == "no AVX-512":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("tokens", ["cls", "mean"])
@pytest.mark.parametrize("blocks", [["last"], [3, "last"], [2, 9]], ids=str)
def test_float32_is_the_same(load, capability, blocks, tokens):
    plain, fast = load(), load()
    accelerate(fast, blocks, tokens, "float32", CPU)
    for expected, got in zip(run(plain, blocks, tokens), run(fast, blocks, tokens), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("tokens", ["cls", "mean"])
def test_bfloat16_is_near(load, capability, tokens):
    plain, fast = load(), load()
    accelerate(fast, [6, "last"], tokens, "bfloat16", CPU)
    for expected, got in zip(run(plain, [6, "last"], tokens), run(fast, [6, "last"], tokens), strict=True):
        assert torch.cosine_similarity(expected, got).min() > 0.999
        assert not torch.equal(expected, got)
