"""Two evaluations that differ in one factor, such as the image encoder: the paired difference.

What interval and p are over is told in `differences`. The question is asked of top-1, as decided
before any result; the p-values of the other metrics are not corrected for their number. The rates
of false and of missed claims: benchmarks/calibration.py.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.compare.differences import TRAINING_PEOPLE, RunKey, paired_difference
from pipeline.compare.variances import correlation_over_seeds, variance_components
from pipeline.errors import InputError
from pipeline.evaluate.evaluation import in_words
from pipeline.evaluate.similarities import Queries, Similarities, SubjectResult
from pipeline.evaluate.statistics import ALPHA, MIN_SUBJECTS, draw_resamples, mean_by_subject
from pipeline.retrieval import weigh_queries
from pipeline.sections import Evaluate
from pipeline.train.protocols import describe_recordings

# Of features that were computed elsewhere: the name and the hash of their file, and the hash of the
# CSV file with their names if there is one
FEATURES = tuple(
    f"settings.embeddings.features_{fact}" for fact in ("file", "sha256", "names_sha256")
)
# The factors of a comparison, and for each the facts of an evaluation that may differ with it
# (patterns of fnmatch). The values of the first fact name the two sides.
FACTORS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder", "alignment", "caveat", "settings.embeddings.checkpoint", *FEATURES),
    "alignment": ("alignment", "caveat", "settings.embeddings.checkpoint"),
    "backbone": (
        "backbone",
        "caveat",
        "settings.embeddings.backbone",
        "settings.embeddings.checkpoint*",
        "settings.embeddings.preprocessing",
        *FEATURES,
    ),
    "features": (*FEATURES, "caveat"),
    "block": ("block", "mixed_blocks", "settings.train.block"),
    "mixed blocks": ("mixed_blocks",),
    "views": (
        "views",
        "views_in_gallery",
        "settings.train.views",
        "settings.train.views_in_gallery",
    ),
    "views in gallery": ("views_in_gallery", "settings.train.views_in_gallery"),
    "EEG encoder": (
        "settings.train.eeg_encoder",
        "settings.train.eeg_weights",
        "settings.train.eeg_encoder_frozen",
        "closed_form",
    ),
    "EEG weights": ("settings.train.eeg_weights",),
    "frozen EEG encoder": ("settings.train.eeg_encoder_frozen",),
    "channels": ("settings.eeg of *.channels",),
    "control": ("settings.train.control", "control"),
}
# With the name of the checkpoint, where an alignment has a checkpoint of its own: its hash, and how
# its pictures are prepared. A file of one name must be the same file.
OF_OWN_CHECKPOINT = ("settings.embeddings.checkpoint_sha256", "settings.embeddings.preprocessing")
# Where one side alone embeds the pictures here: how it does that
OF_ONE_SIDE = tuple(
    f"settings.embeddings.{setting}" for setting in ("tokens", "precision", "batch_size")
)
ONE_SEED = (
    "Another seed alone moves top-1 by some 2 points in simulations, more with other recipes "
    "(docs/protocols.md, Seeds): `make compare SEEDS=5` trains five."
)
COSINE_EDGES = np.linspace(-1, 1, 41).round(2)  # of the bins of the cosine histograms


def compare(
    baseline: Similarities, other: Similarities, parameters: Evaluate, seed: int
) -> dict[str, Any]:
    """The comparison as plain data.

    Every difference is other - baseline; of image encoders it is always aligned - unaligned. The
    sides are called by their values of the factor, such as `unaligned` and `aligned`. A pair of
    runs is left out if one of them collapsed, and then there is no claim. A model without seeds has
    one run, which stands beside each seed of the other side.

    Raises InputError if the two evaluations differ in nothing, in more than one of FACTORS, or in
    anything else.
    """
    factor, sides = order_sides(baseline, other)
    _, other = sides.values()

    # What differs by the factor holds for one side only.
    dropped = ("settings", "caveat", *FACTORS[factor])
    made_with = other.made_with
    n_way = len(other.image_ids)
    comparison: dict[str, Any] = {
        key: value for key, value in made_with.items() if key not in dropped
    }

    comparison |= {"differs_in": factor}
    comparison |= dict(zip(("baseline", "other"), sides, strict=True))
    comparison |= {
        "n_way": n_way,
        "chance_top1": 1 / n_way,
        "subjects": sorted({result.subject for result in other.results}),
        "seeds": sorted({result.seed for result in other.results}),
        "without_seeds": [
            label for label, side in sides.items() if side.made_with.get("closed_form")
        ],
        "runs": _runs(other.results),
        "collapsed": {
            label: _runs(result for result in side.results if result.collapsed)
            for label, side in sides.items()
        },
    }

    pairs = whole_pairs(sides)
    # Both sides lack a pair or none does, so that one of them can be asked.
    if pairs[comparison["baseline"]]:
        comparison |= _differences(pairs, other, parameters, seed, without_seeds(sides))
        histograms = {
            label: cosine_histograms(list(results.values())) for label, results in pairs.items()
        }
        comparison["cosines"] = {"edges": COSINE_EDGES.tolist()} | histograms

    verdict, sentence = _verdict(comparison)
    comparison["caveats"] = _caveats(sides, factor)
    sentences = " ".join([sentence, *comparison["caveats"]]) + warning_sentences(comparison)
    answer = {"answer": sentences, "verdict": verdict}
    return answer | comparison | {"settings": made_with["settings"]}


def order_sides(baseline: Similarities, other: Similarities) -> tuple[str, dict[str, Similarities]]:
    """The factor in which two evaluations differ, and both by their labels, the baseline first.

    The run of a model without seeds is there for each seed of the other side. InputError as in
    `compare`.
    """
    baseline, other = _with_the_same_seeds(baseline, other)
    factor, labels = _find_factor(_facts(baseline), _facts(other))
    sides = dict(zip(labels, (baseline, other), strict=True))
    if factor == "encoder":
        # Reversed, "unaligned" comes first and is the baseline, whatever the order of the files.
        sides = {label: sides[label] for label in sorted(labels, reverse=True)}
    return factor, sides


def without_seeds(sides: Mapping[str, Similarities]) -> bool:
    """Whether neither side has seeds that could vary."""
    return all(side.made_with.get("closed_form") for side in sides.values())


def _with_the_same_seeds(
    first: Similarities, second: Similarities
) -> tuple[Similarities, Similarities]:
    """Both sides; the run of a model without seeds once for each seed of the other one."""
    if second.made_with.get("closed_form"):
        second = repeat_for_seeds(second, first)
    elif first.made_with.get("closed_form"):
        first = repeat_for_seeds(first, second)
    return first, second


def repeat_for_seeds(without_seeds: Similarities, other: Similarities) -> Similarities:
    """The run of each fold for each seed that the other side has in that fold."""
    seeds = {(result.fold, result.seed) for result in other.results}
    results = [
        replace(result, seed=seed)
        for result in without_seeds.results
        for fold, seed in sorted(seeds)
        if fold == result.fold
    ]
    return replace(without_seeds, results=results)


def _runs(results: Iterable[SubjectResult]) -> list[str]:
    return sorted({result.run for result in results})


def whole_pairs(sides: Mapping[str, Similarities]) -> dict[str, dict[RunKey, SubjectResult]]:
    """The results of each side in order of their key, without pairs with a collapsed run."""
    results = {
        label: {(result.fold, result.seed, result.subject): result for result in side.results}
        for label, side in sides.items()
    }
    # One collapsed run takes its partner along: only whole pairs compare.
    collapsed = {
        key for side in results.values() for key, result in side.items() if result.collapsed
    }
    keys = sorted(key for key in next(iter(results.values())) if key not in collapsed)
    return {label: {key: side[key] for key in keys} for label, side in results.items()}


def _facts(side: Similarities) -> dict[str, Any]:
    """All that two evaluations must have in common, except for the factor."""
    return _flatten(side.made_with) | {
        "subjects": sorted({result.subject for result in side.results}),
        "runs": _runs(side.results),
        "n_way": len(side.image_ids),
        "the test images": side.image_ids.tolist(),
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys such as `settings.train.epochs`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _find_factor(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """The factor in which two evaluations differ, and the label of each.

    Raises InputError if they differ in nothing, in two factors or in anything else.
    """
    # What only one side has is a difference too.
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    factors = _differing_factors(differing)

    if not differing:
        raise InputError("the two evaluations differ in nothing: give two that differ in one thing")
    if len(factors) > 1:
        raise InputError(
            f"the two evaluations differ in {' and '.join(factors)}: compare one thing at a time"
        )
    if not factors:
        raise InputError(
            f"the two evaluations differ in {_describe_fact(differing[0], first, second)}: they "
            f"may differ in one of {', '.join(FACTORS)}, and in nothing else: make both again "
            "alike in it"
        )

    # All else that differs must follow from the factor.
    [(factor, fact)] = factors.items()
    labels = _label(first.get(fact)), _label(second.get(fact))
    patterns = FACTORS[factor]
    if "settings.embeddings.checkpoint" in differing:
        patterns += OF_OWN_CHECKPOINT
    if factor == "backbone" and FEATURES[0] in differing:
        patterns += OF_ONE_SIDE
    for name in differing:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            raise InputError(
                f"the two evaluations ({' and '.join(labels)}) differ in "
                f"{_describe_fact(name, first, second)} too, and so not in the {factor} alone: "
                "train and evaluate both alike but for that, as `make compare` does"
            )
    return factor, labels


def _differing_factors(differing: list[str]) -> dict[str, str]:
    """The factors among the facts that differ, each with the fact that names the sides."""
    factors: dict[str, str] = {}
    for factor, (pattern, *_) in FACTORS.items():
        matches = fnmatch.filter(differing, pattern)

        # `alignment`, for example, differs with `encoder`: it is then no factor of its own.
        follows = any(pattern in FACTORS[earlier] for earlier in factors)
        if matches and not follows:
            factors[factor] = matches[0]
    return factors


def _describe_fact(name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    return name if name == "the test images" else f"{name} ({first.get(name)}; {second.get(name)})"


def _label(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(
    pairs: Mapping[str, Mapping[RunKey, SubjectResult]],
    other: Similarities,
    parameters: Evaluate,
    seed: int,
    without_seeds: bool,
) -> dict[str, Any]:
    """Metrics of both sides and their paired difference, by subject too, and top-1 by image."""
    queries = {
        label: {key: result.queries() for key, result in results.items()}
        for label, results in pairs.items()
    }
    n_subjects = len({result.subject for results in pairs.values() for result in results.values()})
    paired = paired_difference(
        queries,
        draw_resamples(n_subjects, len(other.image_ids), parameters.resamples, seed),
        partial(weigh_queries, top_k=parameters.top_k),
        left_out_in_turn=other.made_with["protocol"] == "leave-one-subject-out",
        without_seeds=without_seeds,
    )

    subjects = next(iter(paired.by_subject.values())).index  # the same on both sides
    per_subject = [
        {"subject": subject}
        | {label: table.loc[subject].to_dict() for label, table in paired.by_subject.items()}
        for subject in subjects
    ]
    per_image = {
        "image_ids": other.image_ids.tolist(),
        "things_concept": other.things_concept.tolist(),
    }
    per_image |= {label: {"top1_acc": _top1_by_image(side)} for label, side in queries.items()}

    return {
        "metrics": paired.metrics,
        "ci95_over": paired.factors,
        **_variances(queries),
        "n_resamples": parameters.resamples,
        "per_subject": per_subject,
        "per_image": per_image,
    }


def _variances(queries: Mapping[str, Mapping[RunKey, Queries]]) -> dict[str, Any]:
    """What seeds, subjects and images add to the variance of one difference of top-1.

    Nothing where a subject lacks a seed, and where the models of several people are each tested on
    all subjects: the people who train would be one more factor.
    """
    correct: list[np.ndarray] = []  # of each side (R, S, N)
    for side in queries.values():
        runs = sorted((seed, subject, fold) for fold, seed, subject in side)
        n_seeds = len({seed for seed, _, _ in runs})
        n_subjects = len({subject for _, subject, _ in runs})
        if len(runs) != n_seeds * n_subjects:
            return {}
        ranks = np.stack([side[fold, seed, subject]["rank"] for seed, subject, fold in runs])
        correct.append((ranks == 1).reshape(n_seeds, n_subjects, -1).astype(float))

    baseline, other = correct
    n_folds = len({fold for fold, _, _ in next(iter(queries.values()))})
    by_seed = [side.mean((1, 2)) for side in correct]
    return {
        "variances": variance_components(other - baseline, models_are_shared=n_folds == 1),
        "seed_correlation": correlation_over_seeds(*by_seed),
    }


def _top1_by_image(queries: Mapping[RunKey, Queries]) -> list[float]:
    """Top-1 accuracy of each image, (N,): the mean over seeds, then over subjects."""
    subjects = [subject for _, _, subject in queries]
    correct = mean_by_subject(subjects, [values["rank"] == 1 for values in queries.values()])
    return correct.mean(0).tolist()


def cosine_histograms(results: list[SubjectResult]) -> dict[str, list[int]]:
    """The number of matched and of mismatched pairs in each bin of COSINE_EDGES, over all runs."""
    match = np.eye(len(results[0].similarity), dtype=bool)
    counts = {}
    for name, pairs in (("matched", match), ("mismatched", ~match)):
        # Rounding may leave a cosine just beyond 1, which would be in no bin.
        cosines = np.concatenate([result.similarity[pairs] for result in results]).clip(-1, 1)
        counts[name] = np.histogram(cosines, COSINE_EDGES)[0].tolist()
    return counts


def _caveats(sides: Mapping[str, Similarities], factor: str) -> list[str]:
    """What must be said of the image models of the sides, each sentence once."""
    labels_of: dict[str, list[str]] = {}
    for label, side in sides.items():
        if "caveat" in side.made_with:
            labels_of.setdefault(side.made_with["caveat"], []).append(label)
    caveats = [f"Of {' and '.join(labels)}: {caveat}" for caveat, labels in labels_of.items()]

    # Another backbone has its own pictures in any case.
    pictures = {
        label: _flatten(side.made_with).get("settings.embeddings.preprocessing")
        for label, side in sides.items()
    }
    if factor in ("encoder", "alignment") and len(set(pictures.values())) > 1:
        in_words = ", ".join(f"{label} ({words})" for label, words in pictures.items())
        caveats.append(f"The two see the pictures prepared in different ways: {in_words}.")
    return caveats


def warning_sentences(facts: Mapping[str, Any]) -> str:
    """The sentences that must stand beside any claim.

    They follow from `selected_on` and `synthetic`, and from `planted` and `control` if these are
    there.
    """
    sentences = ""
    if facts.get("control") == "shuffled":
        sentences += (
            " All runs were trained on shuffled images (train.control): a control, which can find "
            "nothing."
        )
    if facts["selected_on"] == "test":
        sentences += " The epochs were selected on the test set, which flatters both."
    if facts.get("planted"):
        sentences += f" {facts['planted']}"
    if facts["synthetic"]:
        sentences += (
            " The data are synthetic: this shows that the pipeline works and means nothing about "
            "brains."
        )
    return sentences


def _verdict(comparison: dict[str, Any]) -> tuple[str, str]:
    """The verdict in a word or two, and a sentence with the figures behind it."""
    collapsed = {side: len(runs) for side, runs in comparison["collapsed"].items()}
    if any(collapsed.values()):
        numbers = " and ".join(f"{n} {side}" for side, n in collapsed.items() if n)
        return "no claim", (
            f"No claim can be made: of {len(comparison['runs'])} runs of each "
            f"{comparison['differs_in']}, {numbers} collapsed."
        )

    baseline = comparison["baseline"]
    other = comparison["other"]
    top1 = comparison["metrics"]["top1_acc"]
    factors = comparison["ci95_over"]

    figures = (
        f"top-1 {100 * top1[other]:.1f} % against {100 * top1[baseline]:.1f} %, "
        f"{100 * top1['difference']:+.1f} points"
    )
    design = (
        f"{comparison['n_way']}-way, {comparison['protocol']}, "
        f"{count(len(comparison['subjects']), 'subject')}, "
        f"{_seeds_in_words(comparison)}"
    )
    if "trained_dataset" in comparison:  # of the protocol across alone
        names = (comparison["trained_dataset"], comparison["dataset"])
        design += f", {describe_recordings(*names)}"
    if "modality" in comparison:  # absent of EEG
        design = f"{comparison['modality']}, {design}"

    # Without factors there is no claim, and the interval that is left is over test images alone.
    low, high = (100 * end for end in top1["ci95" if factors else "ci95_these_models"])
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"

    if not factors and len(comparison["without_seeds"]) == 2:
        return "no claim", (
            f"No claim can be made from {count(len(comparison['subjects']), 'subject')}, it takes "
            f"{MIN_SUBJECTS}: {figures} ({interval} over test images, for these models alone; "
            f"{design})."
        )
    if not factors:
        return "no claim", (
            f"No claim can be made from one seed: {figures} ({interval} over test images, "
            f"for these models alone; {design}). {ONE_SEED}"
        )

    verdict = "no difference shown"
    if top1["p"] <= ALPHA:
        verdict = "better" if top1["difference"] > 0 else "worse"
    claim = _claim(comparison, verdict)
    over = in_words(factors)
    # They are of another recording, so that the subjects tested do not stand for them.
    if comparison["protocol"] == "across" and TRAINING_PEOPLE not in factors:
        over += ", not over the people who trained"
    sentence = f"{claim}: {figures} ({interval} and p = {top1['p']:.3g} over {over}; {design})."
    return verdict, sentence[0].upper() + sentence[1:]


def _seeds_in_words(comparison: Mapping[str, Any]) -> str:
    """`2 seeds`, `2 seeds of nice`, or `without seeds`."""
    sides = comparison["baseline"], comparison["other"]
    with_seeds = [side for side in sides if side not in comparison["without_seeds"]]
    if not with_seeds:
        return "without seeds"
    seeds = count(len(comparison["seeds"]), "seed")
    return seeds if len(with_seeds) == 2 else f"{seeds} of {with_seeds[0]}"


def _claim(comparison: dict[str, Any], verdict: str) -> str:
    """The verdict as a clause, for these subjects alone where they are too few."""
    factor = comparison["differs_in"]
    baseline = comparison["baseline"]
    other = comparison["other"]
    significant = verdict in ("better", "worse")

    if factor == "encoder" and significant:
        claim = f"the {other} encoder decodes {verdict}"
    elif factor == "encoder":
        claim = "no difference between the encoders is shown"
    elif significant:
        claim = f"with the {factor} {other} decoding is {verdict} than with {baseline}"
    else:
        claim = f"no difference between the {factor} {other} and {baseline} is shown"

    if "subjects" not in comparison["ci95_over"]:
        claim = limit_to_subjects(claim, len(comparison["subjects"]))
    return claim


def limit_to_subjects(claim: str, n_subjects: int) -> str:
    """A claim about too few subjects, limited to them."""
    article = "this" if n_subjects == 1 else "these"
    return f"in {article} {count(n_subjects, 'subject')}, too few to speak for others, {claim}"


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n} {noun}{'s' * (n != 1)}"
