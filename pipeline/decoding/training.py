"""Train one EEG encoder against cached image embeddings, from a fresh initialisation to its selected epoch.

Source: the reference recipe in the README. Deliberate differences: by default part of the training concepts is held out
and selects the epoch (the recipe selected it on the test set), and everything random follows from one seed.
All data stay on the device; an epoch shuffles row indices and waits for the device once, at its end.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.decoding.model import ContrastiveModel, ModelSizes
from pipeline.decoding.retrieval import rank_of_match, score_queries, symmetric_cross_entropy
from pipeline.decoding.samples import Samples
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.sections import Train

EVALUATED_AT_ONCE = 512 * 17 * 100  # values of EEG in one pass without gradient; limits memory
PROBED = 256  # samples whose embeddings tell whether a model has collapsed
COLLAPSED_SPREAD = 0.3  # of `spread`; it means a cosine of 0.91 between samples. Runs that learned ended above 0.8
EXPLODED = 10  # times the loss of chance
# The rate of the blocks' weights, times that of the projectors. Adam moves a logit by at most about the rate a step,
# and the softmax needs some 3 for a weight near 1, which small data and low rates would not reach (docs/protocols.md).
BLOCK_RATE = 10


@dataclass(frozen=True)
class Seeds:
    """What chance decides in a run: concepts held out, first weights, order, dropout and shifts, and what is drawn."""

    concepts: int
    start: int
    order: int
    dropout: int
    repetitions: int
    views: int


class _State(TypedDict):
    """What a run knows after an epoch, apart from the state of its parts."""

    history: list[dict[str, float]]
    best: dict[str, Tensor]  # the model's weights in the selected epoch
    epoch: int  # the selected one


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
        raise InputError(f"train.validation_concepts = {share} holds out {n} of {len(concepts)} concepts: lower it")
    return np.isin(things_concept, np.random.default_rng(seed).choice(concepts, n, replace=False))


def make_galleries(subject: np.ndarray, things_concept: np.ndarray) -> list[np.ndarray]:
    """The rows of each gallery: one subject's responses to one image of every concept, as in the test set.

    With k images a concept there are k galleries a subject; where a concept has more than k, the last ones go unused.
    """
    frame = pd.DataFrame({"subject": subject, "concept": things_concept})
    frame["image"] = frame.groupby(["subject", "concept"]).cumcount()
    complete = frame.groupby(["subject", "image"])["concept"].transform("size") == frame["concept"].nunique()
    return [group.index.to_numpy(copy=True) for _, group in frame[complete].groupby(["subject", "image"])]


def group_repetitions(samples: Samples, rows: np.ndarray, n: int | Literal["any"]) -> np.ndarray:
    """The rows (images, R) of the R repetitions of each image and subject; InputError where R is less than `n` or 2."""
    frame = pd.DataFrame({"row": rows, "subject": samples.subject[rows], "target": samples.target[rows]})
    frame = frame.sort_values(["subject", "target"], kind="stable")
    counts = frame.groupby(["subject", "target"]).size()
    wanted = 2 if n == "any" else max(2, n)
    if counts.min() < wanted or counts.nunique() > 1:
        there = " or ".join(map(str, sorted(counts.unique())))
        raise InputError(
            f"train.average_random_repetitions is {n}, which needs {wanted} or more repetitions of each image and "
            f"of all as many, and there are {there}: set preprocess.average_repetitions to false, lower it, or set none"
        )
    return frame["row"].to_numpy(copy=True).reshape(-1, counts.iloc[0])


def draw_repetitions(rows: Tensor, n: int | Literal["any"], generator: torch.Generator) -> Tensor:
    """Of the rows (images, R) of each image `n`, without replacement; or 1 to R, with -1 in place of the others."""
    drawn = rows.gather(1, torch.rand(rows.shape, generator=generator).argsort(1).to(rows.device))
    if n != "any":
        return drawn[:, :n]
    count = torch.randint(1, rows.shape[1] + 1, (len(rows), 1), generator=generator)
    return drawn.where((torch.arange(rows.shape[1]) < count).to(rows.device), -1)


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
    """Train on these rows of `samples`; keep the epoch with the lowest loss on `selection`, the last if that is None.

    The same inputs, seed, device and number of threads give the same weights to the last bit, also if the run was
    interrupted: after each epoch its state is written to `resume`, and a later call goes on from there. `progress` is
    called once an epoch. InputError where the loss explodes; the state of the epoch before it stays in `resume`.
    `embeddings` are (N, D); where `blocks` names K blocks to mix they are (N, K, D), standardised by the images of
    these rows, and the history has the weight of each. Where `learned` (N, V, D) or (N, V, K, D) is given, the batches
    have these instead, of each sample and epoch one of V, and `embeddings` are what `selection` is compared with.
    """
    torch.manual_seed(seeds.start)
    n_chans, n_times = samples.eeg.shape[1:]
    sizes = ModelSizes(n_chans, n_times, samples.sfreq, embeddings.shape[-1], blocks, samples.start)
    model = ContrastiveModel(sizes, parameters).to(device)
    optimizer, schedule = make_optimizer(model, parameters)
    torch.manual_seed(seeds.dropout)
    shuffle = torch.Generator().manual_seed(seeds.order)
    if device.type != "cpu":  # what this run does not train on stays where it is
        samples, rows = samples.take(rows), np.arange(len(rows))
    draws = torch.Generator().manual_seed(seeds.repetitions)
    views = torch.Generator().manual_seed(seeds.views)
    generators = {"shuffle": shuffle, "draws": draws, "views": views}
    eeg, target, embeddings = samples.eeg.to(device), samples.target.to(device), embeddings.to(device)
    learned = embeddings[:, None] if learned is None else learned.to(device)
    n_views = learned.shape[1]
    trained_on = torch.from_numpy(rows).to(device)
    if parameters.standardise_eeg:
        model.standardise(eeg, trained_on)
    if model.block_mix is not None:
        model.block_mix.standardise(learned[target[trained_on].unique()].flatten(0, 1))
    units, n_averaged = trained_on, parameters.average_random_repetitions
    if n_averaged != "none":
        units = torch.from_numpy(group_repetitions(samples, rows, n_averaged)).to(device)
    average = _moving_average(model, parameters, n_steps=math.ceil(len(units) / parameters.batch_size))
    averaged = cast(ContrastiveModel, average.module)
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    state = _State(history=[], best={}, epoch=0)
    if resume is not None and resume.exists():
        state = _restore(torch.load(resume, map_location=device, weights_only=True), parts, generators)
        for _ in state["history"]:
            progress()
    probe = eeg[trained_on[:PROBED]].float(), embeddings[target[trained_on[:PROBED]]]
    galleries = [] if selection is None else make_galleries(selection.subject, selection.things_concept)
    while len(state["history"]) < parameters.epochs:
        epoch = len(state["history"]) + 1
        order = units[torch.randperm(len(units), generator=shuffle).to(device)]
        if n_averaged != "none":
            order = draw_repetitions(order, n_averaged, draws)
        batches = order.split(parameters.batch_size)
        drawn = torch.randint(n_views, trained_on.shape, generator=views).to(device)
        shown = (target * n_views).index_add(0, trained_on, drawn)  # of each sample the row among the views of all
        loss = _train_epoch(model, average, optimizer, eeg, shown, learned.flatten(0, 1), batches, parameters)
        schedule.step()
        row = {"epoch": epoch, "train_loss": loss, "spread": spread(averaged, *probe)}
        row |= _score(averaged, selection, embeddings, galleries, device)
        row |= {f"weight_of_block_{name}": weight for name, weight in averaged.block_weights().items()}
        _stop_if_diverged(loss, epoch, parameters, resume)
        state["history"].append(row)
        if selection is None or row["selection_loss"] <= min(past["selection_loss"] for past in state["history"]):
            state["best"], state["epoch"] = copy.deepcopy(averaged.state_dict()), epoch
        if resume is not None:
            _save(resume, state, parts, generators)
        progress()
    model.load_state_dict(state["best"])
    history = pd.DataFrame(state["history"])
    return Trained(model.eval(), history, state["epoch"], state["history"][-1]["spread"] < COLLAPSED_SPREAD)


def _moving_average(model: ContrastiveModel, parameters: Train, n_steps: int) -> AveragedModel:
    """The moving average of the weights, and of the statistics of BatchNorm, over some `average_epochs` of `n_steps`.

    With `none` it is the model as it stands after each step.
    """
    decay = 0.0 if parameters.average_epochs == "none" else math.exp(-1 / (parameters.average_epochs * n_steps))
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def make_optimizer(
    model: ContrastiveModel, parameters: Train
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Adam or AdamW over two groups, the EEG encoder and the rest, each with its own warm-up before the cosine.

    The weights of blocks are a third group, like the rest but for BLOCK_RATE and no weight decay, which would make them
    equal.
    """
    encoder = list(model.eeg_encoder.parameters())
    mix = [] if model.block_mix is None else list(model.block_mix.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith(("eeg_encoder.", "block_mix."))]
    groups: list[dict[str, Any]] = [{"params": encoder}, {"params": rest}]
    warmups = [parameters.warmup_epochs_eeg_encoder, parameters.warmup_epochs_projectors]
    if mix:
        groups.append({"params": mix, "lr": BLOCK_RATE * parameters.learning_rate, "weight_decay": 0.0})
        warmups.append(parameters.warmup_epochs_projectors)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[parameters.optimizer](
        groups,
        lr=parameters.learning_rate,
        betas=tuple(parameters.betas),
        weight_decay=parameters.weight_decay,
        fused=True,
    )
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
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    eeg: Tensor,
    target: Tensor,
    embeddings: Tensor,
    batches: tuple[Tensor, ...],
    parameters: Train,
) -> float:
    """One pass over the batches of rows (B,), or (B, n) of which each sample is the mean; the mean loss."""
    model.train()
    losses = []
    for rows in batches:
        if len(rows) < 2:  # a last batch of one has no other to differ from, and no variance
            continue
        if rows.ndim == 1:
            responses = eeg.index_select(0, rows).float()  # copies rows whole, twice as fast as eeg[rows]
        else:
            responses, rows = mean_responses(eeg, rows), rows[:, 0]
        images = embeddings.index_select(0, target[rows])
        with torch.autocast(eeg.device.type, torch.bfloat16, enabled=parameters.precision == "bfloat16"):
            eeg_side, image_side = model.embed_eeg(responses), model.embed_image(images)
        loss = symmetric_cross_entropy(model.logit_scale * eeg_side.float() @ image_side.float().T)
        optimizer.zero_grad()
        loss.backward()
        if parameters.gradient_clip != "none":
            torch.nn.utils.clip_grad_norm_(model.parameters(), parameters.gradient_clip)
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def mean_responses(eeg: Tensor, rows: Tensor) -> Tensor:
    """(B, C, T) float32: the mean over rows (B, n) of EEG (M, C, T), without those that are -1, summed in float32."""
    total = torch.zeros(len(rows), *eeg.shape[1:], device=eeg.device)
    for row in rows.unbind(1):
        total += eeg.index_select(0, row.clamp(min=0)).float() * (row >= 0)[:, None, None]
    return total / (rows >= 0).sum(1)[:, None, None]


