"""An image encoder made ready for one pass over many images: the same function of the images, in less time.

- With tokens="cls", the deepest requested block computes queries and the MLP for the CLS token only.
- The linear layers compute in `precision`; the residual stream, the LayerNorms and the patch embedding stay float32,
  which costs nothing and brings a bfloat16 pass closer to float32 than autocast or bfloat16 throughout.
- On a CPU with AVX-512, oneDNN lays the weights out for its matrix product once, and computes a GELU with the product;
  bfloat16 attention is three plain steps there, which are quicker than torch's fused ones.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block as Layer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.images.models.vit import ImageEncoder, Tokens
from pipeline.sections import Block


def accelerate(
    encoder: ImageEncoder,
    blocks: Sequence[Block],
    tokens: Tokens,
    precision: Literal["float32", "bfloat16"],
    device: torch.device,
) -> None:
    """Change the encoder, still on the CPU, in place: for these blocks and tokens on this device and no others."""
    encoder.arithmetic = getattr(torch, precision)
    deepest = max(encoder.n_blocks if block == "last" else block for block in blocks)
    packed = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    for vit, with_patches in ((each.vit, each.with_patches) for each in encoder.vits):
        last = cast(Layer, vit.blocks[deepest - 1])
        attention = cast(Attention, last.attn)
        plain = isinstance(attention.q_norm, nn.Identity) and attention.qkv.bias is not None
        if plain and tokens == "cls" and not with_patches:
            vit.blocks[deepest - 1] = _ClsLayer(last)
        for parent in list(vit.blocks.modules()):
            if isinstance(parent, Attention) and packed and precision == "bfloat16":
                vars(parent)["fused_attn"] = False  # timm declares it final
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    gelu = (
                        packed
                        and isinstance(parent, Mlp)
                        and name == "fc1"
                        and type(parent.act) is nn.GELU
                    )
                    setattr(parent, name, _Linear(child, getattr(torch, precision), packed, gelu))
                    if gelu:
                        parent.act = nn.Identity()
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, also in the patch embedding


class _Linear(nn.Module):
    """A linear layer in another precision, with the GELU that follows it if `gelu`: (..., in) -> (..., out)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, packed: bool, gelu: bool) -> None:
        super().__init__()
        self.dtype, self.packed = dtype, packed
        self.activation: tuple[str, list[float], str] = (
            ("gelu", [], "none") if gelu else ("none", [], "")
        )
        weight = linear.weight.to(dtype)
        if packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("bias", linear.bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)
        return F.linear(x, self.weight, self.bias)


class _ClsLayer(nn.Module):
    """A transformer block of which only the CLS token is wanted: (B, L, D) -> (B, 1, D).

    All tokens give keys and values; the queries of the others, and what follows for them, are left out.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        attention = cast(Attention, layer.attn)
        self.layer, width = layer, attention.qkv.in_features
        self.query = _rows(attention.qkv, slice(None, width))
        self.key_value = _rows(attention.qkv, slice(width, None))
        del attention.qkv

    def forward(self, x: Tensor) -> Tensor:
        layer, attention = self.layer, cast(Attention, self.layer.attn)
        heads = attention.num_heads
        normed = layer.norm1(x)
        # (B, heads, 1, D / heads)
        query = self.query(normed[:, :1]).unflatten(2, (heads, -1)).transpose(1, 2)
        key, value = self.key_value(normed).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        # (B, 1, D)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x[:, :1] + layer.ls1(attention.proj(seen))
        return x + layer.ls2(layer.mlp(layer.norm2(x)))


def _rows(linear: nn.Linear, rows: slice) -> nn.Linear:
    part = nn.Linear(linear.in_features, len(linear.bias[rows]))
    part.load_state_dict({"weight": linear.weight[rows], "bias": linear.bias[rows]})
    return part.requires_grad_(False)
