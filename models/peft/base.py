"""What every adaptation is: modules of its own, places in the backbone where they act, and what else it trains.

B clouds, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.transformer import Blocks
from utils.errors import UserError

HEAD = "head."  # parameters below it are the task's, new for every task and always trained


class Method(nn.Module):
    """One adaptation of one model. It is built for the model, acts from `attach` to `detach`, and owns what it adds.

    The model is not a part of it: only hooks and replaced callables lead from the model here, so that the tensors of
    the backbone keep their names.
    """

    mergeable = False

    def __init__(self) -> None:
        super().__init__()
        self._plan: list[Callable[[], Callable[[], object]]] = []  # each acts and returns what takes it back
        self._undo: list[Callable[[], object]] = []

    def trains(self, name: str) -> bool:
        """Whether a parameter that the backbone has already is trained too."""
        return False

    def unused(self) -> list[str]:
        """Names of own parameters that are declared, as upstream declares them, but never take part."""
        return []

    def settle(self, model: nn.Module) -> None:
        """Called when all adaptations are on the model and it is known which parameters train."""

    def official(self, key: str) -> str:
        """A key of the official code in our words; an own tensor begins with @."""
        return key

    def merge(self) -> None:
        """Write the adaptation into the weights of the backbone. Only where `mergeable`."""
        raise NotImplementedError

    def attach(self) -> None:
        """Act on the model from now on."""
        while self._plan:
            self._undo.append(self._plan.pop(0)())

    def detach(self) -> None:
        """Leave the model; what it was is put back."""
        while self._undo:
            self._undo.pop()()

    # ---------------------------------------------------------------- places to act in

    def hook(self, module: nn.Module, function: Callable) -> None:
        """function(module, inputs, output) may return another output."""
        self._plan.append(lambda: module.register_forward_hook(function).remove)

    def hook_before(self, module: nn.Module, function: Callable) -> None:
        """function(module, inputs) may return other inputs."""
        self._plan.append(lambda: module.register_forward_pre_hook(function).remove)

    def take_step(self, blocks: Blocks, step: Callable) -> None:
        """Run the blocks by `step`. One adaptation alone can."""

        def act() -> Callable[[], object]:
            if blocks.step is not None:
                raise UserError("two of the adaptations insert tokens (vpt, idpt, dapt, point_peft); use one of them")
            blocks.step = step
            return partial(setattr, blocks, "step", None)

        self._plan.append(act)

    def replace(self, parent: nn.Module, name: str, new: object) -> None:
        """Another module or function under this name."""

        def act() -> Callable[[], object]:
            own = name in parent._modules
            undo = partial(setattr, parent, name, getattr(parent, name)) if own else partial(delattr, parent, name)
            setattr(parent, name, new)
            return undo

        self._plan.append(act)


class TokenMethod(Method):
    """An adaptation that puts tokens of its own among those of the backbone, and runs the blocks for that.

    class_token: the class token and its position, which no pre-training of Point-MAE gives, are trained as well.
    """

    def __init__(self, model: nn.Module, class_token: bool = True):
        super().__init__()
        self.class_token, self.places, self.carried = class_token, Places(model), PerForward()

    def trains(self, name: str) -> bool:
        return self.class_token and name in ("cls_token", "cls_pos")

    def take_steps(self, model: nn.Module, step: Callable) -> None:
        """Run the blocks of every stage by step(number of the stage, ...)."""
        for number, stage in enumerate(stages_of(model)):
            self.take_step(stage, partial(step, number))

    def tell_head(self, model: nn.Module) -> bool:
        """Where the head reads class token and patches, let it read the tokens that `carried["out"]` holds as well."""
        if not reads_class_and_patches(model):
            return False
        self.norm = (final_norm(model),)  # in a tuple: not a part of this module
        self.wider = WiderHead(self, model, self.for_head)
        return True

    def for_head(self) -> Tensor:
        return self.norm[0](self.carried.pop("out")).mean(dim=1)


class PerForward(dict):
    """What a forward pass leaves for its later parts. It is no state: a copy starts empty."""

    def __deepcopy__(self, memo: dict) -> PerForward:
        return PerForward()


def stages_of(model: nn.Module) -> list[Blocks]:
    """The stacks of transformer blocks of the encoder, in the order in which tokens pass them."""
    encoder = getattr(model, "encoder", None)
    stages = [module for module in encoder.modules() if isinstance(module, Blocks)] if encoder is not None else []
    if not stages:
        raise UserError(f"'{type(model).__name__}' has no encoder made of transformer blocks to adapt")
    return stages


def width_of(blocks: Blocks) -> int:
    block: Any = blocks.blocks[0]
    return block.norm1.weight.shape[0]


class Places:
    """Where the patches begin: after a class token in a classifier of one scale, but not where it encodes a cloud."""

    def __init__(self, model: nn.Module):
        self.num_group = getattr(model, "num_group", None)

    def first(self, x: Tensor) -> int:
        return 0 if self.num_group is None else x.shape[1] - self.num_group


def final_norm(model: nn.Module) -> nn.Module:
    """The norm on the tokens that leave the encoder."""
    last = stages_of(model)[-1]
    found = getattr(last, "norm", None) or getattr(model, "norm", None) or model.encoder.norms[-1]  # type: ignore[union-attr, index]
    assert isinstance(found, nn.Module)
    return found


def drawn(*size: int) -> nn.Parameter:
    """New tokens, positions or places at their published start."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(size), std=0.02))


