"""Each recipe of params/ beside its authors' code: layers, first weights, temperature, learning rates.

Each code is written out here in plain torch, from what was read in it. The sizes are the published ones.
`docs/protocols.md` tells what of a code a recipe cannot say.
"""

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from dvc.utils.hydra import apply_overrides
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.atm import AtmS
from pipeline.params import Params, read_params
from pipeline.train.model import ContrastiveModel, ModelSizes, logits
from pipeline.train.optim import make_optimizer

CLIP_START = math.log(
    1 / 0.07
)  # of the parameter that says the temperature, in all codes that learn it
N_SHOWN = 16  # responses and images in a comparison
LAYERS_OF_SAMGA = ("20", "24", "28", "32", "36")


# ---------------------------------------------------------------------------- layers of the codes


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def mlp(n_inputs: int, n_outputs: int, dropout: float) -> nn.Sequential:
    """The projector of NICE, AlignVis and the re-implementation, and the encoder of UBP and those after it."""
    residual = Residual(nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(n_inputs, n_outputs), residual, nn.LayerNorm(n_outputs))


class FlattenTimeFirst(nn.Module):
    """(B, F, 1, T') -> (B, T' * F)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(2).transpose(1, 2).flatten(1)


def convolutions(temporal: Sequence[nn.Module], n_chans: int, spatial_bias: bool) -> nn.Sequential:
    """(B, C, T) -> (B, T' * 40)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, n_chans)),
        *temporal,
        nn.BatchNorm2d(40),
        nn.ELU(),
        nn.Conv2d(40, 40, (n_chans, 1), bias=spatial_bias),
        nn.BatchNorm2d(40),
        nn.ELU(),
        nn.Dropout(0.5),
        nn.Conv2d(40, 40, (1, 1)),
        FlattenTimeFirst(),
    )


def nice(n_chans: int) -> nn.Sequential:
    return convolutions(
        [nn.Conv2d(1, 40, (1, 25)), nn.AvgPool2d((1, 51), (1, 5))], n_chans, spatial_bias=True
    )


def nice_of_the_reimplementation(n_chans: int) -> nn.Sequential:
    temporal = [nn.Conv2d(1, 40, (1, 25)), nn.Conv2d(40, 40, (1, 41), bias=False)]
    return convolutions(temporal, n_chans, spatial_bias=False)


def draw_normal(model: nn.Module, zero_biases: bool) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        if zero_biases and isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def centred(x: Tensor) -> Tensor:
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)


def softplus_scale() -> float:
    return F.softplus(torch.tensor(CLIP_START)).item()


# ---------------------------------------------------------------------------- codes


@dataclass(frozen=True)
class Code:
    """What a code computes with: `eeg` and `image` give what its loss multiplies, by `scale` as well.

    `rates` are the learning rates of the epochs: of the EEG encoder, and of all else. `n_parameters` are those of both
    sides and the temperature, if it is learned, of a model of the sizes `sizes`.
    """

    sizes: ModelSizes
    eeg: nn.Module
    image: nn.Module
    eeg_side: Callable[[Tensor], Tensor]
    image_side: Callable[[Tensor], Tensor]
    scale: float
    is_learned: bool
    n_parameters: int
    rates: tuple[list[float], list[float]]
    settings: dict[str, object]


def constant(rate: float, epochs: int) -> tuple[list[float], list[float]]:
    return [rate] * epochs, [rate] * epochs


def as_it_is(x: Tensor) -> Tensor:
    return x


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def code_of_nice() -> Code:
    model = nn.Sequential(nice(63), mlp(1440, 768, 0.5))
    draw_normal(model, zero_biases=False)
    settings = {"optimizer": "adam", "betas": [0.5, 0.999], "weight_decay": 0.0, "dropout": 0.5}
    return Code(
        ModelSizes(63, 250, 250.0, 768),
        model,
        nn.Identity(),
        unit,
        unit,
        1 / 0.07,
        False,
        1_802_496,
        constant(0.0002, 200),
        settings | {"batch_size": 1000, "gradient_clip": "none"},
    )


