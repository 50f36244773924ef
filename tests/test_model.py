import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import ks_2samp

from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.sections import Train
from pipeline.train import plain
from pipeline.train.model import ContrastiveModel, ModelSizes, load_model, logits, save_model

RECIPE = read_params(Path("params.yaml")).train
SIZES = ModelSizes(n_chans=5, n_times=80, sfreq=100.0, embedding_size=12)
SEEN = {"eeg_window": [0.05, 0.75], "smoothing": 0.02, "remove_dc": True}
AT_RANDOM = {"channel_dropout": 0.3, "time_shift": 0.05}


def make_model(sizes: ModelSizes = SIZES, **changes: object) -> ContrastiveModel:
    return ContrastiveModel(
        sizes, Train(**RECIPE.model_dump() | {"projection_size": 8} | changes)
    ).eval()


def test_the_recipe_has_794_thousand_parameters():
    model = ContrastiveModel(ModelSizes(17, 100, 100.0, 768), RECIPE)
    assert round(sum(p.numel() for p in model.parameters()) / 1000) == 794


def test_the_recipe_starts_as_published():
    """Every parameter, against the plain recipe: N(0, 0.02) everywhere, BatchNorm N(1, 0.02), no bias but Linear's."""
    torch.manual_seed(0)
    model = ContrastiveModel(ModelSizes(17, 100, 100.0, 768), RECIPE)
    plain_model = plain.PlainModel(17, 100, 768)
    ours = {
        **{f"encoder.{name}": p for name, p in model.eeg_encoder.named_parameters()},
        **{f"eeg.{name}": p for name, p in model.eeg_projector.named_parameters()},
        **{f"image.{name}": p for name, p in model.image_projector.named_parameters()},
    }
    names = {
        "temporal.": "0.",
        "temporal_2.": "1.",
        "norm.": "2.",
        "spatial.": "4.",
        "norm_2.": "5.",
        "pointwise.": "8.",
    }
    parts = {"project.": "0.", "residual.1.": "1.layers.1.", "norm.": "2."}
    theirs, seen = dict(plain_model.named_parameters()), {"log_scale"}
    for name, value in ours.items():
        side, rest = name.split(".", 1)
        known = names if side == "encoder" else parts
        [prefix] = [prefix for prefix in known if rest.startswith(prefix)]
        twin = f"{side}.{known[prefix]}{rest.removeprefix(prefix)}"
        expected = theirs[twin]
        seen.add(twin)
        assert value.numel() == expected.numel(), name
        if (
            expected.std() == 0
        ):  # biases of convolutions, BatchNorm and LayerNorm, weights of LayerNorm
            assert torch.equal(value, expected), name
        else:
            assert ks_2samp(value.detach().flatten(), expected.detach().flatten()).pvalue > 1e-4, (
                name
            )
    assert seen == theirs.keys()
    assert model.eeg_projector.project.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.log_scale.item() == plain_model.log_scale.item()


def test_the_plain_page_learns_what_was_planted():
    """EEG that is a mixture of the embedding and noise; chance is 1 of 50."""
    torch.manual_seed(0)
    embeddings = torch.randn(450, 16)
    eeg = (embeddings @ torch.randn(16, 4 * 70)).view(450, 4, 70) + torch.randn(450, 4, 70)
    model = plain.train(eeg[:400], embeddings[:400], epochs=8, batch_size=40)
    assert plain.top1(model, eeg[400:], embeddings[400:]) > 0.3


def test_other_encoders_start_as_theirs_do():
    """NICE keeps torch's biases of convolutions; ATM-S, and the paper's NICE, keep all that torch draws."""
    nice = make_model(eeg_encoder="nice").eeg_encoder
    assert nice.temporal.bias.abs().max() > 0.05 and nice.temporal.weight.std() < 0.03
    for model in (
        make_model(eeg_encoder="atm-s"),
        make_model(eeg_encoder="nice", first_weights="torch"),
    ):
        bound = 1 / model.eeg_encoder.output_size**0.5  # of torch's uniform weights
        assert 0.9 * bound < model.eeg_projector.project.weight.abs().max() <= bound
    assert (
        model.eeg_encoder.temporal.weight.abs().max() > 0.15
    )  # a fifth is torch's bound, N(0, 0.02) reaches 0.08


