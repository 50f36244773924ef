"""Any image model that timm knows by name, with weights from a file in timm's layout.

Source: github.com/huggingface/pytorch-image-models.

"last" is what the model gives without its classifier: the features, pooled as the model pools them. A numbered block
is what timm's `forward_intermediates` calls one: a stage of a convolutional network, a block of a transformer; its CLS
token where there is one, else the mean over the picture.

Deliberate difference: pictures are resized as a whole. Size, filter, mean and std are those of timm's `pretrained_cfg`,
and its crop is not done: objects may reach to the edge.
"""

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.images.checkpoints import read_weights
from pipeline.images.vit import Block, Framing, ImageEncoder, Tokens, check_blocks


class PooledModel(ImageEncoder):
    """A model of timm without its classifier: pixels (B, 3, side, side) in [0, 1] -> embeddings (B, D)."""

    model: Any
    mean: Tensor
    sd: Tensor

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.model, self.vits = model, ()
        has_blocks = hasattr(model, "forward_intermediates")
        self.n_blocks = len(model.feature_info) if has_blocks else 0
        self.framing = Framing(config["input_size"][-1], config["interpolation"])
        self.preprocessing = f"{self.framing}; mean {config['mean']} and std {config['std']}"
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(config["std"]).view(3, 1, 1))
        options = inspect.signature(model.forward_intermediates).parameters if has_blocks else {}
        self.with_prefix = "return_prefix_tokens" in options and getattr(model, "cls_token", None) is not None

    def feature(self, block: Block, tokens: Tokens) -> str:
        if block == "last":
            return "features as the model pools them"
        return f"{'CLS token' if self.with_prefix else 'mean over the picture'} after block {block}"

    def forward(self, images: Tensor, blocks: Sequence[Block] = ("last",), tokens: Tokens = "cls") -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for a block or tokens that are not there."""
        check_blocks(blocks, self.n_blocks)
        if tokens != "cls":
            raise InputError("embed.tokens is mean: a model of timm has its own way of pooling, set it to cls")
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.arithmetic == torch.bfloat16):
            return self._embed((images - self.mean) / self.sd, blocks)

    def _embed(self, images: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
        kept = sorted({block for block in blocks if block != "last"})
        if not kept:
            return [self.model(images)] * len(blocks)
        options = {"return_prefix_tokens": True} if self.with_prefix else {}
        final, after = self.model.forward_intermediates(
            images, indices=[number - 1 for number in kept], norm=False, **options
        )
        each = [x[1][:, 0] if self.with_prefix else x.mean((2, 3)) for x in after]
        pooled = dict(zip(kept, each, strict=True))
        return [self.model.forward_head(final) if block == "last" else pooled[block] for block in blocks]


def check_name(name: str) -> None:
    """InputError where timm has no such model, or none with that tag; nothing is built."""
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known))
        raise InputError(
            f"backbone is 'timm/{name}': timm {timm.__version__} has no model {name}"
            + (f"; is it {near}?" if near else "")
        )


def load_encoder(checkpoint: Path, name: str) -> ImageEncoder:
    """The model in evaluation mode, without its classifier; InputError where the file has not its weights, all of them.

    timm reads the weights as it reads those that it publishes, so that a file for another head is refused too.
    """
    saved: Any = read_weights(checkpoint)
    for key in ("state_dict", "model"):  # as training scripts save them
        saved = saved.get(key, saved) if isinstance(saved, dict) else saved
    if not isinstance(saved, dict) or not saved or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f"{checkpoint} should hold the weights of {name} by name; is it another model's?")
    model: Any
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": saved})
    except Exception as error:  # each family of models has a reader of its own, which raises whatever it runs into
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{checkpoint} does not hold the weights of timm's {name}: {reason}") from error
    model.reset_classifier(0)
    config = model.pretrained_cfg
    n_channels, height, width = config["input_size"]
    if n_channels != 3 or height != width:
        raise InputError(f"timm's {name} takes {n_channels} x {height} x {width} values, and not an RGB square")
    return PooledModel(model, config).eval().requires_grad_(False)


def make_random(name: str, file: str, folder: Path) -> None:
    """Write random weights in timm's layout, large enough for embeddings that differ between images."""
    model, generator = timm.create_model(name, pretrained=False), torch.Generator().manual_seed(20220)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
    with replacing(folder / file) as temporary:
        temporary.write_bytes(safetensors.torch.save({key: value.clone() for key, value in model.state_dict().items()}))
