"""Equal steps: weights and activations rounded to 2^bits levels, trained straight through the rounding (HAQ, PACT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.quant.clip import Clip, thresholds
from utils.errors import UserError

RELU6 = 6.0  # activations are cut here at the latest


class StraightThrough(torch.autograd.Function):
    """(round((clamp(x) - low) / scale)) * scale + low; the gradient passes as if nothing had been done."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, low: Tensor, first: int, last: int) -> Tensor:
        return ((x - low) / scale).round().clamp(first, last) * scale + low

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None, None, None


class LinearWeight(nn.Module):
    """Parametrization: weight -> weight of 2^bits levels, `first` to `last`, a step `scale` apart, from `low` on."""

    def __init__(self, weight: Tensor, bits: int, symmetric: bool, per_channel: bool, clip: Clip):
        super().__init__()
        self.bits = bits
        rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
        shape = (len(rows),) + (1,) * (weight.ndim - 1) if per_channel else (1,) * weight.ndim
        self.first, self.last = 0, 2**bits - 1
        if symmetric and bits == 1:  # two levels cannot hold a zero: plus and minus the mean size
            size = rows.abs().mean(dim=1)
            low, scale = -size, 2 * size
        elif symmetric:
            self.first, self.last = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
            top = thresholds(rows, bits, clip, self.last)
            low, scale = torch.zeros_like(top), top / self.last
        else:
            low, high = rows.amin(dim=1), rows.amax(dim=1)
            scale = (high - low) / self.last
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # all weights equal: one level, no division by 0
        self.scale: Tensor
        self.low: Tensor
        self.register_buffer("scale", scale.reshape(shape).to(weight))
        self.register_buffer("low", low.reshape(shape).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return StraightThrough.apply(weight, self.scale, self.low, self.first, self.last)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        codes = ((weight.detach() - self.low) / self.scale).round().clamp(self.first, self.last) - self.first
        tables = {"codes": codes.to(torch.uint8), "scale": self.scale}
        return tables if self.first < 0 else tables | {"low": self.low}


class ActivationRange(nn.Module):
    """Rounds the input of a layer; how far it reaches is learned, and first measured with `calibrating` set.

    Symmetric: [0, high] where all that was measured is positive, else [-high, high] with a zero. Asymmetric: [low,
    high], both learned.
    """

    def __init__(self, bits: int, symmetric: bool = True, clip: Clip = "mse", cap: float = RELU6):
        super().__init__()
        self.bits, self.symmetric, self.clip, self.cap = bits, symmetric, clip, cap
        self.calibrating = False
        self.high = nn.Parameter(torch.tensor(RELU6))
        self.low = nn.Parameter(torch.tensor(0.0), requires_grad=not symmetric)
        self.signed: Tensor
        self.register_buffer("signed", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating:
            self.measure(x.detach().float())
            return x
        low, high = -self.signed * self.high if self.symmetric else self.low, self.high
        cut = torch.minimum(torch.maximum(x.float(), low), high)
        with torch.no_grad():
            scale = (high - low).clamp(min=1e-8) / self.steps()
            start = self.signed * 0 if self.symmetric and self.bits > 1 else low
        last = 2.0**self.bits
        return StraightThrough.apply(cut, scale, start, -last, last).to(x.dtype)

    def steps(self) -> Tensor:
        """Between the ends: 2^bits - 1, one less with a zero in the middle."""
        full = 2**self.bits - 1
        return full - self.signed if self.symmetric and self.bits > 1 else torch.full_like(self.signed, full)

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        if not self.symmetric:
            self.low.fill_(x.min().clamp(min=-self.cap))
            self.high.fill_(x.max().clamp(max=self.cap))
            return
        signed = bool((x < 0).any())
        bits = self.bits - signed
        cut = float(thresholds(x.reshape(1, -1), bits, self.clip, max(2**bits - 1, 1)))
        self.signed.fill_(float(signed))
        self.high.fill_(min(self.cap, cut, float(x.abs().max())) or self.cap)


class Linear:
    """Rounding to equal steps. The published rules are symmetric, a layer at a time, clip `kl`.

    symmetric: steps around zero, which is one of them; else from the smallest weight to the largest. per_channel: a
    scale for every output channel. clip: see models/quant/clip.py (symmetric steps only).
    """

    def __init__(self, symmetric: bool = True, per_channel: bool = False, clip: Clip = "mse"):
        self.symmetric, self.per_channel, self.clip = symmetric, per_channel, clip

    def weight(self, weight: Tensor, bits: int, name: str = "weight") -> LinearWeight:
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{name}: holds values that are not finite; the checkpoint is damaged or its run diverged")
        return LinearWeight(weight, bits, self.symmetric, self.per_channel, self.clip)

    def activation(self, bits: int) -> ActivationRange:
        return ActivationRange(bits, self.symmetric, self.clip)

    def table_bytes(self, shape: torch.Size, bits: int) -> dict[str, int]:
        """Values of each stored table besides the codes."""
        rows = shape[0] if self.per_channel else 1
        return {"scale": rows} if self.symmetric and bits > 1 else {"scale": rows, "low": rows}
