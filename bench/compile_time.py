# SPDX-License-Identifier: Apache-2.0
"""Times the compiler on the files of bench/compile_time, one at a time.

usage: compile_time.py [--compiler g++] [--rounds 3] [--out FILE.json]

Prints processor seconds (user and system, median of the rounds) and their ratio to the yardstick's, without optimisation and
with -O2; of blocks and models also with kernels that are compiled elsewhere; of blocks in float with <dsv4/cpu.hpp>, and with headers
that were precompiled. Every round compiles every file, so that a change of the machine's speed meets all of them.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

here = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--compiler", default="g++")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--out", type=pathlib.Path)
options = parser.parse_args()

BLOCKS = ["hyper_connection_site", "moe", "attention"]
LIBRARY = BLOCKS + ["moe_released", "attention_released", "flash", "flash_released"]
FILES = ["yardstick", "flash_precompiled", "cpu_kernels"] + LIBRARY
LEVELS = ["-O0", "-O2"]
COMPILED_KERNELS = ["-DDSV4_COMPILED_KERNELS=1"]  # what a user of dsv4::cpu_kernels compiles
ALL_KERNELS = ["-include", "dsv4/cpu.hpp"]  # those for narrow weights too
GOALS = {file: 20 if file.startswith("flash") else 3 for file in LIBRARY}


def compiler(level, *arguments):
    """Processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*options.compiler.split(), "-std=c++20", level, "-I", here.parent / "include", "-isystem", "/usr/include/eigen3",
                    *arguments], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds(file, level, *arguments):
    return compiler(level, *arguments, "-c", here / "compile_time" / (file + ".cpp"), "-o", "/dev/null")


times = {}
with tempfile.TemporaryDirectory() as folder:
    for level in LEVELS:  # what target_precompile_headers does
        header = pathlib.Path(folder) / level / "precompiled.hpp"
        header.parent.mkdir()
        header.write_text("#include <dsv4/cpu.hpp>\n" + "".join(
            f"#include <dsv4/blocks/{block}.hpp>\n" for block in BLOCKS) + "#include <dsv4/config/presets.hpp>\n")
        compiler(level, "-x", "c++-header", header, "-o", f"{header}.gch")
    for _ in range(options.rounds):
        for level in LEVELS:
            for file in FILES:
                times.setdefault((file, level), []).append(seconds(file, level))
            for file in LIBRARY:
                times.setdefault((file + ", kernels elsewhere", level), []).append(seconds(file, level, *COMPILED_KERNELS))
            for block in BLOCKS:
                times.setdefault((block + ", all kernels", level), []).append(seconds(block, level, *ALL_KERNELS))
                how = ["-include", pathlib.Path(folder) / level / "precompiled.hpp"]
                times.setdefault((block + ", precompiled", level), []).append(seconds(block, level, *how))

result = []
print(f"{'file':42}{'':5}{'seconds':>9}{'/ yardstick':>13}   goal")
for file in (FILES + [file + ", kernels elsewhere" for file in LIBRARY]
             + [block + how for how in (", all kernels", ", precompiled") for block in BLOCKS]):
    for level in LEVELS:
        s = statistics.median(times[file, level])
        ratio = s / statistics.median(times["yardstick", level])
        of = file.split(",")[0]
        goal = f"below {GOALS[of]} s" if of in GOALS else ""
        print(f"{file:42}{level:5}{s:9.2f}{ratio:13.2f}   {goal}")
        result.append({"file": file, "level": level, "seconds": s, "ratio": ratio})
if options.out:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"compile_time": result}, indent=1) + "\n")
