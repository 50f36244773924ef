"""Any image model that timm knows by name, with weights from a file in timm's layout.

Source: github.com/huggingface/pytorch-image-models.

"last" is the output of the model without its classifier: the features, pooled as the model pools
them. A numbered block is one of timm's `forward_intermediates`: a stage of a convolutional network,
or a block of a transformer. Its embedding is the CLS token, or the mean over the picture where
there is no CLS token.

Deliberate difference: pictures are resized as a whole. Size, filter, mean and std are those of
timm's `pretrained_cfg`. Its crop is left out: objects may reach to the edge.
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
from pipeline.sections import BlockChoice
from pipeline.untrusted.weights import (
    check_finite,
    holds_tensors,
    how_to_save_part,
    read_weights,
)

# Data parallel training, torch.compile and Lightning put these before the names of weights.
PREFIXES = ("module.", "_orig_mod.", "model.")
PART = "encoder."  # before the names of a model that was trained with heads of another model
# timm renames these weights, of OpenAI's and open_clip's layouts, and resizes them as it does so.
_OTHER_NAMES = {"visual.positional_embedding": "pos_embed", "visual.trunk.pos_embed": "pos_embed"}


class PooledModel(ImageEncoder):
    """A model of timm without its classifier: pixels (B, 3, side, side) in [0, 1] -> (B, D)."""

    model: Any
    mean: Tensor
    sd: Tensor

    def __init__(
        self, model: Any, config: Mapping[str, Any], framing: Framing | None = None
    ) -> None:
        """`config` is as timm's `pretrained_cfg`; `framing` takes the place of what that says."""
        nn.Module.__init__(self)
        self.model = model
        self.vits = ()

        has_blocks = hasattr(model, "forward_intermediates")
        self.n_blocks = len(model.feature_info) if has_blocks else 0
        self.framing = framing or Framing(config["input_size"][-1], config["interpolation"])
        self.preprocessing = f"{self.framing}; mean {config['mean']} and std {config['std']}"
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(config["std"]).view(3, 1, 1))

        options = inspect.signature(model.forward_intermediates).parameters if has_blocks else {}
        self.with_prefix = (
            "return_prefix_tokens" in options and getattr(model, "cls_token", None) is not None
        )

    def feature(self, block: BlockChoice, tokens: Tokens) -> str:
        if block == "last":
            return "features as the model pools them"
        return f"{'CLS token' if self.with_prefix else 'mean over the picture'} after block {block}"

    def forward(
        self, images: Tensor, blocks: Sequence[BlockChoice] = ("last",), tokens: Tokens = "cls"
    ) -> list[Tensor]:
        """One (B, D) for each of `blocks`; InputError for an unknown block or tokens "mean"."""
        check_blocks(blocks, self.n_blocks)
        if tokens != "cls":
            raise InputError(
                "embed.tokens is mean: a model of timm has its own way of pooling, set it to cls"
            )
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.arithmetic == torch.bfloat16
        ):
            return self._embed((images - self.mean) / self.sd, blocks)

    def _embed(self, images: Tensor, blocks: Sequence[BlockChoice]) -> list[Tensor]:
        numbers = sorted({block for block in blocks if block != "last"})
        if not numbers:
            return [self.model(images)] * len(blocks)

        options = {"return_prefix_tokens": True} if self.with_prefix else {}
        final, intermediates = self.model.forward_intermediates(
            images, indices=[number - 1 for number in numbers], norm=False, **options
        )
        pooled = {}
        for number, x in zip(numbers, intermediates, strict=True):
            if self.with_prefix:
                prefix = x[1]  # x[0] are the patches
                pooled[number] = prefix[:, 0]  # the CLS token
            else:
                pooled[number] = x.mean((2, 3))
        return [
            self.model.forward_head(final) if block == "last" else pooled[block] for block in blocks
        ]


