#!/usr/bin/env bash
# All adaptations beside full fine-tuning, from one small pre-trained Point-MAE, on infomr69 and capod15: a table of
# accuracy, trained parameters, time, memory and file size in $ROOT/peft.md. Run again, it goes on where it stopped.
#
#   export POINT_DATA_ROOT=...       the folder with infomr69_{train,test}.npz and capod15_{train,test}.npz
#   bash scripts/reproduce/peft.sh
#   CKPT=p.pth SEEDS=1 INFOMR_EPOCHS=4 CAPOD_EPOCHS=10 METHODS="full lora" bash scripts/reproduce/peft.sh    shorter
#   SETS=capod15 bash scripts/reproduce/peft.sh    one data set
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
ROOT=${ROOT:-experiments/peft}
CKPT=${CKPT:-}
SEEDS=${SEEDS:-3}
SETS=${SETS:-infomr69 capod15}
METHODS=${METHODS:-full linear_probe bitfit lora adapter vpt_shallow vpt_deep idpt dapt point_peft}
INFOMR_EPOCHS=${INFOMR_EPOCHS:-6}
CAPOD_EPOCHS=${CAPOD_EPOCHS:-40}
: "${POINT_DATA_ROOT:?export POINT_DATA_ROOT, the folder with infomr69_train.npz}"

# small networks take smaller adaptations; the class token, which no pre-training gives, is trained in all of them
token="{name: unfreeze, parameters: [cls_]}"
entry() {
    case $1 in
    full) echo null ;;
    linear_probe) echo "[{name: linear_probe}, $token]" ;;
    bitfit) echo "[{name: bitfit}, $token]" ;;
    lora) echo "[{name: lora, rank: 8}, $token]" ;;
    adapter) echo "[{name: adapter, dim: 16}, $token]" ;;
    vpt_shallow) echo "[{name: vpt, mode: shallow}]" ;;
    vpt_deep) echo "[{name: vpt}]" ;;
    idpt) echo "[{name: idpt}]" ;;
    dapt) echo "[{name: dapt, rank: 16}]" ;;
    point_peft) echo "" ;; # what the configurations say
    *) echo "error: METHODS: no method '$1'" >&2 && exit 2 ;;
    esac
}

if [ -z "$CKPT" ]; then
    CKPT=$ROOT/infomr69_small/pretrain/ckpt-last.pth
    if [ ! -f "${CKPT%/*}/results.json" ]; then
        resume=$([ -f "$CKPT" ] && echo --resume || echo --overwrite)
        "$PYTHON" main_pretrain.py --config cfgs/pretrain/infomr69_small.yaml --root "$ROOT" --exp_name pretrain $resume
    fi
fi

for set in $SETS; do
    config=cfgs/peft/$set.yaml
    epochs=$([ "$set" = capod15 ] && echo "$CAPOD_EPOCHS" || echo "$INFOMR_EPOCHS")
    for method in $METHODS; do
        entries=$(entry "$method")
        override=("runner.epochs=$epochs")
        [ "$set" = capod15 ] || override+=("runner.val_every=$(((epochs + 3) / 4))")
        [ -z "$entries" ] || override+=("peft=$entries")
        [ "$set" != "${SETS%% *}" ] || [ -f "$ROOT/$set/cost-$method.json" ] || # the table has those of the first set
            "$PYTHON" -m tools.bench.peft cost --config "$config" --out "$ROOT/$set/cost-$method.json" "${override[@]}"
        "$PYTHON" main_finetune.py --config "$config" --root "$ROOT" --exp_name "$method" --finetune_model --ckpts "$CKPT" \
            --seeds "$SEEDS" --resume "${override[@]}"
    done
done
# shellcheck disable=SC2086
"$PYTHON" -m tools.bench.peft table --root "$ROOT" --configs $SETS --methods $METHODS | tee "$ROOT/peft.md"
