# SPDX-License-Identifier: Apache-2.0
"""Times ggml's MXFP4 matrix product and dsv4's on the same cores in the same run.

usage: ggml_mxfp4.py [PROGRAM]      PROGRAM defaults to build/bin/bench_stored_linear; needs a package that brings
                                    ggml's shared libraries, such as pywhispercpp (pip install --no-deps pywhispercpp)

The shapes are those of an expert. One row of inputs: a pass over weights that fill 512 MB or more. 512 rows: one weight.
ggml quantises its inputs to 8-bit integers, dsv4 takes them as block-scaled FP8. Rounds alternate between the two;
medians of ggml's time over dsv4's are printed. Each runs in its own process, so that their threads do not meet.
"""
import ctypes as c
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

THREADS, ROUNDS, POOL = 2, 5, 512 << 20
SHAPES = [(7168, 3072), (3072, 7168), (4096, 2048), (2048, 4096)]
F32, MXFP4 = 0, 39


class Params(c.Structure):
    _fields_ = [("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool)]


def libraries():
    """ggml's base and CPU libraries, wherever the package put them."""
    extension = importlib.util.find_spec("_pywhispercpp")
    root = pathlib.Path(os.environ.get("DSV4_GGML_LIBRARIES") or pathlib.Path(extension.origin).parent)
    c.CDLL(str(extension.origin))  # loads them with their dependencies
    load = lambda name: c.CDLL(str(sorted(root.glob(f"**/lib{name}[.-]*so*"))[0]))
    return load("ggml-base"), load("ggml-cpu")


def ggml_seconds(o, k, n):
    """Seconds of one product."""
    base, cpu = libraries()
    base.ggml_init.restype, base.ggml_init.argtypes = c.c_void_p, [Params]
    base.ggml_new_tensor_2d.restype = c.c_void_p
    base.ggml_new_tensor_2d.argtypes = [c.c_void_p, c.c_int, c.c_int64, c.c_int64]
    base.ggml_mul_mat.restype, base.ggml_mul_mat.argtypes = c.c_void_p, [c.c_void_p] * 3
    base.ggml_get_data.restype, base.ggml_get_data.argtypes = c.c_void_p, [c.c_void_p]
    base.ggml_nbytes.restype, base.ggml_nbytes.argtypes = c.c_size_t, [c.c_void_p]
    base.ggml_new_graph.restype, base.ggml_new_graph.argtypes = c.c_void_p, [c.c_void_p]
    base.ggml_build_forward_expand.argtypes = [c.c_void_p] * 2
    cpu.ggml_graph_compute_with_ctx.argtypes = [c.c_void_p, c.c_void_p, c.c_int]
    cpu.ggml_cpu_init()
    has = [name for name in ("avx2", "avx512", "avx512_bf16") if getattr(cpu, f"ggml_cpu_has_{name}")()]
    print("ggml was built for", *has, file=sys.stderr)
    weight_bytes = o * k // 32 * 17
    count = -(-POOL // weight_bytes) if n == 1 else 1
    size = count * (weight_bytes + o * n * 4) + n * k * 8 + (64 << 20)
    context = base.ggml_init(Params(size, None, False))
    x = base.ggml_new_tensor_2d(context, F32, k, n)
    c.memset(base.ggml_get_data(x), 0x3e, n * k * 4)
    graph = base.ggml_new_graph(context)
    for _ in range(count):
        w = base.ggml_new_tensor_2d(context, MXFP4, k, o)
        assert base.ggml_nbytes(w) == weight_bytes
        c.memset(base.ggml_get_data(w), 0x75, weight_bytes)
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, w, x))
    cpu.ggml_graph_compute_with_ctx(context, graph, THREADS)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        cpu.ggml_graph_compute_with_ctx(context, graph, THREADS)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / count


def our_seconds(program, o, k, n):
    kind = "few_rows" if n == 1 else "many_rows"
    filter = f"{kind}<mxfp4, fp8_activation>/N:{n}/O:{o}/I:{k}/"
    out = subprocess.run([program, f"--benchmark_filter={filter}", "--benchmark_format=json", "--benchmark_min_time=0.5"],
                         env=dict(os.environ, DSV4_BENCH_THREADS=str(THREADS)), check=True, capture_output=True).stdout
    return 1 / json.loads(out)["benchmarks"][0]["items_per_second"]


def main():
    if sys.argv[1:2] == ["--ggml"]:
        print(ggml_seconds(*map(int, sys.argv[2:])))
        return
    if importlib.util.find_spec("_pywhispercpp") is None:
        sys.exit("no module _pywhispercpp: pip install --no-deps pywhispercpp")
    program = sys.argv[1] if len(sys.argv) > 1 else "build/bin/bench_stored_linear"
    for n in (1, 512):
        for o, k in SHAPES:
            ratios = []
            for _ in range(ROUNDS):
                ours = our_seconds(program, o, k, n)
                theirs = float(subprocess.run([sys.executable, __file__, "--ggml", str(o), str(k), str(n)], check=True,
                                              capture_output=True, text=True).stdout)
                ratios.append(theirs / ours)
            print(f"{n} rows, {o} x {k}: ggml / dsv4 = {statistics.median(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
