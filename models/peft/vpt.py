"""Visual prompt tuning: learned tokens beside the patches (arXiv 2203.12119).

B clouds, L tokens, T prompts, C channels.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.peft.base import (
    Method,
    PerForward,
    insert,
    is_class_token,
    stages_of,
    take_out,
    widen_bias,
    width_of,
)
from utils.errors import UserError


class VPT(Method):
    """Prompts with learned positions after the patches. deep: other ones in every block, those of the block before are
    dropped; shallow: the same go through all blocks. What reads the tokens after a block sees no prompts.

    class_token: the class token and its position, which no pre-training of Point-MAE gives, are trained as well.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Literal["shallow", "deep"] = "deep",
        num_prompts: int = 10,
        class_token: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if num_prompts < 1:
            raise UserError(f"num_prompts: {num_prompts}; use at least 1")
        self.deep, self.number, self.class_token = mode == "deep", num_prompts, class_token
        self.dropout = nn.Dropout(dropout)
        stages = stages_of(model)
        sizes = [(len(stage.blocks) if self.deep else 1, num_prompts, width_of(stage)) for stage in stages]
        self.prompts = nn.ParameterList(nn.init.trunc_normal_(torch.empty(size), std=0.02) for size in sizes)
        self.positions = nn.ParameterList(nn.init.trunc_normal_(torch.empty(size), std=0.02) for size in sizes)
        self.carried, self.blocks = PerForward(), [len(stage.blocks) for stage in stages]
        for number, stage in enumerate(stages):
            self.take_step(stage, partial(self.step, number))

    def trains(self, name: str) -> bool:
        return self.class_token and is_class_token(name)

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
