"""The page in a real browser: that its figures are those of the files, that it fetches nothing, and that it fits."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from web_pages import CONTRAST, PAPER, TEXT, opened, words

from pipeline.compare.comparison import compare
from pipeline.compare.explained import explain_difference
from pipeline.datasets.human import HumanSimilarity
from pipeline.datasets.published import Published
from pipeline.datasets.table import DATASETS, THINGS_EEG2
from pipeline.evaluate.evaluation import tabulate
from pipeline.evaluate.scoring import Scores, SharedAxes
from pipeline.evaluate.similarities import (
    Similarities,
    SubjectResult,
    read_similarities,
    write_similarities,
)
from pipeline.evaluate.statistics import draw_resamples
from pipeline.explain.calibration import ranks, tabulate_calibration
from pipeline.explain.concepts import tabulate_concepts
from pipeline.explain.galleries import count_ahead, tabulate_galleries
from pipeline.explain.near_misses import PEOPLE, tabulate_near_misses
from pipeline.explain.responses import explain_responses
from pipeline.files import sha256
from pipeline.images.embeddings import Embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import Recording
from pipeline.report.page import chance_levels, learning_curves, write_report
from pipeline.retrieval import score_queries
from pipeline.sections import Evaluate
from pipeline.train.model import ContrastiveModel, ModelSizes
from stages import write_json
from stages.explain import describe_people
from stages.report import main

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "<script>throw Error('ran')</script>"
ENCODERS = ("unaligned", "aligned")
TABLES = ("per_subject", "top_k", "n_way", "repetitions", "time_course", "channels")
TABLES += ("galleries", "calibration", "reliability", "rsa")  # of the stage explain
TABLES += ("near_misses", "concepts")
CHARTS = 9
PARAMETERS = Evaluate(**read_params(Path("params.yaml")).evaluate.model_dump() | {"resamples": 200})


def evaluate(
    folder: Path,
    *,
    subjects: int = 2,
    seeds: int = 1,
    n_images: int = 12,
    collapsed: tuple[int, ...] = (),
    draw: int = 0,
    **made_with: object,
) -> None:
    """Write what the evaluate stage does, of random embeddings that agree in part; `collapsed` are seeds."""
    rng = np.random.default_rng(draw)
    ids = np.array([f"test_images/{i:05}_concept/{i}.jpg" for i in range(n_images)], dtype=object)
    concept = np.array([f"{i:05}_{HOSTILE}" for i in range(n_images)], dtype=object)
    windows = [slice(start, start + 4) for start in range(0, 16, 2)]
    axes = SharedAxes(
        ids, concept, concept, ("O1", "Oz", "O2", "Pz", "POz"), np.arange(-4, 16) / 20, 4, windows
    )
    outcomes = []
    for seed in range(42, 42 + seeds):
        images = _unit(rng.standard_normal((n_images, 16)))

        def queries(eeg: np.ndarray, images: np.ndarray = images) -> dict[str, np.ndarray]:
            return {
                name: value.numpy()
                for name, value in score_queries(torch.from_numpy(eeg @ images.T), 10).items()
            }

        def noisy(noise: float, *many: int, images: np.ndarray = images) -> np.ndarray:
            return _unit(images + noise * rng.standard_normal((*many, *images.shape)))

        for subject in range(1, subjects + 1):
            eeg = noisy(0.3) if seed not in collapsed else np.full_like(images, 0.25)
            scored = SubjectResult(
                "pooled",
                seed,
                f"sub-{subject:02}",
                7,
                seed in collapsed,
                10.0,
                images,
                eeg,
                eeg @ images.T,
            )
            outcome = Scores(
                scored,
                full=scored.queries(),
                windows=queries(noisy(2, len(windows))),
                channels=queries(noisy(0.4, 5)),
                repetitions={n: queries(noisy(0.8 / n, 3)) for n in (1, 2)},
            )
            outcomes.append(outcome)
    about = {
        "dataset": "sample",
        "synthetic": True,
        "planted": "Planted here: something.",
        "backbone": "synclr_vitb16",
        "encoder": "aligned",
        "control": "none",
    }
    about |= {
        "protocol": "pooled",
        "selected_on": "validation",
        "views": "original",
        "views_in_gallery": "original",
    }
    about |= made_with
    summary, tables = tabulate(outcomes, axes, about, PARAMETERS, 42)
    folder.mkdir()
    summary["caveats"] = list(DATASETS[about["dataset"]].caveats)
    (folder / "evaluation.json").write_text(json.dumps(summary))
    settings = {"settings": {"train": {"epochs": 3, "eeg_encoder": HOSTILE}}}
    everything = Similarities(
        ids, concept, concept, [outcome.result for outcome in outcomes], about | settings
    )
    write_similarities(folder / "evaluation.h5", everything)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    explain(everything, folder)
    epoch = np.arange(1, 11)
    history = {
        "epoch": epoch,
        "train_loss": 5 / epoch,
        "selection_loss": 4 / epoch,
        "selection_top1": epoch / 20,
    }
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images/test_images.zip", "w") as archive:
        for image_id in ids:
            with archive.open(image_id, "w") as file:
                Image.new("RGB", (40, 30), "red").save(file, "JPEG")


def people_of(concepts: np.ndarray) -> HumanSimilarity:
    """Random judgements of people, who are called by a hostile name too."""
    values = np.random.default_rng(5).random((len(concepts), len(concepts)))
    category = np.arange(len(concepts))[:, None] % 5 == np.arange(4)  # every fifth is in none
    names = np.array([f"category {HOSTILE} {i}" for i in range(4)], dtype=object)
    alike = (values + values.T) / 2
    return HumanSimilarity(concepts, alike, names, category, f"simulated {HOSTILE}", True)


def explain(scored: Similarities, folder: Path) -> None:
    """Write what the explain stage does; thirty random training images of ten concepts."""
    results = scored.valid_results
    people = people_of(scored.things_concept)
    subjects = [result.subject for result in results]
    resamples = draw_resamples(len(set(subjects)), len(results[0].eeg), 200, 42)
    concept = np.arange(30) % 10
    training = _unit(np.random.default_rng(1).standard_normal((30, 16)))
    ahead = [count_ahead(result, training, concept) for result in results]
    tables = {
        "galleries": tabulate_galleries(
            subjects, ahead, np.bincount(concept), [20], PARAMETERS.top_k, resamples
        ),
        "calibration": tabulate_calibration(
            subjects, [ranks(result) for result in results], PARAMETERS.top_k, resamples
        ),
        "near_misses": tabulate_near_misses(
            results,
            {PEOPLE: people.similarity},
            resamples,
            42,
            people.same_category(people.things_concept.tolist()),
        ),
        "concepts": tabulate_concepts(scored, people.similarity),
    }
    modality = scored.made_with.get("modality", "EEG")
    summaries, of_responses = explain_random_responses(len(results[0].eeg), modality=modality)
    for name, table in (tables | of_responses).items():
        table.to_csv(folder / f"{name}.csv", index=False)
    facts = {"n_resamples": 200, "human_similarity": describe_people(people)}
    write_json(folder / "explanation.json", facts | summaries)


def explain_random_responses(
    n_images: int,
    n_repetitions: int = 4,
    encoders: tuple[str, ...] = ENCODERS,
    modality: str = "EEG",
) -> tuple[dict, dict[str, pd.DataFrame]]:
    """Reliability and geometry of what two subjects see in noise, with an untrained model."""
    rng = np.random.default_rng(2)
    ids = np.array([f"{i}" for i in range(n_images)], dtype=object)
    axes = ("O1", "Oz"), None, np.arange(-10, 70) / 100, 100.0, ()
    recordings = [
        Recording(
            subject, *axes, rng.standard_normal((n_images, n_repetitions, 2, 80)), ids, ids, ids
        )
        for subject in ("sub-01", "sub-02")
    ]
    recipe = read_params(Path("params.yaml")).train
    model = ContrastiveModel(ModelSizes(2, 80, 100.0, 6), recipe).eval()
    notes = {"fold": "pooled", "seed": 42, "tested_on": ["sub-01", "sub-02"]}
    caches = {name: Embeddings(rng.standard_normal((n_images, 6)), ids) for name in encoders}
    return explain_responses(recordings, [(model, notes)], caches, PARAMETERS, 42, modality)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def evaluate_both(base: Path, **options: object) -> tuple[Path, dict]:
    """The folder of the aligned encoder and the comparison of the two, as it is written."""
    folders = {encoder: base / encoder for encoder in ENCODERS}
    for draw, (encoder, folder) in enumerate(folders.items()):
        evaluate(folder, encoder=encoder, draw=draw, **options)
    sides = [read_similarities(folder / "evaluation.h5") for folder in folders.values()]
    people = people_of(sides[0].things_concept)
    comparison = compare(*sides, PARAMETERS, 0) | explain_difference(*sides, PARAMETERS, 0, people)
    comparison["sha256"] = [sha256(folder / "evaluation.h5") for folder in folders.values()]
    return folders["aligned"], json.loads(json.dumps(comparison))


def report(folder: Path, comparison: dict | None = None, embed_images: bool = False) -> Path:
    """Run the stage on what `evaluate` wrote; returns the page."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["embed_images"] = embed_images
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "comparison.json").write_text(json.dumps(comparison or {"sha256": []}))
    names = (
        "params.yaml",
        "images",
        "evaluation.h5",
        "history.csv",
        "evaluation.json",
        "explanation.json",
        "comparison.json",
    )
    outputs = [folder / name for name in ("learning_curves.csv", "pictures", "report.html")]
    tables = [folder / f"{name}.csv" for name in TABLES]
    main(*(folder / name for name in names), Path("reference/learning_curve.csv"), *outputs, tables)
    return folder / "report.html"


