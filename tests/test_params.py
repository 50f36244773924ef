import re
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.tables import check_image_model, check_names, check_study

SHIPPED = Path("params.yaml")


def changed(tmp_path: Path, key: str, value: object) -> Path:
    """A copy of params.yaml with one key set, or removed where the value is None."""
    values = yaml.safe_load(SHIPPED.read_text())
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_shipped_file_is_valid():
    assert read_params(SHIPPED).dataset == "sample"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder", "align", "encoder is 'align': input should be 'unaligned' or 'aligned'"),
        ("subjects", "sub-01", "subjects is 'sub-01': input should be 'all', or input should be a valid list"),
        ("subjects", [], "subjects is []"),
        ("seed", "42", "seed is '42': input should be a valid integer"),
        ("train.epochs", 0, "train.epochs is 0: input should be greater than 0"),
        ("train.learning_rate", float("nan"), "train.learning_rate is nan: input should be a finite number"),
        ("train.epocs", 10, "unknown key train.epocs"),
        ("train.eeg_encoder", "nice-seed", "train.eeg_encoder is 'nice-seed': is now called nice-recipe"),
        (
            "train.warmup_epochs_encoder",
            4,
            "the key train.warmup_epochs_encoder is now called train.warmup_epochs_eeg_encoder",
        ),
        ("encder", "aligned", "unknown key encder"),
        ("train.epochs", None, "the key train.epochs is missing"),
        ("embed", None, "the key embed is missing"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(tmp_path, key, value, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_params(changed(tmp_path, key, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dataset", "params.yaml: dataset is 'resnet50': should be one of sample, things-eeg2"),
        ("backbone", "params.yaml: backbone is 'resnet50': should be one of synclr_vitb16, dinov2_vitb14"),
        ("alignment", "params.yaml: alignment is 'resnet50': should be one of dreamsim, glocal"),
        ("train.eeg_encoder", "params.yaml: train.eeg_encoder is 'resnet50': should be one of nice-recipe, nice"),
    ],
)
def test_a_name_that_no_table_has_is_told_in_one_sentence(tmp_path, key, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_names(read_params(changed(tmp_path, key, "resnet50")))


def test_a_view_that_there_is_not_is_told_before_any_work(tmp_path):
    with pytest.raises(InputError, match="embed.views has 'blur': should be original, blur-<sd in pixels"):
        check_names(read_params(changed(tmp_path, "embed.views", ["original", "blur"])))


@pytest.mark.parametrize(
    ("backbone", "encoder", "alignment", "message"),
    [
        ("clip_vitl14", "aligned", "dreamsim", "clip_vitl14 is aligned by glocal alone; set alignment to glocal"),
        ("synclr_vitb16", "aligned", "glocal", "synclr_vitb16 is aligned by dreamsim alone; set alignment to dreamsim"),
        ("dino_vitb16", "aligned", "glocal", "are one and the same file, so that at least one is another model's"),
        ("dinov2_vitb14", "aligned", "glocal", "and both are refused; set alignment to dreamsim"),
        ("timm/vit_tiny_patch16_224", "aligned", "glocal", "has only the unaligned encoder; set encoder to unaligned"),
        ("timm/vit_tiny", "unaligned", "glocal", "has no model vit_tiny"),
    ],
)
def test_a_backbone_without_that_alignment_is_told(backbone, encoder, alignment, message):
    with pytest.raises(InputError, match=f"^params.yaml: .*{message}") as error:
        check_image_model(backbone, encoder, alignment)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backbone", ["clip_vitl14", "timm/vit_tiny_patch16_224", "synclr_vitb16"])
def test_the_unaligned_encoder_needs_no_alignment(backbone):
    for alignment in ("dreamsim", "glocal"):
        check_image_model(backbone, "unaligned", alignment)


@pytest.mark.parametrize("text", ["train: [", "", "just words", "\t"])
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="params.yaml") as error:
        read_params(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eeg_encoders": ["nise"]}, "study.eeg_encoders has 'nise': should be of nice-recipe, "),
        ({"alignments": ["dreamsin"]}, "study.alignments has 'dreamsin': should be of dreamsim, glocal"),
        ({"blocks": [6, "last", 6]}, "study.blocks names one twice: 6, last, 6"),
        ({"backbones": ["clip_vitl14"], "alignments": ["glocal"], "blocks": [6]}, "of clip_vitl14 only the block last"),
        ({"backbones": ["resnet"]}, "backbone is 'resnet': should be one of"),
    ],
)
def test_a_grid_that_cannot_be_is_told_before_any_run(changes, message):
    p = read_params(Path("params.yaml"))
    check_study(p)
    with pytest.raises(InputError, match=message):
        check_study(p.model_copy(update={"study": p.study.model_copy(update=changes)}))
