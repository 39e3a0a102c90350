# SPDX-License-Identifier: Apache-2.0
"""Every op of the suite in float64 NumPy, written from docs/conformance.md and the blocks' pages, not from the C++.

OPS[op](inputs by role, parameters) -> outputs by role. Gradients are central differences of the same functions.
"""
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "oracle"))
import v4_forward as v4
from suite_reader import E2M1, e4m3, fp8, mxfp4


# ---- attention -----------------------------------------------------------------------------------------------------

def rope_frequencies(i, p):
    yarn = dict(factor=p["factor"], original_max_position_embeddings=p["original_max_position_embeddings"],
                beta_fast=p["beta_fast"], beta_slow=p["beta_slow"]) if p["factor"] != 1 else None
    return {"frequencies": v4.rope_frequencies(p["dim"], p["theta"], yarn)}


def rope(i, p):
    x = i["x"]
    positions = p["first_position"] + p["position_step"] * np.arange(len(x))
    return {"y": v4.rope(x, positions, i["exact_frequencies"], p["inverse"])}


def compress_pool(i, p):
    kv, gate, bias = i["kv"], i["gate"], i["bias"]
    m, width = bias.shape[0], bias.shape[1] // (2 if p["overlap"] else 1)
    rows = []
    entry = p["first_entry"]
    while (entry + 1) * m <= p["first_position"] + len(kv):
        def part(group, first):
            t = np.arange(group * m, group * m + m) - p["first_position"]
            channels = slice(first, first + width)
            return kv[t, channels], gate[t, channels] + bias[:, channels]
        if not p["overlap"]:
            values, logits = part(entry, 0)
        else:
            values, logits = part(entry, width)
            if entry > 0:
                before = part(entry - 1, 0)
                values, logits = np.concatenate([before[0], values]), np.concatenate([before[1], logits])
        rows.append((v4.softmax(logits, 0) * values).sum(0))
        entry += 1
    return {"y": np.array(rows).reshape(-1, width)}


def hadamard(i, p):
    return {"y": v4.hadamard(i["x"])}


def index_topk(i, p):
    q, keys, weights = i["q"], i["keys"], i["weights"]
    entries = (p["first_position"] + len(q)) // p["ratio"]
    scores = np.einsum("th,ths->ts", weights, np.maximum(np.einsum("thd,sd->ths", q, keys[:entries]), 0))
    visible = (np.arange(entries) + 1) * p["ratio"] <= p["first_position"] + 1 + np.arange(len(q))[:, None]
    scores = np.where(visible, scores, np.nan)
    selected = np.full((len(q), p["k"]), -1)
    for t, row in enumerate(scores):
        count = min(int(visible[t].sum()), p["k"])
        best = np.argsort(np.where(visible[t], -row, np.inf), kind="stable")[:count]
        selected[t, :count] = np.sort(best)
    return {"scores": scores, "selected": selected}


