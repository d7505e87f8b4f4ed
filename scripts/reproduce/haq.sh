#!/usr/bin/env bash
# Float, uniform and searched bits at the same bytes, fine-tuned and distilled: a table and a plot in experiments/haq/.
# Continues where it stopped. Shorter: SEEDS=1 EPISODES=20 EPOCHS=10 FINETUNE_EPOCHS=3 CASES="point_transformer" AGENTS="ddpg random"
set -euo pipefail
cd "$(dirname "$0")/../.."
export POINT_DATA_ROOT="${POINT_DATA_ROOT:-../shared/data}"
exec "${PYTHON:-.venv/bin/python}" -m tools.quantize.reproduce "$@"
