"""The quick start's own command line."""

import pytest

from tools import quickstart


def test_an_unknown_argument_starts_nothing(monkeypatch, capsys):
    monkeypatch.setattr(quickstart.subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(SystemExit) as stop:
        quickstart.main(["--epochs", "3"])
    assert stop.value.code == 2 and "--epochs" in capsys.readouterr().err
