"""One sentence, and no traceback, where the wrong Python runs a stage: too old, or lacks packages.

DVC runs `python3`. That is not the Python of `.venv` where the user did not activate it, for
example with `.venv/bin/dvc repro` or in an editor. Every stage imports this file first, so that it
must be valid in old versions of Python too.
"""

import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
ACTIVATE = "type in the project's folder: make setup && source .venv/bin/activate"


def _print_missing_package(
    kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None"
) -> None:
    """For `sys.excepthook`: a sentence for a missing package, a traceback for any other error."""
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not package or (ROOT / package).is_dir():
        sys.__excepthook__(kind, error, trace)
        return

    is_of_project = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    remedy = "type in the project's folder: make -B setup" if is_of_project else ACTIVATE
    print(f"error: {PYTHON} has no package {package}; {remedy}", file=sys.stderr)


if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"error: {PYTHON} runs this stage, which needs Python 3.11 or newer; {ACTIVATE}")
sys.excepthook = _print_missing_package
