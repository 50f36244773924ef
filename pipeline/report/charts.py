"""The charts of the report as Vega-Lite specifications, which the browser draws.

Source: https://vega.github.io/vega-lite/

Each function takes a table and returns a specification. Ink is `currentColor`, so that the page's
light or dark theme decides it; encoders have the colours of `style`, and each line also its own
dash.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.report.style import COLOURS, colours_of

Spec = dict[str, Any]  # a specification or a part of one

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, which nothing fetches
DASHED = {"strokeDash": [6, 4], "color": "currentColor"}
ROUND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # ticks of a logarithmic axis
PUBLISHED_RUN = "published run, on its test images"  # the name of its curve
LINES = {
    "training": COLOURS["unaligned"],
    PUBLISHED_RUN: "#8a8a8a",
}  # any other curve: COLOURS["aligned"]
ZOOM = [
    {
        "name": "zoom",
        # Only with Ctrl or Cmd: whoever scrolls the page must not zoom a chart by it.
        "select": {"type": "interval", "zoom": "wheel![event.ctrlKey || event.metaKey]"},
        "bind": "scales",
    }
]
INK = {
    "labelColor": "currentColor",
    "titleColor": "currentColor",
    "labelFontSize": 12,
    "titleFontSize": 12,
}
CONFIG = {
    "background": None,  # that of the page
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "scale": {"zero": False},
    "axis": INK
    | {
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "titleFontWeight": "normal",
        "labelOverlap": True,
    },
    "legend": INK
    | {"orient": "top", "title": None, "labelLimit": 0, "columns": 1, "symbolStrokeWidth": 3},
}


@dataclass(frozen=True)
class Chart:
    """A heading and a specification, whose description serves those who do not see the chart."""

    heading: str
    spec: Spec


def subjects(table: pd.DataFrame) -> Chart:
    """Top-1 of each subject and encoder.

    Columns: subject, encoder, top1_acc, chance, perhaps top1_acc_low and top1_acc_high, and perhaps
    ridge, top-1 of the baseline.
    """
    encoders = list(table["encoder"].unique())
    colours = {"domain": encoders, "range": list(colours_of(encoders).values())}
    shared = {
        "x": {"field": "subject", "type": "nominal", "title": None, "axis": {"labelAngle": -45}},
        "xOffset": {"field": "encoder", "type": "nominal", "scale": {"domain": encoders}},
    }

    title = "top-1 accuracy"
    bar = {"type": "bar", "tooltip": True, "width": {"band": 0.7}}
    colour = {"field": "encoder", "type": "nominal", "scale": colours}

    layers: list[Spec] = [
        {"mark": bar, "encoding": shared | {"y": _quantitative("top1_acc", title), "color": colour}}
    ]
    # Absent for means over seeds and for two encoders (`page._top1_of_subjects`).
    if "top1_acc_low" in table:
        ends = {"y": _quantitative("top1_acc_low", title), "y2": {"field": "top1_acc_high"}}
        layers.append(
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
                "encoding": shared | ends,
            }
        )

    # A tick as wide as the subject, across the bars
    if "ridge" in table:
        tick = {"type": "tick", "thickness": 3, "color": "currentColor", "tooltip": True}
        ridge = {"x": shared["x"], "y": _quantitative("ridge", title)}
        layers.append({"mark": tick, "encoding": ridge})

    # All rows have the same chance: one line across.
    chance = {"y": {"datum": float(table["chance"].iloc[0])}}
    layers.append({"mark": {"type": "rule", **DASHED}, "encoding": chance})

    names = " and ".join(encoders) + (", and of ridge" if "ridge" in table else "")
    return _chart("Each subject", f"{title} of each subject, {names}", table, layers, {})


def curve(
    table: pd.DataFrame,
    x: str,
    y: str,
    heading: str,
    x_title: str,
    y_title: str,
    encoder: str,
    log: bool = False,
) -> Chart:
    """One metric along `x` with its 95 % interval (`<y>_low`, `<y>_high`) and, dashed, `chance`."""
    across = _quantitative(x, x_title)
    if log:
        across |= {
            "scale": {"type": "log", "nice": False},
            "axis": {"values": [v for v in ROUND if v <= table[x].max()]},
        }

    colour = COLOURS[encoder]
    line = {
        "type": "line",
        "color": colour,
        "point": {"color": colour},
        "tooltip": True,
        "clip": True,
    }
    # The ends of the interval are two columns, `y` and `y2` one area between them.
    band = {"y": _quantitative(f"{y}_low", y_title), "y2": {"field": f"{y}_high"}}
    layers = [
        {"mark": line, "encoding": {"y": _quantitative(y, y_title)}, "params": ZOOM},
        {"mark": {"type": "area", "color": colour, "opacity": 0.2, "clip": True}, "encoding": band},
        {
            "mark": {"type": "line", "clip": True, **DASHED},
            "encoding": {"y": _quantitative("chance", y_title)},
        },
    ]

    return _chart(
        heading,
        f"{y_title} against {x_title}, with its interval and chance",
        table,
        layers,
        {"x": across},
    )


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    heading: str,
    x_title: str,
    y_title: str,
    colours: dict[str, str],
    log: bool = False,
) -> Chart:
    """Several lines along `x`, each with its band, and one dashed line, `chance`.

    The table has a row a point, with the columns line (its name, a key of `colours`), `x`, `y`,
    `<y>_low`, `<y>_high` and chance. A line without values of `y` is a band alone.
    """
    names = [name for name in colours if name in set(table["line"])]
    across = _quantitative(x, x_title)
    if log:
        across |= {
            "scale": {"type": "log", "nice": False},
            "axis": {"values": [v for v in ROUND if v <= table[x].max()]},
        }
    encoding = {
        "x": across,
        "color": {
            "field": "line",
            "type": "nominal",
            "scale": {"domain": names, "range": [colours[name] for name in names]},
            "legend": {"symbolType": "stroke"},
        },
    }

    line = {"type": "line", "point": True, "tooltip": True, "clip": True}
    dash = {"field": "line", "type": "nominal", "scale": {"domain": names}}
    band = {"y": _quantitative(f"{y}_low", y_title), "y2": {"field": f"{y}_high"}}
    layers = [
        {
            "mark": line,
            "encoding": {"y": _quantitative(y, y_title), "strokeDash": dash},
            "params": ZOOM,
        },
        {"mark": {"type": "area", "opacity": 0.2, "clip": True}, "encoding": band},
        # All rows have the same chance: one line across.
        {
            "mark": {"type": "rule", **DASHED},
            "encoding": {"x": None, "color": None, "y": {"datum": float(table["chance"].iloc[0])}},
        },
    ]
    return _chart(
        heading, f"{y_title} against {x_title}: {', '.join(names)}", table, layers, encoding
    )


def learning(curves: pd.DataFrame, y: str, heading: str, y_title: str) -> Chart:
    """Curves of training, with columns epoch, curve (its name) and `y`.

    Those of the published run are faint.
    """
    names = list(curves["curve"].unique())
    colours = [LINES.get(name, COLOURS["aligned"]) for name in names]

    encoding = {
        "x": _quantitative("epoch", "epoch"),
        "y": _quantitative(y, y_title),
        "color": {
            "field": "curve",
            "type": "nominal",
            "scale": {"domain": names, "range": colours},
        },
        "strokeDash": {"field": "curve", "type": "nominal", "scale": {"domain": names}},
        "opacity": {
            "condition": {"test": {"field": "curve", "equal": PUBLISHED_RUN}, "value": 0.7},
            "value": 1,
        },
    }

    layers = [{"mark": {"type": "line", "tooltip": True, "clip": True}, "params": ZOOM}]
    return _chart(heading, f"{y_title} against epoch: {', '.join(names)}", curves, layers, encoding)


def _chart(
    heading: str, label: str, table: pd.DataFrame, layers: list[Spec], encoding: Spec
) -> Chart:
    """Layers over one table, with what their encodings share, as wide as the page lets them be."""
    spec = {
        "$schema": SCHEMA,
        "description": label,
        # JSON has no NaN: Vega-Lite leaves a gap where a value is null.
        "data": {"values": table.astype(object).where(table.notna(), None).to_dict("records")},
        "width": "container",
        "height": 260,
        "autosize": {"type": "fit", "contains": "padding"},
        "encoding": encoding,
        "layer": layers,
        "config": CONFIG,
    }
    return Chart(heading, spec)


def _quantitative(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title}
