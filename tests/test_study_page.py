"""The pictures and the page of a study: that they show the summary, and that the page works in a real browser."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from study_grid import ENCODERS, FACTS, cells, draw, names, trials
from web_pages import CONTRAST, PAPER, TEXT, opened, words

from pipeline.files import sha256
from pipeline.params import read_params
from pipeline.report.study_page import write_study_page
from pipeline.report.study_pictures import across_blocks, all_cells, by_depth, draw_study_pictures
from pipeline.sections import Evaluate
from pipeline.study.results import Cell
from pipeline.study.summary import summarise

HOSTILE = "<script>throw Error('ran')</script>"
PARAMETERS = Evaluate(**read_params(Path("params.yaml")).evaluate.model_dump() | {"resamples": 200})
Study = tuple[dict, pd.DataFrame]


def study(
    of: list[Cell],
    n_subjects: int = 6,
    failures: int = 0,
    collapsed: int | None = None,
    seeds: tuple[int, ...] = (1, 2),
    **facts: object,
) -> Study:
    """Summary and table as they are read from their files; the first runs of the last cell failed."""
    answers = draw(of, n_subjects, seeds, [0.25 if i % 2 else 0.0 for i in range(len(of))])
    answers = [
        dataclasses.replace(one, collapsed=one.trial.run.seed == collapsed) for one in answers
    ]
    lost = {
        trial: f"no memory {HOSTILE}"
        for trial in trials(of[-1], names(n_subjects), seeds)[:failures]
    }
    summary, table = summarise(answers, lost, FACTS | facts, PARAMETERS, 0)
    return json.loads(json.dumps(summary)), table


def page(folder: Path, of: Study, with_pictures: bool = True) -> Path:
    summary, table = of
    pictures = draw_study_pictures(folder / "pictures", summary, table) if with_pictures else []
    write_study_page(
        folder / "study.html",
        summary=summary,
        table=table,
        pictures=pictures,
        settings={"train": {"epochs": 3}},
        reproduce="dvc repro\nanother line",
        hashes={"metrics/study.csv": "ab12"},
    )
    return folder / "study.html"


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Path, dict]:
    """A page whose names would run if they could, with two protocols, three blocks and a failed run."""
    of = cells(
        ["clip_vitb32", "synclr_vitb16"],
        ["nice", HOSTILE],
        ["pooled", "within-subject"],
        ["6", "11", "last"],
    )
    everything = study(of, failures=1, synthetic=True)
    return page(tmp_path_factory.mktemp("study"), everything), everything[0]


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> tuple[Path, dict]:
    """The size of the grid of the paper: 48 cells, 10 subjects."""
    of = cells(
        [f"backbone{i}_vitb16" for i in range(6)],
        [f"encoder-{i}" for i in range(4)],
        ["pooled", "within-subject"],
    )
    everything = study(of, n_subjects=10, seeds=(1,))
    return page(tmp_path_factory.mktemp("paper"), everything), everything[0]


def texts(page, column: int) -> list[str]:
    return page.eval_on_selector_all(
        "#grid tbody tr", f"rows => rows.map(row => row.cells[{column}].innerText)"
    )


def test_the_table_says_what_the_summary_says(full, browser):
    path, summary = full
    with opened(browser, path) as shown:
        assert shown.inner_text("#answer") == summary["answer"]
        rows = shown.eval_on_selector_all(
            "#grid tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        )
        assert len(rows) == len(summary["cells"]) == 24
        for row, cell in zip(rows, summary["cells"], strict=True):
            top1 = cell["difference"]["top1_acc"] if cell["difference"] else None
            assert row[:4] == [
                cell["backbone"],
                cell["block"],
                cell["eeg_encoder"],
                cell["protocol"],
            ]
            assert row[4:6] == [
                f"{100 * cell[encoder]['top1_acc']:.1f}" for encoder in ("unaligned", "aligned")
            ]
            assert row[6] == f"{100 * top1['mean']:+.1f}"
            if cell["verdict"] == "no claim":
                assert row[7:] == ["–", "–", "–", "no claim: 1 of 12 unaligned runs failed"]
            else:
                low, high = top1["ci95"]
                p = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in (cell["p"], cell["p_holm"])]
                assert row[7:] == [f"{100 * low:+.1f} to {100 * high:+.1f}", *p, cell["verdict"]]
        assert {cell["verdict"] for cell in summary["cells"]} == {
            "better",
            "no difference shown",
            "no claim",
        }
        assert shown.locator("#by-subject tbody tr").count() == 24 * 6


def test_a_heading_sorts_numbers_and_names(full, browser):
    path, summary = full
    with opened(browser, path) as shown:
        heading = shown.locator("#grid th", has_text="difference")
        for order, reverse in (("ascending", False), ("descending", True)):
            heading.locator("button").press("Enter")
            assert heading.get_attribute("aria-sort") == order
            values = [float(text) for text in texts(shown, 6)]
            assert values == sorted(values, reverse=reverse) and len(set(values)) > 5
        shown.locator("#grid th button", has_text="block").click()
        assert texts(shown, 1) == ["6"] * 8 + ["11"] * 8 + ["last"] * 8
        assert heading.get_attribute("aria-sort") is None
        shown.locator("#grid th button", has_text="Holm p").click()
        p = [cell["p_holm"] for cell in summary["cells"] if cell["p_holm"] is not None]
        assert (
            texts(shown, 9)[:1] == ["< 0.001" if min(p) < 0.001 else f"{min(p):.3f}"]
            and texts(shown, 9)[-1] == "–"
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_fits_and_can_be_read(full, paper, browser, width, theme):
    """As the report: no sideways scrolling on a phone, and the contrast that WCAG 2.2 AA asks of text (4.5)."""
    for path, _ in (full, paper):
        with opened(browser, path, width, theme) as shown:
            shown.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[theme]
            ratios = shown.evaluate(CONTRAST, TEXT)
            assert len(ratios) > 200 and min(ratios) >= 4.5


def test_the_grid_of_the_paper_stays_small_and_shows_its_verdicts(paper, browser):
    path, _ = paper
    assert path.stat().st_size < 2e6
    with opened(browser, path) as shown:
        assert (
            shown.locator("#grid tbody tr").count() == 48
            and shown.locator("#by-subject tbody tr").count() == 480
        )
        right = shown.eval_on_selector("#grid", "table => table.getBoundingClientRect().right")
        assert right <= shown.eval_on_selector("main", "main => main.getBoundingClientRect().right")
        for image in shown.query_selector_all("img"):
            assert (
                len(image.get_attribute("alt")) > 50
                and image.evaluate("image => image.naturalWidth") > 1000
            )


@pytest.mark.long
def test_the_same_study_gives_the_same_bytes(tmp_path):
    of = study(cells(blocks=("6", "last")))
    files = [page(tmp_path, of), *sorted((tmp_path / "pictures").iterdir())]
    before = [sha256(path) for path in files]
    page(tmp_path, of)
    assert [sha256(path) for path in files] == before


def test_what_broke_or_flatters_is_said_before_the_figures(tmp_path):
    of = study(cells(), failures=2, collapsed=2, synthetic=True, selected_on="test")
    text = words(page(tmp_path, of, with_pictures=False))
    for said in (
        "Synthetic data",
        "Optimistic",
        "2 of 16 runs failed",
        "7 of 16 runs collapsed",
        "dreamsim, block last",
    ):
        assert text.index(said) < text.index("Every cell")
    assert (
        f"unaligned, pooled, seed 1: no memory {HOSTILE}" in text
        and "aligned, pooled, seed 2" in text
    )
    assert "A caveat." in text and "dvc repro another line" in text and "ab12" in text


def test_a_table_read_from_its_file_gives_the_same_page(tmp_path):
    """There blocks that are all numbers come back as such."""
    summary, table = study(cells(["clip_vitb32"], blocks=("6", "11")), failures=1)
    path = page(tmp_path, (summary, table))
    before = sha256(path)
    table.to_csv(tmp_path / "study.csv", index=False)
    assert sha256(page(tmp_path, (summary, pd.read_csv(tmp_path / "study.csv")))) == before


def test_nothing_left_has_a_page_too(tmp_path):
    of = cells(["clip_vitb32"], ["nice"])
    summary, table = summarise(
        [], dict.fromkeys(trials(of[0], names(2), (1,)), "why"), FACTS, PARAMETERS, 0
    )
    text = words(page(tmp_path, (summary, table)))
    assert "No result: of 2 runs 2 collapsed or failed" in text and "Pictures" not in text


def points(figure: Figure, axes: int) -> list[tuple[float, float]]:
    """Of the large points: where they are."""
    drawn = [
        c for c in figure.axes[axes].collections if c.get_sizes().size and c.get_sizes()[0] > 20
    ]
    return [tuple(np.round(c.get_offsets()[0], 6)) for c in drawn]


def test_every_cell_and_subject_is_drawn_where_it_is():
    summary, table = study(cells(), n_subjects=3)
    figure = all_cells(summary["cells"], table, summary["chance_top1"], "title")
    left, right = figure.axes
    expected = [
        (100 * cell[encoder]["top1_acc"], row + shift)
        for row, cell in enumerate(summary["cells"])
        for encoder, shift in (("unaligned", -0.18), ("aligned", 0.18))
    ]
    np.testing.assert_allclose(points(figure, 0), expected, atol=1e-5)
    small = [c for c in left.collections if c.get_sizes()[0] < 20]
    assert [len(c.get_offsets()) for c in small] == [3] * 8
    of_first = table[
        (table["encoder"] == "aligned")
        & (table["eeg_encoder"] == "atm-s")
        & (table["backbone"] == "clip_vitb32")
    ]
    np.testing.assert_allclose(
        small[1].get_offsets()[:, 0], 100 * of_first.groupby("subject")["top1_acc"].mean()
    )
    differences = [
        (100 * cell["difference"]["top1_acc"]["mean"], row)
        for row, cell in enumerate(summary["cells"])
    ]
    np.testing.assert_allclose(points(figure, 1), differences, atol=1e-5)
    ends = [100 * np.array(cell["difference"]["top1_acc"]["ci95"]) for cell in summary["cells"]]
    intervals = [
        line
        for line in right.lines
        if np.ptp(line.get_ydata()) == 0 and line.get_ydata()[0] in range(4)
    ]
    np.testing.assert_allclose([line.get_xdata() for line in intervals], ends)
    assert [label.get_text() for label in left.get_yticklabels()] == [
        f"{backbone}, {eeg}"
        for backbone in ("clip_vitb32", "synclr_vitb16")
        for eeg in ("atm-s", "nice")
    ]
    assert "chance, 2.0 %" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_blocks_lie_in_their_order():
    summary, _ = study(cells(["clip_vitb32"], blocks=("11", "last", "6")), n_subjects=2)
    figure = across_blocks(summary["cells"], "title")
    [ax] = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["6", "11", "last"]
    for place, name in enumerate(("atm-s", "nice")):
        mine = {cell["block"]: cell for cell in summary["cells"] if cell["eeg_encoder"] == name}
        y = [100 * mine[block]["difference"]["top1_acc"]["mean"] for block in ("6", "11", "last")]
        line = [line for line in ax.lines if len(line.get_xdata()) == 3][place]
        np.testing.assert_allclose(line.get_ydata(), y)


def test_pictures_are_those_that_there_are(tmp_path):
    summary, table = study(
        cells(["clip_vitb32"], ["nice"], ["pooled", "within-subject"]), failures=4
    )
    names_of = [picture.path.name for picture in draw_study_pictures(tmp_path, summary, table)]
    assert names_of == ["cells-pooled.png", "cells-within-subject.png"]
    summary, table = study(cells(["clip_vitb32"], ["nice"], ["pooled"], ["6", "last"]), collapsed=1)
    names_of = [picture.path.name for picture in draw_study_pictures(tmp_path, summary, table)]
    assert names_of == ["cells-pooled.png", "depth-pooled.png", "blocks-pooled.png"]


def test_each_row_says_who_trained_and_who_was_tested(tmp_path, browser):
    pairs = [("a", "a"), ("a", "b"), ("b", "a")]
    of = [
        *cells(["clip_vitb32"], ["nice"], datasets=pairs[:1]),
        *cells(["clip_vitb32"], ["nice"], ["across"], datasets=pairs[1:]),
    ]
    summary, table = study(of, failures=1)
    path = page(tmp_path, (summary, table))
    assert sorted(picture.name for picture in (tmp_path / "pictures").iterdir()) == [
        "cells-across-a-to-b.png",
        "cells-across-b-to-a.png",
        "cells-pooled-a.png",
    ]
    with opened(browser, path) as shown:
        titles = shown.eval_on_selector_all(
            "#grid thead th", "all => all.map(one => one.innerText)"
        )
        assert titles[:4] == ["backbone", "protocol", "trained on", "tested on"]
        rows = zip(texts(shown, 1), texts(shown, 2), texts(shown, 3), strict=True)
        assert [*rows] == [("across", "a", "b"), ("across", "b", "a"), ("pooled", "a", "a")]
        headings = shown.eval_on_selector_all("figure h3", "all => all.map(one => one.innerText)")
        assert headings[0] == "Every cell: across, trained on a, tested on b"
    text = words(path)
    assert "across, trained on b, tested on a: unaligned, across, seed 1: no memory" in text

    # Of one recording it stands above the table
    alone = words(page(tmp_path, study(cells(["clip_vitb32"], ["nice"])), with_pictures=False))
    assert "trained on things-eeg2, tested on things-eeg2." in alone


def test_top1_by_depth_is_that_of_the_cells():
    summary, _ = study(cells(["clip_vitb32"], ["nice"], blocks=("11", "last", "6")), n_subjects=2)
    [ax] = by_depth(summary["cells"], summary["chance_top1"], "title").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["6", "11", "last"]
    curves = [line for line in ax.lines if len(line.get_xdata()) == 3]
    by_block = {cell["block"]: cell for cell in summary["cells"]}
    for encoder, curve in zip(("unaligned", "aligned"), curves, strict=True):
        top1 = [100 * by_block[block][encoder]["top1_acc"] for block in ("6", "11", "last")]
        np.testing.assert_allclose(curve.get_ydata(), top1)
    low, high = ([*line.get_ydata()] for line in ax.lines[1:3])
    assert low != high  # an interval at each point


def test_each_cell_stands_beside_ridge(tmp_path):
    of_study = study(cells(["clip_vitb32"], ["nice", "ridge"], blocks=("6", "last")))
    deep = [cell for cell in of_study[0]["cells"] if cell["eeg_encoder"] == "nice"]
    ridge = {c["block"]: c for c in of_study[0]["cells"] if c["eeg_encoder"] == "ridge"}
    for cell in deep:
        expected = {side: ridge[cell["block"]][side]["top1_acc"] for side in ENCODERS}
        assert cell["ridge"] == expected
    assert all(cell["ridge"] is None for cell in ridge.values())
    assert of_study[0]["without_seeds"] == ["ridge"]

    text = page(tmp_path, of_study, with_pictures=False).read_text()
    assert "ridge, unaligned" in text and "Ridge: top-1 of the linear baseline" in text
    without = page(tmp_path, study(cells(["clip_vitb32"], ["nice"])), with_pictures=False)
    assert "ridge" not in without.read_text().split('<h2 id="cells">')[1].split("<h2")[0]

    left = all_cells(of_study[0]["cells"], of_study[1], 0.02, "title").axes[0]
    strokes = [line for line in left.lines if line.get_marker() == "|"]
    assert len(strokes) == 2 * len(deep)
    assert strokes[0].get_xdata() == [100 * deep[0]["ridge"]["unaligned"]]
