import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from pipeline.errors import InputError
from pipeline.evaluate.similarities import settings_of
from pipeline.files import sha256
from pipeline.images.embeddings import read_about, read_embeddings, read_health, write_embeddings
from pipeline.images.models.glocal import read_transform, write_aligned
from pipeline.images.models.table import IMAGE_MODELS
from pipeline.images.models.vit import ImageEncoder, ViT
from pipeline.images.stand_ins.published_vits import MEAN, STD
from stages import embed, weights
from tests.tiny import make_few_images

N, D = 60, 24
RNG = np.random.default_rng(0)
ABOUT = {
    "backbone": "clip_vitl14",
    "encoder": "unaligned",
    "alignment": "none",
    "tokens": "cls",
    "aligned_by": "none",
}
ABOUT |= {"preprocessing": "words", "checkpoint": "model.safetensors", "batch_size": 32}
IDS = [f"training_images/{i}.jpg" for i in range(N)]
LAST = RNG.standard_normal((N, D)).astype(np.float32)
WEIGHTS = (np.eye(D) + RNG.standard_normal((D, D)) / 10).astype(np.float32)
NUMBERS = {"weights": WEIGHTS, "mean": np.float32(0.3), "std": np.float32(0.5)}


@pytest.fixture
def unaligned(tmp_path: Path) -> Path:
    path = tmp_path / "unaligned.h5"
    blocks = [
        ("last", LAST, {"feature": "CLS token, projected", "rows": N}),
        (6, -LAST, {"feature": "sixth"}),
    ]
    write_embeddings(path, IDS, blocks, ABOUT)
    return path


def transform_file(folder: Path, **changes: object) -> Path:
    """As gLocal's authors save it; what is None is left out."""
    path = folder / "transform.npz"
    numbers = {name: value for name, value in (NUMBERS | changes).items() if value is not None}
    np.savez_compressed(path, **numbers, allow_pickle=True)
    return path


def thingsvisions(features: np.ndarray, transform: dict[str, np.ndarray]) -> np.ndarray:
    """What thingsvision 2.7.3 computes, in float64."""
    moved = (features - transform["mean"]) / transform["std"]
    return np.einsum("nd,de->ne", moved, transform["weights"], dtype=np.float64) + transform.get(
        "bias", 0
    )


@pytest.mark.parametrize("bias", [None, RNG.standard_normal(D)])
def test_a_transform_does_what_thingsvision_does_with_it(
    bias: np.ndarray | None, tmp_path: Path
) -> None:
    path = transform_file(tmp_path, bias=bias)
    with np.load(path) as theirs:
        expected = thingsvisions(LAST, dict(theirs))
    ours = read_transform(path)(LAST)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_a_transform_that_changes_nothing_changes_nothing(tmp_path: Path) -> None:
    numbers = {"weights": np.eye(D), "mean": np.array(0.0), "std": np.array(1.0)}
    assert np.array_equal(read_transform(transform_file(tmp_path, **numbers))(LAST), LAST)


def test_the_aligned_cache_is_the_transformed_unaligned_one_and_says_so(
    unaligned: Path, tmp_path: Path
) -> None:
    path, target = transform_file(tmp_path), tmp_path / "aligned.h5"
    write_aligned(unaligned, path, target)
    aligned = read_embeddings(target, "last")
    assert list(aligned.image_ids) == IDS
    np.testing.assert_allclose(aligned.values, thingsvisions(LAST, NUMBERS), rtol=0, atol=1e-5)
    about, blocks = read_about(target)
    assert (
        about.items()
        >= (
            ABOUT | {"encoder": "aligned", "alignment": "glocal", "aligned_by": about["aligned_by"]}
        ).items()
    )
    assert json.loads(about["aligned_by"]) == {"transform": "transform.npz", "sha256": sha256(path)}
    assert "concepts of THINGS" in about["caveat"]
    assert (
        blocks.keys() == {"last"}
        and blocks["last"]["feature"] == "CLS token, projected, transformed by gLocal"
    )
    assert read_health(target)["last"]["reference_cosine"] > 0.99999
    assert settings_of({}, [], target) == settings_of(
        {}, [], unaligned
    )  # so that the two can be compared
    with pytest.raises(
        InputError,
        match="train.block is 6; .* there, last: gLocal transforms the last block alone$",
    ):
        read_embeddings(target, 6)


