import pytest

from pipeline.datasets.channels import POSTERIOR
from pipeline.errors import suggestion

SUBJECTS = [f"sub-{i:02}" for i in range(1, 11)]
ENCODERS = ["nice-recipe", "nice", "atm-s", "eegnet"]
DATASETS = ["sample", "things-eeg2", "things-eeg2-raw", "things-meg"]


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("nise", ENCODERS, "nice"),
        ("ATM_S", ENCODERS, "atm-s"),
        ("sub-1", SUBJECTS, "sub-01"),
        ("sub_10", SUBJECTS, "sub-10"),
        ("sub3", SUBJECTS, "sub-03"),
        ("oz", POSTERIOR, "Oz"),
        ("POZ", POSTERIOR, "POz"),
        ("things-eeg", DATASETS, "things-eeg2"),
    ],
)
def test_a_misspelt_name_gets_the_name_that_was_meant(
    name: str, names: list[str], near: str
) -> None:
    assert suggestion(name, names) == f"; is it {near}?"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet", ENCODERS),
        ("sub-17", SUBJECTS),
        ("P9", POSTERIOR),
        ("Cz", POSTERIOR),
        ("", ENCODERS),
        ("nice", []),
    ],
)
def test_a_name_that_is_like_none_gets_no_guess(name: str, names: list[str]) -> None:
    assert suggestion(name, names) == ""
