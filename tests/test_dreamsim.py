"""Against dreamsim itself: the same checkpoint files, the same pictures."""

import functools
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dreamsim
import numpy as np
import pytest
import torch
from dreamsim.config import dreamsim_args, dreamsim_weights
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.images.models.dreamsim import BACKBONES, load_encoder
from pipeline.images.models.table import IMAGE_MODELS
from pipeline.images.models.vit import Framing, ImageEncoder
from pipeline.images.stand_ins import dreamsim as dreamsim_stand_in
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.untrusted.pictures import decode_image
from tests.dreamsim_offline import load_dreamsim, offline

WIDTH = 128  # of the ViTs that are compared: two heads
NARROW = 64  # of those that are damaged
VARIANTS = ("unaligned", "aligned")
FILES = [  # one of each kind, and one of several in an archive
    (backbone, BACKBONES[backbone][1][-1].member)
    for backbone in ("synclr_vitb16", "dinov2_vitb14", "dino_vitb16", "clip_vitb32", "ensemble")
]
SYNCLR, SYNCLR_LORA = "synclr_vit_b_16.pth", "synclr_vitb16_single_lora"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The random checkpoint of a backbone, in the published layout; made once."""

    @functools.cache
    def archive(backbone: str, embed_dim: int = NARROW) -> Path:
        folder = tmp_path_factory.mktemp(backbone)
        make_checkpoint(backbone, folder, embed_dim)
        return folder / f"dreamsim_{backbone}_checkpoint.zip"

    return archive


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(3, 3, 224, 224): noise, and something smooth."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        for size in [(500, 480, 3), (31, 640, 3)]
    ]
    pictures.append(
        Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((400, 300))
    )
    return torch.stack([Framing()(picture) for picture in pictures]).float() / 255


def rewritten(
    archive: Path, folder: Path, changes: dict[str, bytes | Callable[[dict], object] | None]
) -> Path:
    """The archive with some members replaced, left out (None) or, a file of weights, changed by a function."""
    target = folder / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        assert changes.keys() <= set(old.namelist())
        for name in old.namelist():
            change = changes.get(name, b"")
            if callable(change):
                saved = torch.load(io.BytesIO(old.read(name)), weights_only=True)
                change(saved)
                file = io.BytesIO()
                torch.save(saved, file)
                new.writestr(name, file.getvalue())
            elif change is not None:
                new.writestr(name, change or old.read(name))
    return target


# Equality


@dataclass(frozen=True)
class Pair:
    ours: ImageEncoder
    theirs: nn.Module


def disturb(saved: dict) -> None:
    """Random biases, norms and scales, in place of zeros and ones that may stand in the wrong place unnoticed."""
    for value in saved.values():
        if isinstance(value, dict):
            disturb(value)
        elif value.ndim == 1:
            value += 0.1 * torch.randn(
                value.shape, generator=torch.Generator().manual_seed(len(value))
            )


def unpacked(archive: Path) -> Path:
    """The archive, its members beside it, where dreamsim looks for them."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(archive.parent)
    return archive


def load_both(archive: Path, backbone: str, variant: str, embed_dim: int) -> Pair:
    theirs = load_dreamsim(archive.parent, backbone, variant, embed_dim)
    return Pair(load_encoder(archive, backbone, variant)[0], theirs)