def code_of_the_paper() -> Code:
    """Its rate is told in docs/protocols.md; here it is the peak."""
    model = nn.Sequential(nice(63), mlp(1440, 768, 0.5), nn.Linear(768, 768))
    settings = {"optimizer": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.1, "dropout": 0.5}
    return Code(
        ModelSizes(63, 250, 250.0, 768),
        model,
        nn.Identity(),
        centred,
        centred,
        1 / 0.04,
        False,
        2_393_088,
        constant(0.0002, 50),
        settings | {"batch_size": 128, "gradient_clip": 1.0},
    )


def code_of_the_reimplementation() -> Code:
    eeg = nn.Sequential(nice_of_the_reimplementation(17), mlp(1440, 256, 0.5))
    image = mlp(768, 256, 0.5)
    for side in (eeg, image):
        draw_normal(side, zero_biases=True)
    settings = {"optimizer": "adam", "betas": [0.9, 0.999], "weight_decay": 0.0, "dropout": 0.5}
    return Code(
        ModelSizes(17, 100, 100.0, 768),
        eeg,
        image,
        unit,
        unit,
        math.exp(CLIP_START),
        True,
        794_009,
        (warmed_up_cosine(4), warmed_up_cosine(2)),
        settings | {"batch_size": 256, "gradient_clip": "none"},
    )


def warmed_up_cosine(warmup: int, epochs: int = 100) -> list[float]:
    """The cosine of 100 epochs begins after the warm-up, so that it does not come to its end."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.008)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.0001)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [warmup])

    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


OF_FLATTENED = {
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "weight_decay": 0.0001,
    "dropout": 0.3,
    "gradient_clip": "none",
}


def code_of_ubp() -> Code:
    return Code(
        ModelSizes(17, 250, 250.0, 1024),
        nn.Sequential(nn.Flatten(), mlp(4250, 1024, 0.3)),
        nn.Identity(),
        as_it_is,
        unit,
        softplus_scale(),
        True,
        5_404_673,
        constant(0.0001, 50),
        OF_FLATTENED | {"batch_size": 1024, "select_on": "last"},
    )


def code_of_neurobridge() -> Code:
    """Its third Linear, of texts that it does not use, is left out."""
    return Code(
        ModelSizes(17, 250, 250.0, 1024),
        nn.Sequential(nn.Flatten(), mlp(4250, 1024, 0.3), nn.Linear(1024, 512)),
        nn.Linear(1024, 512),
        as_it_is,
        unit,
        softplus_scale(),
        False,
        5_404_672 + 2 * 524_800,
        constant(0.0001, 50),
        OF_FLATTENED | {"batch_size": 1024},
    )


CODES = {
    "nice": code_of_nice,
    "paper": code_of_the_paper,
    "recipe": code_of_the_reimplementation,
    "ubp": code_of_ubp,
    "neurobridge": code_of_neurobridge,
}


@functools.cache
def params_of(recipe: str) -> Params:
    """params.yaml after `dvc exp run $(cat params/<recipe>)`."""
    with TemporaryDirectory() as folder:
        path = Path(shutil.copy("params.yaml", folder))
        apply_overrides(path, Path("params", recipe).read_text().split()[1::2])
        return read_params(path)


def ours(recipe: str, sizes: ModelSizes) -> ContrastiveModel:
    return ContrastiveModel(sizes, params_of(recipe).train)


def layers_of(model: ContrastiveModel) -> list[nn.Module]:
    """Those with weights, in the order in which they compute; first the EEG's."""
    encoder = model.eeg_encoder
    names = ("temporal", "temporal_2", "norm", "spatial", "norm_2", "pointwise")
    layers = [getattr(encoder, name) for name in names if hasattr(encoder, name)]
    for part in (model.eeg_projector, model.eeg_linear, model.image_projector):
        layers += [layer for layer in part.modules() if list(layer.parameters(recurse=False))]
    return layers


def layers_of_code(*parts: nn.Module) -> list[nn.Module]:
    return [
        layer for part in parts for layer in part.modules() if list(layer.parameters(recurse=False))
    ]


def n_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def copy_weights(theirs: Sequence[nn.Module], ours: Sequence[nn.Module]) -> None:
    for their_layer, our_layer in zip(theirs, ours, strict=True):
        our_layer.load_state_dict(their_layer.state_dict())


