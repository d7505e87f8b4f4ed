"""Adaptations that add nothing to the network: they say which of its own parameters train, and how the rest behaves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.layers.transformer import DropPath
from models.peft.base import HEAD, Method, parameter_names
from utils.errors import UserError


class LinearProbe(Method):
    """Only the head is trained. one_layer: a single linear layer in its place, instead of the head's three."""

    def __init__(self, model: nn.Module, one_layer: bool = False):
        super().__init__()
        if one_layer:
            head = getattr(model, "head", None)
            if not isinstance(head, nn.Sequential) or not isinstance(head[0], nn.Linear):
                raise UserError("one_layer: takes the place of a classifier's head, and this model has another one")
            last = [layer for layer in head if isinstance(layer, nn.Linear)][-1]
            layer = nn.Linear(head[0].in_features, last.out_features, device=last.weight.device)
            self.replace(model, "head", nn.Sequential(layer))


class BitFit(Method):
    """Every bias that the backbone has is trained (arXiv 2106.10199)."""

    def __init__(self, model: nn.Module):
        super().__init__()

    def trains(self, name: str) -> bool:
        return name.endswith(".bias") and not name.startswith(HEAD)


class Unfreeze(Method):
    """Parameters whose names contain one of these words are trained: `[cls_]`, the class token of Point-MAE, which no
    pre-training gives; `[norm]`; `[blocks.11.]`."""

    def __init__(self, model: nn.Module, parameters: Sequence[str]):
        super().__init__()
        self.words = tuple(parameters)
        for word in self.words:
            if not any(word in name for name in parameter_names(model)):
                raise UserError(f"parameters: no parameter of '{type(model).__name__}' has '{word}' in its name")

    def trains(self, name: str) -> bool:
        return any(word in name for word in self.words)


class FreezeStats(Method):
    """Frozen parts behave as in evaluation while the rest trains: BatchNorm of the backbone keeps its statistics and
    uses them; drop_path: no residual branch of the backbone is dropped. Without this entry, as upstream, BatchNorm of
    the backbone goes on adapting its statistics to the training data, and branches are dropped."""

    def __init__(self, model: nn.Module, drop_path: bool = True):
        super().__init__()
        kinds = (nn.modules.batchnorm._BatchNorm, DropPath) if drop_path else (nn.modules.batchnorm._BatchNorm,)
        encoder = getattr(model, "encoder", model)
        self.parts = [module for module in encoder.modules() if isinstance(module, kinds)]

    def train(self, mode: bool = True) -> FreezeStats:
        for module in self.parts:
            module.train(False if mode else module.training)
        return super().train(mode)

    def detach(self) -> None:
        for module in self.parts:
            module.train(self.training)
        super().detach()