def report_without_pictures(
    folder: Path, comparison: dict | None = None, published: tuple[Published, ...] = ()
) -> Path:
    """The same page where only its words matter."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    reference = pd.read_csv("reference/learning_curve.csv")
    curves = learning_curves(pd.read_csv(folder / "history.csv"), reference, evaluation)
    write_report(
        folder / "report.html",
        evaluation=evaluation,
        explanation=json.loads((folder / "explanation.json").read_text()),
        tables=tables,
        curves=curves,
        comparison=comparison,
        settings={},
        pictures=[],
        published=published,
        may_share_images=True,
        shows_images=True,
        hashes={},
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of an evaluation with a page, whose names would run if they could, and its comparison."""
    folder, comparison = evaluate_both(tmp_path_factory.mktemp("full"), subjects=3, seeds=2)
    runs = pd.read_csv(folder / "per_subject.csv")
    runs.assign(subject=runs["subject"] + HOSTILE).to_csv(folder / "per_subject.csv", index=False)
    for row in comparison["per_subject"]:
        row["subject"] += HOSTILE
    report(folder, comparison)
    return folder, comparison


def figures(page: "Page", table: str) -> dict[str, list[tuple[float, str]]]:
    """By metric, each number of its row as it is in the page, and as it is read."""
    rows = page.eval_on_selector_all(
        f"#{table} tbody tr",
        """rows => rows.map(row =>
            [row.dataset.metric, [...row.querySelectorAll('data')].map(number => [number.value, number.innerText])])""",
    )
    return {name: [(float(value), text) for value, text in numbers] for name, numbers in rows}


