"""The operations on a real GPU (`pytest -m gpu`): results, streams, graphs, threads, no waiting, gradients."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from extensions import ops, reference
from extensions.library import kernels, operators

from .cuda_cases import CLOSE, EXACT, Case, cloud

pytestmark = pytest.mark.gpu


def interpolate(x: Tensor, y: Tensor) -> Tensor:
    distances, indices = ops.three_nn(x, y)
    return ops.three_interpolate(y, indices, ops.three_nn_weights(distances, "inverse_squared"))


# every operation as a function of two clouds
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "farthest_point_sample": lambda x, y: ops.farthest_point_sample(x, 20, skip_near_origin=True),
    "farthest_point_sample_mean": lambda x, y: ops.farthest_point_sample(x, 20, start="mean"),
    "knn": lambda x, y: ops.knn(x, y, 8),
    "ball_query": lambda x, y: ops.ball_query_count(x, y, 0.7, 8),
    "group": lambda x, y: ops.group(x, 9, 16),
    "normalize": lambda x, y: ops.normalize(x),
    "interpolate": interpolate,
    "chamfer": lambda x, y: ops.chamfer_distance(x, y, reduction="none"),
    "approxmatch": lambda x, y: ops.earth_mover_distance(x, y, reduction="none"),
    "auction": lambda x, y: operators.auction(x, y, True, 1e-2),
}
DIFFERENTIABLE = ("group", "interpolate", "chamfer", "approxmatch")


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels or an error, never the fallback."""
    monkeypatch.setenv("POINT_OPS", "native")
    assert kernels("cuda"), "no kernels could be compiled for this GPU"


