"""The protocols: which subjects each run is trained on, and which it is tested on.

There is one run for each fold of the protocol and each seed, from a fresh initialisation.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.sections import Across


def name_run(fold: str, seed: int) -> str:
    """The name of a run in folders, files and messages, such as `pooled-seed-42`."""
    return f"{fold}-seed-{seed}"


@dataclass(frozen=True)
class Run:
    """One model: the fold of the protocol, the seed, and the subjects of training and test."""

    fold: str
    seed: int
    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]

    @property
    def name(self) -> str:
        return name_run(self.fold, self.seed)


def plan(protocol: str, subjects: list[str], seeds: list[int]) -> list[Run]:
    """The runs of a protocol on one recording: all protocols but `across`.

    InputError for leave-one-subject-out with fewer than two subjects.
    """
    if protocol == "pooled":
        folds = [("pooled", subjects, subjects)]
    elif protocol == "within-subject":
        folds = [(subject, [subject], [subject]) for subject in subjects]
    else:
        if len(subjects) < 2:
            raise InputError(
                f"leave-one-subject-out needs two subjects or more and has {len(subjects)}: "
                "name more in `subjects`, or choose another protocol"
            )
        folds = []
        for left_out in subjects:
            trained_on = [subject for subject in subjects if subject != left_out]
            folds.append((f"without-{left_out}", trained_on, [left_out]))

    return [
        Run(fold, seed, tuple(trained_on), tuple(tested_on))
        for fold, trained_on, tested_on in folds
        for seed in seeds
    ]


def plan_across(
    across: Across, first: Sequence[str], second: Sequence[str], seeds: Sequence[int]
) -> list[Run]:
    """The runs of protocol `across`, on the subjects of the first and of the second recording.

    One model of all people of `train_on`, in the fold `across`, or one of each of them, in the fold
    `from-<subject>`. All are tested on all people of `test_on`. InputError where only the people
    who are tested would be trained on, or some of them be tested by a model of their own.
    """
    if across.train_on == across.test_on:
        raise InputError(
            f"across.train_on and across.test_on are both {across.test_on}, which is one recording "
            "alone: let one of them be another one, or set train.protocol to pooled"
        )

    if (across.train_on, across.models) == ("both", "within-subject"):
        raise InputError(
            "across.train_on is both and across.models within-subject, so that some people would "
            "be tested by their own model and others by that of another one; set across.models to "
            "pooled"
        )

    people = {"first": tuple(first), "second": tuple(second), "both": (*first, *second)}
    trained_on = people[across.train_on]
    tested_on = people[across.test_on]
    if across.models == "pooled":
        return [Run("across", seed, trained_on, tested_on) for seed in seeds]
    return [
        Run(f"from-{subject}", seed, (subject,), tested_on)
        for subject in trained_on
        for seed in seeds
    ]


def name_recordings(
    subjects: Sequence[str], first: str, second: str, of_second: Container[str]
) -> str:
    """The names of the recordings that these subjects are of, such as `first and second`.

    `of_second` are the subjects of the second recording.
    """
    names = sorted({second if subject in of_second else first for subject in subjects})
    return " and ".join(names)


def describe_recordings(trained_dataset: str, tested_dataset: str) -> str:
    """Who trained and who was tested, such as `trained on sample, tested on sample-headset`."""
    if trained_dataset == tested_dataset:
        return f"trained and tested on {tested_dataset}"
    return f"trained on {trained_dataset}, tested on {tested_dataset}"


def seeds_of(seed: int, seeds: int | list[int], key: str = "train.seeds") -> list[int]:
    """The seeds to run: so many from `seed` on, or the list itself; InputError for a seed twice."""
    if isinstance(seeds, int):
        return list(range(seed, seed + seeds))
    if len(set(seeds)) != len(seeds):
        raise InputError(
            f"{key} = {seeds} names a seed twice, which would count one run as two: name it once"
        )
    return seeds