def disturb(layers: Sequence[nn.Module]) -> None:
    """Biases and factors that start at 0 or 1, so that a wrong one would show."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)


# ---------------------------------------------------------------------------- layers


@pytest.mark.parametrize("recipe", CODES)
def test_it_has_the_parameters_of_the_code(recipe):
    code = CODES[recipe]()
    model = ours(recipe, code.sizes)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in learned) == code.n_parameters
    assert n_parameters(code.eeg, code.image) + code.is_learned == code.n_parameters
    assert model.log_scale.requires_grad == code.is_learned


@pytest.mark.parametrize("recipe", CODES)
def test_it_computes_what_the_code_computes(recipe):
    """The logits at one temperature, with the same weights, and in training the gradients that come from them.

    Where a code does not divide the EEG by its norm, both are compared after that: it has no part in the ranks.
    """
    torch.manual_seed(0)
    code = CODES[recipe]()
    model = ours(recipe, code.sizes)
    theirs = layers_of_code(code.eeg, code.image)
    disturb(theirs)
    copy_weights(theirs, layers_of(model))

    eeg = torch.randn(N_SHOWN, code.sizes.n_chans, code.sizes.n_times)
    embeddings = torch.randn(N_SHOWN, code.sizes.embedding_size) + 1
    for part in (code.eeg, code.image, model):
        part.eval()
    expected = unit(code.eeg_side(code.eeg(eeg))) @ code.image_side(code.image(embeddings)).T
    eeg_side, image_side = model(eeg, embeddings)
    torch.testing.assert_close(eeg_side @ image_side.T, expected, atol=2e-6, rtol=1e-5)

    scale = 20.0
    F.cross_entropy(scale * expected, torch.arange(N_SHOWN)).backward()
    ours_scaled = logits(eeg_side, image_side, torch.tensor(math.log(scale)))
    F.cross_entropy(ours_scaled, torch.arange(N_SHOWN)).backward()
    for their_layer, our_layer in zip(theirs, layers_of(model), strict=True):
        for mine, other in zip(our_layer.parameters(), their_layer.parameters(), strict=True):
            difference = (mine.grad - other.grad).norm()
            assert difference <= 1e-4 * other.grad.norm() + 1e-6, our_layer


# ---------------------------------------------------------------------------- start


@pytest.mark.parametrize("recipe", CODES)
def test_its_first_weights_are_drawn_as_those_of_the_code(recipe):
    torch.manual_seed(0)
    code = CODES[recipe]()
    pairs = zip(
        layers_of_code(code.eeg, code.image), layers_of(ours(recipe, code.sizes)), strict=True
    )
    for their_layer, our_layer in pairs:
        theirs = dict(their_layer.named_parameters())
        for name, mine in our_layer.named_parameters():
            expected = theirs[name].detach().flatten()[:20_000]
            drawn = mine.detach().flatten()[:20_000]
            if expected.std() == 0:
                assert torch.equal(drawn, expected), (our_layer, name)
            else:
                assert ks_2samp(drawn, expected).pvalue > 1e-4, (our_layer, name)


def start_temperature(code: Code) -> float:
    """1 / the factor between cosine and logit: the norm of the EEG counts where the code does not divide by it."""
    for part in (code.eeg, code.image):
        part.eval()
    eeg = torch.randn(64, code.sizes.n_chans, code.sizes.n_times)
    norm = code.eeg_side(code.eeg(eeg)).norm(dim=1).mean()
    return 1 / (code.scale * norm.item())


@pytest.mark.parametrize("recipe", CODES)
def test_its_temperature_starts_where_the_codes_does(recipe):
    torch.manual_seed(0)
    code = CODES[recipe]()
    temperature = 1 / ours(recipe, code.sizes).logit_scale.item()
    assert temperature == pytest.approx(start_temperature(code), rel=0.02)


def tokens_of_atm(weights: Mapping[str, Tensor], eeg: Tensor) -> Tensor:
    """What ATM hands to its convolutions, without what belongs to a subject: (B, C, T) -> (B, C, width).

    Of each channel a token, to which its position is added. Then four heads of attention, and two Linears with a GELU
    between; behind each of both a residual and LayerNorm. One more LayerNorm ends it.
    """
    width = weights["embed.weight"].shape[0]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    channel, column = torch.arange(eeg.shape[1])[:, None], torch.arange(width)
    angle = channel * torch.exp(-math.log(10_000) * (column // 2 * 2) / width)
    tokens = linear("embed", eeg) + torch.where(column % 2 == 0, angle.sin(), angle.cos())

    query, key, value = (
        (tokens @ weight.T + bias).unflatten(-1, (4, -1)).transpose(1, 2)
        for weight, bias in zip(
            weights["attend.self_attn.in_proj_weight"].chunk(3),
            weights["attend.self_attn.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    shares = (query @ key.mT / math.sqrt(width // 4)).softmax(-1)
    heads = (shares @ value).transpose(1, 2).flatten(2)
    tokens = layer_norm("attend.norm1", tokens + linear("attend.self_attn.out_proj", heads))
    hidden = F.gelu(linear("attend.linear1", tokens))
    tokens = layer_norm("attend.norm2", tokens + linear("attend.linear2", hidden))
    return layer_norm("norm", tokens)


def test_atm_computes_what_its_code_computes():
    """As its branch main: with the positions, and here without the token of a subject. Then NICE's convolutions."""
    torch.manual_seed(0)
    encoder, code = AtmS(63, 250, 250.0, 0.5).double().eval(), nice(63).double().eval()
    disturb(layers_of_code(encoder, code))
    own = encoder.convolutions
    copy_weights(
        layers_of_code(code), [own.temporal, own.norm, own.spatial, own.norm_2, own.pointwise]
    )

    eeg = torch.randn(N_SHOWN, 63, 250, dtype=torch.float64)
    with torch.no_grad():
        tokens = tokens_of_atm(encoder.state_dict(), eeg)
        assert tokens.shape == (N_SHOWN, 63, 252)
        torch.testing.assert_close(encoder(eeg), code(tokens), rtol=1e-5, atol=1e-6)


