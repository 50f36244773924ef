"""What all pictures share: colours, fonts and how a figure becomes a PNG.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers
can tell apart. No picture tells anything by colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.files import replacing

COLOURS = {"unaligned": "#0072B2", "aligned": "#D55E00"}
RIGHT = "#009E73"  # a correct answer
QUIET = "#767676"  # guides, and all that is not the point of a picture
DIVERGING = "RdBu_r"  # colour map of values on both sides of zero
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A PNG with a heading, and a description that also serves readers who do not see it."""

    path: Path
    heading: str
    description: str


def colours_of(sides: Sequence[str]) -> dict[str, str]:
    """The colour of each side of a comparison, or of the encoder of a single run."""
    colours = tuple(COLOURS.values())
    return {side: COLOURS.get(side, colours[i]) for i, side in enumerate(sides)}


def short_name(concept: str) -> str:
    """`aircraft carrier` from `00001_aircraft_carrier`."""
    number, _, name = concept.partition("_")
    return (name if number.isdigit() and name else concept).replace("_", " ")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, cut to what is drawn."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08)
