"""Two evaluations that differ in one thing, such as the image encoder: the paired difference, and how sure it is.

What interval and p take in is told by `differences`. The question is asked of top-1, as settled beforehand; the
p-values of the other metrics are not corrected for their number. How often this claims what is not there, and misses
what is: benchmarks/calibration.py.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from pipeline.compare.differences import ALPHA, Tested, pair
from pipeline.errors import InputError
from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.evaluate.statistics import draw_resamples, mean_by_subject
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate

# What two evaluations may differ in, and the facts that follow from it, the first of which names the sides.
MAY_DIFFER = {
    "encoder": ("encoder", "alignment"),
    "alignment": ("alignment",),
    "backbone": ("backbone", "settings.embeddings.backbone", "settings.embeddings.checkpoint*")
    + ("settings.embeddings.preprocessing",),
    "block": ("block", "mixed_blocks", "settings.train.block"),
    "mixed blocks": ("mixed_blocks",),
    "views": (
        "views",
        "views_in_gallery",
        "settings.train.views",
        "settings.train.views_in_gallery",
    ),
    "views in gallery": ("views_in_gallery", "settings.train.views_in_gallery"),
    "EEG encoder": ("settings.train.eeg_encoder",),
    "channels": ("settings.eeg of *.channels",),
}
ONE_SEED = (
    "Another seed alone moves top-1 by some 2 points in simulations, more with other recipes "
    "(docs/protocols.md, Seeds): `make compare SEEDS=5` trains five."
)
COSINE_EDGES = np.linspace(-1, 1, 41).round(2)


def compare(
    baseline: Similarities, other: Similarities, parameters: Evaluate, seed: int
) -> dict[str, Any]:
    """The comparison as plain data; every difference is other - baseline, of encoders always aligned - unaligned.

    The sides are called by their values of the one thing in which they differ, such as `unaligned` and `aligned`. Pairs
    of which one run collapsed are left out, and then nothing is claimed. InputError where the two differ in nothing, in
    more than one thing of `MAY_DIFFER` or in anything else.
    """
    thing, names = _what_differs(_facts(baseline), _facts(other))
    sides = dict(zip(names, (baseline, other), strict=True))
    if thing == "encoder":
        sides = {name: sides[name] for name in sorted(names, reverse=True)}
    runs = {
        name: {(s.fold, s.seed, s.subject): s for s in side.results} for name, side in sides.items()
    }
    whole = sorted(
        key for key in runs[names[0]] if not any(of[key].collapsed for of in runs.values())
    )
    made_with, n_way = other.made_with, len(other.image_ids)
    own = ("settings", *MAY_DIFFER[thing])
    result: dict[str, Any] = {key: value for key, value in made_with.items() if key not in own} | {
        "differs_in": thing,
        **dict(zip(("baseline", "other"), sides, strict=True)),
        "n_way": n_way,
        "chance_top1": 1 / n_way,
        "subjects": sorted({scored.subject for scored in other.results}),
        "seeds": sorted({scored.seed for scored in other.results}),
        "runs": _runs(other.results),
        "collapsed": {
            name: _runs(s for s in side.results if s.collapsed) for name, side in sides.items()
        },
    }
    if whole:
        kept = {name: [of[key] for key in whole] for name, of in runs.items()}
        result |= _differences(kept, other, parameters, seed)
        histograms = {name: cosine_histograms(scored) for name, scored in kept.items()}
        result["cosines"] = {"edges": COSINE_EDGES.tolist()} | histograms
    return _answer(result) | result | {"settings": made_with["settings"]}


def _runs(scored: Iterable[SubjectResult]) -> list[str]:
    return sorted({one.run for one in scored})


def _facts(side: Similarities) -> dict[str, Any]:
    """All that two evaluations should have in common, but for one thing."""
    return _flat(side.made_with) | {
        "subjects": sorted({scored.subject for scored in side.results}),
        "runs": _runs(side.results),
        "n_way": len(side.image_ids),
        "the test images": side.image_ids.tolist(),
    }


def _what_differs(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """The one thing, and what each side is called."""
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    things: dict[str, str] = {}
    for thing, patterns in MAY_DIFFER.items():
        found = fnmatch.filter(differing, patterns[0])
        if found and not any(
            patterns[0] in MAY_DIFFER[of] for of in things
        ):  # else it follows from that one
            things[thing] = found[0]
    if not differing:
        raise InputError("the two evaluations differ in nothing: give two that differ in one thing")
    if len(things) > 1:
        raise InputError(
            f"the two evaluations differ in {' and '.join(things)}: compare one thing at a time"
        )
    if not things:
        raise InputError(
            f"the two evaluations differ in {_told(differing[0], first, second)}: they may differ in one of "
            f"{', '.join(MAY_DIFFER)}, and in nothing else: make both again alike in it"
        )
    [(thing, fact)] = things.items()
    labels = _label(first.get(fact)), _label(second.get(fact))
    follows = {name for pattern in MAY_DIFFER[thing] for name in fnmatch.filter(differing, pattern)}
    for name in differing:
        if name not in follows:
            raise InputError(
                f"the two evaluations ({' and '.join(labels)}) differ in {_told(name, first, second)} too, and so not "
                f"in the {thing} alone: train and evaluate both alike but for that, as `make compare` does"
            )
    return thing, labels


def _told(name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    return name if name == "the test images" else f"{name} ({first.get(name)}; {second.get(name)})"


def _label(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _differences(
    kept: dict[str, list[SubjectResult]], of: Similarities, parameters: Evaluate, seed: int
) -> dict[str, Any]:
    """Metrics of both sides and their paired difference: overall, by subject, and top-1 by image."""
    sides = {
        name: [Tested(one.fold, one.seed, one.subject, one.queries()) for one in scored]
        for name, scored in kept.items()
    }
    n_subjects = len({one.subject for scored in kept.values() for one in scored})
    resamples = draw_resamples(n_subjects, len(of.image_ids), parameters.resamples, seed)
    left_out_in_turn = of.made_with["protocol"] == "leave-one-subject-out"
    paired = pair(
        sides, resamples, partial(weigh_queries, top_k=parameters.top_k), left_out_in_turn
    )
    return {
        "metrics": paired.metrics,
        "ci95_over": paired.over,
        "n_resamples": parameters.resamples,
        "per_subject": [
            {"subject": subject}
            | {name: table.loc[subject].to_dict() for name, table in paired.by_subject.items()}
            for subject in paired.by_subject[next(iter(sides))].index
        ],
        "per_image": {
            "image_ids": of.image_ids.tolist(),
            "things_concept": of.things_concept.tolist(),
        }
        | {name: {"top1_acc": _by_image(tested)} for name, tested in sides.items()},
    }


def _by_image(tested: list[Tested]) -> list[float]:
    """The share of seeds, then of subjects, that have the image first, (N,)."""
    right = mean_by_subject(
        [one.subject for one in tested], [one.queries["rank"] == 1 for one in tested]
    )
    return right.mean(0).tolist()


def cosine_histograms(kept: list[SubjectResult]) -> dict[str, list[int]]:
    """How many cosines of matching and of differing pairs lie between the edges, over all runs and subjects."""
    match = np.eye(len(kept[0].similarity), dtype=bool)
    counts = {}
    for name, pairs in (("matched", match), ("mismatched", ~match)):
        cosines = np.concatenate([scored.similarity[pairs] for scored in kept]).clip(-1, 1)
        counts[name] = np.histogram(cosines, COSINE_EDGES)[0].tolist()
    return counts


def _answer(result: dict[str, Any]) -> dict[str, str]:
    """One sentence on what was found and how sure it is, and its verdict in a word or two."""
    verdict, sentence = _verdict(result)
    return {"answer": sentence + provisos(result), "verdict": verdict}


def provisos(about: Mapping[str, Any]) -> str:
    """What has to be told beside any claim, from `selected_on` and `synthetic`."""
    told = ""
    if about["selected_on"] == "test":
        told += " The epochs were selected on the test set, which flatters both."
    if about["synthetic"]:
        told += " The data are synthetic: this shows that the pipeline works and means nothing about brains."
    return told


def _verdict(result: dict[str, Any]) -> tuple[str, str]:
    thing, baseline, other = (result[key] for key in ("differs_in", "baseline", "other"))
    collapsed = {side: len(runs) for side, runs in result["collapsed"].items()}
    if any(collapsed.values()):
        told = " and ".join(f"{n} {side}" for side, n in collapsed.items() if n)
        return (
            "no claim",
            f"No claim can be made: of {len(result['runs'])} runs of each {thing}, {told} collapsed.",
        )
    top1, over, n_seeds = result["metrics"]["top1_acc"], result["ci95_over"], len(result["seeds"])
    found = (
        f"top-1 {100 * top1[other]:.1f} % against {100 * top1[baseline]:.1f} %, "
        f"{100 * top1['difference']:+.1f} points"
    )
    made = (
        f"{result['n_way']}-way, {result['protocol']}, {count(len(result['subjects']), 'subject')}, "
        f"{count(n_seeds, 'seed')}"
    )
    low, high = (100 * end for end in top1["ci95" if over else "ci95_these_models"])
    if not over:
        return "no claim", (
            f"No claim can be made from one seed: {found} (95 % interval {low:+.1f} to {high:+.1f} over test images, "
            f"for these models alone; {made}). {ONE_SEED}"
        )
    shown = top1["p"] <= ALPHA
    verdict = ("better" if top1["difference"] > 0 else "worse") if shown else "no difference shown"
    if thing == "encoder":
        said = (
            f"the {other} encoder decodes {verdict}"
            if shown
            else "no difference between the encoders is shown"
        )
    elif shown:
        said = f"with the {thing} {other} decoding is {verdict} than with {baseline}"
    else:
        said = f"no difference between the {thing} {other} and {baseline} is shown"
    if "subjects" not in over:
        n = len(result["subjects"])
        said = f"in {'this' if n == 1 else 'these'} {count(n, 'subject')}, too few to speak for others, {said}"
    varies = ", ".join(over[:-1]) + f" and {over[-1]}"
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    sentence = f"{said}: {found} ({interval} and p = {top1['p']:.3g} over {varies}; {made})."
    return verdict, sentence[0].upper() + sentence[1:]


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n} {noun}{'s' * (n != 1)}"
