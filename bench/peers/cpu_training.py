# SPDX-License-Identifier: Apache-2.0
"""Times a training step of the public PyTorch peer and of dsv4 on the same cores in the same run, and its blocks.

usage: cpu_training.py [BUILD_DIR]      BUILD_DIR defaults to build; needs torch and transformers 5.17 or later

The model is dsv4's `v4_bench`, in float32: forward, backward, clipping and update of 512 tokens, by AdamW (PyTorch's fused one) or
by Muon with V4's ten Newton-Schulz steps, in bfloat16 (all matrices of a shape at once). Blocks are forward and backward of one
sublayer. In every round each program has its turn; ratios are of the same round, and their medians are printed. The peer runs with
its fastest experts implementation. Peak memory is that of a process of its own for each.
"""
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
import transformers

from cpu_transformers import PREFILL, ROUNDS, SHAPE, THREADS, build

BLOCKS = {"attention_sliding": 0, "attention_csa": 2, "attention_hca": 3, "moe": 4, "hyper_connection_site": 4}  # the peer's layer


class Muon:
    """V4's update of matrices: Nesterov momentum, made orthogonal, scaled and with decay."""

    def __init__(self, matrices, lr, momentum=0.95, decay=0.1):
        shapes = {}
        for p in matrices:
            shapes.setdefault(p.shape[-2:], []).append(p)
        self.groups, self.lr, self.momentum, self.decay = list(shapes.values()), lr, momentum, decay
        self.velocity = {p: torch.zeros_like(p) for p in matrices}

    @torch.no_grad()
    def step(self):
        for group in self.groups:
            group = [p for p in group if p.grad is not None]  # none reaches the indexers
            if not group:
                continue
            for p in group:
                self.velocity[p].mul_(self.momentum).add_(p.grad)
            rows, columns = group[0].shape[-2:]
            x = torch.cat([p.grad.add(self.velocity[p], alpha=self.momentum).view(-1, rows, columns) for p in group]).bfloat16()
            if rows > columns:
                x = x.mT
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for step in range(10):
                a, b, c = (3.4445, -4.7750, 2.0315) if step < 8 else (2, -1.5, 0.5)
                gram = x @ x.mT
                x = a * x + (b * gram + c * (gram @ gram)) @ x
            if rows > columns:
                x = x.mT
            for p, y in zip(group, x.float().split([p.numel() // (rows * columns) for p in group])):
                p.mul_(1 - self.lr * self.decay).sub_(y.view(p.shape), alpha=self.lr * 0.18 * max(rows, columns) ** 0.5)


class Peer:
    def __init__(self, experts, muon=False):
        self.model = build(experts).train()
        by_muon = [p for n, p in self.model.named_parameters() if muon and p.dim() > 1 and "embed" not in n and "lm_head" not in n]
        others = [p for p in self.model.parameters() if all(p is not q for q in by_muon)]
        self.updates = [torch.optim.AdamW(others, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)]
        if muon:
            self.updates.append(Muon(by_muon, 1e-5))
        self.tokens = torch.randint(0, SHAPE["vocab_size"], (1, PREFILL + 1))

    def step(self):
        """-> seconds"""
        start = time.perf_counter()
        self.model.zero_grad()
        logits = self.model(self.tokens[:, :-1], use_cache=False).logits
        F.cross_entropy(logits[0], self.tokens[0, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for update in self.updates:
            update.step()
        return time.perf_counter() - start

    def calls(self):
        """{block: what it is called with, and by which function} of one pass"""
        layers, found, hooks = self.model.model.layers, {}, []
        for name, i in BLOCKS.items():
            module = {"m": layers[i].mlp, "h": layers[i].attn_hc, "a": layers[i].self_attn}[name[0]]

            def keep(_, arguments, keywords, name=name):
                found[name] = [a.detach() for a in arguments], dict(keywords)
            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        self.model(self.tokens[:, :-1], use_cache=False)
        for hook in hooks:
            hook.remove()
        return found

    def block(self, name, call):
        """-> seconds of forward and backward of one sublayer"""
        layer, (arguments, keywords) = self.model.model.layers[BLOCKS[name]], call
        x = arguments[0].clone().requires_grad_()
        start = time.perf_counter()
        if name == "moe":
            y = layer.mlp(x, **keywords)
        elif name == "hyper_connection_site":  # around a sublayer that copies
            post, comb, u = layer.attn_hc(x)
            y = post.unsqueeze(-1) * layer.input_layernorm(u).unsqueeze(-2) + torch.matmul(comb.transpose(-1, -2), x)
        else:
            y = layer.self_attn(x, *arguments[1:], **keywords)[0]
        y.backward(torch.ones_like(y))
        return time.perf_counter() - start


def run(command):
    """-> what it prints, and its peak memory in bytes"""
    environment = {**os.environ, "DSV4_BENCH_THREADS": str(THREADS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]}: status {process.returncode}")
    return text, usage.ru_maxrss * 1024


def our_times(program, pattern):
    """-> {benchmark: seconds}, peak memory in bytes"""
    text, peak = run([str(program), "--benchmark_format=json", "--benchmark_min_time=0.3", f"--benchmark_filter={pattern}"])
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    return {b["name"]: b["real_time"] * unit[b["time_unit"]] for b in json.loads(text)["benchmarks"]}, peak


def our_step(folder, muon):
    times, peak = our_times(folder / "bench_training", f"^training_update/muon:{int(muon)}/")
    return next(iter(times.values())), peak


def our_blocks(folder):
    times = {}
    for program in ("attention_backward", "moe_backward", "hyper_connection_site"):
        found, _ = our_times(folder / f"bench_{program}", f"/training/100m/rows:{PREFILL}/")
        times.update({name.split("/")[0]: seconds for name, seconds in found.items()})
    return times


def fastest_experts():
    """The implementation of the peer's experts that is fastest here. Each is tried in a process of its own, since one may need
    more memory than there is."""
    seconds = {}
    for experts in ("eager", "grouped_mm", "batched_mm"):
        try:
            text, _ = run([sys.executable, __file__, "--step", experts])
            seconds[experts] = float(text.split()[-1])
        except (RuntimeError, ValueError, IndexError):
            print(f"peer with {experts} experts does not run here")
    return min(seconds, key=seconds.get)


def main():
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--step"]:  # a process of its own
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        resource.setrlimit(resource.RLIMIT_DATA, (memory * 3 // 4,) * 2)
        peer = Peer(sys.argv[2])
        print(min(peer.step() for _ in range(4)))
        return
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build") / "bin"
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {THREADS} threads")
    best = fastest_experts()
    # First of all: the peak of a process is at least what its parent holds.
    _, memory = run([sys.executable, __file__, "--step", best])
    ours = {muon: our_step(folder, muon)[1] for muon in (False, True)}
    peer = {muon: Peer(best, muon) for muon in (False, True)}
    calls, ratios = peer[False].calls(), {}
    for _ in range(ROUNDS):
        for muon in (False, True):
            theirs = statistics.median(peer[muon].step() for _ in range(1 if muon else 3))
            seconds, _ = our_step(folder, muon)
            ratios.setdefault(f"step with {'Muon' if muon else 'AdamW'}", []).append(theirs / seconds)
        mine = our_blocks(folder)
        for name in BLOCKS:
            theirs = statistics.median(peer[False].block(name, calls[name]) for _ in range(7))
            ratios.setdefault(name, []).append(theirs / mine[name])
    for name, values in ratios.items():
        print(f"{name:24} peer/dsv4 = {statistics.median(values):5.2f}   ({min(values):.2f} to {max(values):.2f})")
    print(f"peer with {best} experts; peak memory of a process: peer {memory / 1e6:.0f} MB with AdamW, dsv4 {ours[False] / 1e6:.0f} MB with "
          f"AdamW, {ours[True] / 1e6:.0f} MB with Muon; load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
