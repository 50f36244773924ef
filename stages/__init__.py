"""One command a DVC stage: read, call the library, write. Paths come from dvc.yaml, values from params.yaml."""

import functools
import os
import sys
import time
from collections.abc import Callable

import typer

from pipeline.errors import InputError

# Before torch is imported: threads that spin while they wait for each other made training five times slower on a
# machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # without it, a GPU's matrix products differ from run to run


def run(main: Callable[..., str]) -> None:
    """Run a stage as a command; `main` returns what it wrote, or "". What the user can mend is told in one sentence."""

    @functools.wraps(main)
    def command(*arguments: object, **options: object) -> None:
        started = time.monotonic()
        try:
            written = main(*arguments, **options)
        except (InputError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        if written:
            print(f"wrote {written} in {time.monotonic() - started:.1f} s")

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()
