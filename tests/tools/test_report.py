"""Tables and the page of a run."""

from __future__ import annotations

import json

from tools.report import main, results_table, write_report

ROW = {
    "metric": "acc",
    "value": 91.256,
    "split": "test",
    "selection": "last epoch",
    "per_class": {"<b>": 10.0, "z": 5.0},
}


def a_run(folder, rows, records=()):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"seconds": 1, "rows": rows}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_page_is_whole_and_names_are_text(tmp_path):
    records = [{"epoch": e, "step": e, "train/loss": 1.0 / (e + 1), "flat": 2.0} for e in range(3)]
    folder = a_run(tmp_path / "cfg/<run>", [ROW], records)
    page = write_report(folder).read_text()
    assert "<run>" not in page and "&lt;run&gt;" in page and "<b>" not in page and "&lt;b&gt;" in page
    assert page.count("<svg") == 2 and "91.26" in page and "nan" not in page.lower()
    assert "http" not in page and "<script" not in page  # nothing from outside


def test_a_run_without_results_or_curves(tmp_path):
    assert "No test set" in write_report(a_run(tmp_path / "cfg/run", [])).read_text()
    assert results_table([]) == []


def test_tables_of_several_runs(tmp_path, capsys):
    folders = [str(a_run(tmp_path / name, [ROW])) for name in ("a", "b")]
    assert main(folders) == 0
    out = capsys.readouterr().out
    assert out.count("91.26") == 2 and out.count("last epoch") == 2 and all(folder in out for folder in folders)


def test_a_folder_without_results_is_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "results.json" in err
    (tmp_path / "results.json").write_text("{half")
    assert main([str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err
