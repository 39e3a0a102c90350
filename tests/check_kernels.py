# SPDX-License-Identifier: Apache-2.0
"""Every kernel waits for the kernels before it. usage: check_kernels.py SOURCE_DIR

exec::cuda starts kernels early: one that reads before it waits is a race, which no test is sure to see.
Prefetches may come first. Kernels that are launched with <<<>>> are not the policy's."""
import pathlib
import re
import sys

FIRST = re.compile(r"\s*(?:prefetch_\w+(?:<\w+>)?\([^;]*\);\s*)*wait_for_previous_kernels\(\);")
root = pathlib.Path(sys.argv[1])
errors, count = [], 0
for folder in ("include", "bench", "examples", "tests"):
    for path in sorted((root / folder).rglob("*.cu*")):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        for kernel in re.finditer(r"__global__", text):
            at, depth = kernel.end(), 0
            while text[at] not in "{;" or depth:  # a body or a declaration, after the parameters
                depth += (text[at] == "(") - (text[at] == ")")
                at += 1
            name = next(n for n in re.findall(r"(\w+)\s*\(", text[kernel.end() : at]) if n != "__launch_bounds__")
            if text[at] == ";" or re.search(rf"\b{name}\s*(<[^<;]*>)?<<<", text):
                continue
            count += 1
            if not FIRST.match(text, at + 1):
                errors.append(f"{path.relative_to(root)}: {name} does not begin with wait_for_previous_kernels()")
print("\n".join(errors) or f"{count} kernels, all wait first")
sys.exit(bool(errors) or not count)
