import copy
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.atm import AtmS, sinusoids
from pipeline.eeg_encoders.braindecode_networks import LEAST_SAMPLES
from pipeline.eeg_encoders.encoder import Dropout
from pipeline.eeg_encoders.fast_nice_cpu import convolve_in_chunks, fast_elu
from pipeline.eeg_encoders.table import EEG_ENCODERS, is_pretrained, make_eeg_encoder
from pipeline.errors import InputError
from pipeline.retrieval import symmetric_cross_entropy
from pipeline.train.model import Projector

OWN = ("nice-recipe", "nice", "atm-s")
NOT_PRETRAINED = [name for name in EEG_ENCODERS if not is_pretrained(name)]
WITH_WEIGHTS = [name for name in NOT_PRETRAINED if name not in ("flatten", "ridge")]
SHAPES = st.tuples(
    st.integers(8, 40), st.integers(1, 4), st.integers(75, 100)
)  # batch (chunks are of 16), C, T


def make(
    name: str, n_chans: int, n_times: int, sfreq: float = 100.0, dropout: float = 0.5
) -> nn.Module:
    if name in LEAST_SAMPLES:
        pytest.importorskip("braindecode")
    return make_eeg_encoder(name, n_chans=n_chans, n_times=n_times, sfreq=sfreq, dropout=dropout)


def with_large_weights(encoder: nn.Module) -> nn.Module:
    """Weights large enough that a wrong layer would show in the outputs."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return encoder


def contrastive_loss(features: Tensor, targets: Tensor) -> Tensor:
    return symmetric_cross_entropy(5 * F.normalize(features, dim=1) @ F.normalize(targets, dim=1).T)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("name", OWN)
@settings(max_examples=5, deadline=None)
@given(SHAPES, st.floats(-20, 20), st.integers(0, 2**31))
def test_the_composed_encoder_equals_the_plain_layers(name, dtype, tolerance, shape, offset, seed):
    """Outputs, loss, gradients and running statistics, against the plain layers in double precision."""
    torch.manual_seed(seed)
    batch, n_chans, n_times = shape
    fast = with_large_weights(make(name, n_chans, n_times, dropout=0.0)).to(dtype)
    plain = copy.deepcopy(fast).double()
    eeg = (torch.randn(batch, n_chans, n_times) + offset).to(dtype)
    targets = torch.randn(batch, fast.output_size)
    for training in (True, False):
        fast.train(training), plain.train(training)
        got, expected = fast(eeg), plain.plain(eeg.double())
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
        loss, expected_loss = (
            contrastive_loss(got, targets.to(dtype)),
            contrastive_loss(expected, targets.double()),
        )
        torch.testing.assert_close(loss.double(), expected_loss, rtol=tolerance, atol=tolerance)
        if training:
            loss.backward(), expected_loss.backward()
    for (parameter, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        # The second term is for those that a BatchNorm takes out: their true gradient is zero.
        assert (p.grad - q.grad).norm() <= tolerance * (q.grad.norm() + 0.01), parameter
    for buffer, value in fast.named_buffers():
        torch.testing.assert_close(
            value.double(), plain.get_buffer(buffer).double(), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", OWN)
def test_the_gradient_reaches_the_eeg_as_through_the_plain_layers(name):
    """In atm-s the transformer is trained through the composed convolution and its moments."""
    fast = with_large_weights(make(name, 3, 90, dropout=0.0)).double()
    plain = copy.deepcopy(fast)
    eeg = torch.randn(8, 3, 90, dtype=torch.float64)
    targets = torch.randn(8, fast.output_size, dtype=torch.float64)
    a, b = (eeg.clone().requires_grad_() for _ in range(2))
    contrastive_loss(fast(a), targets).backward()
    contrastive_loss(plain.plain(b), targets).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_each_thread_takes_a_part_of_the_batch(name):
    """101 samples: neither parts nor chunks are all of one size."""
    encoder = with_large_weights(make(name, 3, 90, dropout=0.0)).double()
    eeg = torch.randn(101, 3, 90, dtype=torch.float64)
    targets = torch.randn(101, encoder.output_size, dtype=torch.float64)
    results = []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        copied, copied_eeg = copy.deepcopy(encoder), eeg.clone().requires_grad_()
        contrastive_loss(copied(copied_eeg), targets).backward()
        with torch.inference_mode():
            scored = copied.eval()(eeg)
        assert torch.get_num_threads() == n_threads
        results.append([scored, copied_eeg.grad, *(p.grad for p in copied.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(17, 100), (63, 250), (271, 201), (2, 99)])
@pytest.mark.parametrize("name", NOT_PRETRAINED)
def test_every_encoder_takes_any_channels_and_samples(name, shape):
    encoder = make(name, *shape)
    features = encoder(torch.randn(3, *shape))
    assert features.shape == (3, encoder.output_size)
    assert features.isfinite().all()
    if name in WITH_WEIGHTS:
        features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    "name", [name for name in NOT_PRETRAINED if name not in ("shallow", "deep4")]
)
def test_one_channel_is_enough(name):
    encoder = make(name, 1, 100)
    assert encoder(torch.randn(3, 1, 100)).shape == (3, encoder.output_size)


# Of the encoders that need a number of samples; another one may take any
LEAST = {"nice-recipe": 65, "nice": 75, "atm-s": 75, **LEAST_SAMPLES}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_least_number_of_samples_works_and_one_less_is_refused(name, least):
    encoder = make(name, 4, least)
    assert encoder(torch.randn(2, 4, least)).shape == (2, encoder.output_size)
    with pytest.raises(
        InputError, match=f"{name} needs at least {least} samples, not {least - 1}: widen"
    ):
        make(name, 4, least - 1)


def test_attention_starts_as_plain_linears_do():
    """ATM's code has a Linear each for query, key, value and output; also with as many parameters as it should have."""
    torch.manual_seed(0)
    encoder, linear = AtmS(63, 250, 250.0, 0.5), nn.Linear(252, 252)
    attention = encoder.attend.self_attn
    pairs = [
        *zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True),
        (attention.out_proj.weight, attention.out_proj.bias),
    ]
    for weight, bias in pairs:
        assert weight.std().item() == pytest.approx(linear.weight.std().item(), rel=0.02)
        assert weight.std().item() == pytest.approx(0.0364, abs=0.0004)
        assert bias.std().item() == pytest.approx(linear.bias.std().item(), rel=0.2)
        assert max(weight.abs().max(), bias.abs().max()) <= 252**-0.5


