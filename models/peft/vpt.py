"""Visual prompt tuning: learned tokens beside the patches (arXiv 2203.12119).

B clouds, L tokens, T prompts, C channels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from models.peft.base import TokenMethod, drawn, insert, stages_of, take_out, widen_bias, width_of
from utils.errors import UserError


class VPT(TokenMethod):
    """Prompts with learned positions after the patches. deep: other ones in every block, those of the block before are
    dropped; shallow: the same go through all blocks. What reads the tokens after a block sees no prompts.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Literal["shallow", "deep"] = "deep",
        num_prompts: int = 10,
        class_token: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(model, class_token)
        if num_prompts < 1:
            raise UserError(f"num_prompts: {num_prompts}; use at least 1")
        self.deep, self.number = mode == "deep", num_prompts
        self.dropout = nn.Dropout(dropout)
        stages = stages_of(model)
        sizes = [(len(stage.blocks) if self.deep else 1, num_prompts, width_of(stage)) for stage in stages]
        self.prompts = nn.ParameterList(drawn(*size) for size in sizes)
        self.positions = nn.ParameterList(drawn(*size) for size in sizes)
        self.blocks = [len(stage.blocks) for stage in stages]
        self.take_steps(model, self.step)

    def step(
        self,
        stage: int,
        index: int,
        block: nn.Module,
        x: Tensor,
        position: Tensor,
        bias: Tensor | None,
        special: int = 0,
    ) -> Tensor:
        own, length = index if self.deep else 0, x.shape[1]
        fresh = self.deep or index == 0
        prompts = self.dropout(self.prompts[stage][own]) if fresh else self.carried.pop(stage)
        x = insert(x, prompts, length) + insert(position, self.positions[stage][own], length)
        x, prompts = take_out(block(x, widen_bias(bias, self.number, length), special), self.number, length)
        if not self.deep and index + 1 < self.blocks[stage]:
            self.carried[stage] = prompts
        return x
