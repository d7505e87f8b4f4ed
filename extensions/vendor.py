"""`pip install ./extensions/chamfer_dist` and `./extensions/emd`, for code that imports modules of these names.

The wheel holds the whole of `extensions` as a package of its own name, `pointsmith_extensions` (a project that has
folders `extensions` and `utils` would hide ours), and a module that passes its public names on. Nothing is compiled at
installation. Both wheels bring the same package, so that both can be installed; to remove one of them alone, reinstall
the other afterwards. Pointsmith itself needs neither.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

PACKAGE = "pointsmith_extensions"


def install(name: str) -> None:
    """What setup.py of a folder of `extensions` does."""
    from setuptools import find_packages, setup  # type: ignore[import-untyped,unused-ignore]

    folder = Path(tempfile.mkdtemp())
    _copy(folder)
    (folder / f"{name}.py").write_text(f"from {PACKAGE}.{name} import *\nfrom {PACKAGE}.{name} import __all__\n")
    os.chdir(folder)
    setup(
        name=name,
        version="0.1.0",
        license="MIT",
        py_modules=[name],
        packages=find_packages(),
        package_data={"": ["csrc/*", "*.cu", "*.cuh"]},
        install_requires=["torch>=2.11"],
    )


def _copy(folder: Path) -> None:
    """The sources under `folder`, with our imports renamed."""
    root = Path(__file__).resolve().parent
    ignored = shutil.ignore_patterns("__pycache__", "setup.py", "vendor.py", "*.egg-info", "build")
    shutil.copytree(root, folder / PACKAGE, ignore=ignored)
    shutil.copy(root.parent / "utils" / "errors.py", folder / PACKAGE)
    for path in (folder / PACKAGE).rglob("*.py"):
        text = re.sub(r"\butils\.errors\b", f"{PACKAGE}.errors", path.read_text())
        path.write_text(re.sub(r"(?<![\w.`])extensions(?=[. ]|$)(?!/)", PACKAGE, text))
