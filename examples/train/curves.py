# SPDX-License-Identifier: Apache-2.0
"""Trains small models on a text, each in several ways, and draws their losses on text that was held out.

usage: curves.py DSV4_TRAIN TEXT [--out FOLDER] [--draw FILE.svg] [--steps N] [--seeds N] [--jobs N]

Three ways: Muon with mHC, AdamW with mHC, Muon with a plain residual. First a learning rate for each: the best of three, or of more
if that is the lowest or highest, after a third of the steps. Then runs of as many tokens, in an order that only the seed fixes; and
for ways whose steps take less time than those of Muon with mHC, runs of as much time. Time is the processor's (one thread), so other
programs hardly change it. FOLDER keeps the logs; what is there is not run again.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import statistics
import subprocess

import plot

ROWS, ROW_TOKENS = 8, 256
WAYS = {  # name: (colour, options, rates)
    "Muon, mHC": ("#0b6fb8", ["--optimizer", "muon", "--residual", "mhc"], (1e-2, 2e-2, 4e-2)),
    "AdamW, mHC": ("#c2410c", ["--optimizer", "adamw", "--residual", "mhc"], (2.5e-3, 5e-3, 1e-2)),
    "Muon, plain residual": ("#15803d", ["--optimizer", "muon", "--residual", "plain"], (1e-2, 2e-2, 4e-2)),
}


class Runs:
    def __init__(self, arguments):
        self.program, self.text = arguments.program, arguments.text
        self.folder = pathlib.Path(arguments.out)
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, way, rate, steps, seed):
        """{"curve": [(million tokens, held-out loss)], "last": loss, "seconds": per step}"""
        name = f"{way.replace(', ', '-').replace(' ', '-').lower()}-{rate:g}-{steps}-{seed}"
        log, cost = self.folder / f"{name}.csv", self.folder / f"{name}.json"
        if not cost.exists():
            command = [self.program, self.text, "--out", str(self.folder / name), "--log", str(log), "--threads", "1", *WAYS[way][1],
                       "--rate", f"{rate:g}", "--seed", str(seed), "--steps", str(steps), "--rows", str(ROWS), "--microbatch", str(ROWS),
                       "--row-tokens", str(ROW_TOKENS), "--evaluate-every", str(max(1, steps // 12)), "--held-out-rows", "32",
                       "--save-every", str(steps)]
            shutil.rmtree(self.folder / name, ignore_errors=True)  # states of a run that was stopped
            with open(self.folder / f"{name}.log", "w") as err:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=err)
                _, status, used = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"{name}: see {err.name}")
            cost.write_text(json.dumps(used.ru_utime + used.ru_stime))
        curve = plot.read_log(log)["held_out"]
        print(f"{way}, rate {rate:g}, {steps} steps, seed {seed}: {curve[-1][1]:.3f}", flush=True)
        return {"curve": curve, "last": curve[-1][1], "seconds": json.loads(cost.read_text()) / steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("--out", default="curves")
    parser.add_argument("--draw", default="curves.svg")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    runs, pool = Runs(arguments), concurrent.futures.ThreadPoolExecutor(arguments.jobs)

    tried = {way: {} for way in WAYS}

    def try_rates(way, rates):
        tried[way].update({rate: pool.submit(runs.run, way, rate, arguments.steps // 3, 0) for rate in rates})

    def best_of(way):
        return min(tried[way], key=lambda rate: tried[way][rate].result()["last"])

    for way, (*_, rates) in WAYS.items():
        try_rates(way, rates)
    for way in WAYS:
        while best_of(way) in (min(tried[way]), max(tried[way])):
            try_rates(way, [best_of(way) / 2 if best_of(way) == min(tried[way]) else best_of(way) * 2])
    best = {way: best_of(way) for way in WAYS}

    def several(way, steps):
        return [pool.submit(runs.run, way, best[way], steps, seed) for seed in range(1, 1 + arguments.seeds)]

    made = {(way, "tokens"): several(way, arguments.steps) for way in WAYS}
    unit = sum(f.result()["seconds"] for f in made[next(iter(WAYS)), "tokens"])
    ratio = {way: sum(f.result()["seconds"] for f in made[way, "tokens"]) / unit for way in WAYS}
    made.update({(way, "time"): several(way, round(arguments.steps / ratio[way])) for way in WAYS if ratio[way] < 0.95})

    print(f"\n| way | equal | rate | tokens | time of a step | loss of {arguments.seeds} seeds | mean |\n|---|---|---|---|---|---|---|")
    curves = []
    for (way, equal), futures in made.items():
        found = [f.result() for f in futures]
        last, mean = sorted(run["last"] for run in found), statistics.mean(run["last"] for run in found)
        print(f"| {way} | {equal} | {best[way]:g} | {found[0]['curve'][-1][0]:.2f}M | {ratio[way]:.2f} | "
              f"{', '.join(f'{y:.3f}' for y in last)} | {mean:.3f} |")
        if (way, "time") not in made or equal == "time":
            colour = WAYS[way][0]
            curves += [(None, colour, 0.8, run["curve"]) for run in found]
            curves.append((way, colour, 2.5, [(p[0][0], statistics.mean(y for _, y in p)) for p in zip(*(run["curve"] for run in found))]))
    plot.draw(arguments.draw, "Loss on held-out text, equal time, each way with its best rate", curves)
    print("\nlearning rates tried, at a third of the steps:")
    for way in WAYS:
        print(f"  {way}: " + ", ".join(f"{rate:g} {run.result()['last']:.3f}" for rate, run in sorted(tried[way].items())))


if __name__ == "__main__":
    main()
