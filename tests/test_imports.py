"""The architecture: imports run one way, the core stands alone, importing is quick and has no effects; a run loads what
it uses."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each part may import of the project, besides itself.
MAY_IMPORT = {
    "utils": set(),
    "extensions": {"utils"},
    "models": {"extensions", "utils"},
    "datasets": {"extensions", "utils"},
    "tools": {"models", "datasets", "extensions", "utils"},
}
PROGRAM = {"tools", *MAY_IMPORT["tools"]}  # main_*.py
FOREIGN = ("timm", "torchvision")
HEAVY = ("scipy", "sklearn", "h5py", "matplotlib", "tensorboard", "open3d")
SECONDS = 1.0


def core_files() -> list[Path]:
    inside = [path for part in MAY_IMPORT for path in (ROOT / part).rglob("*.py")]
    return sorted([*inside, *ROOT.glob("main_*.py")])


def imported(path: Path) -> set[str]:
    """Top-level packages a file imports, anywhere in it; a relative import stays in its package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(ROOT).parts) - 1
            assert node.level <= depth, f"{path.relative_to(ROOT)}: a relative import leaves its package"
    return names


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[part] | {part} if part in MAY_IMPORT else PROGRAM
    names = imported(path)
    wrong = {name for name in names if name in MAY_IMPORT or name.startswith("main_") or name == "tests"} - allowed
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}; it may import {sorted(allowed)}"
    assert not names & set(FOREIGN)


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("import os.path\ndef f():\n    from models.masking import x\n    import tools.probe as p, timm\n")
    assert imported(file) == {"os", "models", "tools", "timm"}


def run(code: str) -> dict:
    """Run in a fresh interpreter; what it prints last is JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_imports_without_foreign_or_heavy_packages() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in core_files()]
    files = [file for file in files if file.name not in ("__init__", "setup")]  # setup: what pip runs
    found = run(
        f"""
import importlib, json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FOREIGN!r}:
            raise ImportError(name + " is not part of the core")
sys.meta_path.insert(0, Refuse())
for name in {[".".join(file.parts) for file in files]!r}:
    importlib.import_module(name)
import torch
print(json.dumps({{"cuda": torch.cuda.is_initialized(), "loaded": list(sys.modules)}}))
"""
    )
    assert not found["cuda"]
    assert not {name.split(".")[0] for name in found["loaded"]} & {*FOREIGN, *HEAVY}


def test_importing_is_quick() -> None:
    """What comes on top of torch, in processor time: how long torch itself takes depends on what else runs."""
    code = """
import json, sys, time
import torch
started = time.process_time()
import models, datasets, tools, utils, extensions
import models.point_mae, datasets.loader, tools.build, extensions.ops
print(json.dumps({"seconds": time.process_time() - started, "cuda": sys.modules["torch"].cuda.is_initialized()}))
"""
    assert any(not (found := run(code))["cuda"] and found["seconds"] < SECONDS for _ in range(3))  # the best of three


def test_a_run_begins_without_what_it_uses_later_and_never_loads_the_compiler(tmp_path: Path) -> None:
    """torch._dynamo, which PyTorch's optimizers load, takes longer than to read data and to build a model."""
    code = f"""
import json, pathlib, sys
from tests.helpers import changed, pretrain_config, run, write_config
from tools.runner import Runner
folder, loaded, step = pathlib.Path({str(tmp_path)!r}), [], Runner._train_step
def first(self, *args):
    norm = step(self, *args)
    loaded.append(list(sys.modules))
    return norm
Runner._train_step = first
config = changed(pretrain_config(folder), {{"runner.epochs": 1, "runner.ema_decay": 0.9, "runner.clip_grad": 1.0}})
assert run("pretrain", write_config(folder, config)) == 0
print(json.dumps({{"first": loaded[0], "end": list(sys.modules)}}))
"""
    found = run(code)
    assert not {name.split(".")[0] for name in found["first"]} & {*FOREIGN, *HEAVY}
    assert "torch._dynamo" not in found["end"]