def test_a_saved_model_comes_back(tmp_path):
    model = make_model()
    save_model(model, tmp_path, {"seed": 3})
    loaded, notes = load_model(tmp_path)
    eeg = torch.randn(4, 5, 80)
    assert torch.equal(model.embed_eeg(eeg), loaded.embed_eeg(eeg))
    assert notes["seed"] == 3 and notes["block_weights"] == {}
    linear = make_model(eeg_encoder="flatten", eeg_hidden_size=6, image_projector="linear")
    save_model(linear, tmp_path, {})
    for ours, loaded in zip(
        linear(eeg, eeg[:, 0, :12]), load_model(tmp_path)[0](eeg, eeg[:, 0, :12]), strict=True
    ):
        assert torch.equal(ours, loaded)
    mixing = make_model(sizes=dataclasses.replace(SIZES, blocks=("6", "last")))
    mixing.block_mix.standardise(torch.randn(9, 2, 12))
    save_model(mixing, tmp_path, {})
    loaded, notes = load_model(tmp_path)
    embeddings = torch.randn(4, 2, 12)
    assert torch.equal(mixing.embed_image(embeddings), loaded.embed_image(embeddings))
    assert notes["block_weights"] == loaded.block_weights() == {"6": 0.5, "last": 0.5}
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="no trained model"):
        load_model(tmp_path)


def test_standardised_eeg_has_no_mean_and_channels_of_one_spread():
    """Of the rows named, however they are cut into parts; the buffers are saved with the model."""
    eeg = (
        torch.randn(9000, 5, 80) * torch.tensor([1.0, 2, 3, 40, 0])[:, None]
        + torch.randn(5, 80) * 100
    )
    rows = torch.arange(0, 9000, 2)
    model = make_model()
    model.standardise(eeg, rows)
    seen = (eeg[rows] - model.eeg_mean) / model.eeg_sd
    torch.testing.assert_close(seen.mean(0), torch.zeros(5, 80), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.square().mean((0, 2)).sqrt(), torch.tensor([1.0, 1, 1, 1, 0]))
    raw = make_model()
    raw.load_state_dict(model.state_dict() | {"eeg_mean": raw.eeg_mean, "eeg_sd": raw.eeg_sd})
    torch.testing.assert_close(model.embed_eeg(eeg[rows[:9]]), raw.embed_eeg(seen[:9]))


def test_blocks_are_mixed_before_all_else():
    """Standardised by hand and weighted by the softmax; the saved model brings weights, mean and spread with it."""
    embeddings = torch.randn(50, 3, 12) * torch.tensor([1.0, 20, 300])[:, None] + 7
    embeddings[:, 0] = 4  # a block that says nothing
    for changes in ({}, {"image_projector": "none", "normalise_embeddings": True}):
        model = make_model(sizes=dataclasses.replace(SIZES, blocks=("2", "5", "last")), **changes)
        model.block_mix.standardise(embeddings)
        model.block_mix.logits.data = torch.log(torch.tensor([0.1, 0.7, 0.2])) + 3
        centred = embeddings[:, 1:] - embeddings[:, 1:].mean(0)
        standard = centred / centred.square().mean((0, 2)).sqrt()[:, None]
        mixed = 0.7 * standard[:, 0] + 0.2 * standard[:, 1]
        plain = make_model(**changes)
        plain.load_state_dict(
            {name: value for name, value in model.state_dict().items() if "block_mix" not in name}
        )
        torch.testing.assert_close(model.embed_image(embeddings), plain.embed_image(mixed))
        assert model.block_weights() == pytest.approx({"2": 0.1, "5": 0.7, "last": 0.2})


def test_window_smoothing_and_mean_are_what_numpy_and_scipy_make_of_them(tmp_path):
    """Standardisation is of what they leave; the saved model brings them with it; nothing outside the window counts."""
    eeg, rows = torch.randn(60, 5, 80) * 3 + torch.randn(5, 80) + 10, torch.arange(0, 60, 2)
    model = make_model(sizes=dataclasses.replace(SIZES, start=-0.02), **SEEN)
    model.standardise(eeg, rows)
    seen = gaussian_filter1d(eeg[..., 7:78].double().numpy(), 2, axis=-1, mode="nearest")
    seen -= seen.mean(-1, keepdims=True)
    mean = seen[::2].mean(0)
    expected = torch.from_numpy(
        (seen - mean) / np.sqrt(((seen[::2] - mean) ** 2).mean((0, 2))[:, None])
    ).float()
    plain = make_model(sizes=dataclasses.replace(SIZES, n_times=71))
    plain.load_state_dict(model.state_dict() | {"eeg_mean": plain.eeg_mean, "eeg_sd": plain.eeg_sd})
    torch.testing.assert_close(
        model.embed_eeg(eeg), plain.embed_eeg(expected), atol=1e-5, rtol=1e-4
    )
    save_model(model, tmp_path, {})
    elsewhere = eeg.clone()
    elsewhere[..., :7] = elsewhere[..., 78:] = 1e3
    assert torch.equal(load_model(tmp_path)[0].embed_eeg(elsewhere), model.embed_eeg(eeg))


