"""The page of a decoding: for each response the picture that was seen, and the nearest ones."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageOps

from pipeline.decode.decoding import Decoded
from pipeline.report.style import short_name
from pipeline.report.template import records, write_page

MOST_RESPONSES = 100  # on one page, which holds all its pictures
SIDE = 112  # pixels of a picture, width and height


@dataclass(frozen=True)
class _Shown:
    """A picture of the page: its name, its file as base64 ("" where it is not shown)."""

    name: str
    data: str
    cosine: float | None = None
    is_seen: bool = False


def write_decoded_page(
    path: Path,
    *,
    decoded: Decoded,
    pictures: Mapping[str, Image.Image] | None,
    title: str,
    warnings: Sequence[str],
    sentences: Sequence[str],
    scores: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    hashes: Mapping[str, str],
) -> None:
    """Write the page of the first 100 responses.

    `pictures` are those that `pictures_to_show` names, by image id; None where they may not be
    shown, and their names stand for them. `warnings` and `sentences` say what restricts the
    figures, `scores` are rows of metric, value, low, high and chance. `settings` and `hashes` say
    how the page was made.
    """
    data = {image_id: _as_base64(picture) for image_id, picture in (pictures or {}).items()}

    rows = []
    for _, of_response in _first(decoded.table).groupby("response"):
        places = records(of_response)
        nearest = [
            _Shown(
                name_of(row["picture"]), data.get(row["picture"], ""), row["cosine"], row["is_seen"]
            )
            for row in places
        ]
        first = places[0]
        image_id = str(decoded.seen[first["response"]])
        name = image_id or first["seen"]
        rows.append(
            {
                "number": first["response"],
                "n_trials": first["n_trials"],
                "seen": _Shown(name_of(name), data.get(image_id, "")) if name else None,
                "rank": first["rank_of_seen"] if image_id else None,
                "nearest": nearest,
            }
        )

    write_page(
        path,
        "decoded.html",
        pictures=[],
        settings=settings,
        hashes=hashes,
        title=title,
        warnings=warnings,
        sentences=sentences,
        scores=scores,
        rows=rows,
        n_responses=len(decoded.seen),
        n_nearest=int(decoded.table["place"].max()),
        side=SIDE,
        shows_pictures=pictures is not None,
    )


def pictures_to_show(decoded: Decoded) -> list[str]:
    """The image ids of all pictures that the page shows, each once."""
    image_ids = [*_first(decoded.table)["picture"], *decoded.seen[:MOST_RESPONSES]]
    return list(dict.fromkeys(image_id for image_id in image_ids if image_id))


def name_of(picture: str) -> str:
    """`aircraft carrier 06s` from `test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg`."""
    return short_name(Path(picture).stem)


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["response"] < MOST_RESPONSES]


def _as_base64(picture: Image.Image) -> str:
    """A JPEG, cut to a square and made small."""
    stream = io.BytesIO()
    ImageOps.fit(picture, (SIDE, SIDE)).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
