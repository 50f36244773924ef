"""What the pictures show, on data whose picture is known, and that odd data are drawn too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report.retrieval_grid import (
    match_place,
    nearest,
    retrieval_grid,
    typical_queries,
)
from pipeline.report.scalp_map import scalp_map
from pipeline.report.similarity_pictures import embedding_map, similarity_matrix, sort_concepts
from pipeline.report.style import RIGHT, short_name
from pipeline.retrieval import rank_of_match


def random_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 8))
    eeg = images + rng.standard_normal((n, 8))
    return tuple(values / np.linalg.norm(values, axis=1, keepdims=True) for values in (eeg, images))


def pixels(figure: Figure, path: Path) -> np.ndarray:
    figure.savefig(path, dpi=60)
    return np.asarray(Image.open(path).convert("L"))


def test_the_order_shown_has_the_match_where_its_rank_is():
    """Also with ties, which count against the match."""
    eeg, images = random_pairs(30)
    similarity = (eeg @ images.T).round(1)
    place = match_place(nearest(similarity))
    assert np.array_equal(place + 1, rank_of_match(torch.from_numpy(similarity)).numpy())
    assert np.array_equal(match_place(nearest(np.ones((4, 4)))), [3, 3, 3, 3])
    for row, order in zip(similarity, nearest(similarity), strict=True):
        assert np.array_equal(row[order], np.sort(row)[::-1])


def test_best_median_and_worst_queries_by_hand():
    similarity = np.eye(6) * [[0.9], [0.5], [0.7], [0.3], [0.8], [0.1]] - 0.2
    similarity[5, :5], similarity[3, 0] = (
        0.5,
        0.4,
    )  # query 5 is last of six, 3 is second, the others differ in lead
    queries = typical_queries(similarity, nearest(similarity))
    assert queries == [
        ("best", 0),
        ("best", 4),
        ("median", 2),
        ("median", 1),
        ("worst", 3),
        ("worst", 5),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_images_are_shown_once_each(n):
    eeg, images = random_pairs(n)
    queries = typical_queries(eeg @ images.T, nearest(eeg @ images.T))
    assert sorted(query for _, query in queries) == list(range(n))


def test_the_grid_frames_the_image_that_was_seen():
    eeg, images = random_pairs(20)
    similarity, concepts = eeg @ images.T, [f"{i:05}_thing_{i}" for i in range(20)]
    order = nearest(similarity)
    queries = [query for _, query in typical_queries(similarity, order)]
    figure = retrieval_grid(similarity, concepts, None, "title")
    cells = np.array(figure.axes).reshape(len(queries), 6)
    for row, query in zip(cells, queries, strict=True):
        framed = [to_hex(cell.spines["left"].get_edgecolor()).upper() == RIGHT for cell in row]
        assert framed == [False, *(order[query, :5] == query)]
        shown = [cell.texts[0].get_text().replace("\n", " ") for cell in row]
        assert shown[0] == f"thing {query}" or row is cells[0]  # the first row has headings too
        assert [cell.get_xlabel().strip("✓ ") for cell in row[1:]] == [
            f"{s:.2f}" for s in similarity[query, order[query, :5]]
        ]
    assert not any(cell.images for cell in figure.axes)


def test_names_are_text_and_no_formula(tmp_path):
    """`$` starts a formula in matplotlib, and a wrong one is an error."""
    eeg, images = random_pairs(6)
    concepts = [
        r"00001_$\frac$",
        "00002_<b>&amp;",
        "no number",
        "00004_" + "long " * 30,
        "5",
        "00006_ünïcode",
    ]
    picture = Image.new("RGB", (8, 8))
    for figure in (
        retrieval_grid(eeg @ images.T, concepts, None, "title"),
        retrieval_grid(eeg @ images.T, concepts, [picture] * 6, "title"),
        similarity_matrix(eeg @ images.T, concepts, images, "title"),
        scalp_map([r"$\frac$", "O1"], {"lost": np.array([1.0, -1.0])}, "title"),
    ):
        assert pixels(figure, tmp_path / "figure.png").std() > 1


def test_short_names():
    names = {
        "00001_aircraft_carrier": "aircraft carrier",
        "pattern_0012": "pattern 0012",
        "00001_": "00001 ",
        "x": "x",
    }
    assert {name: short_name(name) for name in names} == names


def test_concepts_stay_together_and_like_ones_meet():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 4)
    images = np.eye(3)[group] + 0.05 * rng.standard_normal((12, 3))
    concepts = np.array(["a", "a", "e", "i", "b", "b", "f", "f", "c", "g", "g", "k"])
    shuffled = rng.permutation(12)
    order = shuffled[sort_concepts(concepts[shuffled], images[shuffled])]
    for values in (concepts[order], group[order]):
        assert len([i for i in range(12) if i == 0 or values[i] != values[i - 1]]) == len(
            set(values)
        )


def test_the_map_joins_pairs_on_principal_components():
    eeg, images = random_pairs(9)
    figure = embedding_map(eeg, images, np.arange(9) < 4, "title")
    lines = figure.axes[0].lines[:9]
    both = np.concatenate([eeg, images])
    values, vectors = np.linalg.eigh(np.cov(both.T))
    for component in (0, 1):
        expected = (both - both.mean(0)) @ vectors[:, -1 - component]
        drawn = np.concatenate(
            [[line.get_xydata()[end, component] for line in lines] for end in (0, 1)]
        )
        assert abs(np.corrcoef(drawn, expected)[0, 1]) == pytest.approx(1)
        assert np.var(drawn, ddof=1) == pytest.approx(values[-1 - component])
    assert [line.get_linestyle() for line in lines] == ["-"] * 4 + [":"] * 5


def test_channels_lie_where_they_lie_on_a_head():
    names = ["Oz", "Fpz", "T7", "T8", "Cz", "o1"]
    figure = scalp_map(names, {"lost": np.arange(6.0)}, "title")
    x, y = np.array(figure.axes[0].collections[-1].get_offsets()).T
    assert (
        np.abs(x[[0, 1, 4]]).max() < 0.005 and x[2] < -0.05 and x[3] > 0.05
    )  # m; the left ear is on the left
    assert y[0] < -0.05 and y[1] > 0.05 and abs(y[4]) < 0.02
    assert x[5] < 0 and y[5] < -0.05  # whatever the case of its letters
    assert np.hypot(x, y).max() < 0.095


def test_channels_lie_where_the_data_say():
    angle = np.arange(100)
    places = np.linspace(0.1, 0.9, 100)[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    figure = scalp_map([f"MLC{i}" for i in range(100)], {"lost": np.arange(100.0)}, "title", places)
    np.testing.assert_allclose(figure.axes[0].collections[-1].get_offsets(), 0.095 * places)
    assert (
        not figure.axes[0].texts and figure.axes[0].get_title() == ""
    )  # so many names would hide the map


@pytest.mark.parametrize(
    "names",
    [["EXG1"], ["O1"], ["O1", "A", "B", "C", "D"], ["Fz", "Cz", "Pz", "Oz"], ["O1", "O2", "Oz"]],
)
def test_a_head_is_drawn_for_any_channels(names, tmp_path):
    figure = scalp_map(names, {"lost": np.arange(len(names)) / 10}, "title")
    assert pixels(figure, tmp_path / "figure.png").std() > 1
    unknown = [name for name in names if name in ("EXG1", "A", "B", "C", "D")]
    assert all(name in figure.axes[0].get_title() for name in unknown)


def test_constant_embeddings_and_two_images_are_drawn(tmp_path):
    ones = np.ones((2, 4)) / 2
    figures = [
        retrieval_grid(ones @ ones.T, ["a", "b"], None, "title"),
        similarity_matrix(ones @ ones.T, ["a", "b"], ones, "title"),
        embedding_map(ones, ones, np.zeros(2, bool), "title"),
        scalp_map(["O1", "O2"], {"lost": np.zeros(2)}, "title"),
    ]
    assert all(pixels(figure, tmp_path / "figure.png").std() > 1 for figure in figures)
