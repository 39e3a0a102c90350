# SPDX-License-Identifier: Apache-2.0
"""Times the compiler on the files of bench/compile_time, one at a time.

usage: compile_time.py [--compiler g++] [--rounds 3] [--out FILE.json]

Prints processor seconds (user and system, median of the rounds) and their ratio to the yardstick's, without optimisation and
with -O2. Every round compiles every file, so that a change of the machine's speed meets all of them.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess

here = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--compiler", default="g++")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--out", type=pathlib.Path)
options = parser.parse_args()

FILES = ["yardstick", "hyper_connection_site", "moe", "attention", "flash_precompiled", "flash", "flash_released"]
LEVELS = ["-O0", "-O2"]
GOALS = {"hyper_connection_site": 3, "moe": 3, "attention": 3, "flash": 20, "flash_released": 20}


def seconds(file, level):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*options.compiler.split(), "-std=c++20", level, "-I", here.parent / "include", "-isystem", "/usr/include/eigen3",
                    "-c", here / "compile_time" / (file + ".cpp"), "-o", "/dev/null"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


times = {}
for _ in range(options.rounds):
    for level in LEVELS:
        for file in FILES:
            times.setdefault((file, level), []).append(seconds(file, level))

result = []
print(f"{'file':24}{'':5}{'seconds':>9}{'/ yardstick':>13}   goal")
for file in FILES:
    for level in LEVELS:
        s = statistics.median(times[file, level])
        ratio = s / statistics.median(times["yardstick", level])
        goal = f"below {GOALS[file]} s" if file in GOALS else ""
        print(f"{file:24}{level:5}{s:9.2f}{ratio:13.2f}   {goal}")
        result.append({"file": file, "level": level, "seconds": s, "ratio": ratio})
if options.out:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"compile_time": result}, indent=1) + "\n")