def test_the_temperature_of_atm_starts_where_the_codes_does():
    """Its factor is the parameter itself, without exp; the EEG's norm is that of a LayerNorm over 1024."""
    train = params_of("atm").train
    assert train.temperature == "learned"
    expected = 1 / (CLIP_START * math.sqrt(1024))
    assert train.start_temperature == pytest.approx(expected, rel=0.005)


# ---------------------------------------------------------------------------- training


def rates_of(recipe: str, sizes: ModelSizes) -> tuple[list[float], list[float]]:
    """The rates in each epoch: of the EEG encoder, and of projectors and temperature."""
    train = params_of(recipe).train
    weights = {name: [weight] for name, weight in ours(recipe, sizes).named_parameters()}
    optimizer, schedule = make_optimizer(weights, train, torch.device("cpu"))
    rates = []
    for epoch in range(train.epochs):
        schedule.set_epoch(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups[:2]])
    encoder, others = zip(*rates, strict=True)
    return list(encoder), list(others)


@pytest.mark.parametrize("recipe", CODES)
def test_its_rate_in_each_epoch_is_that_of_the_code(recipe):
    code = CODES[recipe]()
    for mine, expected in zip(rates_of(recipe, code.sizes), code.rates, strict=True):
        assert mine == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("recipe", CODES)
def test_its_settings_are_those_of_the_code(recipe):
    train = params_of(recipe).train
    settings = CODES[recipe]().settings | {"average_epochs": "none"}
    assert {name: getattr(train, name) for name in settings} == settings


def test_the_linear_of_the_paper_is_as_large_as_the_embeddings():
    """In its grid too, where they have 512 numbers (CLIP) or 1792 (the ensemble)."""
    for size in (512, 1792):
        model = ours("paper", ModelSizes(63, 250, 250.0, size))
        assert model.eeg_linear.weight.shape == (size, size)


def test_the_cosine_of_the_reimplementation_does_not_end():
    encoder, others = warmed_up_cosine(4), warmed_up_cosine(2)
    assert encoder[55] == pytest.approx(0.003926, abs=1e-6)
    assert min(encoder) > 0.0001 and min(others) > 0.0001


# ---------------------------------------------------------------------------- SAMGA, as far as it can be said


