# SPDX-License-Identifier: Apache-2.0
"""Cases that no public peer computes (MTP, low-precision caches, odd sizes), from our own float64 forward.

usage: make_cases.py OUT_DIR [CASE...]

Writes OUT_DIR/oracle_<case>.safetensors: configuration in the metadata, tokens, logits, mtp_logits, selected.<layer>.
The files hold no weights; ../README.md states the rule that makes them, `weights` follows it.
"""
import json
import pathlib
import sys

import numpy as np

import tensorfile
import v4_forward as v4
from v4_forward import CSA, HCA, SWA

BASE = dict(vocab_size=96, hidden_size=64, moe_intermediate_size=32, num_attention_heads=4, num_key_value_heads=1,
            head_dim=32, q_lora_rank=24, num_experts_per_tok=2, n_routed_experts=8, n_shared_experts=1, sliding_window=8,
            o_groups=2, o_lora_rank=16, index_n_heads=16, index_head_dim=16, index_topk=4, partial_rotary_factor=0.25,
            hc_mult=4, swiglu_limit=10.0, max_position_embeddings=1024, compress_rates={CSA: 4, HCA: 16},
            routed_scaling_factor=1.5, rope_theta=10000.0, compress_rope_theta=160000.0, num_nextn_predict_layers=0,
            numerics="float32")
YARN = dict(rope_type="yarn", factor=16, original_max_position_embeddings=64, beta_fast=32, beta_slow=1)

CASES = {  # name: (what differs from BASE, number of tokens)
    "mtp": (dict(layer_types=[SWA, CSA, HCA], mlp_layer_types=["hash_moe", "moe", "moe"], num_nextn_predict_layers=1,
                 routed_scaling_factor=2.5), 45),
    "odd": (dict(layer_types=[CSA, SWA, HCA, CSA], mlp_layer_types=["hash_moe", "moe", "moe", "moe"], vocab_size=50,
                 hidden_size=60, num_attention_heads=6, o_groups=3, o_lora_rank=10, head_dim=20, partial_rotary_factor=0.2,
                 hc_mult=3, q_lora_rank=14, sliding_window=7, compress_rates={CSA: 4, HCA: 8}, index_n_heads=5,
                 index_head_dim=8, index_topk=3, n_routed_experts=5, moe_intermediate_size=18, swiglu_limit=1.0,
                 routed_scaling_factor=1.75, rope_theta=5000.0, compress_rope_theta=90000.0), 61),
    "hadamard_fp4": (dict(layer_types=[CSA, HCA, CSA], mlp_layer_types=["moe"] * 3, index_head_dim=32,
                          numerics="index_fp4"), 70),
    "v4_released": (dict(layer_types=[SWA, CSA, HCA], mlp_layer_types=["hash_moe", "moe", "moe"], vocab_size=64,
                         hidden_size=144, q_lora_rank=40, head_dim=160, partial_rotary_factor=0.2, o_lora_rank=24,
                         moe_intermediate_size=48, index_head_dim=64, num_nextn_predict_layers=1, rope_parameters=YARN,
                         numerics="v4_released"), 45),
    "kv_fp8": (dict(layer_types=[SWA, CSA, HCA], mlp_layer_types=["moe"] * 3, vocab_size=64, head_dim=160,
                    partial_rotary_factor=0.2, index_head_dim=64, rope_parameters=YARN, numerics="kv_fp8_index_fp4"), 50),
}
SEARCH = 400        # token seeds tried until no discrete choice is close
ENOUGH = 1e-7       # smallest margin accepted


# ---- the rule for weights and tokens -----------------------------------------------------------------------------------

