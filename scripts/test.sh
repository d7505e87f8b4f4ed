#!/usr/bin/env bash
# Lint, types and the whole test suite, in the environment that the quick start uses. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh" requirements-dev.txt
python=.venv/bin/python

echo "== ruff check";  $python -m ruff check .
echo "== ruff format"; $python -m ruff format --check .
echo "== mypy";        $python -m mypy
# one process a core, one thread each
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
speed=tests/extensions/test_speed.py  # measures, so it runs alone
echo "== pytest";      $python -m pytest -n auto --maxprocesses 8 --dist worksteal --ignore "$speed" "$@"
[ $# -gt 0 ] || { echo "== speed"; $python -m pytest "$speed"; }
