#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh DSV4_COST [DSV4_RUN]: the tables, the curves, the errors; with the runner, a config.json of each preset.
set -euo pipefail
cost=$1
run=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
expect() {  # text, arguments
  local text=$1
  shift
  "$cost" "$@" > "$work/out"
  grep -qF -- "$text" "$work/out" || { cat "$work/out"; fail "no '$text' from: $*"; }
}
expect_error() {  # text, arguments
  local text=$1
  shift
  if "$cost" "$@" > "$work/out" 2>&1; then fail "accepted: $*"; fi
  grep -qF -- "$text" "$work/out" || { cat "$work/out"; fail "no '$text' from: $*"; }
}

# What was announced, at a million tokens.
expect "27.07% of V3.2's 1.15 T, 3.69 times fewer" --model v4_pro
expect "10.48% of V3.2's, 9.54 times smaller" --model v4_pro
expect "10.17% of V3.2's 1.15 T, 9.83 times fewer" --model v4_flash
expect "7.32% of V3.2's, 13.67 times smaller"
expect "context of 1048576" --context 1048576
expect "one document of 777 tokens" --model v4_nano --train-tokens 777

"$cost" --model v4_bench --svg "$work/curves" > /dev/null
for name in cost-flops cost-cache; do
  python3 - "$work/curves/$name.svg" << 'EOF'
import sys, xml.dom.minidom
svg = xml.dom.minidom.parse(sys.argv[1])
assert len(svg.getElementsByTagName("polyline")) == 4, "V3.2, Pro, Flash and the chosen model"
EOF
done

expect_error "--model" --model v5
expect_error "no such file" --config "$work/none.json"
echo '{"vocab_size": 5}' > "$work/config.json"
expect_error "hidden_size: expected a whole number from 1, found none" --config "$work/config.json"
echo 'no' > "$work/config.json"
expect_error "expected JSON" --config "$work/config.json"

if [ -n "$run" ]; then
  for model in v4_nano v4_bench v4_flash v4_pro; do
    "$run" --dump-config --config $model > "$work/config.json"
    "$cost" --model $model > "$work/a"
    "$cost" --config "$work/config.json" > "$work/b"
    cmp "$work/a" "$work/b" || fail "another cost from the config.json of $model"
  done
fi
echo "dsv4-cost: all as it should be"