def test_atm_has_the_parameters_of_its_layers():
    """63 channels at 250 Hz. The code's projector is ours; its width is 250, and its heads have 62."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    def expected(width: int, in_heads: int) -> int:
        embedding = 251 * width
        attention = 3 * (width + 1) * in_heads + (in_heads + 1) * width
        feedforward = (width + 1) * 256 + 257 * width
        norms = 3 * 2 * width
        convolutions = (25 + 1) * 40 + 80 + (63 * 40 + 1) * 40 + 80 + (40 + 1) * 40
        return embedding + attention + feedforward + norms + convolutions

    assert count(AtmS(63, 250, 250.0, 0.5)) == expected(252, 252) == 553_000
    # Of a subject, of the time of day and of a mask: 10 + 1 + 1 + 1 tokens and a Linear of 4 inputs
    assert expected(250, 248) + 13 * 250 + 4 * 250 == 549_680
    subject_layers, temperature = 2 * 251 * 250, 1
    assert 549_680 + count(Projector(1440, 1024, 0.5)) + subject_layers + temperature == 3_202_413


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_dropout_is_applied_in_training_only_and_a_state_comes_back(name, tmp_path):
    torch.manual_seed(0)
    encoder, other = make(name, 4, 120), make(name, 4, 120)
    eeg = torch.randn(8, 4, 120)
    assert not torch.equal(encoder(eeg), encoder(eeg))
    encoder.eval(), other.eval()
    assert not torch.equal(encoder(eeg), other(eeg))
    safetensors.torch.save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert torch.equal(encoder(eeg), other(eeg))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_seed_decides_the_weights(name):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in make(name, 4, 120).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("name", OWN)
def test_half_precision_changes_the_features_little(name):
    encoder = with_large_weights(make(name, 5, 110, dropout=0.0))
    eeg = torch.randn(16, 5, 110)
    expected = encoder(eeg)
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder(eeg)
    assert F.cosine_similarity(got.float(), expected).min() > 0.99


@pytest.mark.parametrize("name", OWN)
def test_half_precision_changes_the_gradients_little_and_keeps_their_type(name):
    """A value of bfloat16 is off by up to 0.4 %; a gradient comes through some ten of them."""
    encoder = with_large_weights(make(name, 5, 110, dropout=0.0))
    eeg, targets = torch.randn(64, 5, 110), torch.randn(64, encoder.output_size)
    encoders = encoder, copy.deepcopy(encoder)
    for one, enabled in zip(encoders, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = one(eeg)
        contrastive_loss(features.float(), targets).backward()
    for (parameter, p), q in zip(
        encoders[0].named_parameters(), encoders[1].parameters(), strict=True
    ):
        assert q.grad.dtype == torch.float32, parameter
        assert (q.grad - p.grad).norm() <= 0.03 * (p.grad.norm() + 0.01), parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolutions_sum_the_gradients_of_weights_without_loss(dtype):
    """Against the same in double precision, of the values as bfloat16 has them: many chunks are no worse than one."""
    torch.manual_seed(0)
    shapes = (1000, 2, 70), (65, 40), (40,), (80, 40), (1000, 6, 40)
    eeg, *weights, of_output = (torch.randn(shape).mul(0.2).to(dtype) for shape in shapes)
    results = []
    for used in (dtype, torch.float64):
        leaves = [weight.detach().to(used).requires_grad_() for weight in weights]
        output = convolve_in_chunks(eeg.to(used), *leaves, 1)
        output.backward(of_output.to(used))
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        error = (got.double() - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]


@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_threads_give_the_same_bits(autocast):
    encoder = with_large_weights(make("nice-recipe", 3, 90, dropout=0.0))
    eeg = torch.randn(101, 3, 90)
    gradients = []
    torch.set_num_threads(2)
    for _ in range(2):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            encoder(eeg).float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_elu_is_torchs_and_passes_on_what_is_not_a_number(dtype):
    """In every place: processors treat the values of a block that is full and the rest after it differently."""
    x = (torch.randn(1003, dtype=torch.float64) * 20).to(dtype)
    x[:3] = torch.tensor([0.0, torch.inf, -torch.inf])
    x, y = x.clone().requires_grad_(), x.double().requires_grad_()
    got, expected = fast_elu(x), F.elu(y)
    got.sum().backward(), expected.sum().backward()
    accuracy = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=accuracy, atol=accuracy)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=accuracy, atol=accuracy)
    for place in range(len(x)):
        broken = x.detach().clone()
        broken[place] = torch.nan
        assert fast_elu(broken).isnan().nonzero().tolist() == [[place]]


def test_the_recipe_has_794_thousand_parameters():
    encoder = make("nice-recipe", 17, 100)
    assert encoder.output_size == 1440
    modules = [encoder, Projector(encoder.output_size, 256, 0.5), Projector(768, 256, 0.5)]
    assert round(sum(p.numel() for module in modules for p in module.parameters()) / 1000) == 794


def test_nice_and_atm_s_have_the_published_number_of_features():
    """1440 for 63 channels and 250 samples: the input of the published projectors."""
    assert make("nice", 63, 250).output_size == make("atm-s", 63, 250).output_size == 1440


@pytest.mark.parametrize(
    ("name", "n_times", "sfreq", "published", "head"),
    [
        ("eegnet", 512, 128, 2_484, 16 * 16 * 4 + 4),
        ("shallow", 1000, 250, 46_084, 40 * 61 * 4 + 4),
        ("deep4", 1000, 250, 282_879, 200 * 7 * 4 + 4),
        ("eegconformer", 1000, 250, 789_572, (40 * 61 + 1) * 256 + (256 + 1) * 32 + (32 + 1) * 4),
    ],
)
def test_braindecodes_networks_keep_all_but_their_head(name, n_times, sfreq, published, head):
    """Against the counts in braindecode's table of models, for 22 channels and 4 classes."""
    encoder = make(name, 22, n_times, sfreq)
    assert sum(p.numel() for p in encoder.parameters()) == published - head


