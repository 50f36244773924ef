"""EEG or MEG read and brought into the form that a trained model takes.

Axes: M responses, R repetitions, C channels, T samples in time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.datasets.own.recordings import open_epochs, pick_data
from pipeline.datasets.own.tables import NOTHING, table_beside
from pipeline.errors import InputError, suggestion
from pipeline.preprocess.normalisation import normalise
from pipeline.preprocess.recordings import Recording, Split, read_shape, read_split
from pipeline.train.made_with import MadeWith, read_attributes
from pipeline.train.model import ContrastiveModel, ModelSizes

if TYPE_CHECKING:
    import mne

IMAGE_COLUMN = "stim_file"  # what BIDS calls the column of the picture that was shown
# Of the preparation, what must agree: with another of these the values mean something else.
PREPARED_ALIKE = ("units", "baseline", "mvnn", "normalise")
READ_AT_ONCE = 64  # trials
# The spread of the EEG may be so many times more or less than in the training: single trials are
# noisier than averages, but a wrong unit is off by 1,000 and more.
LARGEST_FACTOR = 100.0


@dataclass(frozen=True)
class Responses:
    """The responses of one subject, as the model takes them.

    * `eeg`: (M, C, T) floating point, the channels and samples of the model, in its order.
    * `seen`: (M,) str, the picture that was shown; empty strings where nothing tells it.
    * `n_trials`: (M,) int, how many trials each response is the mean of.
    * `notes`: sentences for the user: what was left out, and what could not be checked.
    """

    eeg: np.ndarray
    seen: np.ndarray
    n_trials: np.ndarray
    notes: tuple[str, ...] = ()


def read_prepared(
    path: Path,
    split: Split,
    model: ContrastiveModel,
    made_with: MadeWith | None,
    single_trials: bool = False,
) -> Responses:
    """A subject that the preprocess stage prepared, as (M, C, T) for the model.

    The repetitions of an image are averaged, unless `single_trials`. Channels are picked by name.
    Raises InputError where the file was prepared in another way than the model's EEG, or lacks a
    channel; without `made_with` only channels and times can be compared.
    """
    recording = read_split(path, split, average=not single_trials)
    if made_with is not None:
        _check_preparation(path, read_attributes(path), made_with["eeg"])
    picks = pick_channels(recording.ch_names, model.sizes, path)
    _check_prepared_axes(path, recording, model.sizes, made_with)
    notes = [*recording.caveats]
    if made_with is None:
        notes.append(_unknown_preparation())

    # As stored: with repetitions, or as averages of them, whose number nobody knows here
    shape, _ = read_shape(path, split, average=False)
    n_repetitions = shape[1] if len(shape) == 4 else 1
    eeg, seen = recording.eeg, recording.image_ids
    if not single_trials:
        return Responses(_picked(eeg, picks), seen, np.full(len(eeg), n_repetitions), tuple(notes))

    if eeg.ndim == 3:
        raise InputError(
            f"{path}: holds no single trials of the split {split}, only their averages: leave "
            "--single-trials out, or prepare it with preprocess.average_repetitions=false"
        )
    eeg = eeg.reshape(-1, *eeg.shape[2:])  # (N, R, C, T) -> (N R, C, T)
    if recording.to_normalise:
        eeg = normalise(eeg)
    seen = seen.repeat(n_repetitions)
    return Responses(_picked(eeg, picks), seen, np.ones(len(eeg), int), tuple(notes))


def read_epochs(
    path: Path,
    model: ContrastiveModel,
    made_with: MadeWith | None,
    image_column: str | None = None,
    single_trials: bool = False,
) -> Responses:
    """Epochs of MNE (`-epo.fif`) or EEGLAB (`.set`), as (M, C, T) for the model.

    Values are those that MNE reads, in V or T. `image_column` of the epochs' metadata says which
    picture was shown (None: `stim_file`, if there is such a column). The trials of a picture are
    averaged, unless `single_trials`; trials without a picture are left out. Where no column tells
    the pictures, each epoch is a response.

    What the model's EEG had done to each response alone is done here too: its window is cut out,
    and with `preprocess.normalise` trial or average the responses are normalised. Nothing in such
    a file tells how else it was prepared: the notes say what to see to.

    Raises InputError where channels, rate or window are not those of the model, where the column
    does not exist, and where the values are of another size than the model's EEG.
    """
    epochs = open_epochs(path)
    data = [epochs.ch_names[pick] for pick in pick_data(epochs.info)]
    names = [data[pick] for pick in pick_channels(data, model.sizes, path)]
    samples, notes = find_samples(epochs.times, epochs.info["sfreq"], model.sizes, path)

    bad = [name for name in names if name in epochs.info["bads"]]
    if bad:
        notes.append(f"{path}: the channels {', '.join(bad)} are marked as bad, and are used.")

    pictures = _pictures_of(epochs, path, image_column)
    groups, group_notes = _groups(pictures, len(epochs), single_trials)
    normalised = "none" if made_with is None else str(made_with["eeg"].get("normalise", "none"))
    eeg = _average(epochs, names, samples, list(groups.values()), normalised)
    _check_finite(path, eeg, names)

    seen = [name if pictures is not None else "" for name, _ in groups]
    n_trials = [len(trials) for trials in groups.values()]
    check_spread(path, eeg, model, made_with)
    return Responses(
        eeg,
        np.array(seen, dtype=object),
        np.array(n_trials),
        (*notes, *group_notes, _not_checked(made_with)),
    )


def pick_channels(ch_names: Sequence[str], sizes: ModelSizes, path: Path) -> list[int]:
    """The positions of the model's C channels among these, in the order of the model.

    Raises InputError for the channels that are not there.
    """
    if not sizes.ch_names:
        if len(ch_names) == sizes.n_chans:
            return list(range(sizes.n_chans))
        raise InputError(
            f"{path}: has {len(ch_names)} channels, and the model takes {sizes.n_chans}, whose "
            "names it does not know: give it those that it was trained on, in their order"
        )

    missing = [name for name in sizes.ch_names if name not in ch_names]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing)} of the model's {sizes.n_chans} channels, the first is "
            f"{missing[0]}; it has {_few(ch_names)}: rename them as the model's "
            "(epochs.rename_channels in MNE), or train a model on the channels that you have "
            f"(preprocess.channels){suggestion(missing[0], ch_names)}"
        )
    return [list(ch_names).index(name) for name in sizes.ch_names]


def find_samples(
    times: np.ndarray, sfreq: float, sizes: ModelSizes, path: Path
) -> tuple[slice, list[str]]:
    """Which samples of epochs are the model's T, and a note where theirs lie beside its own.

    `times` in seconds from stimulus onset, `sfreq` in Hz. Raises InputError for another rate, and
    where the epochs do not reach over the window of the model.
    """
    # So small a difference adds up to a tenth of a sample over 1,000 samples.
    if abs(sfreq / sizes.sfreq - 1) > 1e-4:
        raise InputError(
            f"{path}: has {sfreq:g} samples a second, and the model takes {sizes.sfreq:g}: "
            f"resample it (epochs.resample({sizes.sfreq:g}) in MNE, after a filter against "
            "aliasing where you decimate)"
        )

    start = int(np.abs(times - sizes.start).argmin())
    shift = float(times[start] - sizes.start)
    end = sizes.start + (sizes.n_times - 1) / sizes.sfreq
    if abs(shift) > 0.5 / sfreq or start + sizes.n_times > len(times):
        raise InputError(
            f"{path}: reaches from {times[0]:g} to {times[-1]:g} s, and the model takes "
            f"{sizes.n_times} samples from {sizes.start:g} to {end:g} s after the picture "
            f"appeared: cut the epochs so that they hold that window (tmin={sizes.start:g}, "
            f"tmax={end:g} or wider in mne.Epochs)"
        )

    notes = []
    if abs(shift) > 1e-3 / sfreq:
        notes.append(
            f"{path}: its samples lie {1000 * shift:+.2g} ms beside those of the model, less than "
            "half a sample, and are taken for them."
        )
    return slice(start, start + sizes.n_times), notes


def check_spread(
    path: Path, eeg: np.ndarray, model: ContrastiveModel, made_with: MadeWith | None
) -> None:
    """InputError where the EEG (M, C, T) is 100 times as large as in the training, or as small.

    The spread over time within a response is compared with the standard deviation by which the
    model divides each channel. A model of `standardise_eeg: false` has none, and nothing is seen.
    """
    if not model.recipe.standardise_eeg:
        return
    spread = np.sqrt(eeg[..., model.window].astype(np.float64).var(axis=-1).mean(axis=0))  # (C,)
    expected = model.eeg_sd.numpy()[:, 0]
    factor = float(np.median(spread / expected))
    if 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
        return

    unit = "not known" if made_with is None else made_with["eeg"].get("units", "not known")
    raise InputError(
        f"{path}: the values spread {factor:.2g} times as much as those that the model was trained "
        f"on, whose unit is: {unit}; bring them into that unit (epochs.apply_function in MNE), or "
        "prepare them as the model's EEG was"
    )


def _check_preparation(
    path: Path, prepared: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """InputError where a subject was prepared in another way than the model's EEG."""
    different = [key for key in PREPARED_ALIKE if prepared.get(key) != expected.get(key)]
    if different:
        both = "; ".join(
            f"{key} is {prepared.get(key)}, not {expected.get(key)}" for key in different
        )
        settings = " ".join(f"preprocess.{key}" for key in different if key != "units")
        remedy = settings or "preprocess.dtype, or the dataset"
        raise InputError(
            f"{path}: was not prepared as the EEG that the model was trained on: {both}; prepare "
            f"it anew with that ({remedy}), or train a model on EEG such as this"
        )


