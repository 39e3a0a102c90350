# SPDX-License-Identifier: Apache-2.0
"""Includes point one way. usage: check_includes.py INCLUDE_DIR"""
import pathlib
import re
import sys

RANK = {"core": 0, "numeric": 1, "tensor": 2, "exec": 3, "config": 3, "ops": 4, "cost": 4, "blocks": 5, "model": 6, "train": 7, "io": 8}
root = pathlib.Path(sys.argv[1]) / "dsv4"
errors = []
for path in sorted(root.rglob("*.[hc][pu][ph]")):
    inner = path.relative_to(root)
    text = path.read_text()
    if len(text.splitlines()) > 400:
        errors.append(f"{inner}: longer than 400 lines")
    if not text.startswith("// SPDX-License-Identifier: Apache-2.0"):
        errors.append(f"{inner}: no SPDX line")
    for included in re.findall(r'#include\s*[<"]([^>"]+)[>"]', text):
        if included.startswith("Eigen/") and str(inner) != "tensor/eigen.hpp":
            errors.append(f"{inner}: only tensor/eigen.hpp includes Eigen")
        if included.startswith("nlohmann/") and inner.parts[0] != "io":
            errors.append(f"{inner}: only io/ includes nlohmann_json")
        if not included.startswith("dsv4/") or len(inner.parts) == 1:
            continue
        target = pathlib.PurePath(included).parts[1:]
        if not (root / pathlib.Path(*target)).exists():
            errors.append(f"{inner}: {included} does not exist")
        elif len(target) == 1:
            if target[0] not in ("version.hpp",):
                errors.append(f"{inner}: includes the umbrella {included}")
        elif RANK[target[0]] > RANK[inner.parts[0]]:
            errors.append(f"{inner}: {included} points the wrong way")
print("\n".join(errors) or f"{sum(1 for _ in root.rglob('*.hpp'))} headers, all includes point one way")
sys.exit(bool(errors))
