"""Train an EEG encoder against cached image embeddings; the epoch is chosen on held-out training concepts.

Source: the reference recipe in the README. Deliberate differences: part of the training concepts is held out and
chooses the epoch (the recipe chose it on the test set), and everything random follows from one seed.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.embeddings import Embeddings
from pipeline.errors import InputError
from pipeline.model import ContrastiveModel
from pipeline.params import Train
from pipeline.recordings import read_split
from pipeline.retrieval import retrieval_metrics, symmetric_cross_entropy

EVALUATION_BATCH = 512  # EEG samples in one pass without gradient; limits memory


@dataclass(frozen=True)
class TrainingSet:
    """Training EEG (M, C, T), and for each sample its row of `embeddings` (N, D), its subject and its concept."""

    eeg: Tensor
    target: Tensor
    embeddings: Tensor
    subject: np.ndarray
    concept: np.ndarray


@dataclass(frozen=True)
class Trained:
    """The model with the weights of the chosen epoch, how it got there (one row an epoch) and that epoch."""

    model: ContrastiveModel
    history: pd.DataFrame
    epoch: int


def read_training_set(eeg_dir: Path, embeddings: Embeddings) -> TrainingSet:
    """The training EEG of every subject in the folder, joined to the embeddings on the image ids.

    Where the repetitions were kept, each is a sample of its own.
    """
    recordings = [read_split(path, "train", average=False) for path in sorted(eeg_dir.glob("*.h5"))]
    if len({(recording.ch_names, len(recording.times)) for recording in recordings}) != 1:
        raise InputError(f"{eeg_dir}: expected subjects with the same channels and samples; run `dvc repro preprocess`")
    eeg, target, subject, concept = [], [], [], []
    for recording in recordings:
        repetitions = recording.eeg.shape[1] if recording.eeg.ndim == 4 else 1
        eeg.append(torch.from_numpy(recording.eeg).float().reshape(-1, *recording.eeg.shape[-2:]))
        target.append(torch.from_numpy(embeddings.rows(recording.image_ids).repeat(repetitions)))
        subject.append(np.repeat(recording.subject, len(target[-1])))
        concept.append(recording.things_concept.repeat(repetitions))
    return TrainingSet(
        torch.cat(eeg),
        torch.cat(target),
        torch.from_numpy(embeddings.values),
        np.concatenate(subject),
        np.concatenate(concept),
    )


def train(data: TrainingSet, parameters: Train, seed: int, device: torch.device) -> Trained:
    """Train one model; the same inputs, seed, device and number of threads give the same weights to the last bit."""
    torch.manual_seed(seed)
    validation = held_out(data.concept, parameters.validation_concepts, seed)
    galleries = make_galleries(data.subject[validation], data.concept[validation])
    validation_rows = torch.from_numpy(np.flatnonzero(validation)).to(device)
    training_rows = torch.from_numpy(np.flatnonzero(~validation)).to(device)
    eeg, target, embeddings = data.eeg.to(device), data.target.to(device), data.embeddings.to(device)
    model = ContrastiveModel(
        *eeg.shape[1:], embeddings.shape[1], parameters.projection_size, parameters.dropout, parameters.temperature
    ).to(device)
    optimizer, schedule = make_optimizer(model, parameters)
    shuffle = torch.Generator().manual_seed(seed)

    history, best, best_epoch = [], {}, 0
    with tqdm(range(1, parameters.epochs + 1), unit="epoch", desc="train", disable=None) as bar:
        for epoch in bar:
            order = training_rows[torch.randperm(len(training_rows), generator=shuffle).to(device)]
            train_loss = _train_epoch(model, optimizer, eeg, target, embeddings, order.split(parameters.batch_size))
            schedule.step()
            row = {"epoch": epoch, "train_loss": train_loss}
            row |= _validate(model, eeg[validation_rows], embeddings[target[validation_rows]], galleries)
            if not math.isfinite(train_loss + row["validation_loss"]):
                raise InputError(
                    f"training diverged in epoch {epoch} (the loss is not finite): lower train.learning_rate"
                )
            history.append(row)
            if row["validation_loss"] <= min(past["validation_loss"] for past in history):
                best, best_epoch = copy.deepcopy(model.state_dict()), epoch
            bar.set_postfix(loss=f"{train_loss:.3f}", validation_top1=f"{row['validation_top1']:.3f}")
    model.load_state_dict(best)
    return Trained(model.eval(), pd.DataFrame(history), best_epoch)


def held_out(concept: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask (M,) of the samples whose concept is held out: `share` of the concepts, at least two, chosen by the seed."""
    concepts = np.unique(concept)
    n = max(2, round(share * len(concepts)))
    if n > len(concepts) - 2:
        raise InputError(
            f"train.validation_concepts = {share} holds out {n} of {len(concepts)} training concepts: lower it"
        )
    return np.isin(concept, np.random.default_rng(seed).choice(concepts, n, replace=False))


