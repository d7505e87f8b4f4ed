"""What SA3D needs of a network that rebuilds hidden patches: the interface of a backbone.

A third backbone has these methods and nothing else to do: SA3D never asks which network it holds. `Groups` is whatever
a backbone makes of clouds without weights, so that student and teachers share it.
B clouds, N points, G patches that can be hidden, V visible, M hidden, C channels; R rebuilt patches with P points
(those of the batch together; they may be finer than the patches that are hidden).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.masking import MaskSampler

Groups = Any


@dataclass(frozen=True)
class View:
    """What a backbone makes of clouds whose patches are partly hidden."""

    visible: Tensor  # (B, V) numbers of the patches, ascending
    hidden: Tensor  # (B, M)
    encoded: Tensor  # (B, V, C) tokens of the visible patches
    decoded: Tensor  # (B, M, C) the decoder's tokens of the hidden patches
    prediction: Tensor  # (..., P, 3) rebuilt points, relative to the centre of their patch
    target: Tensor  # (..., K, 3) the true ones
    error: Tensor  # (R,) Chamfer distance of each rebuilt patch


class Backbone(Protocol):
    """A module with these methods; SA3D's student, its average and its frozen teacher are three of them."""

    num_features: int  # C
    num_heads: int
    mask: MaskSampler  # what the network draws when it is trained alone
    mask_token: nn.Parameter

    def group(self, points: Tensor) -> Groups:
        """(B, N, 3) -> patches, without weights."""

    def centers(self, groups: Groups) -> Tensor:
        """Centres of the patches that can be hidden (B, G, 3)."""

    def tokens(self, groups: Groups) -> Tensor:
        """Nothing hidden: tokens of all patches (B, G, C)."""

    def rebuild(self, groups: Groups, mask: Tensor, num_masked: int) -> View:
        """The masked auto-encoder's pass; `mask` (B, G), True = hidden."""

    def patch_error(self, groups: Groups, view: View, error: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of the rebuilt patches (R,) as errors of the hidden ones (B, M), and which of these are known."""

    def redecoded_error(self, groups: Groups, view: View, complete: Tensor) -> Tensor:
        """This network's decoder on the decoded tokens of `view`, against the same on `complete` tokens of everything
        (B, G, C): Chamfer distance of each rebuilt patch (R,)."""

    def decoder_position(self, center: Tensor) -> Tensor:
        """(B, L, 3) -> what the decoder adds to tokens there (B, L, C)."""

    def rebuilding(self) -> Iterable[nn.Module]:
        """The parts that nothing but rebuilt points trains."""

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C)."""

    def reconstruct(self, points: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Points that the network saw, and those it rebuilt."""

    @staticmethod
    def rename(key: str) -> str:
        """A tensor's name in official checkpoints -> our name, `predictor. ...` for what only SA3D has."""


ONLY_OF_SA3D = ("predictor.", "average.", "teacher.", "projection.")


def backbone_key(key: str) -> str | None:
    """The name of a tensor of an SA3D run in its backbone; None for what the backbone does not have."""
    return None if key.startswith(ONLY_OF_SA3D) else key.removeprefix("student.")
