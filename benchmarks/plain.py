"""The recipe as it is usually written: the layers one after the other, a DataLoader, two optimisers.

What `pipeline.train.model` and `pipeline.train.training` are measured and compared against, without a line of
their code.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Residual(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def projector(n_inputs: int, n_outputs: int) -> nn.Module:
    residual = nn.Sequential(nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(0.5))
    return nn.Sequential(
        nn.Linear(n_inputs, n_outputs), Residual(residual), nn.LayerNorm(n_outputs)
    )


def start(module: nn.Module) -> None:
    """The recipe's first weights: those of Linear, convolution and BatchNorm drawn, biases 0 but for Linear's."""
    name = type(module).__name__
    if name in ("Conv2d", "Linear"):
        module.weight.data.normal_(0.0, 0.02)
    if name == "BatchNorm2d":
        module.weight.data.normal_(1.0, 0.02)
    if name in ("Conv2d", "BatchNorm2d") and module.bias is not None:
        module.bias.data.zero_()


class PlainModel(nn.Module):
    def __init__(self, n_chans: int, n_times: int, embedding_size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(
                nn.Conv2d(1, 40, (1, 25)),
                nn.Conv2d(40, 40, (1, 41), bias=False),
                nn.BatchNorm2d(40),
                nn.ELU(),
            ),
            *(
                nn.Conv2d(40, 40, (n_chans, 1), bias=False),
                nn.BatchNorm2d(40),
                nn.ELU(),
                nn.Dropout(0.5),
            ),
            *(nn.Conv2d(40, 40, (1, 1)), nn.Flatten()),
        )
        self.eeg = projector((n_times - 64) * 40, 256)
        self.image = projector(embedding_size, 256)
        self.apply(start)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, eeg: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (B, B)."""
        eeg_side, image_side = self.eeg(self.encoder(eeg[:, None])), self.image(embeddings)
        return (
            self.log_scale.exp() * F.normalize(eeg_side, dim=1) @ F.normalize(image_side, dim=1).T
        )


def optimizers(model: PlainModel, rate: float, warmups: tuple[int, int], epochs: int) -> list:
    """(optimizer, schedule) of the encoder, and of all the rest."""
    encoder = list(model.encoder.parameters())
    rest = [*model.eeg.parameters(), *model.image.parameters(), model.log_scale]
    made = []
    for parameters, warmup in zip((encoder, rest), warmups, strict=True):
        optimizer = torch.optim.Adam(parameters, lr=rate)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, epochs - warmup, eta_min=0.0001
        )
        made.append(
            (optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [warmup]))
        )
    return made


def train_epoch(
    model: PlainModel, made: list, eeg: Tensor, embeddings: Tensor, batch_size: int
) -> Iterator[float]:
    """One pass over EEG (M, C, T) and the embedding of each sample (M, D); yields the loss of each batch."""
    model.train()
    for x, y in DataLoader(TensorDataset(eeg, embeddings), batch_size, shuffle=True):
        logits, targets = model(x, y), torch.arange(len(x))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        for optimizer, _ in made:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, _ in made:
            optimizer.step()
        yield loss.item()
    for _, schedule in made:
        schedule.step()
