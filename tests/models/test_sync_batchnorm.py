"""Two processes with synchronised BatchNorm do what one process does with both batches."""

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from models.any2point.cells import CellNorm, cells_of
from models.layers.sync_batchnorm import SyncBatchNorm1d, convert_sync_batchnorm

ROWS = (5, 3)  # of each process


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.ReLU(), nn.Linear(4, 2)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(sum(ROWS), 3, generator=generator, dtype=torch.float64),
        torch.randn(sum(ROWS), 2, generator=generator, dtype=torch.float64),
    )


def train(model: nn.Module, points: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Two steps of accumulation; outputs, gradients and the state afterwards."""
    points = points.clone().requires_grad_()
    for _ in range(2):
        out = model.train()(points)
        (out * weight).sum().backward()
    assert points.grad is not None
    gradients = {f"grad/{key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "input_grad": points.grad, **gradients, **model.state_dict()}


def over_cells(points: Tensor, synced: bool) -> Tensor:
    """A norm over groups of tokens, empty groups counted: its output, then its statistics."""
    norm = CellNorm(3).double().train()
    if synced:
        convert_sync_batchnorm(nn.Sequential(norm))
    tokens = points[:, None] * torch.arange(1.0, 5.0)[:, None]  # (B, 4, 3)
    out = norm(tokens, cells_of(torch.tensor([0, 1, 2, 3]).expand(len(points), 4)), total=6)
    return torch.cat([out.flatten(0, 1), norm.running_mean[None], norm.running_var[None]])


def process(rank: int, folder: str) -> None:
    minute = datetime.timedelta(minutes=1)
    dist.init_process_group("gloo", f"file://{folder}/store", minute, rank=rank, world_size=len(ROWS))
    try:
        points, weight = (tensor.split(ROWS)[rank] for tensor in data())
        result = train(convert_sync_batchnorm(network()), points, weight)
        rows = (points + 100).repeat(1, 2)[:, :4].bfloat16()
        result["cells"] = over_cells(points, synced=True)
        result["half"] = SyncBatchNorm1d(4, affine=False, momentum=None)(rows)
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one_large_batch(tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=process, args=(1, str(tmp_path)))
    other.start()
    process(0, str(tmp_path))
    other.join(60)
    assert other.exitcode == 0
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(ROWS))]
    expected = train(network(), *data())
    halves = torch.cat([share.pop("half") for share in shares])
    assert halves.dtype == torch.bfloat16
    cells = [share.pop("cells") for share in shares]
    found = torch.cat([*(part[:-2] for part in cells), cells[0][-2:]])
    torch.testing.assert_close(found, over_cells(data()[0], synced=False), rtol=1e-6, atol=1e-6)
    rows = (data()[0] + 100).repeat(1, 2)[:, :4].bfloat16()
    torch.testing.assert_close(halves.float(), nn.BatchNorm1d(4, affine=False)(rows.float()), rtol=0.02, atol=0.02)
    for key, value in expected.items():
        if key in ("out", "input_grad"):
            found = torch.cat([share[key] for share in shares])
        elif key.startswith("grad/"):
            found = torch.stack([share[key] for share in shares]).sum(dim=0)
        else:
            found = shares[0][key]
            assert torch.equal(found, shares[1][key]), key
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6, msg=f"{key} differs")


def test_alone_it_is_batchnorm() -> None:
    assert not dist.is_initialized()
    plain, synced = train(network(), *data()), train(convert_sync_batchnorm(network()), *data())
    assert plain.keys() == synced.keys()
    assert all(torch.equal(value, synced[key]) for key, value in plain.items())


def test_conversion_keeps_parameters_modes_and_keys() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ModuleDict({"inner": nn.BatchNorm1d(4, eps=0.1, momentum=0.2)})).eval()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    convert_sync_batchnorm(model)
    layer = model[1]["inner"]  # type: ignore[index]
    assert isinstance(layer, SyncBatchNorm1d) and (layer.eps, layer.momentum, layer.training) == (0.1, 0.2, False)
    assert all(one is other for one, other in zip(parameters, model.parameters()))
    assert list(model.state_dict()) == keys
    assert convert_sync_batchnorm(model)[1]["inner"] is layer  # type: ignore[index]
