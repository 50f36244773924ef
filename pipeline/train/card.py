"""The card of trained models: a page for people, in the folder of the models.

What the page says stands in card.md beside this file. It is read when the page is written, and is
no part of the code that decides a training: a better word there trains nothing again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.eeg_encoders.table import caveats_of
from pipeline.files import replacing
from pipeline.sections import Train
from pipeline.train.made_with import MadeWith
from pipeline.train.model import ModelSizes, Notes
from pipeline.train.protocols import name_run

# What the page says of the image model, and of how the EEG was prepared
IMAGE_MODEL = [
    *("backbone", "encoder", "alignment", "aligned_by", "tokens", "preprocessing"),
    *("precision", "checkpoint", "checkpoint_sha256"),
]
PREPARATION = [
    *("average_repetitions", "baseline", "mvnn", "mvnn_from", "normalise", "sessions", "dtype"),
]


def write_card(
    path: Path,
    all_notes: Sequence[Notes],
    sizes: ModelSizes,
    recipe: Train,
    made_with: Sequence[MadeWith],
    *,
    synthetic: bool,
    caveats: Sequence[str] = (),
    score: Mapping[str, Any] | None = None,
) -> None:
    """Write the card of models that were trained together.

    `all_notes` and `made_with` are in the same order, an entry each model; `sizes` and `recipe` are
    those of all. `caveats` come beside those of EEG, image model and EEG encoder. `score` holds
    `rows` (name, value, interval in words, chance) and `about`, a sentence; None where it is not
    known yet.
    """
    # All models share their data but for the subjects.
    subjects = {
        name: about for of_model in made_with for name, about in of_model["subjects"].items()
    }
    data: MadeWith = {**made_with[0], "subjects": subjects}

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, of names that this project has checked
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("card.md").render(
        data=data,
        n_models="One model was" if len(all_notes) == 1 else f"{len(all_notes)} models were",
        models=[{**notes, "folder": name_run(notes["fold"], notes["seed"])} for notes in all_notes],
        sizes=sizes,
        recipe=recipe,
        settings=recipe.model_dump(),
        image_model=IMAGE_MODEL,
        preparation={key: data["eeg"][key] for key in PREPARATION if key in data["eeg"]},
        caveats=_all_caveats(data, recipe, caveats),
        synthetic=synthetic,
        score=score,
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _all_caveats(data: MadeWith, recipe: Train, others: Sequence[str]) -> list[str]:
    """Each caveat once: of the caller, EEG encoder, image model and EEG; then of the training."""
    caveats = [*others, *caveats_of(recipe.eeg_encoder)]
    if "caveat" in data["embeddings"]:
        caveats.append(data["embeddings"]["caveat"])
    for about in data["subjects"].values():
        caveats += about.get("caveats", [])

    if recipe.select_on == "test":
        caveats.append("The test images selected the epoch: a score on them is optimistic.")
    if recipe.control == "shuffled":
        caveats.append("A control, trained on shuffled images: it should find nothing.")
    return list(dict.fromkeys(caveats))
