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
expect_prefill() {  # tokens, arguments
  local tokens=$1
  shift
  "$run" "$@" -n 1 > "$work/out" 2> "$work/err"
  grep -q "prefill $tokens tokens" "$work/err" || { cat "$work/err"; fail "not $tokens tokens: $*"; }
}

# The embedded model, and the same one from a directory in the Hugging Face layout, whatever the chunks.
"$run" --prompt "The sea" -n 20 > "$work/embedded" 2> "$work/err"
grep -q "embedded model: .* trained on .* nats per byte" "$work/err" || { cat "$work/err"; fail "the embedded model does not say what it is"; }
grep -q "prefill 8 tokens, .* tokens/s; decode 20 tokens, .* tokens/s; cache .*; peak memory" "$work/err" || { cat "$work/err"; fail "no figures"; }
"$run" --save "$work/a model" 2> /dev/null
"$run" "$work/a model" --prompt "The sea" -n 20 --chunk 3 > "$work/loaded" 2> /dev/null
cmp "$work/embedded" "$work/loaded" || fail "a saved model writes another text"
printf 'The sea' > "$work/prompt"
"$run" "$work/a model" --prompt-file "$work/prompt" -n 20 --threads 1 2> /dev/null | cmp - "$work/embedded"
"$run" --prompt - -n 20 < "$work/prompt" 2> /dev/null | cmp - "$work/embedded"

# A directory with a tokenizer.json. One whose tokens are the bytes changes nothing.
tokenizer() {  # how many bytes, merges ("a b" makes the token with the next id), special tokens: a tokenizer.json
  python3 - "$@" <<'EOF'
import json, sys
count, merges, special = int(sys.argv[1]), sys.argv[2].split(",") if sys.argv[2] else [], sys.argv[3].split()
printed = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]  # the byte alphabet of BPE files
hidden = [b for b in range(256) if b not in printed]
vocab = {chr(b if b in printed else 256 + hidden.index(b)): b for b in range(count)}
for merge in merges:
    vocab[merge.replace(" ", "")] = len(vocab)
byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
added = [{"id": len(vocab) + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
          "special": True} for i, text in enumerate(special)]
json.dump({"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
           "model": {"type": "BPE", "vocab": vocab, "merges": merges}}, sys.stdout)
EOF
}
cp -r "$work/a model" "$work/tokens"
tokenizer 256 "" "<bos> <eos>" > "$work/tokens/tokenizer.json"
"$run" "$work/tokens" --prompt "The sea" -n 20 2> "$work/err" | cmp - "$work/embedded" || fail "tokens that are bytes write another text"
expect_prefill 8 "$work/tokens" --prompt "The sea"  # with the beginning-of-text token, which is there once
expect_prefill 8 "$work/tokens" --prompt "<bos>The sea"
"$run" "$work/tokens" --save "$work/saved" 2> /dev/null
cmp "$work/tokens/tokenizer.json" "$work/saved/tokenizer.json" || fail "a saved model lost its tokenizer"
echo '{"add_bos_token": false}' > "$work/tokens/tokenizer_config.json"
expect_prefill 7 "$work/tokens" --prompt "The sea"
expect_error "add_bos_token is false" "$work/tokens"
echo '{"add_bos_token": 1}' > "$work/tokens/tokenizer_config.json"
expect_error "tokenizer_config.json: add_bos_token" "$work/tokens"
rm "$work/tokens/tokenizer_config.json"
# Merges are used; ids that only pad the vocabulary print nothing.
tokenizer 245 "e a,s ea" "" > "$work/tokens/tokenizer.json"
expect_prefill 6 "$work/tokens" --prompt "The sea"
tokenizer 245 "" "" > "$work/tokens/tokenizer.json"
"$run" -p x -n 300 --ignore-eos -t 100 2> /dev/null > "$work/bytes"  # so hot that every token comes
"$run" "$work/tokens" -p x -n 300 --ignore-eos -t 100 2> /dev/null > "$work/padded"
if cmp -s "$work/bytes" "$work/padded"; then fail "300 tokens without one that pads: the test tests nothing"; fi
LC_ALL=C tr -d '\365-\377' < "$work/bytes" | cmp - "$work/padded" || fail "tokens that pad the vocabulary"
tokenizer 256 "e a,s ea,h e" "" > "$work/tokens/tokenizer.json"
expect_error "tokenizer.json: tokens: expected at most 258, the model's vocab_size, found 259" "$work/tokens"
echo '{' > "$work/tokens/tokenizer.json"
expect_error "tokenizer.json" "$work/tokens"

