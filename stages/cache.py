"""Show what the cache folder holds, and empty it: no stage, but a command for when a disk is full.

`python -m stages.cache` shows; `python -m stages.cache --empty study --unused-for 30` deletes.
"""

import time
from typing import Annotated

import typer

from pipeline.compute.cache_contents import Entry, read_entries, remove
from pipeline.errors import InputError, suggestion
from pipeline.files import cache_folder
from stages import run, show

HOUR = 3600.0  # s
DAY = 24 * HOUR
LONG = 30 * DAY


def main(
    empty: Annotated[str, typer.Option(help="the kind to delete, or all")] = "none",
    unused_for: Annotated[float, typer.Option(help="only what nobody used for so many days")] = 0.0,
) -> str:
    cache = cache_folder()
    entries = read_entries(cache)
    if not entries:
        print(f"{cache} is empty")
        return ""

    if empty == "none":
        show(str(cache), summarise(entries, time.time()))
        print("to delete a kind: python -m stages.cache --empty KIND [--unused-for DAYS]")
        return ""

    chosen = choose(entries, empty, unused_for * DAY, time.time())
    # What a run holds at this moment stays, and does not count.
    deleted = [entry for entry in chosen if remove(entry)]

    megabytes = sum(entry.bytes_to_free for entry in deleted) / 1e6
    print(
        f"deleted {len(deleted)} of {len(entries)} entries of {cache}: {megabytes:.1f} MB are free"
    )
    return ""


def summarise(entries: list[Entry], now: float) -> list[dict[str, object]]:
    """A row for each kind."""
    rows: list[dict[str, object]] = []
    for kind in sorted({entry.kind for entry in entries}):
        of_kind = [entry for entry in entries if entry.kind == kind]
        unused = [entry for entry in of_kind if now - entry.last_used > LONG]
        rows.append(
            {
                "kind": kind,
                "entries": len(of_kind),
                "MB": sum(entry.n_bytes for entry in of_kind) / 1e6,
                "MB to free": sum(entry.bytes_to_free for entry in of_kind) / 1e6,
                "MB unused for 30 days": sum(entry.n_bytes for entry in unused) / 1e6,
            }
        )
    return rows


def choose(entries: list[Entry], kind: str, unused_for: float, now: float) -> list[Entry]:
    """The entries of a kind, or all, that nobody used for so many seconds.

    What was used within the last hour stays: a run may be at work on it, and not all have a lock.
    """
    kinds = sorted({entry.kind for entry in entries})
    if kind not in (*kinds, "all"):
        near = suggestion(kind, kinds)
        raise InputError(f"--empty {kind}: the cache holds {', '.join(kinds)}; or say all{near}")

    age = max(unused_for, HOUR)
    return [e for e in entries if kind in (e.kind, "all") and now - e.last_used > age]


if __name__ == "__main__":
    run(main)