@pytest.mark.parametrize(
    ("about", "blocks", "message"),
    [
        (ABOUT | {"tokens": "mean"}, ["last"], "needs embed.tokens: cls"),
        (ABOUT, [6], "needs last among embed.blocks"),
    ],
)
def test_where_it_has_no_meaning_the_cache_is_empty_and_says_why(
    about, blocks, message, tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "unaligned.h5", IDS, [(block, LAST, {}) for block in blocks], about)
    write_aligned(tmp_path / "unaligned.h5", transform_file(tmp_path), tmp_path / "aligned.h5")
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "aligned.h5", "last")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, r"got mean \(\), std \(\), allow_pickle"),
        ({"weights": WEIGHTS[:, 1:]}, r"weights \(24, 23\)"),
        ({"weights": WEIGHTS[0]}, r"weights \(24,\)"),
        ({"weights": np.float32(1)}, r"weights \(\)"),
        ({"bias": np.zeros(D - 1)}, r"bias \(23,\)"),
        ({"mean": np.zeros(D)}, r"mean \(24,\)"),
        ({"std": np.float32(0)}, "expected numbers"),
        ({"std": np.float32(np.nan)}, "expected numbers"),
        (
            {"mean": np.float32(np.inf)},
            "mean has 1 values that are not finite; if it is your own file, put a whole one",
        ),
        ({"extra": np.float32(1)}, "extra"),
        (
            {"weights": WEIGHTS[:9, :9]},
            "transforms embeddings of 9 numbers, and those of .* have 24",
        ),
        ({"mean": np.array(["a"])}, "expected numbers"),
    ],
)
def test_another_transform_is_told_in_one_sentence(
    changes, message, unaligned: Path, tmp_path: Path
) -> None:
    path = tmp_path / "transform.npz"
    np.savez(
        path, **{name: value for name, value in (NUMBERS | changes).items() if value is not None}
    )
    with pytest.raises(InputError, match=message.replace(", allow_pickle", "")) as error:
        write_aligned(unaligned, path, tmp_path / "aligned.h5")
    assert "\n" not in str(error.value) and not (tmp_path / "aligned.h5").exists()


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_or_damaged_file_runs_nothing(unaligned: Path, tmp_path: Path) -> None:
    hostile, damaged, bomb = (tmp_path / f"{name}.npz" for name in ("hostile", "damaged", "bomb"))
    np.savez(hostile, **NUMBERS | {"mean": np.array(Marker(tmp_path / "marker"), dtype=object)})
    np.savez(damaged, **NUMBERS)
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (2**24, 2**24)}
        )
        archive.writestr("weights.npy", header.getvalue() + bytes(2**27))
    for path, message in (
        (hostile, "mean.npy is not an array of numbers|mean is not an array of numbers"),
        (damaged, "is not a whole zip"),
        (bomb, "declares"),
    ):
        with pytest.raises(InputError, match=message):
            write_aligned(unaligned, path, tmp_path / "aligned.h5")
    assert not (tmp_path / "marker").exists() and not (tmp_path / "aligned.h5").exists()


