import re
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from pipeline.errors import InputError
from pipeline.images.models.table import IMAGE_MODELS, kinds_of_alignment
from pipeline.params import read_params
from stages.names import check_image_model, check_names, check_study

SHIPPED = Path("params.yaml")
ALIGNMENTS = ", ".join(kinds_of_alignment())


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
        (
            "subjects",
            "sub-01",
            "subjects is 'sub-01': input should be 'all', or input should be a valid list",
        ),
        ("subjects", [], "subjects is []"),
        ("seed", "42", "seed is '42': input should be a valid integer"),
        ("train.epochs", 0, "train.epochs is 0: input should be greater than 0"),
        (
            "train.learning_rate",
            float("nan"),
            "train.learning_rate is nan: input should be a finite number",
        ),
        ("train.epocs", 10, "unknown key train.epocs; is it train.epochs?"),
        ("learning_rate", 0.1, "unknown key learning_rate; is it train.learning_rate?"),
        ("trian", {"epochs": 1}, "unknown key trian; is it train?"),
        ("zzz", 1, "unknown key zzz; is it misspelt?"),
        (
            "train.block",
            "las",
            "input should be 'last', or input should be a valid integer; is it last?",
        ),
        ("preprocess.mvnn", "epoch", "'time' or 'epochs'; is it epochs?"),
        ("study.protocols", ["poled"], "or 'across'; is it pooled?"),
        ("train.remove_dc", "no", "train.remove_dc is 'no': input should be true or false"),
        (
            "train",
            [1],
            "train is [1]: input should be keys, each with its value on a line of its own",
        ),
        ("runs.where", "locla", "with its port, such as tcp://node1:8786; is it local?"),
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
        ("dataset", "params.yaml: dataset is 'resnet50': should be one of sample, sample-headset"),
        (
            "backbone",
            f"params.yaml: backbone is 'resnet50': should be one of {', '.join(IMAGE_MODELS)}",
        ),
        ("alignment", f"params.yaml: alignment is 'resnet50': should be one of {ALIGNMENTS}"),
        (
            "train.eeg_encoder",
            "params.yaml: train.eeg_encoder is 'resnet50': should be one of nice-recipe, nice",
        ),
    ],
)
def test_a_name_that_no_table_has_is_told_in_one_sentence(tmp_path, key, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_names(read_params(changed(tmp_path, key, "resnet50")))


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("dataset", "things_eeg", "things-eeg2"),
        ("backbone", "synclr-vit-b16", "synclr_vitb16"),
        ("backbone", "CLIP_ViTL14", "clip_vitl14"),
        ("alignment", "dreamsin", "dreamsim"),
        ("train.eeg_encoder", "nise", "nice"),
        ("embed.views", ["original", "blurr-2.6"], "blur"),
        ("embed.views", ["orignal"], "original"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion_that_is_accepted(tmp_path, key, value, near):
    with pytest.raises(InputError, match=f"; is it {near}[?]$") as error:
        check_names(read_params(changed(tmp_path, key, value)))
    assert "\n" not in str(error.value)
    if key != "embed.views":
        check_names(read_params(changed(tmp_path, key, near)))


def test_an_encoder_whose_package_is_missing_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    message = r"EEG encoder eegnet needs braindecode, .*; type: pip install -e '.\[braindecode\]' -c constraints.txt$"
    with pytest.raises(InputError, match=message):
        check_names(read_params(changed(tmp_path, "train.eeg_encoder", "eegnet")))
    with pytest.raises(InputError, match=message):
        check_study(read_params(changed(tmp_path, "study.eeg_encoders", ["nice", "eegnet"])))


def test_a_view_that_there_is_not_is_told_before_any_work(tmp_path):
    with pytest.raises(
        InputError, match="embed.views has 'blur': should be original, blur-<sd in pixels"
    ):
        check_names(read_params(changed(tmp_path, "embed.views", ["original", "blur"])))


@pytest.mark.parametrize(
    ("backbone", "encoder", "alignment", "message"),
    [
        (
            "clip_vitl14",
            "aligned",
            "dreamsim",
            "clip_vitl14 is aligned by glocal alone; set alignment to glocal",
        ),
        (
            "synclr_vitb16",
            "aligned",
            "glocal",
            "synclr_vitb16 is aligned by dreamsim alone; set alignment to dreamsim",
        ),
        (
            "dino_vitb16_patch",
            "aligned",
            "glocal",
            "dino_vitb16_patch is aligned by dreamsim alone; set alignment to dreamsim",
        ),
        (
            "timm/vit_tiny_patch16_224",
            "aligned",
            "glocal",
            "has only the unaligned encoder; set encoder to unaligned",
        ),
        ("timm/vit_tiny", "unaligned", "glocal", "has no model vit_tiny"),
    ],
)
def test_a_backbone_without_that_alignment_is_told(backbone, encoder, alignment, message):
    with pytest.raises(InputError, match=f"^params.yaml: .*{message}") as error:
        check_image_model(backbone, encoder, alignment)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backbone", ["dino_vitb16", "dinov2_vitb14"])
@pytest.mark.parametrize("alignment", ["dreamsim", "glocal"])
def test_a_base_with_both_alignments_takes_either(backbone, alignment):
    check_image_model(backbone, "aligned", alignment)


@pytest.mark.parametrize("backbone", ["clip_vitl14", "timm/vit_tiny_patch16_224", "synclr_vitb16"])
def test_the_unaligned_encoder_needs_no_alignment(backbone):
    for alignment in ("dreamsim", "glocal"):
        check_image_model(backbone, "unaligned", alignment)


@pytest.mark.parametrize(
    "text",
    [
        b"train: [",
        b"",
        b"just words",
        b"\t",
        b"seed: 1\nseed: 2\n",
        b"seed: 2026-13-45\n",
        b"seed: 1\n---\nseed: 2\n",
        b"seed: 1  # f\xfcr alle\n",
        "seed: 1\n".encode("utf-16"),
        b"seed: !!python/object/apply:os.getpid []\n",
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match="params.yaml") as error:
        read_params(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-05", 5e-05),
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1.0),
        ("1e0", 1.0),
    ],
)
def test_a_number_is_one_in_each_way_that_yaml_1_2_writes_it(tmp_path, text, value):
    path = tmp_path / "params.yaml"
    path.write_text(re.sub("  weight_decay: .*", f"  weight_decay: {text}", SHIPPED.read_text()))
    assert read_params(path).train.weight_decay == load_yaml(path)["train"]["weight_decay"] == value


@pytest.mark.parametrize(
    ("text", "value"), [("010", 10), ("0o10", 8), ("0x10", 16), ("1_000", 1000)]
)
def test_a_whole_number_is_what_dvc_tracks(tmp_path, text, value):
    path = tmp_path / "params.yaml"
    path.write_text(re.sub("^seed: .*", f"seed: {text}", SHIPPED.read_text(), flags=re.M))
    assert read_params(path).seed == load_yaml(path)["seed"] == value


@pytest.mark.parametrize("text", ["1:30", "1e3", "2026-01-02", "'42'", "~"])
def test_what_is_no_whole_number_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(re.sub("^seed: .*", f"seed: {text}", SHIPPED.read_text(), flags=re.M))
    with pytest.raises(InputError, match="seed is .*: input should be a valid integer$"):
        read_params(path)


@pytest.mark.parametrize(
    "saved", [b"\xef\xbb\xbf%s", b"%s"], ids=["with a byte order mark", "without"]
)
def test_a_file_that_a_windows_editor_saved_is_read(tmp_path, saved):
    path = tmp_path / "params.yaml"
    path.write_bytes(saved % SHIPPED.read_bytes().replace(b"\n", b"\r\n"))
    assert read_params(path).model_dump() == load_yaml(path) == read_params(SHIPPED).model_dump()


def test_a_file_in_latin_1_is_read_once_it_is_saved_as_utf_8(tmp_path):
    path = tmp_path / "params.yaml"
    text = SHIPPED.read_text() + "# für alle\n"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="is not text in UTF-8 .*; save it as UTF-8$"):
        read_params(path)
    path.write_text(text, encoding="utf-8")
    assert read_params(path) == read_params(SHIPPED)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read .*; run this in the project's folder"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(InputError, match="it is a folder and should be a file .*: move it away"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eeg_encoders": ["nise"]},
            "study.eeg_encoders has 'nise': should be one of nice-recipe, .*; is it nice[?]",
        ),
        (
            {"alignments": ["dreamsin"]},
            f"study.alignments has 'dreamsin': should be one of {ALIGNMENTS}; is it dreamsim[?]",
        ),
        ({"blocks": [6, "last", 6]}, "study.blocks names one twice: 6, last, 6"),
        (
            {"backbones": ["clip_vitl14"], "alignments": ["glocal"], "blocks": [6]},
            "of clip_vitl14 only the block last",
        ),
        (
            {"eeg_encoders": ["ridge"], "blocks": ["mix"]},
            "study.blocks is mix alone, and ridge learns no weights of blocks",
        ),
        ({"backbones": ["resnet"]}, "backbone is 'resnet': should be one of"),
        (
            {"recordings": ["first", "second"]},
            "study.recordings has second, and there is no second recording: name it in "
            "across.dataset, or take second out of study.recordings",
        ),
        (
            {"protocols": ["pooled", "across"]},
            "study.protocols has across, and there is no second recording: name it in "
            "across.dataset, or take across out of study.protocols",
        ),
        ({"recordings": ["first", "first"]}, "study.recordings names one twice: first, first"),
    ],
)
def test_a_grid_that_cannot_be_is_told_before_any_run(changes, message):
    p = read_params(Path("params.yaml"))
    check_study(p)
    with pytest.raises(InputError, match=message):
        check_study(p.model_copy(update={"study": p.study.model_copy(update=changes)}))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("sample", "across.dataset is sample, and so is dataset: name another recording"),
        ("smaple", "across.dataset is 'smaple': should be one of .*; is it sample"),
    ],
)
def test_a_second_recording_of_a_study_that_cannot_be_is_told(dataset, message):
    p = read_params(SHIPPED)
    study = p.study.model_copy(update={"recordings": ["second"], "protocols": ["across"]})
    p = p.model_copy(update={"study": study})
    second = p.across.model_copy(update={"dataset": "sample-headset"})
    check_study(p.model_copy(update={"across": second}))

    second = p.across.model_copy(update={"dataset": dataset})
    with pytest.raises(InputError, match=message):
        check_study(p.model_copy(update={"across": second}))