@pytest.fixture
def strict() -> Iterator[None]:
    """Waiting for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def on(device: str | torch.device, *args: object) -> list:
    return [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def compare(case: Case, rtol: float, atol: float) -> None:
    operator, args = case
    got = getattr(operators, operator)(*on("cuda", *args))
    expected = getattr(reference, operator)(*args)
    for ours, theirs in zip(as_tuple(got), as_tuple(expected)):
        torch.testing.assert_close(ours.cpu(), theirs, equal_nan=True, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_equals_reference(case: Case) -> None:
    compare(case, rtol=0, atol=0)


@pytest.mark.parametrize("case", CLOSE.values(), ids=CLOSE)
def test_is_close_to_reference(case: Case) -> None:
    compare(case, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 1024), (300, 2048), (2, 8192), (150, 16384), (1, 200000), (1, 2000000)])
def test_sampling_at_full_size(shape: tuple[int, int]) -> None:
    """Sizes that fill the GPU, where blocks that share a cloud would wait for ever if some could not run."""
    points = cloud(*shape)
    got = operators.farthest_point_sample(points.cuda(), 32, 0, False)
    some = slice(0, shape[0], max(1, shape[0] // 4))
    assert torch.equal(got[some].cpu(), reference.farthest_point_sample(points[some], 32, 0, False))


@pytest.mark.parametrize("n", [1, 33, 1000])
def test_auction_is_nearly_optimal(n: int) -> None:
    from scipy.optimize import linear_sum_assignment

    x, y = cloud(2, n), cloud(2, n, seed=1)
    partner = operators.auction(x.cuda(), y.cuda(), True, 1e-3).cpu()
    assert torch.equal(partner.sort(1).values, torch.arange(n).expand(2, n))
    cost = torch.cdist(x.double(), y.double()) ** 2
    for i in range(2):
        best = cost[i].numpy()[linear_sum_assignment(cost[i].numpy())].mean()
        assert best - 1e-5 <= cost[i, torch.arange(n), partner[i]].mean() <= best + 1e-3 + 1e-5


@pytest.mark.parametrize("name", CALLS)
def test_follows_the_current_stream(name: str) -> None:
    x, y = cloud(4, 200).cuda(), cloud(4, 200, seed=1).cuda()
    expected = as_tuple(CALLS[name](x, y))
    slow = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            slow = slow @ slow  # still running when the operation is launched behind it
        late = [tensor + 0 * slow.nan_to_num(0, 0, 0)[0, 0] for tensor in (x, y)]
        got = as_tuple(CALLS[name](*late))
        torch.cuda.current_stream().synchronize()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_is_captured_in_a_graph(name: str) -> None:
    x, y = cloud(4, 200).cuda(), cloud(4, 200, seed=1).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        CALLS[name](x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = as_tuple(CALLS[name](x, y))
    x.copy_(cloud(4, 200, seed=2))
    y.copy_(cloud(4, 200, seed=3))
    graph.replay()
    torch.testing.assert_close(captured, as_tuple(CALLS[name](x, y)), rtol=0, atol=0)


def test_shared_sampling_is_captured_in_a_graph() -> None:
    points = cloud(1, 20000).cuda()
    expected = operators.farthest_point_sample(points, 50, 0, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operators.farthest_point_sample(points, 50, 0, False)
    for _ in range(2):  # the board of the blocks is cleared inside the graph
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", CALLS)
def test_never_waits(name: str) -> None:
    x, y = (torch.rand(4, 200, 3, device="cuda", requires_grad=True) for _ in range(2))
    out = as_tuple(CALLS[name](x, y))
    if out[0].requires_grad:
        out[0].sum().backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_equal_those_of_the_cpu(name: str) -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        x, y = (cloud(3, 150, seed=i).to(device).requires_grad_() for i in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POINT_OPS", "torch" if device == "cpu" else "native")
            as_tuple(CALLS[name](x, y))[0].square().sum().backward()
        gradients.append([t.grad.cpu() if t.grad is not None else None for t in (x, y)])
    for ours, theirs in zip(gradients[1], gradients[0]):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_chamfer_gradient_is_the_same_every_time() -> None:
    """Many points with one nearest point: sums by atomics would differ from run to run."""
    x, y = torch.randn(4, 3000, 3, device="cuda"), torch.randn(4, 10, 3, device="cuda", requires_grad=True)
    first, *others = (torch.autograd.grad(ops.chamfer_distance(x, y), y)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", CALLS)
def test_compiles_to_one_graph(name: str) -> None:
    if name == "auction":
        pytest.skip("no public function of its own to compile")
    x, y = cloud(2, 60).cuda(), cloud(2, 60, seed=1).cuda()
    torch.testing.assert_close(torch.compile(CALLS[name], fullgraph=True)(x, y), CALLS[name](x, y))


def test_works_in_a_fresh_thread() -> None:
    """A thread that has not used CUDA yet has no context of its own."""
    x, results = cloud(2, 100).cuda(), []
    thread = threading.Thread(target=lambda: results.append(operators.farthest_point_sample(x, 9, 0, False)))
    thread.start()
    thread.join()
    assert torch.equal(results[0].cpu(), reference.farthest_point_sample(x.cpu(), 9, 0, False))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_device_of_its_input(name: str) -> None:
    x, y = cloud(2, 60), cloud(2, 60, seed=1)
    expected = as_tuple(CALLS[name](x.cuda(0), y.cuda(0)))
    got = as_tuple(CALLS[name](x.cuda(1), y.cuda(1)))
    assert torch.cuda.current_device() == 0 and all(tensor.device.index == 1 for tensor in got)
    torch.testing.assert_close([t.cpu() for t in got], [t.cpu() for t in expected], rtol=0, atol=0)


def test_other_inputs_run_in_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINT_OPS", "auto")
    x, y = cloud(2, 40), cloud(2, 40, seed=1)
    for dtype in (torch.float64, torch.float16):
        got = ops.knn(x.cuda().to(dtype), y.cuda().to(dtype), 5)
        torch.testing.assert_close([t.cpu() for t in got], list(ops.knn(x.to(dtype), y.to(dtype), 5)))
    strided = x.cuda().mT.contiguous().mT
    assert torch.equal(ops.knn(strided, strided, 5)[1].cpu(), ops.knn(x, x, 5)[1])
