#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh DSV4_TRAIN DSV4_RUN: a run as a user types it, killed at any moment and resumed, and its model in the runner.
set -euo pipefail
train=$1 run=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
for i in $(seq 200); do echo "the sea is wide and deep, and wave $((i % 7)) follows wave $((i % 5)) to the shore"; done > "$work/text"
how=(--steps 24 --rows 2 --microbatch 2 --row-tokens 128 --evaluate-every 8 --held-out-rows 2 --save-every 3)

"$train" "$work/text" --out "$work/whole" --log "$work/log.csv" "${how[@]}" 2> "$work/err"
grep -q "held out" "$work/err" || { cat "$work/err"; fail "no loss on held-out text"; }
[ "$(wc -l < "$work/log.csv")" -eq 25 ] || fail "the log has not one line for each step"
awk -F, 'NR == 2 { first = $4 } NR == 25 { exit !($4 < 0.75 * first) }' "$work/log.csv" || { cat "$work/log.csv"; fail "the loss did not fall"; }
"$run" "$work/whole" --prompt "the sea" -n 20 > "$work/text1" 2> "$work/err"
[ "$(wc -c < "$work/text1")" -ge 8 ] || fail "the runner writes nothing"

# Trained through the released formats, a model is saved in them.
"$train" "$work/text" --out "$work/released" --numerics v4_released --steps 2 --rows 2 --microbatch 2 --row-tokens 128 2> /dev/null
"$run" "$work/released" --plan > "$work/plan"
grep -qE "^layers.1.ffn.experts.0.w1.weight +I8 " "$work/plan" || { cat "$work/plan"; fail "experts are not saved as FP4"; }
"$run" "$work/released" --prompt "the sea" -n 5 > /dev/null 2>&1 || fail "the runner refuses a model in the released formats"

# Killed without warning three times; every time it goes on from the last state, to the same bytes.
for wait in 0.7 1.1 1.5; do
  "$train" "$work/text" --out "$work/killed" --resume "${how[@]}" 2> /dev/null &
  sleep $wait
  kill -9 $! 2> /dev/null || true
  wait $! 2> /dev/null || true
done
"$train" "$work/text" --out "$work/killed" --resume --threads 1 "${how[@]}" 2> /dev/null
cmp "$work/whole/model.safetensors" "$work/killed/model.safetensors" || fail "a killed and resumed run has other weights"

# Ctrl-C saves and says so with its status.
"$train" "$work/text" --out "$work/stopped" --steps 100000 --rows 2 --microbatch 2 --row-tokens 128 2> /dev/null &
sleep 2
kill -INT $!
status=0
wait $! || status=$?
[ "$status" -eq 130 ] || fail "interrupted: status $status"
[ -e "$work/stopped/model.safetensors" ] || fail "an interrupted run saved no model"

# Errors.
expect_error() {
  local text=$1
  shift
  if "$train" "$@" > "$work/out" 2> "$work/err"; then fail "accepted: $*"; fi
  grep -qF -- "$text" "$work/err" || { cat "$work/err"; fail "no '$text' from: $*"; }
}
expect_error "does not exist" "$work/nowhere"
expect_error "float32 with --residual plain" "$work/text" --out "$work/plain" --residual plain --numerics v4_released
expect_error "required.data" "$work/log.csv" --out "$work/whole" --resume "${how[@]}"
expect_error "required.--rate" "$work/text" --out "$work/whole" --resume --rate 0.03 "${how[@]}"
expect_error "a folder without saved states, or --resume" "$work/text" --out "$work/whole" "${how[@]}"
expect_error "required.optimizer" "$work/text" --out "$work/whole" --resume --optimizer adamw "${how[@]}"
if CUDA_VISIBLE_DEVICES='' "$train" "$work/text" --out "$work/gpu" --device cuda 2> "$work/err"; then fail "--device cuda without a GPU"; fi
grep -qE "expected (a program built with DSV4_CUDA=ON|a GPU|an NVIDIA driver|a driver for CUDA)" "$work/err" ||
  { cat "$work/err"; fail "--device cuda without a GPU: not a word why"; }
"$train" --rules > "$work/rules"  # not a pipe: grep -q would close it early
grep -q "layers.\*.ffn.experts.\*.w1.weight .* Muon, 8 matrices of 64 rows" "$work/rules" || fail "no table of rules"
echo "dsv4-train: all as expected"
