"""How many seeds and subjects a difference takes, from the variances of the last comparison."""

import json
from dataclasses import replace
from pathlib import Path

from pipeline.compare.comparison import count, warning_sentences
from pipeline.compare.power import (
    MOST_SUBJECTS,
    Design,
    design_of,
    least_difference,
    scaled,
    subjects_needed,
    uncertain_factors,
)
from pipeline.errors import InputError
from stages import run, show

POINTS = (2, 5, 10)  # the differences of top-1 that are asked about
SEEDS = (1, 3, 5, 10)


def main(comparison: Path = Path("metrics/comparison.json")) -> str:
    try:
        result = json.loads(comparison.read_text())
        design = design_of(result)
        warnings = warning_sentences(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{comparison}: holds no comparison ({error!r}); run `make compare SEEDS=3`"
        ) from error

    show(
        f"Subjects that find a difference with 80 % power: {design.protocol}, "
        f"{design.n_images} test images",
        [_row(design, n_seeds) for n_seeds in _numbers_of_seeds(design)],
    )
    for sentence in _sentences(design):
        print(sentence)
    if warnings:
        print(warnings.strip())
    return ""


def _numbers_of_seeds(design: Design) -> list[int]:
    """Those of the rows; only its own where one seed cannot tell what others would bring."""
    if design.n_seeds == 1:
        return [1]
    # One seed of a model that subjects share gives no claim at all.
    least = 2 if design.protocol == "pooled" else 1
    return sorted({design.n_seeds, *(n for n in SEEDS if n >= least)})


def _row(design: Design, n_seeds: int) -> dict[str, str]:
    """The number of subjects for each difference, and what the present subjects would find."""
    planned = replace(design, n_seeds=n_seeds)
    factors = uncertain_factors(design)
    low, high = (scaled(planned, factor) for factor in factors)

    row = {"seeds": str(n_seeds)}
    for points in POINTS:
        needed, least, most = (
            _in_words(subjects_needed(variant, points / 100)) for variant in (planned, low, high)
        )
        ends = needed if least == most else f"{needed} ({least} to {most})"
        row[f"{points} points"] = ends
    points_found = 100 * least_difference(planned)
    return row | {f"found with {count(design.n_subjects, 'subject')}": f"{points_found:.1f} points"}


def _in_words(n_subjects: int | None) -> str:
    return f"over {MOST_SUBJECTS}" if n_subjects is None else str(n_subjects)


def _sentences(design: Design) -> list[str]:
    """What the table assumes."""
    sentences = [
        "It holds for the same protocol, recipe, recordings and test images, and as far as the "
        f"variances of this comparison are right. They come from {count(design.n_seeds, 'seed')} "
        f"and {count(design.n_subjects, 'subject')}: in brackets, the number of subjects if they "
        "are as small or as large as their 80 % interval allows.",
        f"Over {MOST_SUBJECTS}: more subjects hardly help there; more seeds or test images would.",
    ]
    if design.n_seeds == 1:
        sentences.append(
            "What other seeds would bring cannot be told from one seed: the table is for one seed. "
            "`make compare SEEDS=3` tells it."
        )
    if design.protocol == "leave-one-subject-out":
        sentences.append(
            "Models that share training subjects make the test careful: it takes about twice the "
            "variance of the subjects. Within-subject asks for fewer."
        )
    return sentences


if __name__ == "__main__":
    run(main)
