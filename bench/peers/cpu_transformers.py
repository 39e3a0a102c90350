# SPDX-License-Identifier: Apache-2.0
"""Times the public PyTorch peer (transformers' deepseek_v4, float32) and dsv4 on the same cores in the same run.

usage: cpu_transformers.py [BUILD_DIR]      BUILD_DIR defaults to build; needs torch and transformers 5.17 or later

The model is dsv4's `v4_bench`: about 100M parameters, all three layer kinds. Prefill of 512 tokens, and decode at context
512. Rounds alternate between the two; the medians and their ratio are printed. The peer runs with its fastest experts
implementation of those that work on this machine.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

THREADS, PREFILL, DECODE, ROUNDS = 2, 512, 16, 5
W, C, H = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
SHAPE = dict(vocab_size=16384, hidden_size=512, moe_intermediate_size=384, num_attention_heads=8, num_key_value_heads=1,
             head_dim=128, q_lora_rank=256, num_experts_per_tok=4, n_routed_experts=16, n_shared_experts=1,
             sliding_window=128, o_groups=2, o_lora_rank=256, index_n_heads=8, index_head_dim=64, index_topk=64,
             partial_rotary_factor=0.25, hc_mult=4, swiglu_limit=10.0, max_position_embeddings=65536,
             compress_rates={C: 4, H: 128}, layer_types=[W, W] + [C, H] * 3,
             mlp_layer_types=["hash_moe"] * 3 + ["moe"] * 5, num_hidden_layers=8)


def build(experts):
    config = DeepseekV4Config(**SHAPE)
    config._attn_implementation = "eager"
    config._experts_implementation = experts
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(config).float().eval()
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # zeros would send every token to one expert
            slots = torch.arange(table.numel()).reshape(table.shape)
            table.copy_(slots % config.n_routed_experts)
    return model


@torch.no_grad()
def peer_times(model):
    """-> seconds of one prefill, median seconds of a decoded token"""
    tokens = torch.randint(0, SHAPE["vocab_size"], (1, PREFILL))
    start = time.perf_counter()
    result = model(tokens, use_cache=True, logits_to_keep=1)  # as many logits as dsv4 makes
    prefill, steps = time.perf_counter() - start, []
    for _ in range(DECODE):
        token = torch.randint(0, SHAPE["vocab_size"], (1, 1))
        start = time.perf_counter()
        model(token, past_key_values=result.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
    return prefill, statistics.median(steps)


def our_times(program):
    """-> {benchmark: (seconds, FLOP/s)}"""
    command = [str(program), "--benchmark_format=json", "--benchmark_min_time=0.3"]
    environment = {**os.environ, "DSV4_BENCH_THREADS": str(THREADS)}
    report = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout)
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    return {b["name"].split("/")[0]: (b["real_time"] * unit[b["time_unit"]], b.get("FLOP/s", 0.0)) for b in report["benchmarks"]}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build") / "bin"
    torch.set_num_threads(THREADS)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {THREADS} threads")
    models = {}
    for experts in ("eager", "grouped_mm", "batched_mm"):
        try:
            model = build(experts)
            peer_times(model)  # warms up, and shows whether it works here
            models[experts] = model
        except Exception as failure:  # noqa: BLE001: an implementation that this machine lacks is no peer
            print(f"peer with {experts} experts does not run here: {type(failure).__name__}")
    peer = {name: ([], []) for name in models}
    ours = {}
    for _ in range(ROUNDS):
        for name, model in models.items():
            for times, value in zip(peer[name], peer_times(model)):
                times.append(value)
        for program in ("bench_transformer", "bench_eigen_gemm"):
            for name, value in our_times(folder / program).items():
                ours.setdefault(name, []).append(value)
    ours = {name: [statistics.median(column) for column in zip(*values)] for name, values in ours.items()}
    for i, what in enumerate(("prefill", "decode")):
        best = min(peer, key=lambda name: statistics.median(peer[name][i]))
        theirs, mine = statistics.median(peer[best][i]), ours[f"transformer_{what}"][0]
        print(f"{what:8} peer/dsv4 = {theirs / mine:6.1f}   (peer with {best} experts {theirs * 1e3:.1f} ms, dsv4 {mine * 1e3:.1f} ms)")
    share = ours["transformer_prefill"][1] / ours["eigen_gemm"][1]
    print(f"prefill reaches {100 * share:.0f}% of the speed of Eigen's own float GEMM (1024^3 on each of the same threads)")


if __name__ == "__main__":
    main()
