"""CUDA kernels without a GPU: compiled without a warning or a spill, and equal to the reference when emulated."""

import re
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from extensions import build, cuda, reference
from extensions.cuda import compile, kernels, launch

from . import emulate
from .cuda_cases import CLOSE, EXACT, Case, cloud

ARCHITECTURES = ("sm_80", "sm_90")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(launch, "launch", emulate.launch)
    monkeypatch.setattr(launch, "multiprocessors", emulate.multiprocessors)


def compare(case: Case, rtol: float, atol: float) -> None:
    operator, args = case
    expected, got = getattr(reference, operator)(*args), kernels.KERNELS[operator](*args)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_emulated_equals_reference(case: Case) -> None:
    compare(case, rtol=0, atol=0)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CLOSE.values(), ids=CLOSE)
def test_emulated_is_close_to_reference(case: Case) -> None:
    compare(case, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_emulated_auction_is_nearly_optimal(n: int, squared: bool) -> None:
    from scipy.optimize import linear_sum_assignment

    x, y = cloud(3, n), cloud(3, n, seed=1)
    partner = kernels.KERNELS["auction"](x, y, squared, 1e-3)
    assert torch.equal(partner.sort(1).values, torch.arange(n).expand(3, n))
    cost = torch.cdist(x, y).double() ** (2 if squared else 1)
    for i in range(3):
        best = cost[i].numpy()[linear_sum_assignment(cost[i].numpy())].mean()
        assert best - 1e-5 <= cost[i, torch.arange(n), partner[i]].mean() <= best + 1e-3 + 1e-5


@pytest.mark.usefixtures("emulated")
def test_emulated_auction_ends_on_duplicates_and_broken_values() -> None:
    for x in (torch.zeros(1, 40, 3), torch.full((1, 40, 3), torch.nan), cloud(1, 40, lattice=True)):
        partner = kernels.KERNELS["auction"](x, x.roll(1, 1), True, 1e-3)
        assert torch.equal(partner.sort(1).values, torch.arange(40)[None])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("operator", ["farthest_point_sample", "group", "chamfer", "auction"])
def test_emulated_in_any_order_of_threads(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing barrier would show in some order."""
    x, y = cloud(2, 150, lattice=True), cloud(2, 150, seed=1, lattice=True)
    few = x[:1, :100].contiguous(), y[:1, :100].contiguous(), True, 0.5
    args = {"farthest_point_sample": (x, 20, 0, False), "group": (x, 5, 40, False), "chamfer": (x, y)}
    results = []
    for seed in range(5):
        monkeypatch.setattr(launch, "launch", lambda *a, seed=seed, **k: emulate.launch(*a, seed=seed, **k))
        results.append(kernels.KERNELS[operator](*args.get(operator, few)))
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("operator", kernels.KERNELS)
def test_leaves_float64_to_the_reference(operator: str) -> None:
    case = next((case for case in (*EXACT.values(), *CLOSE.values()) if case[0] == operator), None)
    alone = {"sort_order": (cloud(1, 4),), "auction": (cloud(1, 4), cloud(1, 4), True, 0.1)}
    args = case[1] if case else alone[operator]
    wide = [arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]
    assert kernels.KERNELS[operator](*wide) is NotImplemented


def test_every_operator_has_a_kernel() -> None:
    from extensions.library import SCHEMAS

    assert set(kernels.KERNELS) == set(SCHEMAS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", compile.SOURCES)
def test_nvcc_compiles_without_warning_or_spill(source: str, arch: str, tmp_path: Path) -> None:
    if compile.nvcc() is None:
        pytest.skip("no nvcc on PATH")
    command = ["nvcc", "-cubin", f"-arch={arch}", *compile.FLAGS, "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += ["-o", str(tmp_path / "out.cubin"), str(compile.FOLDER / f"{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert frames and set(frames) == {("0", "0", "0")}, done.stderr  # everything is in registers


@pytest.mark.parametrize("source", compile.SOURCES)
def test_nvrtc_compiles(source: str) -> None:
    nvrtc = compile.nvrtc()
    if nvrtc is None:
        pytest.skip("no NVRTC beside torch")
    code = nvrtc.compile(source, ARCHITECTURES[-1], ())
    assert code.startswith(b"\x7fELF") and len(code) > 1000


def test_both_compilers_report_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void f() { nonsense }")
    monkeypatch.setattr(compile, "FOLDER", tmp_path)
    for compiler in filter(None, (compile.nvcc(), compile.nvrtc())):
        with pytest.raises(build.BuildError, match=r"wrong\.cu for sm_90.*nonsense"):
            compiler.compile("wrong", "sm_90", ())


def test_machine_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(source: str, arch: str, extra: object) -> bytes:
        calls.append(source)
        return b"code of " + source.encode()

    monkeypatch.setenv("POINTSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(compile, "compiler", lambda: compile.Compiler("1", counted))
    threads = [threading.Thread(target=compile.machine_code, args=("knn", "sm_90")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = len(calls)
    assert compile.machine_code("knn", "sm_90") == b"code of knn" and len(calls) == before
    assert compile.machine_code("fps", "sm_90") == b"code of fps" and calls[-1] == "fps"
    assert len(list(tmp_path.iterdir())) == 2  # and no leftovers


def test_without_a_device_says_so(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert cuda.register() == {}
    assert len(caplog.records) == 1 and "plain PyTorch" in caplog.text
