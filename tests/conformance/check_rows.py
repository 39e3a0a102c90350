# SPDX-License-Identifier: Apache-2.0
"""check_rows.py SUITE_DIR DOC: every row of the list of reported bugs is in DOC's table, with the vectors that the manifest
has for it, or with the reason why there is none; every op is in DOC's table of ops."""
import json
import pathlib
import re
import sys

manifest = json.loads((pathlib.Path(sys.argv[1]) / "manifest.json").read_text())
text = pathlib.Path(sys.argv[2]).read_text()
rows = {}
for item in manifest["vectors"] + manifest["refuse"]:
    for row in item["rows"]:
        rows.setdefault(row, []).append(item.get("name", item.get("file")))
wanted = [str(i) for i in range(1, 67)]
wanted.insert(wanted.index("51") + 1, "51b")
table = re.findall(r"^\| (\d+b?) \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", text, re.M)
problems = []
if [row for row, *_ in table] != wanted:
    problems.append(f"the table's rows are {[row for row, *_ in table]}")
for row, mistake, vectors, how in table:
    named = re.findall(r"`([^`]+)`", vectors)
    if named != rows.get(row, []):
        problems.append(f"row {row}: the manifest has {rows.get(row, [])}, the table {named}")
    if not named and not how.startswith("no vector: "):
        problems.append(f"row {row} has neither a vector nor a reason")
for row in rows:
    if row not in wanted:
        problems.append(f"row {row} is not in the list")
for op in sorted({node["op"] for v in manifest["vectors"] for node in v["nodes"]}):
    base = op.removesuffix(".backward")
    if f"`{base}`" not in text and f"`{base[base.rfind('_'):]}`" not in text and base not in ("greedy", "packed_model", "next_token_loss"):
        problems.append(f"op {op} is not described")
print("\n".join(problems) or f"{len(table)} rows: {sum(1 for r in wanted if r in rows)} with vectors")
sys.exit(bool(problems))