def test_flatten_is_the_eeg_channel_after_channel_of_one_model_or_many():
    encoder = make("flatten", 3, 5)
    eeg = torch.randn(2, 4, 3, 5)
    assert encoder.output_size == 15 and not list(encoder.parameters())
    assert torch.equal(encoder(eeg[0]), eeg[0].view(4, 15))
    assert torch.equal(encoder(eeg), torch.stack([encoder(eeg[0]), encoder(eeg[1])]))


def test_deep4_keeps_its_pools_where_the_eeg_is_short():
    """Kernels of 5 and pools of 2: 100 -> 96 -> 48 -> 44 -> 22 -> 18 -> 9 -> 5 -> 2, with 200 filters."""
    assert make("deep4", 17, 100).output_size == 2 * 200


def test_atm_s_knows_which_channel_is_which():
    """A transformer without positions would permute its tokens with the channels."""
    encoder = AtmS(6, 80, 100.0, 0.5).eval()
    eeg = torch.randn(2, 6, 80)
    swapped = encoder.attended(eeg.flip(1)).flip(1)
    assert not torch.allclose(encoder.attended(eeg), swapped, atol=1e-2)
    encoder.positions.zero_()
    torch.testing.assert_close(
        encoder.attended(eeg), encoder.attended(eeg.flip(1)).flip(1), rtol=1e-4, atol=1e-5
    )


