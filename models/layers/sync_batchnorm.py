"""BatchNorm over the batches of all processes, on any device (torch's own refuses a CPU)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Statistics of (rows, C) over all processes; gradients flow through the exchange."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        rows = x.float()
        count = torch.full((1,), float(len(rows)), device=x.device)
        total = all_reduce(torch.cat([rows.sum(0), count]))
        mean, count = total[:-1] / total[-1], total[-1]
        variance = all_reduce((rows - mean).square().sum(0)) / count  # two passes: no cancellation
        self._track(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        normed = (rows - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normed.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum or 0.1)
        self.running_var.lerp_(variance, self.momentum or 0.1)


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm1d in place; parameters and buffers stay the same tensors."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm1d:
                synced = SyncBatchNorm1d(child.num_features, child.eps, child.momentum, child.affine)
                synced._parameters.update(child._parameters)
                synced._buffers.update(child._buffers)
                synced.train(child.training)
                setattr(parent, name, synced)
    return model
