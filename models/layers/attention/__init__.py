"""Kinds of self-attention, for every transformer block of the project: `attention: {name: sim, window: 9}`.

A kind is built once a block: `attention(dim, num_heads)` gives a module from tokens (B, L, dim) to (B, L, out_dim), by
default `dim`. Its `forward(x, bias=None, special=0)` takes what is added to the scores, of a shape that spreads to
(B, heads, L, L), and how many of the first tokens are no points (a class token, prompts).
"""

from collections.abc import Callable

from torch import nn

from utils.registry import Recipes

AttentionKind = Callable[..., nn.Module]

ATTENTION = Recipes(
    "attention",
    {
        "dense": "models.layers.attention.dense:Attention",
        "sim": "models.layers.attention.sim:SimAttention",
        "lsh": "models.layers.attention.lsh:LSHAttention",
    },
    later=("dim", "num_heads", "out_dim"),
    sizes=True,
)
