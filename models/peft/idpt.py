"""IDPT: one prompt that is computed from the patches of the cloud itself (arXiv 2304.07221).

B clouds, G patches, K neighbours, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.peft.base import TokenMethod, drawn, insert, stages_of, take_out, widen_bias, width_of
from utils.errors import UserError


class IDPT(TokenMethod):
    """Before block `layer` (-1: the last) of the last stage, a small graph network makes a prompt of the patch tokens;
    it stands after the class token from there on, and Point-MAE's classifier reads it too.

    train_position: upstream leaves the prompt's position at its random start; so does false.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: int = -1,
        k: int = 20,
        num_layers: int = 3,
        class_token: bool = True,
        train_position: bool = True,
    ):
        super().__init__(model, class_token)
        stage, width = stages_of(model)[-1], width_of(stages_of(model)[-1])
        depth = len(stage.blocks)
        if not -depth <= layer < depth:
            raise UserError(f"layer: {layer}; there are {depth} blocks")
        self.layer, self.depth = layer % depth, depth
        self.network = DynamicPrompt(width, k, num_layers)
        self.position = drawn(1, width).requires_grad_(train_position)
        self.take_step(stage, self.step)
        self.tell_head(model)

    def step(
        self, index: int, block: nn.Module, x: Tensor, position: Tensor, bias: Tensor | None, special: int = 0
    ) -> Tensor:
        if index < self.layer:
            return block(x + position, bias, special)
        place = self.places.first(x)
        prompt = self.network(x[:, place:]) if index == self.layer else self.carried.pop("prompt")
        x = insert(x, prompt, place) + insert(position, self.position, place)
        x, prompt = take_out(block(x, widen_bias(bias, 1, place), special + 1), 1, place)
        self.carried["prompt" if index + 1 < self.depth else "out"] = prompt
        return x


class DynamicPrompt(nn.Module):
    """EdgeConv layers over the nearest tokens, all their outputs joined, the maximum over the tokens: (B, 1, C)."""

    def __init__(self, width: int, k: int, num_layers: int):
        super().__init__()
        if k < 1 or num_layers < 1:
            raise UserError(f"k {k} and num_layers {num_layers} must be at least 1")
        self.layers = nn.ModuleList(EdgeConv(width, k) for _ in range(num_layers))
        self.join = nn.Linear(num_layers * width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs = []
        for layer in self.layers:
            tokens = layer(tokens)
            outputs.append(tokens)
        joined = self.join(torch.cat(outputs, dim=-1))  # (B, G, C)
        return F.leaky_relu(normed(self.norm, joined), 0.2).amax(dim=1, keepdim=True)


class EdgeConv(nn.Module):
    """Maximum over the K nearest of layer([x_j - x_i, x_i])."""

    def __init__(self, width: int, k: int):
        super().__init__()
        self.k = k
        self.linear = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, C) -> (B, G, C)."""
        index = ops.knn(x.detach().float(), x.detach().float(), min(self.k, x.shape[1]))[1]  # (B, G, K)
        of_difference, of_own = self.linear.weight.chunk(2, dim=1)
        # linear, so that it is applied before the neighbours are gathered
        edges = ops.gather_points(F.linear(x, of_difference), index)
        edges = edges + F.linear(x, of_own - of_difference)[:, :, None]  # (B, G, K, C)
        return F.leaky_relu(normed(self.norm, edges), 0.2).amax(dim=2)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm over everything but the channels (..., C)."""
    return norm(x.flatten(0, -2)).view(x.shape)
