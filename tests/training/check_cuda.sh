#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_cuda.sh DSV4_TRAIN DSV4_RUN: v4_nano trained on the GPU has the CPU's losses, step by step. Needs a GPU.
set -euo pipefail
train=$1 run=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
cat "$(dirname "$0")"/../../docs/*.md | head -c 60000 > "$work/text"
how=(--steps 60 --rows 4 --microbatch 2 --row-tokens 256 --evaluate-every 30 --held-out-rows 4 --seed 3)
losses() {  # device, numerics, further options; the log is $work/$device-$numerics.csv
  local device=$1 numerics=$2
  shift 2
  "$train" "$work/text" --out "$work/$device-$numerics" --log "$work/$device-$numerics.csv" --device "$device" --numerics "$numerics" \
    "${how[@]}" "$@" 2> "$work/err" || { cat "$work/err"; fail "$numerics on $device: status $?"; }
}
compare() { python3 "$(dirname "$0")/compare_losses.py" "$@"; }
for numerics in float32 v4_released; do
  for device in cpu cuda; do losses $device $numerics; done
done
