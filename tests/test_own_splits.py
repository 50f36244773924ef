"""What is trained and what is tested of somebody's own pictures, and what the rules leave out."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.datasets.own.findings import Findings
from pipeline.datasets.own.pictures import index_pictures
from pipeline.datasets.own.splits import find_splits, tell_repetitions
from pipeline.params import read_params

OWN = read_params(Path("params.yaml")).own
CONCEPTS = [f"c{number:02}" for number in range(30)]
PICTURES = index_pictures(Path("/lab"), [f"{c}/{c}_{i}.jpg" for c in CONCEPTS for i in (1, 2)])
CONCEPT_OF = {name: name.split("/")[0] for name in PICTURES.names}


def trials(*unseen: str, split: dict[str, str] | None = None) -> pd.DataFrame:
    """Each picture once for each of two subjects; the second has not seen some."""
    rows = [
        {"subject": subject, "picture": name, "split": (split or {}).get(name, ""), "place": name}
        for subject in ("sub-01", "sub-02")
        for name in PICTURES.names
        if subject == "sub-01" or name not in unseen
    ]
    return pd.DataFrame(rows)


def split_of(rows: pd.DataFrame, findings: Findings, **settings: object) -> dict[str, str]:
    own = OWN.model_copy(update=settings)
    concepts = {name: CONCEPT_OF[name] for name in rows["picture"].unique()}
    return find_splits(rows, concepts, PICTURES, own, findings)


def concepts_tested(splits: dict[str, str]) -> set[str]:
    return {CONCEPT_OF[name] for name, split in splits.items() if split == "test"}


@pytest.mark.parametrize(("share", "expected"), [(0.1, 3), (0.5, 15), (0.001, 1)])
def test_whole_concepts_are_drawn(share: float, expected: int) -> None:
    splits = split_of(trials(), Findings(), test_concepts=share)
    assert len(splits) == len(PICTURES.names) and len(concepts_tested(splits)) == expected
    trained = {CONCEPT_OF[name] for name, split in splits.items() if split == "train"}
    assert not trained & concepts_tested(splits)


def test_the_draw_is_by_its_seed_alone_and_most_of_it_outlives_new_pictures() -> None:
    rows = trials()
    assert split_of(rows, Findings()) == split_of(rows.iloc[::-1], Findings())
    draws = {
        frozenset(concepts_tested(split_of(rows, Findings(), split_seed=seed)))
        for seed in range(20)
    }
    assert len(draws) > 15

    fewer = rows[~rows["picture"].str.startswith("c29")]
    first, second = (
        concepts_tested(split_of(of, Findings(), test_concepts=0.5)) for of in (rows, fewer)
    )
    assert len(first & second) >= 14


def test_a_drawn_test_picture_was_seen_by_all() -> None:
    findings = Findings()
    some = concepts_tested(split_of(trials(), Findings()))
    concept = min(some)
    splits = split_of(trials(f"{concept}/{concept}_1.jpg"), findings)
    assert concepts_tested(splits) == some
    assert f"{concept}/{concept}_1.jpg" not in splits
    assert findings.left_out == {
        "pictures of test concepts that not all subjects saw": [
            f"1 picture, the first is {concept}/{concept}_1.jpg"
        ]
    }

    # A concept of which one subject saw nothing is not drawn.
    without = split_of(trials(f"{concept}/{concept}_1.jpg", f"{concept}/{concept}_2.jpg"), findings)
    assert concept not in concepts_tested(without) and len(concepts_tested(without)) == len(some)
    assert not findings.problems


def test_subjects_who_saw_nothing_in_common() -> None:
    findings = Findings()
    rows = trials(*PICTURES.names[:30])
    rows = rows[(rows["subject"] == "sub-02") | rows["picture"].isin(PICTURES.names[:30])]
    assert not split_of(rows, findings)
    assert "no picture was shown to all 2 subjects" in findings.problems["splits"][0]


def test_in_a_column_the_test_wins() -> None:
    findings = Findings()
    names = PICTURES.names
    words = dict.fromkeys(names, "train") | {names[0]: "Test", names[2]: "", names[4]: "test"}
    splits = split_of(trials(split=words), findings, split="part")
    assert {name for name, split in splits.items() if split == "test"} == {names[0], names[4]}
    # The other picture of both tested concepts, and the one without a word
    assert set(names) - set(splits) == {names[1], names[5], names[2]}
    assert findings.left_out == {
        "trials whose part (own.split) is empty or n/a": ["2 trials"],
        "training pictures of concepts that have test pictures too": [
            f"2 pictures of 2 concepts, the first is {names[1]}"
        ],
    }
    assert not findings.problems


def test_a_picture_in_both_of_a_column_is_tested() -> None:
    findings = Findings()
    rows = trials(split=dict.fromkeys(PICTURES.names, "train"))
    both = (rows["picture"] == PICTURES.names[0]) & (rows["subject"] == "sub-02")
    rows["split"] = rows["split"].mask(both, "test")
    splits = split_of(rows, findings, split="part")
    assert splits[PICTURES.names[0]] == "test"
    assert findings.left_out[
        "training trials of pictures that part (own.split) has in train and in test"
    ] == [f"1 picture, the first is {PICTURES.names[0]}"]


def test_a_csv_says_it_for_each_picture(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("split,image\ntest,c00_1\ntraining,c01/c01_1.jpg\ntrain,c02_2.JPG\n,c03_1\n")
    findings = Findings()
    splits = split_of(trials(), findings, split=str(path))
    assert splits == {"c00/c00_1.jpg": "test", "c01/c01_1.jpg": "train", "c02/c02_2.jpg": "train"}
    assert findings.left_out == {
        "pictures that split.csv (own.split) does not list, or in neither split": [
            "57 pictures, the first is c00/c00_2.jpg"
        ]
    }


def test_it_is_told_that_test_pictures_are_cut_to_the_rarest() -> None:
    findings = Findings()
    rows = pd.DataFrame(
        [
            *[("sub-01", "a", "test")] * 4,
            *[("sub-01", "b", "test")] * 3,
            *[("sub-02", "a", "test")] * 3,
            *[("sub-02", "b", "test")] * 2,
            *[("sub-01", "c", "train")] * 5,
        ],
        columns=["subject", "picture", "used_as"],
    )
    tell_repetitions(rows, findings)
    assert findings.left_out == {
        "repetitions of test pictures beyond those that all have": [
            "4 trials: test pictures were shown 2 to 4 times, and the first 2 of each are taken, "
            "as many as sub-02 has of b"
        ]
    }
