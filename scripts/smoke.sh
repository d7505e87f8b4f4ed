#!/usr/bin/env bash
# The whole way once (tests/test_smoke.py) and the models' tests, on another Python or torch, in an environment of its own.
# usage: bash scripts/smoke.sh python3.10 'torch==2.11.*'
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} torch=${2:-torch}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder"
grep -vE '^(#|torchvision|timm|torch>)' requirements.txt > "$folder/requirements.txt"
"$folder/bin/pip" install --quiet --disable-pip-version-check "$torch" -r "$folder/requirements.txt" pytest hypothesis
"$folder/bin/python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
"$folder/bin/python" -m pytest tests/test_smoke.py tests/models tests/extensions
