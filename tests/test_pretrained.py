"""LaBraM, CBraMod and REVE against braindecode's own networks, by stand-ins in the published layouts."""

import hashlib
import json
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import mne
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.eeg_encoders.nice import NiceRecipe
from pipeline.eeg_encoders.pretrained import read_positions, resample_to_patches
from pipeline.eeg_encoders.table import caveats_of, is_pretrained, make_eeg_encoder
from pipeline.errors import InputError
from pipeline.evaluate.similarities import read_similarities
from pipeline.params import read_params
from pipeline.sections import Runs
from pipeline.study.results import Cell, Trial
from pipeline.study.trials import _make_job
from pipeline.train import finished
from pipeline.train.inputs import HashedFile, hash_eeg_weights
from pipeline.train.model import ContrastiveModel, ModelSizes, load_model, save_model
from pipeline.train.projection import project
from pipeline.train.protocols import Run
from pipeline.train.runs import train_all
from pipeline.train.stack import Stack
from stages import evaluate
from stages.names import check_names, check_study
from tests.eeg_weights import POSITIONS, publish
from tests.tiny import quick_recipe

pytestmark = pytest.mark.usefixtures("cache")

NAMES = ("labram", "cbramod", "reve")
SMALL = ("labram", "cbramod")
CH_NAMES = ("O1", "Oz", "O2", "Pz", "P7")
HERE = Runs(where="local", workers=1)

with_braindecode = pytest.mark.skipif(
    find_spec("braindecode") is None, reason="braindecode is not installed"
)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("published")
    return {name: publish(name, base / name) for name in NAMES}


def make(name: str, n_times: int = 100, sfreq: float = 100.0, **changes: object) -> nn.Module:
    arguments = {"ch_names": CH_NAMES, "dropout": 0.5} | changes
    n_chans = len(arguments["ch_names"])
    return make_eeg_encoder(name, n_chans=n_chans, n_times=n_times, sfreq=sfreq, **arguments)


def loaded(name: str, folder: Path, *arguments: object, **changes: object) -> nn.Module:
    encoder = make(name, *arguments, **changes)
    encoder.load_pretrained(str(folder))
    return encoder


# ---------------------------------------------------------------------------- the EEG


@pytest.mark.parametrize(("n_times", "sfreq"), [(100, 100.0), (250, 250.0), (300, 250.0)])
def test_eeg_is_resampled_as_by_mne_and_filled_with_zeros(n_times, sfreq):
    eeg = np.random.default_rng(0).standard_normal((3, n_times))
    expected = mne.filter.resample(eeg, up=200.0, down=sfreq, verbose=False)
    got = eeg @ resample_to_patches(n_times, sfreq, 200)
    n = expected.shape[1]
    np.testing.assert_allclose(got[:, :n], expected, rtol=0, atol=1e-12)
    assert got.shape[1] % 200 == 0 and not got[:, n:].any()


@pytest.mark.parametrize("sfreq", [100.0, 250.0, 1000.0])
def test_a_wave_is_the_same_wave_at_200_hz(sfreq):
    """Away from both ends, where what came before and after is not known."""
    times = np.arange(round(1.2 * sfreq)) / sfreq
    wave = np.sin(2 * np.pi * 9 * times) @ resample_to_patches(len(times), sfreq, 200)
    at_200 = np.arange(240) / 200
    inner = (at_200 > 0.1) & (at_200 < 1.1)
    assert np.abs(wave[:240] - np.sin(2 * np.pi * 9 * at_200))[inner].max() < 0.01


def test_eeg_at_200_hz_stays_as_it_is():
    assert np.array_equal(resample_to_patches(400, 200.0, 200), np.eye(400))


@pytest.mark.parametrize(
    ("n_times", "step", "n_samples"),
    [
        (60, 200, 200),  # filled
        (200, 200, 200),
        (210, 200, 200),  # cut
        (211, 200, 400),  # filled
        (600, 200, 600),
        (200, 180, 200),
        (380, 180, 380),
        (391, 180, 560),
    ],
)
def test_there_are_whole_patches(n_times, step, n_samples):
    assert resample_to_patches(n_times, 200.0, step).shape == (n_times, n_samples)


