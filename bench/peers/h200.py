# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch and transformers' deepseek_v4 on the GPU, then dsv4's benchmarks on the same GPU, and prints the ratios.

usage: h200.py [BIN_DIR] [--peers FILE]     BIN_DIR has bench_cuda_*; it defaults to build/cuda/bin
Needs torch with CUDA and transformers 5.17 or later. Shapes are V4-Flash's, in bf16, T = 4096 unless said. The peer's times
are medians of CUDA events around one call; dsv4's are medians of graph replays, of the benchmarks that have a peer. --peers writes the peer's times as JSON.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
import transformers
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as peer

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import table  # noqa: E402

TOKENS, WIDTH = 4096, 4096
LAYERS = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]


def milliseconds(call, repeats=20):
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def random(*shape, dtype=torch.bfloat16, **options):
    return torch.randn(*shape, device="cuda", dtype=dtype, **options)


def small_weights(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return module


def with_backward(call):
    def run():
        y = call()
        y.backward(y.detach())
    return run


def indexer_scores(q, keys, weights):
    return (F.relu(torch.einsum("shd,td->sht", q, keys)) * weights.unsqueeze(-1)).sum(1)


def newton_schulz(g):
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(10):
        a, b, c = (3.4445, -4.7750, 2.0315) if step < 8 else (2, -1.5, 0.5)
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def peers():
    """Yields (name, call, repeats); memory of one is free before the next."""
    a, b = random(8192, 8192), random(8192, 8192)
    yield "matrix product 8192", lambda: a @ b, 20
    x = random(2**29)
    y = torch.empty_like(x)
    yield "copy of 1 GiB", lambda: y.copy_(x), 20
    del a, b, x, y

    config = DeepseekV4Config(num_hidden_layers=3, layer_types=LAYERS, mlp_layer_types=["hash_moe", "moe", "moe"])
    config._attn_implementation = "eager"
    rotary = peer.DeepseekV4RotaryEmbedding(config).cuda()
    x = random(1, TOKENS, WIDTH, requires_grad=True)
    positions = torch.arange(TOKENS, device="cuda")
    near = (positions[None] <= positions[:, None]) & (positions[None] > positions[:, None] - config.sliding_window)
    mask = torch.where(near, 0.0, float("-inf")).to(torch.bfloat16)[None, None]
    for layer, kind in ((1, "CSA"), (2, "HCA"), (0, "SWA")):
        attention = small_weights(peer.DeepseekV4Attention(config, layer).cuda().bfloat16())
        angles = {name: rotary(x, positions[None], layer_type=name) for name in ("main", "compress")}

        def forward(angles):
            return attention(x, position_embeddings=angles, position_ids=positions[None], attention_mask=mask,
                             past_key_values=None)[0]
        try:  # releases differ in what they expect
            forward(angles)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            angles = angles["main" if layer == 0 else "compress"]
        with torch.no_grad():
            yield f"attention {kind}, T = 4096", lambda: forward(angles), 10
        yield f"attention {kind}, T = 4096, forward and backward", with_backward(lambda: forward(angles)), 5
        del attention

    connection = small_weights(peer.DeepseekV4HyperConnection(config).cuda())
    streams = random(1, TOKENS, 4, WIDTH, requires_grad=True)

    def site():
        post, comb, collapsed = connection(streams)[:3]
        return post.to(streams.dtype).unsqueeze(-1) * collapsed.unsqueeze(-2) + torch.matmul(comb.to(streams.dtype), streams)
    with torch.no_grad():
        yield "residual site, T = 4096", site, 20
    yield "residual site, T = 4096, forward and backward", with_backward(site), 20
    del connection, streams

    moe = small_weights(peer.DeepseekV4SparseMoeBlock(config, 1).cuda().bfloat16())
    with torch.no_grad():
        yield "moe, T = 4096", lambda: moe(x), 10
        yield "moe, T = 1", lambda: moe(x[:, :1]), 10
    del moe, x

    q, keys, weights = random(2048, 64, 128), random(4096, 128), random(2048, 64, dtype=torch.float32)
    yield "indexer scores, 2048 x 64 x 128 x 4096", lambda: indexer_scores(q, keys, weights), 20
    compiled = torch.compile(indexer_scores)
    yield "indexer scores, compiled", lambda: compiled(q, keys, weights), 20
    scores = random(4096, 16384, dtype=torch.float32)
    yield "top-k 4096 x 16384, k 512", lambda: scores.topk(512), 20
    del q, keys, weights, scores
    for shape, repeats in (((2048, 4096), 10), ((1024, 32768), 10), ((4096, 4096), 10), ((256, 2048, 4096), 2)):
        g = random(*shape)
        yield f"Newton-Schulz {' x '.join(map(str, shape))}", lambda: newton_schulz(g), repeats
        del g


# dsv4's benchmarks, and the peer's work that they are compared with. The indexer's includes the selection.
COMPARED = [
    ("attention", "attention_csa/forward/flash/rows:4096", ["attention CSA, T = 4096"]),
    ("attention_backward", "attention_csa/training/flash/rows:4096", ["attention CSA, T = 4096, forward and backward"]),
    ("attention", "attention_hca/forward/flash/rows:4096", ["attention HCA, T = 4096"]),
    ("attention_backward", "attention_hca/training/flash/rows:4096", ["attention HCA, T = 4096, forward and backward"]),
    ("attention", "attention_sliding/forward/flash/rows:4096", ["attention SWA, T = 4096"]),
    ("hyper_connection_site", "hyper_connection_site/forward/flash/rows:4096", ["residual site, T = 4096"]),
    ("hyper_connection_site", "hyper_connection_site/training/flash/rows:4096", ["residual site, T = 4096, forward and backward"]),
    ("moe", "moe/forward/flash/rows:4096", ["moe, T = 4096"]),
    ("moe", "moe/forward/flash/rows:1", ["moe, T = 1"]),
    ("index_topk", "index_topk/forward/flash/rows:2048/context:16384",
     ["indexer scores, 2048 x 64 x 128 x 4096", "indexer scores, compiled"]),
    ("newton_schulz", "newton_schulz_bf16/forward/batch:1/rows:2048/columns:4096", ["Newton-Schulz 2048 x 4096"]),
    ("newton_schulz", "newton_schulz_bf16/forward/batch:1/rows:1024/columns:32768", ["Newton-Schulz 1024 x 32768"]),
    ("newton_schulz", "newton_schulz_bf16/forward/batch:1/rows:4096/columns:4096", ["Newton-Schulz 4096 x 4096"]),
    ("newton_schulz", "newton_schulz_bf16/forward/batch:256/rows:2048/columns:4096", ["Newton-Schulz 256 x 2048 x 4096"]),
]


def own_times(folder):
    """-> {name: ms} of the benchmarks that are compared."""
    with tempfile.TemporaryDirectory() as results:
        for program in dict.fromkeys(program for program, _, _ in COMPARED):
            print(f"running {program}", flush=True)
            names = "|".join(name for own, name, _ in COMPARED if own == program)
            subprocess.run([folder / f"bench_cuda_{program}", f"--benchmark_filter=^({names})(/iterations.*)?$",
                            f"--benchmark_out={results}/bench_cuda_{program}.json", "--benchmark_out_format=json"], check=True)
        found = table.load(results)[0]
    times = {table.short(name): 1e3 * table.seconds(b) for (_, name), b in found.items() if not b.get("error_occurred")}
    if missing := [name for _, name, _ in COMPARED if name not in times]:
        print("not measured: " + ", ".join(missing))
    return times


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("bin", nargs="?", default="build/cuda/bin", type=pathlib.Path)
    arguments.add_argument("--peers", type=pathlib.Path)
    chosen = arguments.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    theirs = {}
    for name, call, repeats in peers():
        try:
            theirs[name] = milliseconds(call, repeats)
            print(f"{name:58} {theirs[name]:9.4f}", flush=True)
        except (RuntimeError, TypeError, ValueError) as failure:  # a release that works otherwise
            print(f"{name:58} does not run: {str(failure)[:200]}", flush=True)
        torch.cuda.empty_cache()
    if chosen.peers:
        chosen.peers.write_text(json.dumps(theirs, indent=1))
    ours = own_times(chosen.bin)
    print(f"\n{'':58} {'dsv4':>9} {'peer':>9} {'ratio':>7}")
    for _, own, others in COMPARED:
        for other in others:
            if own in ours and other in theirs:
                print(f"{own:58} {ours[own]:9.4f} {theirs[other]:9.4f} {theirs[other] / ours[own]:7.1f}   {other}")


if __name__ == "__main__":
    main()
