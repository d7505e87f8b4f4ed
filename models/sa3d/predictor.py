"""How hard is each patch? A decoder of its own and a head that gives one number a token.

B clouds, L tokens, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention.dense import check_heads
from models.layers.transformer import Init, Transformer, init_xavier


class DifficultyPredictor(nn.Module):
    """Tokens and what the decoder adds for their places -> predicted difficulty."""

    def __init__(self, dim: int, depth: int, num_heads: int, hidden: int, drop_path_rate: float, init: Init):
        super().__init__()
        check_heads(dim, num_heads, by="predictor_num_heads")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder = Transformer(dim, depth, num_heads, drop_path_rate=drop_path_rate)
        self.head = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, dim)
        )
        if init == "trunc_normal":
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            self.decoder.apply(init_xavier)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(B, L, C) twice -> (B, L): the mean of the head's C outputs, for which only the mean weights are needed."""
        x = self.head[:3](self.decoder(tokens, position).flatten(0, 1))  # (B * L, hidden)
        last = self.head[3]
        assert isinstance(last, nn.Linear)
        difficulty = F.linear(x, last.weight.mean(dim=0, keepdim=True), last.bias.mean(dim=0, keepdim=True))
        return difficulty.view(tokens.shape[:2]).float()