def make_galleries(subject: np.ndarray, concept: np.ndarray) -> list[np.ndarray]:
    """Rows of one gallery each: one subject's responses to one image of every concept, as in the test set.

    A concept with k images gives k galleries a subject; the last images of a concept with more than others go unused.
    """
    frame = pd.DataFrame({"subject": subject, "concept": concept})
    frame["image"] = frame.groupby(["subject", "concept"]).cumcount()
    complete = frame.groupby(["subject", "image"])["concept"].transform("size") == frame["concept"].nunique()
    return [group.index.to_numpy(copy=True) for _, group in frame[complete].groupby(["subject", "image"])]


def make_optimizer(
    model: ContrastiveModel, parameters: Train
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Adam over two groups, the EEG encoder and the rest, each with its own warm-up before the cosine."""
    encoder = list(model.eeg_encoder.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("eeg_encoder.")]
    groups = [{"params": encoder}, {"params": rest}]
    optimizer = torch.optim.Adam(groups, lr=parameters.learning_rate, betas=tuple(parameters.betas), fused=True)
    warmups = parameters.warmup_epochs_encoder, parameters.warmup_epochs_projectors
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [_rate(parameters, warmup) for warmup in warmups])


def _rate(parameters: Train, warmup: int) -> Callable[[int], float]:
    """The share of the peak rate in each epoch, from 0: linear from `warmup_start`, then a cosine to the final rate."""
    floor, cosine_epochs = parameters.final_learning_rate / parameters.learning_rate, parameters.epochs - warmup

    def rate(epoch: int) -> float:
        if epoch < warmup:
            return parameters.warmup_start + (1 - parameters.warmup_start) * epoch / warmup
        progress = min(1.0, (epoch - warmup) / max(1, cosine_epochs))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return rate


def _train_epoch(
    model: ContrastiveModel,
    optimizer: torch.optim.Optimizer,
    eeg: Tensor,
    target: Tensor,
    embeddings: Tensor,
    batches: tuple[Tensor, ...],
) -> float:
    """One pass over the batches of rows; the mean loss."""
    model.train()
    losses = []
    for rows in batches:
        if len(rows) < 2:  # a last batch of one has no other to differ from, and no variance
            continue
        logits = model.logit_scale * model.embed_eeg(eeg[rows]) @ model.embed_image(embeddings[target[rows]]).T
        loss = symmetric_cross_entropy(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.inference_mode()
def project(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """EEG (M, C, T) and embeddings (M, D) as unit vectors (M, P), in evaluation mode and in bounded memory."""
    model.eval()
    eeg_side = torch.cat([model.embed_eeg(part) for part in eeg.split(EVALUATION_BATCH)])
    return eeg_side, model.embed_image(embeddings)


def _validate(
    model: ContrastiveModel, eeg: Tensor, embeddings: Tensor, galleries: list[np.ndarray]
) -> dict[str, float]:
    """Mean loss and top-1 accuracy over the galleries, scored as the test is."""
    eeg_side, image_side = project(model, eeg, embeddings)
    scores = [
        retrieval_metrics(eeg_side[rows] @ image_side[rows].T, model.logit_scale.item(), top_k=[1])
        for rows in galleries
    ]
    return {
        "validation_loss": float(np.mean([score["nice_loss"] for score in scores])),
        "validation_top1": float(np.mean([score["top1_acc"] for score in scores])),
    }
