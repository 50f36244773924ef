"""Train EEG encoders against cached image embeddings, from a fresh initialisation to the selected epoch.

Source: the reference recipe in the README. Deliberate differences: by default part of the training concepts is held out
and selects the epoch (the recipe selected it on the test set), and everything random follows from one seed.
All data stay on the device. Many models are trained at once where that pays (`stack`).
"""

import gc
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from tqdm import tqdm

from pipeline.compute.devices import use_precision
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.retrieval import rank_of_match, score_queries
from pipeline.sections import Train
from pipeline.train.model import ContrastiveModel, ModelSizes, stackable
from pipeline.train.samples import Samples
from pipeline.train.stack import Stack

EVALUATED_AT_ONCE = 512 * 17 * 100  # values of EEG in one pass without gradient; limits memory
PROBED = 256  # samples whose embeddings tell whether a model has collapsed
# Of `spread`; it means a cosine of 0.91 between samples. Runs that learned ended above 0.8
COLLAPSED_SPREAD = 0.3
EXPLODED = 10  # times the loss of chance
SAVING = 0.05  # the most of the time that goes into saving the state


@dataclass(frozen=True)
class Seeds:
    """What chance decides in a run: concepts held out, first weights, order, dropout and shifts, and what is drawn."""

    concepts: int
    start: int
    order: int
    dropout: int
    repetitions: int
    views: int


def derive_seeds(seed: int, fold: str) -> Seeds:
    """Seeds of one run: those of another seed, or of another fold of the protocol, are independent of them."""
    return Seeds(*np.random.SeedSequence([seed, *fold.encode()]).generate_state(6).tolist())


@dataclass(frozen=True)
class Trained:
    """The model with the weights of the selected epoch, one row of history an epoch, and whether the run collapsed.

    Collapsed: in the last epoch all EEG, or all images, had nearly the same embedding.
    """

    model: ContrastiveModel
    history: pd.DataFrame
    epoch: int
    collapsed: bool