# ---------------------------------------------------------------------------- the networks


def features_of_braindecode(name: str, folder: Path, eeg: Tensor) -> Tensor:
    """By `from_pretrained`, of EEG (B, C, n_samples) at 200 Hz in the unit of the network."""
    from braindecode import models

    channels = {"n_chans": len(CH_NAMES), "n_times": eeg.shape[2], "n_outputs": 1}
    if name == "labram":
        network = models.Labram.from_pretrained(str(folder)).eval()
        return network(eeg, return_features=True, ch_names=list(CH_NAMES))["features"]
    if name == "cbramod":
        network = models.CBraMod.from_pretrained(str(folder)).eval()
        return network(eeg, return_features=True)["features"]
    chs_info = [{"ch_name": ch_name} for ch_name in CH_NAMES]
    network = models.REVE.from_pretrained(str(folder), chs_info=chs_info, **channels).eval()
    return network(eeg, return_features=True)["features"]


@with_braindecode
@pytest.mark.parametrize(
    ("name", "n_times", "n_samples", "scale"),
    [("labram", 3000, 3000, 0.1), ("cbramod", 250, 400, 0.1), ("reve", 250, 380, 1.0)],
)
def test_the_features_are_those_of_braindecodes_own_network(
    name, n_times, n_samples, scale, published, tmp_path, monkeypatch
):
    """LaBraM has windows of 15 s as it is published, and braindecode takes no others."""
    # braindecode looks for the table under this name before it fetches it
    shutil.copy(published["reve"] / "positions.json", tmp_path / "reve_positions.json")
    monkeypatch.setenv("REVE_POSITIONS_PATH", str(tmp_path))

    torch.manual_seed(0)
    eeg = torch.randn(2, len(CH_NAMES), n_times)
    encoder = loaded(name, published[name], n_times, 200.0).eval()
    filled = F.pad(scale * eeg, (0, n_samples - n_times))
    with torch.no_grad():
        expected = features_of_braindecode(name, published[name], filled).flatten(1)
        got = encoder(eeg)
    assert got.shape == (2, encoder.output_size)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.std(0).mean() > 0.01  # another EEG has other features


@with_braindecode
def test_labram_takes_the_first_embeddings_of_time(published, tmp_path):
    """As LaBraM's code does for short windows: a network of one patch with these weights."""
    from braindecode import models

    weights = safetensors.torch.load_file(published["labram"] / "model.safetensors")
    weights["temporal_embedding"] = weights["temporal_embedding"][:, :2].contiguous()
    network = models.Labram(n_times=200, n_chans=len(CH_NAMES), n_outputs=0).eval()
    network.load_state_dict(weights)

    eeg = torch.randn(2, len(CH_NAMES), 200)
    with torch.no_grad():
        expected = network(0.1 * eeg, return_features=True, ch_names=list(CH_NAMES))["features"]
        got = loaded("labram", published["labram"], 200, 200.0).eval()(eeg)
    torch.testing.assert_close(got, expected.flatten(1), rtol=1e-5, atol=1e-5)


@with_braindecode
def test_the_stand_ins_have_the_published_sizes(published):
    """Tensors and values: of LaBraM as published, of CBraMod as in braindecode's table of models."""
    sizes = {}
    for name, folder in published.items():
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        sizes[name] = len(weights), sum(value.numel() for value in weights.values())
    assert sizes["labram"] == (221, 5_819_936)
    assert sizes["cbramod"][1] == 4_924_000
    assert sizes["reve"][1] // 10**6 == 69


