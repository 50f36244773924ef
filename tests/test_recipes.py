"""A dataset, an image model and an EEG encoder from outside the library go through all stages as the library's own do.

The dataset is that of test_recipes_dataset (24 lines of code). docs/adding.md shows each recipe, between two marks.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders.encoder import EegEncoder
from pipeline.eeg_encoders.table import EEG_ENCODERS
from pipeline.errors import InputError
from pipeline.images.embeddings import read_embeddings
from pipeline.images.models.table import IMAGE_MODELS, ImageModel
from pipeline.images.models.vit import ImageEncoder, ViT
from stages import download, embed, evaluate, health, preprocess, report, train, weights
from tests.test_recipes_dataset import TINY
from tests.tiny import explain_evaluation

# The recipe of an image model that timm knows and nobody has aligned, 14 lines of code: its weights in safetensors.
# --8<-- [start:image-model]


def build() -> VisionTransformer:
    return VisionTransformer(img_size=64, embed_dim=192, depth=2, num_heads=3, num_classes=0)


def write_random(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    state = {name: torch.randn_like(value) / 8 for name, value in build().state_dict().items()}
    safetensors.torch.save_file(state, folder / "tiny.safetensors")


def load(checkpoint: Path) -> tuple[ImageEncoder, dict[str, Any]]:
    vit = build()
    vit.load_state_dict(safetensors.torch.load_file(checkpoint))
    return ImageEncoder([ViT(vit, normed=True)]).eval().requires_grad_(False), {}


TINY_VIT = ImageModel("tiny.safetensors", (), write_random, load)
# --8<-- [end:image-model]

# The recipe of an alignment, 6 lines of code: a linear map behind the model, here one that keeps each second dimension.
# --8<-- [start:alignment]


def load_aligned(checkpoint: Path) -> tuple[ImageEncoder, dict[str, Any]]:
    [vit] = load(checkpoint)[0].vits
    matrix = torch.eye(192)[:, ::2]
    aligned = ViT(vit.vit, normed=True, projection=matrix)
    return ImageEncoder([aligned]).eval().requires_grad_(False), {"kind": "linear", "size": 96}


TINY_VIT_ALIGNED = replace(TINY_VIT, aligned={"linear": load_aligned})
# --8<-- [end:alignment]

# The recipe of an EEG encoder, 8 lines of code.
# --8<-- [start:eeg-encoder]


class Linear(EegEncoder):
    def __init__(self, n_chans: int, n_times: int, sfreq: float, dropout: float) -> None:
        super().__init__()
        self.output_size = 16
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(n_chans * n_times, self.output_size), nn.Dropout(dropout)
        )

    def forward(self, eeg: Tensor) -> Tensor:
        return self.layers(eeg)


# --8<-- [end:eeg-encoder]

SETTINGS = {
    "preprocess": {"window": [0.0, 0.9], "channels": "all"},
    "embed": {"blocks": [1, "last"], "device": "cpu"},
    "train": {
        "eeg_encoder": "linear",
        "epochs": 2,
        "batch_size": 4,
        "validation_concepts": 0.2,
        "device": "cpu",
    },
    "evaluate": {"resamples": 100, "top_k": [1, 3], "n_way": [2], "repetitions": [1]},
}


def tiny_values() -> dict[str, Any]:
    values = yaml.safe_load(Path("params.yaml").read_text()) | {
        "dataset": "tiny",
        "backbone": "tiny-vit",
    }
    for section, changes in SETTINGS.items():
        values[section] |= changes
    return values


def test_all_stages_take_entries_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    synthetic = replace(TINY, synthetic=True)
    for table, name, entry in (
        (DATASETS, "tiny", synthetic),
        (IMAGE_MODELS, "tiny-vit", TINY_VIT),
        (EEG_ENCODERS, "linear", Linear),
    ):
        monkeypatch.setitem(table, name, entry)
    values = tiny_values()
    params, raw, metrics = tmp_path / "params.yaml", tmp_path / "raw", tmp_path / "metrics"
    params.write_text(yaml.safe_dump(values))
    images, table, eeg, model = (
        raw / "images",
        raw / "images.csv",
        tmp_path / "eeg",
        tmp_path / "model",
    )
    caches = {encoder: tmp_path / f"{encoder}.h5" for encoder in ("unaligned", "aligned")}
    names = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")
    tables = [metrics / f"{name}.csv" for name in names]

    download.main(params, raw / "eeg", images, raw / "metadata", table)
    weights.main(params, "tiny-vit", tmp_path / "weights")
    preprocess.main(params, raw / "eeg", table, eeg.parent / "private", eeg)
    for alignment, cache in zip(("none", "dreamsim"), caches.values(), strict=True):
        inputs = images, table, tmp_path / "weights", caches["unaligned"]
        embed.main(params, "tiny-vit", alignment, *inputs, cache)
    train.main(params, eeg, caches["unaligned"], model)
    found = metrics / "evaluation.json", tmp_path / "evaluation.h5"
    evaluate.main(params, eeg, caches["unaligned"], model, *found, tables)
    tables += explain_evaluation(
        tmp_path, table, eeg, [caches["unaligned"], *caches.values()], model
    )
    people = tmp_path / "human/similarity.h5"
    health.main(table, people, *caches.values(), metrics / "embeddings.json")
    curves, page = metrics / "learning_curves.csv", metrics / "report.html"
    published = Path("reference/learning_curve.csv")
    rest = metrics / "comparison.json", published, curves, metrics / "pictures", page, tables
    behind = tmp_path / "explanation.json"
    report.main(
        *(params, images, found[1], model / "history.csv", found[0], behind, *rest),
        tmp_path / "baseline.h5",
    )

    summary = json.loads(found[0].read_text())
    assert (summary["dataset"], summary["backbone"], summary["n_way"]) == ("tiny", "tiny-vit", 6)
    assert "tiny-vit" in page.read_text()
    blocks = json.loads((metrics / "embeddings.json").read_text())
    assert blocks["unaligned"].keys() == {"1", "last"} and blocks["aligned"] == {}
    with pytest.raises(InputError, match="tiny-vit has only the unaligned encoder"):
        train.main(params, eeg, caches["aligned"], tmp_path / "aligned")
    params.write_text(yaml.safe_dump(values | {"encoder": "aligned"}))
    with pytest.raises(InputError, match="tiny-vit has only the unaligned encoder"):
        download.main(params, raw / "eeg", images, raw / "metadata", table)


def test_an_alignment_from_outside_is_embedded_beside_the_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "tiny", replace(TINY, synthetic=True))
    monkeypatch.setitem(IMAGE_MODELS, "tiny-vit", TINY_VIT_ALIGNED)
    monkeypatch.setitem(EEG_ENCODERS, "linear", Linear)
    params, images, table = tmp_path / "params.yaml", tmp_path / "images", tmp_path / "images.csv"
    params.write_text(yaml.safe_dump(tiny_values() | {"alignment": "linear"}))
    download.main(params, tmp_path / "eeg", images, tmp_path / "metadata", table)
    weights.main(params, "tiny-vit", tmp_path / "weights")
    values = {}
    for encoder, alignment in (("unaligned", "none"), ("aligned", "linear")):
        cache = tmp_path / f"{encoder}.h5"
        inputs = images, table, tmp_path / "weights", tmp_path / "unaligned.h5"
        embed.main(params, "tiny-vit", alignment, *inputs, cache)
        values[encoder] = read_embeddings(cache, "last").values
    matrix = torch.eye(192)[:, ::2].numpy()
    np.testing.assert_allclose(values["aligned"], values["unaligned"] @ matrix, rtol=0, atol=1e-3)
    with h5py.File(tmp_path / "aligned.h5") as file:
        assert (file.attrs["alignment"], json.loads(file.attrs["aligned_by"])) == (
            "linear",
            {"kind": "linear", "size": 96},
        )