def attention_mass(i, p):
    """-> for every token, candidates and masses [H, candidates], sink masses [H], common top [H]."""
    q, local, sinks = i["q"], i["local"], i["sinks"]
    for t in range(len(q)):
        position = p["first_position"] + t
        rows = [local[max(0, position - p["window"] + 1) - p["first_local"]:position + 1 - p["first_local"]]]
        if "selected" in i:
            rows.append(i["compressed"][i["selected"][t][i["selected"][t] >= 0].astype(int)])
        elif p["ratio"]:
            rows.append(i["compressed"][:(position + 1) // p["ratio"]])
        keys = np.concatenate(rows)
        logits = q[t] @ keys.T * p["scale"]
        top = np.maximum(logits.max(1), sinks)
        yield keys, np.exp(logits - top[:, None]), np.exp(sinks - top), top


def sparse_attention(i, p):
    o, lse = np.zeros_like(i["q"]), np.zeros(i["q"].shape[:2])
    for t, (keys, mass, sink, top) in enumerate(attention_mass(i, p)):
        total = mass.sum(1) + sink
        o[t], lse[t] = mass @ keys / total[:, None], top + np.log(total)
    return {"o": o, "lse": lse}


def indexer_loss(i, p):
    loss = []
    for t in range(len(i["q"])):
        visible = np.arange((p["first_position"] + t + 1) // p["ratio"])
        if "selected" in i:
            visible = i["selected"][t][i["selected"][t] >= 0].astype(int)
        if len(visible) == 0:
            loss.append(0.0)
            continue
        logits = i["q"][t] @ i["compressed"][visible].T * p["scale"]
        if p["target_includes_sink"]:
            logits = np.concatenate([logits, i["sinks"][:, None]], 1)
        share = v4.softmax(logits, 1)[:, :len(visible)].sum(0)
        target = share / max(1e-10, share.sum())
        dots = np.maximum(i["index_q"][t] @ i["index_keys"][visible].T, 0)
        estimate = p["index_scale"] * i["index_weights"][t] @ dots
        log_q = estimate - estimate.max() - np.log(np.exp(estimate - estimate.max()).sum())
        loss.append(np.sum(target * (np.log(target) - log_q)))
    return {"loss": np.array(loss)}


# ---- products, norms, streams ----------------------------------------------------------------------------------------

def embedding(i, p):
    return {"x": np.repeat(i["table"][i["tokens"].astype(int)][:, None, :], p.get("streams", 1), 1)}


def linear(i, p):
    return {"y": i["x"].reshape(-1, i["weight"].shape[-1]) @ i["weight"].T}


def batched_linear(i, p):
    groups, _, inner = i["weight"].shape
    return {"y": np.einsum("tgi,goi->tgo", i["x"].reshape(-1, groups, inner), i["weight"])}


def grouped_linear(i, p):
    offsets = i["offsets"].astype(int)
    y = np.zeros((len(i["x"]), i["weight"].shape[1]))
    for e, w in enumerate(i["weight"]):
        y[offsets[e]:offsets[e + 1]] = i["x"][offsets[e]:offsets[e + 1]] @ w.T
    return {"y": y}


def rms_norm(i, p):
    return {"y": v4.rms_norm(i["x"], i.get("weight"), p["eps"])}


def hyper_connection_gates(i, p):
    x, n = i["x"], i["x"].shape[1]
    rho = 1 / np.sqrt(np.mean(x.reshape(len(x), -1) ** 2, 1) + p["norm_eps"])
    h, base, scale = i["z"] * rho[:, None], i["base"], i["scale"]
    out = {"pre": v4.sigmoid(h[:, :n] * scale[0] + base[:n]) + p["eps"]}
    if len(scale) == 1:
        return out
    out["post"] = 2 * v4.sigmoid(h[:, n:2 * n] * scale[1] + base[n:2 * n])
    M = v4.softmax((h[:, 2 * n:] * scale[2] + base[2 * n:]).reshape(-1, n, n), 2) + p["eps"]
    for iteration in range(p["sinkhorn_iters"]):
        if iteration:
            M = M / (M.sum(2, keepdims=True) + p["eps"])
        M = M / (M.sum(1, keepdims=True) + p["eps"])
    return {**out, "comb": M}


def hyper_connection_collapse(i, p):
    return {"u": np.einsum("tn,tnd->td", i["pre"], i["x"])}


def hyper_connection_expand(i, p):
    return {"y": i["post"][:, :, None] * i["v"][:, None, :] + np.einsum("tjk,tjd->tkd", i["comb"], i["x"])}


def broadcast_add(i, p):
    return {"y": i["x"].reshape(len(i["e"]), -1, i["e"].shape[1]) + i["e"][:, None, :]}


# ---- experts -------------------------------------------------------------------------------------------------------

def swiglu(i, p):
    return {"h": v4.swiglu(i["gate"], i["up"], p["limit"]) * i.get("row_weight", np.ones(len(i["gate"])))[:, None]}


def route(i, p):
    score = np.sqrt(np.logaddexp(0, i["logits"]))
    if "experts" in i:
        chosen = i["experts"]
    elif "table" in i:
        chosen = i["table"][i["tokens"].astype(int)]
    else:
        chosen = np.argsort(-(score + i["bias"]), 1, kind="stable")[:, :p["k"]]
    weights = np.take_along_axis(score, chosen.astype(int), 1)
    return {"experts": chosen, "weights": weights / weights.sum(1, keepdims=True) * p["factor"]}


def expert_dispatch(i, p):
    experts, k = i["experts"].astype(int), i["experts"].shape[1]
    order = np.argsort(experts.reshape(-1), kind="stable")
    count = i["expert_count"]
    return {"offsets": np.searchsorted(experts.reshape(-1)[order], np.arange(count + 1)),
            "x_sorted": i["x"][order // k], "weight_sorted": i["weights"].reshape(-1)[order]}


def expert_combine(i, p):
    experts, out = i["experts"].astype(int), i["shared"].copy()
    order = np.argsort(experts.reshape(-1), kind="stable")
    np.add.at(out, order // experts.shape[1], i["y"])
    return {"out": out}


# ---- formats -------------------------------------------------------------------------------------------------------

def groups(format):
    return (1, 32) if format == "mxfp4" else tuple(int(n) for n in format.split("_")[1].split("x"))


def rounded(x, format):
    if format == "mxfp4":
        return v4.per_group(x, 32, 6 * 2.0 ** -126, 6.0, v4.e2m1)
    if format == "e4m3_128x128":
        return v4.fp8_tiles(x)
    return v4.per_group(x, groups(format)[1], 1e-4, 448.0, v4.e4m3)


def round_trip(i, p):
    y = i["x"].copy()
    y[..., :p["columns"]] = rounded(y[..., :p["columns"]], p["format"])
    return {"y": y}


def quantise(i, p):
    x, (high, wide) = i["x"], groups(p["format"])
    x = x.reshape(-1, x.shape[-1])
    y, largest = rounded(x, p["format"]), 6.0 if p["format"] == "mxfp4" else 448.0
    least = 1e-4 if p["format"].startswith("e4m3_1x") else largest * 2.0 ** -126
    scale = np.array([[np.ceil(np.log2(max(np.abs(x[r:r + high, c:c + wide]).max(), least) / largest))
                       for c in range(0, x.shape[1], wide)] for r in range(0, len(x), high)])
    unit = y / np.repeat(np.repeat(np.exp2(scale), high, 0), wide, 1)[:len(x), :x.shape[1]]
    if p["format"] == "mxfp4":
        code = np.abs(np.abs(unit)[..., None] - E2M1[:8]).argmin(-1) | np.signbit(unit).astype(int) << 3
        code = np.concatenate([code, np.zeros((len(code), code.shape[1] % 2), int)], 1)
        code = code[:, ::2] | code[:, 1::2] << 4
    else:
        code = np.abs(np.abs(unit)[..., None] - e4m3(np.arange(127))).argmin(-1) | np.signbit(unit).astype(int) << 7
    return {"code": code.astype(np.uint8), "code_scale": (scale + 127).astype(np.uint8)}


def dequantise(i, p):
    if p["format"] == "mxfp4":
        return {"x": mxfp4(i["code"], i["code_scale"])}
    if p["format"] == "nvfp4":
        pairs = np.stack([E2M1[i["code"] & 15], E2M1[i["code"] >> 4]], -1).reshape(len(i["code"]), -1)
        return {"x": pairs * e4m3(i["code_scale"])[:, None] * p["tensor_scale"]}
    return {"x": fp8(i["code"], i["code_scale"], *groups(p["format"]))}


def from_ggml_mxfp4(i, p):
    codes = np.concatenate([i["blocks"][:, 1:] & 15, i["blocks"][:, 1:] >> 4], 1)
    return {"code": codes[:, ::2] | codes[:, 1::2] << 4, "code_scale": i["blocks"][:, :1]}


def recast(i, p):
    """Of one tile."""
    scale, value = i["code_scale"].astype(int), mxfp4(i["code"], np.full_like(i["code_scale"], 127))
    largest = max(scale.max() - 6, 0)
    exact = np.ldexp(value, np.repeat(scale - largest, 32, 1))
    code = np.abs(np.abs(exact)[..., None] - e4m3(np.arange(127))).argmin(-1)
    lossless = np.array_equal(np.abs(exact), e4m3(code))
    return {"violations": np.array([int(not lossless)]), "code_scale": np.array([[largest]], np.uint8),
            "code": (code | np.signbit(value).astype(int) << 7).astype(np.uint8)}


# ---- losses and optimisers -------------------------------------------------------------------------------------------

def cross_entropy(i, p):
    z = i["hidden"] @ i["head"].T
    lse, targets = np.logaddexp.reduce(z, 1), i["targets"].astype(int)
    return {"loss": np.where(targets < 0, 0, lse - z[np.arange(len(z)), targets]), "lse": lse}


def next_token_loss(i, p):
    z, targets = i["logits"][:-1], i["tokens"][1:].astype(int)
    return {"loss": np.array([np.mean(np.logaddexp.reduce(z, 1) - z[np.arange(len(z)), targets])])}


def muon(i, p):
    momentum = p["momentum"] * i["momentum"] + i["gradient"]
    u = p["momentum"] * momentum + i["gradient"]
    turn = u.shape[0] > u.shape[1]
    X = u.T if turn else u
    X = X / (np.linalg.norm(X) + p["epsilon"])
    for a, b, c in p["steps"]:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    o = (X.T if turn else X) * p["rms"] * max(u.shape) ** 0.5
    return {"weight": (1 - p["learning_rate"] * p["weight_decay"]) * i["weight"] - p["learning_rate"] * o, "momentum": momentum}


def adamw(i, p):
    first = p["beta1"] * i["first"] + (1 - p["beta1"]) * i["gradient"]
    second = p["beta2"] * i["second"] + (1 - p["beta2"]) * i["gradient"] ** 2
    step = first / (1 - p["beta1"] ** p["step"]) / (np.sqrt(second / (1 - p["beta2"] ** p["step"])) + p["epsilon"])
    return {"weight": (1 - p["learning_rate"] * p["weight_decay"]) * i["weight"] - p["learning_rate"] * step,
            "first": first, "second": second}


OPS = {name: f for name, f in list(globals().items()) if callable(f) and getattr(f, "__module__", "") == __name__}


# ---- gradients -----------------------------------------------------------------------------------------------------

UPSTREAM = {"dy": "y", "do": "o", "du": "u", "dh": "h", "dx": "x", "dloss": "loss", "dweights": "weights", "dpre": "pre",
            "dpost": "post", "dcomb": "comb"}


def swiglu_backward(i, p):
    """By hand: differences would take the mean of both sides at the limit."""
    w, s = i["row_weight"][:, None], v4.sigmoid
    a, b = np.minimum(i["gate"], p["limit"]), np.clip(i["up"], -p["limit"], p["limit"])
    return {"dgate": np.where(i["gate"] <= p["limit"], i["dh"] * w * b * (s(a) + a * s(a) * (1 - s(a))), 0),
            "dup": np.where(np.abs(i["up"]) <= p["limit"], i["dh"] * w * a * s(a), 0),
            "drow_weight": (i["dh"] * a * s(a) * b).sum(1)}


def backward(op, inputs, p, wanted):
    """Gradients of sum(upstream * output) by the inputs that `wanted` ("dx", ...) names, by central differences."""
    if op == "swiglu":
        return swiglu_backward(inputs, p)
    upstream = {UPSTREAM[r]: v for r, v in inputs.items() if r in UPSTREAM}
    given = {r: np.array(v, float) if v.dtype.kind == "f" else v for r, v in inputs.items() if r not in UPSTREAM}
    if op in ("rope", "hadamard"):                      # linear: any point does
        given["x"] = np.zeros_like(inputs["dy"])
    if op == "sparse_attention":
        given.pop("o"), given.pop("lse")
    if op == "embedding":
        p = {**p, "streams": inputs["dx"].shape[1]}

    def loss():
        out = OPS[op](given, p)
        return sum(np.sum(out[r] * g) for r, g in upstream.items())

    gradients = {}
    for role in wanted:
        x = given[role[1:]]
        flat, g = x.reshape(-1), np.zeros(x.size)
        for k in range(x.size):
            kept, step = flat[k], 1e-4 * max(1.0, abs(flat[k]))
            sides = []
            for offset in (step, -step, 2 * step, -2 * step):          # the error is of order step^4
                flat[k] = kept + offset
                sides.append(loss())
            flat[k] = kept
            g[k] = (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step)
        gradients[role] = g.reshape(x.shape)
    return gradients
