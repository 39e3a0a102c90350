#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh DSV4_DISTILL: all stages in short, on one thread and on two, and the table in a page.
set -euo pipefail
distill=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
printf 'before\n<!-- table: dsv4-distill --table FILE -->\nold\n<!-- /table -->\nafter\n' > "$work/page.md"

"$distill" --quick --threads 1 --table "$work/page.md" > "$work/table" 2> "$work/err"
"$distill" --quick --threads 2 > "$work/again" 2> "$work/err"
cmp "$work/table" "$work/again" || fail "the table depends on the number of threads"
[ "$(wc -l < "$work/table")" -eq 13 ] || { cat "$work/table"; fail "not eleven models below the heading"; }
{ echo before; echo '<!-- table: dsv4-distill --table FILE -->'; cat "$work/table"; echo '<!-- /table -->'; echo after; } > "$work/want.md"
cmp "$work/want.md" "$work/page.md" || fail "the page has not the table, or lost something else"

# However short, distillation brings the student nearer to its teachers.
awk -F'|' '/base/ { base = $8 } /distillation alone/ { student = $8 }
           END { exit !(base > 0 && student > 0 && student < 0.7 * base) }' "$work/table" ||
  { cat "$work/table"; fail "the student is as far from its teachers as before"; }

# Errors, before any work.
expect_error() {
  local text=$1
  shift
  if "$distill" "$@" > "$work/out" 2> "$work/err"; then fail "accepted: $*"; fi
  grep -qF -- "$text" "$work/err" || { cat "$work/err"; fail "no '$text' from: $*"; }
}
expect_error "no such lines" --quick --table "$work/table"
expect_error "nowhere.md" --quick --table "$work/nowhere.md"
expect_error "--seeds" --seeds 0
echo "dsv4-distill: all as expected"
