"""The list of options is what the checks of a configuration accept."""

import pytest

from tools.options import KINDS, describe, main, overview
from utils.registry import Registry


def test_overview_names_everything():
    text = "\n".join(overview())
    for kind, (_, known) in KINDS.items():
        assert kind in text
        assert all(name in text for name in (known.names() if isinstance(known, Registry) else []))


def test_options_types_and_defaults():
    lines = [line.split() for line in describe("model", "PointMAE")]
    assert ["embed_dim", "int", "384"] in lines
    assert ["loss", "Literal['cdl1',", "'cdl2']", "'cdl2'"] in lines
    assert ["mask", "a", "mask", "None"] in lines
    assert ["path", "str", "needed"] in [line.split() for line in describe("dataset", "packed")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dataset"])
def test_every_kind_is_described(kind):
    assert len(describe(kind)) > 1
    assert not any(line.split()[0] == "params" for line in describe(kind))


def test_arguments_of_the_program_are_not_options():
    assert not {"seed", "device"} & {line.split()[0] for line in describe("data")}


def test_a_name_that_cannot_be_imported_does_not_hide_the_others(monkeypatch):
    entries = {"broken": "no_such_module:Thing", "cosine": "tools.schedule:Cosine"}
    monkeypatch.setitem(KINDS, "scheduler", ("scheduler", Registry("scheduler", entries)))
    lines = describe("scheduler")
    assert "broken: cannot be used, No module named 'no_such_module'" in lines
    assert any(line.startswith("cosine: ") for line in lines)


@pytest.mark.parametrize(("arguments", "told"), [(["modle"], "'model'"), (["optimizer", "AdamWW"], "'AdamW'")])
def test_wrong_names_are_told_in_one_line(capsys, arguments, told):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"Did you mean {told}?" in error and error.count("\n") == 1
