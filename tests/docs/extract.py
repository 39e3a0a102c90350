# SPDX-License-Identifier: Apache-2.0
"""Turns the code blocks of README.md and docs/ into programs and projects.

usage: extract.py SOURCE_DIR OUT_DIR

A ```cpp block with `int main` is a program; a fragment needs a prelude. What a block is, comment lines right before it say:

    <!-- prelude: NAME -->          put into tests/docs/preludes/NAME.cpp where that says BLOCK
    <!-- arguments: A B -->         what the program is run with, in SOURCE_DIR
    <!-- compiled only -->          the program is not run
    <!-- project: NAME/FILE -->     a file of a project (any language) that tests/package/check.sh builds

Writes OUT_DIR/<page>_<line>.cpp, OUT_DIR/projects/NAME/FILE, and OUT_DIR/programs.cmake, which lists the programs.
"""
import pathlib
import re
import sys

source, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
directive = re.compile(r"<!--\s*(prelude|arguments|compiled only|project)\s*:?\s*(.*?)\s*-->$")


def pages():
    return [source / "README.md", *sorted((source / "docs").rglob("*.md"))]


def blocks(page):
    """(language, directives, number of the first line, text) of every fenced block."""
    found, said, fence = [], {}, None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is None and line.startswith("```"):
            fence = (line[3:].strip(), number + 1, [])
        elif fence is not None and line.startswith("```"):
            found.append((fence[0], said, fence[1], "\n".join(fence[2]) + "\n"))
            said, fence = {}, None
        elif fence is not None:
            fence[2].append(line)
        elif match := directive.match(line):
            said[match[1]] = match[2]
        elif line.strip():
            said = {}
    if fence is not None:
        sys.exit(f"{page.relative_to(source)}: a block that begins in line {fence[1] - 1} does not end")
    return found


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main():
    programs = []
    for page in pages():
        name = page.relative_to(source)
        for language, said, line, text in blocks(page):
            if "project" in said:
                write(out / "projects" / said["project"], text)
                continue
            if language != "cpp":
                continue
            marked = f'#line {line} "{name}"\n{text}'
            if "prelude" in said:
                prelude = source / "tests/docs/preludes" / (said["prelude"] + ".cpp")
                before, _, after = prelude.read_text().partition("// BLOCK\n")
                after_line = before.count("\n") + 2
                marked = f'{before}{marked}#line {after_line} "{prelude.relative_to(source)}"\n{after}'
            elif "int main" not in text:
                sys.exit(f"{name}:{line}: neither a program nor one with a prelude (see tests/docs/extract.py)")
            stem = f"{name.with_suffix('')}_{line}".replace("/", "_").replace("-", "_").lower()
            write(out / f"{stem}.cpp", marked)
            run = "compiled only" if "compiled only" in said else said.get("arguments", "")
            programs.append(f'dsv4_documented_program({stem} "{run}")\n')
    write(out / "programs.cmake", "".join(programs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
