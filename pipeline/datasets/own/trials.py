"""What one file of somebody's own recordings holds: its axes, and what each trial showed.

Headers and tables are read, never a value of the EEG (of EEGLAB's `.set` MNE reads both at once).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from pipeline.datasets.epochs import EpochPlan, epoch_bounds, plan_epochs
from pipeline.datasets.own.files import RecordingFile
from pipeline.datasets.own.findings import Findings, times
from pipeline.datasets.own.recordings import open_epochs, open_raw, pick_data
from pipeline.datasets.own.subject_folder import Kind
from pipeline.datasets.own.tables import NOTHING, list_names, read_table, table_beside
from pipeline.errors import InputError, suggestion
from pipeline.sections import Own

if TYPE_CHECKING:
    import mne

CONCEPTS = ("folder", "picture")  # values of own.concept that name no column


@dataclass(frozen=True)
class Epoching:
    """The values of `preprocess` on which it depends whether files fit together."""

    channels: Literal["all", "posterior"] | list[str]
    sfreq: Literal["published"] | float
    window: Literal["published"] | list[float]
    baseline: Literal["none"] | list[float]


@dataclass(frozen=True)
class Axes:
    """The axes of one file.

    * `ch_names`: those that are used (`pick_data`), in the order of the file.
    * `modality`: of these.
    * `sfreq`: Hz.
    * `tmin`, `tmax`: first and last second of an epoch; of a raw recording its own.
    * `n_trials`: epochs; of a raw recording the rows of its events.
    """

    ch_names: tuple[str, ...]
    modality: Literal["EEG", "MEG"]
    sfreq: float
    tmin: float
    tmax: float
    n_trials: int


@dataclass(frozen=True)
class FileTrials:
    """What a file holds.

    `trials` has a row for each trial that showed a picture, in the order of the file:
    * `position`: as in the table of a subject (`subject_folder.COLUMNS`).
    * `name`: the picture, as the column names it.
    * `concept`, `split`: the values of these columns as text; empty where no column is asked for.
    * `place`: where a reader finds the row, such as "sub-01-epo.csv, line 12".
    """

    axes: Axes
    trials: pd.DataFrame


def read_trials(
    file: RecordingFile, kind: Kind, settings: Own, epoching: Epoching, findings: Findings
) -> FileTrials | None:
    """Open the file and read its trials; None where it has none that can be used.

    What is wrong is noted in `findings`, also what is left out. Raises InputError where the file
    or its table cannot be read.
    """
    if not file.path.exists():
        raise InputError(
            f"{file.path}: is a link to a file that is not there; fetch it first: datalad get, or "
            "git annex get, in that folder"
        )
    if kind == "epochs":
        return _of_epochs(file, settings, findings)
    return _of_raw(file, settings, epoching, findings)


def uses_column(settings: Own, key: str) -> bool:
    """Whether `own.concept` or `own.split` names a column."""
    if key == "concept":
        return settings.concept not in CONCEPTS
    return settings.split != "drawn" and not names_file(settings.split)


def names_file(split: str) -> bool:
    """Whether `own.split` names a CSV."""
    return "/" in split or split.lower().endswith(".csv")


def _of_epochs(file: RecordingFile, settings: Own, findings: Findings) -> FileTrials | None:
    epochs = open_epochs(file.path)
    times_of_epoch = epochs.times
    axes = Axes(
        *_channels(epochs.info),
        float(epochs.info["sfreq"]),
        float(times_of_epoch[0]),
        float(times_of_epoch[-1]),
        len(epochs),
    )

    table = table_beside(file.path, len(epochs))
    table_file = file.path.with_suffix(".csv")
    if table is not None:
        places = [f"{table_file}, line {line}" for line in _lines(table)]
    elif epochs.metadata is not None:
        table = epochs.metadata.reset_index(drop=True).map(_as_text).rename(columns=str)
        table_file = file.path
        places = [f"{file.path}, epoch {number} (from 0)" for number in range(len(table))]
    else:
        raise InputError(
            f"{file.path}: has no metadata that say which picture each epoch showed; put "
            f"{table_file.name} beside it, with a column {settings.image_column} and a row for "
            f"each of its {len(epochs):,} epochs, or set epochs.metadata in MNE and save it again"
        )

    _require_columns(table, settings, table_file)
    trials = _picture_trials(table, places, settings, file.path, findings)
    return FileTrials(axes, trials.assign(position=trials["row"]))


def _of_raw(
    file: RecordingFile, settings: Own, epoching: Epoching, findings: Findings
) -> FileTrials | None:
    if not file.events.is_file():
        findings.leave_out(
            "recordings without pictures", f"{file.path.name}: has no {file.events.name}"
        )
        return None

    table = read_table(file.events, "\t")
    if settings.image_column not in table.columns:
        findings.leave_out(
            "recordings without pictures",
            f"{file.path.name}: its events have no column {settings.image_column}, they have "
            f"{list_names(table.columns)}",
        )
        return None
    _require_columns(table, settings, file.events)

    raw = open_raw(file.path)
    sfreq = float(raw.info["sfreq"])
    n_samples = raw.n_times
    axes = Axes(*_channels(raw.info), sfreq, 0.0, (n_samples - 1) / sfreq, len(table))

    places = [f"{file.events}, line {line}" for line in _lines(table)]
    trials = _picture_trials(table, places, settings, file.path, findings)
    onsets = _onsets(table, trials, file.events)
    trials["position"] = np.round(onsets * sfreq).astype(np.int64)
    _check_onsets(trials, axes, n_samples, file.path)

    plan = epoch_plan(epoching, sfreq, str(file.path))
    if plan:
        trials = _within(trials, plan, sfreq, n_samples, file.path, findings)
    return FileTrials(axes, trials)


def _channels(info: "mne.Info") -> tuple[tuple[str, ...], Literal["EEG", "MEG"]]:
    """The names of the channels that are used, and what they are."""
    picks = pick_data(info)
    is_eeg = info.get_channel_types(picks)[0] == "eeg"
    return tuple(info.ch_names[pick] for pick in picks), "EEG" if is_eeg else "MEG"


def epoch_plan(epoching: Epoching, sfreq: float, file: str) -> EpochPlan | None:
    """How epochs are cut of a recording at `sfreq` Hz; None where that is not set yet."""
    if epoching.sfreq == "published" or epoching.window == "published":
        return None
    return plan_epochs(epoching.sfreq, epoching.window, epoching.baseline, sfreq, file)


def _lines(table: pd.DataFrame) -> range:
    """The lines of the rows in their file, as an editor counts them; the names are line 1."""
    return range(2, len(table) + 2)


def _as_text(value: object) -> str:
    """A cell of metadata as the table of a file would have it: 3.0 is 3."""
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _require_columns(table: pd.DataFrame, settings: Own, file: Path) -> None:
    """InputError for the first column that the parameters name and the table lacks."""
    columns = {"image_column": settings.image_column}
    columns |= {
        key: getattr(settings, key) for key in ("concept", "split") if uses_column(settings, key)
    }
    for key, column in columns.items():
        names = list(map(str, table.columns))
        if names.count(column) != 1:
            raise InputError(
                f"{file}: expected one column {column} (own.{key}), got {list_names(names)}; let "
                f"own.{key} name one of these{suggestion(column, names)}"
            )


def _onsets(table: pd.DataFrame, trials: pd.DataFrame, file: Path) -> np.ndarray:
    """The onsets of these trials in s, (n,) float64.

    Raises InputError where the events have none, naming the first that is no finite number.
    """
    if "onset" not in table.columns:
        raise InputError(
            f"{file}: has no column onset, it has {list_names(table.columns)}; BIDS wants it, in "
            "seconds"
        )
    texts = table["onset"].iloc[trials["row"]]
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise InputError(
            f"{trials['place'].iloc[wrong[0]]}: onset is {texts.iloc[wrong[0]]!r}, expected a "
            "number of seconds from the start of the recording; correct it"
        )
    return numbers


def _picture_trials(
    table: pd.DataFrame,
    places: Sequence[str],
    settings: Own,
    file: Path,
    findings: Findings,
) -> pd.DataFrame:
    """The rows that name a picture, with the columns of `FileTrials.trials` but for `position`.

    `row` is the position of each in the table.
    """
    trials = pd.DataFrame(
        {
            "row": np.arange(len(table)),
            "name": table[settings.image_column],
            "concept": table[settings.concept] if uses_column(settings, "concept") else "",
            "split": table[settings.split] if uses_column(settings, "split") else "",
            "place": places,
        }
    )

    shows_picture = ~trials["name"].isin(NOTHING)
    if not shows_picture.all():
        n_others = int((~shows_picture).sum())
        findings.leave_out(
            f"rows whose {settings.image_column} is empty or n/a, such as fixations",
            f"{file.name}: {n_others:,} of {times(len(trials), 'row')}",
        )
    return trials[shows_picture].reset_index(drop=True)


def _check_onsets(trials: pd.DataFrame, axes: Axes, n_samples: int, file: Path) -> None:
    """InputError where a picture appears before the recording, or after it."""
    outside = trials[(trials["position"] < 0) | (trials["position"] >= n_samples)]
    if len(outside):
        first = outside.iloc[0]
        raise InputError(
            f"{first['place']}: the onset is {first['position'] / axes.sfreq:g} s, expected 0 to "
            f"{axes.tmax:g} s, the length of {file.name}; onsets are in seconds from its first "
            f"sample ({len(outside)} of {len(trials)} rows are outside of it)"
        )


def _within(
    trials: pd.DataFrame,
    plan: EpochPlan,
    sfreq: float,
    n_samples: int,
    file: Path,
    findings: Findings,
) -> pd.DataFrame:
    """The trials whose whole epoch was recorded."""
    first, last = epoch_bounds(plan, sfreq)
    positions = trials["position"]
    is_whole = (positions + first >= 0) & (positions + last < n_samples)
    if not is_whole.all():
        findings.leave_out(
            f"trials of which not all of {plan.tmin:g} .. {plan.tmax:g} s was recorded",
            f"{file.name}: {int((~is_whole).sum()):,} of {times(len(trials), 'trial')}, at its "
            "start or end",
        )
    return trials[is_whole].reset_index(drop=True)