def test_the_figures_are_those_of_the_files(full, browser):
    folder, comparison = full
    run = json.loads((folder / "evaluation.json").read_text())
    expected = {
        "run-metrics": {
            name: [
                run[name],
                *(
                    run[key][name]
                    for key in ("ci95_low", "ci95_high", "sd_over_subjects", "sd_over_seeds")
                ),
            ]
            for name in run["ci95_low"]
        },
        "comparison-metrics": {
            name: [
                *(row[key] for key in (*ENCODERS, "difference")),
                *row["ci95"],
                *row["ci95_these_models"],
                row["p"],
            ]
            for name, row in comparison["metrics"].items()
        },
    }
    with opened(browser, folder / "report.html", charts=CHARTS) as page:
        for table, rows in expected.items():
            shown = figures(page, table)
            assert shown.keys() == rows.keys()
            for name, values in rows.items():
                assert shown[name][: len(values)] == [(value, f"{value:.3f}") for value in values]
        assert page.inner_text("#answer") == comparison["answer"]
        for table, rows in what_lies_behind(folder, comparison).items():
            cells = page.eval_on_selector_all(
                f"#{table} tbody data", "cells => cells.map(cell => +cell.value)"
            )
            assert cells == rows
        top1 = page.eval_on_selector_all(
            "#runs [data-key=top1_acc] data", "cells => cells.map(cell => +cell.value)"
        )
        assert top1 == pd.read_csv(folder / "per_subject.csv")["top1_acc"].tolist()
        pairs = page.eval_on_selector_all(
            "#pairs tbody data", "cells => cells.map(cell => +cell.value)"
        )
        by_hand = [
            [row[encoder]["top1_acc"] for encoder in ENCODERS] for row in comparison["per_subject"]
        ]
        assert pairs == [value for one, other in by_hand for value in (one, other, other - one)]


