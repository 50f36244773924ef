"""Look at the user's own recordings and pictures before anything is computed (dataset: own).

By hand: `python -m stages.check_own params.yaml`. It reads headers and tables, and no EEG.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.datasets.image_table import SPLITS, write_image_table
from pipeline.datasets.own.check import Check, check_own
from pipeline.datasets.own.findings import times
from pipeline.datasets.own.subject_folder import write_subject_folder
from pipeline.datasets.own.trials import Epoching
from pipeline.disks import GB, existing
from pipeline.errors import InputError
from pipeline.params import read_params
from stages import run, show

IMAGES = "images.csv"
SUBJECTS = "subjects"
MOST = 10  # problems of a kind that are shown


def main(
    params: Path,
    out: Annotated[Path | None, typer.Argument(help="folder for what was found")] = None,
    eeg: Annotated[str | None, typer.Option(help="in place of own.eeg")] = None,
    images: Annotated[str | None, typer.Option(help="in place of own.images")] = None,
) -> str:
    p = read_params(params)
    if p.dataset != "own" and out is not None:
        out.mkdir(parents=True)  # the output of a stage must exist
        return ""

    settings = p.own.model_copy(
        update={"eeg": eeg or p.own.eeg, "images": images or p.own.images},
    )
    epoching = Epoching(
        p.preprocess.channels, p.preprocess.sfreq, p.preprocess.window, p.preprocess.baseline
    )
    check = check_own(settings, p.subjects, epoching, p.evaluate.top_k)
    tell(check)
    refuse_problems(check)
    if out is None:
        return ""

    for subject, folder in check.subjects.items():
        write_subject_folder(out / SUBJECTS / subject, folder)
    write_image_table(out / IMAGES, check.images)
    return f"{len(check.subjects)} subjects and the table of images to {out}"


def tell(check: Check) -> None:
    """Print what there is, what is left out, what is wrong, and what a run takes."""
    if check.rows:
        show("own: subjects", check.rows)
    if check.images:
        print(describe_images(check))
    for kind, sentences in check.findings.left_out.items():
        tell_each(f"left out: {kind}", sentences)
    for kind, sentences in check.findings.problems.items():
        tell_each(f"problems: {kind}", sentences)
    if check.costs:
        print(describe_costs(check))


def tell_each(title: str, sentences: list[str]) -> None:
    """The first sentences of a kind, each on a line of its own."""
    print(f"{title} ({len(sentences)})")
    for sentence in sentences[:MOST]:
        print(f"  {sentence}")
    if len(sentences) > MOST:
        print(f"  and {len(sentences) - MOST} more")


def describe_images(check: Check) -> str:
    """How many pictures and concepts are trained and tested."""
    parts = []
    for split, name in zip(SPLITS, ("training", "test"), strict=True):
        table = check.images[split]
        n_concepts = table["things_concept"].nunique()
        parts.append(f"{times(len(table), f'{name} picture')} of {times(n_concepts, 'concept')}")
    chance = 100 / len(check.images["test"])
    return f"{parts[0]}, {parts[1]}; chance at top-1 is {chance:.2g} %"


def describe_costs(check: Check) -> str:
    """What a run takes, roughly, and what room there is."""
    costs = check.costs
    assert costs
    free = shutil.disk_usage(existing(Path("data").absolute())).free
    return (
        f"a run takes about {room(costs.eeg_bytes)} for the prepared EEG (float32, training "
        f"repetitions averaged) and {room(costs.picture_bytes)} for the pictures "
        f"({room(free)} are free);\non two cores without GPU about {minutes(costs.prepare)} to "
        f"prepare, {minutes(costs.embed)} to embed and {minutes(costs.train)} to train (100 "
        "epochs, one seed)"
    )


def room(n_bytes: float) -> str:
    return f"{max(1, round(n_bytes / 1e6)):,} MB" if n_bytes < GB else f"{n_bytes / GB:,.1f} GB"


def minutes(number: float) -> str:
    return f"{max(1, round(number)):,} min"


def refuse_problems(check: Check) -> None:
    """Raises InputError where there is a problem."""
    findings = check.findings
    if not findings.n_problems:
        return

    first = next(iter(findings.problems.values()))[0]
    if findings.n_problems == 1:
        raise InputError(first)
    raise InputError(
        f"your own files have {findings.n_problems} problems, which are listed above; the first is "
        f"this: {first}"
    )


if __name__ == "__main__":
    run(main)
