#!/usr/bin/env bash
# Lint, types and the whole test suite, in the environment that the quick start uses. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh" requirements-dev.txt
python=.venv/bin/python

echo "== ruff check";  $python -m ruff check .
echo "== ruff format"; $python -m ruff format --check .
echo "== mypy";        $python -m mypy
echo "== pytest";      $python -m pytest "$@"
