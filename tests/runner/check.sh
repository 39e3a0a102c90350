#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh DSV4_RUN: the runner as a user types it, its files, its errors, and Ctrl-C.
set -euo pipefail
run=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
expect_error() {  # text, arguments
  local text=$1
  shift
  if "$run" "$@" > "$work/out" 2> "$work/err" < /dev/null; then fail "accepted: $*"; fi
  grep -qF -- "$text" "$work/err" || { cat "$work/err"; fail "no '$text' from: $*"; }
}

# The embedded model, and the same one from a directory in the Hugging Face layout, whatever the chunks.
"$run" --prompt "The sea" -n 20 > "$work/embedded" 2> "$work/err"
grep -q "random weights" "$work/err" || fail "the embedded model does not say that it is random"
grep -q "prefill 8 tokens, .* tokens/s; decode 20 tokens, .* tokens/s; cache .*; peak memory" "$work/err" || { cat "$work/err"; fail "no figures"; }
"$run" --save "$work/a model" 2> /dev/null
"$run" "$work/a model" --prompt "The sea" -n 20 --chunk 3 > "$work/loaded" 2> /dev/null
cmp "$work/embedded" "$work/loaded" || fail "a saved model writes another text"
printf 'The sea' > "$work/prompt"
"$run" "$work/a model" --prompt-file "$work/prompt" -n 20 --threads 1 2> /dev/null | cmp - "$work/embedded"
"$run" --prompt - -n 20 < "$work/prompt" 2> /dev/null | cmp - "$work/embedded"

# Sampling repeats with its seed.
"$run" -p x -t 1 --top-p 0.9 --seed 4 -n 30 > "$work/s1" 2> /dev/null
"$run" -p x -t 1 --top-p 0.9 --seed 4 -n 30 > "$work/s2" 2> /dev/null
"$run" -p x -t 1 --top-p 0.9 --seed 5 -n 30 > "$work/s3" 2> /dev/null
cmp "$work/s1" "$work/s2" || fail "the same seed gives two texts"
if cmp -s "$work/s1" "$work/s3"; then fail "two seeds give one text"; fi

# Perplexity does not depend on the chunks; dumps are files.
head -c 600 "$0" > "$work/text"
"$run" --perplexity "$work/text" 2> /dev/null > "$work/p1"
"$run" --perplexity "$work/text" --chunk 7 2> /dev/null | cmp - "$work/p1" || fail "perplexity depends on the chunk"
grep -q "^600 tokens, .* nats per token, perplexity" "$work/p1" || { cat "$work/p1"; fail "perplexity"; }
"$run" -p abc --dump-layer 2 --dump-logits --dump-file "$work/dump.safetensors" 2> /dev/null
[ "$(stat -c %s "$work/dump.safetensors")" -gt $((4 * 4 * 4 * 96 + 4 * 4 * 258)) ] || fail "the dump is too short"
"$run" --dump-config --config v4_pro | grep -q '"hidden_size": 7168' || fail "dump-config"

# Errors name what is wrong.
expect_error "config.json" "$work/nowhere"
sed 's/"hidden_size": 96/"hidden_size": 97/' "$work/a model/config.json" > "$work/c" && cp "$work/c" "$work/a model/config.json"
expect_error "hidden_size" "$work/a model"
sed -i 's/"hidden_size": 97/"hidden_size": 96/; s/"deepseek_v4"/"deepseek_v41"/' "$work/a model/config.json"
expect_error "deepseek_v41" "$work/a model"
sed -i 's/"deepseek_v41"/"deepseek_v4"/' "$work/a model/config.json"
truncate -s -1 "$work/a model/model.safetensors"
expect_error "model.safetensors" "$work/a model"
expect_error "--config" --config nonsense
expect_error "temperature" --temperature nan
expect_error "--dump-layer" -p x --dump-layer 9 --dump-file "$work/none"
[ ! -e "$work/none" ] || fail "a failed dump left a file"

# Ctrl-C ends it soon, with the status of an interrupted program and a whole last line.
"$run" -p x -n 100000000 --ignore-eos > "$work/endless" 2> "$work/err" &
sleep 0.5
kill -INT $!
status=0
wait $! || status=$?
[ "$status" -eq 130 ] || fail "interrupted: status $status"
[ "$(tail -c 1 "$work/endless" | od -An -tx1 | tr -d ' ')" = 0a ] || fail "interrupted: the last line is not whole"
echo "dsv4-run: all as expected"
