"""Two evaluations that differ in one thing, such as the image encoder: the paired difference, and how sure it is.

What varies besides that thing is seeds, subjects and test images, and interval and p take in all that the runs can
tell of them. A model trained on several subjects moves them all together, so that subjects cannot stand for seeds:
without several seeds nothing is claimed. Models of one subject each vary from subject to subject, seeds included. The
question is asked of top-1, as settled beforehand; the p-values of the other metrics are not corrected for their number.
How often this claims what is not there, and misses what is: benchmarks/calibration.py.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.similarities import Scored, Similarities
from pipeline.analysis.statistics import Resamples, Variance, draw_resamples, mean_by_subject, t_test, variance_of_mean
from pipeline.decoding.retrieval import weigh_queries
from pipeline.errors import InputError
from pipeline.sections import Evaluate

# What two evaluations may differ in, and the facts that follow from it, the first of which names the sides.
MAY_DIFFER = {
    "encoder": ("encoder", "alignment"),
    "alignment": ("alignment",),
    "backbone": ("backbone", "settings.embeddings.backbone", "settings.embeddings.checkpoint*")
    + ("settings.embeddings.preprocessing",),
    "block": ("block", "mixed_blocks", "settings.train.block"),
    "mixed blocks": ("mixed_blocks",),
    "EEG encoder": ("settings.train.eeg_encoder",),
    "channels": ("settings.eeg of *.channels",),
}
ALPHA = 0.05
LEAST_SUBJECTS = 6  # fewer speak for themselves only
ONE_SEED = (
    "Another seed alone moves top-1 by some 2 points in simulations, more with other recipes "
    "(docs/protocols.md, Seeds): `make compare SEEDS=5` trains five."
)
COSINE_EDGES = np.linspace(-1, 1, 41).round(2)


def compare(baseline: Similarities, other: Similarities, parameters: Evaluate, seed: int) -> dict[str, Any]:
    """The comparison as plain data; every difference is other - baseline, of encoders always aligned - unaligned.

    The sides are called by their values of the one thing in which they differ, such as `unaligned` and `aligned`. Pairs
    of which one run collapsed are left out, and then nothing is claimed. InputError where the two differ in nothing, in
    more than one thing of `MAY_DIFFER` or in anything else.
    """
    thing, names = _what_differs(_facts(baseline), _facts(other))
    sides = dict(zip(names, (baseline, other), strict=True))
    if thing == "encoder":
        sides = {name: sides[name] for name in sorted(names, reverse=True)}
    runs = {name: {(s.fold, s.seed, s.subject): s for s in side.scored} for name, side in sides.items()}
    whole = sorted(key for key in runs[names[0]] if not any(of[key].collapsed for of in runs.values()))
    made_with, n_way = other.made_with, len(other.image_ids)
    own = ("settings", *MAY_DIFFER[thing])
    result: dict[str, Any] = {key: value for key, value in made_with.items() if key not in own} | {
        "differs_in": thing,
        **dict(zip(("baseline", "other"), sides, strict=True)),
        "n_way": n_way,
        "chance_top1": 1 / n_way,
        "subjects": sorted({scored.subject for scored in other.scored}),
        "seeds": sorted({scored.seed for scored in other.scored}),
        "runs": _runs(other.scored),
        "collapsed": {name: _runs(s for s in side.scored if s.collapsed) for name, side in sides.items()},
    }
    if whole:
        kept = {name: [of[key] for key in whole] for name, of in runs.items()}
        result |= _differences(kept, other, parameters, seed)
        histograms = {name: cosine_histograms(scored) for name, scored in kept.items()}
        result["cosines"] = {"edges": COSINE_EDGES.tolist()} | histograms
    return _answer(result) | result | {"settings": made_with["settings"]}


def _runs(scored: Iterable[Scored]) -> list[str]:
    return sorted({one.run for one in scored})


def _facts(side: Similarities) -> dict[str, Any]:
    """All that two evaluations should have in common, but for one thing."""
    return _flat(side.made_with) | {
        "subjects": sorted({scored.subject for scored in side.scored}),
        "runs": _runs(side.scored),
        "n_way": len(side.image_ids),
        "the test images": side.image_ids.tolist(),
    }


def _what_differs(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """The one thing, and what each side is called."""
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    things: dict[str, str] = {}
    for thing, patterns in MAY_DIFFER.items():
        found = fnmatch.filter(differing, patterns[0])
        if found and not any(patterns[0] in MAY_DIFFER[of] for of in things):  # else it follows from that one
            things[thing] = found[0]
    if not differing:
        raise InputError("the two evaluations differ in nothing: give two that differ in one thing")
    if len(things) > 1:
        raise InputError(f"the two evaluations differ in {' and '.join(things)}: compare one thing at a time")
    if not things:
        raise InputError(
            f"the two evaluations differ in {_told(differing[0], first, second)}: they may differ in one of "
            f"{', '.join(MAY_DIFFER)}, and in nothing else"
        )
    [(thing, fact)] = things.items()
    labels = _label(first.get(fact)), _label(second.get(fact))
    follows = {name for pattern in MAY_DIFFER[thing] for name in fnmatch.filter(differing, pattern)}
    for name in differing:
        if name not in follows:
            raise InputError(
                f"the two evaluations ({' and '.join(labels)}) differ in {_told(name, first, second)} too, and so not "
                f"in the {thing} alone: evaluate them alike"
            )
    return thing, labels


def _told(name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    return name if name == "the test images" else f"{name} ({first.get(name)}; {second.get(name)})"


def _label(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@dataclass(frozen=True)
class _Side:
    """One side's R runs and subjects: S subjects, B resamples of N images."""

    points: pd.DataFrame  # (R, metrics)
    resampled: dict[str, np.ndarray]  # (S, B) by metric
    correct: np.ndarray  # (S, N), the share of seeds that have the image first


