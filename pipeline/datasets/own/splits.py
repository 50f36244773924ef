"""Which of somebody's own pictures are trained and which are tested, and of which concept each is.

The rules, each of which says what it leaves out:

- No picture and no concept is in both. Where a column or a CSV has one in both, the test wins, and
  the training pictures of the concept are left out.
- A test picture is one that every subject saw; all subjects are tested on the same ones. Of
  pictures that are drawn, the others of their concept are left out. Pictures that somebody chose
  stop the check, with what to do.
- Test pictures have the same number of repetitions in all subjects: the smallest number that one
  was shown to one of them. The first ones are taken.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.datasets.own.files import full_path, natural_key
from pipeline.datasets.own.findings import Findings, first_few, times
from pipeline.datasets.own.pictures import Pictures, folder_of, match_pictures
from pipeline.datasets.own.tables import NOTHING, read_table
from pipeline.datasets.own.trials import names_file, uses_column
from pipeline.errors import InputError
from pipeline.sections import Own

# What people call the two in a column
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LEAST_TRAINING = 2  # pictures, for a contrast


def find_concepts(
    trials: pd.DataFrame, pictures: Pictures, settings: Own, findings: Findings
) -> dict[str, str]:
    """The concept of each picture that was shown. What is wrong is noted.

    `trials` has the columns `picture`, `concept` (the value of the column) and `place`.
    """
    names = trials["picture"].unique().tolist()
    if settings.concept == "picture":
        return {name: name.rpartition(".")[0] for name in names}
    if uses_column(settings, "concept"):
        return _concepts_of_column(trials, settings, findings)

    concepts = {name: folder_of(pictures, name) for name in names}
    without = [name for name, concept in concepts.items() if not concept]
    if without:
        findings.add_problem(
            "concepts",
            f"{pictures.path}: {times(len(without), 'picture')} of {len(names):,} lie in no folder "
            f"of a concept, the first is {without[0]}; set own.concept to picture (each is its "
            "own) or to a column that names the concept",
        )
    return concepts


def _concepts_of_column(trials: pd.DataFrame, settings: Own, findings: Findings) -> dict[str, str]:
    empty = trials[trials["concept"].isin(NOTHING)]
    for place, picture in zip(empty["place"], empty["picture"], strict=True):
        findings.add_problem(
            "concepts", f"{place}: {settings.concept} of the picture {picture} is empty; fill it in"
        )

    named = trials[~trials["concept"].isin(NOTHING)].drop_duplicates(["picture", "concept"])
    for _, rows in named[named["picture"].duplicated(keep=False)].groupby("picture"):
        first = rows.iloc[0]
        second = rows.iloc[1]
        findings.add_problem(
            "concepts",
            f"{second['place']}: {settings.concept} of the picture {second['picture']} is "
            f"{second['concept']!r}, and in {first['place']} {first['concept']!r}; correct one of "
            "them, since a picture has one concept",
        )
    return dict(zip(named["picture"], named["concept"], strict=True))


def find_splits(
    trials: pd.DataFrame,
    concepts: dict[str, str],
    pictures: Pictures,
    settings: Own,
    findings: Findings,
) -> dict[str, str]:
    """`train` or `test` for each picture that is used. What is wrong or left out is noted.

    `trials` has the columns `subject`, `picture`, `split` (the value of the column) and `place`.
    Raises InputError where the CSV cannot be read.
    """
    if uses_column(settings, "split"):
        splits = _splits_of_column(trials, settings, findings)
    elif names_file(settings.split):
        splits = _splits_of_csv(trials, pictures, settings, findings)
    else:
        return _drawn(trials, concepts, settings, findings)

    splits = _keep_concepts_apart(splits, concepts, findings)
    _require_seen_by_all(trials, splits, findings)
    return splits


def _drawn(
    trials: pd.DataFrame, concepts: dict[str, str], settings: Own, findings: Findings
) -> dict[str, str]:
    """Whole concepts, of those that have a picture that all subjects saw."""
    common = _seen_by_all(trials)
    candidates = sorted({concepts[name] for name in common})
    all_concepts = set(concepts.values())
    if not candidates:
        findings.add_problem(
            "splits",
            f"no picture was shown to all {trials['subject'].nunique()} subjects, and all are "
            "tested on the same ones; choose in `subjects` those that saw the same pictures",
        )
        return {}

    n_drawn = max(1, round(settings.test_concepts * len(all_concepts)))
    # Each concept has a number of its own, so that a new subject or picture redraws few of them.
    drawn = set(sorted(candidates, key=lambda name: _chance(settings.split_seed, name))[:n_drawn])
    if len(all_concepts) == 1:
        findings.add_problem(
            "splits",
            f"all pictures are of one concept, {candidates[0]!r}, and no concept can be in both "
            "training and test; set own.concept to picture, or let own.split name a column or a "
            "CSV",
        )

    splits = {}
    not_common = []
    for name, concept in concepts.items():
        if concept not in drawn:
            splits[name] = "train"
        elif name in common:
            splits[name] = "test"
        else:
            not_common.append(name)
    if not_common:
        findings.leave_out(
            "pictures of test concepts that not all subjects saw",
            f"{times(len(not_common), 'picture')}, the first is {not_common[0]}",
        )
    return splits


def _chance(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _splits_of_column(trials: pd.DataFrame, settings: Own, findings: Findings) -> dict[str, str]:
    """The test wins where trials of a picture say both."""
    rows = trials.drop_duplicates(["picture", "split"])
    values = _read_words(rows["split"].tolist(), rows["place"].tolist(), settings.split, findings)
    rows = rows.assign(word=values)

    n_empty = int((trials["split"].isin(NOTHING)).sum())
    if n_empty:
        findings.leave_out(
            f"trials whose {settings.split} (own.split) is empty or n/a", times(n_empty, "trial")
        )
    train = rows.loc[rows["word"] == "train", "picture"]
    test = set(rows.loc[rows["word"] == "test", "picture"])
    both = sorted(test & set(train), key=natural_key)
    if both:
        findings.leave_out(
            f"training trials of pictures that {settings.split} (own.split) has in train and in "
            "test",
            f"{times(len(both), 'picture')}, the first is {both[0]}",
        )
    return {name: "test" if name in test else "train" for name in [*train, *sorted(test)]}


def _splits_of_csv(
    trials: pd.DataFrame, pictures: Pictures, settings: Own, findings: Findings
) -> dict[str, str]:
    path = full_path("own.split", settings.split, "a CSV with the columns image and split")
    table = read_table(path, ",")
    if not {"image", "split"} <= set(table.columns):
        raise InputError(
            f"{path}: expected the columns image and split (own.split), got "
            f"{first_few(list(table.columns), 12)}; name them so in its first line"
        )

    places = [f"{path}, line {line}" for line in range(2, len(table) + 2)]
    matches = match_pictures(pictures, table["image"].tolist(), places, findings)
    words = _read_words(table["split"].tolist(), places, "split", findings)

    splits: dict[str, str] = {}
    lines: dict[str, str] = {}
    for name, word, place in zip(table["image"], words, places, strict=True):
        picture = matches.get(name)
        if picture is None or not word:
            continue
        if splits.get(picture, word) != word:
            findings.add_problem(
                "splits",
                f"{place}: {picture} is in {word}, and in {lines[picture]} in {splits[picture]}; "
                "take one of them out",
            )
        splits.setdefault(picture, word)
        lines.setdefault(picture, place)

    names = set(trials["picture"])
    not_listed = sorted(names - set(splits), key=natural_key)
    if not_listed:
        findings.leave_out(
            f"pictures that {path.name} (own.split) does not list, or in neither split",
            f"{times(len(not_listed), 'picture')}, the first is {not_listed[0]}",
        )
    return {name: word for name, word in splits.items() if name in names}


def _read_words(
    values: Sequence[str], places: Sequence[str], column: str, findings: Findings
) -> list[str]:
    """`train`, `test` or, of nothing and of another word, which is noted, an empty text."""
    words = []
    for value, place in zip(values, places, strict=True):
        word = WORDS.get(value.lower(), "")
        if not word and value not in NOTHING:
            findings.add_problem(
                "splits",
                f"{place}: {column} is {value!r}, expected train or test (or nothing, to leave it "
                "out); correct it",
            )
        words.append(word)
    return words


def _keep_concepts_apart(
    splits: dict[str, str], concepts: dict[str, str], findings: Findings
) -> dict[str, str]:
    """Without the training pictures of concepts that are tested."""
    tested = {concepts[name] for name, split in splits.items() if split == "test"}
    dropped = [
        name for name, split in splits.items() if split == "train" and concepts[name] in tested
    ]
    if dropped:
        n_concepts = len({concepts[name] for name in dropped})
        findings.leave_out(
            "training pictures of concepts that have test pictures too",
            f"{times(len(dropped), 'picture')} of {times(n_concepts, 'concept')}, the first is "
            f"{min(dropped)}",
        )
    return {name: split for name, split in splits.items() if name not in set(dropped)}


def _seen_by_all(trials: pd.DataFrame) -> set[str]:
    n_subjects = trials["subject"].nunique()
    counts = trials.groupby("picture")["subject"].nunique()
    return set(counts.index[counts == n_subjects])


def _require_seen_by_all(trials: pd.DataFrame, splits: dict[str, str], findings: Findings) -> None:
    """Note each subject that did not see all test pictures, with what to do."""
    test = {name for name, split in splits.items() if split == "test"}
    for subject, rows in trials.groupby("subject", sort=False):
        unseen = sorted(test - set(rows["picture"]), key=natural_key)
        if unseen:
            findings.add_problem(
                "test pictures that a subject did not see",
                f"{subject}: saw {len(test) - len(unseen)} of {times(len(test), 'test picture')}, "
                f"not {first_few(unseen)}; all subjects are tested on the same ones: let own.split "
                "name a CSV that leaves these out, or leave the subject out of `subjects`",
            )


def check_sizes(splits: dict[str, str], top_k: Sequence[int], findings: Findings) -> None:
    """Note a split with too few pictures: of the test more than the largest k of top-k."""
    least = {"train": LEAST_TRAINING, "test": max(top_k) + 1}
    for split, name in (("train", "training"), ("test", "test")):
        n_images = sum(value == split for value in splits.values())
        if n_images < least[split]:
            reason = f", more than evaluate.top_k ({max(top_k)})" if split == "test" else ""
            remedy = " (and see evaluate.top_k)" if split == "test" else ""
            findings.add_problem(
                "splits",
                f"expected at least {least[split]} {name} pictures{reason}, got {n_images}; see "
                f"what is left out, and set own.split or own.test_concepts{remedy}",
            )


def tell_repetitions(trials: pd.DataFrame, findings: Findings) -> None:
    """Note where test pictures were not all shown equally often; preparing the EEG cuts them.

    `trials` has the columns `subject`, `picture` and `used_as`.
    """
    test = trials[trials["used_as"] == "test"]
    counts = test.groupby(["subject", "picture"]).size().reset_index(name="count")
    if counts["count"].nunique() < 2:
        return

    fewest = int(counts["count"].min())
    rarest = counts[counts["count"] == fewest].iloc[0]
    n_surplus = int(counts["count"].sum()) - fewest * len(counts)
    findings.leave_out(
        "repetitions of test pictures beyond those that all have",
        f"{times(n_surplus, 'trial')}: test pictures were shown {fewest} to "
        f"{counts['count'].max()} times, and the first {fewest} of each are taken, as many as "
        f"{rarest['subject']} has of {rarest['picture']}",
    )


def describe_repetitions(trials: pd.DataFrame) -> str:
    """How often one subject saw a picture: "4", or "2 to 4"."""
    counts = np.unique(trials.groupby("picture").size())
    if not len(counts):
        return "0"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