@pytest.fixture(scope="module")
def disturbed(archives, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a backbone, disturbed and unpacked; made once for both variants."""

    @functools.cache
    def archive(backbone: str) -> Path:
        changes = {source.member: disturb for source in BACKBONES[backbone][1]}
        return unpacked(
            rewritten(archives(backbone, WIDTH), tmp_path_factory.mktemp("pair"), changes)
        )

    return archive


@pytest.fixture(
    scope="module",
    params=[(backbone, variant) for backbone in BACKBONES for variant in VARIANTS],
    ids="-".join,
)
def pair(request: pytest.FixtureRequest, disturbed) -> Pair:
    backbone, variant = request.param
    return load_both(disturbed(backbone), backbone, variant, WIDTH)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.3  # neither all zeros nor so small that the tolerance says nothing
    print(f"largest difference {(ours - theirs).abs().max():.1e}")  # shown by pytest -rP
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_the_last_is_what_dreamsim_returns(pair: Pair, images: Tensor) -> None:
    with torch.inference_mode():
        [ours] = pair.ours(images)
        theirs = pair.theirs.embed(images)
        if theirs.ndim == 3:  # of the patch variants all tokens: dreamsim's distance pools them
            similarity = torch.nn.functional.cosine_similarity(ours[:1], ours[1:])
            torch.testing.assert_close(
                1 - similarity, pair.theirs(images[:1].expand(2, -1, -1, -1), images[1:])
            )
            theirs = torch.cat([theirs[:, 0], theirs[:, 1:].mean(1)], dim=1)
        assert_equal(ours, theirs)


def test_every_layer_norm_has_dreamsims_eps(pair: Pair) -> None:
    """Random tokens vary too much for it to show in the result; trained ones may not."""
    for ours, theirs in zip(pair.ours.vits, pair.theirs.extractor_list, strict=True):
        eps = [
            {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
            for model in (ours.vit, theirs.model)
        ]
        assert eps[0] == eps[1]


@pytest.mark.parametrize("tokens", ["cls", "mean"])
def test_blocks_and_tokens_are_those_of_dreamsims_vits(
    pair: Pair, images: Tensor, tokens: str
) -> None:
    vits = []
    with torch.inference_mode():
        for vit, name in zip(pair.theirs.extractor_list, pair.theirs.model_list, strict=True):
            after = vit._extract_features(
                pair.theirs._preprocess(images, name), [0, 6, 11]
            )  # (B, 1 + patches, width)
            after.append(vit.model.norm(after[-1]) @ vit.proj if "clip" in name else after[-1])
            of_patches = pair.theirs.is_patch and tokens == "cls"
            vits.append([x[:, 0] if tokens == "cls" else x[:, 1:].mean(1) for x in after])
            if of_patches:
                vits[-1] = [torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=1) for x in after]
        theirs = dict(
            zip(
                (1, 7, 12, "last"),
                (torch.cat(parts, -1) for parts in zip(*vits, strict=True)),
                strict=True,
            )
        )
        blocks = (7, "last", 1, 12, 7)
        for block, ours in zip(blocks, pair.ours(images, blocks, tokens), strict=True):
            assert_equal(ours, theirs[block])


def test_both_variants_differ_and_the_adapter_is_reported(archives, images: Tensor) -> None:
    for backbone, alpha in (("synclr_vitb16", 0.5), ("dino_vitb16", 32.0), ("ensemble", 1.0)):
        outputs = []
        for variant in VARIANTS:
            encoder, adapter = load_encoder(archives(backbone), backbone, variant)
            assert adapter["lora_alpha"] == alpha
            assert adapter["target_modules"] == ["qkv"]
            outputs += encoder(images)
        assert (outputs[0] - outputs[1]).abs().max() > 1


@pytest.mark.long
def test_the_published_width_equals_dreamsim(images: Tensor, tmp_path: Path) -> None:
    make_checkpoint("synclr_vitb16", tmp_path, embed_dim=768)
    pair = load_both(unpacked(next(tmp_path.iterdir())), "synclr_vitb16", "aligned", 768)
    with torch.inference_mode():
        [ours] = pair.ours(images)
        assert ours.shape == (3, 768)
        assert_equal(ours, pair.theirs.embed(images))


def test_the_backbones_are_everywhere_the_same() -> None:
    theirs = set(dreamsim_args["model_config"])
    assert theirs == set(BACKBONES) == set(dreamsim_stand_in.BACKBONES)
    assert theirs == {name for name, model in IMAGE_MODELS.items() if "dreamsim" in model.aligned}


def test_the_archives_are_where_dreamsim_gets_them() -> None:
    for name, address in dreamsim_weights.items():
        file = IMAGE_MODELS[name].published[0]
        assert (
            file.root,
            f"https://github.com/ssundaram21/dreamsim/releases/download/{file.path}",
        ) == (
            "dreamsim_releases",
            address,
        )


def test_a_block_that_is_not_there_is_refused(archives, images: Tensor) -> None:
    encoder, _ = load_encoder(archives("clip_vitb32"), "clip_vitb32", "unaligned")
    for block in (0, 13, -1):
        with pytest.raises(InputError, match=f"blocks 1 to 12 and last, not {block}"):
            encoder(images, (1, block))


# Pictures


def encoded(mode: str, size: tuple[int, int], kind: str) -> bytes:
    """A picture of colours that pass into each other. Of 16-bit grey and see-through ones: tests/test_images.py."""
    rgba = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA"
    ).resize(size)
    options = {"transparency": 3} if mode == "P" else {}
    file = io.BytesIO()
    rgba.convert("RGB").convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [
        *[("RGB", size, "JPEG") for size in [(500, 480), (31, 640), (1, 1), (224, 224), (1, 300)]],
        *[("L", (300, 200), "JPEG"), ("CMYK", (300, 200), "JPEG")],
        *[(mode, (300, 200), "PNG") for mode in ("1", "L", "LA", "P", "RGB")],
    ],
)
def test_a_picture_becomes_what_dreamsim_makes_of_it(
    mode: str, size, kind: str, dreamsims_own: Callable
) -> None:
    data = encoded(mode, size, kind)
    ours = Framing()(decode_image(data, "a.jpg")).float() / 255
    assert torch.equal(ours[None], dreamsims_own(Image.open(io.BytesIO(data))))


def test_a_picture_of_20000_by_20000_is_refused_before_it_is_unpacked() -> None:
    data = bytearray(encoded("RGB", (16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5  # of height and width in the frame header
    data[start : start + 4] = (20000).to_bytes(2, "big") * 2
    with pytest.raises(InputError, match="a/b.jpg: unpacks to far too many pixels .*400000000"):
        decode_image(bytes(data), "a/b.jpg")


@pytest.fixture(scope="module")
def dreamsims_own(
    archives, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Image.Image], Tensor]:
    """The function that dreamsim gives beside its model, for the pictures that go into it."""
    folder = tmp_path_factory.mktemp("dreamsim")
    with zipfile.ZipFile(archives("synclr_vitb16")) as archive:
        archive.extractall(folder)
    with offline(folder, NARROW):
        return dreamsim.dreamsim(
            dreamsim_type="synclr_vitb16", cache_dir=str(folder), device="cpu"
        )[1]


# Faults


def weights_of(saved: dict) -> dict:
    """The weights that are read, wherever the file holds them."""
    return next((saved[key] for key in ("teacher", "model", "state_dict") if key in saved), saved)


def lose(saved: dict, name: str) -> None:
    weights = weights_of(saved)
    del weights[next(key for key in weights if key.endswith(name))]


def widen(saved: dict, name: str) -> None:
    weights = weights_of(saved)
    key = next(key for key in weights if key.endswith(name))
    weights[key] = torch.zeros(5, 5)


def drop_last_block(saved: dict) -> None:
    weights = weights_of(saved)
    for name in [name for name in weights if "blocks.11." in name]:
        del weights[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda saved: lose(saved, "blocks.2.attn.qkv.bias"),
            r"blocks.2.attn.qkv.bias: expected \(192,\), got nothing",
        ),
        (
            lambda saved: lose(saved, "pos_embed"),
            r"pos_embed: expected \(1, \d+, 64\), got nothing",
        ),
        (
            lambda saved: widen(saved, "blocks.3.mlp.fc1.weight"),
            r"fc1.weight: expected \(256, 64\), got \(5, 5\)",
        ),
        (
            lambda saved: widen(saved, "cls_token"),
            r"cls_token: expected \(1, 1, a multiple of 64\), got \(5, 5\)",
        ),
        (drop_last_block, r"blocks.11.attn.proj.bias: expected \(64,\), got nothing"),
        (lambda saved: weights_of(saved).update({"extra": torch.zeros(3)}), "extra"),
        (
            lambda saved: saved.clear(),
            "should hold tensors by name under the key|cls_token: .* got nothing",
        ),
        (
            lambda saved: saved.update(model={}, teacher=[], state_dict={"a": 1}),
            "should hold tensors by name|got nothing",
        ),
    ],
)
@pytest.mark.parametrize(("backbone", "member"), FILES)
def test_weights_that_are_not_all_there_are_refused(
    backbone, member, change, message, archives, tmp_path
) -> None:
    damaged = rewritten(archives(backbone), tmp_path, {member: change})
    with pytest.raises(InputError, match=f"{member}.*{message}"):
        load_encoder(damaged, backbone, "unaligned")


@pytest.mark.parametrize(
    ("backbone", "member", "other", "foreign"),
    [
        ("synclr_vitb16", SYNCLR, "dino_vitb16", "dino_vitb16_pretrain.pth"),
        ("dino_vitb16", "dino_vitb16_pretrain.pth", "synclr_vitb16", SYNCLR),
        ("dinov2_vitb14", "dinov2_vitb14_pretrain.pth", "synclr_vitb16", SYNCLR),
        ("dinov2_vitb14", "dinov2_vitb14_pretrain.pth", "dino_vitb16", "dino_vitb16_pretrain.pth"),
        (
            "clip_vitb32",
            "clip_vitb32_pretrain.pth.tar",
            "dinov2_vitb14",
            "dinov2_vitb14_pretrain.pth",
        ),
        ("clip_vitb32", "clip_vitb32_pretrain.pth.tar", "ensemble", "clip_vitb16_pretrain.pth.tar"),
        (
            "ensemble",
            "open_clip_vitb16_pretrain.pth.tar",
            "open_clip_vitb32",
            "open_clip_vitb32_pretrain.pth.tar",
        ),
    ],
)
def test_another_models_file_is_refused(
    backbone, member, other, foreign, archives, tmp_path
) -> None:
    with zipfile.ZipFile(archives(other)) as archive:
        content = archive.read(foreign)
    with pytest.raises(InputError, match=f"{member}.*another model's"):
        load_encoder(
            rewritten(archives(backbone), tmp_path, {member: content}), backbone, "unaligned"
        )


def test_clips_of_another_patch_size_or_without_projection_are_refused(archives, tmp_path) -> None:
    member = "clip_vitb32_pretrain.pth.tar"
    for name, message in (
        ("proj", r"the weight proj: expected \(64, \d+\), got nothing"),
        ("pos_drop.bias", "the weight norm_pre.bias: expected .64,., got nothing"),
    ):
        damaged = rewritten(
            archives("clip_vitb32"),
            tmp_path,
            {member: lambda saved, name=name: saved["state_dict"].pop(name)},
        )
        with pytest.raises(InputError, match=message):
            load_encoder(damaged, "clip_vitb32", "aligned")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("backbone", "other", "message"),
    [
        ("synclr_vitb16", "dino_vitb16", "synclr_vit_b_16.pth"),
        ("dinov2_vitb14", "synclr_vitb16", "dinov2_vitb14_pretrain.pth"),
        ("ensemble", "dino_vitb16", "clip_vitb16_pretrain.pth.tar"),
        ("dino_vitb16", "ensemble", "dino_vitb16_single_lora"),
    ],
)
def test_another_backbones_archive_is_refused(backbone, other, message, variant, archives) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder(archives(other), backbone, variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("backbone", "other"), [("dino_vitb16", "ensemble"), ("ensemble", "dino_vitb16")]
)
def test_an_adapter_of_other_vits_is_refused(backbone, other, variant, archives, tmp_path) -> None:
    lora, others = (f"{BACKBONES[name][0]}/adapter_model.safetensors" for name in (backbone, other))
    with zipfile.ZipFile(archives(other)) as archive:
        mixed = rewritten(archives(backbone), tmp_path, {lora: archive.read(others)})
    with pytest.raises(
        InputError,
        match=r"should adapt the \d+ layers .* they differ at extractor_list.1.model.blocks.0",
    ):
        load_encoder(mixed, backbone, variant)


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("backbone", "member"), FILES)
def test_a_hostile_checkpoint_runs_nothing(backbone, member, archives, tmp_path) -> None:
    file = io.BytesIO()
    torch.save(
        {key: Marker(tmp_path / "marker") for key in ("model", "teacher", "state_dict")}, file
    )
    with pytest.raises(InputError, match=f"{member} is not a torch file of weights"):
        load_encoder(
            rewritten(archives(backbone), tmp_path, {member: file.getvalue()}),
            backbone,
            "unaligned",
        )
    assert not (tmp_path / "marker").exists()


CONFIG = {
    "r": 16,
    "lora_alpha": 0.5,
    "lora_dropout": 0.1,
    "bias": "none",
    "target_modules": ["qkv"],
}


def config(**changes: object) -> dict[str, bytes]:
    return {f"{SYNCLR_LORA}/adapter_config.json": json.dumps(CONFIG | changes).encode()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{SYNCLR_LORA}/adapter_config.json": b"{"}, "not the configuration of a LoRA"),
        ({f"{SYNCLR_LORA}/adapter_config.json": b"{}"}, "r: field required"),
        ({f"{SYNCLR_LORA}/adapter_config.json": None}, "adapter_config.json"),
        (config(use_dora=True), "use_dora"),
        (config(bias="all"), "bias: input should be 'none'"),
        (config(r=0), "r: input should be greater than 0"),
        (config(lora_alpha=None), "lora_alpha"),
        (config(alpha_pattern={"qkv": 3}), "alpha_pattern"),
        (config(r=3), r"expected factors \(3, 64\)"),
        (config(target_modules=["fc1"]), "they differ at"),
        (config(target_modules=["norm1"]), "they differ at"),
        (config(target_modules=[]), "they differ at"),
        ({f"{SYNCLR_LORA}/adapter_model.safetensors": b"junk"}, "not a safetensors file"),
        ({f"{SYNCLR_LORA}/adapter_model.safetensors": None}, "adapter_model.bin"),
        ({SYNCLR: b"junk"}, "not a torch file of weights"),
        ({SYNCLR: b"PK\x03\x04"}, "not a torch file of weights"),
        ({SYNCLR: None}, SYNCLR),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_damaged_archive_is_told_in_one_sentence(
    archives, tmp_path, changes, message, variant
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_encoder(
            rewritten(archives("synclr_vitb16"), tmp_path, changes), "synclr_vitb16", variant
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_truncated_archive_or_file_is_refused(backbone, archives, tmp_path) -> None:
    archive = archives(backbone)
    (tmp_path / archive.name).write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(InputError, match=archive.name):
        load_encoder(tmp_path / archive.name, backbone, "unaligned")
    member = BACKBONES[backbone][1][-1].member
    with zipfile.ZipFile(archive) as whole:
        content = whole.read(member)
    with pytest.raises(InputError, match=f"{member} is not a torch file of weights"):
        load_encoder(
            rewritten(archive, tmp_path, {member: content[: len(content) // 2]}),
            backbone,
            "unaligned",
        )