def insert(tokens: Tensor, new: Tensor, place: int) -> Tensor:
    """`new` (T, C) or (B, T, C) among tokens (B, L, C), before the one at `place`."""
    new = new.to(tokens.dtype)
    new = new.expand(len(tokens), -1, -1) if new.ndim == 2 else new
    return torch.cat([tokens[:, :place], new, tokens[:, place:]], dim=1)


def take_out(tokens: Tensor, number: int, place: int) -> tuple[Tensor, Tensor]:
    """The reverse of `insert`: the tokens without the inserted ones, and these."""
    inserted = tokens[:, place : place + number]
    return torch.cat([tokens[:, :place], tokens[:, place + number :]], dim=1), inserted


def widen_bias(bias: Tensor | None, number: int, place: int) -> Tensor | None:
    """Attention bias (B, 1, L or 1, L) for `number` more tokens at `place`, which everybody sees and which see all."""
    if bias is None:
        return None
    for dim in (-2, -1):
        if dim == -2 and bias.shape[dim] == 1:
            continue  # one row for all queries
        shape = list(bias.shape)
        shape[dim] = number
        head, tail = bias.narrow(dim, 0, place), bias.narrow(dim, place, bias.shape[dim] - place)
        bias = torch.cat([head, bias.new_zeros(shape), tail], dim=dim)
    return bias


class WiderHead:
    """Lets the classification head read one vector (B, C) more, between those of the class token and of the patches."""

    def __init__(self, method: Method, model: nn.Module, extra: Callable[[], Tensor]):
        head = model.head
        assert isinstance(head, nn.Sequential) and isinstance(head[0], nn.Linear)
        first, self.width, self.extra = head[0], head[0].in_features // 2, extra
        wider = nn.Linear(3 * self.width, first.out_features, device=first.weight.device)
        method.replace(head, "0", wider)
        method.hook_before(head, self.widen)

    def widen(self, head: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        first, last = inputs[0].split(self.width, dim=-1)
        return torch.cat([first, self.extra().to(first.dtype), last], dim=-1)


def reads_class_and_patches(model: nn.Module) -> bool:
    """Whether the head classifies [class token, one vector of the patches], as Point-MAE's does."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Sequential) or not isinstance(head[0], nn.Linear) or not hasattr(model, "cls_token"):
        return False
    return head[0].in_features == 2 * width_of(stages_of(model)[-1])


def parameter_names(module: nn.Module) -> Sequence[str]:
    return [name for name, _ in module.named_parameters()]
