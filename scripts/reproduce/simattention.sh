#!/usr/bin/env bash
# 3DSimAttention beside dense attention at equal training: two sets of objects, neighbourhood-wise and point-wise, and
# part segmentation. Ends with a table in Markdown. Stopped or killed: the same command goes on where it was.
#   export POINT_DATA_ROOT=/folder/with/the/packed/sets
#   bash scripts/reproduce/simattention.sh
# Shorter: SETS="shrec16_nw" KINDS="sim_first dense_2_heads" SEEDS=1 EPOCHS=5 bash scripts/reproduce/simattention.sh
# Dense attention has 2 heads of 32 channels here: with 8 of 8 (KINDS=dense) it takes four times as long.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
ROOT=${ROOT:-experiments/simattention}
SEEDS=${SEEDS:-3}
SETS=${SETS:-infomr69_nw infomr69_pw shrec16_nw shrec16_pw lpsb19_seg}
KINDS=${KINDS:-sim_first sim_per_head dense_2_heads}

options() {
  case $1 in
    sim_first) echo "model.attention.restore=first" ;;
    sim_per_head) echo "model.attention.restore=per_head" ;;
    lsh) echo "model.attention=lsh" ;;
    dense) echo "model.attention=dense" ;;
    dense_2_heads) echo "model.attention=dense model.num_heads=2" ;;
    *) echo "KINDS: $1 is none of sim_first sim_per_head lsh dense dense_2_heads" >&2; exit 2 ;;
  esac
}

for set in $SETS; do
  for kind in $KINDS; do
    chosen=$(options "$kind")
    # shellcheck disable=SC2086
    "$PYTHON" main_finetune.py --config "cfgs/simattention/$set.yaml" --root "$ROOT" --exp_name "$kind" --scratch_model \
      --seeds "$SEEDS" --resume $chosen ${EPOCHS:+runner.epochs=$EPOCHS runner.val_every=$EPOCHS} ${EXTRA:-}
  done
done
"$PYTHON" scripts/reproduce/simattention_table.py "$ROOT" "$SETS" "$KINDS"
