"""The HTML pages: what all of them share, by Jinja2.

A page holds all that it shows and fetches nothing: Jinja2 escapes every name from the data, and the
page's own policy forbids the browser any request. It has the same bytes for the same inputs and
versions.
"""

import base64
import math
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pipeline.files import replacing
from pipeline.report.style import Picture

# Their versions stand in each page.
REPORTED_PACKAGES = [
    "torch",
    "timm",
    "dreamsim",
    "peft",
    "numpy",
    "scipy",
    "pandas",
    "h5py",
    "mne",
    "matplotlib",
    "jinja2",
    "vl-convert-python",
    "dvc",
]


def write_page(
    path: Path,
    template: str,
    *,
    pictures: Sequence[Picture],
    settings: Mapping[str, Any],
    hashes: Mapping[str, str],
    versions: Mapping[str, str] | None = None,
    **values: Any,
) -> None:
    """Write a page from a file beside this one.

    `settings` are what decided the figures, `hashes` the sha256 of the files that the page is made
    of, `versions` those of what is no Python package; `values` are for this page alone.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error and no gap
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["missing"] = _missing

    page = environment.get_template(template).render(
        pictures=[
            # Within the page, so that it fetches nothing and can be sent as one file.
            (picture, base64.b64encode(picture.path.read_bytes()).decode())
            for picture in pictures
        ],
        provenance={
            "Parameters": records(pd.json_normalize(dict(settings)))[0],
            "Versions": {package: version(package) for package in REPORTED_PACKAGES}
            | dict(versions or {}),
            "SHA-256": hashes,
        },
        **values,
    )

    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows with the plain types of Python, which Jinja2 can tell apart."""
    return table.astype(object).to_dict("records")


def _missing(value: object) -> bool:
    """Whether a figure is absent: None in JSON, NaN in a table."""
    return value is None or (isinstance(value, float) and math.isnan(value))