def what_lies_behind(folder: Path, comparison: dict) -> dict[str, list[float]]:
    """The numbers of each table of the explain stage, row by row."""
    expected = {}
    for table, stem, last in (
        ("larger-galleries", "galleries", ["chance"]),
        ("calibrated", "calibration", []),
    ):
        columns = [f"top{k}_acc{end}" for k in PARAMETERS.top_k for end in ("", "_low", "_high")]
        rows = pd.read_csv(folder / f"{stem}.csv")[columns + last]
        expected[table] = rows.to_numpy().ravel().tolist()

    expected["calibrated-pair"] = [
        number for row in comparison["calibrated"].values() for number in _numbers(row)
    ]

    columns = ["retrieved", "chance", "excess", "excess_low", "excess_high", "p"]
    near_misses = pd.read_csv(folder / "near_misses.csv")[columns].to_numpy()
    expected["near-misses"] = near_misses[~np.isnan(near_misses)].tolist()
    for table, space in (("near-misses-pair", "answers"), ("same-category-pair", "same_category")):
        answers = comparison["near_misses"][space].values()
        expected[table] = [number for row in answers for number in _numbers(row)]

    # Of each concept: what is missing has no number in the page.
    concepts = pd.read_csv(folder / "concepts.csv")
    columns = ["top1_acc", "mean_rank", "taken_for_share", "people_percentile"]
    baseline, other = (
        np.array(comparison["per_image"][encoder]["top1_acc"]) for encoder in ENCODERS
    )
    rows = concepts[columns].assign(difference=other - baseline).to_numpy()
    expected["concept-table"] = rows[~np.isnan(rows)].tolist()
    return expected | what_responses_tell(folder)


def what_responses_tell(folder: Path) -> dict[str, list[float]]:
    """The numbers of the tables on the EEG without an image to retrieve."""
    run = pd.read_csv(folder / "repetitions.csv").set_index("n_repetitions")["top1_acc"]
    halves = []
    for row in pd.read_csv(folder / "reliability.csv").to_dict("records"):
        ends = ("", "_low", "_high", "_sd_over_subjects")
        halves += [row[f"top1_acc{end}"] for end in ends]
        halves += [run[row["n_repetitions"]], row["chance"]]

    rsa = json.loads((folder / "explanation.json").read_text())["rsa"]
    geometry = [number for name in ENCODERS for number in (rsa[name]["mean"], *rsa[name]["ci95"])]
    difference = rsa["difference"]
    geometry += [difference["mean"], *difference["ci95"], difference["p"], *rsa["noise_ceiling"]]
    return {"halves": halves, "geometry": geometry}


def _numbers(row: dict) -> list[float]:
    """Those of a paired difference, as the page has them."""
    sides = [row[key] for key in (*ENCODERS, "difference")]
    return [*sides, *row["ci95"], *row["ci95_these_models"], row["p"]]


