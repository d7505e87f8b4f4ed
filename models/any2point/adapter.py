"""The any-to-3D guided adapter that stands behind every frozen block.

B clouds, N tokens without the class token, C channels, V views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.any2point.cells import CellNorm, Cells, cell_max, cell_mean
from models.layers.attention.dense import check_heads, dense_attention
from models.layers.bottleneck import Bottleneck


class LocalAttention(nn.Module):
    """Narrow attention among the tokens of a cell, on normalised tokens. One for each view serves all blocks."""

    def __init__(self, dim: int, inner: int, num_heads: int):
        super().__init__()
        check_heads(inner, num_heads, "local_dim", "local_heads")
        self.inner, self.num_heads = inner, num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * inner), nn.Linear(inner, dim)

    def forward(self, x: Tensor, cells: Cells) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, inner / H)
        query = query * self.num_heads**-0.5  # the published scale is that of the whole width, not of a head
        hidden = torch.zeros_like(cells.same, dtype=query.dtype).masked_fill(~cells.same, -torch.inf)[:, None]
        return self.proj(dense_attention(query, key, value, hidden).transpose(1, 2).flatten(2))


class GuidedAdapter(nn.Module):
    """Tokens gather per cell of every view; views that agree with the gathering per voxel count more.

    scale: of the bottleneck beside the MLP. weight: of what the views add.
    join_max: maximum beside mean over a cell of a view. count_empty: cells of a view if the empty ones shall enter the
    statistics of its norm as rows of zeros, as published.
    """

    def __init__(
        self,
        dim: int,
        num_views: int,
        hidden: int,
        dropout: float,
        scale: float,
        weight: float,
        join_max: bool,
        count_empty: int | None = None,
    ):
        super().__init__()
        self.scale, self.weight, self.join_max, self.count_empty = scale, weight, join_max, count_empty
        self.bottleneck = Bottleneck(dim, hidden, dropout, residual=False)
        self.voxel_norm = CellNorm(dim)
        self.view_norms = nn.ModuleList(CellNorm(dim) for _ in range(num_views))

    def forward(self, x: Tensor, fed: Tensor, local: Sequence[nn.Module], views: Cells, voxel: Cells) -> Tensor:
        """x after attention and what the MLP adds, both (B, 1 + N, C) -> (B, 1 + N, C)."""
        x = x + fed + self.scale * self.bottleneck(fed)
        first, tokens = x[:, :1], x[:, 1:]
        guide = self.of_voxels(tokens, voxel)
        seen = [self.of_view(i, tokens, module, views.view(i)) for i, module in enumerate(local)]
        trust = torch.stack([(F.cosine_similarity(view, guide, dim=-1) + 1) / 2 for view in seen], dim=-1)
        trust = trust / trust.sum(dim=-1, keepdim=True).clamp(min=1e-6)  # (B, N, V)
        for i, view in enumerate(seen):
            tokens = tokens + self.weight * trust[..., i : i + 1].to(view.dtype) * view
        return torch.cat([first, tokens], dim=1)

    def of_voxels(self, tokens: Tensor, voxel: Cells) -> Tensor:
        """(B, N, C) -> (B, N, C), equal within a voxel."""
        return F.gelu(self.voxel_norm(cell_max(tokens, voxel) + cell_mean(tokens, voxel), voxel))

    def of_view(self, index: int, tokens: Tensor, local: nn.Module, cells: Cells) -> Tensor:
        """(B, N, C) -> (B, N, C), equal within a cell of the view."""
        tokens = tokens + local(tokens, cells)
        gathered = cell_mean(tokens, cells)
        if self.join_max:
            gathered = gathered + cell_max(tokens, cells)
        return F.gelu(self.view_norms[index](gathered, cells, self.count_empty))
