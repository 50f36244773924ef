"""Any image model that timm knows by name, with weights from a file in timm's layout.

Source: github.com/huggingface/pytorch-image-models.

"last" is what the model gives without its classifier: the features, pooled as the model pools them. A numbered block
is what timm's `forward_intermediates` calls one: a stage of a convolutional network, a block of a transformer; its CLS
token where there is one, else the mean over the picture.

Deliberate difference: pictures are resized as a whole. Size, filter, mean and std are those of timm's `pretrained_cfg`,
and its crop is not done: objects may reach to the edge.
"""

import copy
import difflib
import functools
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.images.models.vit import Framing, ImageEncoder, Tokens, check_blocks
from pipeline.sections import Block
from pipeline.untrusted.weights import (
    check_finite,
    holds_tensors,
    how_to_save_part,
    read_weights,
)

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
)  # of data parallel training, torch.compile and Lightning
# Weights in OpenAI's and open_clip's layouts that timm resizes while it renames them.
_OTHER_NAMES = {"visual.positional_embedding": "pos_embed", "visual.trunk.pos_embed": "pos_embed"}


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
        self.with_prefix = (
            "return_prefix_tokens" in options and getattr(model, "cls_token", None) is not None
        )

    def feature(self, block: Block, tokens: Tokens) -> str:
        if block == "last":
            return "features as the model pools them"
        return f"{'CLS token' if self.with_prefix else 'mean over the picture'} after block {block}"

    def forward(
        self, images: Tensor, blocks: Sequence[Block] = ("last",), tokens: Tokens = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for a block or tokens that are not there."""
        check_blocks(blocks, self.n_blocks)
        if tokens != "cls":
            raise InputError(
                "embed.tokens is mean: a model of timm has its own way of pooling, set it to cls"
            )
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.arithmetic == torch.bfloat16
        ):
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
        return [
            self.model.forward_head(final) if block == "last" else pooled[block] for block in blocks
        ]


def check_name(name: str) -> None:
    """InputError unless timm has a model of that name, and tag, that makes one embedding of an RGB square."""
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known))
        raise InputError(
            f"backbone is 'timm/{name}': timm {timm.__version__} has no model {name}"
            + (f"; is it {near}?" if near else "; timm.list_models() in Python gives the names")
        )

    config: Any = timm.get_pretrained_cfg(name)
    n_channels, height, width = config.input_size
    if n_channels != 3 or height != width:
        raise InputError(
            f"backbone is 'timm/{name}': it takes {n_channels} x {height} x {width} values, and pictures are made RGB "
            "squares here; name another model"
        )
    if not hasattr(_skeleton(name), "reset_classifier"):
        raise InputError(
            f"backbone is 'timm/{name}': it gives many tokens of a picture and not one embedding; name another model"
        )


def load_encoder(checkpoint: Path, name: str) -> ImageEncoder:
    """The model in evaluation mode, float32, without its classifier.

    The weights of a classifier, of whatever size, are left out; each other weight must be there, in its shape. timm
    reads them as it reads those that it publishes, but resizes nothing. InputError names the first weight that differs.
    """
    skeleton = _skeleton(name)
    saved, place = _find_weights(read_weights(checkpoint), name, checkpoint)
    saved = _without_prefixes(saved, skeleton, checkpoint, place)

    classifier = _classifier(skeleton)
    of_features = {key: value for key, value in saved.items() if not _is_of(key, classifier)}
    _check_shapes(of_features, skeleton, name, checkpoint)
    check_finite(of_features, str(checkpoint))

    # timm reads whole models: its strict check wants a classifier too, which is thrown away below.
    blank = {
        key: torch.zeros(value.shape)
        for key, value in skeleton.state_dict().items()
        if _is_of(key, classifier)
    }
    model: Any
    try:
        model = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": of_features | blank}
        )
    except (
        Exception
    ) as error:  # each family of models has a reader of its own, which raises whatever it runs into
        reason = (
            _difference(of_features, skeleton, classifier) or " ".join(str(error).split())[:300]
        )
        raise InputError(
            f"{checkpoint} does not hold the weights of timm's {name}: {reason}; set backbone to the model that they "
            "are of, or download.weights_file to the file of this one"
        ) from error
    model.reset_classifier(0)
    return PooledModel(model, model.pretrained_cfg).eval().requires_grad_(False)


def _find_weights(saved: Any, name: str, checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """The weights by name, wherever a training script has put them, and that place, such as `['state_dict']`."""
    place = ""
    for key in ("state_dict", "model"):
        average = f"{key}_ema"
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            if average in saved:
                print(
                    f"{checkpoint}: holds {key} and {average}, their moving average; {key} is used"
                )
            saved = saved[key]
            place += f"[{key!r}]"

    by_name = isinstance(saved, dict) and all(isinstance(key, str) for key in saved)
    if not saved or not by_name or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(
            f"{checkpoint} should hold the weights of {name} by name, alone or under the key "
            f"state_dict or model, and holds {_content(saved)}; {_how_to_find(saved)}"
        )
    return saved, place


def _how_to_find(saved: object) -> str:
    """What makes a file of weights of one that holds them beside other things, or under another key."""
    if holds_tensors(saved):
        return (
            "if you trust the file, write its weights alone into a new one: "
            "torch.save({name: value for name, value in "
            "torch.load('old.pt', weights_only=False).items() if isinstance(value, "
            "torch.Tensor)}, 'new.pt')"
        )

    parts = (
        [key for key, value in saved.items() if holds_tensors(value)]
        if isinstance(saved, dict)
        else []
    )
    if parts:
        return how_to_save_part(f"[{parts[0]!r}]")
    return "let download.weights_file name a file that holds them"


def _content(saved: object) -> str:
    if not isinstance(saved, dict):
        return f"a {type(saved).__name__}"
    return f"the keys {', '.join(map(str, [*saved][:5]))}" if saved else "nothing"


def _without_prefixes(
    saved: dict[str, Tensor], skeleton: nn.Module, checkpoint: Path, place: str
) -> dict[str, Tensor]:
    """The weights by their names in the model, which wrappers begin with a prefix, or several.

    `place` is where the file holds them.
    """
    model_names, taken_off = skeleton.state_dict().keys(), ""

    while not saved.keys() & model_names and (prefix := _prefix(saved)):
        other = [key for key in saved if not key.startswith(prefix)]
        if other:
            raise InputError(
                f"{checkpoint}: {len(saved) - len(other)} names of weights begin with {prefix!r} "
                "and "
                f"{other[0]!r} does not: if you trust the file, write those alone into a new one: "
                "torch.save({name: value for name, value in torch.load('old.pt', weights_only=False)"
                f"{place}.items() if name.startswith({taken_off + prefix!r})}}, 'new.pt')"
            )
        saved = {key.removeprefix(prefix): value for key, value in saved.items()}
        taken_off += prefix

    if taken_off:
        print(f"{checkpoint}: {taken_off!r} is taken off the beginning of each weight's name")
    return saved


def _prefix(saved: Mapping[str, Tensor]) -> str | None:
    """One that half of the names begin with, or more."""
    for prefix in PREFIXES:
        if 2 * sum(key.startswith(prefix) for key in saved) >= len(saved):
            return prefix
    return None


@functools.lru_cache(maxsize=8)
def _skeleton(name: str) -> Any:
    """The model with shapes and without values: no memory, and no random first weights, which take time."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def _classifier(skeleton: Any) -> set[str]:
    """The modules that are gone, such as `head`, once timm has taken out the classifier, which is done here."""
    names = set(skeleton.state_dict())
    without = copy.deepcopy(skeleton)
    without.reset_classifier(0)
    return {name.rpartition(".")[0] for name in names - set(without.state_dict())}


def _is_of(key: str, modules: set[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)


def _difference(saved: Mapping[str, Tensor], skeleton: Any, classifier: set[str]) -> str:
    """What the file lacks and has too much, in words; nothing where the names are the model's."""
    expected = [key for key in skeleton.state_dict() if not _is_of(key, classifier)]
    lacking = [key for key in expected if key not in saved]
    surplus = [key for key in saved if key not in expected]
    parts = (
        [f"it lacks {len(lacking)} of {len(expected)}, the first is {lacking[0]}"]
        if lacking
        else []
    )
    parts += (
        [f"it has {len(surplus)} that the model has not, the first is {surplus[0]}"]
        if surplus
        else []
    )
    return ", and ".join(parts)


def _check_shapes(saved: Mapping[str, Tensor], skeleton: Any, name: str, checkpoint: Path) -> None:
    """InputError where a weight of the model has another size here: timm would resize some of them without a word."""
    expected = {key: value.shape for key, value in skeleton.state_dict().items()}
    for key, value in saved.items():
        shape = expected.get(_OTHER_NAMES.get(key, key))
        if shape is not None and not _same_size(value.shape, shape):
            raise InputError(
                f"{checkpoint}: the weight {key}: expected {tuple(shape)}, which timm's {name} has, got "
                f"{tuple(value.shape)}; {_how_to_fit(saved, key, name)}"
            )


def _same_size(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether so many values fit; positions may be counted with tokens such as CLS, which timm then takes apart."""
    if math.prod(shape) == math.prod(expected):
        return True
    positions = len(shape) == len(expected) == 3 and shape[-1] == expected[-1]
    return positions and math.isqrt(shape[1]) == math.isqrt(expected[1])


def _how_to_fit(saved: Mapping[str, Tensor], key: str, name: str) -> str:
    """Which model has these weights, or how timm makes the one called `key` fit."""
    stem = re.sub(r"_\d+$", "", name.partition(".")[0])
    for other in timm.list_models(f"{stem}*"):
        skeleton = _skeleton(other)
        classifier = _classifier(skeleton)
        shapes = {
            key: value.shape
            for key, value in skeleton.state_dict().items()
            if not _is_of(key, classifier)
        }
        if shapes == {key: value.shape for key, value in saved.items()}:
            return f"they fit timm/{other}: set backbone to that"

    if "pos_embed" in key or "position" in key:  # trained on pictures of another size
        return (
            f"have timm resize the positions, if that is wanted: torch.save(timm.create_model('{name}', "
            "pretrained=True, num_classes=0, pretrained_cfg_overlay={'file': 'old.pt'}).state_dict(), 'new.pt')"
        )
    return "set backbone to the model that they are of"


def make_random(name: str, file: str, folder: Path) -> None:
    """Write random weights in timm's layout, large enough for embeddings that differ between images."""
    model, generator = (
        timm.create_model(name, pretrained=False),
        torch.Generator().manual_seed(20220),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
    with replacing(folder / file) as temporary:
        temporary.write_bytes(
            safetensors.torch.save(
                {key: value.clone() for key, value in model.state_dict().items()}
            )
        )