def check_name(name: str) -> None:
    """InputError unless timm has a model of that name, and maybe tag, that we can use.

    It must make one embedding of a square RGB picture.
    """
    all_names = [*timm.list_models(), *timm.list_pretrained()]
    if name not in all_names:
        near = ", ".join(difflib.get_close_matches(name, all_names))
        raise InputError(
            f"backbone is 'timm/{name}': timm {timm.__version__} has no model {name}"
            + (f"; is it {near}?" if near else "; timm.list_models() in Python gives the names")
        )

    config: Any = timm.get_pretrained_cfg(name)
    n_channels, height, width = config.input_size
    if n_channels != 3 or height != width:
        raise InputError(
            f"backbone is 'timm/{name}': it takes {n_channels} x {height} x {width} values, and "
            "pictures are made RGB squares here; name another model"
        )
    if not hasattr(_skeleton(name), "reset_classifier"):
        raise InputError(
            f"backbone is 'timm/{name}': it gives many tokens of a picture and not one embedding; "
            "name another model"
        )


def load_encoder(checkpoint: Path, name: str) -> ImageEncoder:
    """The model in evaluation mode, float32, without its classifier.

    The weights of a classifier, of whatever size, are left out. Each other weight must be there, in
    its shape. timm reads them as it reads those that it publishes, but resizes nothing. InputError
    for the first weight that differs.
    """
    # The names of the file become those of the model.
    skeleton = _skeleton(name)
    saved, place = _find_weights(read_weights(checkpoint), name, checkpoint)
    saved = _without_prefixes(saved, skeleton, checkpoint, place)
    _check_trained_alone(saved, skeleton, name, checkpoint)

    classifier = _classifier(skeleton)
    of_features = {key: value for key, value in saved.items() if not _is_of(key, classifier)}
    _check_shapes(of_features, skeleton, name, checkpoint)
    check_finite(of_features, str(checkpoint))

    # timm reads whole models: its strict check needs a classifier too, which is removed below.
    zeros = {
        key: torch.zeros(value.shape)
        for key, value in skeleton.state_dict().items()
        if _is_of(key, classifier)
    }
    model: Any
    try:
        model = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": of_features | zeros}
        )
    # Each family of models has its own reader, which raises whatever it runs into.
    except Exception as error:
        difference = _difference(of_features, skeleton, classifier)
        reason = difference or " ".join(str(error).split())[:300]
        raise InputError(
            f"{checkpoint} does not hold the weights of timm's {name}: {reason}; set backbone to "
            "the model that they are of, or download.weights_file to the file of this one"
        ) from error

    model.reset_classifier(0)
    return PooledModel(model, model.pretrained_cfg).eval().requires_grad_(False)