def _check_prepared_axes(
    path: Path, recording: Recording, sizes: ModelSizes, made_with: MadeWith | None
) -> None:
    """InputError for other times; for more channels too, where values depend on all channels."""
    times = recording.times
    same_rate = abs(recording.sfreq - sizes.sfreq) < 1e-3
    same_start = abs(times[0] - sizes.start) < 1e-3 / sizes.sfreq
    if not (same_rate and same_start and len(times) == sizes.n_times):
        end = sizes.start + (sizes.n_times - 1) / sizes.sfreq
        raise InputError(
            f"{path}: has {len(times)} samples from {times[0]:g} to {times[-1]:g} s at "
            f"{recording.sfreq:g} Hz, and the model takes {sizes.n_times} from {sizes.start:g} to "
            f"{end:g} s at {sizes.sfreq:g} Hz; prepare it with preprocess.window="
            f"[{sizes.start:g},{end:g}] and, of raw recordings, preprocess.sfreq={sizes.sfreq:g}"
        )

    mvnn = "none" if made_with is None else made_with["eeg"].get("mvnn", "none")
    additional = set(recording.ch_names) - set(sizes.ch_names)
    if mvnn != "none" and sizes.ch_names and additional:
        raise InputError(
            f"{path}: has {len(additional)} channels more than the model takes, and its noise "
            f"normalisation (mvnn {mvnn}) mixed all of them; prepare it with preprocess.channels="
            f"[{','.join(sizes.ch_names)}]"
        )