def test_nothing_is_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the stages: with no image left, the aligned cache is made all the same."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    make_few_images(tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text(
        yaml.safe_dump(
            yaml.safe_load(Path("params.yaml").read_text()) | {"backbone": "clip_vitl14"}
        )
    )
    model = IMAGE_MODELS["clip_vitl14"]
    both = replace(
        model,
        aligned=model.aligned
        | {"other": lambda file: (model.unaligned(file)[0], {"kind": "other"})},
    )
    monkeypatch.setitem(IMAGE_MODELS, "both", both)
    weights.main(params, "clip_vitl14", tmp_path / "weights")
    caches = {name: tmp_path / f"{name}.h5" for name in ("unaligned", "glocal", "dreamsim")}
    inputs = tmp_path / "images.csv", tmp_path / "weights", caches["unaligned"]
    embed.main(params, "clip_vitl14", "none", tmp_path / "images", *inputs, caches["unaligned"])
    for alignment in ("glocal", "dreamsim"):
        embed.main(
            params, "clip_vitl14", alignment, tmp_path / "no images", *inputs, caches[alignment]
        )
    values = {
        name: read_embeddings(caches[name], "last").values for name in ("unaligned", "glocal")
    }
    with np.load(tmp_path / "weights" / "glocal_clip_vitl14.npz") as transform:
        assert (transform["mean"], transform["std"]) == (np.float32(MEAN), np.float32(STD))
        expected = thingsvisions(values["unaligned"], dict(transform))
    np.testing.assert_allclose(values["glocal"], expected, rtol=0, atol=1e-5)
    with pytest.raises(
        InputError, match="clip_vitl14 is aligned by glocal alone; set alignment to glocal"
    ):
        read_embeddings(caches["dreamsim"], "last")
    of_both = tmp_path / "both_glocal.h5", tmp_path / "both_other.h5"
    with pytest.raises(
        InputError, match="unaligned.h5: is the cache of clip_vitl14, and that of both is needed"
    ):
        embed.main(params, "both", "glocal", tmp_path / "images", *inputs, of_both[0])
    for alignment, cache in (
        ("none", caches["unaligned"]),
        ("glocal", of_both[0]),
        ("other", of_both[1]),
    ):
        embed.main(params, "both", alignment, tmp_path / "images", *inputs, cache)
    assert read_about(of_both[1])[0]["alignment"] == "other"
    # So that two alignments of one backbone can be compared:
    assert settings_of({}, [], of_both[0]) == settings_of({}, [], of_both[1])
    with h5py.File(caches["glocal"]) as file:
        assert "shorter side resized to 224" in file.attrs["preprocessing"]


def test_the_transforms_are_where_thingsvision_gets_them() -> None:
    """Its model and module names, read from thingsvision 2.7.3."""
    published = {
        name: model.published[1]
        for name, model in IMAGE_MODELS.items()
        if "glocal" in model.aligned
    }
    assert {name: (file.root, file.path) for name, file in published.items()} == {
        name: ("glocal", f"transforms/{path}/transform.npz")
        for name, path in (
            ("clip_vitl14", "clip_ViT-L/14/visual"),
            ("open_clip_vitl14_laion400m", "OpenCLIP_ViT-L-14_laion400m_e32/visual"),
            ("open_clip_vitl14_laion2b", "OpenCLIP_ViT-L-14_laion2b_s32b_b82k/visual"),
            ("dino_vitb16", "dino-vit-base-p16/norm"),
            ("dino_vitb8", "dino-vit-base-p8/norm"),
            ("dinov2_vitb14", "dinov2-vit-base-p14/norm"),
            ("dinov2_vitl14", "dinov2-vit-large-p14/norm"),
        )
    }
    # No two are the same file, and each is known to the last bit.
    assert len({file.sha256 for file in published.values()}) == len(published)
    assert all(len(file.sha256) == 64 for file in published.values())
    assert {file.commit for file in published.values()} == {
        "d1860d3e71c2e42cd345438c861f19478d15a95d"
    }


def test_a_transform_is_fetched_at_its_commit_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    monkeypatch.setattr(weights, "fetch_file", lambda *args, **_: fetched.append(args))
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": "things-eeg2"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/x").touch()  # so that the stage has something to show
    weights.main(tmp_path / "params.yaml", "dinov2_vitb14", tmp_path / "weights")
    assert fetched[1] == (
        "https://raw.githubusercontent.com/LukasMut/gLocal/"
        "d1860d3e71c2e42cd345438c861f19478d15a95d/"
        "transforms/dinov2-vit-base-p14/norm/transform.npz",
        tmp_path / "weights",
        "glocal_dinov2_vitb14.npz",
        "9cf041b79d8c4e16d4c9b1a4dc50c9c32f95bdcd3321ed0bf94b128c9b99b947",
    )