class SamgaImages(nn.Module):
    """(B, 5, 3200) -> (B, 512): a Linear of all layers, one of each, and their weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3200, 1024)
        self.of_layers = nn.ModuleList(nn.Linear(1024, 512) for _ in LAYERS_OF_SAMGA)
        self.start = torch.softmax(-torch.tensor([2.0, 1, 0, 1, 2]), 0)

    def forward(self, layers: Tensor) -> Tensor:
        projected = [
            of_layer(self.first(layers[:, k])) for k, of_layer in enumerate(self.of_layers)
        ]
        return (torch.stack(projected, 1) * self.start[:, None]).sum(1)


def samga_sizes() -> ModelSizes:
    return ModelSizes(17, 250, 250.0, 3200, LAYERS_OF_SAMGA)


def test_samga_is_its_code_with_one_linear_for_all_layers_and_none_that_both_sides_share():
    torch.manual_seed(0)
    eeg_part = nn.Sequential(nn.Flatten(), mlp(4250, 1024, 0.3), nn.Linear(1024, 512)).eval()
    images = SamgaImages()
    for of_layer in images.of_layers[1:]:
        of_layer.load_state_dict(images.of_layers[0].state_dict())

    model = ours("samga", samga_sizes()).eval()
    last = images.of_layers[0]
    copy_weights(layers_of_code(eeg_part), layers_of(model)[:-1])
    model.image_projector.weight.data = last.weight @ images.first.weight
    model.image_projector.bias.data = last.weight @ images.first.bias + last.bias
    model.block_mix.logits.data = images.start.log()

    eeg, layers = torch.randn(N_SHOWN, 17, 250), torch.randn(N_SHOWN, 5, 3200)
    expected = unit(eeg_part(eeg)) @ unit(images(layers)).T
    eeg_side, image_side = model(eeg, layers)
    torch.testing.assert_close(eeg_side @ image_side.T, expected, atol=2e-6, rtol=1e-5)
    assert n_parameters(eeg_part) == 5_404_672 + 524_800


def test_samga_starts_at_the_temperature_of_its_code():
    """There a Linear that both sides share follows, which makes the EEG's embedding shorter."""
    torch.manual_seed(0)
    eeg_part = nn.Sequential(
        nn.Flatten(), mlp(4250, 1024, 0.3), nn.Linear(1024, 512), nn.Linear(512, 512)
    )
    norm = eeg_part.eval()(torch.randn(64, 17, 250)).norm(dim=1).mean().item()
    model = ours("samga", samga_sizes())
    expected = 1 / (softplus_scale() * norm)
    assert 1 / model.logit_scale.item() == pytest.approx(expected, rel=0.02)
    assert not model.log_scale.requires_grad


def test_samga_has_the_rates_and_settings_of_its_code():
    for rates in rates_of("samga", samga_sizes()):
        assert rates == pytest.approx([0.0001] * 20 + [0.00005] * 40, rel=1e-9)
    train = params_of("samga").train
    settings = OF_FLATTENED | {"batch_size": 512, "average_epochs": "none"}
    assert {name: getattr(train, name) for name in settings} == settings
    assert train.first_weights == "torch"


def test_shallow_alignment_is_the_same_network_as_neurobridge():
    """Its paper names the encoder, its dropout and linear projectors; sizes and temperature are not in it."""
    keys = ("eeg_encoder", "first_weights", "dropout", "image_projector", "eeg_hidden_size")
    shallow, neurobridge = params_of("shallow-alignment").train, params_of("neurobridge").train
    for key in (*keys, "projection_size", "optimizer", "weight_decay", "learning_rate"):
        assert getattr(shallow, key) == getattr(neurobridge, key)
    assert (shallow.batch_size, shallow.epochs, shallow.seeds) == (1024, 50, 5)


def test_every_recipe_of_a_model_is_compared_here():
    of_data_or_grid = {"release-data", "paper-data", "meg", "study-paper", "study-blocks"}
    of_data_or_grid |= {"alljoined", "across"}
    others = {"atm", "samga", "shallow-alignment"}
    assert {path.name for path in Path("params").iterdir()} == of_data_or_grid | others | {*CODES}