def _measure(scored: list[Scored], resamples: Resamples, top_k: list[int]) -> _Side:
    subjects, queries = [one.subject for one in scored], [one.queries() for one in scored]
    once = np.ones((1, resamples.images.shape[1]))
    points = [weigh_queries(one, once, top_k) for one in queries]
    weighed = [weigh_queries(one, resamples.images, top_k) for one in queries]
    return _Side(
        points=pd.DataFrame([{name: float(value[0]) for name, value in one.items()} for one in points]),
        resampled={name: mean_by_subject(subjects, [one[name] for one in weighed]) for name in weighed[0]},
        correct=mean_by_subject(subjects, [one["rank"] == 1 for one in queries]),
    )


def _differences(kept: dict[str, list[Scored]], of: Similarities, parameters: Evaluate, seed: int) -> dict[str, Any]:
    """Metrics of both sides and their paired difference: overall, by subject, and top-1 by image."""
    baseline, other = kept
    runs = pd.DataFrame([{"fold": one.fold, "seed": one.seed, "subject": one.subject} for one in kept[other]])
    subjects, n_images = sorted(set(runs["subject"])), len(of.image_ids)
    resamples = draw_resamples(len(subjects), n_images, parameters.resamples, seed).with_fixed_subjects()
    sides = {name: _measure(scored, resamples, parameters.top_k) for name, scored in kept.items()}
    by_subject = {name: side.points.groupby(runs["subject"]).mean() for name, side in sides.items()}
    over, left_out_in_turn = _varies(runs), of.made_with["protocol"] == "leave-one-subject-out"
    metrics: dict[str, dict[str, Any]] = {}
    for metric in sides[other].resampled:
        in_resamples = sides[other].resampled[metric] - sides[baseline].resampled[metric]  # (S, B)
        values = {name: table[metric] for name, table in by_subject.items()}
        difference = values[other] - values[baseline]  # (S,)
        parts = {
            "test images": [Variance(float(in_resamples.mean(0).var(ddof=1)), n_images - 1)],
            "subjects": [variance_of_mean(difference.to_numpy(), left_out_in_turn)],
            "seeds": [part for side in sides.values() for part in _over_seeds(runs, side.points[metric])],
        }
        interval, p = t_test(float(difference.mean()), [part for what in over for part in parts[what]])
        metrics[metric] = {name: float(value.mean()) for name, value in values.items()} | {
            "difference": float(difference.mean()),
            "ci95": interval if over else None,
            "ci95_these_models": resamples.interval(in_resamples.T),
            "p": p if over else None,
        }
    return {
        "metrics": metrics,
        "ci95_over": over,
        "n_resamples": parameters.resamples,
        "per_subject": [
            {"subject": subject} | {name: table.loc[subject].to_dict() for name, table in by_subject.items()}
            for subject in subjects
        ],
        "per_image": {"image_ids": of.image_ids.tolist(), "things_concept": of.things_concept.tolist()}
        | {name: {"top1_acc": side.correct.mean(0).tolist()} for name, side in sides.items()},
    }


