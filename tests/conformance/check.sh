#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh DSV4_CONFORMANCE SOURCE_DIR: the suite as a user makes it and checks with it. With NumPy, its values against others.
set -euo pipefail
program=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }

# The same bytes as everywhere; small.
"$program" make "$work/suite"
(cd "$work/suite" && find . -type f | sort | sed 's/^\.\///' | xargs sha256sum) > "$work/digests"
diff "$source/tests/conformance/digests.txt" "$work/digests" > "$work/changed" ||
  { head -20 "$work/changed"; fail "the suite has other bytes: raise suite_version and renew tests/conformance/digests.txt"; }
[ "$(du -sb --apparent-size "$work/suite" | cut -f1)" -lt 3300000 ] || fail "the suite is too large"
python3 "$source/tests/conformance/check_rows.py" "$work/suite" "$source/docs/conformance.md"

# Our own engine in float: within tolerance, and the same for any number of threads.
"$program" dump "$work/suite" "$work/dump" --threads 1
"$program" dump "$work/suite" "$work/dump3" --threads 3
"$program" same "$work/dump" "$work/dump3" | grep -q " 0 differences" || fail "another number of threads gives other bits"
"$program" check "$work/suite" "$work/dump" > "$work/out" || { cat "$work/out"; fail "our own dump leaves the path"; }
grep -q "^mixed, rollback: 7 tensors agree" "$work/out" || { cat "$work/out"; fail "runs of the model are missing"; }
awk '/of the tolerance/ { for (i = 1; i < NF; ++i) if ($i == "most" && $(i + 1) > 0.5) { print; bad = 1 } } END { exit bad }' "$work/out" ||
  fail "less than half of a tolerance is left to other engines"

# A dump of wrong numbers, one that accepts what it must refuse, and no dump.
cp "$work/dump/models/released/whole.safetensors" "$work/dump/models/mixed/padded_left.safetensors"
if "$program" check "$work/suite" "$work/dump" -q > "$work/out"; then fail "a wrong dump passes"; fi
grep -q "^mixed, padded_left: leaves the path at packed.logits" "$work/out" || { cat "$work/out"; fail "the wrong dump is not named"; }
mv "$work/dump/models/mixed/padded_left.safetensors" "$work/dump/models/mixed/padded_lfet.safetensors"
if "$program" check "$work/suite" "$work/dump" -q > "$work/out"; then fail "a file that nothing reads passes"; fi
grep -q "^models/mixed/padded_lfet.safetensors: belongs to no vector" "$work/out" || { cat "$work/out"; fail "the misspelt file is not named"; }
rm "$work/dump/models/mixed/padded_lfet.safetensors"
echo '["refuse/overlap.safetensors"]' > "$work/dump/refused.json"
if "$program" check "$work/suite" "$work/dump" -q > "$work/out"; then fail "a reader that accepts anything passes"; fi
grep -q "refuse/unknown_dtype.safetensors: was not refused" "$work/out" || { cat "$work/out"; fail "the accepted file is not named"; }
mkdir "$work/empty"
"$program" check "$work/suite" "$work/empty" > "$work/out" 2>&1 && fail "an empty dump passes"
"$program" check "$work/empty" "$work/dump" > "$work/out" 2>&1 && fail "a folder without a suite passes"
grep -q "no suite here" "$work/out" || fail "no word about the missing suite"

# Values of other origin, and the checker on an engine that is not ours.
status=0
python3 "$source/tests/conformance/cross_check.py" "$work/suite" --write "$work/numpy" || status=$?
[ $status -eq 77 ] && exit 0
[ $status -eq 0 ] || fail "another implementation disagrees"
"$program" check "$work/suite" "$work/numpy" --precision f64 -q || fail "the checker refuses another engine's dump"
