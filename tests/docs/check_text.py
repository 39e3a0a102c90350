# SPDX-License-Identifier: Apache-2.0
"""Looks for what README.md, docs/ and the other pages name and is not there: links, headings, paths, commands, options.

usage: check_text.py SOURCE_DIR [BIN_DIR]

With BIN_DIR, options of programs that have been built are looked up in what their --help prints.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys

source = pathlib.Path(sys.argv[1]).resolve()
bin_dir = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
errors, checked = [], {"links": 0, "paths": 0, "commands": 0}
FOLDERS = ("include", "docs", "tests", "bench", "examples", "cmake", "ops", "blocks", "model", "train", "io", "exec", "config",
           "numeric", "tensor", "core", "dsv4", ".ci")
WILD = re.compile(r"[*<>{}$ ]")


def slug(heading):
    text = re.sub(r"`|\*\*|\[|\]\([^)]*\)", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def headings(text):
    return {slug(m[1]) for m in re.finditer(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)}


def exists(path):
    """Whether a path names a file or folder of the source, as it is or below include/ or include/dsv4."""
    return any((base / path).exists() for base in (source, source / "include", source / "include/dsv4", source / "tests"))


def check_links(page, text):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        if re.match(r"[a-z]+:", target):
            continue
        checked["links"] += 1
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            errors.append(f"{page.relative_to(source)}: link to {target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in headings(file.read_text()):
            errors.append(f"{page.relative_to(source)}: link to {target}: no such heading")


def check_paths(page, text):
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for name in re.findall(r"`([\w./-]+)`", prose):
        if name.startswith(tuple(f + "/" for f in FOLDERS)) and not name.startswith("build/"):
            checked["paths"] += 1
            # Pages name tests without their suffix.
            if not any(exists(name + suffix) for suffix in ("", ".hpp", ".test.cpp", ".test.cu", ".cpp", ".sh", ".cu")):
                errors.append(f"{page.relative_to(source)}: `{name}`: no such file or folder")


def help_of(program):
    if bin_dir is None or not (bin_dir / program).exists():
        return None
    done = subprocess.run([bin_dir / program, "--help"], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def known_programs():
    """Names of programs that the build makes, from their sources."""
    names = {f"dsv4-{p.stem}" for p in (source / "examples").glob("*.cpp")}
    names |= {"bench_" + p.name.removesuffix(".bench.cpp") for p in (source / "bench").rglob("*.bench.cpp")}
    names |= {f"test_{p.parent.name}_{p.name.removesuffix('.test.cpp')}" for p in (source / "tests").glob("*/*.test.cpp")}
    names |= {f"{p.parent.name}_{p.stem}" for p in (source / "tests").glob("*/*.cu")}
    return names


def check_command(page, line, whole, words):
    where = f"{page.relative_to(source)}: `{line}`"
    program = words[0]
    if program == "./dev":
        listed = re.findall(r"^\./dev (\S+)", subprocess.run([source / "dev", "help"], capture_output=True, text=True).stdout, re.M)
        if len(words) > 1 and words[1] not in listed:
            errors.append(f"{where}: ./dev help does not list {words[1]}")
    elif program.startswith("build/bin/"):
        name = program.removeprefix("build/bin/")
        if name not in known_programs():
            errors.append(f"{where}: the build makes no program of this name")
        elif name.startswith("dsv4-") and (text := help_of(name)):
            for option in (w.split("=")[0] for w in words[1:] if re.match(r"--?[a-z]", w)):
                if not re.search(rf"(^|[\s,]){re.escape(option)}\b", text):
                    errors.append(f"{where}: {name} --help does not list {option}")
    elif program.startswith("./") and not exists(program) and f"-o {program[2:]} " not in whole:
        errors.append(f"{where}: no such file")
    for word in words[1:]:
        if re.match(r"(tests|bench|examples|docs|include|cmake)/", word) and not WILD.search(word) and not exists(word):
            errors.append(f"{where}: {word}: no such file")


def check_commands(page, text):
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:&&|\|\||\||;)\s", line):
                words = shlex.split(part, comments=True)
                while words and (re.match(r"\w+=", words[0]) or words[0] in ("sudo", "time")):
                    words = words[1:]
                if words:
                    checked["commands"] += 1
                    check_command(page, part.strip(), line, words)


for page in [*sorted(source.glob("*.md")), *sorted((source / "docs").rglob("*.md")), *sorted((source / "tests").glob("*.md"))]:
    text = page.read_text()
    check_links(page, text)
    check_paths(page, text)
    check_commands(page, text)
print("\n".join(errors) or ", ".join(f"{n} {what}" for what, n in checked.items()) + ": all there")
sys.exit(bool(errors))
