"""The page of a study: what it answers, its pictures, and every cell in a table that sorts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report.style import Picture
from pipeline.report.template import records, write_page
from pipeline.train.protocols import describe_recordings

CELL_TITLES = {
    "backbone": "backbone",
    "alignment": "alignment",
    "block": "block",
    "eeg_encoder": "{} encoder",
    "protocol": "protocol",
    "trained_dataset": "trained on",
    "tested_dataset": "tested on",
}


def write_study_page(
    path: Path,
    *,
    summary: Mapping[str, Any],
    table: pd.DataFrame,
    pictures: Sequence[Picture],
    settings: Mapping[str, Any],
    reproduce: str,
    hashes: Mapping[str, str],
) -> None:
    """Write the page.

    `summary` and `table` are what `study.summary.summarise` returns, or their files read again;
    `settings` what decided the figures; `reproduce` the commands that make it all again, a line
    each; `hashes` the sha256 of the files that the page is made of.
    """
    modality = summary.get("modality", "EEG")
    titles = {name: title.format(modality) for name, title in CELL_TITLES.items()}
    values = {name: {cell[name] for cell in summary["cells"]} for name in CELL_TITLES}

    write_page(
        path,
        "study.html",
        pictures=pictures,
        settings=settings,
        hashes=hashes,
        study=summary,
        modality=modality,
        describe_recordings=describe_recordings,
        # A choice that varies gets a column; what all cells share stands above the table.
        # The backbone has a column in any case: it heads each row.
        columns={
            name: titles[name] for name, of in values.items() if len(of) > 1 or name == "backbone"
        },
        common={titles[name]: min(of) for name, of in values.items() if len(of) == 1},
        # Cells of different designs may have intervals over different factors.
        over=sorted(
            {", ".join(cell["ci95_over"]) for cell in summary["cells"] if cell["ci95_over"]}
        ),
        subjects=_by_subject(table),
        reproduce=reproduce,
    )


def _by_subject(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Top-1 of both encoders, a row a cell and subject: the mean over the seeds without a fault."""
    ok = table[table["status"] == "ok"]
    if ok.empty:
        return []

    # pivot_table takes the mean over the seeds.
    means = ok.pivot_table(
        index=[*CELL_TITLES, "subject"], columns="encoder", values="top1_acc", sort=False
    )
    # A column also for an encoder without any whole run.
    return records(means.reindex(columns=["unaligned", "aligned"]).reset_index())