def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def splitmix64(x):
    """x: uint64 array; all arithmetic modulo 2^64."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def from_seed(seed, count):
    return splitmix64(np.uint64(seed) + np.arange(count, dtype=np.uint64))


def tensor(name, shape, c):
    """One weight: a float32 value in float64, or token-to-expert ids."""
    if name.endswith("gate.tid2eid"):
        vocab, k = shape
        return np.arange(vocab * k).reshape(shape) % c.n_routed_experts
    r = (from_seed(fnv1a64(name), int(np.prod(shape))) >> np.uint64(40)) * 2.0 ** -23 - 1      # exact, in [-1, 1)
    if name.endswith("norm.weight"):
        value = 1 + 0.2 * r
    elif name.endswith(("attn_sink", ".ape", "_base")):
        value = 0.5 * r
    elif name.endswith("_scale"):
        value = 1 + 0.3 * r
    elif name.endswith("gate.bias"):
        value = 0.1 * r
    else:
        value = r * np.sqrt(3.0 / shape[-1])
    return value.astype(np.float32).astype(np.float64).reshape(shape)


def shapes(c):
    """{official name: shape} of all weights."""
    d, n, h, q, I = c.hidden_size, c.hc_mult, c.head_dim, c.q_lora_rank, c.moe_intermediate_size
    s = {"embed.weight": (c.vocab_size, d), "head.weight": (c.vocab_size, d), "norm.weight": (d,)}

    def head(p):
        s.update({p + "hc_head_fn": (n, n * d), p + "hc_head_base": (n,), p + "hc_head_scale": (1,)})

    def compressor(p, m, dim, overlap):
        width = 2 * dim if overlap else dim
        s.update({p + "ape": (m, width), p + "wkv.weight": (width, d), p + "wgate.weight": (width, d), p + "norm.weight": (dim,)})

    def expert(p):
        s.update({p + "w1.weight": (I, d), p + "w2.weight": (d, I), p + "w3.weight": (I, d)})

    def block(p, index):
        m, _, hashed = c.layer(index)
        mixes = (2 + n) * n
        for site in ("attn", "ffn"):
            s[f"{p}{site}_norm.weight"] = (d,)
            s.update({f"{p}hc_{site}_fn": (mixes, n * d), f"{p}hc_{site}_base": (mixes,), f"{p}hc_{site}_scale": (3,)})
        a = p + "attn."
        s.update({a + "wq_a.weight": (q, d), a + "q_norm.weight": (q,), a + "wq_b.weight": (c.num_attention_heads * h, q),
                  a + "wkv.weight": (h, d), a + "kv_norm.weight": (h,), a + "attn_sink": (c.num_attention_heads,),
                  a + "wo_a.weight": (c.o_groups * c.o_lora_rank, c.num_attention_heads * h // c.o_groups),
                  a + "wo_b.weight": (d, c.o_groups * c.o_lora_rank)})
        if m:
            compressor(a + "compressor.", m, h, c.overlaps(index))
        if c.overlaps(index):
            s[a + "indexer.wq_b.weight"] = (c.index_n_heads * c.index_head_dim, q)
            s[a + "indexer.weights_proj.weight"] = (c.index_n_heads, d)
            compressor(a + "indexer.compressor.", m, c.index_head_dim, True)
        f = p + "ffn."
        s[f + "gate.weight"] = (c.n_routed_experts, d)
        if hashed:
            s[f + "gate.tid2eid"] = (c.vocab_size, c.num_experts_per_tok)
        else:
            s[f + "gate.bias"] = (c.n_routed_experts,)
        expert(f + "shared_experts.")
        for e in range(c.n_routed_experts):
            expert(f"{f}experts.{e}.")

    head("")
    for i in range(len(c.layer_types)):
        block(f"layers.{i}.", i)
    if c.num_nextn_predict_layers:
        block("mtp.0.", len(c.layer_types))
        head("mtp.0.")
        s.update({"mtp.0.e_proj.weight": (d, d), "mtp.0.h_proj.weight": (d, d), "mtp.0.enorm.weight": (d,),
                  "mtp.0.hnorm.weight": (d,), "mtp.0.norm.weight": (d,)})
    return s


def weights(c):
    w = {name: tensor(name, shape, c) for name, shape in shapes(c).items()}
    return v4.stored_weights(w) if c.released else w


def draw_tokens(seed, count, vocab):
    return ((from_seed(seed, count) >> np.uint64(33)) % np.uint64(vocab)).astype(np.int32)


# ---- the cases -----------------------------------------------------------------------------------------------------------

def keys(name):
    over, _ = CASES[name]
    return {**BASE, **over, "num_hidden_layers": len(over["layer_types"])}


def smallest_margin():
    m = v4.MARGINS
    return min(m.index, m.experts, m.fp4, m.fp8, m.scale)


def search(name):
    """-> (config, seed, tokens, weights, result) for the first seed with comfortable margins."""
    c = v4.Config(keys(name))
    w = weights(c)
    for seed in range(1, SEARCH + 1):
        tokens = draw_tokens(seed, CASES[name][1], c.vocab_size)
        v4.MARGINS.reset()
        result = v4.forward(tokens, w, c)
        if smallest_margin() > ENOUGH:
            return c, seed, tokens, w, result
    raise SystemExit(f"{name}: no seed with a margin above {ENOUGH}")


def case(name):
    """-> (config, tokens)."""
    c, _, tokens, _, _ = search(name)
    return c, tokens


def make(name, out):
    c, seed, tokens, w, result = search(name)
    margins = str(v4.MARGINS)
    tensors = {"tokens": tokens[None], "logits": result["logits"][None]}
    if "mtp_logits" in result:
        tensors["mtp_logits"] = result["mtp_logits"][None]
    for layer, rows in result["selected"].items():
        tensors[f"selected.{layer}"] = rows[None]
    note = ""
    if c.numerics != "float32":
        plain = v4.forward(tokens, w, v4.Config({**keys(name), "numerics": "float32"}))
        moved = np.abs(plain["logits"] - result["logits"]).max()
        changed = sum(int((plain["selected"][l] != rows).any(1).sum()) for l, rows in result["selected"].items())
        assert moved > 1e-3, moved
        note = f"; against float32 numerics: logits move {moved:.2e}, {changed} rows select differently"
    chunked = v4.check_chunks(tokens, w, c, result)
    path = out / f"oracle_{name}.safetensors"
    metadata = {"config": json.dumps(keys(name)), "seed": str(seed), "made_by": "tests/oracle/make_cases.py",
                "numpy": np.__version__}
    tensorfile.write(path, tensors, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, seed {seed}, {len(w)} weights, max |logit| {np.abs(result['logits']).max():.2f}\n"
          f"    margins: {margins}; chunks {chunked:.1e}{note}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or CASES:
        make(name, out)