def test_the_charts_show_the_tables(full, browser):
    """A mark for each row, told in words too: Vega labels what it draws."""
    folder, _ = full
    curve = pd.read_csv(folder / "repetitions.csv")
    with opened(browser, folder / "report.html", charts=CHARTS) as page:
        labels = page.eval_on_selector_all(
            "#chart-repetitions path[aria-roledescription=point]", LABELS
        )
        expected = [f"repetitions averaged: {n}" for n in curve["n_repetitions"]]
        assert [label.split(";")[0] for label in labels] == expected
        bars = page.eval_on_selector_all("#chart-subjects path[aria-roledescription=bar]", LABELS)
        assert len(bars) == 3 * 2 and HOSTILE in bars[0]
        told = page.eval_on_selector_all(".chart [role=graphics-document]", LABELS)
        assert len(told) == CHARTS and all(
            any(word in label for word in ("top-1", "loss", "accuracy", "correlation"))
            for label in told
        )
        for image in page.query_selector_all("img"):
            assert (
                len(image.get_attribute("alt")) > 50
                and image.evaluate("image => image.naturalWidth") > 500
            )


LABELS = "marks => marks.map(mark => mark.getAttribute('aria-label'))"


def test_a_heading_sorts_and_sorts_back(full, browser):
    cells = "cells => cells.map(cell => +cell.value)"
    with opened(browser, full[0] / "report.html", charts=CHARTS) as page:
        heading = page.locator("#runs th", has_text="loss (nats)")
        before = page.eval_on_selector_all("#runs [data-key=nice_loss] data", cells)
        for order, reverse in (("ascending", False), ("descending", True)):
            heading.locator("button").press("Enter")
            assert heading.get_attribute("aria-sort") == order
            after = page.eval_on_selector_all("#runs [data-key=nice_loss] data", cells)
            assert after == sorted(before, reverse=reverse) and after != before
        page.locator("#runs th button", has_text="subject").click()
        names = page.eval_on_selector_all(
            "#runs [data-key=subject]", "cells => cells.map(cell => cell.innerText)"
        )
        assert names == sorted(names) and heading.get_attribute("aria-sort") is None


def test_a_chart_zooms_and_returns(full, browser):
    """The wheel alone scrolls the page; with Ctrl it zooms."""
    labels = "document.querySelectorAll('#chart-time_course .role-axis-label text')"
    ticks = f"[...{labels}].map(label => label.textContent).sort().join()"  # Vega reuses them in any order
    with opened(browser, full[0] / "report.html", charts=CHARTS) as page:
        chart = page.locator("#chart-time_course svg.marks")
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        whole = page.evaluate(ticks)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -600)
        page.keyboard.up("Control")
        page.wait_for_function(f"{ticks} != {json.dumps(whole)}")
        page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function(f"{ticks} == {json.dumps(whole)}")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_fits_and_can_be_read(full, browser, width, theme):
    """No sideways scrolling on a phone, and the contrast that WCAG 2.2 AA asks of text (4.5), in both themes."""
    with opened(browser, full[0] / "report.html", width, theme, charts=CHARTS) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[theme]
        wide = page.eval_on_selector_all(
            ".chart svg.marks", "all => all.map(svg => svg.getBoundingClientRect().right)"
        )
        assert max(wide) <= width
        ratios = page.evaluate(CONTRAST, TEXT)
        assert len(ratios) > 200 and min(ratios) >= 4.5


def test_the_weights_of_mixed_blocks_are_in_a_table(tmp_path):
    """Mean and, with several runs, spread; without a mix the page does not speak of blocks."""
    evaluate(tmp_path / "x")
    assert "Blocks of the image model" not in words(report_without_pictures(tmp_path / "x"))
    summary = json.loads((tmp_path / "x/evaluation.json").read_text())
    summary["block_weights"] = {"6": 0.75, "last": 0.25}
    for spread, row in (
        ({}, "60.750 last0.250"),
        ({"6": 0.125, "last": 0.0625}, "60.7500.125 last0.2500.062"),
    ):
        if spread:
            summary["sd_of_block_weights"] = spread
        (tmp_path / "x/evaluation.json").write_text(json.dumps(summary))
        text = words(report_without_pictures(tmp_path / "x"))
        assert (
            "equal weights would be 0.500" in text
            and row in text
            and ("SD over runs" in text) == bool(spread)
        )