@torch.inference_mode()
def project(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """EEG (M, C, T), embeddings (M, D) or (M, K, D) as unit vectors (M, P), in evaluation mode and bounded memory."""
    model.eval()
    return project_eeg(model, eeg), model.embed_image(embeddings)


@torch.inference_mode()
def project_eeg(model: ContrastiveModel, eeg: Tensor) -> Tensor:
    """The EEG half of `project`; the model is in evaluation mode already."""
    parts = eeg.split(max(1, EVALUATED_AT_ONCE // math.prod(eeg.shape[1:])))
    return torch.cat([model.embed_eeg(part.float()) for part in parts])


def spread(model: ContrastiveModel, eeg: Tensor, embeddings: Tensor) -> float:
    """How far the projected EEG, and the projected images, lie from their mean: the smaller of the two.

    The root mean square distance of unit vectors from their mean: 1 where they point in all directions, 0 where all are
    the same.
    """
    sides = project(model, eeg, embeddings)
    return min((side - side.mean(0)).square().sum(1).mean().sqrt().item() for side in sides)


def _score(
    model: ContrastiveModel,
    selection: Samples | None,
    embeddings: Tensor,
    galleries: list[np.ndarray],
    device: torch.device,
) -> dict[str, float]:
    """Mean loss and top-1 accuracy over the galleries, scored as the test is; NaN without `selection`."""
    if selection is None:
        return {"selection_loss": math.nan, "selection_top1": math.nan}
    eeg_side, image_side = project(model, selection.eeg.to(device), embeddings[selection.target.to(device)])
    similarity = torch.stack([eeg_side[rows] @ image_side[rows].T for rows in galleries])  # (G, N, N)
    fitted = model.recipe.selection_temperature == "fitted"
    loss = lowest_loss(similarity) if fitted else _loss(similarity, model.logit_scale.item())
    return {"selection_loss": loss, "selection_top1": (rank_of_match(similarity) == 1).double().mean().item()}


def lowest_loss(similarity: Tensor) -> float:
    """The mean loss of galleries (G, N, N) of cosines at the temperature, from 1 to 0.001, where it is lowest.

    A temperature changes no rank. A model grows too sure of itself in training: at its own temperature its loss on
    other images rises long before its ranks get worse (arXiv 1706.04599), and would select too early an epoch. The loss
    is convex in 1 / temperature.
    """
    found = minimize_scalar(lambda log: _loss(similarity, math.exp(log)), bounds=(0, math.log(1000)), method="bounded")
    return float(found.fun)


def _loss(similarity: Tensor, logit_scale: float) -> float:
    return score_queries(similarity, logit_scale)["nice_loss"].mean().item()


def _stop_if_diverged(loss: float, epoch: int, parameters: Train, resume: Path | None) -> None:
    chance = math.log(parameters.batch_size)
    if not loss <= EXPLODED * chance:  # NaN too
        kept = f"; the state after epoch {epoch - 1} is kept in {resume}" if resume and resume.exists() else ""
        raise InputError(
            f"training diverged in epoch {epoch} (loss {loss:.3g}, chance is {chance:.3g}): "
            f"lower train.learning_rate or set train.gradient_clip{kept}"
        )


def _save(path: Path, state: _State, parts: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    random = {"cpu": torch.get_rng_state()} | {name: one.get_state() for name, one in generators.items()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    with replacing(path) as temporary:
        torch.save({**state, "random": random} | {name: part.state_dict() for name, part in parts.items()}, temporary)


def _restore(saved: dict[str, Any], parts: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> _State:
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["random"]["cpu"].cpu())
    for name, generator in generators.items():
        generator.set_state(saved["random"][name].cpu())
    if "cuda" in saved["random"]:
        torch.cuda.set_rng_state(saved["random"]["cuda"].cpu())
    return _State(history=saved["history"], best=saved["best"], epoch=saved["epoch"])
