"""The doctor tells what works, what is broken, and never breaks itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import doctor

BROKEN = "def load():\n    raise RuntimeError('operator demo::nms does not exist')\n\nload()\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package with this code in front of the installed ones, for processes started from here."""

    def put(name: str, code: str) -> None:
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    return put


@pytest.fixture
def few_requirements(tmp_path, monkeypatch):
    path = tmp_path / "requirements.txt"
    path.write_text("# a comment\ntorch>=2.11\nnumpy>=1.26\ntimm>=1.0\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", path)


def test_the_core_works_here_although_an_optional_package_is_broken(package, few_requirements, capsys):
    package("timm", BROKEN)
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the core works"
    assert any(line.startswith("OK   torch 2.") for line in lines)
    assert any(line.startswith("OK   operations: grouping and Chamfer distance work on cpu") for line in lines)
    told = next(line for line in lines if "timm" in line)
    assert told.startswith("NOTE timm: present but broken: RuntimeError: operator demo::nms does not exist; only")
    assert all(line[:5] in ("OK   ", "NOTE ") for line in lines[:-1])


def test_a_broken_torch_is_a_failure_and_no_traceback(package, few_requirements, capsys):
    package("torch", "raise ImportError('libcudart.so.99: cannot open shared object file')")
    assert doctor.main() == 1
    printed = capsys.readouterr()
    assert "FAIL torch: present but broken: ImportError: libcudart.so.99: cannot open" in printed.out
    assert "FAIL the project itself: ImportError: libcudart.so.99" in printed.out
    assert "the core does not work" in printed.out.splitlines()[-1]
    assert "Traceback" not in printed.out + printed.err


def test_packages_that_crash_are_missing_or_too_old(package):
    package("h5py", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert doctor.check_package("h5py")[1].startswith("h5py: present but broken: crashed with signal 11; pip install")
    state, text = doctor.check_package("no-such-package", "1.2")
    assert (state, text) == ("FAIL", "no-such-package: not installed; pip install 'no-such-package>=1.2'")
    state, text = doctor.check_package("pyyaml", "99.0")
    assert state == "FAIL" and "too old, 99.0 or newer is needed" in text
    assert doctor.check_package("pyyaml", "6.0")[0] == "OK"


def test_a_package_that_prints_or_hangs_while_imported(package, monkeypatch):
    package("tqdm", "print('hello')\n__version__ = '4.70'")
    assert doctor.check_package("tqdm", "4.66") == ("OK", "tqdm 4.70")
    package("easydict", "import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "IMPORT_LIMIT", 0.2)
    assert "did not end within 0.2 s" in doctor.check_package("easydict")[1]


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9.1", "2.11"), ("1.26.4", "2.0"), ("0.4", "0.10"), ("2.11.0a0+cu132", "2.12")]
)
def test_versions_compare_as_numbers(older, newer):
    assert doctor.numbers(older) < doctor.numbers(newer)


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (3, 99))
    [(state, text)] = doctor.check_python()
    assert state == "FAIL" and "too old, use 3.99 or newer" in text


def test_data_roots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POINT_DATA_ROOT", raising=False)
    [(state, text)] = doctor.check_data()
    assert state == "NOTE" and str(tmp_path / "data") in text
    for number in range(9):
        (tmp_path / "clouds" / f"set{number}").mkdir(parents=True)
    (tmp_path / "clouds" / "a.npz").touch()
    monkeypatch.setenv("POINT_DATA_ROOT", str(tmp_path / "clouds"))
    [(state, text)] = doctor.check_data()
    assert state == "OK" and "a.npz, set0/" in text and text.endswith("and 2 more")


def test_where_runs_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [state for state, _ in doctor.check_disk()][1] == "OK"
    assert not Path("experiments").exists()  # looking leaves nothing behind
    Path("experiments").touch()
    state, text = list(doctor.check_disk())[1]
    assert state == "FAIL" and "not writable" in text
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 1e9)
    assert next(doctor.check_disk())[0] == "NOTE"


def test_it_starts_without_any_package():
    """Of the project and its requirements nothing is imported: -S leaves out everything that was installed."""
    code = "import sys; import tools.doctor as d; print(list(d.check_python())); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=doctor.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr
