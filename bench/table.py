# SPDX-License-Identifier: Apache-2.0
"""Prints results of the benchmarks as a table, and beside those of another run as ratios.

usage: table.py RESULTS [--against RESULTS] [--out FILE.json]

RESULTS is a folder with one JSON file per program, as ./dev bench writes, or one file with all of them, as --out writes.
`share` is the part of the machine's bound that is reached: the larger of the part of its multiply-adds (floats, all threads) and
of its memory traffic (for a working set of that size); c or m says which. Bounds are measured in the same program; of a GPU,
they are the first line. With --against: time of the other run / time of this one, so above 1 is faster, and the same for shares.
"""
import argparse
import json
import pathlib
import re
import sys

BOUNDS = ("copy, TB/s", "bf16 product, TFLOP/s")  # of a GPU: what its programs say about themselves


def load(path):
    """{(program, name): benchmark} of all programs, and what they say about the machine."""
    path = pathlib.Path(path)
    files = sorted(path.glob("bench_*.json")) if path.is_dir() else [path]
    if not path.exists() or not files:
        sys.exit(f"{path}: no results")
    found, contexts = {}, []
    for file in files:
        if file.stat().st_size == 0:
            continue  # a filter left nothing of this program
        try:
            content = json.loads(file.read_text())
        except ValueError as failure:
            sys.exit(f"{file}: {failure}")
        if "benchmarks" not in content:
            sys.exit(f"{file}: not a result of Google Benchmark")
        contexts.append(content["context"])
        for b in content["benchmarks"]:
            if b.get("run_type") != "aggregate":
                program = b.get("program") or file.stem.removeprefix("bench_")
                found[program, b["name"]] = {**b, "program": program}
    if not contexts:
        sys.exit(f"{path}: no benchmark of that name")
    context = dict(contexts[0])
    for bound in BOUNDS:  # each program has measured them
        values = {c[bound] for c in contexts if bound in c}
        if len(values) > 1:
            context[bound] = f"{min(values, key=float)} - {max(values, key=float)}"
    return found, context


UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}


def seconds(b):
    return b["real_time"] * UNITS[b["time_unit"]]


def scaled(value, unit):
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, " "), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if value >= factor:
            return f"{value / factor:6.2f} {prefix}{unit}"
    return f"{value:6.2f}  {unit}"


def short(name):
    """A benchmark's name without how it is timed."""
    return re.sub(r"/(iterations:\d+|real_time|manual_time)", "", name)


def share(b):
    """(part of the bound, which bound), or None."""
    both = [(b[key], letter) for key, letter in (("of_peak", "c"), ("of_bandwidth", "m")) if key in b]
    return max(both) if both else (b["share"], " ") if "share" in b else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--against")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    now, context = load(options.results)
    before = load(options.against)[0] if options.against else {}
    if options.out:
        options.out.write_text(json.dumps({"context": context, "benchmarks": list(now.values())}, indent=1) + "\n")

    if "GPU" in context:
        print(context["GPU"] + "".join(f"; {bound}: {context[bound]}" for bound in BOUNDS))
    program, slower, faster = None, 0, 0
    for (own, name), b in now.items():
        if own != program:
            program = own
            print(f"\n{program:54}{'time':>11}{'rate':>15}{'traffic':>13}{'share':>8}" + (f"{'speed':>9}{'share':>7}" if before else ""))
        line = f"  {short(name):52}"
        if b.get("error_occurred"):
            print(line + f"  {b['error_message']}")
            continue
        line += f"{scaled(seconds(b), 's'):>11}"
        line += f"{scaled(b['FLOP/s'], 'FLOP/s') if 'FLOP/s' in b else '':>15}"
        line += f"{scaled(b['bytes_per_second'], 'B/s') if 'bytes_per_second' in b else '':>13}"
        reached = share(b)
        line += f"{reached[0]:6.2f} {reached[1]}" if reached else " " * 8
        other = before.get((own, name))
        if other and not other.get("error_occurred"):
            ratio = seconds(other) / seconds(b)
            slower, faster = slower + (ratio < 0.9), faster + (ratio > 1.1)
            line += f"{ratio:9.2f}"
            if reached and share(other):
                line += f"{reached[0] / share(other)[0]:7.2f}"
        elif before:
            line += "      new"
        print(line.rstrip())
    if before:
        gone = sorted(f"{p}: {n}" for p, n in before if (p, n) not in now)
        print(f"\n{len(now)} results, {faster} more than 1.1 times as fast, {slower} less than 0.9 times" + (
            f"; not in this run: {', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''}" if gone else ""))


if __name__ == "__main__":
    main()