# The released formats: the same text from memory, from files, and with a quarter of the experts in memory.
"$run" --numerics v4_released --prompt "The sea" -n 20 > "$work/released" 2> /dev/null
"$run" --numerics v4_released --save "$work/fp4" 2> /dev/null
"$run" "$work/fp4" --prompt "The sea" -n 20 2> /dev/null | cmp - "$work/released" || fail "FP4 from files writes another text"
"$run" "$work/fp4" --plan --context 1000 > "$work/plan"
grep -qE "^layers.1.ffn.experts.0.w1.weight +I8 \\[[0-9]+, 48\\] .* model.safetensors" "$work/plan" || { cat "$work/plan"; fail "plan"; }
grep -q "caches of 1000 tokens" "$work/plan" || fail "plan: no caches"
experts=$(python3 - "$work/fp4/model.safetensors" <<'EOF'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
print(sum(t["data_offsets"][1] - t["data_offsets"][0] for name, t in header.items() if ".experts." in name))
EOF
)
"$run" "$work/fp4" --expert-memory $((experts / 4)) --prompt "The sea" -n 20 2> "$work/err" | cmp - "$work/released" || fail "a quarter of the experts' memory writes another text"
"$run" "$work/fp4" --expert-memory $((experts / 40)) --prompt "The sea" -n 20 2> "$work/err" | cmp - "$work/released"
grep -q "every token reads them from disk again" "$work/err" || { cat "$work/err"; fail "no warning that every token misses"; }
expect_error "the bytes of one expert" "$work/fp4" --expert-memory 100
expect_error "experts in FP4 or FP8" "$work/a model" --expert-memory 1MiB
expect_error "there already" --save "$work/fp4"

# Flash and Pro are planned from headers.
for model in v4_flash v4_pro; do
  "$run" --config $model --numerics v4_released --save-headers "$work/$model"
  "$run" "$work/$model" --plan --context 1000000 > "$work/plan"
  grep -qE "^layers.42.attn.wo_a.weight +F8_E4M3 \\[[0-9]+, 4096\\]" "$work/plan" || fail "plan of $model"
  grep -q "caches of 1000000 tokens" "$work/plan" || fail "plan of $model: no caches"
done
expect_error "expected" "$work/v4_flash"  # there is no data

# Sampling repeats with its seed.
"$run" -p x -t 1 --top-p 0.9 --seed 4 -n 30 > "$work/s1" 2> /dev/null
"$run" -p x -t 1 --top-p 0.9 --seed 4 -n 30 > "$work/s2" 2> /dev/null
"$run" -p x -t 1 --top-p 0.9 --seed 5 -n 30 > "$work/s3" 2> /dev/null
cmp "$work/s1" "$work/s2" || fail "the same seed gives two texts"
if cmp -s "$work/s1" "$work/s3"; then fail "two seeds give one text"; fi

# The embedded model knows the language of its text, in every format: a uniform guess has 5.55 nats per token.
echo "And it came to pass in those days, that the king of Israel went out to meet the people of the land." > "$work/verse"
for numerics in float32 bf16 mxfp4_experts_only v4_released v4_released_base; do
  "$run" --numerics $numerics --perplexity "$work/verse" 2> /dev/null > "$work/p"
  awk '/nats per token/ { exit !($3 < 1.7) }' "$work/p" || { cat "$work/p"; fail "the embedded model has learned nothing: $numerics"; }
done

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
expect_error "float32 without --device cuda" --scalar bf16
expect_error "--device" --device gpu
# Built with CUDA or without: what is missing is said, before anything is read.
if CUDA_VISIBLE_DEVICES='' "$run" --device cuda > "$work/out" 2> "$work/err"; then fail "--device cuda without a GPU"; fi
grep -qE "built without CUDA|expected (a GPU|an NVIDIA driver|a driver for CUDA)" "$work/err" || { cat "$work/err"; fail "no GPU: what?"; }
[ "$(wc -l < "$work/err")" -eq 1 ] || { cat "$work/err"; fail "no GPU: not one line"; }
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
