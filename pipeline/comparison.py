"""Two evaluated runs that differ in the image encoder only: the paired difference, how sure it is, what to say of it.

Pairs are the same fold, seed and subject. Seeds are averaged before anything is tested. The question is asked of top-1,
as settled beforehand; the p-values of the other metrics are not corrected for their number.
"""

from collections.abc import Iterable

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.params import Evaluate
from pipeline.retrieval import score_queries, weigh_queries
from pipeline.similarities import Scored, Similarities
from pipeline.statistics import draw_resamples, mean_by_subject, sign_flip_test

ENCODERS = ("unaligned", "aligned")
ALPHA = 0.05
COSINE_EDGES = np.linspace(-1, 1, 41).round(2)


def compare(unaligned: Similarities, aligned: Similarities, parameters: Evaluate, seed: int) -> dict:
    """The comparison as plain data; every difference is aligned - unaligned.

    Pairs of which one run collapsed are left out, and then nothing is claimed. InputError where the two differ in
    anything but the encoder.
    """
    sides = dict(zip(ENCODERS, (unaligned, aligned), strict=True))
    _require_alike(sides)
    runs = {encoder: {(s.fold, s.seed, s.subject): s for s in side.scored} for encoder, side in sides.items()}
    whole = sorted(key for key in runs["aligned"] if not any(of[key].collapsed for of in runs.values()))
    made_with, n_way = aligned.made_with, len(aligned.image_ids)
    result = {key: value for key, value in made_with.items() if key not in ("encoder", "settings")} | {
        "n_way": n_way,
        "chance_top1": 1 / n_way,
        "subjects": sorted({scored.subject for scored in aligned.scored}),
        "seeds": sorted({scored.seed for scored in aligned.scored}),
        "runs": _runs(aligned.scored),
        "collapsed": {encoder: _runs(s for s in side.scored if s.collapsed) for encoder, side in sides.items()},
    }
    if whole:
        kept = {encoder: [of[key] for key in whole] for encoder, of in runs.items()}
        result |= _differences(kept, aligned, parameters, seed)
        result["cosines"] = {"edges": COSINE_EDGES.tolist()} | {e: cosine_histograms(kept[e]) for e in ENCODERS}
    return _answer(result) | result | {"settings": made_with["settings"]}


def _runs(scored: Iterable[Scored]) -> list[str]:
    return sorted({one.run for one in scored})


def _require_alike(sides: dict[str, Similarities]) -> None:
    flat = []
    for encoder, side in sides.items():
        if side.made_with.get("encoder") != encoder:
            raise InputError(
                f"the {encoder} evaluation is one of the {side.made_with.get('encoder')} encoder: give both"
            )
        facts = _flat({key: value for key, value in side.made_with.items() if key != "encoder"})
        facts |= {"subjects": sorted({scored.subject for scored in side.scored}), "runs": _runs(side.scored)}
        flat.append(facts | {"n_way": len(side.image_ids), "the test images": side.image_ids.tolist()})
    for name in flat[0] | flat[1]:
        first, second = (facts.get(name) for facts in flat)
        if first != second:
            values = "" if name == "the test images" else f" (unaligned: {first}; aligned: {second})"
            raise InputError(
                f"the two runs differ in {name}{values} and so not in the encoder alone; evaluate them alike"
            )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _differences(kept: dict[str, list[Scored]], of: Similarities, parameters: Evaluate, seed: int) -> dict:
    """Metrics of both encoders and their paired difference: overall, by subject, and top-1 by image."""
    subjects = [scored.subject for scored in kept["aligned"]]
    names = sorted(set(subjects))
    resamples = draw_resamples(len(names), len(of.image_ids), parameters.resamples, seed)
    once = np.ones((1, len(of.image_ids)))
    points, resampled, correct = {}, {}, {}
    for encoder in ENCODERS:
        queries = [_queries(scored) for scored in kept[encoder]]
        for target, counts in ((points, once), (resampled, resamples.images)):
            weighed = [weigh_queries(one, counts, parameters.top_k) for one in queries]
            target[encoder] = {n: mean_by_subject(subjects, [one[n] for one in weighed]) for n in weighed[0]}  # (S, B)
        correct[encoder] = mean_by_subject(subjects, [one["rank"] == 1 for one in queries])  # (S, N)
    metrics = {}
    for name in points["aligned"]:
        values = {encoder: points[encoder][name][:, 0] for encoder in ENCODERS}  # (S,)
        difference = values["aligned"] - values["unaligned"]
        in_resamples = (resampled["aligned"][name] - resampled["unaligned"][name]).T  # (B, S)
        metrics[name] = {encoder: float(value.mean()) for encoder, value in values.items()} | {
            "difference": float(difference.mean()),
            "ci95": resamples.interval(in_resamples),
            "ci95_these_subjects": resamples.with_fixed_subjects().interval(in_resamples),
            "p": sign_flip_test(difference, seed)[0],
        }
    return {
        "metrics": metrics,
        "smallest_p": sign_flip_test(np.ones(len(names)), seed)[1],
        "n_resamples": parameters.resamples,
        "per_subject": [
            {"subject": subject}
            | {encoder: {name: float(v[row, 0]) for name, v in points[encoder].items()} for encoder in ENCODERS}
            for row, subject in enumerate(names)
        ],
        "per_image": {"image_ids": of.image_ids.tolist(), "things_concept": of.things_concept.tolist()}
        | {encoder: {"top1_acc": correct[encoder].mean(0).tolist()} for encoder in ENCODERS},
    }


