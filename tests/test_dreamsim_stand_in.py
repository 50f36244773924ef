import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from dreamsim.feature_extraction import vision_transformer
from PIL import Image

from pipeline.datasets import sample
from pipeline.errors import InputError
from pipeline.images.models.dreamsim import load_encoder
from pipeline.images.models.vit import Framing
from pipeline.images.stand_ins.dreamsim import BACKBONES, make_checkpoint, vit_weights
from tests.dreamsim_offline import load_dreamsim


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Two of each of four concepts: (8, 3, 224, 224)."""
    folder = tmp_path_factory.mktemp("raw")
    size = sample.Size(
        train_concepts=4,
        images_per_concept=2,
        test_concepts=1,
        train_repetitions=1,
        test_repetitions=1,
    )
    sample.make_raw(["sub-01"], folder, folder, folder / "metadata.npy", size)
    with zipfile.ZipFile(folder / "training_images.zip") as archive:
        images = [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    return torch.stack([Framing()(image) for image in images]).float() / 255


@pytest.mark.parametrize(
    "backbone",
    [
        backbone if backbone == "synclr_vitb16" else pytest.param(backbone, marks=pytest.mark.long)
        for backbone in BACKBONES
    ],
)
def test_images_differ_and_those_of_a_concept_less(
    backbone: str, pictures: torch.Tensor, tmp_path: Path
) -> None:
    make_checkpoint(backbone, tmp_path)
    concept = np.arange(len(pictures)) // 2
    other = concept[:, None] != concept
    same = ~other & ~np.eye(len(pictures), dtype=bool)
    unit = {}
    for variant in ("unaligned", "aligned"):
        encoder, _ = load_encoder(
            tmp_path / f"dreamsim_{backbone}_checkpoint.zip", backbone, variant
        )
        [embeddings] = encoder(pictures)
        unit[variant] = torch.nn.functional.normalize(embeddings).numpy()
        cosines = unit[variant] @ unit[variant].T
        assert np.median(cosines[other]) < 0.6
        assert np.median(cosines[same]) > np.median(cosines[other]) + 0.2
    # A mean over patches changes less than one token
    most = 0.95 if backbone.endswith("_patch") else 0.9
    assert 0.3 < (unit["unaligned"] * unit["aligned"]).sum(1).mean() < most


@pytest.mark.long
@pytest.mark.parametrize(
    "backbone", ["dinov2_vitb14", "ensemble"]
)  # between them, three kinds of files
def test_bytes_are_the_same_in_another_process_with_another_number_of_threads(
    backbone: str, tmp_path: Path
) -> None:
    make_checkpoint(backbone, tmp_path / "here")
    program = (
        "import sys; from pathlib import Path; from pipeline.images.stand_ins.dreamsim import make_checkpoint\n"
        f"make_checkpoint('{backbone}', Path(sys.argv[1]))\n"
    )
    environment = {
        "PYTHONPATH": ".",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONHASHSEED": "7",
    }
    subprocess.run([sys.executable, "-c", program, tmp_path / "there"], check=True, env=environment)
    here, there = (next((tmp_path / name).iterdir()) for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


def test_an_unknown_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="synclr_vitb16, .*, ensemble, .*, not 'vgg16': name one of those$"
    ):
        make_checkpoint("vgg16", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backbone", ["synclr_vitb16", "ensemble"])
def test_adapter_names_are_those_that_peft_saves(backbone: str, tmp_path: Path) -> None:
    make_checkpoint(backbone, tmp_path)
    with zipfile.ZipFile(tmp_path / f"dreamsim_{backbone}_checkpoint.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / ("ensemble_lora" if backbone == "ensemble" else f"{backbone}_single_lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    lora = peft.LoraConfig(
        **{
            key: config[key]
            for key in ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
        }
    )
    model = load_dreamsim(tmp_path, backbone, "unaligned", embed_dim=192)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert {key: saved[key] for key in config if key in saved} == config
    theirs = safetensors.torch.load_file(tmp_path / "saved" / "adapter_model.safetensors")
    ours = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }


@pytest.mark.long
def test_a_checkpoint_of_full_width_has_the_shapes_of_vit_base() -> None:
    ours = vit_weights(768, 16, 14, np.random.default_rng(0))
    theirs = vision_transformer.vit_base().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
