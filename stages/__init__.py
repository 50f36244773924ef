"""The commands: one file for each DVC stage, which reads, calls the library and writes.

Paths come from dvc.yaml, values from params.yaml. Here is what all stages share.
"""

import stages.interpreter  # noqa: F401  # isort: skip  # first: another Python may lack the next

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import InputError
from pipeline.files import fault_of, replacing
from stages.outputs import noted_run

# This must be set before torch is imported. Threads that spin while they wait for each other made
# training five times slower on a shared machine. Threads that sleep at once made it a third slower
# on a machine of one's own. With these values GNU's OpenMP spins for some 10 microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

# Without this a GPU's matrix products differ from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def run(main: Callable[..., str]) -> None:
    """Run a stage as a command.

    `main` returns the names of what it wrote, or "". An error that the user can mend is printed as
    one sentence, without a traceback.
    """

    # typer reads the parameters and their types from `main`, through `wraps`.
    @functools.wraps(main)
    def command(*arguments: object, **options: object) -> None:
        started = time.monotonic()
        try:
            check_links(options.values())
            find_linked_files(options.values())
            # From here on the stage writes: what it leaves half-written is known as its own.
            with noted_run():
                written = main(*arguments, **options)
        except (InputError, OSError) as error:
            sentence = fault_of(error, Path.cwd()) or error
            print(f"error: {sentence}", file=sys.stderr)
            raise typer.Exit(1) from None  # DVC stops there, and the stages behind do not run
        except MemoryError as error:
            reason = f" ({error})" if str(error) else ""
            print(
                f"error: there is too little memory{reason}: run this where there is more, or with "
                "fewer workers (preprocess.workers, runs.workers)",
                file=sys.stderr,
            )
            raise typer.Exit(1) from None

        if written:
            print(f"wrote {written} in {time.monotonic() - started:.1f} s")

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def check_links(values: Iterable[object]) -> None:
    """Raises InputError where DVC runs the stage and one of its folders links out of the project.

    DVC refuses such a folder too, but only after the stage, and hours of work would be lost.
    """
    if "DVC_ROOT" not in os.environ:
        return

    project = Path.cwd().resolve()
    paths = [value for value in values if isinstance(value, Path)]
    for path in paths:
        if path.is_absolute():  # not of the project, so DVC does not manage it
            continue

        folder = path.parent.resolve()
        if not folder.is_relative_to(project):
            raise InputError(
                f"{path.parent} lies in {folder} by a link, and DVC keeps nothing outside of the "
                "project: take the link away and clone the project onto that disk (what was "
                "fetched is taken from the cache), or have the folder mounted in place of the link "
                "(mount --bind); then run it again"
            )


def find_linked_files(values: Iterable[object]) -> None:
    """Let HDF5 find what a file of external links leads to, from the folder of that file.

    HDF5 does so by itself, unless the file is a symbolic link (into DVC's cache) that a reader has
    resolved. Workers inherit the variable. With two such folders it would be ambiguous, and is not
    set.
    """
    folders = [value.absolute() for value in values if isinstance(value, Path) and value.is_dir()]
    of_links = [
        str(folder)
        for folder in folders
        if any(file.is_symlink() and leads_elsewhere(file) for file in folder.glob("*.h5"))
    ]
    if len(of_links) == 1:
        former = os.environ.get("HDF5_EXT_PREFIX")
        os.environ["HDF5_EXT_PREFIX"] = os.pathsep.join([*of_links, *filter(None, [former])])


def leads_elsewhere(path: Path) -> bool:
    """Whether this is an HDF5 file with external links; False for what cannot be read as one."""
    import h5py  # a third of a second, and `pipeline` first says how it locks files

    with suppress(OSError), h5py.File(path, "r") as file:
        return any(isinstance(file.get(name, getlink=True), h5py.ExternalLink) for name in file)
    return False


def write_json(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Write a file of metrics, and return the values as a reader of the file gets them.

    NaN is written as JSON null.
    """
    # Through text and back: a reader of the file gets lists and None, and so does our caller.
    values = json.loads(json.dumps(values), parse_constant=lambda _: None)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
    return values


SECOND = "the prepared EEG of the second recording, for the protocol across"


def write_note(folder: Path, sentence: str) -> None:
    """Write the output of a stage that has nothing to do: DVC warns of an empty folder."""
    with replacing(folder / "README.md") as note:
        note.write_text(f"{sentence}\n", encoding="utf-8")


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys as a table.

    On a terminal the table has rules. In a file or a pipe it has plain columns, and nothing is cut.
    """
    console = Console(highlight=False)
    plain = not console.is_terminal
    if plain:
        console = Console(highlight=False, width=1000)  # as wide as any table

    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False)
    texts = [
        [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in rows
    ]
    for name, column in zip(rows[0], zip(*texts, strict=True), strict=True):
        # A column of numbers stands to the right, also with empty fields.
        numbers = all(re.fullmatch(r"[-+]?[\d.]*", text) for text in column)
        table.add_column(Text(name), justify="right" if numbers else "left")

    for row in texts:
        table.add_row(*map(Text, row))
    console.print(Text(title, "bold"))
    console.print(table)
