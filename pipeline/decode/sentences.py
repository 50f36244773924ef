"""What is said of a decoding in words: of the models, of the score, and of what restricts both."""

import math

from pipeline.datasets.table import DATASETS
from pipeline.decode.decoding import Decoded, Score
from pipeline.decode.responses import Responses
from pipeline.evaluate.scoring import Models
from pipeline.evaluate.statistics import ALPHA
from pipeline.train.made_with import MadeWith
from pipeline.train.protocols import name_run


def describe_models(models: Models) -> str:
    """Which models answered, and how several were averaged."""
    names = [name_run(notes["fold"], notes["seed"]) for _, notes in models]
    if len(names) == 1:
        return f"Decoded by the model {names[0]}."
    return (
        f"Decoded by {len(names)} models, {', '.join(names)}: each cosine is the mean of theirs. "
        "So the score is of one answer by all of them, and not the mean of their scores, which "
        "`evaluate` reports."
    )


def restrictions(
    models: Models, made_with: MadeWith | None, subject: str | None, split: str
) -> list[str]:
    """What the reader of the figures must know of models and EEG; `subject` None: not known."""
    notes = models[0][1]
    sentences = []
    dataset = None if made_with is None else DATASETS.get(made_with["dataset"])
    if dataset is not None and dataset.synthetic:
        sentences.append(
            "The models were trained on synthetic data: the figures say nothing about brains."
        )
    if all(of_model["collapsed"] for _, of_model in models):
        sentences.append("The models collapsed to nearly one embedding: they are no result.")
    if notes["train"]["control"] == "shuffled":
        sentences.append("The models are a control, trained on shuffled images.")
    if saw_the_test(models, subject, split):
        sentences.append("This EEG selected the epoch of the models: the score is optimistic.")

    if subject is None or split == "test":
        return sentences
    if any(subject in of_model["trained_on"] for _, of_model in models):
        sentences.append(
            f"The models were trained on this EEG (the split train of {subject}): the score says "
            "how well they learned it, and is no test."
        )
    return sentences


def saw_the_test(models: Models, subject: str | None, split: str) -> bool:
    """Whether this EEG selected the epochs of the models, so that it cannot test them too."""
    selected = any(
        notes["selected_on"] == "test" and subject in notes["tested_on"] for _, notes in models
    )
    return split == "test" and selected


def describe_score(score: Score | None, n_permutations: int, saw_test: bool) -> str:
    """What the score is of, what its interval is over, and whether top-1 is above chance."""
    if score is None:
        return "No score: which picture was seen is not known of any response in this gallery."

    of = (
        f"{score.n_responses} responses to {score.n_images} pictures, each picture with equal "
        f"weight, among {score.n_way} pictures. The interval is over the pictures seen, for these "
        "models and this recording."
    )
    if saw_test:
        return f"{of} Top-1 is not tested: this EEG selected the epoch of the models."
    if math.isnan(score.p):
        return f"{of} One picture alone tests nothing."
    verdict = "is above chance" if score.p <= ALPHA else "is not shown to be above chance"
    return (
        f"{of} Top-1 {verdict}: p = {score.p:.2g}, by {n_permutations:,} permutations of the "
        "pictures seen."
    )


def describe_unscored(responses: Responses, decoded: Decoded) -> list[str]:
    """A sentence on the responses whose picture is not in the gallery, if there are any."""
    lost = (decoded.seen == "") & (responses.seen != "")
    if not lost.any():
        return []
    return [
        f"Of {len(lost)} responses {lost.sum()} are to pictures that the gallery lacks, the "
        f"first is {responses.seen[lost][0]}: they are decoded, and not scored (a picture is named "
        f"by its path in the gallery, such as {decoded.image_ids[0]}, or the end of it)."
    ]


def score_rows(score: Score | None) -> list[dict[str, object]]:
    """A row for each k: its accuracy, the 95 % interval, and chance; none without a score."""
    if score is None:
        return []
    return [
        {
            "metric": f"top-{k}",
            "value": value,
            "low": score.low[k],
            "high": score.high[k],
            "chance": score.chance[k],
        }
        for k, value in score.top_k.items()
    ]
