#!/usr/bin/env bash
# What a graphics card must show, for a machine that has one and no more than the release binary and this repository:
#
#     bash tests/peers/gpu.sh BINARY SUBCOMMAND [DEVICE]
#
# DEVICE is what `--device` takes [cuda]. Each subcommand takes at most ten minutes on a card with 24 GB, and ends with a
# line that begins with `ok` or `FAILED`. Models are made by shape, with random weights, in $WORK
# [/dev/shm/tinyforge-gpu]. $PROFILE is the card's description [examples/targets/24GB-card.toml]: its rates give the bounds,
# and the simulated figures that each run stands beside.
#
#   devices      what there is, with memory and driver
#   conformance  kernels against their definitions: needs the test program as well, in $CONFORMANCE, built by
#                `cargo test --release --no-run -p tinyforge-tests --features tinyforge/cuda --test conformance`
#   models       the quickstart's model on the device and on the CPU: losses within 1e-3; windows and micro-batches: the
#                same losses to the last digit
#   kernels      dense products and attention one at a time, beside their bounds
#   resident     Llama-3.1-8B's shape, bf16, LoRA, everything on the card within 24 GB
#   streamed     the same shape, full fine-tuning with AdamW in 8 bits within 24 GB, blocks streamed
#   cycle        Qwen3-32B's shape, cycle:2 and LoRA within 24 GB, blocks streamed
#   beside       Llama-3.2-1B's shape by wgpu and by CUDA
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
usage() { sed -n '2,20p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 2; }
[ $# -ge 2 ] || usage
binary=$(realpath "$1")
subcommand=$2
device=${3:-cuda}
work=${WORK:-/dev/shm/tinyforge-gpu}
profile=${PROFILE:-$here/examples/targets/24GB-card.toml}
mkdir -p "$work"
failed() { printf 'FAILED: %s\n' "$*"; exit 1; }

# made SHAPE: a model of a shape under examples/shapes; its folder.
made() {
    local folder=$work/$1
    if [ ! -f "$folder/config.json" ]; then
        "$binary" make-model --config "$here/examples/shapes/$1/config.json" --out "$folder" --dtype bf16 >&2
    fi
    printf '%s' "$folder"
}

# The text that shapes are trained on: what it says is no matter.
text() {
    [ -f "$work/text.txt" ] || for _ in $(seq 40); do cat "$here/examples/quickstart/stories.txt"; done >"$work/text.txt"
    printf '%s' "$work/text.txt"
}

# trained NAME MODEL DEVICE STEPS FLAG...: what the machine of PROFILE would take for a step, simulated; then a run of a
# few steps, what the command says of it, and the card's own figures.
trained() {
    local name=$1 model=$2 on=$3 steps=$4
    shift 4
    printf '\n== %s\n' "$name"
    "$binary" plan "$model" --target "$profile" "$@" | sed -n '/speed on/,$p'
    rm -rf "${work:?}/out"
    local watch=
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 500 >"$work/used.txt" 2>/dev/null &
        watch=$!
    fi
    "$binary" train "$model" --data "$(text)" --out "$work/out" --overwrite --profile "$profile" --device "$on" \
        --steps "$steps" --json "$@"
    if [ -n "$watch" ]; then
        kill "$watch"
        printf 'driver: at most %s MiB of the card in use\n' "$(sort -n "$work/used.txt" | tail -n 1)"
    fi
    [ -s "$work/out/metrics.jsonl" ] || failed "$name left no metrics"
}

# losses FOLDER: the losses of a run's steps, one a line.
losses() { sed -n 's/.*"step":[0-9]*,"loss":\([-0-9.e]*\).*/\1/p' "$1/metrics.jsonl"; }

# small DEVICE NAME FLAG...: the quickstart's model for twenty steps; the losses go to a file.
small() {
    local on=$1 name=$2
    shift 2
    rm -rf "${work:?}/small"
    "$binary" train "$here/examples/quickstart/model" --data "$here/examples/quickstart/logbook.txt" --out "$work/small" \
        --device "$on" --seq 64 --batch 4 --steps 20 --lr 1e-3 --seed 1 "$@" >/dev/null
    losses "$work/small" >"$work/$name"
    [ "$(wc -l <"$work/$name")" -ge 20 ] || failed "$name has too few steps"
}

models() {
    local scheme way ways count=0
    for scheme in lora last:2 full; do
        small cpu cpu.txt --scheme "$scheme"
        small "$device" device.txt --scheme "$scheme"
        paste "$work/cpu.txt" "$work/device.txt" | awk -v scheme="$scheme" '
            { d = $1 - $2; if (d < 0) d = -d; if (d / $1 > most) most = d / $1 }
            END { printf "%s: losses at most %.1e apart\n", scheme, most; exit !(NR > 0 && most < 1e-3) }' ||
            failed "losses of $scheme are not the CPU's"
        ways=("--micro-batch 2" "--window 1" "--window 2 --prefetch 2 --recompute all")
        # What streams to a card rests in the host's memory unless it is told to rest in files, or in both.
        [ "$device" != cuda ] || ways+=("--window 1 --host-memory 0" "--window 2 --host-memory 256KiB")
        # Who updates makes no difference either.
        [ "$device" != cuda ] || ways+=("--window 1 --host-optimizer" "--window 2 --host-optimizer --micro-batch 2")
        for way in "${ways[@]}"; do
            # shellcheck disable=SC2086
            small "$device" other.txt --scheme "$scheme" $way
            cmp -s "$work/device.txt" "$work/other.txt" || failed "$scheme with $way gives other losses"
            count=$((count + 1))
        done
    done
    printf 'ok: three schemes as on the CPU, %s ways with the same losses\n' "$count"
}

conformance() {
    [ -x "${CONFORMANCE:-}" ] || failed "CONFORMANCE names no program; see the head of this script"
    TINYFORGE_CUDA=card "$CONFORMANCE" --nocapture cuda_
    printf 'ok: kernels on the card are their definitions\n'
}

case $subcommand in
devices) "$binary" devices && printf 'ok\n' ;;
conformance) conformance ;;
models) models ;;
kernels) "$binary" bench --kernels --device "$device" --profile "$profile" --json && printf 'ok\n' ;;
resident)
    trained "Llama-3.1-8B, LoRA, resident" "$(made llama-3.1-8b)" "$device" 5 --scheme lora --dtype bf16 \
        --memory 24GB --window all --seq 1024 --batch 4 --micro-batch 1
    printf 'ok\n'
    ;;
streamed)
    for rows in 8 32; do
        trained "Llama-3.1-8B, full, AdamW in 8 bits, streamed, $rows rows" "$(made llama-3.1-8b)" "$device" 2 \
            --scheme full --dtype bf16 --optimizer adamw8 --memory 24GB --seq 1024 --batch "$rows"
    done
    printf 'ok\n'
    ;;
cycle)
    for scheme in cycle:2 lora; do
        trained "Qwen3-32B, $scheme, streamed" "$(made qwen3-32b)" "$device" 2 --scheme "$scheme" --dtype bf16 \
            --memory 24GB --seq 1024 --batch 8
    done
    printf 'ok\n'
    ;;
beside)
    for on in wgpu cuda; do
        trained "Llama-3.2-1B by $on" "$(made llama-3.2-1b)" "$on" 5 --scheme lora --dtype bf16 --seq 1024 \
            --batch 4 --micro-batch 1
    done
    printf 'ok\n'
    ;;
*) usage ;;
esac
