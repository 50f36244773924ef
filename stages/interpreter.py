"""A sentence where a stage is run by another Python than the project's: one that is too old, or has not the packages.

DVC runs `python`, which is not that of `.venv` where nobody activated it (`.venv/bin/dvc repro`, an editor). The first
import of every stage; it has to be valid Python for old versions, too.
"""

import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
ACTIVATE = "type in the project's folder: make setup && source .venv/bin/activate"


def _tell_of_package(
    kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None"
) -> None:
    """As `sys.excepthook`: one sentence for a package that is missing, and a traceback for all else."""
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not package or (ROOT / package).is_dir():
        sys.__excepthook__(kind, error, trace)
        return

    of_project = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    remedy = "type in the project's folder: make -B setup" if of_project else ACTIVATE
    print(f"error: {PYTHON} has no package {package}; {remedy}", file=sys.stderr)


if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"error: {PYTHON} runs this stage, which needs Python 3.11 or newer; {ACTIVATE}")
sys.excepthook = _tell_of_package
