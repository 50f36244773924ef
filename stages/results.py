"""Print the last comparison: the metrics, published figures beside them, and the answer."""

import json
from pathlib import Path
from typing import Any

from pipeline.datasets.published import Published
from pipeline.datasets.table import DATASETS
from pipeline.errors import InputError
from pipeline.files import sha256
from stages import run, show


def print_comparison(comparison: dict[str, Any]) -> None:
    """Two tables and the answer."""
    if "metrics" in comparison:
        _show_metrics(comparison)

    # The file may come from a version of the project with other datasets.
    dataset = DATASETS.get(comparison["dataset"])
    if dataset is not None and dataset.published:
        _show_published(comparison, dataset.published)
    print(comparison["answer"])


def _show_metrics(comparison: dict[str, Any]) -> None:
    """Each metric of both sides, and their difference."""
    baseline = comparison["baseline"]
    second = comparison["other"]

    # Two intervals: over new subjects or seeds, and over new test images for these very models.
    rows = [
        {
            "metric": name,
            baseline: _number(row[baseline]),
            second: _number(row[second]),
            "difference": _number(row["difference"], "+"),
            "95 % interval": _interval(row["ci95"]),
            "p": _number(row["p"]),
            "of these models": _interval(row["ci95_these_models"]),
        }
        for name, row in comparison["metrics"].items()
    ]
    too_few = "few subjects tell" if len(comparison["without_seeds"]) == 2 else "one seed tells"
    sampled = " and ".join(comparison["ci95_over"]) or f"nothing: {too_few} too little"
    show(
        f"{second[0].upper()}{second[1:]} against {baseline}; interval of the difference and p "
        f"over {sampled}; of these models: test images",
        rows,
    )


def _show_published(comparison: dict[str, Any], published: tuple[Published, ...]) -> None:
    """Both sides above the published figures."""
    synthetic = ", synthetic" if comparison["synthetic"] else ""
    note = f"{comparison['n_way']}-way, {comparison['dataset']}{synthetic}"

    rows = []
    if "metrics" in comparison:
        for side in (comparison["baseline"], comparison["other"]):
            top1 = _percent(comparison["metrics"].get("top1_acc", {}).get(side))
            top5 = _percent(comparison["metrics"].get("top5_acc", {}).get(side))
            rows.append(_row(f"this run, {side}", comparison["protocol"], top1, top5, note))
    for row in published:
        rows.append(_row(row.method, row.protocol, row.top1, row.top5, row.note))

    tasks = "; ".join(dict.fromkeys(row.task for row in published))
    show(f"Published on {tasks}: only rows of one protocol compare, on the same data", rows)


def _row(
    method: str, protocol: str, top1: float | None, top5: float | None, note: str
) -> dict[str, str]:
    return {
        "method": method,
        "protocol": protocol,
        "top-1 %": "" if top1 is None else f"{top1:.1f}",
        "top-5 %": "" if top5 is None else f"{top5:.1f}",
        "note": note,
    }


def _interval(ends: list[float | None] | None) -> str:
    return " to ".join(_number(end, "+") for end in ends or ())


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def main(
    comparison: Path = Path("metrics/comparison.json"),
    evaluation: Path = Path("data/evaluation.h5"),
) -> str:
    try:
        result = json.loads(comparison.read_text())
        print_comparison(result)
        compared = result["sha256"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{comparison}: holds no comparison ({error!r}); run `make compare`"
        ) from error

    if evaluation.exists() and sha256(evaluation) not in compared:
        print(
            f"{evaluation} is another run than those compared: `make compare` brings this up to "
            "date"
        )
    return ""


if __name__ == "__main__":
    run(main)
