import io

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import embed as benchmark
from pipeline.untrusted.pictures import open_images

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_picture_has_the_size_of_a_photograph_and_is_the_same_in_every_run():
    content = benchmark.make_picture(3)
    assert Image.open(io.BytesIO(content)).size == (500, 500)
    assert 50_000 < len(content) < 200_000
    assert content == benchmark.make_picture(3) != benchmark.make_picture(4)


def test_the_files_are_such_as_embedding_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "PICTURES", 3)
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    monkeypatch.setattr(benchmark, "VIEWS", ["original", "blur-8"])
    benchmark.make_files(tmp_path)
    names = benchmark.picture_names(tmp_path)
    assert len(names) == 3 and (tmp_path / "dreamsim" / "synclr_vit_b_16.pth").exists()

    with (
        open_images(tmp_path, names) as images,
        benchmark.make_pool_of(images, CPU, benchmark.VIEWS) as pool,
    ):
        benchmark.decode_all(pool, 8, benchmark.repeated(names, 20))
        encoder = benchmark.load(tmp_path)
        embed = benchmark.ours(tmp_path, encoder, pool, CPU, "float32", benchmark.VIEWS)
        values = embed(benchmark.repeated(names, 5))
    assert values.shape == (5, 64)
    np.testing.assert_allclose(values[:2], values[3:], atol=1e-4)


def measured(labels: list[str], walls: list[list[float]]) -> dict[str, list[benchmark.Rates]]:
    return {
        label: [(wall, wall / 2) for wall in rounds]
        for label, rounds in zip(labels, walls, strict=True)
    }


OF_BOTH = [benchmark.OURS, "ours, float32", benchmark.WITH_VIEWS, "products alone, 8"]
DREAMSIM = [benchmark.SINGLE, benchmark.BATCHED]


def test_a_ratio_is_the_median_of_those_within_a_round(capsys):
    patient = [name + benchmark.PATIENT for name in DREAMSIM]
    figures = benchmark.report(
        measured(
            [benchmark.DECODING, *OF_BOTH, *DREAMSIM, *patient],
            [[9, 9, 9], [2, 4, 6], [1, 2, 3], [4, 4, 4], [5, 5, 60]]
            + [[1, 1, 1], [1, 1, 3], [2, 2, 2], [2, 2, 2]],
        ),
        CPU,
    )
    assert figures["embed_per_s"] == 4 and figures["embed_decoded_per_s"] == 9
    assert figures["embed_vs_dreamsim_batched"] == 2
    assert figures["embed_vs_patient_dreamsim_single"] == 2
    assert figures["embed_vs_bound"] == figures["embed_vs_matmul_bound"] == 0.4
    assert figures["embed_float32_vs_dreamsim_batched"] == 1
    assert figures["embed_published_s"] == 33480 / 4
    assert "both encoders on all 16740 images, bfloat16: 8370 s" in capsys.readouterr().out


@pytest.mark.parametrize(("decoded", "ratio"), [(8, 0.5), (99, 0.25)])
def test_on_a_gpu_the_bound_may_be_decoding_and_dreamsim_runs_as_it_comes(decoded, ratio):
    figures = benchmark.report(
        measured(
            [benchmark.DECODING, *OF_BOTH, *DREAMSIM],
            [[decoded] * 2, [4, 4], [2, 2], [4, 4], [16, 16], [1, 1], [2, 2]],
        ),
        CUDA,
    )
    assert figures["embed_vs_bound"] == ratio and figures["embed_vs_matmul_bound"] == 0.25
    assert not any("patient" in key for key in figures)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_each_way_has_a_count(kind):
    assert benchmark.IMAGES[kind].keys() == benchmark.IMAGES["cpu"].keys()
    assert min(benchmark.IMAGES[kind].values()) > 0


def test_the_least_cosine_is_that_of_the_image_that_differs_most():
    reference = np.eye(3, 4, dtype=np.float32)
    values = reference.copy()
    values[1] = [0, 3, 4, 0]
    assert benchmark.least_cosine(values, reference, "bfloat16") == pytest.approx(0.6)