def _find_weights(saved: Any, name: str, checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """The weights by name, and where in the file they are, such as `['state_dict']`.

    Training scripts put them in different places.
    """
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
    """How to make a file of the weights alone, where the file also holds other objects."""
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
    """The weights by their names in the model: wrappers put a prefix, or several, before them.

    `place` is where the file holds them.
    """
    model_names = skeleton.state_dict().keys()
    removed = ""

    # Wrappers may be nested: each turn removes one prefix.
    while not saved.keys() & model_names and (prefix := _prefix(saved)):
        without_prefix = [key for key in saved if not key.startswith(prefix)]
        if without_prefix:
            n_with_prefix = len(saved) - len(without_prefix)
            raise InputError(
                f"{checkpoint}: {n_with_prefix} names of weights begin with {prefix!r} and "
                f"{without_prefix[0]!r} does not: if you trust the file, write those alone into a "
                "new one: torch.save({name: value for name, value in "
                f"torch.load('old.pt', weights_only=False){place}.items() "
                f"if name.startswith({removed + prefix!r})}}, 'new.pt')"
            )
        saved = {key.removeprefix(prefix): value for key, value in saved.items()}
        removed += prefix

    if removed:
        print(f"{checkpoint}: {removed!r} is taken off the beginning of each weight's name")
    return saved


def _prefix(saved: Mapping[str, Tensor]) -> str | None:
    """The prefix with which at least half of the names begin."""
    for prefix in PREFIXES:
        if 2 * sum(key.startswith(prefix) for key in saved) >= len(saved):
            return prefix
    return None


def _check_trained_alone(
    saved: Mapping[str, Tensor], skeleton: nn.Module, name: str, checkpoint: Path
) -> None:
    """InputError where the weights are those of a part of another model.

    Pictures and activations are then those of that model, and timm knows only its own.
    """
    as_a_part = {key for key in saved if key.startswith(PART)}
    if as_a_part and not saved.keys() & skeleton.state_dict().keys():
        raise InputError(
            f"{checkpoint}: {len(as_a_part)} of {len(saved)} names of weights begin with {PART!r}: "
            f"{name} was trained on as a part of another model, and timm does not know with which "
            "pictures and activations; for AligNet's SigLIP2 set backbone to siglip2_vitb16 and "
            "alignment to alignet, and for another model add an entry "
            "as docs/adding.md tells"
        )


@functools.lru_cache(maxsize=8)
def _skeleton(name: str) -> Any:
    """The model with shapes and without values: it takes no memory, and draws no random weights."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def _classifier(skeleton: Any) -> set[str]:
    """The modules of the classifier, such as `head`: `reset_classifier` removes them."""
    headless = copy.deepcopy(skeleton)
    headless.reset_classifier(0)
    removed = set(skeleton.state_dict()) - set(headless.state_dict())
    return {name.rpartition(".")[0] for name in removed}


def _is_of(key: str, modules: set[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)


def _difference(saved: Mapping[str, Tensor], skeleton: Any, classifier: set[str]) -> str:
    """Which weights are missing or too many, in words; "" where none is."""
    expected = [key for key in skeleton.state_dict() if not _is_of(key, classifier)]
    lacking = [key for key in expected if key not in saved]
    surplus = [key for key in saved if key not in expected]
    parts = []
    if lacking:
        parts.append(f"it lacks {len(lacking)} of {len(expected)}, the first is {lacking[0]}")
    if surplus:
        parts.append(f"it has {len(surplus)} that the model has not, the first is {surplus[0]}")
    return ", and ".join(parts)


def _check_shapes(saved: Mapping[str, Tensor], skeleton: Any, name: str, checkpoint: Path) -> None:
    """InputError where a weight has another size than the model's: timm would resize some."""
    expected = {key: value.shape for key, value in skeleton.state_dict().items()}
    for key, value in saved.items():
        shape = expected.get(_OTHER_NAMES.get(key, key))
        if shape is not None and not _same_size(value.shape, shape):
            raise InputError(
                f"{checkpoint}: the weight {key}: expected {tuple(shape)}, which timm's {name} "
                f"has, got {tuple(value.shape)}; {_how_to_fit(saved, key, name)}"
            )


def _same_size(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether the values fit without resizing."""
    if math.prod(shape) == math.prod(expected):
        return True

    # Positions may count tokens such as CLS or not: timm splits these off. The grid is what counts.
    are_positions = len(shape) == len(expected) == 3 and shape[-1] == expected[-1]
    return are_positions and math.isqrt(shape[1]) == math.isqrt(expected[1])


def _how_to_fit(saved: Mapping[str, Tensor], key: str, name: str) -> str:
    """Which model has these weights, or how timm makes the one called `key` fit."""
    saved_shapes = {name: value.shape for name, value in saved.items()}
    stem = re.sub(r"_\d+$", "", name.partition(".")[0])
    for candidate in timm.list_models(f"{stem}*"):
        skeleton = _skeleton(candidate)
        classifier = _classifier(skeleton)
        shapes = {
            name: value.shape
            for name, value in skeleton.state_dict().items()
            if not _is_of(name, classifier)
        }
        if shapes == saved_shapes:
            return f"they fit timm/{candidate}: set backbone to that"

    if "pos_embed" in key or "position" in key:  # trained on pictures of another size
        return (
            "have timm resize the positions, if that is wanted: "
            f"torch.save(timm.create_model('{name}', pretrained=True, num_classes=0, "
            "pretrained_cfg_overlay={'file': 'old.pt'}).state_dict(), 'new.pt')"
        )
    return "set backbone to the model that they are of"


def make_random(name: str, file: str, folder: Path) -> None:
    """Write random weights in timm's layout, so large that embeddings of images differ."""
    model = timm.create_model(name, pretrained=False)
    generator = torch.Generator().manual_seed(20220)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5

    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with replacing(folder / file) as temporary:
        temporary.write_bytes(safetensors.torch.save(weights))