def test_what_is_random_leaves_tested_eeg_alone():
    """To the last bit, with the same weights; in training it does not."""
    plain, random = make_model(), make_model(**AT_RANDOM)
    random.load_state_dict(plain.state_dict())
    eeg = torch.randn(9, 5, 80)
    assert torch.equal(plain.embed_eeg(eeg), random.embed_eeg(eeg))
    for name in AT_RANDOM:
        one = make_model(dropout=0.0, **{name: AT_RANDOM[name]})
        one.load_state_dict(plain.state_dict())
        without = make_model(dropout=0.0)
        without.load_state_dict(plain.state_dict())
        assert not torch.equal(one.train().embed_eeg(eeg), without.train().embed_eeg(eeg))


def test_without_them_training_is_the_plain_composition():
    """To the last bit, random numbers included: what is off costs and changes nothing."""
    model, eeg = make_model().train(), torch.randn(9, 5, 80)
    model.standardise(eeg, torch.arange(9))
    torch.manual_seed(1)
    ours = model.embed_eeg(eeg)
    torch.manual_seed(1)
    plain = model.eeg_projector(model.eeg_encoder((eeg - model.eeg_mean) / model.eeg_sd))
    assert torch.equal(ours, torch.nn.functional.normalize(plain, dim=1))
    assert {name.split(".")[0] for name in model.state_dict()} == {
        *("eeg_mean", "eeg_sd", "log_scale", "eeg_encoder", "eeg_projector", "image_projector")
    }


def test_a_window_too_short_for_the_encoder_is_told():
    with pytest.raises(
        InputError, match="needs at least 65 samples, not 21: widen train.eeg_window or preprocess"
    ):
        make_model(eeg_window=[0.1, 0.3])


def test_both_sides_are_unit_vectors_in_one_space():
    model = make_model()
    for side in (model.embed_eeg(torch.randn(3, 5, 80)), model.embed_image(torch.randn(3, 12))):
        assert side.shape == (3, 8)
        torch.testing.assert_close(side.norm(dim=1), torch.ones(3))


def test_in_bfloat16_the_logits_keep_float32():
    model, eeg, embeddings = make_model(), torch.randn(9, 5, 80), torch.randn(9, 12)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        eeg_side, image_side = (side.bfloat16() for side in model(eeg, embeddings))
        got = logits(eeg_side, image_side, model.log_scale)
    assert not torch.equal(eeg_side, model.embed_eeg(eeg).bfloat16()), "bfloat16 was used"
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, model.logit_scale * eeg_side.float() @ image_side.float().T)


def test_without_image_projector_the_eeg_is_projected_onto_the_normalised_embeddings():
    model = make_model(image_projector="none", normalise_embeddings=True)
    embeddings = torch.randn(3, 12) + 5
    expected = embeddings - embeddings.mean(1, keepdim=True)  # dreamsim's normalize_embeds
    torch.testing.assert_close(
        model.embed_image(embeddings), expected / expected.norm(dim=1, keepdim=True)
    )
    eeg_side = model.embed_eeg(torch.randn(3, 5, 80))
    assert eeg_side.shape == (3, 12)
    torch.testing.assert_close(eeg_side.mean(1), torch.zeros(3), atol=1e-6, rtol=0)


def test_a_fixed_temperature_is_not_learned():
    fixed, learned = make_model(temperature=0.04), make_model()
    assert fixed.logit_scale.item() == pytest.approx(25) and not fixed.log_scale.requires_grad
    assert (
        learned.logit_scale.item() == pytest.approx(1 / RECIPE.start_temperature)
        and learned.log_scale.requires_grad
    )
