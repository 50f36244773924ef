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
    dataset = DATASETS.get(
        comparison["dataset"]
    )  # a comparison may come from where there are other datasets
    if dataset is not None and dataset.published:
        _show_beside(comparison, dataset.published)
    print(comparison["answer"])


def _show_metrics(comparison: dict[str, Any]) -> None:
    baseline, other = comparison["baseline"], comparison["other"]
    rows = [
        {
            "metric": name,
            baseline: _number(row[baseline]),
            other: _number(row[other]),
            "difference": _number(row["difference"], "+"),
            "95 % interval": _interval(row["ci95"]),
            "p": _number(row["p"]),
            "of these models": _interval(row["ci95_these_models"]),
        }
        for name, row in comparison["metrics"].items()
    ]
    over = " and ".join(comparison["ci95_over"]) or "nothing: one seed tells too little"
    title = f"{other[0].upper()}{other[1:]} against {baseline}; interval of the difference and p over {over}"
    show(f"{title}; of these models: test images", rows)


def _show_beside(comparison: dict[str, Any], published: tuple[Published, ...]) -> None:
    """Both sides above the published figures."""
    note = f"{comparison['n_way']}-way, {comparison['dataset']}{', synthetic' if comparison['synthetic'] else ''}"
    rows = []
    if "metrics" in comparison:
        for side in (comparison["baseline"], comparison["other"]):
            top1, top5 = (
                _percent(comparison["metrics"].get(f"top{k}_acc", {}).get(side)) for k in (1, 5)
            )
            rows.append(_row(f"this run, {side}", comparison["protocol"], top1, top5, note))
    rows += [_row(one.method, one.protocol, one.top1, one.top5, one.note) for one in published]
    tasks = "; ".join(dict.fromkeys(one.task for one in published))
    show(f"Published on {tasks}: only rows of one protocol compare, on the same data", rows)


def _row(
    method: str, protocol: str, top1: float | None, top5: float | None, note: str
) -> dict[str, str]:
    accuracies = {
        name: "" if value is None else f"{value:.1f}"
        for name, value in (("top-1 %", top1), ("top-5 %", top5))
    }
    return {"method": method, "protocol": protocol} | accuracies | {"note": note}


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
            f"{evaluation} is another run than those compared: `make compare` brings this up to date"
        )
    return ""


if __name__ == "__main__":
    run(main)
