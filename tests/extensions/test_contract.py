"""What all operations promise: one list of names, no look at values, one graph for the compiler."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from extensions import ops

pytestmark = pytest.mark.usefixtures("point_ops")


def interpolate(x: Tensor, y: Tensor) -> Tensor:
    distances, indices = ops.three_nn(x, y)
    return ops.three_interpolate(y, indices, ops.three_nn_weights(distances, "inverse_distance"))


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "farthest_point_sample": lambda x, y: ops.farthest_point_sample(x, 4, skip_near_origin=True),
    "farthest_point_sample_mean": lambda x, y: ops.farthest_point_sample(x, 4, start="mean"),
    "knn": lambda x, y: ops.knn(x, y, 3),
    "ball_query": lambda x, y: ops.ball_query_count(x, y, 1.0, 3),
    "group": lambda x, y: ops.group(x, 4, 3),
    "normalize": lambda x, y: ops.normalize(x),
    "interpolate": interpolate,
    "chamfer_distance": lambda x, y: ops.chamfer_distance(x, y, norm="l1", ignore_zeros=True),
    "earth_mover_distance": lambda x, y: ops.earth_mover_distance(x, y),
}


def test_every_public_name_exists() -> None:
    assert sorted(ops.__all__) == ops.__all__ and all(hasattr(ops, name) for name in ops.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_reads_shapes_only(name: str) -> None:
    """On the meta device there are no values to look at or to wait for."""
    described = []
    for device in ("cpu", "meta"):
        out = CALLS[name](torch.rand(2, 9, 3, device=device), torch.rand(2, 7, 3, device=device))
        described.append([(t.shape, t.dtype) for t in ((out,) if isinstance(out, Tensor) else out)])
    assert described[0] == described[1]


@pytest.mark.parametrize("name", CALLS)
def test_compiles_to_one_graph(name: str) -> None:
    x, y = (torch.rand(2, n, 3, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (9, 7))
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), CALLS[name](x, y))