def test_views_are_named_where_they_are_not_the_original(tmp_path):
    evaluate(tmp_path / "x")
    assert "EEG learned from" not in words(report_without_pictures(tmp_path / "x"))
    evaluate(tmp_path / "y", views="draw of original, blur-8")
    assert "EEG learned from draw of original, blur-8" in words(
        report_without_pictures(tmp_path / "y")
    )


def test_meg_is_called_meg(tmp_path):
    evaluate(tmp_path / "x", modality="MEG", planted="")
    page = words(report_without_pictures(tmp_path / "x"))
    for caveat in json.loads((tmp_path / "x/evaluation.json").read_text())["caveats"]:
        page = page.replace(caveat, "")
    assert "decoding images from MEG" in page and "What the MEG itself can tell" in page
    assert "EEG" not in page


@pytest.mark.long
def test_the_same_inputs_give_the_same_bytes(full):
    folder, comparison = full
    files = [
        folder / "report.html",
        *sorted((folder / "pictures").iterdir()),
        folder / "learning_curves.csv",
    ]
    before = [sha256(path) for path in files]
    report(folder, comparison)
    assert [sha256(path) for path in files] == before


def test_without_a_comparison_it_says_what_this_run_can_say(tmp_path):
    evaluate(tmp_path / "one", subjects=1)
    page = words(report_without_pictures(tmp_path / "one"))
    run = json.loads((tmp_path / "one/evaluation.json").read_text())
    assert f"is the nearest of 12 for {100 * run['top1_acc']:.1f} % of the EEG responses" in page
    assert "this run alone cannot say: make compare evaluates both" in page
    assert (
        "over test images, not over seeds, subjects and training images; guessing gives 8.3 %"
        in page
    )
    assert "Synthetic data" in page and "One subject" in page and "One seed" in page
    assert "Aligned against unaligned" not in page


@pytest.mark.parametrize(
    ("options", "expected", "charts"),
    [
        (
            {"n_repetitions": 1},
            "Not measured: each test image was shown once: there are no two halves to compare.",
            set(),
        ),
        (
            {"encoders": ("unaligned",)},
            "There is one image encoder alone: nothing to compare.",
            {"reliability", "rsa"},
        ),
    ],
)
def test_what_the_responses_do_not_tell_is_said(tmp_path, options, expected, charts):
    folder = tmp_path / "run"
    evaluate(folder)
    summaries, tables = explain_random_responses(12, **options)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    explanation = json.loads((folder / "explanation.json").read_text())
    write_json(folder / "explanation.json", explanation | summaries)

    page = report_without_pictures(folder)
    assert expected in words(page)
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page.read_text()).group(1))
    assert {"reliability", "rsa", "rsa_difference"} & set(specs) == charts


def test_all_collapsed_is_no_result(tmp_path):
    evaluate(tmp_path / "collapsed", seeds=2, collapsed=(42, 43))
    page = words(report_without_pictures(tmp_path / "collapsed"))
    assert "No result: all 2 runs collapsed" in page and "is the nearest of" not in page


def test_what_flatters_is_said_first(tmp_path):
    folder, comparison = evaluate_both(tmp_path, seeds=2, collapsed=(43,), selected_on="test")
    page = words(report_without_pictures(folder, comparison))
    for said in ("No claim can be made", "Optimistic", "1 of 2 runs collapsed", "SD over subjects"):
        assert page.index(said) < page.index("Caveats")
    assert "SD over seeds" not in page


@pytest.mark.parametrize(
    ("p", "said", "is_red"),
    [(0.3, "at chance, as it must be (p = 0.3,", False), (0.02, "where nothing can be", True)],
)
def test_a_control_that_finds_something_is_said_in_red_before_all_else(tmp_path, p, said, is_red):
    folder = tmp_path / "run"
    evaluate(folder, control="shuffled")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"p_above_chance": p}))
    page = report_without_pictures(folder)
    shown = words(page)
    assert shown.index(said) < shown.index("the image that was seen is the nearest of")
    assert ('<p class="alarm"' in page.read_text()) == is_red


