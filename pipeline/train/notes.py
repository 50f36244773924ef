"""What is noted of a trained model, beside its weights."""

from pipeline.eeg_encoders.table import has_closed_form
from pipeline.images.embeddings import Embeddings
from pipeline.sections import Train
from pipeline.train.inputs import hash_eeg_weights
from pipeline.train.model import Notes
from pipeline.train.protocols import Run
from pipeline.train.training import Trained


def note(run: Run, trained: Trained, embeddings: Embeddings, recipe: Train) -> Notes:
    """The notes of a run, as in its model.json before it is saved."""
    notes = Notes(
        fold=run.fold,
        seed=run.seed,
        trained_on=list(run.trained_on),
        tested_on=list(run.tested_on),
        protocol=recipe.protocol,
        selected_on=recipe.select_on,
        views=embeddings.views,
        views_in_gallery=embeddings.views_in_gallery,
        selected_epoch=trained.epoch,
        collapsed=trained.collapsed,
        eeg_weights=hash_eeg_weights(recipe),
    )
    if has_closed_form(recipe.eeg_encoder):
        [row] = trained.history.to_dict("records")
        notes["penalty"] = row["penalty"]
        notes["held_out_r2"] = row["held_out_r2"]
    return notes
