#!/usr/bin/env bash
# SampleNet's figures: classification, reconstruction and registration from M points, against random, FPS and S-NET.
#
#   POINT_DATA_ROOT=/path bash scripts/reproduce/samplenet.sh        (needs infomr69_{train,test}.npz, demo_shapes.npz)
#
# About 6 hours of one processor core (AMD EPYC): classification 3 (a third of it for one seed), reconstruction 2,
# registration 0.8. The parts may run beside each other, PARTS=classify in one terminal, PARTS="reconstruct register" in
# another. Continues where it was stopped. Writes experiments/samplenet/table.md and accuracy_*.png, nre.png beside it.
# Shorter:
#   DATA=shrec16   the classifier on 480 clouds instead of 1,866 (needs shrec16_{train,test}.npz)
#   SEEDS="0"  SIZES="8 32"  PARTS="classify reconstruct register"
#   TASK_EPOCHS, SAMPLER_EPOCHS (classification), AE_EPOCHS, AE_SAMPLER_EPOCHS, PCR_EPOCHS, PCR_SAMPLER_EPOCHS (cars),
#   DEMO_EPOCHS, DEMO_SAMPLER_EPOCHS
# SAMPLER_OPTIONS: of the samplers for classification, as "model.sampler.alpha=5 optimizer.lr=3e-3".
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
ROOT=${ROOT:-experiments/samplenet}
DATA=${DATA:-infomr69}
SEEDS=${SEEDS:-"0 1 2"}
SIZES=${SIZES:-"8 16 32 64"}
PARTS=${PARTS:-"classify reconstruct register"}

# train CONFIG NAME SEED [options]: unless results are there; a run that was stopped goes on
train() {
    local config=$1 name=$2 seed=$3 folder
    shift 3
    folder=$ROOT/$config/$name
    [ -f "$folder/results.json" ] && return
    local start=(--resume)
    if [ ! -f "$folder/ckpt-last.pth" ]; then start=("${START[@]}" --overwrite); fi
    "$PYTHON" main_finetune.py --config "cfgs/samplenet/$config.yaml" --root "$ROOT" --exp_name "$name" --seed "$seed" \
        "${start[@]}" --set "$@"
}

# check CONFIG NAME SEED CKPT [options]: test without training
check() {
    local config=$1 name=$2 seed=$3 ckpt=$4
    shift 4
    [ -f "$ROOT/$config/test_$name/results.json" ] && return
    "$PYTHON" main_finetune.py --config "cfgs/samplenet/$config.yaml" --root "$ROOT" --exp_name "$name" --seed "$seed" \
        --test --ckpts "$ckpt" --overwrite --set "$@"
}

if [[ $PARTS == *classify* ]]; then
    epochs="runner.epochs=${TASK_EPOCHS:-100}"
    read -ra short <<<"runner.epochs=${SAMPLER_EPOCHS:-60} ${SAMPLER_OPTIONS:-}"
    for seed in $SEEDS; do
        START=(--scratch_model)
        train pointnet_$DATA "seed$seed" "$seed" "$epochs"
        net=$ROOT/pointnet_$DATA/seed$seed/ckpt-best.pth
        START=(--finetune_model --ckpts "$net")
        train progressive_$DATA "seed$seed" "$seed" "${short[@]}"
        for m in $SIZES; do
            for plain in random fps; do
                check classify_$DATA "$plain-$m-seed$seed" "$seed" "$net" "model.sampler={name: $plain, num_out: $m}"
            done
            train classify_$DATA "snet-$m-seed$seed" "$seed" "${short[@]}" "model.sampler.num_out=$m" \
                model.sampler.project=false
            train classify_$DATA "samplenet-$m-seed$seed" "$seed" "${short[@]}" "model.sampler.num_out=$m"
            check progressive_$DATA "progressive-$m-seed$seed" "$seed" \
                "$ROOT/progressive_$DATA/seed$seed/ckpt-best.pth" "model.sampler.eval_size=$m"
            check retrieve_$DATA "samplenet-$m-seed$seed" "$seed" \
                "$ROOT/classify_$DATA/samplenet-$m-seed$seed/ckpt-best.pth" "model.sampler.num_out=$m"
            check retrieve_$DATA "fps-$m-seed$seed" "$seed" "$net" "model.sampler={name: fps, num_out: $m}"
        done
    done
fi

if [[ $PARTS == *reconstruct* ]]; then
    START=(--scratch_model)
    train autoencoder_infomr69 seed0 0 "runner.epochs=${AE_EPOCHS:-200}"
    net=$ROOT/autoencoder_infomr69/seed0/ckpt-best.pth
    START=(--finetune_model --ckpts "$net")
    for m in $SIZES; do
        for plain in random fps; do
            check reconstruct_infomr69 "$plain-$m-seed0" 0 "$net" "model.sampler={name: $plain, num_out: $m}"
        done
        train reconstruct_infomr69 "samplenet-$m-seed0" 0 "runner.epochs=${AE_SAMPLER_EPOCHS:-100}" \
            "model.sampler.num_out=$m"
    done
fi

if [[ $PARTS == *register* ]]; then
    for data in shapes demo; do
        if [ $data = shapes ]; then epochs=${PCR_EPOCHS:-500} sampler_epochs=${PCR_SAMPLER_EPOCHS:-200}; fi
        if [ $data = demo ]; then epochs=${DEMO_EPOCHS:-4000} sampler_epochs=${DEMO_SAMPLER_EPOCHS:-1500}; fi
        START=(--scratch_model)
        train pcrnet_$data seed0 0 "runner.epochs=$epochs"
        net=$ROOT/pcrnet_$data/seed0/ckpt-last.pth
        START=(--finetune_model --ckpts "$net")
        for m in ${REGISTER_SIZES:-32 64}; do
            check register_$data "random-$m-seed0" 0 "$net" "model.sampler={name: random, num_out: $m}"
            check register_$data "fps-$m-seed0" 0 "$net" "model.sampler={name: fps, num_out: $m, start: random}"
            train register_$data "samplenet-$m-seed0" 0 "runner.epochs=$sampler_epochs" "model.sampler.num_out=$m"
        done
    done
fi

"$PYTHON" scripts/reproduce/samplenet_table.py "$ROOT"
