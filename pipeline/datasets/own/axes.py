"""Whether all files have the same channels, rate and times once `preprocess` has chosen of them."""

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.datasets.channels import choose_channels
from pipeline.datasets.own.findings import Findings, first_few
from pipeline.datasets.own.subject_folder import Kind
from pipeline.datasets.own.trials import Axes, Epoching, epoch_plan
from pipeline.errors import InputError

LEAVE_OUT = "leave the subject out of `subjects`"

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class NamedAxes:
    """The axes of a file, and what sentences call it."""

    file: str
    subject: str
    axes: Axes


def check_axes(
    files: Sequence[NamedAxes], kind: Kind, epoching: Epoching, findings: Findings
) -> None:
    """Note each file that differs from most others, with what helps."""
    _check_channels(files, epoching, findings)
    if kind == "raw":
        _require_plan(epoching, findings)
        return
    _check_rates(files, epoching, findings)
    _check_times(files, epoching, findings)


def count_samples(axes: Axes, kind: Kind, epoching: Epoching) -> tuple[int, int]:
    """About how many channels and samples an epoch has once it is prepared."""
    n_chans = len(axes.ch_names)
    if epoching.channels != "all":
        n_chans = len(choose_channels(axes.ch_names, epoching.channels, ""))

    first, last = axes.tmin, axes.tmax
    if epoching.window != "published":
        first, last = epoching.window
    sfreq = axes.sfreq if epoching.sfreq == "published" else epoching.sfreq
    if kind == "raw":
        plan = epoch_plan(epoching, axes.sfreq, "")
        return n_chans, len(plan.times) if plan else 0
    return n_chans, round((last - first) * sfreq) + 1


def _check_channels(files: Sequence[NamedAxes], epoching: Epoching, findings: Findings) -> None:
    if epoching.channels != "all":
        for file in files:
            try:
                choose_channels(file.axes.ch_names, epoching.channels, file.file)
            except InputError as error:
                findings.add_problem(
                    "channels", f"{error}; correct preprocess.channels, or {LEAVE_OUT}"
                )
        return

    usual = _most_common([file.axes.ch_names for file in files])
    for file in files:
        names = file.axes.ch_names
        if names == usual:
            continue

        more = [name for name in names if name not in usual]
        less = [name for name in usual if name not in names]
        differs = ["the same in another order"] if not more and not less else []
        differs += [f"with {first_few(more)}"] if more else []
        differs += [f"without {first_few(less)}"] if less else []
        findings.add_problem(
            "channels",
            f"{file.file}: has {len(names)} channels, expected the {len(usual)} of most files: "
            f"{' and '.join(differs)}; {_advice_on_channels(files, usual)}{LEAVE_OUT}",
        )


def _advice_on_channels(files: Sequence[NamedAxes], usual: Sequence[str]) -> str:
    common = set(usual).intersection(*(file.axes.ch_names for file in files))
    if not common:
        return ""
    # As JSON, which is how YAML reads it too, whatever the names hold.
    names = json.dumps([name for name in usual if name in common], ensure_ascii=False)
    return f"set preprocess.channels to the {len(common)} that all have: {names}, or "


def _require_plan(epoching: Epoching, findings: Findings) -> None:
    missing = [key for key in ("window", "sfreq") if getattr(epoching, key) == "published"]
    if missing:
        findings.add_problem(
            "settings",
            "own.eeg is a BIDS root of raw recordings, of which epochs are cut by "
            f"{' and '.join(f'preprocess.{key}' for key in missing)}, expected numbers, got "
            "published; set both, such as -S 'preprocess.window=[0,0.996]' -S preprocess.sfreq=250",
        )


def _check_rates(files: Sequence[NamedAxes], epoching: Epoching, findings: Findings) -> None:
    lowest = min(file.axes.sfreq for file in files)
    if epoching.sfreq != "published":
        for file in files:
            if file.axes.sfreq < epoching.sfreq:
                findings.add_problem(
                    "rates",
                    f"{file.file}: has {file.axes.sfreq:g} Hz, and preprocess.sfreq is "
                    f"{epoching.sfreq:g}; set it to {lowest:g} at most",
                )
        return

    usual = _most_common([file.axes.sfreq for file in files])
    for file in files:
        if file.axes.sfreq != usual:
            findings.add_problem(
                "rates",
                f"{file.file}: has {file.axes.sfreq:g} Hz, expected the {usual:g} of most files; "
                f"set preprocess.sfreq to {lowest:g}, or {LEAVE_OUT}",
            )


def _check_times(files: Sequence[NamedAxes], epoching: Epoching, findings: Findings) -> None:
    # Half a sample: what MNE rounds is no difference.
    slack = 0.5 / max(file.axes.sfreq for file in files)
    first = max(file.axes.tmin for file in files)
    last = min(file.axes.tmax for file in files)
    shared = f"[{first:g},{last:g}]"

    if epoching.window != "published":
        start, end = epoching.window
        for file in files:
            axes = file.axes
            if start < axes.tmin - slack or end > axes.tmax + slack:
                findings.add_problem(
                    "times",
                    f"{file.file}: has {axes.tmin:g} to {axes.tmax:g} s, and preprocess.window is "
                    f"{start:g} to {end:g}; set it to {shared} or to a part of it, or {LEAVE_OUT}",
                )
        return

    usual = _most_common([(file.axes.tmin, file.axes.tmax) for file in files])
    for file in files:
        axes = file.axes
        if not np.allclose((axes.tmin, axes.tmax), usual, rtol=0, atol=slack):
            remedy = f"set preprocess.window to {shared}, which all have, or " * (last > first)
            findings.add_problem(
                "times",
                f"{file.file}: has {axes.tmin:g} to {axes.tmax:g} s, expected {usual[0]:g} to "
                f"{usual[1]:g} s as most files; {remedy}{LEAVE_OUT}",
            )


def _most_common(values: Sequence[Value]) -> Value:
    """The first of those that come most often."""
    return Counter(values).most_common(1)[0][0]