def test_positions_are_sines_and_cosines():
    positions = sinusoids(3, 4)
    angles = torch.tensor([1.0, 1.0, 0.01, 0.01]) * torch.arange(3.0)[:, None]
    torch.testing.assert_close(positions[:, 0::2], angles[:, 0::2].sin())
    torch.testing.assert_close(positions[:, 1::2], angles[:, 1::2].cos())


def test_an_unknown_encoder_is_refused():
    with pytest.raises(InputError, match="nonsense is not known: choose one of nice-recipe, nice"):
        make("nonsense", 17, 100)
    with pytest.raises(InputError, match="ATMS is not known: .*; is it atm-s[?]$"):
        make("ATMS", 17, 100)


@pytest.mark.parametrize("name", ["shallow", "deep4"])
def test_what_cannot_take_one_channel_says_so(name):
    with pytest.raises(InputError, match="at least 2 channels"):
        make(name, 1, 100)


@pytest.mark.parametrize("name", LEAST_SAMPLES)
def test_without_braindecode_the_command_that_installs_it_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    with pytest.raises(
        InputError, match="""pip install -e '.\\[braindecode\\]' -c constraints.txt"""
    ):
        make_eeg_encoder(name, n_chans=17, n_times=100, sfreq=100.0, dropout=0.5)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
def test_dropout_drops_the_share_asked_for_and_keeps_the_mean(p):
    torch.manual_seed(0)
    dropout, x = (
        Dropout(p, 333),
        torch.ones(101, 333, requires_grad=True),
    )  # 4 does not divide the number of elements
    dropped = dropout(x)
    assert {round(value, 4) for value in dropped.unique().tolist()} <= {0.0, round(1 / (1 - p), 4)}
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    assert not torch.equal(dropout(x), dropped) or p == 0
    assert torch.equal(dropout.eval()(x), x)
