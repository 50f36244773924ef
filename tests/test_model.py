import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import InputError
from pipeline.model import ContrastiveModel, NiceEncoder, load_model, save_model

SHAPES = st.tuples(st.integers(8, 40), st.integers(1, 4), st.integers(68, 90))  # batch (chunks are of 32), C, T


def encoder_with_large_weights(n_chans: int, n_times: int, dropout: float = 0.0) -> NiceEncoder:
    """Weights large enough that a wrong layer would show in the outputs."""
    encoder = NiceEncoder(n_chans, n_times, dropout)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return encoder


@settings(max_examples=10, deadline=None)
@given(SHAPES, st.floats(-20, 20), st.integers(0, 2**31))
def test_the_composed_convolution_equals_the_plain_layers(shape, offset, seed):
    """Outputs, gradients and running statistics, against the plain layers in double precision."""
    torch.manual_seed(seed)
    batch, n_chans, n_times = shape
    fast = encoder_with_large_weights(n_chans, n_times)
    plain = copy.deepcopy(fast).double()
    eeg = torch.randn(batch, n_chans, n_times) + offset
    weight = torch.randn(batch, fast.output_size)
    for training in (True, False):
        fast.train(training), plain.train(training)
        got, expected = fast(eeg), plain.plain(eeg.double())
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)
        if training:
            (got * weight).sum().backward()
            (expected * weight.double()).sum().backward()
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if name != "temporal.bias":  # the BatchNorm after it takes it out: its true gradient is zero
            assert (p.grad - q.grad).norm() <= 2e-3 * q.grad.norm() + 1e-6, name
    for name, buffer in fast.named_buffers():
        torch.testing.assert_close(buffer.double(), plain.get_buffer(name).double(), rtol=1e-3, atol=1e-4)


def test_dropout_is_applied_in_training_only():
    encoder = encoder_with_large_weights(17, 100, dropout=0.5)
    eeg = torch.randn(8, 17, 100)
    assert not torch.equal(encoder(eeg), encoder(eeg))
    encoder.eval()
    torch.testing.assert_close(encoder(eeg), encoder.plain(eeg), rtol=1e-4, atol=1e-4)


def test_the_recipe_has_794_thousand_parameters():
    model = ContrastiveModel(n_chans=17, n_times=100, embedding_size=768, projection_size=256)
    assert model.eeg_encoder.output_size == 1440
    assert round(sum(p.numel() for p in model.parameters()) / 1000) == 794


def test_too_short_eeg_is_refused():
    with pytest.raises(InputError, match="at least 65 samples, not 50"):
        NiceEncoder(17, 50, 0.5)


def test_a_saved_model_comes_back(tmp_path):
    model = ContrastiveModel(n_chans=5, n_times=80, embedding_size=12, projection_size=8).eval()
    save_model(model, tmp_path, {"seed": 3})
    loaded, notes = load_model(tmp_path)
    eeg = torch.randn(4, 5, 80)
    assert torch.equal(model.embed_eeg(eeg), loaded.embed_eeg(eeg))
    assert notes["seed"] == 3
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="no trained model"):
        load_model(tmp_path)