def _picked(eeg: np.ndarray, picks: list[int]) -> np.ndarray:
    """The picked channels of (M, C, T), without a copy where they are all, in order."""
    return eeg if picks == list(range(eeg.shape[1])) else eeg[:, picks]


def _pictures_of(
    epochs: "mne.BaseEpochs", path: Path, image_column: str | None
) -> pd.Series | None:
    """The picture of each epoch as text, "" where it has none; None where nothing tells it."""
    column = image_column or IMAGE_COLUMN
    table = table_beside(path, len(epochs))
    source = path if table is None else path.with_suffix(".csv")
    if table is None:
        table = epochs.metadata

    if table is not None and column in table:
        text = table[column].fillna("").astype(str).str.strip()
        return text.mask(text.isin(NOTHING), "")
    if image_column is None:
        return None

    if table is None:
        raise InputError(
            f"{path}: the epochs have no metadata, so that there is no column {image_column}; put "
            f"{path.with_suffix('.csv').name} beside it, with that column and a row for each "
            "epoch, or set epochs.metadata in MNE, or leave --image-column out"
        )
    columns = [str(name) for name in table]
    raise InputError(
        f"{source}: has no column {image_column}, it has {_few(columns)}"
        f"{suggestion(image_column, columns)}"
    )


def _groups(
    pictures: pd.Series | None, n_epochs: int, single_trials: bool
) -> tuple[dict[tuple[str, int], list[int]], list[str]]:
    """The epochs that are averaged together: rows by picture and a number that tells trials apart.

    With sentences on what is left out.
    """
    if pictures is None:
        return {("", row): [row] for row in range(n_epochs)}, [
            "Nothing tells which picture was shown in which epoch, so each epoch is decoded alone, "
            "and there is no score (the column stim_file of their metadata, or of a CSV beside the "
            "file, tells it; if it has another name: --image-column).",
        ]

    groups: dict[tuple[str, int], list[int]] = {}
    for row, picture in enumerate(pictures):
        if picture:
            groups.setdefault((picture, row if single_trials else 0), []).append(row)
    if not groups:
        raise InputError(
            f"the column {pictures.name} names no picture in any of the {n_epochs} epochs: name "
            "the right column with --image-column"
        )

    n_without = int((pictures == "").sum())
    notes = [f"{n_without} epochs without a picture are left out."] if n_without else []
    return groups, notes


