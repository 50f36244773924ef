"""A window in seconds, found on the time axis of the EEG."""

from collections.abc import Sequence

import numpy as np


def find_window(times: np.ndarray, step: float, window: Sequence[float]) -> slice | None:
    """The samples from the first to the last second of `window`, both included.

    `times` (T,) are in seconds, `step` seconds apart; a thousandth of a step is allowed for
    rounding. Returns None where the window is not whole within the times, or its seconds are not
    in order, and an empty slice where the window lies between two samples.
    """
    first, last = window
    slack = step / 1000
    if not times[0] - slack <= first <= last <= times[-1] + slack:
        return None

    start, stop = np.searchsorted(times, [first - slack, last + slack])
    return slice(int(start), int(stop))
