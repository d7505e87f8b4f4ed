"""PCRNet as SampleNet's authors use it (arXiv 1908.07906): how is the template turned to lie on the source?

B pairs, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.point_mlp import dense_stack, pooled
from utils.errors import UserError
from utils.quaternion import multiply, rotate_cloud


class PCRNet(nn.Module):
    """forward(template, source) -> pose, and the clouds it was made from.

    iterations: how often the template, turned as estimated so far, is compared anew; published: once.
    """

    def __init__(
        self,
        bottleneck: int = 1024,
        mlp: Sequence[int] = (64, 64, 64, 128),
        head: Sequence[int] = (1024, 1024, 512, 512, 256),
        iterations: int = 1,
    ):
        super().__init__()
        if iterations < 1:
            raise UserError(f"iterations: {iterations}; use at least 1")
        self.num_features, self.iterations = bottleneck, iterations
        self.mlp = dense_stack([3, *mlp, bottleneck], norm=False)
        self.regress = dense_stack([2 * bottleneck, *head, 7], norm=False, relu_last=False)

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> features of the points (B, N, C)."""
        return self.mlp(points)

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, C)."""
        return pooled(self.mlp, points)

    def forward(self, template: Tensor, source: Tensor) -> dict[str, Tensor]:
        """(B, N, 3), (B, N', 3) -> quaternion (B, 4), translation (B, 3), raw: the last estimate before it was
        normalised (B, 4), template and source."""
        goal, moved, total, shift = self.encode(source), template, None, template.new_zeros(len(template), 3)
        for _ in range(self.iterations):
            estimate = self.regress(torch.cat([self.encode(moved), goal], dim=1)).float()
            raw = estimate[:, :4]
            turn = F.normalize(raw, dim=1)
            total, shift = turn if total is None else multiply(turn, total), shift + estimate[:, 4:]
            moved = rotate_cloud(total, template)
        assert total is not None
        return {"quaternion": total, "translation": shift, "raw": raw, "template": template, "source": source}

    @staticmethod
    def key_map(key: str) -> str | None:
        """Names of the official code in ours: feat.conv1..5 and fc1..6."""
        name, _, rest = key.removeprefix("feat.").partition(".")
        for official, ours in (("conv", "mlp"), ("fc", "regress")):
            number = name.removeprefix(official)
            if number != name and number.isdecimal():
                return f"{ours}.{int(number) - 1}.linear.{rest}"
        return key
