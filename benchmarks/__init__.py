"""Ratios against the plain way of doing the same, in one run (`make bench`)."""

import json
from pathlib import Path

import stages  # noqa: F401  it says how idle threads wait

LATEST = Path(__file__).with_name("latest.json")


def write_latest(figures: dict[str, float]) -> None:
    """Merge figures into benchmarks/latest.json."""
    known = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    LATEST.write_text(json.dumps(known | figures, indent=2) + "\n")
