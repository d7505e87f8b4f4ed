"""Signatures as the schema of configurations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch

from utils.errors import UserError
from utils.registry import Registry
from utils.schema import Whole, check_arguments, check_required, check_type, hint


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, float),
        (1.5, float),
        (None, int | None),
        ("a", Literal["a", "b"]),
        ([1, 2], list[int]),
        ([], Sequence[float]),
        ({"a": 1}, dict),
        ({"a": 1}, Mapping[str, int]),
        (0.1, float | torch.Tensor),
        ("anything", Callable),
        ("anything", torch.Tensor),
        ({"name": "x"}, torch.nn.Module | None),
        (object(), Any),
    ],
)
def test_values_that_fit(value, expected):
    check_type(value, expected, "key")


@pytest.mark.parametrize(
    ("value", "expected", "words"),
    [
        (True, int, "an integer, found True"),
        (True, float, "a number, found True"),
        (1.0, int, "an integer, found 1.0"),
        (1, bool, "true or false"),
        (None, int, "found null"),
        ("c", Literal["a", "b"], "one of 'a', 'b'"),
        ([1, "x"], list[int], "a list of integers"),
        ({"a": 1}, list[dict] | None, "a list of mappings or null"),
        ("fast", float | torch.Tensor, "expected a number, found 'fast'"),
    ],
)
def test_values_that_do_not(value, expected, words):
    with pytest.raises(UserError, match=r"^a\.key: expected ") as error:
        check_type(value, expected, "a.key")
    assert words in str(error.value)


def make_net(
    classes: int,
    dim: int = 8,
    dims: Sequence[int] = (4, 2),
    low: int | None = None,
    extra: int = 0,
    after: Whole = 3,
    layers: list[Whole] | None = None,
    box: float = 0.5,
    way: Sequence[float] = (),
) -> None:
    """Sizes of a network, then what is none."""


@pytest.mark.parametrize(
    "wrong", [{"classes": 0}, {"dim": 0}, {"dim": -2}, {"dims": [4, 0]}, {"dims": [-1]}, {"low": 0}]
)
def test_no_size_of_a_network_is_0(wrong):
    (key, value), each = next(iter(wrong.items())), " each" if "dims" in wrong else ""
    with pytest.raises(UserError, match=rf"^x\.{key}: {re.escape(str(value))}; use at least 1{each}$"):
        check_arguments(make_net, wrong, "x", "net", sizes=True)
    fine = {"classes": 1, "dims": [], "low": None, "extra": 0, "after": 0, "layers": [0, 1], "box": 0, "way": [-1, 0]}
    check_arguments(make_net, fine, "x", "net", sizes=True)
    if value == 0:
        check_arguments(make_net, wrong, "x", "thing")


def build_me(size: int, rate: float = 0.1, **rest: Any) -> tuple:
    if rate > 1:
        raise ValueError(f"rate {rate} is more than 1\nand a second line")
    return size, rate


def test_arguments():
    check_arguments(build_me, {"size": 3, "rate": 1}, "x", "thing")
    with pytest.raises(UserError, match=r"x\.sizee: thing has no such option\. Did you mean 'size'\?"):
        check_arguments(build_me, {"sizee": 3}, "x", "thing")
    with pytest.raises(UserError, match=r"x\.size: -3; use 0 or more"):
        check_arguments(build_me, {"size": -3}, "x", "thing")
    with pytest.raises(UserError, match=r"x\.rest: thing has no such option"):
        check_arguments(build_me, {"rest": 3}, "x", "thing")
    with pytest.raises(UserError, match=r"x\.size: thing needs this option"):
        check_required(build_me, ["rate"], "x", "thing")


def test_hints():
    names = ["embed_dim", "depth", "exp_name"]
    assert hint("Embed_Dim", names) == hint("embeddim", names) == " Did you mean 'embed_dim'?"
    assert hint("exp", names) == " Did you mean 'exp_name'?"
    assert hint("zzz", names) == " Known: depth, embed_dim, exp_name." and hint("zzz", []) == ""


def test_registry():
    parts = Registry("part", {"small": lambda size=1: ("small", size)})
    registry = Registry(
        "thing",
        {"me": build_me, "share": lambda of: 6 // of, "join": "os.path:join", "gone": "no_such_module:x"},
        {"size": parts},
    )
    assert registry.build({"name": "me", "size": "small"}) == (("small", 1), 0.1)
    assert registry.build({"name": "me", "size": {"name": "small", "size": 2}}) == (("small", 2), 0.1)
    assert registry.build({"name": "me"}, size=5) == (5, 0.1)
    assert registry.get("join")("a", "b") == "a/b"
    registry.add("mine", lambda: 7)
    assert registry.build({"name": "mine"}) == 7 and "mine" in registry.names()
    with pytest.raises(ModuleNotFoundError):
        registry.get("gone")
    wrong: list[tuple[Any, str]] = [
        ({"name": "meh", "size": 1}, "x.name: unknown thing 'meh'. Did you mean 'me'?"),
        ({"size": 1}, "x.name: missing"),
        (["me"], "x: expected a mapping"),
        ({"name": "me"}, "x.size: thing 'me' needs this option"),
        ({"name": "me", "size": {"name": "smal"}}, "x.size.name: unknown part 'smal'"),
        ({"name": "me", "size": 1}, "x.size: expected a part by name, found 1"),
        ({"name": "me", "size": "small", "rate": 2}, "x: rate 2 is more than 1"),
        ({"name": "share", "of": 0}, "x.name: 'share' cannot be built with a size of 0"),
    ]
    for cfg, words in wrong:
        with pytest.raises(UserError) as error:
            registry.build(cfg, "x")
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="registered already"):
        registry.add("me", build_me)
