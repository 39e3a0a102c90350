# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V4 in float64 NumPy, twice: `forward` sees the whole sequence, `Session` sees it piece by piece.

usage: v4_forward.py [FILE.safetensors...]
    without arguments: self-test (rounding, Hadamard, chunking); with golden or oracle files: compares with them, then
    replays them in chunks.

Names are the official ones ("layers.0.attn.wq_a.weight"), all maps are y = x W^T with W [out, in].
Letters: T tokens, d hidden size, n residual streams, H heads, c head dim, r rotated dims (the last ones), m compression
ratio, W window. The sequence dimension comes first; batches are a loop outside.

`numerics` selects which values pass through a low-precision format and back (the arithmetic stays float64):
    float32           none
    index_fp4         indexer queries and keys: Hadamard, then FP4
    kv_fp8_index_fp4  the same, and FP8 for the un-rotated dims of window and compressed key-values
    v4_released       the same, and every input of a quantised projection in FP8 (groups of 128); `stored_weights` rounds
                      the weights as the released files do
Ties in a top-k go to the lower index.
"""
import json
import sys

import numpy as np

import tensorfile

SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
NUMERICS = ("float32", "index_fp4", "kv_fp8_index_fp4", "v4_released")


# ---- configuration ---------------------------------------------------------------------------------------------------

DEFAULTS = dict(hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6, routed_scaling_factor=1.5, rope_theta=10000.0,
                compress_rope_theta=160000.0, rope_parameters=None, num_nextn_predict_layers=0, n_shared_experts=1,
                numerics="float32")


class Config:
    """The configuration dictionary (keys of the public config.json) as attributes, with what follows from it."""

    def __init__(self, keys):
        self.__dict__.update({**DEFAULTS, **keys})
        assert self.numerics in NUMERICS and self.n_shared_experts == 1
        self.rope_dim = int(self.head_dim * self.partial_rotary_factor + 1e-9)
        self.nope_dim = self.head_dim - self.rope_dim
        self.fp4_index = self.numerics != "float32"
        self.released = self.numerics == "v4_released"
        self.fp8_kv = self.released or self.numerics == "kv_fp8_index_fp4"
        yarn = self.rope_parameters
        self.yarn = yarn if yarn and yarn.get("rope_type") == "yarn" else None
        self.window_rope = rope_frequencies(self.rope_dim, self.rope_theta)
        self.compress_rope = rope_frequencies(self.rope_dim, self.compress_rope_theta, self.yarn)

    def layer(self, index):
        """-> (ratio m or 0, frequencies, hash routing?). The MTP block is the index after the last layer."""
        if index == len(self.layer_types):
            return 0, self.window_rope, False
        kind, hashed = self.layer_types[index], self.mlp_layer_types[index] == "hash_moe"
        return (0, self.window_rope, hashed) if kind == SWA else (self.compress_rates[kind], self.compress_rope, hashed)

    def overlaps(self, index):
        return index < len(self.layer_types) and self.layer_types[index] == CSA


# ---- how close a run came to a different discrete outcome --------------------------------------------------------------

class Margins:
    """Smallest distances to a flip, over everything computed since `reset`."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.index = self.experts = self.fp4 = self.fp8 = self.scale = np.inf

    def top_k(self, field, scores, k):
        """scores [rows, N]; the gap between the k-th and the next of every row with more than k finite scores."""
        if scores.shape[1] > k:
            ordered = -np.sort(-scores, 1)
            ordered = ordered[np.isfinite(ordered[:, k])]
            if len(ordered):
                setattr(self, field, min(getattr(self, field), np.min(ordered[:, k - 1] - ordered[:, k])))

    def __str__(self):
        return " ".join(f"{k} {v:.1e}" for k, v in vars(self).items() if np.isfinite(v)) or "nothing discrete"


MARGINS = Margins()


# ---- low-precision round trips -----------------------------------------------------------------------------------------

def power_of_two_above(x):
    """2^ceil(log2 x), exactly."""
    mantissa, exponent = np.frexp(x)                               # x = mantissa * 2^exponent, mantissa in [1/2, 1)
    MARGINS.scale = min(MARGINS.scale, np.min(np.abs(mantissa - 0.5) * 2), np.min(1 - mantissa))
    return np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))


