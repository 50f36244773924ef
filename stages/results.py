"""Print the last comparison of the two encoders: the metrics, published figures beside them, and the answer."""

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.reference import PUBLISHED
from stages import run

WIDTH = 120  # of what is piped


def show(comparison: dict) -> None:
    """Two tables and the answer."""
    width = None if sys.stdout.isatty() else WIDTH
    console, metrics = Console(highlight=False, width=width), comparison.get("metrics", {})
    if metrics:
        table = _table("Aligned against unaligned; the interval is that of the difference", "metric")
        for name in ("unaligned", "aligned", "difference", "95 % interval", "p"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, row in metrics.items():
            interval = " to ".join(_number(end, "+") for end in row["ci95"])
            values = _number(row["unaligned"]), _number(row["aligned"]), _number(row["difference"], "+")
            table.add_row(name, *values, interval, _number(row["p"]))
        console.print(table)
    table = _table("Published on THINGS-EEG2, 200-way: only rows of one protocol compare, on the same data", "method")
    table.add_column("protocol", no_wrap=True)
    for name in ("top-1 %", "top-5 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note")
    for encoder in ("unaligned", "aligned") if metrics else ():
        accuracies = [_percent(metrics.get(f"top{k}_acc", {}).get(encoder)) for k in (1, 5)]
        note = f"{comparison['n_way']}-way, {comparison['dataset']}{', synthetic' * comparison['synthetic']}"
        table.add_row(f"this run, {encoder}", comparison["protocol"], *accuracies, note, style="bold")
    for one in PUBLISHED:
        top5 = "" if one.top5 is None else f"{one.top5:.1f}"
        table.add_row(one.method, one.protocol, f"{one.top1:.1f}", top5, one.note)
    console.print(table)
    console.print(comparison["answer"])


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def main(comparison: Path = Path("metrics/comparison.json"), evaluation: Path = Path("data/evaluation.h5")) -> str:
    try:
        result = json.loads(comparison.read_text())
        show(result)
        compared = result["sha256"].values()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{comparison}: holds no comparison ({error!r}); run `make compare`") from error
    if evaluation.exists() and sha256(evaluation) not in compared:
        print(f"{evaluation} is another run than those compared: `make compare` brings this up to date")
    return ""


if __name__ == "__main__":
    run(main)
