#!/usr/bin/env bash
# Random, block, SA3D and SA3DF masks compared at equal epochs and at equal time; see docs/sa3d.md.
# A shorter version: SEEDS=1 EPOCHS=2 bash scripts/reproduce/sa3d.sh
set -euo pipefail
. "$(dirname "$0")/../environment.sh" requirements.txt
exec .venv/bin/python -m tools.reproduce_sa3d "$@"