@with_braindecode
@pytest.mark.parametrize("name", NAMES)
def test_safetensors_and_torch_files_are_alike(name, published, tmp_path):
    weights = safetensors.torch.load_file(published[name] / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    if name == "reve":
        shutil.copy(published[name] / "positions.json", tmp_path)
    first, second = loaded(name, published[name]), loaded(name, tmp_path)
    assert_same(first.state_dict(), second.state_dict())


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@with_braindecode
@pytest.mark.parametrize("name", SMALL)
def test_a_channel_is_known_by_its_name_or_by_its_place_in_the_order(name, published):
    """LaBraM's features follow the names; those of CBraMod change with the order alone."""
    encoder = loaded(name, published[name]).eval()
    turned = loaded(name, published[name], ch_names=CH_NAMES[::-1]).eval()
    eeg = torch.randn(2, len(CH_NAMES), 100)
    with torch.no_grad():
        expected = encoder(eeg).unflatten(1, (len(CH_NAMES), -1))
        got = turned(eeg.flip(1)).unflatten(1, (len(CH_NAMES), -1)).flip(1)
    assert torch.allclose(got, expected, atol=1e-3) == (name == "labram")


@with_braindecode
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_changes_the_features_little(name, published):
    encoder = loaded(name, published[name]).eval()
    eeg = torch.randn(4, len(CH_NAMES), 100)
    with torch.no_grad():
        expected = encoder(eeg)
        with torch.autocast("cpu", torch.bfloat16):
            got = encoder(eeg)
    assert F.cosine_similarity(got.float(), expected).min() > 0.98


@with_braindecode
def test_reves_eeg_is_cut_off_at_15_standard_deviations(published):
    encoder = loaded("reve", published["reve"], 200, 200.0).eval()
    eeg = torch.randn(1, len(CH_NAMES), 200)
    eeg[0, 0, 50] = 15.0
    larger = eeg.clone()
    larger[0, 0, 50] = 1000.0
    with torch.no_grad():
        assert torch.equal(encoder(eeg), encoder(larger))


# ---------------------------------------------------------------------------- frozen or not


@with_braindecode
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_as_the_training_needs_it(name, frozen, published):
    """A frozen network drops nothing, its features drop what train.dropout says."""
    encoder = loaded(name, published[name], frozen=frozen, dropout=0.0).train()
    eeg = torch.randn(2, len(CH_NAMES), 100)
    drops = not torch.equal(encoder(eeg), encoder(eeg))
    assert drops == (name == "cbramod" and not frozen)  # LaBraM is published without

    dropping = loaded(name, published[name], frozen=frozen, dropout=0.5).train()
    assert (dropping(eeg) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(dropping.eval()(eeg), encoder.eval()(eeg))


def train(data: Path, out: Path, name: str, folder: Path, **changes: object) -> Path:
    recipe = quick_recipe(eeg_encoder=name, eeg_weights=str(folder), **changes)
    train_all(data / "eeg", data / "embeddings.h5", out, recipe, 1, HERE)
    return out / "pooled-seed-1"


@with_braindecode
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_frozen_weights_stay_to_the_last_bit_and_others_learn(
    name, frozen, published, data, tmp_path
):
    changes = {"eeg_encoder_frozen": frozen, "epochs": 1}
    run = train(data, tmp_path / "model", name, published[name], **changes)
    trained, _ = load_model(run)

    start = loaded(name, published[name], ch_names=("O1", "Oz", "O2")).network.state_dict()
    end = trained.eeg_encoder.network.state_dict()
    same = [torch.equal(start[key], end[key]) for key in start]
    assert all(same) if frozen else np.mean(same) < 0.1

    torch.manual_seed(0)
    fresh = ContrastiveModel(trained.sizes, trained.recipe)
    assert not torch.equal(fresh.eeg_projector.project.weight, trained.eeg_projector.project.weight)


@with_braindecode
def test_frozen_weights_are_not_in_the_optimizer(published):
    recipe = quick_recipe(eeg_encoder="cbramod", eeg_encoder_frozen=True)
    model = ContrastiveModel(ModelSizes(5, 100, 100.0, 12, ch_names=CH_NAMES), recipe)
    stack = Stack([model], recipe, 1, torch.randn(8, 5, 100), torch.randn(8, 12), [])
    groups = stack._optimizer.param_groups
    n_optimized = sum(weight.numel() for group in groups for weight in group["params"])
    frozen = sum(weight.numel() for weight in model.eeg_encoder.parameters())
    assert n_optimized == sum(weight.numel() for weight in model.parameters()) - frozen > 0
    assert not any(weight.requires_grad for weight in model.eeg_encoder.parameters())


# ---------------------------------------------------------------------------- files


@with_braindecode
def test_another_file_under_the_same_path_trains_again(published, data, tmp_path, cache):
    folder = tmp_path / "weights"
    shutil.copytree(published["cbramod"], folder)
    quick = {"eeg_encoder_frozen": True, "epochs": 1}
    first = train(data, tmp_path / "first", "cbramod", folder, **quick)
    again = train(data, tmp_path / "again", "cbramod", folder, **quick)
    assert weights_of(first) == weights_of(again)
    assert len(list((cache / finished.KIND).iterdir())) == 1

    # The same file elsewhere is the same training
    moved = train(data, tmp_path / "moved", "cbramod", published["cbramod"], **quick)
    assert weights_of(first) == weights_of(moved)
    assert len(list((cache / finished.KIND).iterdir())) == 1

    publish("cbramod", folder, seed=1)
    other = train(data, tmp_path / "other", "cbramod", folder, **quick)
    assert weights_of(first) != weights_of(other)
    assert len(list((cache / finished.KIND).iterdir())) == 2


def test_a_study_runs_again_with_another_file_and_only_where_it_is_read(tmp_path):
    """By the names under which it keeps its answers."""
    weights = tmp_path / "model.safetensors"
    recipe = quick_recipe(eeg_weights=str(tmp_path))
    run = Run("pooled", 1, ("sub-01",), ("sub-01",))
    eeg = {"sub-01": HashedFile(tmp_path, "a")}

    def name(eeg_encoder: str) -> str:
        cell = Cell("synclr_vitb16", "dreamsim", "last", eeg_encoder, "pooled", "sample", "sample")
        trial = Trial(cell, "unaligned", run)
        return _make_job(
            trial, {"sample": eeg}, HashedFile(tmp_path, "b"), recipe, tmp_path
        ).file.name

    weights.write_bytes(b"first")
    first = {eeg_encoder: name(eeg_encoder) for eeg_encoder in ("nice", "labram")}
    assert name("labram") == first["labram"]
    weights.write_bytes(b"another")
    assert name("labram") != first["labram"]
    assert name("nice") == first["nice"]


def weights_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@with_braindecode
@pytest.mark.parametrize("name", SMALL)
def test_a_trained_model_needs_no_file_of_weights(name, published, data, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(published[name], folder)
    run = train(data, tmp_path / "model", name, folder, eeg_encoder_frozen=True, epochs=1)
    notes = json.loads((run / "model.json").read_text())
    assert notes["sizes"]["ch_names"] == ["O1", "Oz", "O2"]
    assert notes["eeg_weights"] == hash_eeg_weights(
        quick_recipe(eeg_encoder=name, eeg_weights=str(folder))
    )

    shutil.rmtree(folder)
    model, _ = load_model(run)
    direct = loaded(name, published[name], ch_names=("O1", "Oz", "O2")).eval()
    eeg = torch.randn(4, 3, 100)
    with torch.no_grad():
        assert torch.equal(model.eeg_encoder(eeg), direct(eeg))
    assert project(model, eeg, torch.randn(4, 20))[0].isfinite().all()


@with_braindecode
def test_figures_say_which_weights_and_not_where_they_lay(published, data, tmp_path):
    quick = {"eeg_encoder_frozen": True, "epochs": 1}
    train(data, tmp_path / "model", "cbramod", published["cbramod"], **quick)
    outs = tmp_path / "details.json", tmp_path / "evaluation.h5", []
    inputs = data / "eeg", data / "embeddings.h5", tmp_path / "model"
    evaluate.main(Path("params.yaml"), *inputs, *outs)

    settings = read_similarities(outs[1]).made_with["settings"]["train"]
    sha256 = hashlib.sha256((published["cbramod"] / "model.safetensors").read_bytes()).hexdigest()
    assert settings["eeg_weights"] == [sha256[:12]]
    assert settings["eeg_encoder_frozen"] is True


@with_braindecode
def test_a_saved_model_has_the_positions_of_its_channels(published, tmp_path):
    """So REVE needs neither its files nor the internet."""
    recipe = quick_recipe(eeg_encoder="reve", eeg_weights=str(tmp_path / "gone"))
    model = ContrastiveModel(ModelSizes(5, 100, 100.0, 20, ch_names=CH_NAMES), recipe).eval()
    model.eeg_encoder.load_pretrained(str(published["reve"]))
    save_model(model, tmp_path / "model", {})

    again, _ = load_model(tmp_path / "model")
    eeg = torch.randn(4, 5, 100)
    with torch.no_grad():
        assert torch.equal(again.embed_eeg(eeg), model.embed_eeg(eeg))


def test_no_other_encoder_looks_at_the_weights(tmp_path):
    assert hash_eeg_weights(quick_recipe(eeg_weights=str(tmp_path / "missing"))) == []
    assert not is_pretrained("nice-recipe") and not is_pretrained("eegnet")
    assert all(is_pretrained(name) for name in NAMES)


def test_what_a_result_must_say_is_in_its_figures(data, tmp_path, monkeypatch):
    """REVE may have seen the test EEG; here the caveat is given to a quicker encoder."""
    [caveat] = caveats_of("reve")
    assert "may have seen the test EEG" in caveat
    assert not caveats_of("nice-recipe") and not caveats_of("eegnet")

    monkeypatch.setattr(NiceRecipe, "caveats", (caveat,))
    recipe = quick_recipe(epochs=1)
    train_all(data / "eeg", data / "embeddings.h5", tmp_path / "model", recipe, 1, HERE)
    outs = tmp_path / "details.json", tmp_path / "evaluation.h5", []
    inputs = data / "eeg", data / "embeddings.h5", tmp_path / "model"
    evaluate.main(Path("params.yaml"), *inputs, *outs)
    assert caveat in json.loads(outs[0].read_text())["caveats"]


# ---------------------------------------------------------------------------- refusals


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def refusal(name: str, folder: object, **changes: object) -> str:
    with pytest.raises(InputError) as raised:
        loaded(name, folder, **changes)
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


@with_braindecode
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_file_is_refused_in_one_sentence(name, published, tmp_path):
    other = {"labram": "cbramod", "cbramod": "reve", "reve": "labram"}[name]
    shutil.copytree(published[other], tmp_path, dirs_exist_ok=True)
    if name == "reve":
        shutil.copy(published["reve"] / "positions.json", tmp_path)
    sentence = refusal(name, tmp_path)
    assert f"model.safetensors: does not hold {name} as it is published: the weight" in sentence
    assert "is missing, expected (" in sentence
    assert "fetch it again from https://huggingface.co/" in sentence
    assert "dvc repro" not in sentence


@with_braindecode
def test_damaged_weights_are_refused(published, tmp_path):
    def save(weights: dict) -> None:
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors")

    weights = safetensors.torch.load_file(published["cbramod"] / "model.safetensors")
    name = "encoder.layers.3.norm1.weight"
    save({key: value for key, value in weights.items() if key != name})
    assert f"the weight {name} is missing, expected (200,)" in refusal("cbramod", tmp_path)

    save(weights | {name: torch.ones(100)})
    assert f"the weight {name} is (100,), expected (200,)" in refusal("cbramod", tmp_path)

    save(weights | {"encoder.layers.12.norm1.weight": torch.ones(200)})
    assert "layers.12.norm1.weight is (200,), expected none" in refusal("cbramod", tmp_path)

    save(weights | {name: torch.full((200,), torch.nan)})
    assert f"{name} has 200 values that are not finite" in refusal("cbramod", tmp_path)

    (tmp_path / "model.safetensors").write_text('12345678{"cut')
    sentence = refusal("cbramod", tmp_path)
    assert "is not a safetensors file" in sentence and "cbramod-pretrained" in sentence


@with_braindecode
def test_no_code_in_a_file_is_run(tmp_path):
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    assert "which could run code and is not read" in refusal("cbramod", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refusal("cbramod", tmp_path)
    assert not (tmp_path / "ran").exists()


@with_braindecode
def test_missing_files_are_told_with_where_they_are_published(published, tmp_path):
    page = "https://huggingface.co/braindecode/labram-pretrained"
    assert f"train.eeg_weights is none: fetch model.safetensors from {page}" in refusal(
        "labram", "none"
    )
    sentence = refusal("labram", tmp_path / "nowhere")
    assert "which is no folder with model.safetensors or pytorch_model.bin of labram" in sentence
    assert page in sentence

    shutil.copy(published["reve"] / "model.safetensors", tmp_path)
    sentence = refusal("reve", tmp_path)
    assert "positions.json is missing beside the weights of reve: fetch it from" in sentence


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no table of positions"),
        ("[1, 2]", "is no table of positions"),
        ('{"O1": 3}', "is no table of positions"),
        ('{"O1": [1, 2]}', "the position of O1 is [1.0, 2.0], expected three numbers"),
        ('{"O1": [1, 2, NaN]}', "the position of O1 is [1.0, 2.0, nan], expected three numbers"),
    ],
)
def test_a_table_that_has_no_positions_is_refused(text, problem, tmp_path):
    path = tmp_path / "positions.json"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_positions(path)
    assert problem in str(raised.value)
    assert "fetch it again from https://huggingface.co/brain-bzh/reve-positions" in str(
        raised.value
    )


@with_braindecode
@pytest.mark.parametrize("name", ["labram", "reve"])
def test_an_unknown_channel_is_refused_and_case_does_not_count(name, published):
    known = loaded(name, published[name], ch_names=("o1", "FP1", "OZ"))
    assert known.output_size == 3 * known.WIDTH
    if name == "reve":
        expected = torch.tensor([POSITIONS["O1"], POSITIONS["FP1"], POSITIONS["Oz"]])
        assert torch.equal(known.positions, expected)

    sentence = refusal(name, published[name], ch_names=("O1", "MEG0111"))
    assert f"the EEG encoder {name} does not know the channel MEG0111: leave it out" in sentence
    assert "is it oz?" in refusal(name, published[name], ch_names=("O1", "O_z")).casefold()


@with_braindecode
def test_cbramod_takes_any_channels(published):
    encoder = loaded("cbramod", published["cbramod"], ch_names=("MEG0111", "MEG0112"))
    assert encoder(torch.randn(2, 2, 100)).shape == (2, 400)


@with_braindecode
def test_names_are_needed():
    with pytest.raises(InputError, match="labram needs the names of 4 channels, and got 0"):
        make_eeg_encoder("labram", n_chans=4, n_times=100, sfreq=100.0, dropout=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_without_braindecode_the_command_that_installs_it_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    with pytest.raises(InputError, match="pip install -e"):
        make(name)


def test_what_cannot_be_trained_is_told_before_any_work(tmp_path):
    p = read_params(Path("params.yaml"))

    def check(**changes: object) -> None:
        recipe = p.train.model_copy(update=changes)
        check_names(p.model_copy(update={"train": recipe}))

    check()
    with pytest.raises(InputError, match="eeg_encoder_frozen is true, .* nice is not pretrained"):
        check(eeg_encoder="nice", eeg_encoder_frozen=True)
    with pytest.raises(InputError, match="train.standardise_eeg is false, .* labram is pretrained"):
        check(eeg_encoder="labram", standardise_eeg=False)
    with pytest.raises(InputError, match="train.eeg_weights is none|needs braindecode"):
        check(eeg_encoder="labram")

    study = p.study.model_copy(update={"eeg_encoders": ["labram", "nice", "cbramod"]})
    with pytest.raises(InputError, match="has labram and cbramod, and train.eeg_weights can name"):
        check_study(p.model_copy(update={"study": study}))