def _varies(runs: pd.DataFrame) -> list[str]:
    """What interval and p are over, from the fold, seed and subject of each run; nothing if that carries no claim.

    Where each subject has models of its own, trained from seeds of their own, what varies from subject to subject
    holds the seeds already.
    """
    several_seeds = runs.groupby("fold")["seed"].nunique().min() > 1
    models_are_shared = runs.groupby("fold")["subject"].nunique().max() > 1
    if runs["subject"].nunique() >= LEAST_SUBJECTS and (several_seeds or not models_are_shared):
        return ["seeds", "subjects", "test images"] if models_are_shared else ["subjects", "test images"]
    return ["seeds", "test images"] if several_seeds else []


def _over_seeds(runs: pd.DataFrame, values: pd.Series) -> list[Variance]:
    """What the seeds of each fold add to the variance of the mean over all subjects of one side's values (R,)."""
    parts = []
    for _, fold in runs.groupby("fold"):
        weight = fold["subject"].nunique() / runs["subject"].nunique()
        of_fold = variance_of_mean(values[fold.index].groupby(fold["seed"]).mean().to_numpy())
        parts.append(Variance(weight**2 * of_fold.value, of_fold.df))
    return parts


def cosine_histograms(kept: list[Scored]) -> dict[str, list[int]]:
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
    if result["selected_on"] == "test":
        sentence += " The epochs were selected on the test set, which flatters both."
    if result["synthetic"]:
        sentence += " The data are synthetic: this shows that the pipeline works and means nothing about brains."
    return {"answer": sentence, "verdict": verdict}


def _verdict(result: dict[str, Any]) -> tuple[str, str]:
    thing, baseline, other = (result[key] for key in ("differs_in", "baseline", "other"))
    collapsed = {side: len(runs) for side, runs in result["collapsed"].items()}
    if any(collapsed.values()):
        told = " and ".join(f"{n} {side}" for side, n in collapsed.items() if n)
        return "no claim", f"No claim can be made: of {len(result['runs'])} runs of each {thing}, {told} collapsed."
    top1, over, n_seeds = result["metrics"]["top1_acc"], result["ci95_over"], len(result["seeds"])
    found = (
        f"top-1 {100 * top1[other]:.1f} % against {100 * top1[baseline]:.1f} %, {100 * top1['difference']:+.1f} points"
    )
    made = (
        f"{result['n_way']}-way, {result['protocol']}, {_count(len(result['subjects']), 'subject')}, "
        f"{_count(n_seeds, 'seed')}"
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
        said = f"the {other} encoder decodes {verdict}" if shown else "no difference between the encoders is shown"
    elif shown:
        said = f"with the {thing} {other} decoding is {verdict} than with {baseline}"
    else:
        said = f"no difference between the {thing} {other} and {baseline} is shown"
    if "subjects" not in over:
        n = len(result["subjects"])
        said = f"in {'this' if n == 1 else 'these'} {_count(n, 'subject')}, too few to speak for others, {said}"
    varies = ", ".join(over[:-1]) + f" and {over[-1]}"
    sentence = (
        f"{said}: {found} (95 % interval {low:+.1f} to {high:+.1f} and p = {top1['p']:.3g} over {varies}; {made})."
    )
    return verdict, sentence[0].upper() + sentence[1:]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
