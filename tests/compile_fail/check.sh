#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh SOURCE COMPILER ARGUMENT...: the source must not compile, and the compiler must say what its first line expects.
set -u
source=$1
shift
expected=$(sed -n '1s#^// expect: ##p' "$source")
[ -n "$expected" ] || { echo "$source: no '// expect:' line"; exit 1; }
if output=$("$@" "$source" 2>&1); then echo "$source: compiled"; exit 1; fi
grep -qF -- "$expected" <<<"$output" && exit 0
echo "$source: the message is not: $expected"
echo "$output"
exit 1
