"""The one exception whose text is meant for the user, and the guess at what a misspelt name was meant to be."""

import difflib
import re
from collections.abc import Iterable


class InputError(Exception):
    """Something given to the program is wrong; the text is one sentence: what, where, expected, got, what to do."""


# What mends a file that a stage wrote. Without --force DVC would lay its own copy there, which may be damaged too.
FETCH_AGAIN = (
    "fetch it again with `dvc repro --force download` (an image model: `dvc repro --force "
    "weights`, of the study `dvc repro --force study/dvc.yaml:weights`), or make it again if it "
    "is your own"
)
PREPARE_AGAIN = "make it again with `dvc repro --force preprocess`"
# --single-item, or DVC would make again all that the stage depends on, too.
EMBED_AGAIN = (
    "make it again with `dvc repro --single-item --force embed` (of the study: `dvc repro "
    "--single-item --force study/dvc.yaml:embed-unaligned`, and embed-aligned alike), or, if you "
    "wrote it yourself, as docs/data.md says"
)
TRAIN_AGAIN = "train it again with `dvc repro --single-item --force train`"
EVALUATE_AGAIN = "make it again with `dvc repro --single-item --force evaluate`"


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; is it nice?`, the end of a sentence that refuses `nise`; nothing where none of `names` is much like it.

    Upper case, signs and zeros before a number do not count: `oz` is Oz, and `sub_1` is sub-01. Another number is
    another thing: sub-17 is not sub-07.
    """
    letters = _letters(name)
    by_letters = {_letters(known): known for known in names}
    near = difflib.get_close_matches(letters, by_letters, n=len(by_letters) or 1, cutoff=0.7)
    near = [known for known in near if not _differ_in_number(known, letters)]

    return f"; is it {by_letters[near[0]]}?" if near else ""


def _letters(name: str) -> str:
    letters_and_digits = re.sub(r"[\W_]", "", name.casefold())
    return re.sub(r"0*(\d+)", r"\1", letters_and_digits)


def _differ_in_number(first: str, second: str) -> bool:
    numbers = re.findall(r"\d+", first), re.findall(r"\d+", second)
    return (
        all(numbers)
        and numbers[0] != numbers[1]
        and re.sub(r"\d", "", first) == re.sub(r"\d", "", second)
    )