def round_to_float(y, mantissa_bits, lowest_exponent, largest, field):
    """To the nearest number of a small binary format with subnormals; ties to even; saturating."""
    y = np.clip(y, -largest, largest)
    exponent = np.maximum(np.frexp(y)[1] - 1, lowest_exponent)     # frexp(0) gives 0: the maximum covers it
    steps = np.ldexp(y, mantissa_bits - exponent)                  # y in units of its last place
    away = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
    setattr(MARGINS, field, min(getattr(MARGINS, field), away.min()))
    return np.ldexp(np.rint(steps), exponent - mantissa_bits)


def e2m1(y):
    return round_to_float(y, 1, 0, 6.0, "fp4")


def e4m3(y):
    return round_to_float(y, 3, -6, 448.0, "fp8")


def per_group(x, size, floor, largest, rounded):
    """Groups of `size` along the last axis (the last may be shorter), each with the scale 2^ceil(log2(amax / largest))."""
    y = np.empty_like(x)
    for begin in range(0, x.shape[-1], size):
        part = x[..., begin:begin + size]
        scale = power_of_two_above(np.maximum(np.abs(part).max(-1, keepdims=True), floor) / largest)
        y[..., begin:begin + size] = rounded(part / scale) * scale
    return y


def fp4_round_trip(x):
    if x.size == 0:
        return x
    return per_group(x, min(32, x.shape[-1]), 6 * 2.0 ** -126, 6.0, e2m1)


def fp8_round_trip(x):
    if x.size == 0:
        return x
    return per_group(x, min(64, x.shape[-1]), 1e-4, 448.0, e4m3)


def activation(x, c):
    """The input of a quantised projection."""
    return per_group(x, 128, 1e-4, 448.0, e4m3) if c.released and x.size else x


def fp8_tiles(x):
    """A weight [out, in] in tiles of 128 x 128, each with one scale."""
    y = np.empty_like(x)
    for row in range(0, x.shape[0], 128):
        for column in range(0, x.shape[1], 128):
            tile = x[row:row + 128, column:column + 128]
            flat = tile.reshape(1, -1)
            y[row:row + 128, column:column + 128] = per_group(flat, flat.size, 448 * 2.0 ** -126, 448.0, e4m3).reshape(tile.shape)
    return y


def bfloat16(x):
    return round_to_float(x, 7, -126, 3.3895313892515355e38, "fp8")


FP8_WEIGHTS = ("wq_a.weight", "attn.wq_b.weight", "indexer.wq_b.weight", "attn.wkv.weight", "wo_a.weight", "wo_b.weight",
               "e_proj.weight", "h_proj.weight")
BF16_WEIGHTS = ("embed.weight", "head.weight", "norm.weight", "gate.weight", "compressor.wkv.weight",
                "compressor.wgate.weight", "weights_proj.weight")


def stored_weights(w):
    """The weights as released files store them: FP4 experts, FP8 projections, BF16 and F32 for the rest."""
    def stored(name, x):
        if ".experts." in name:
            return per_group(x, 32, 6 * 2.0 ** -126, 6.0, e2m1)
        if ".shared_experts." in name or name.endswith(FP8_WEIGHTS):
            return fp8_tiles(x)
        return bfloat16(x) if name.endswith(BF16_WEIGHTS) else x
    return {name: stored(name, x) for name, x in w.items()}


def hadamard(x):
    """Walsh-Hadamard transform of the last axis (a power of two) in natural order, orthonormal, its own inverse."""
    size = x.shape[-1]
    assert size & (size - 1) == 0, "the Hadamard transform needs a power of two"
    y, half = x, 1
    while half < size:
        y = y.reshape(*x.shape[:-1], -1, 2, half)
        y = np.stack([y[..., 0, :] + y[..., 1, :], y[..., 0, :] - y[..., 1, :]], -2)
        half *= 2
    return y.reshape(x.shape) * size ** -0.5


def stored_kv(kv, c):
    """A window or compressed key-value as the cache holds it; after RoPE."""
    if not c.fp8_kv:
        return kv
    return np.concatenate([fp8_round_trip(kv[..., :c.nope_dim]), kv[..., c.nope_dim:]], -1)


def index_vector(v, c):
    """An indexer query or key as it is scored; after RoPE."""
    return fp4_round_trip(hadamard(v)) if c.fp4_index else v


# ---- small pieces ------------------------------------------------------------------------------------------------------

