"""What several files, variables and overrides make of a configuration, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import pretrain_config, run, write_config
from utils.config import describe_config, dump_config, load_config, merge, to_plain
from utils.errors import UserError


def load(folder: Path, *overrides: str, **files: str) -> dict:
    """The last of the files, with the overrides."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return to_plain(load_config(folder / f"{name}.yaml", overrides)[0])


def test_deep_merge_in_order(tmp_path):
    config = load(
        tmp_path,
        a="model: {name: X, depth: 1, mask: {ratio: 0.1}}\nlist: [1, 2, 3]\n",
        b="model: {depth: 2, width: 5}\n",
        c="_base_: [a.yaml, b.yaml]\nmodel: {mask: {ratio: 0.2}}\nlist: [9]\n",
    )
    assert config == {"model": {"name": "X", "depth": 2, "mask": {"ratio": 0.2}, "width": 5}, "list": [9]}


def test_a_base_of_a_base_and_below_a_key(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/deep.yaml").write_text("a: 1\nb: 1\nc: 1\n")
    (tmp_path / "parts/model.yaml").write_text("_base_: deep.yaml\nb: 2\n")  # relative to the file that names it
    assert load(tmp_path, top="model:\n  _base_: parts/model.yaml\n  c: 3\n") == {"model": {"a": 1, "b": 2, "c": 3}}


def test_a_base_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfgs/sub").mkdir(parents=True)
    (tmp_path / "cfgs/base.yaml").write_text("a: 1\n")
    (tmp_path / "cfgs/sub/run.yaml").write_text("data: {_base_: cfgs/base.yaml}\n")
    assert to_plain(load_config("cfgs/sub/run.yaml")[0]) == {"data": {"a": 1}}


def test_two_files_may_share_a_base(tmp_path):
    assert load(tmp_path, a="x: 1\n", b="_base_: a.yaml\n", c="_base_: [a.yaml, b.yaml]\ny: 2\n") == {"x": 1, "y": 2}


def test_another_name_drops_the_options_of_the_old_one(tmp_path):
    base = "model: {name: X, depth: 1}\nother: {name: Y, keep: 1}\n"
    config = load(tmp_path, a=base, b="_base_: a.yaml\nmodel: {name: Z}\nother: {name: Y, more: 2}\n")
    assert config == {"model": {"name": "Z"}, "other": {"name": "Y", "keep": 1, "more": 2}}


def test_delete(tmp_path):
    base = "a: {x: 1, y: {z: 1}}\nb: {x: 1}\n"
    config = load(tmp_path, a=base, b="_base_: a.yaml\na: {_delete_: true, w: 2}\nc: {_delete_: true, v: 1}\n")
    assert config == {"a": {"w": 2}, "b": {"x": 1}, "c": {"v": 1}}
    assert load(tmp_path, m="a: {_delete_: true, w: 2}\n", n="_base_: [a.yaml, m.yaml]\n")["a"] == {"w": 2}


def test_merge_leaves_its_arguments_alone():
    base, update = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, update) == {"a": {"b": 1, "c": 2}} and base == {"a": {"b": 1}} and update == {"a": {"c": 2}}


def test_numbers_as_everybody_writes_them(tmp_path):
    config = load(tmp_path, a="lr: 1e-3\nbig: 1E5\nneg: -2.5e-4\nint: 10\nstr: 1e-3x\nquoted: '1e-3'\n")
    assert config == {"lr": 0.001, "big": 1e5, "neg": -0.00025, "int": 10, "str": "1e-3x", "quoted": "1e-3"}
    assert yaml.safe_load(dump_config(config)) == config


def test_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("POINT_ROOT", "/data/7")
    monkeypatch.setenv("POINT_EPOCHS", "12")
    monkeypatch.delenv("POINT_NO", raising=False)
    text = "path: ${POINT_ROOT}/x_{split}.npz\nepochs: ${POINT_EPOCHS}\nname: '${POINT_EPOCHS}'\n"
    config = load(tmp_path, a=text + "rate: ${POINT_NO:-1e-3}\nempty: ${POINT_NO:-}\nlist: ['${POINT_NO:-a}']\n")
    assert config == {
        "path": "/data/7/x_{split}.npz",
        "epochs": 12,
        "name": "12",
        "rate": 0.001,
        "empty": None,
        "list": ["a"],
    }
    assert load(tmp_path, "epochs=${POINT_EPOCHS}", a="epochs: 1\n") == {"epochs": 12}


def test_overrides(tmp_path):
    base = "model: {name: X, depth: 1}\nlist: [{name: a, k: 1}, {name: b}]\nn: 1\n"
    config = load(tmp_path, "model.depth=3", "model.mask={name: block}", "list.0.k=2e-1", "new.deep.key=[1, a]", a=base)
    assert config["model"] == {"name": "X", "depth": 3, "mask": {"name": "block"}}
    assert config["list"] == [{"name": "a", "k": 0.2}, {"name": "b"}] and config["new"] == {"deep": {"key": [1, "a"]}}
    assert load(tmp_path, "model.name=Z", a=base)["model"] == {"name": "Z"}
    assert load(tmp_path, "model.name=X", a=base)["model"] == {"name": "X", "depth": 1}
    assert load(tmp_path, "list.1={name: c}", a=base)["list"][1] == {"name": "c"}
    assert load(tmp_path, "n=", a=base)["n"] is None and load(tmp_path, "n=a=b", a=base)["n"] == "a=b"
    with pytest.raises(UserError, match=r"list\.x: is a list of 2"):
        load(tmp_path, "list.x=1", a=base)


def test_where_a_value_came_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("model:\n  depth: 1\n  width: 2\nlist:\n- {k: 1}\n")
    (tmp_path / "b.yaml").write_text("_base_: a.yaml\n\nmodel: {width: 3}\n")
    config, origins = load_config("b.yaml", ["list.0.k=5"])
    lines = dict(line.split("  # ") for line in describe_config(config, origins).splitlines())
    assert {key.strip(): origin for key, origin in lines.items()} == {
        "model.depth: 1": "a.yaml:2",
        "model.width: 3": "b.yaml:3",
        "list.0.k: 5": "command line",
    }


def test_keys_named_like_methods(tmp_path):
    """Attribute access hides the method; reading, checking and writing do not care."""
    config, origins = load_config(write_config(tmp_path, {"items": 1, "a": {"update": 2, "keys": [{"values": 3}]}}))
    assert to_plain(config) == {"items": 1, "a": {"update": 2, "keys": [{"values": 3}]}}
    assert "a.update: 2" in describe_config(config, origins) and config.a["update"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.getcwd []\n", "a"),  # a sequence with a foreign tag
        ("a: !!python/name:os.getcwd ''\n", "a.yaml:1: a"),
        ("a: !!int abc\n", "a.yaml:1: a"),
        ("? [a, b]\n: 1\n", "a.yaml:1"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("- 1\n", "top level"),
        ("_base_: 3\n", "_base_"),
        ("a: &x\n  b: 1\n  b: 2\n", "'a.b' stands twice"),
    ],
)
def test_odd_files_are_told_in_one_line(text, words, tmp_path):
    try:
        assert load(tmp_path, a=text) == {"a": []}  # the tag counts for nothing, nothing is called
    except UserError as error:
        assert words in str(error) and "\n" not in str(error)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "a.yaml")


def test_printed_with_origins(tmp_path, capsys):
    config = write_config(tmp_path, pretrain_config(tmp_path))
    assert run("pretrain", config, "--print-config", "--seed", "3") == 0
    assert any(line.split() == ["seed:", "3", "#", "command", "line"] for line in capsys.readouterr().out.splitlines())