def held_out(things_concept: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask (M,) of the samples whose concept is held out: `share` of the concepts, at least two, chosen by the seed."""
    concepts = np.unique(things_concept)
    n = max(2, round(share * len(concepts)))
    if n > len(concepts) - 2:
        remedy = "lower it" if len(concepts) >= 4 else "set train.select_on to last"
        raise InputError(
            f"train.validation_concepts = {share} holds out {n} of {len(concepts)} concepts: {remedy}"
        )
    return np.isin(things_concept, np.random.default_rng(seed).choice(concepts, n, replace=False))


def make_galleries(subject: np.ndarray, things_concept: np.ndarray) -> list[np.ndarray]:
    """The rows of each gallery: one subject's responses to one image of every concept, as in the test set.

    With k images a concept there are k galleries a subject; where a concept has more than k, the last ones go unused.
    All galleries are of one size: where subjects saw different concepts, as in single sessions, each has as many of its
    own, the first by name, as the subject with the fewest.
    """
    frame = pd.DataFrame({"subject": subject, "concept": things_concept})
    frame["number"] = frame.groupby("subject")["concept"].rank(
        "dense"
    )  # of the concept among the subject's own
    size = int(frame.groupby("subject")["number"].max().min())
    frame = frame[frame["number"] <= size].copy()

    frame["image"] = frame.groupby(["subject", "concept"]).cumcount()
    complete = frame.groupby(["subject", "image"])["concept"].transform("size") == size
    return [
        group.index.to_numpy(copy=True)
        for _, group in frame[complete].groupby(["subject", "image"])
    ]


def group_repetitions(samples: Samples, rows: np.ndarray, n: int | Literal["any"]) -> np.ndarray:
    """The rows (images, R) of the R repetitions of each image and subject; InputError where R is less than `n` or 2."""
    frame = pd.DataFrame(
        {"row": rows, "subject": samples.subject[rows], "target": samples.target[rows]}
    )
    frame = frame.sort_values(["subject", "target"], kind="stable")
    counts = frame.groupby(["subject", "target"]).size()
    wanted = 2 if n == "any" else max(2, n)
    if counts.min() < wanted or counts.nunique() > 1:
        there = " or ".join(map(str, sorted(counts.unique())))
        if counts.nunique() > 1:
            remedy = "set it to none"
        elif counts.min() == 1:
            remedy = "set it to none, or, if images were shown more often, preprocess.average_repetitions to false"
        else:
            remedy = f"lower it to {there}, or set it to none"
        raise InputError(
            f"train.average_random_repetitions is {n}, which needs {wanted} or more repetitions of each image and "
            f"of all as many, and there are {there}: {remedy}"
        )
    return frame["row"].to_numpy(copy=True).reshape(-1, counts.iloc[0])


def draw_repetitions(rows: Tensor, n: int | Literal["any"], generator: torch.Generator) -> Tensor:
    """Of the rows (images, R) of each image `n`, without replacement; or 1 to R, with -1 in place of the others."""
    drawn = rows.gather(1, torch.rand(rows.shape, generator=generator).argsort(1).to(rows.device))
    if n != "any":
        return drawn[:, :n]
    count = torch.randint(1, rows.shape[1] + 1, (len(rows), 1), generator=generator)
    return drawn.where((torch.arange(rows.shape[1]) < count).to(rows.device), -1)


@dataclass(frozen=True)
class Split:
    """One model: its seeds, the rows of the samples that it learns, and rows of `selection` that select its epoch."""

    seeds: Seeds
    rows: np.ndarray
    selection: Samples | None  # None = the last epoch
    selection_rows: np.ndarray


def train(
    samples: Samples,
    rows: np.ndarray,
    selection: Samples | None,
    embeddings: Tensor,
    parameters: Train,
    seeds: Seeds,
    device: torch.device,
    resume: Path | None = None,
    progress: Callable[[], None] = lambda: None,
    blocks: Sequence[str] = (),
    learned: Tensor | None = None,
) -> Trained:
    """`train_stack` of one model, selected by all of `selection`; InputError where its loss explodes."""
    splits = [
        Split(seeds, rows, selection, np.arange(0 if selection is None else len(selection.subject)))
    ]
    (trained,) = train_stack(
        samples, splits, embeddings, parameters, device, resume, progress, blocks, learned
    )
    if isinstance(trained, InputError):
        raise trained
    return trained


def train_many(
    samples: Samples,
    splits: Sequence[Split],
    embeddings: Tensor,
    parameters: Train,
    device: torch.device,
    states: Path,
    progress: Callable[[], None] = lambda: None,
    blocks: Sequence[str] = (),
    learned: Tensor | None = None,
) -> list[Trained | InputError]:
    """`train_stack` of splits with as many rows each; of fewer at once where the device has too little memory.

    What fits is found by trying, halves of what did not. `states` is a folder for the states.
    """
    found: dict[int, Trained | InputError] = {}
    alike: dict[object, list[int]] = {}
    for i, split in enumerate(splits):
        n_images = len(samples.target[split.rows].unique())
        alike.setdefault((len(split.rows), n_images) if stackable(parameters) else i, []).append(i)
    waiting = list(alike.values())
    while waiting:
        part = waiting.pop(0)
        if device.type == "cuda":
            gc.collect()  # a schedule and its optimizer hold each other, and the memory of the models before
            torch.cuda.empty_cache()
        own = [splits[i] for i in part]
        state = states / f"{len(part)}-from-{part[0]}.pt"
        try:
            trained = train_stack(
                samples, own, embeddings, parameters, device, state, progress, blocks, learned
            )
        except torch.OutOfMemoryError:
            trained = []
        if trained:
            found |= zip(part, trained, strict=True)
        elif len(part) == 1:
            found[part[0]] = InputError(
                f"{device} has too little memory for one model: lower train.batch_size, or set train.device to cpu"
            )
        else:
            half = len(part) // 2
            tqdm.write(
                f"{device} has too little memory for {len(part)} models at once: going on with {half}"
            )
            waiting = [part[:half], part[half:], *waiting]
    return [found[i] for i in range(len(splits))]


def train_stack(
    samples: Samples,
    splits: Sequence[Split],
    embeddings: Tensor,
    parameters: Train,
    device: torch.device,
    resume: Path | None = None,
    progress: Callable[[], None] = lambda: None,
    blocks: Sequence[str] = (),
    learned: Tensor | None = None,
) -> list[Trained | InputError]:
    """Train a model for each split at once; of each keep the epoch with the lowest loss on its selection, or the last.

    All splits have as many rows, and the recipe of more than one is `stackable`. A model whose loss explodes ends in
    an InputError, and the others go on.
    The same inputs, seeds, device and number of threads give the same weights to the last bit, also if the run was
    interrupted: its state is written to `resume`, after each epoch unless that would take more than a twentieth of the
    time, and a later call goes on from there. `progress` is called once an epoch and model.
    `embeddings` are (N, D); where `blocks` names K blocks to mix they are (N, K, D), standardised by the images of the
    rows learned, and the history has the weight of each. Where `learned` (N, V, D) or (N, V, K, D) is given, the
    batches have these instead, of each sample and epoch one of V, and `embeddings` are what the selection is compared
    with.
    """
    use_precision(parameters.precision, device)
    learned = (embeddings[:, None] if learned is None else learned).to(device)
    embeddings = embeddings.to(device)
    selections = [split.selection for split in splits if split.selection is not None]
    there = {id(each): each.to(device) for each in (samples, *selections)}
    samples = there[id(samples)]
    n_chans, n_times = samples.eeg.shape[1:]
    sizes = ModelSizes(n_chans, n_times, samples.sfreq, embeddings.shape[-1], blocks, samples.start)
    members = [
        _Member(
            split, samples, there.get(id(split.selection)), embeddings, learned, sizes, parameters
        )
        for split in splits
    ]
    stack = Stack(
        [member.model for member in members],
        parameters,
        n_steps=math.ceil(len(members[0].units) / parameters.batch_size),
        eeg=samples.eeg,
        learned=learned.flatten(0, 1),
        generators=[torch.Generator(device).manual_seed(split.seeds.dropout) for split in splits],
    )
    torch.manual_seed(splits[0].seeds.dropout)  # of a model that is not stackable
    epoch, save_after = 0, 0.0
    if resume is not None and resume.exists() and _is_whole(resume):
        epoch = _restore(torch.load(resume, map_location=device, weights_only=True), stack, members)
        for _ in range(epoch * len(members)):
            progress()
    while epoch < parameters.epochs and not all(member.failure for member in members):
        epoch += 1
        orders = [
            torch.stack(parts)
            for parts in zip(*(member.next_order() for member in members), strict=True)
        ]
        for m, (member, loss) in enumerate(zip(members, stack.epoch(*orders), strict=True)):
            if not member.failure:
                member.follow(epoch, loss, stack.averaged(m))
        due = time.monotonic() > save_after or epoch == parameters.epochs
        if resume is not None and due and not all(member.failure for member in members):
            started = time.monotonic()
            _save(resume, epoch, stack, members)
            save_after = time.monotonic() + (time.monotonic() - started) / SAVING
        for _ in members:
            progress()
    return [member.ended() for member in members]


class _Member:
    """A model on its way: what draws its batches and selects its epoch, its history, and its best weights so far."""

    def __init__(
        self,
        split: Split,
        samples: Samples,
        selection: Samples | None,
        embeddings: Tensor,
        learned: Tensor,
        sizes: ModelSizes,
        parameters: Train,
    ) -> None:
        self.parameters, self.embeddings = parameters, embeddings
        self.target, self.n_views = samples.target, learned.shape[1]
        torch.manual_seed(split.seeds.start)
        device = samples.eeg.device
        self.model = ContrastiveModel(sizes, parameters).to(device)
        drawn_by = {
            "shuffle": split.seeds.order,
            "repetitions": split.seeds.repetitions,
            "views": split.seeds.views,
        }
        self.generators = {
            name: torch.Generator().manual_seed(seed) for name, seed in drawn_by.items()
        }
        self.trained_on = torch.from_numpy(split.rows).to(device)
        if parameters.standardise_eeg:
            self.model.standardise(samples.eeg, self.trained_on)
        if self.model.block_mix is not None:
            self.model.block_mix.standardise(
                learned[self.target[self.trained_on].unique()].flatten(0, 1)
            )
        self.units = self.trained_on
        if parameters.average_random_repetitions != "none":
            repetitions = group_repetitions(
                samples, split.rows, parameters.average_random_repetitions
            )
            self.units = torch.from_numpy(repetitions).to(device)
        probed = self.trained_on[:PROBED]
        self.probe = samples.eeg[probed].float(), embeddings[self.target[probed]]
        self.selection, self.galleries = selection, []
        if selection is not None:
            self.selection_rows = torch.from_numpy(split.selection_rows).to(device)
            parts = (
                selection.subject[split.selection_rows],
                selection.things_concept[split.selection_rows],
            )
            self.galleries = make_galleries(*parts)
        self.history: list[dict[str, float]] = []  # a row an epoch
        self.best: dict[str, Tensor] = {}  # the weights in the selected epoch
        self.epoch = 0  # the selected one
        self.failure = ""

    def next_order(self) -> tuple[Tensor, Tensor]:
        """The rows of the next epoch's samples (n,), or (n, R) of repetitions, and the rows of what they learn (n,)."""
        order = self.units[
            torch.randperm(len(self.units), generator=self.generators["shuffle"]).to(
                self.units.device
            )
        ]
        if self.parameters.average_random_repetitions != "none":
            order = draw_repetitions(
                order, self.parameters.average_random_repetitions, self.generators["repetitions"]
            )
        drawn = torch.randint(
            self.n_views, self.trained_on.shape, generator=self.generators["views"]
        )
        shown = (self.target * self.n_views).index_add(
            0, self.trained_on, drawn.to(self.trained_on.device)
        )
        return order, shown[order if order.ndim == 1 else order[:, 0]]

    def follow(self, epoch: int, loss: float, averaged: ContrastiveModel) -> None:
        """Take note of the epoch; keep the weights if it is the best so far."""
        chance = math.log(self.parameters.batch_size)
        if not loss <= EXPLODED * chance:  # NaN too
            self.failure = (
                f"training diverged in epoch {epoch} (loss {loss:.3g}, chance is {chance:.3g}): "
                "lower train.learning_rate"
            )
            return
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "spread": spread(averaged, *self.probe),
        } | self._score(averaged)
        row |= {
            f"weight_of_block_{name}": weight for name, weight in averaged.block_weights().items()
        }
        self.history.append(row)
        if self.selection is None or row["selection_loss"] <= min(
            past["selection_loss"] for past in self.history
        ):
            self.best = {name: value.clone() for name, value in averaged.state_dict().items()}
            self.epoch = epoch

    @torch.inference_mode()
    def _score(self, model: ContrastiveModel) -> dict[str, float]:
        """Mean loss and top-1 accuracy over the galleries, scored as the test is; NaN without selection."""
        if self.selection is None:
            return {"selection_loss": math.nan, "selection_top1": math.nan}
        images = model.eval().embed_image(
            self.embeddings[self.selection.target[self.selection_rows]]
        )
        responses = project_eeg(model, self.selection.eeg, self.selection_rows)
        similarity = torch.stack(
            [responses[rows] @ images[rows].T for rows in self.galleries]
        )  # (G, N, N)
        fitted = self.parameters.selection_temperature == "fitted"
        loss = lowest_loss(similarity) if fitted else _loss(similarity, model.logit_scale.item())
        return {
            "selection_loss": loss,
            "selection_top1": (rank_of_match(similarity) == 1).double().mean().item(),
        }

    def ended(self) -> Trained | InputError:
        if self.failure:
            return InputError(self.failure)
        self.model.load_state_dict(self.best)
        collapsed = self.history[-1]["spread"] < COLLAPSED_SPREAD
        return Trained(self.model.eval(), pd.DataFrame(self.history), self.epoch, collapsed)

    def state_dict(self) -> dict[str, Any]:
        drawn = {name: generator.get_state() for name, generator in self.generators.items()}
        return {name: getattr(self, name) for name in ("history", "best", "epoch", "failure")} | {
            "generators": drawn
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("history", "best", "epoch", "failure"):
            setattr(self, name, state[name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())


@torch.inference_mode()
def project(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """EEG (M, C, T), embeddings (M, D) or (M, K, D) as unit vectors (M, P), in evaluation mode and bounded memory."""
    model.eval()
    return project_eeg(model, eeg), model.embed_image(embeddings)


@torch.inference_mode()
def project_eeg(model: ContrastiveModel, eeg: Tensor, rows: Tensor | None = None) -> Tensor:
    """The EEG half of `project`, of all rows or of these; the model is in evaluation mode already."""
    n_at_once, dtype = max(1, EVALUATED_AT_ONCE // math.prod(eeg.shape[1:])), model.log_scale.dtype
    if rows is None:
        parts = iter(eeg.split(n_at_once))
    else:
        parts = (eeg.index_select(0, part) for part in rows.split(n_at_once))
    return torch.cat([model.embed_eeg(part.to(dtype)) for part in parts])


def spread(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> float:
    """How far the projected EEG, and the projected images, lie from their mean: the smaller of the two.

    The root mean square distance of unit vectors from their mean: 1 where they point in all directions, 0 where all are
    the same.
    """
    sides = project(model, eeg, embeddings)
    return min((side - side.mean(0)).square().sum(1).mean().sqrt().item() for side in sides)


def lowest_loss(similarity: Tensor) -> float:
    """The mean loss of galleries (G, N, N) of cosines at the temperature, from 1 to 0.001, where it is lowest.

    A temperature changes no rank. A model grows too sure of itself in training: at its own temperature its loss on
    other images rises long before its ranks get worse (arXiv 1706.04599), and would select too early an epoch. The loss
    is convex in 1 / temperature.
    """
    found = minimize_scalar(
        lambda log: _loss(similarity, math.exp(log)), bounds=(0, math.log(1000)), method="bounded"
    )
    return float(found.fun)


def _loss(similarity: Tensor, logit_scale: float) -> float:
    return score_queries(similarity, logit_scale)["nice_loss"].mean().item()


def _save(path: Path, epoch: int, stack: Stack, members: Sequence[_Member]) -> None:
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    state = {
        "epoch": epoch,
        "stack": stack.state_dict(),
        "members": [member.state_dict() for member in members],
    }
    with (
        replacing(path) as temporary,
        temporary.open("wb") as stream,
    ):  # to a path, errors would lose their reason
        torch.save(state | {"random": random}, stream)


def _is_whole(state: Path) -> bool:
    """Whether the saved state is as it was written: torch does not look at the checksums in the file."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(state) as archive:
        if archive.testzip() is None:
            return True

    tqdm.write(
        f"{state}: the state of the interrupted training is damaged, so the training starts again"
    )
    return False


def _restore(saved: dict[str, Any], stack: Stack, members: Sequence[_Member]) -> int:
    """The epoch after which this was saved."""
    stack.load_state_dict(saved["stack"])
    for member, state in zip(members, saved["members"], strict=True):
        member.load_state_dict(state)
    torch.set_rng_state(saved["random"]["cpu"].cpu())
    if "cuda" in saved["random"]:
        torch.cuda.set_rng_state(saved["random"]["cuda"].cpu())
    return saved["epoch"]