def _average(
    epochs: "mne.BaseEpochs",
    ch_names: list[str],
    samples: slice,
    groups: Sequence[Sequence[int]],
    normalised: str,
) -> np.ndarray:
    """The mean of each group of trials, (M, C, T) float32, read some trials at a time.

    It is normalised in the order of `preprocess.normalise`: each trial, or the mean.
    """
    trials = np.array([trial for group in groups for trial in group])
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(trials)  # as they lie in the file

    n_times = samples.stop - samples.start
    total = np.zeros((len(groups), len(ch_names), n_times))
    for start in range(0, len(order), READ_AT_ONCE):
        part = order[start : start + READ_AT_ONCE]
        values = epochs[trials[part]].get_data(picks=ch_names, verbose="error")[..., samples]
        np.add.at(total, group_of[part], normalise(values) if normalised == "trial" else values)

    average = total / np.bincount(group_of)[:, None, None]
    return (normalise(average) if normalised == "average" else average).astype(np.float32)


def _check_finite(path: Path, eeg: np.ndarray, ch_names: Sequence[str]) -> None:
    finite = np.isfinite(eeg)
    if not finite.all():
        row, channel, _ = np.argwhere(~finite)[0]
        raise InputError(
            f"{path}: response {row} (from 0) is not finite in channel {ch_names[channel]}; drop "
            "those epochs (epochs.drop in MNE) or interpolate the channel"
        )


def _not_checked(made_with: MadeWith | None) -> str:
    """What nothing in a file of epochs tells, in words."""
    if made_with is None:
        return _unknown_preparation()
    eeg = made_with["eeg"]
    steps = {key: eeg.get(key, "none") for key in ("baseline", "mvnn")}
    if eeg.get("normalise") == "session":
        steps["normalise"] = "session"
    prepared = ", ".join(f"{key} {value}" for key, value in steps.items())
    return (
        "Not checked, since a file of epochs does not tell it: reference and filters, and that "
        f"they were prepared as the model's EEG ({prepared}; unit: {eeg.get('units')}). Nor is it "
        "known whether the model was trained with these pictures: if it was, the score is higher "
        "than it would be with new ones."
    )


def _unknown_preparation() -> str:
    return (
        "The model's folder does not say how its EEG was prepared (made_with.json, which the "
        "train stage writes): only channels, rate and times were compared."
    )


def _few(names: Sequence[str]) -> str:
    """The first of many names."""
    first_names = ", ".join(names[:12])
    return f"{first_names}, ... ({len(names)})" if len(names) > 12 else first_names
