"""Point-BERT's classifier: Point-MAE's, with a patch encoder that is widened by one layer, and a head without BatchNorm
(arXiv 2111.14819). B clouds, G patches, K points a patch, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.patch_embed import PatchEmbed
from models.layers.transformer import Init, init_trunc_normal
from models.point_mae import PointMAEClassifier, rename


class WidenedPatchEmbed(PatchEmbed):
    """The mini-PointNet to the width that a dVAE pre-trained, then a linear layer to that of the tokens."""

    def __init__(self, embed_dim: int, token_width: int, patch_width: int):
        super().__init__(token_width, patch_width)
        self.reduce = nn.Linear(token_width, embed_dim)  # upstream's name, although it widens

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C)."""
        return self.reduce(super().forward(neighborhood))


class PointBERTClassifier(PointMAEClassifier):
    """Class token and its position come with the pre-trained weights, unlike Point-MAE's."""

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
        token_width: int = 256,
        patch_width: int = 256,
        head_dim: int = 256,
        head_dropout: float = 0.5,
        skip_near_origin: bool = True,
        init: Init = "trunc_normal",
    ):
        super().__init__(
            num_classes,
            embed_dim,
            depth,
            num_heads,
            drop_path_rate,
            num_group,
            group_size,
            patch_width,
            skip_near_origin=skip_near_origin,
            init=init,
        )
        self.encoder.embed = WidenedPatchEmbed(embed_dim, token_width, patch_width)
        if init == "trunc_normal":
            self.encoder.embed.apply(init_trunc_normal)
        self.head = nn.Sequential(
            nn.Linear(2 * embed_dim, head_dim), nn.ReLU(), nn.Dropout(head_dropout), nn.Linear(head_dim, num_classes)
        )
        nn.init.zeros_(self.cls_token)
        nn.init.normal_(self.cls_pos)

    @staticmethod
    def key_map(key: str) -> str | None:
        """Ours, official classifiers, and official pre-training, of which the query transformer alone is needed."""
        if key.startswith(OF_PRETRAINER):
            return None
        key = key.removeprefix("transformer_q.")
        return key.replace("reduce_dim.", "encoder.embed.reduce.") if key.startswith("reduce_dim.") else rename(key)


OF_PRETRAINER = (
    *(f"transformer_q.{name}" for name in ("mask_token", "lm_head.", "cls_head.")),
    "transformer_k.",
    "dvae.",
    "queue",
)
