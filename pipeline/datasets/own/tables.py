"""Tables of somebody's own recordings: a CSV beside a file of epochs, events of BIDS, splits."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.datasets.own.findings import first_few, times
from pipeline.errors import InputError
from pipeline.files import unreadable

# How people, BIDS, pandas and R write that there is nothing
NOTHING = ("", "n/a", "N/A", "NA", "NaN", "nan")


def table_beside(epochs_file: Path, n_epochs: int) -> pd.DataFrame | None:
    """The CSV of the same name beside a file of epochs, a row for each epoch; None without one.

    It comes before the metadata in the file: it is quicker to correct. Raises InputError where it
    cannot be read, or has another number of rows.
    """
    path = epochs_file.with_suffix(".csv")
    if not path.is_file():
        return None

    table = read_table(path, ",")
    if len(table) != n_epochs:
        raise InputError(
            f"{path}: has {times(len(table), 'row')} below its first line, expected {n_epochs:,}, "
            f"one for each epoch of {epochs_file.name}, in their order; write it anew from the "
            "epochs that were kept"
        )
    return table


def read_table(path: Path, separator: str) -> pd.DataFrame:
    """A CSV or TSV with a line of names, all of it as text. Raises InputError where it is none."""
    try:
        # pandas would read a picture called "null" as missing, and "007" as 7.
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:  # also what is no table and what is not UTF-8
        reason = " ".join(str(error).split())
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read as a table ({reason:.200}); save it as UTF-8, with as many "
            f"fields in each row as in the first line"
        ) from error

    names = list(table.columns)
    if len(names) == 1 and separator == "," and (";" in names[0] or "\t" in names[0]):
        raise InputError(
            f"{path}: has the one column {names[0]!r}; save it with commas between the columns"
        )
    # Fields beyond the first line: pandas takes the first ones as names of the rows.
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(
            f"{path}: has more fields in a row than in its first line, {list_names(names)}; name "
            "each column there"
        )
    return table.map(str.strip).rename(columns=str.strip)


def list_names(names: Sequence[str] | pd.Index) -> str:
    """The first of the names of columns, in words."""
    return first_few([str(name) for name in names], 12) or "none"
