"""Several processes under `torchrun`: set-up, rank, reductions. With one process everything is a no-op."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def init_from_environment(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment, if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=10))


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched_rank() -> int:
    """The rank that torchrun gave this process, known before the processes have met."""
    return int(os.environ.get("RANK", "0"))


def all_sum(value: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def any_process(flag: bool, device: torch.device) -> bool:
    """True where the flag is set in at least one process."""
    return bool(all_sum(torch.tensor(float(flag), device=device)) > 0) if dist.is_initialized() else flag


def gather_objects(value: Any) -> list:
    """One value of every process, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first one."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
