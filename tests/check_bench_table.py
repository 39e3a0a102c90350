# SPDX-License-Identifier: Apache-2.0
"""bench/table.py reads what programs of the CPU and of the GPU write. usage: check_bench_table.py SOURCE_DIR"""
import json
import pathlib
import subprocess
import sys
import tempfile

table = pathlib.Path(sys.argv[1]) / "bench/table.py"
errors = []


def benchmark(name, milliseconds, **counters):
    return {"name": name, "run_type": "iteration", "iterations": 1, "real_time": milliseconds, "time_unit": "ms", **counters}


def run(*arguments):
    done = subprocess.run([sys.executable, table, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def expect(text, *wanted):
    for line in wanted:
        if line not in text:
            errors.append(f"expected '{line}' in\n{text}")


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)

    def write(run_name, program, benchmarks, **context):
        (folder / run_name).mkdir(exist_ok=True)
        (folder / run_name / f"{program}.json").write_text(json.dumps({"context": context, "benchmarks": benchmarks}))

    gpu = {"GPU": "NVIDIA H200", "bf16 product, TFLOP/s": "790"}
    route = benchmark("route/forward/flash/rows:1/iterations:1/manual_time", 0.5, of_peak=0.25, of_bandwidth=0.5)
    write("now", "bench_cuda_route", [route, {**route, "name": route["name"] + "_mean", "run_type": "aggregate"}],
          **gpu, **{"copy, TB/s": "3.96"})
    write("now", "bench_cuda_rope", [{**benchmark("rope/forward/pro/rows:1/iterations:1/manual_time", 0), "error_occurred": True,
                                      "error_message": "out of memory"}], **gpu, **{"copy, TB/s": "3.92"})
    (folder / "now/bench_cuda_adamw.json").write_text("")  # a filter left nothing
    write("before", "bench_cuda_route", [{**route, "real_time": 1.0, "of_bandwidth": 0.25}], **gpu, **{"copy, TB/s": "3.9"})

    status, text = run(folder / "now", "--against", folder / "before", "--out", folder / "all.json")
    expect(text, "NVIDIA H200; copy, TB/s: 3.92 - 3.96; bf16 product, TFLOP/s: 790\n", "\ncuda_route ",
           "  route/forward/flash/rows:1 ", "500.00 us", "   0.50 m     2.00   2.00\n", "  rope/forward/pro/rows:1 ", "  out of memory\n",
           "2 results, 1 more than 1.1 times as fast, 0 less than 0.9 times")
    if "_mean" in text or "iterations" in text or status:
        errors.append(f"status {status}: neither aggregates nor ways of timing belong in\n{text}")
    again = run(folder / "all.json")
    if again != run(folder / "now") or again[0]:
        errors.append(f"one file with all results has another table:\n{again[1]}")

    write("cpu", "bench_route", [benchmark("route/forward/nano/rows:1/real_time", 2e-3)], num_cpus=2)
    status, text = run(folder / "cpu")
    expect(text, "\nroute ", "  route/forward/nano/rows:1 ", "2.00 us\n")
    if "GPU" in text or "TB/s" in text:
        errors.append(f"a CPU's table has a GPU's bounds:\n{text}")

    (folder / "none").mkdir()
    (folder / "none/bench_route.json").write_text("")
    status, text = run(folder / "none")
    if status == 0 or "no benchmark of that name" not in text:
        errors.append(f"status {status} where a filter left nothing at all:\n{text}")

print("\n".join(errors) or "tables are as they should be")
sys.exit(bool(errors))