def _queries(scored: Scored) -> dict[str, np.ndarray]:
    queries = score_queries(torch.from_numpy(scored.similarity), scored.logit_scale)
    return {name: values.numpy() for name, values in queries.items()}


def cosine_histograms(kept: list[Scored]) -> dict[str, list[int]]:
    """How many cosines of matching and of differing pairs lie between the edges, over all runs and subjects."""
    match = np.eye(len(kept[0].similarity), dtype=bool)
    counts = {}
    for name, pairs in (("matched", match), ("mismatched", ~match)):
        cosines = np.concatenate([scored.similarity[pairs] for scored in kept]).clip(-1, 1)
        counts[name] = np.histogram(cosines, COSINE_EDGES)[0].tolist()
    return counts


def _answer(result: dict) -> dict:
    """One sentence on what was found and how sure it is, and its verdict in a word or two."""
    verdict, sentence = _verdict(result)
    if result["selected_on"] == "test":
        sentence += " The epochs were selected on the test set, which flatters both."
    if result["synthetic"]:
        sentence += " The data are synthetic: this shows that the pipeline works and means nothing about brains."
    return {"answer": sentence, "verdict": verdict}


def _verdict(result: dict) -> tuple[str, str]:
    collapsed = {encoder: len(runs) for encoder, runs in result["collapsed"].items()}
    if any(collapsed.values()):
        told = " and ".join(f"{n} {encoder}" for encoder, n in collapsed.items() if n)
        return "no claim", f"No claim can be made: of {len(result['runs'])} runs of each encoder, {told} collapsed."
    top1, n_subjects = result["metrics"]["top1_acc"], len(result["subjects"])
    few = result["smallest_p"] > ALPHA
    low, high = (100 * end for end in top1["ci95_these_subjects" if few else "ci95"])
    shown = (low > 0 or high < 0) and (few or top1["p"] <= ALPHA)
    verdict = ("better" if top1["difference"] > 0 else "worse") if shown else "no difference shown"
    whom = f"{n_subjects} subject{'s' * (n_subjects > 1)}"
    if few:
        head = f"In {'this' if n_subjects == 1 else 'these'} {whom} "
        sure = (
            f"95 % interval over test images {low:+.1f} to {high:+.1f}; so few subjects say nothing of others, "
            f"the smallest p that they can reach is {result['smallest_p']:g}"
        )
    else:
        head = ""
        sure = (
            f"95 % interval over subjects and test images {low:+.1f} to {high:+.1f}, exact p = {top1['p']:.3g} "
            f"over {whom}"
        )
    said = f"the aligned encoder decodes {verdict}" if shown else "no difference between the encoders is shown"
    sentence = (
        f"{head}{said}: top-1 {100 * top1['aligned']:.1f} % against {100 * top1['unaligned']:.1f} %, "
        f"{100 * top1['difference']:+.1f} points ({sure}; {result['n_way']}-way, {result['protocol']}, "
        f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)})."
    )
    return verdict, sentence[0].upper() + sentence[1:]
