"""The whole method on one page. Read this: it is all there is; the rest computes the same, faster.

EEG and the image that was seen are projected into one space, where matching pairs are close and all
other pairs of a batch are not. A brain response then finds its image among images that were never
seen in training.

    model = train(eeg, embeddings)                           # the training set
    accuracy = top1(model, test_eeg, test_embeddings)        # the test set: one response an image

The layers one after the other, a DataLoader, two optimizers: so the recipe in the README is usually
written. Tests and benchmarks compare the fast code with it. `loop.py` adds what params.yaml says:
EEG standardised, weights averaged over steps, and held-out concepts that select the epoch.

Shapes: B batch, C channels, T samples in time, D embedding size, N test images. Code: torch alone.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

N_FILTERS = 40
PROJECTION_SIZE = 256  # of the space in which EEG and image meet
DROPOUT = 0.5
START_TEMPERATURE = 0.07  # CLIP's
FINAL_RATE = 0.0001  # of the cosine

Optimizers = list[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]


# ---------------------------------------------------------------------------- layers


def make_encoder(n_chans: int, n_times: int) -> tuple[nn.Sequential, int]:
    """(B, 1, C, T) -> (B, features), after NICE (arXiv 2308.13234); also returns their number."""
    encoder = nn.Sequential(
        nn.Conv2d(1, N_FILTERS, (1, 25)),  # (B, 40, C, T - 24): in time
        nn.Conv2d(N_FILTERS, N_FILTERS, (1, 41), bias=False),  # (B, 40, C, T - 64)
        nn.BatchNorm2d(N_FILTERS),
        nn.ELU(),
        nn.Conv2d(N_FILTERS, N_FILTERS, (n_chans, 1), bias=False),  # (B, 40, 1, T - 64): in space
        nn.BatchNorm2d(N_FILTERS),
        nn.ELU(),
        nn.Dropout(DROPOUT),
        nn.Conv2d(N_FILTERS, N_FILTERS, (1, 1)),
        nn.Flatten(),  # (B, 40 * (T - 64))
    )
    return encoder, N_FILTERS * (n_times - 64)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def make_projector(n_inputs: int, n_outputs: int = PROJECTION_SIZE) -> nn.Sequential:
    """(B, n_inputs) -> (B, n_outputs)."""
    return nn.Sequential(
        nn.Linear(n_inputs, n_outputs),
        Residual(nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(DROPOUT)),
        nn.LayerNorm(n_outputs),
    )


def draw_weights(module: nn.Module) -> None:
    """The recipe's first weights: normal, and biases 0 but for those of Linear."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        module.weight.data.normal_(0.0, 0.02)
    if isinstance(module, nn.BatchNorm2d):
        module.weight.data.normal_(1.0, 0.02)
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
        module.bias.data.zero_()


# ---------------------------------------------------------------------------- model and loss


class PlainModel(nn.Module):
    """An encoder of EEG (C, T), and projectors of EEG and image embeddings (D,) into one space."""

    def __init__(self, n_chans: int, n_times: int, embedding_size: int) -> None:
        super().__init__()
        self.encoder, n_features = make_encoder(n_chans, n_times)
        self.eeg = make_projector(n_features)
        self.image = make_projector(embedding_size)
        self.apply(draw_weights)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / START_TEMPERATURE)))

    def forward(self, eeg: Tensor, embeddings: Tensor) -> Tensor:
        """EEG (B, C, T) and embeddings (B, D) -> logits (B, B): scaled cosine similarities."""
        eeg_side = F.normalize(self.eeg(self.encoder(eeg[:, None])), dim=1)  # (B, 256)
        image_side = F.normalize(self.image(embeddings), dim=1)  # (B, 256)
        return self.log_scale.exp() * eeg_side @ image_side.T


def contrastive_loss(logits: Tensor) -> Tensor:
    """Logits (B, B) -> CLIP's loss (arXiv 2103.00020), a number in nats.

    Response i belongs to image i, and image i to response i.
    """
    matches = torch.arange(len(logits))
    eeg_to_image = F.cross_entropy(logits, matches)
    image_to_eeg = F.cross_entropy(logits.T, matches)
    return (eeg_to_image + image_to_eeg) / 2


# ---------------------------------------------------------------------------- optimizers


def make_optimizers(
    model: PlainModel, rate: float, epochs: int, warmups: tuple[int, int] = (4, 2)
) -> Optimizers:
    """(optimizer, schedule) of the encoder, and of all other weights; a warm-up, then a cosine.

    `rate` is the learning rate after the warm-up, `epochs` the length of both together, `warmups`
    the epochs of the warm-up of each.
    """
    projectors = [*model.eeg.parameters(), *model.image.parameters(), model.log_scale]
    groups = [list(model.encoder.parameters()), projectors]

    optimizers: Optimizers = []
    for weights, warmup in zip(groups, warmups, strict=True):
        optimizer = torch.optim.Adam(weights, lr=rate)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup, FINAL_RATE)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [warmup])
        optimizers.append((optimizer, schedule))
    return optimizers


# ---------------------------------------------------------------------------- training


def train_epoch(
    model: PlainModel, optimizers: Optimizers, eeg: Tensor, embeddings: Tensor, batch_size: int
) -> Iterator[float]:
    """One pass over EEG (M, C, T) and embeddings (M, D), a row a response, float32 on the CPU.

    Yields the loss of each batch, in nats; the last batch may be smaller.
    """
    model.train()
    pairs = TensorDataset(eeg, embeddings)
    for batch_eeg, batch_embeddings in DataLoader(pairs, batch_size, shuffle=True):
        loss = contrastive_loss(model(batch_eeg, batch_embeddings))

        for optimizer, _ in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
        yield loss.item()

    for _, schedule in optimizers:
        schedule.step()


def train(
    eeg: Tensor, embeddings: Tensor, epochs: int = 100, rate: float = 0.002, batch_size: int = 256
) -> PlainModel:
    """Train on EEG (M, C, T) and the embedding of the image of each response (M, D).

    Both are float32 on the CPU, and T is 65 or more. Returns the model after the last epoch, and
    prints the loss of each epoch. The first weights and the order follow torch's global generator.
    """
    model = PlainModel(eeg.shape[1], eeg.shape[2], embeddings.shape[1])
    optimizers = make_optimizers(model, rate, epochs)
    for epoch in range(1, epochs + 1):
        losses = list(train_epoch(model, optimizers, eeg, embeddings, batch_size))
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
    return model


# ---------------------------------------------------------------------------- retrieval


@torch.inference_mode()
def top1(model: PlainModel, eeg: Tensor, embeddings: Tensor) -> float:
    """How often the seen image is the most similar of all N: from 0 to 1, chance is 1 / N.

    EEG (N, C, T) and embeddings (N, D), float32: response i is to image i.
    """
    logits = model.eval()(eeg, embeddings)  # (N, N)
    return (logits.argmax(dim=1) == torch.arange(len(eeg))).double().mean().item()