@pytest.fixture(scope="module", params=["dino_vitb16", "dinov2_vitb14"])
def of_both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A backbone with both alignments, and the folder of the stand-ins of its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    IMAGE_MODELS[request.param].stand_in(folder)
    return request.param, folder


def tokens_of_last_block(encoder: ImageEncoder, normed: bool) -> np.ndarray:
    vit = encoder.vits[0].vit
    pixels = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return ImageEncoder([ViT(vit, normed=normed)])(pixels)[0].numpy()


def test_beside_dreamsim_the_cached_token_passes_the_last_layer_norm_first(
    of_both: tuple[str, Path], tmp_path: Path
) -> None:
    """So that gLocal gets what it was fitted on, from the cache that DreamSim is compared with."""
    name, folder = of_both
    model = IMAGE_MODELS[name]
    encoder = model.unaligned(folder / model.file)[0]
    norm = encoder.vits[0].vit.norm
    with torch.no_grad():  # stand-ins have scale 1 and bias 0
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))

    before, after = (tokens_of_last_block(encoder, normed) for normed in (False, True))
    ids = IDS[:8]
    blocks = [("last", before, {"feature": "CLS token, before the last LayerNorm"})]
    write_embeddings(
        tmp_path / "unaligned.h5", ids, [*blocks, ("blur-8/last", before[::-1], {})], ABOUT
    )
    file = folder / model.published[1].name
    write_aligned(tmp_path / "unaligned.h5", file, tmp_path / "aligned.h5", "words", norm)

    aligned = read_embeddings(tmp_path / "aligned.h5", "last").values
    with np.load(file) as transform:
        expected = thingsvisions(after, dict(transform))
    np.testing.assert_allclose(aligned, expected, rtol=0, atol=2e-4)
    blurred = read_embeddings(tmp_path / "aligned.h5", "last", "blur-8", "blur-8").values
    assert np.array_equal(blurred, aligned[::-1])
    about, attributes = read_about(tmp_path / "aligned.h5")
    expected_feature = "CLS token after the last LayerNorm, transformed by gLocal"
    assert (attributes["last"]["feature"], about["caveat"]) == (expected_feature, "words")


def test_both_alignments_of_one_base_are_made_with_the_same_settings(
    of_both: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = of_both
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    make_few_images(tmp_path)
    caches = {kind: tmp_path / f"{kind}.h5" for kind in ("none", "dreamsim", "glocal")}
    for kind, cache in caches.items():
        inputs = tmp_path / "images", tmp_path / "images.csv", folder, caches["none"]
        embed.main(Path("params.yaml"), name, kind, *inputs, cache)

    values = {kind: read_embeddings(cache, "last").values for kind, cache in caches.items()}
    model = IMAGE_MODELS[name]
    norm = model.unaligned(folder / model.file)[0].vits[0].vit.norm
    with torch.inference_mode(), np.load(folder / model.published[1].name) as transform:
        expected = thingsvisions(norm(torch.from_numpy(values["none"])).numpy(), dict(transform))
    np.testing.assert_allclose(values["glocal"], expected, rtol=0, atol=1e-5)
    assert np.abs(values["glocal"] - values["dreamsim"]).max() > 0.1

    # So that the two can be compared; what differs besides is told.
    assert settings_of({}, [], caches["glocal"]) == settings_of({}, [], caches["dreamsim"])
    caveat = read_about(caches["glocal"])[0]["caveat"]
    assert "the test concepts among them" in caveat and "gets the whole picture here" in caveat
    assert "after the last LayerNorm" in caveat
    assert ("is not proved" in caveat) == (name == "dinov2_vitb14")
