"""BatchNorm over the batches of all processes, on any device (torch's own refuses a CPU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils import dist


class SumOverProcesses(torch.autograd.Function):
    """Every process gets the sum; the gradient is the sum of everybody's gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return dist.all_sum(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return dist.all_sum(grad.clone())


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Statistics of (rows, C) over all processes, at least in float32; gradients flow through the exchange."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or dist.world_size() == 1:
            return super().forward(x)
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        total = SumOverProcesses.apply(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
        mean, count = total[:-1] / total[-1], total[-1]
        variance = SumOverProcesses.apply((rows - mean).square().sum(0)) / count  # two passes: no cancellation
        self._track(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        normed = (rows - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm1d in place; parameters and buffers stay the same tensors. Norms of other kinds that can
    sum over processes are told to."""
    for parent in list(model.modules()):
        if hasattr(parent, "over_processes"):
            parent.over_processes = True  # type: ignore[assignment]
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm1d:
                synced = SyncBatchNorm1d(child.num_features, child.eps, child.momentum, child.affine)
                synced._parameters.update(child._parameters)
                synced._buffers.update(child._buffers)
                synced.train(child.training)
                setattr(parent, name, synced)
    return model
