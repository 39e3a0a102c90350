# SPDX-License-Identifier: Apache-2.0
"""The table of ops in README.md, from the headers: which policy has a kernel, forward and backward.

An op that is composed of others runs under every policy; a kernel of its own only makes it faster.

usage: ops_table.py SOURCE_DIR            fails when README.md has another table
       ops_table.py SOURCE_DIR --write    puts the table into README.md
"""
import pathlib
import re
import sys

source = pathlib.Path(sys.argv[1]).resolve()
include, readme = source / "include/dsv4", source / "README.md"
BEGIN, END = "<!-- ops: tests/docs/ops_table.py --write -->\n", "<!-- /ops -->\n"
POLICIES = ("reference", "cpu", "cuda")


def body(text, at):
    """The text between the braces that open next after `at`."""
    begin = text.index("{", at)
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i]
    return text[begin:]


def kernels(files):
    """{(op, policy): passes} of all kernels that are defined in the files."""
    found, inherited = {}, []
    for file in files:
        text = file.read_text()
        for match in re.finditer(r"^struct (\w+) {\n(?=[^}]*static constexpr bool composed = true)", text, re.M):
            inside = body(text, match.start())
            passes = {p for p in ("forward", "backward") if re.search(rf"\bstatic void {p}\(", inside)}
            for policy in POLICIES:
                found.setdefault((match[1], policy), set()).update(passes)
        for match in re.finditer(r"struct kernel<\s*(\w+)<[^{;]*?>\s*,\s*exec::(\w+)>\s*(:[^{;]*)?{", text):
            op, policy, base = match[1], match[2], match[3] or ""
            inside = body(text, match.start())
            passes = {p for p in ("forward", "backward") if re.search(rf"\b{p}\(", inside)}
            if "exec::reference" in base:
                inherited.append((op, policy))
            found.setdefault((op, policy), set()).update(passes)
    for op, policy in inherited:
        found[op, policy] |= found.get((op, "reference"), set())
    return found


def table():
    all_kernels = kernels([*include.rglob("*.hpp"), *include.rglob("*.cuh")])
    lines = ["| op | what | " + " | ".join(POLICIES) + " |", "|---|---|" + "---|" * len(POLICIES)]
    for header in sorted((include / "ops").glob("*.hpp")):
        text = header.read_text()
        ops = re.findall(r"^struct (\w+) {\n(?:  static_assert[^\n]*\n)?  static constexpr space memory", text, re.M)
        if not ops:
            continue
        banner = " ".join(line.removeprefix("/// ") for line in text.splitlines()[1:] if line.startswith("///"))
        what = re.match(r".*?[.:;](?=\s|$)", banner)[0].rstrip(".:;")
        cells = []
        for policy in POLICIES:
            marks = {"F" * ("forward" in all_kernels.get((op, policy), ())) + "B" * ("backward" in all_kernels.get((op, policy), ()))
                     for op in ops}
            cells.append(" / ".join(sorted(" ".join(m) or "-" for m in marks)))
        lines.append(f"| [`{header.stem}`](include/dsv4/ops/{header.name}) | {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    now, _, after = rest.partition(END)
    wanted = table()
    if "--write" in sys.argv:
        readme.write_text(before + BEGIN + wanted + END + after)
    elif not rest or now != wanted:
        sys.exit("README.md's table of ops is not what the headers have: run tests/docs/ops_table.py . --write\n" + wanted)
    else:
        print(f"{wanted.count(chr(10)) - 2} ops: README.md has them right")
