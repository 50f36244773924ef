"""The encoder made fast against the encoder as it was loaded."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from pipeline.images.acceleration import accelerate
from pipeline.images.models.dreamsim import load_encoder
from pipeline.images.models.vit import ImageEncoder
from pipeline.images.stand_ins.dreamsim import make_checkpoint

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
# A plain ViT; one with layer scale; three in a row, with QuickGELU, another LayerNorm and projections among them.
BACKBONES = ["synclr_vitb16", "dinov2_vitb14", "ensemble"]


@torch.inference_mode()
def run(encoder: ImageEncoder, blocks: tuple, tokens: str) -> list[torch.Tensor]:
    return encoder(IMAGES, blocks, tokens)


@dataclass(frozen=True)
class Plain:
    """A small encoder as it was loaded; `expected(blocks, tokens)` is what it gives."""

    encoder: ImageEncoder
    expected: Callable[[tuple, str], list[torch.Tensor]]


@pytest.fixture(scope="module", params=BACKBONES)
def plain(request, tmp_path_factory) -> Plain:
    folder = tmp_path_factory.mktemp("weights")
    make_checkpoint(request.param, folder, embed_dim=64)
    encoder, _ = load_encoder(
        folder / f"dreamsim_{request.param}_checkpoint.zip", request.param, "aligned"
    )
    return Plain(encoder, cache(lambda blocks, tokens: run(encoder, blocks, tokens)))


@pytest.fixture(params=["this CPU", "no AVX-512"])
def capability(request, monkeypatch) -> None:
    """Both ways on any machine that has the wider registers."""
    if request.param == "no AVX-512":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("tokens", ["cls", "mean"])
@pytest.mark.parametrize("blocks", [("last",), (3, "last"), (2, 9)], ids=str)
def test_float32_is_the_same(plain, capability, blocks, tokens):
    fast = copy.deepcopy(plain.encoder)
    accelerate(fast, blocks, tokens, "float32", CPU)
    for expected, got in zip(
        plain.expected(blocks, tokens), run(fast, blocks, tokens), strict=True
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("tokens", ["cls", "mean"])
def test_bfloat16_is_near(plain, capability, tokens):
    fast = copy.deepcopy(plain.encoder)
    blocks = (6, "last")
    accelerate(fast, blocks, tokens, "bfloat16", CPU)
    for expected, got in zip(
        plain.expected(blocks, tokens), run(fast, blocks, tokens), strict=True
    ):
        assert torch.cosine_similarity(expected, got).min() > 0.999
        assert not torch.equal(expected, got)
