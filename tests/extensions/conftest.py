"""The two ways to compute an operation on the CPU; a test module that asks for `point_ops` runs on both."""

from collections.abc import Iterator

import pytest

from extensions import library


@pytest.fixture(scope="module", params=["torch", "native"])
def point_ops(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native" and not library.kernels("cpu"):
        pytest.skip("no compiled operations here; `python -m extensions.build` says why")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINT_OPS", request.param)
        yield request.param
