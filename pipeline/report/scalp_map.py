"""A picture of what each channel contributes, on the head seen from above.

Axes: C channels.
"""

import textwrap
from collections.abc import Sequence

import mne
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipeline.report.style import DIVERGING

HEAD_RADIUS = 0.095  # m, of the drawn outline; MNE's own
RIM = 0.9  # of the drawn radius, where the equator of the 10-20 system lies
HEAD_CENTRE = (0.001, -0.016, 0.0)  # m, of the sphere nearest to the electrodes of MNE's montage
MAX_NAMES = 80  # with more channels, their names would hide the map


def scalp_map(
    ch_names: Sequence[str],
    losses: dict[str, np.ndarray],
    title: str,
    sensor_positions: np.ndarray | None = None,
) -> Figure:
    """The loss if a channel is masked: a panel for each of `losses`, from its label to (C,).

    `sensor_positions` are as for `place_channels`; channels without a position are listed above the
    map. Nothing is interpolated between fewer than four channels, or channels on one line. The
    names of more than MAX_NAMES channels are left out.
    """
    positions = place_channels(ch_names, sensor_positions)
    placed = np.flatnonzero(np.isfinite(positions).all(1)).tolist()
    xy = HEAD_RADIUS * positions[placed]
    crowded = len(placed) > MAX_NAMES
    names = [] if crowded else [ch_names[i] for i in placed]

    figure = Figure(figsize=(3.9 * len(losses), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    axes = figure.subplots(1, len(losses), squeeze=False)[0]
    for ax, (label, loss) in zip(axes, losses.items(), strict=True):
        values = np.asarray(loss, dtype=np.float64)
        # Zero is in the middle, and a panel of zeros needs a range too.
        limit = max(np.abs(values).max(), 1e-3)
        norm = Normalize(-limit, limit)
        _draw_head(ax, xy, values[placed], norm)

        discs = ax.scatter(
            *xy.T,
            14 if crowded else 90,
            values[placed],
            cmap=DIVERGING,
            norm=norm,
            edgecolor="black",
            linewidth=0.6,
            zorder=5,
        )

        for point, name in zip(xy, names, strict=not crowded):
            below = {"xytext": (0, -6), "textcoords": "offset points", "ha": "center", "va": "top"}
            ax.annotate(name, point, fontsize=5.5, zorder=6, parse_math=False, **below)
        figure.colorbar(discs, ax=ax, label=label, location="bottom", shrink=0.8)

        unplaced = [
            f"{name} {values[i]:+.3f}" for i, name in enumerate(ch_names) if i not in placed
        ]
        if unplaced:
            system = " in the 10-05 system" if sensor_positions is None else ""
            note = f"without a position{system}: {', '.join(unplaced)}"
            wrapped = textwrap.fill(note, 55)
            ax.set_title(wrapped, fontsize=6.5, fontweight="normal", parse_math=False)
    return figure


def place_channels(ch_names: Sequence[str], sensor_positions: np.ndarray | None) -> np.ndarray:
    """Positions (C, 2) on the head seen from above, its rim at 1; NaN where none is known.

    They are `sensor_positions` where the data have them, else those of the 10-05 system as in MNE.
    """
    return _positions_by_name(ch_names) if sensor_positions is None else sensor_positions


def _positions_by_name(ch_names: Sequence[str]) -> np.ndarray:
    """Positions (C, 2) on the head seen from above, its rim at 1.

    The distance from the centre is the angle from the vertex (azimuthal equidistant projection) of
    the position in MNE's montage. NaN for names that the 10-05 system does not have.
    """
    montage = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
    position_of = {name.lower(): position - HEAD_CENTRE for name, position in montage.items()}
    nowhere = np.full(3, np.nan)
    x, y, z = np.array([position_of.get(name.lower(), nowhere) for name in ch_names]).T

    from_vertex = np.arctan2(np.hypot(x, y), z)  # rad
    from_axis = np.maximum(np.hypot(x, y), 1e-9)  # m
    return (RIM * from_vertex / (np.pi / 2) / from_axis)[:, None] * np.stack([x, y], 1)


def _draw_head(ax: Axes, xy: np.ndarray, values: np.ndarray, norm: Normalize) -> None:
    """The outline of a head, and faintly the values interpolated between the channels."""
    # Rank 2: the channels do not lie on one line, or nearly so.
    interpolated = len(xy) > 3 and (
        np.linalg.matrix_rank(xy - xy.mean(0), tol=0.1 * HEAD_RADIUS) == 2
    )
    if not interpolated:
        # MNE draws no outline without points: these four are for the outline alone.
        xy = HEAD_RADIUS / 2 * np.array([[0, 1], [1, 0], [0, -1], [0, 0]])
        values = np.zeros(4)

    field, _ = mne.viz.plot_topomap(
        values,
        xy,
        axes=ax,
        show=False,
        sensors=False,
        contours=0,
        extrapolate="local",
        sphere=HEAD_RADIUS,
        cmap=DIVERGING,
        cnorm=norm,
    )
    field.set(visible=interpolated, alpha=0.5)