def test_what_was_planted_and_that_it_is_above_chance_is_said(tmp_path):
    folder, comparison = evaluate_both(tmp_path, seeds=2)
    page = words(report_without_pictures(folder, comparison))
    assert "Top-1 is above chance: p = " in page
    assert page.count("Planted here: something.") == 2  # in the answer, and in the warning


@pytest.mark.long
def test_a_comparison_of_before_the_categories_is_drawn_without_them(tmp_path):
    folder, comparison = evaluate_both(tmp_path, seeds=2)
    share = "The share of errors in the same category, above chance"
    assert share in words(report_without_pictures(folder, comparison))
    del comparison["near_misses"]["same_category"]
    page = words(report_without_pictures(folder, comparison))
    assert share not in page and "Are the errors of one nearer for people?" in page


def test_images_of_things_need_to_be_asked_for(tmp_path):
    evaluate(tmp_path / "run", dataset="things-eeg2", synthetic=False)
    shutil.move(tmp_path / "run/images", tmp_path / "images")  # they are not even opened
    page = words(
        report(tmp_path / "run", comparison={"sha256": ["of other files"], "answer": "Yes."})
    )
    assert "Yes." not in page and "this run alone cannot say" in page
    assert "concept names stand for them" in page and THINGS_EEG2.caveats[0] in page
    assert reds(tmp_path / "run") == 0
    shutil.move(tmp_path / "images", tmp_path / "run/images")
    assert "keep it to yourself" in words(report(tmp_path / "run", embed_images=True))
    assert reds(tmp_path / "run") > 10_000


def test_caveats_and_published_figures_are_those_it_is_given(tmp_path):
    evaluate(tmp_path / "run", subjects=1)
    path = tmp_path / "run/evaluation.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"caveats": ["A caveat of the data."]})
    )
    page = words(report_without_pictures(tmp_path / "run"))
    assert "A caveat of the data." in page and "Published figures" not in page
    tasks = ("One task", "Another", "One task")
    rows = tuple(
        Published(task, "A method", "a paper", "pooled", 12.3, None, "a note") for task in tasks
    )
    page = words(report_without_pictures(tmp_path / "run", published=rows))
    assert "Published figures One task; Another, in percent." in page
    assert page.count("A method (a paper)") == 3


def reds(folder: Path) -> int:
    """How many pixels of the retrieval grid have the colour of the test images."""
    pixels = np.asarray(Image.open(folder / "pictures/retrieval.png").convert("RGB")).astype(int)
    return int((np.abs(pixels - [254, 0, 0]).max(-1) < 4).sum())


def test_the_published_curve_is_shown_where_it_compares():
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [3.0, 2.0]})
    published = pd.read_csv("reference/learning_curve.csv")
    run = {
        "dataset": "things-eeg2",
        "protocol": "pooled",
        "encoder": "aligned",
        "selected_on": "last",
    }
    curves = learning_curves(history, published, run)
    assert curves["curve"].value_counts().to_dict() == {
        "published run, on its test images": 59,
        "training": 2,
    }
    assert (
        curves["epoch"].max() == 59 and curves["loss"].min() < 1.2
    )  # its best epoch of nice_loss 1.164
    for other in ({"dataset": "sample"}, {"protocol": "within-subject"}, {"encoder": "another"}):
        assert set(learning_curves(history, published, run | other)["curve"]) == {"training"}


def test_chance_by_simulation():
    rank = np.random.default_rng(0).integers(1, 11, 200_000)
    levels = chance_levels(10)
    simulated = {
        "top3_acc": (rank <= 3).mean(),
        "mean_rank": rank.mean(),
        "median_rank": np.median(rank) + 0.5,
    }
    assert levels["mrr"] == pytest.approx((1 / rank).mean(), rel=0.01)
    assert {name: levels[name] for name in simulated} == pytest.approx(simulated, rel=0.1)
    assert levels["nice_loss"] == pytest.approx(np.log(10))