def rms_norm(x, weight=None, eps=1e-6):
    y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return y if weight is None else y * weight


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def rope_frequencies(dims, theta, yarn=None):
    i = np.arange(dims // 2)
    plain = theta ** (-2.0 * i / dims)
    if not yarn:
        return plain

    def pair_with(rotations):
        return dims * np.log(yarn["original_max_position_embeddings"] / (rotations * 2 * np.pi)) / (2 * np.log(theta))

    low = max(np.floor(pair_with(yarn["beta_fast"])), 0)
    high = min(np.ceil(pair_with(yarn["beta_slow"])), dims - 1)
    stretched = np.clip((i - low) / (high - low if high != low else 0.001), 0, 1)
    return plain * (1 - stretched) + plain / yarn["factor"] * stretched


def rope(x, positions, frequencies, inverse=False):
    """Rotates the adjacent pairs of the last dims. x [T, ..., c], positions [T]."""
    angle = np.multiply.outer(np.asarray(positions, float), frequencies)
    angle = angle.reshape(angle.shape[:1] + (1,) * (x.ndim - 2) + angle.shape[1:])
    turn = np.exp((-1j if inverse else 1j) * angle)
    split = x.shape[-1] - 2 * len(frequencies)
    z = (x[..., split::2] + 1j * x[..., split + 1::2]) * turn
    y = x.copy()
    y[..., split::2], y[..., split + 1::2] = z.real, z.imag
    return y


def swiglu(gate, up, limit):
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(gate) * up


# ---- streams: mixing in, mixing out --------------------------------------------------------------------------------------

def hc_split(X, w, name, c):
    """X [T, n, d] -> in-weights [T, n], out-weights [T, n], mixing [T, source, destination]."""
    n, eps = X.shape[1], c.hc_eps
    z = rms_norm(X.reshape(len(X), -1), eps=c.rms_norm_eps) @ w[name + "_fn"].T
    scale, base = w[name + "_scale"], w[name + "_base"]
    pre = sigmoid(z[:, :n] * scale[0] + base[:n]) + eps
    post = 2 * sigmoid(z[:, n:2 * n] * scale[1] + base[n:2 * n])
    M = softmax((z[:, 2 * n:] * scale[2] + base[2 * n:]).reshape(-1, n, n), 2) + eps
    M = M / (M.sum(1, keepdims=True) + eps)
    for _ in range(c.hc_sinkhorn_iters - 1):
        M = M / (M.sum(2, keepdims=True) + eps)
        M = M / (M.sum(1, keepdims=True) + eps)
    return pre, post, M


def hc_site(X, w, site, norm, c, sublayer):
    pre, post, M = hc_split(X, w, site, c)
    v = sublayer(rms_norm(np.einsum("tn,tnd->td", pre, X), w[norm], c.rms_norm_eps))
    return post[:, :, None] * v[:, None, :] + np.einsum("tjk,tjd->tkd", M, X)


def hc_head(X, w, prefix, c):
    z = rms_norm(X.reshape(len(X), -1), eps=c.rms_norm_eps) @ w[prefix + "hc_head_fn"].T
    a = sigmoid(z * w[prefix + "hc_head_scale"] + w[prefix + "hc_head_base"]) + c.hc_eps
    return rms_norm(np.einsum("tn,tnd->td", a, X), w[prefix + "norm.weight"], c.rms_norm_eps)


# ---- experts -------------------------------------------------------------------------------------------------------------

def moe(x, tokens, w, p, c, hashed):
    """x [T, d] -> [T, d]; p ends in "ffn."."""
    score = np.sqrt(np.logaddexp(0, x @ w[p + "gate.weight"].T))
    if hashed:
        chosen = w[p + "gate.tid2eid"][tokens]
    else:
        biased = score + w[p + "gate.bias"]
        MARGINS.top_k("experts", biased, c.num_experts_per_tok)
        chosen = np.argsort(-biased, 1, kind="stable")[:, :c.num_experts_per_tok]
    weight = np.take_along_axis(score, chosen, 1)
    weight = weight / weight.sum(1, keepdims=True) * c.routed_scaling_factor

    def expert(name, rows, share=1.0):
        h = swiglu(rows @ w[name + "w1.weight"].T, rows @ w[name + "w3.weight"].T, c.swiglu_limit) * share
        return activation(h, c) @ w[name + "w2.weight"].T

    x = activation(x, c)                                           # the router has read the exact rows
    y = expert(p + "shared_experts.", x)
    for e in range(c.n_routed_experts):
        rows, slots = np.nonzero(chosen == e)
        if len(rows):
            y[rows] += expert(f"{p}experts.{e}.", x[rows], weight[rows, slots, None])
    return y


# ---- attention, shared by both ways of running ----------------------------------------------------------------------------

def queries(x, positions, w, p, c, frequencies):
    """-> (latent [T, q_lora], q [T, H, c])."""
    latent = rms_norm(activation(x, c) @ w[p + "wq_a.weight"].T, w[p + "q_norm.weight"], c.rms_norm_eps)
    q = (activation(latent, c) @ w[p + "wq_b.weight"].T).reshape(len(x), c.num_attention_heads, c.head_dim)
    return latent, rope(rms_norm(q, eps=c.rms_norm_eps), positions, frequencies)


def window_kv(x, positions, w, p, c, frequencies):
    kv = rms_norm(activation(x, c) @ w[p + "wkv.weight"].T, w[p + "kv_norm.weight"], c.rms_norm_eps)
    return stored_kv(rope(kv, positions, frequencies), c)


def index_queries(x, latent, positions, w, p, c):
    """-> (q [T, heads, dim], head weights [T, heads])."""
    heads, dim = c.index_n_heads, c.index_head_dim
    q = (activation(latent, c) @ w[p + "indexer.wq_b.weight"].T).reshape(len(x), heads, dim)
    weights = x @ w[p + "indexer.weights_proj.weight"].T * (dim ** -0.5 * heads ** -0.5)
    return index_vector(rope(q, positions, c.compress_rope), c), weights


def finish_entry(pooled, positions, w, p, c, main):
    """Pooled rows [N, dim] -> what the compressed cache holds."""
    entry = rope(rms_norm(pooled, w[p + "norm.weight"], c.rms_norm_eps), positions, c.compress_rope)
    return stored_kv(entry, c) if main else index_vector(entry, c)


def attention_output(o, positions, w, p, c, frequencies):
    """o [T, H, c]: turned back, then the grouped projection."""
    o = rope(o, positions, frequencies, inverse=True).reshape(len(o), c.o_groups, -1)
    down = w[p + "wo_a.weight"].reshape(c.o_groups, c.o_lora_rank, -1)
    return activation(np.einsum("tgi,gri->tgr", o, down).reshape(len(o), -1), c) @ w[p + "wo_b.weight"].T


# ---- the whole sequence at once -------------------------------------------------------------------------------------------

def compress_all(x, w, p, c, m, overlap, main):
    """x [T, d] -> the floor(T/m) entries; p ends in "compressor."."""
    dim, blocks = w[p + "norm.weight"].size, len(x) // m
    if blocks == 0:
        return np.zeros((0, dim))
    K = (x @ w[p + "wkv.weight"].T)[:blocks * m].reshape(blocks, m, -1)
    Z = (x @ w[p + "wgate.weight"].T)[:blocks * m].reshape(blocks, m, -1) + w[p + "ape"]
    if overlap:                                                    # first half: the block before; second half: this one
        before_K = np.concatenate([np.zeros((1, m, dim)), K[:-1, :, :dim]])
        before_Z = np.concatenate([np.full((1, m, dim), -np.inf), Z[:-1, :, :dim]])
        K, Z = np.concatenate([before_K, K[:, :, dim:]], 1), np.concatenate([before_Z, Z[:, :, dim:]], 1)
    return finish_entry((softmax(Z, 1) * K).sum(1), np.arange(blocks) * m, w, p, c, main)


def attend_all(x, w, p, c, index, selected):
    """x [T, d] -> [T, d]; p ends in "attn."."""
    m, frequencies, _ = c.layer(index)
    T, t = len(x), np.arange(len(x))
    latent, q = queries(x, t, w, p, c, frequencies)
    kv = window_kv(x, t, w, p, c, frequencies)
    seen = (t <= t[:, None]) & (t > t[:, None] - c.sliding_window)
    if m:
        overlap = c.overlaps(index)
        entries = compress_all(x, w, p + "compressor.", c, m, overlap, True)
        ready = np.arange(len(entries)) < (t[:, None] + 1) // m
        if overlap:
            keys = compress_all(x, w, p + "indexer.compressor.", c, m, True, False)
            iq, weights = index_queries(x, latent, t, w, p, c)
            score = np.einsum("th,ths->ts", weights, np.maximum(np.einsum("thd,sd->ths", iq, keys), 0))
            score = np.where(ready, score, -np.inf)
            k = min(c.index_topk, len(entries))
            if k:
                MARGINS.top_k("index", score, k)
            best = np.argsort(-score, 1, kind="stable")[:, :k]
            chosen = np.zeros_like(ready)
            np.put_along_axis(chosen, best, True, 1)
            ready = ready & chosen
            if selected is not None:
                rows = [np.flatnonzero(row) for row in ready]
                selected[index] = np.array([np.pad(r, (0, c.index_topk - len(r)), constant_values=-1) for r in rows], np.int32)
        kv, seen = np.concatenate([kv, entries]), np.concatenate([seen, ready], 1)
    logit = np.where(seen[:, None, :], np.einsum("thc,sc->ths", q, kv) * c.head_dim ** -0.5, -np.inf)
    sink = np.broadcast_to(w[p + "attn_sink"][None, :, None], (T, c.num_attention_heads, 1))
    share = softmax(np.concatenate([logit, sink], 2), 2)[:, :, :-1]
    return attention_output(np.einsum("ths,sc->thc", share, kv), t, w, p, c, frequencies)


def block_all(X, tokens, w, prefix, c, index, selected=None):
    hashed = c.layer(index)[2]
    X = hc_site(X, w, prefix + "hc_attn", prefix + "attn_norm.weight", c,
                lambda x: attend_all(x, w, prefix + "attn.", c, index, selected))
    return hc_site(X, w, prefix + "hc_ffn", prefix + "ffn_norm.weight", c,
                   lambda x: moe(x, tokens, w, prefix + "ffn.", c, hashed))


def mtp_input(X, next_tokens, w, p, c):
    """Trunk streams of position t, joined with the embedding of token t+1."""
    h = activation(rms_norm(X, w[p + "hnorm.weight"], c.rms_norm_eps), c) @ w[p + "h_proj.weight"].T
    e = activation(rms_norm(w["embed.weight"][next_tokens], w[p + "enorm.weight"], c.rms_norm_eps), c) @ w[p + "e_proj.weight"].T
    return h + e[:, None, :]


def forward(tokens, w, c):
    """tokens [T] -> dict: logits [T, V], hidden (streams before each layer, and after the last), selected {layer: [T, k]},
    mtp_logits [T-1, V] when there is an MTP block: row t has seen tokens 0..t+1 and predicts t+2."""
    X = np.repeat(w["embed.weight"][tokens][:, None, :], c.hc_mult, 1)
    hidden, selected = [X], {}
    for i in range(len(c.layer_types)):
        X = block_all(X, tokens, w, f"layers.{i}.", c, i, selected)
        hidden.append(X)
    result = {"logits": hc_head(X, w, "", c) @ w["head.weight"].T, "hidden": hidden, "selected": selected}
    if c.num_nextn_predict_layers:
        assert c.num_nextn_predict_layers == 1
        Y = mtp_input(X[:-1], tokens[1:], w, "mtp.0.", c)
        Y = block_all(Y, tokens[1:], w, "mtp.0.", c, len(c.layer_types))
        result["mtp_logits"] = hc_head(Y, w, "mtp.0.", c) @ w["head.weight"].T
    return result


# ---- piece by piece: explicit state, one token after the other ------------------------------------------------------------

class CompressorState:
    """Open rows of one compressor. `push` takes one token's K and Z (with ape) and returns a pooled entry or None."""

    def __init__(self, m, dim, overlap):
        self.m, self.dim, self.overlap = m, dim, overlap
        rows = 2 * m if overlap else m
        width = 2 * dim if overlap else dim
        self.kv_state = np.zeros((rows, width))
        self.score_state = np.full((rows, width), -np.inf)

    def push(self, t, K, Z):
        m, dim = self.m, self.dim
        row = t % m + (m if self.overlap else 0)
        self.kv_state[row], self.score_state[row] = K, Z
        if (t + 1) % m:
            return None
        if not self.overlap:
            return (softmax(self.score_state, 0) * self.kv_state).sum(0)
        kv = np.concatenate([self.kv_state[:m, :dim], self.kv_state[m:, dim:]])
        score = np.concatenate([self.score_state[:m, :dim], self.score_state[m:, dim:]])
        self.kv_state[:m], self.score_state[:m] = self.kv_state[m:], self.score_state[m:]
        return (softmax(score, 0) * kv).sum(0)


class LayerState:
    """Caches of one attention layer."""

    def __init__(self, c, index):
        self.c, self.index = c, index
        m = c.layer(index)[0]
        self.ring = np.full((c.sliding_window, c.head_dim), np.nan)    # slot t mod W; NaN shows up if read too early
        self.entries, self.keys = [], []
        if m:
            overlap = c.overlaps(index)
            self.main = CompressorState(m, c.head_dim, overlap)
            self.indexer = CompressorState(m, c.index_head_dim, True) if overlap else None

    def compress(self, x, start, w, p, state, cache, main):
        K, Z = x @ w[p + "wkv.weight"].T, x @ w[p + "wgate.weight"].T
        for i in range(len(x)):
            t = start + i
            pooled = state.push(t, K[i], Z[i] + w[p + "ape"][t % state.m])
            if pooled is not None:
                first = np.array([t + 1 - state.m])
                cache.append(finish_entry(pooled[None], first, w, p, self.c, main)[0])

    def attend(self, x, start, w, p):
        """The chunk x [S, d] at positions start... -> [S, d]."""
        c, (m, frequencies, _) = self.c, self.c.layer(self.index)
        t = np.arange(start, start + len(x))
        latent, q = queries(x, t, w, p, c, frequencies)
        kv = window_kv(x, t, w, p, c, frequencies)
        if m:
            self.compress(x, start, w, p + "compressor.", self.main, self.entries, True)
            if self.indexer:
                self.compress(x, start, w, p + "indexer.compressor.", self.indexer, self.keys, False)
                iq, weights = index_queries(x, latent, t, w, p, c)
        out = np.empty((len(x), c.num_attention_heads, c.head_dim))
        for i, now in enumerate(t):
            self.ring[now % c.sliding_window] = kv[i]
            rows = [self.ring[:min(now + 1, c.sliding_window)]]
            if m and (now + 1) // m:
                visible = (now + 1) // m
                pick = np.arange(visible)
                if self.indexer and visible > c.index_topk:
                    dots = iq[i] @ np.stack(self.keys[:visible]).T
                    score = weights[i] @ np.where(dots > 0, dots, 0)
                    pick = np.argsort(-score, kind="stable")[:c.index_topk]
                rows.append(np.stack(self.entries)[pick])
            rows = np.concatenate(rows)
            logit = q[i] @ rows.T * c.head_dim ** -0.5                     # [H, rows]
            top = logit.max(1, keepdims=True)
            mass = np.exp(logit - top)
            out[i] = mass @ rows / (mass.sum(1, keepdims=True) + np.exp(w[p + "attn_sink"][:, None] - top))
        return attention_output(out, t, w, p, c, frequencies)


class Session:
    """One sequence, fed in chunks of any length. The MTP block runs one position behind: it needs the next token."""

    def __init__(self, w, c):
        self.w, self.c, self.position = w, c, 0
        self.layers = [LayerState(c, i) for i in range(len(c.layer_types))]
        self.mtp = LayerState(c, len(c.layer_types)) if c.num_nextn_predict_layers else None
        self.waiting = np.zeros((0, c.hc_mult, c.hidden_size))             # last trunk streams, without their next token

    def block(self, X, tokens, start, prefix, state):
        w, c = self.w, self.c
        X = hc_site(X, w, prefix + "hc_attn", prefix + "attn_norm.weight", c,
                    lambda x: state.attend(x, start, w, prefix + "attn."))
        return hc_site(X, w, prefix + "hc_ffn", prefix + "ffn_norm.weight", c,
                       lambda x: moe(x, tokens, w, prefix + "ffn.", c, c.layer(state.index)[2]))

    def feed(self, tokens):
        """-> (logits [S, V], mtp_logits [S or S-1, V] or None)."""
        w, c, start = self.w, self.c, self.position
        X = np.repeat(w["embed.weight"][tokens][:, None, :], c.hc_mult, 1)
        for i, state in enumerate(self.layers):
            X = self.block(X, tokens, start, f"layers.{i}.", state)
        logits, drafts = hc_head(X, w, "", c) @ w["head.weight"].T, None
        if self.mtp:
            known = np.concatenate([self.waiting, X[:-1]])
            following = tokens[len(tokens) - len(known):]
            first = start - len(self.waiting)
            self.waiting = X[-1:]
            drafts = np.zeros((0, c.vocab_size))
            if len(known):
                Y = self.block(mtp_input(known, following, w, "mtp.0.", c), following, first, "mtp.0.", self.mtp)
                drafts = hc_head(Y, w, "mtp.0.", c) @ w["head.weight"].T
        self.position += len(tokens)
        return logits, drafts


def replay(tokens, w, c, chunks):
    """The sequence through a fresh Session, in the given chunk lengths -> (logits, mtp_logits or None)."""
    session, begin, parts = Session(w, c), 0, []
    for length in chunks:
        parts.append(session.feed(tokens[begin:begin + length]))
        begin += length
    assert begin == len(tokens)
    mtp = np.concatenate([d for _, d in parts]) if session.mtp else None
    return np.concatenate([l for l, _ in parts]), mtp


def chunkings(T, seed=0):
    """Ways to cut T tokens: whole, one by one, prefill and decode, block-sized, random."""
    random = np.random.default_rng(seed)
    yield "whole", [T]
    yield "singles", [1] * T
    if T > 2:
        yield "prefill+decode", [T // 2] + [1] * (T - T // 2)
    for size in (2, 3, 4, 5, 16):
        if size < T:
            yield f"by {size}", [size] * (T // size) + ([T % size] if T % size else [])
    cuts = np.unique(random.integers(1, max(T, 2), 6))
    cuts = cuts[cuts < T]
    yield "random", np.diff(np.concatenate([[0], cuts, [T]])).tolist()


def check_chunks(tokens, w, c, full, tolerance=1e-12):
    """Largest difference between any chunking and the full forward, relative to the largest logit."""
    worst = 0.0
    for name, chunks in chunkings(len(tokens)):
        logits, mtp = replay(tokens, w, c, chunks)
        error = np.abs(logits - full["logits"]).max() / np.abs(full["logits"]).max()
        if mtp is not None:
            assert mtp.shape == full["mtp_logits"].shape
            if mtp.size:
                error = max(error, np.abs(mtp - full["mtp_logits"]).max() / np.abs(full["mtp_logits"]).max())
        assert error <= tolerance, (name, error)
        worst = max(worst, error)
    return worst


# ---- weights --------------------------------------------------------------------------------------------------------------

RENAMED = {  # peer -> official, inside a layer
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "attn_hc.fn": "hc_attn_fn", "attn_hc.base": "hc_attn_base", "attn_hc.scale": "hc_attn_scale",
    "ffn_hc.fn": "hc_ffn_fn", "ffn_hc.base": "hc_ffn_base", "ffn_hc.scale": "hc_ffn_scale",
    "self_attn.q_a_proj.weight": "attn.wq_a.weight", "self_attn.q_a_norm.weight": "attn.q_norm.weight",
    "self_attn.q_b_proj.weight": "attn.wq_b.weight", "self_attn.kv_proj.weight": "attn.wkv.weight",
    "self_attn.kv_norm.weight": "attn.kv_norm.weight", "self_attn.sinks": "attn.attn_sink",
    "self_attn.o_a_proj.weight": "attn.wo_a.weight", "self_attn.o_b_proj.weight": "attn.wo_b.weight",
    "self_attn.compressor.indexer.q_b_proj.weight": "attn.indexer.wq_b.weight",
    "self_attn.compressor.indexer.scorer.weights_proj.weight": "attn.indexer.weights_proj.weight",
    "mlp.gate.weight": "ffn.gate.weight", "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.gate.tid2eid": "ffn.gate.tid2eid", "mlp.shared_experts.gate_proj.weight": "ffn.shared_experts.w1.weight",
    "mlp.shared_experts.down_proj.weight": "ffn.shared_experts.w2.weight",
    "mlp.shared_experts.up_proj.weight": "ffn.shared_experts.w3.weight",
}
for _peer, _own in (("self_attn.compressor.", "attn.compressor."), ("self_attn.compressor.indexer.", "attn.indexer.compressor.")):
    for _a, _b in (("kv_proj.weight", "wkv.weight"), ("gate_proj.weight", "wgate.weight"), ("position_bias", "ape"),
                   ("kv_norm.weight", "norm.weight")):
        RENAMED[_peer + _a] = _own + _b
TOP = {"model.embed_tokens.weight": "embed.weight", "lm_head.weight": "head.weight", "model.norm.weight": "norm.weight",
       "model.hc_head.hc_fn": "hc_head_fn", "model.hc_head.hc_base": "hc_head_base", "model.hc_head.hc_scale": "hc_head_scale"}


def official_weights(tensors):
    """The param.* and buffer.* of a golden file under the official names, in float64 (tables of ids as int64)."""
    w = {}
    for name, value in tensors.items():
        kind, _, name = name.partition(".")
        if kind not in ("param", "buffer") or "rotary_emb" in name:
            continue
        value = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
        if name in TOP:
            w[TOP[name]] = value
            continue
        layer, _, inner = name.removeprefix("model.layers.").partition(".")
        prefix = f"layers.{layer}."
        if inner == "mlp.experts.gate_up_proj":
            half = value.shape[1] // 2
            for e, both in enumerate(value):
                w[f"{prefix}ffn.experts.{e}.w1.weight"], w[f"{prefix}ffn.experts.{e}.w3.weight"] = both[:half], both[half:]
        elif inner == "mlp.experts.down_proj":
            for e, down in enumerate(value):
                w[f"{prefix}ffn.experts.{e}.w2.weight"] = down
        else:
            w[prefix + RENAMED[inner]] = value
    return w


# ---- checks ---------------------------------------------------------------------------------------------------------------

def check_primitives():
    """The formats against their definitions by listing, the transform against its matrix."""
    def nearest(table, y):                                          # table: codes in order, sign apart
        table = np.array(table)
        distance = np.abs(table - min(abs(y), table[-1]))
        best = np.flatnonzero(distance == distance.min())
        return np.copysign(table[best[best % 2 == 0][0] if len(best) > 1 else best[0]], y)

    fp4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    fp8 = [(m / 8) * 2.0 ** -6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:127]
    random = np.random.default_rng(1)
    for table, rounded in ((fp4, e2m1), (fp8, e4m3)):
        middles = (np.array(table[1:]) + np.array(table[:-1])) / 2
        values = np.concatenate([table, middles, random.uniform(0, 1.2 * table[-1], 500), random.uniform(0, 0.1, 500)])
        for y in np.concatenate([values, -values]):
            assert rounded(np.array([y]))[0] == nearest(table, y), (y, rounded(np.array([y])))
    assert fp8[-1] == 448
    H = hadamard(np.eye(32))
    sylvester = np.array([[1.0]])
    while len(sylvester) < 32:
        sylvester = np.kron([[1, 1], [1, -1]], sylvester)
    assert np.abs(H - sylvester / 32 ** 0.5).max() < 1e-15 and np.abs(H @ H - np.eye(32)).max() < 1e-14
    assert power_of_two_above(np.array([1.0, 1.5, 2.0, 0.3])).tolist() == [1, 2, 2, 0.5]
    print("formats and transform: ok")


def check_file(path):
    """-> True when the file's own values are reproduced."""
    tensors, metadata = tensorfile.read(path)
    c = Config(json.loads(metadata["config"]))
    if any(n.startswith("param.") for n in tensors):
        w, tolerance = official_weights(tensors), 1e-5
    else:
        import make_cases
        w, tolerance = make_cases.weights(c), 1e-12
    MARGINS.reset()
    worst, report, chunked = {}, {}, 0.0
    for b, tokens in enumerate(tensors["tokens"]):
        full = forward(tokens, w, c)
        report["logits"] = full["logits"], tensors["logits"][b]
        if "decode_logits" in tensors:
            report["decode"] = full["logits"][int(metadata["prefill"]) - 1:], tensors["decode_logits"][b]
        if "mtp_logits" in tensors:
            report["mtp"] = full["mtp_logits"], tensors["mtp_logits"][b]
        for name in tensors:
            i = int(name.split(".")[1]) if name.startswith("hidden.") else len(c.layer_types)
            if i < len(c.layer_types):
                report[name] = full["hidden"][i], tensors[name][b]
            if name.startswith("selected."):
                assert np.array_equal(full["selected"][int(name.split(".")[1])], tensors[name][b])
        for key, (ours, theirs) in report.items():
            unit = max(1.0, np.abs(ours).max()) if key.startswith("hidden.") else 1.0     # streams grow from layer to layer
            worst[key] = max(worst.get(key, 0.0), np.abs(ours - theirs).max() / unit)
        margins = str(MARGINS)
        chunked = max(chunked, check_chunks(tokens, w, c, full))
    good = max(worst.values()) <= tolerance
    print(f"{str(path).split('/')[-1]:32} {'ok  ' if good else 'FAIL'} {' '.join(f'{k} {v:.1e}' for k, v in worst.items())}"
          f"; chunks {chunked:.1e}; margins: {margins}")
    return good


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(not all([check_file(path) for path in sys.argv[1:]]))
    check_primitives()
    import make_cases
    for case in make_cases.CASES:
        config, tokens = make_cases.case(case)
        weights = make_cases.weights(config)
        full = forward(tokens, weights, config)
        print(f"{case}: any chunking equals the full forward to {check_chunks(tokens, weights, config, full):.1e}")
