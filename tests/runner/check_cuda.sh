#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_cuda.sh DSV4_RUN: the runner on a GPU against the same program on the CPU. Needs a GPU.
set -euo pipefail
run=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
expect_error() {  # text, arguments
  local text=$1
  shift
  if "$run" --device cuda "$@" > "$work/out" 2> "$work/err"; then fail "accepted: $*"; fi
  grep -qF -- "$text" "$work/err" || { cat "$work/err"; fail "no '$text' from: $*"; }
}
largest_difference() {  # two dumps: over all numbers, relative to the larger of 1 and the second
  python3 - "$@" << 'EOF'
import array, json, struct, sys
def numbers(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    found = array.array("f")
    for name, tensor in sorted(json.loads(data[8:8 + size]).items()):
        if name.startswith(("hidden", "logits")):
            begin, end = tensor["data_offsets"]
            found.frombytes(data[8 + size + begin:8 + size + end])
    return found
a, b = map(numbers, sys.argv[1:])
assert len(a) == len(b) > 0
print(max(abs(x - y) / max(1, abs(y)) for x, y in zip(a, b)))
EOF
}
below() { awk -v value="$1" -v limit="$2" 'BEGIN { exit !(value >= 0 && value < limit) }'; }
head -c 3000 "$0" > "$work/text"
nats() { "$run" --perplexity "$work/text" "$@" 2> /dev/null | sed 's/.* tokens, \(.*\) nats.*/\1/'; }
apart() { python3 -c 'import sys; print(abs(float(sys.argv[1]) - float(sys.argv[2])))' "$@"; }

# In float the GPU computes what the CPU computes, but for the order of sums: 2e-4, as for the recorded models.
for numerics in float32 bf16 mxfp4_experts_only; do
  "$run" --numerics $numerics -p "The sea" -n 40 > "$work/cpu" 2> /dev/null
  "$run" --numerics $numerics -p "The sea" -n 40 --device cuda > "$work/gpu" 2> "$work/err"
  cmp "$work/cpu" "$work/gpu" || fail "$numerics: another text on the GPU"
  grep -q "on the GPU [0-9.]* [KMG]iB" "$work/err" || { cat "$work/err"; fail "no memory of the GPU"; }
  for device in cpu cuda; do
    "$run" --numerics $numerics -f "$work/text" --chunk 700 --dump-layer 3 --dump-logits --dump-file "$work/$device.safetensors" --device $device 2> /dev/null
  done
  difference=$(largest_difference "$work/cuda.safetensors" "$work/cpu.safetensors")
  echo "$numerics: $difference"
  below "$difference" 2e-4 || fail "$numerics: other numbers on the GPU"
done
# What is rounded to FP8 or bf16 may fall to the other side there, but the mean over a text hardly moves.
for how in "v4_released float32 0.01" "v4_released_base float32 0.01" "float32 bf16 0.02" "v4_released bf16 0.02"; do
  read -r numerics scalar limit <<< "$how"
  difference=$(apart "$(nats --numerics $numerics)" "$(nats --numerics $numerics --device cuda --scalar $scalar)")
  echo "$numerics, computed in $scalar: $difference nats"
  below "$difference" "$limit" || fail "$numerics, $scalar: another perplexity on the GPU"
done

# A recorded step makes the token that its kernels one by one make; so does a saved model.
for numerics in float32 v4_released; do
  rm -rf "$work/model"
  "$run" --numerics $numerics --save "$work/model" 2> /dev/null
  for scalar in float32 bf16; do
    gpu() { "$run" "$@" --device cuda --scalar $scalar -p "The sea" -n 300 --ignore-eos 2> /dev/null; }
    gpu --numerics $numerics > "$work/graphs"
    gpu --numerics $numerics --no-graphs | cmp - "$work/graphs" || fail "$numerics, $scalar: graphs write another text"
    gpu "$work/model" | cmp - "$work/graphs" || fail "$numerics, $scalar: a saved model writes another text"
  done
done
"$run" --config v4_bench --numerics v4_released --device cuda --scalar bf16 -p "The sea" -n 20 > /dev/null 2> "$work/err" || { cat "$work/err"; fail "v4_bench"; }

expect_error "which holds all experts" --numerics v4_released --expert-memory 1MiB
expect_error "--dump-layer" -p x --dump-layer 9 --dump-file "$work/none"
echo "dsv4-run --device cuda: all as expected"
