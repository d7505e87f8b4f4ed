#!/usr/bin/env bash
# From nothing to a table of results on the built-in data: pre-train, probe before and after, fine-tune, from scratch.
set -euo pipefail
. "$(dirname "$0")/environment.sh" requirements.txt
exec .venv/bin/python -m tools.quickstart "$@"
