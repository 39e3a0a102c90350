# SPDX-License-Identifier: Apache-2.0
"""The suite against implementations of other origin.

usage: cross_check.py SUITE_DIR [--peer] [--write DUMP_DIR]
    ops      every op of every vector, from the inputs that the suite has, in float64 NumPy (node_ops.py)
    models   whole models from config.json and model.safetensors, by ../oracle/v4_forward.py; training by differences
    --peer   the trunk of the model `mixed` by transformers' deepseek_v4 (with PyTorch), in float64
    --write  the results of `ops`, and the models' logits and streams, as a dump for `dsv4-conformance check`
Needs NumPy. Exit code 77 without it.
"""
import pathlib
import sys

try:
    import numpy as np
except ImportError:
    print("no NumPy here")
    sys.exit(77)

import suite_reader
from node_ops import OPS, backward, v4
from suite_reader import Suite, e4m3, fp8

TOLERANCE = 2.0 ** -22       # what files are rounded to is 2^-25 of the largest value


def error(ours, theirs, how):
    """The largest difference, in the units of the comparison; choices are sets."""
    ours, theirs = np.asarray(ours, float).reshape(-1), np.asarray(theirs, float).reshape(-1)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    if ours.size == 0:
        return 0.0
    known = ~np.isnan(theirs) if how == "scaled" else np.full(theirs.shape, True)
    if how == "relative":
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        known = ~np.isnan(theirs)
        unit = np.maximum(np.abs(theirs), 1e-300)[known]
    else:
        unit = np.abs(theirs[known]).max(initial=0) or 1.0
    return np.abs(np.where(ours == theirs, 0, ours - theirs)[known] / unit).max(initial=0)


def compare(name, ours, theirs, how, worst, tolerance=TOLERANCE):
    if how in ("choice", "exact"):
        if how == "choice":
            ours, theirs = (np.sort(np.where(x < 0, 1 << 30, x), -1) for x in (np.asarray(ours, int), np.asarray(theirs, int)))
        assert np.array_equal(np.asarray(ours).reshape(-1), np.asarray(theirs).reshape(-1)), name
        return
    e = error(ours, theirs, how)
    assert e <= tolerance, (name, e)
    worst.append((e, name))


def node_inputs(node, tensors, weights, nodes):
    """Inputs of a node by role, in float64."""
    inputs = {}
    for role, name in node["inputs"].items():
        if name in tensors:
            value = tensors[name]
            if value.dtype == np.uint8 and role == "x":             # FP8 activations
                value = fp8(value, tensors[name + "_scale"], 1, 128)
        elif "*" in name:
            value = np.stack([weights[name.replace("*", str(e))] for e in range(sum(n.startswith(name.split("*")[0]) for n in weights) // 3)])
        else:
            value = weights[name]
        inputs[role] = value
    if "frequencies" in inputs:                                     # tables are floats: from their description, exactly
        (table,) = [n for n in nodes if n["op"] == "rope_frequencies" and n["outputs"]["frequencies"] == node["inputs"]["frequencies"]]
        inputs.pop("frequencies")
        inputs["exact_frequencies"] = OPS["rope_frequencies"]({}, table["parameters"])["frequencies"]
    if "code" in inputs:
        inputs["code_scale"] = tensors[node["inputs"]["code"] + "_scale"]
    return inputs


def fit(op, inputs, node, tensors, nodes):
    """Shapes and partners that a model's nodes leave to the reader."""
    out = {role: tensors[name] for role, name in node["outputs"].items()}
    if op in ("rms_norm", "rope", "hadamard", "round_trip", "linear") and "x" in inputs and "y" in out:
        rows = out["y"].size // out["y"].shape[-1]
        if op == "linear":
            inner = inputs["weight"].shape[1]
            inputs["x"] = inputs["x"].reshape(-1)[:rows * inner].reshape(rows, inner)
        else:                                                         # the drafting block reads all rows but the last
            inputs["x"] = inputs["x"].reshape(-1)[:out["y"].size].reshape(out["y"].shape)
    if op == "batched_linear" and inputs["weight"].ndim == 2:         # wo_a: the groups lie below each other
        groups = out["y"].shape[1]
        inputs["weight"] = inputs["weight"].reshape(groups, -1, inputs["weight"].shape[1])
    if op == "expert_dispatch":
        inputs["expert_count"] = len(out["offsets"]) - 1
    if op == "expert_combine":                                        # who sorted the rows
        (sorter,) = [n for n in nodes if n["op"] == "expert_dispatch" and parent(n) == parent(node)]
        inputs["experts"] = tensors[sorter["inputs"]["experts"]]
    if op == "quantise":                                              # wo_a's groups lie beside each other
        inputs["x"] = inputs["x"].reshape(len(out["code"]), -1)
    return inputs


def parent(node):
    return next(iter(node["outputs"].values())).rsplit(".", 1)[0] if "." in next(iter(node["outputs"].values())) else ""


def check_ops(suite, dump):
    worst, count = [], 0
    for vector in suite.vectors.values():
        tensors, results = suite.tensors(vector), {}
        weights = suite.model(vector)[1] if "runs" in vector else {}
        for node in vector["nodes"]:
            op, _, direction = node["op"].partition(".")
            if op in ("greedy", "packed_model", "training_step"):    # whole models
                continue
            inputs = node_inputs(node, tensors, weights, vector["nodes"])
            if vector["name"] == "experts.products" and op == "expert_combine":
                inputs["experts"] = tensors["experts"]
            else:
                inputs = fit(op, inputs, node, tensors, vector["nodes"])
            parameters = node.get("parameters", {})
            if direction:
                outputs = backward(op, inputs, parameters, node["outputs"])
            else:
                outputs = OPS[op](inputs, parameters)
            for role, name in node["outputs"].items():
                expected = vector["expected"][name]
                # The inputs of a model's ops have been rounded for the file, those of single ops are exact.
                tolerance = expected["tolerance"]["F32"] if "runs" in vector else TOLERANCE
                compare(f"{vector['name']}: {name}", outputs[role], tensors[name], expected["compare"], worst, tolerance)
                results[name] = outputs[role]
                count += 1
        if dump and "runs" not in vector:
            suite_reader.write(dump / vector["file"], results)
    print(f"ops: {count} results agree; the largest difference is {max(worst)[0]:.1e} of the largest value ({max(worst)[1]})")


def oracle_config(config, numerics):
    """config.json -> what v4_forward reads."""
    kinds = {0: v4.SWA, config["compress_ratios"][1]: v4.CSA}
    ratios = config["compress_ratios"][:config["num_hidden_layers"]]
    for ratio in ratios:
        kinds.setdefault(ratio, v4.HCA)
    yarn = config["rope_scaling"]
    keys = {k: v for k, v in config.items() if k not in ("compress_ratios", "rope_scaling")}
    return {**keys, "layer_types": [kinds[r] for r in ratios], "compress_rates": {k: r for r, k in kinds.items() if r},
            "mlp_layer_types": ["hash_moe" if i < config["num_hash_layers"] else "moe" for i in range(len(ratios))],
            "partial_rotary_factor": config["qk_rope_head_dim"] / config["head_dim"], "numerics": numerics,
            "rope_parameters": {"rope_type": "yarn", **{k: yarn[k] for k in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")}}}


def check_models(suite, dump):
    for name, numerics in (("mixed", "float32"), ("released", "v4_released")):
        vector = suite.vectors[name]
        config, w = suite.model(vector)
        c = v4.Config(oracle_config(config, numerics))
        tensors, worst = suite.tensors(vector), []
        w = {n: v.astype(int) if n.endswith("tid2eid") else v for n, v in w.items()}
        tokens = tensors["tokens"]
        full = v4.forward(tokens, w, c)
        chunked = v4.check_chunks(tokens, w, c, full)
        results = {"logits": full["logits"]}
        for i, streams in enumerate(full["hidden"]):
            results["embed" if i == 0 else f"layers.{i - 1}.hc_ffn.streams"] = streams
        for layer, rows in full["selected"].items():
            key = f"layers.{layer}.attn.indexer.selected"
            ready = tensors[key][:, 0] >= 0                           # with as many entries as slots there is no selection
            compare(key, rows[ready], tensors[key][ready], "choice", worst)
        if "mtp_logits" in full:
            results["mtp.0.logits"] = full["mtp_logits"]
            text = list(tokens[:next(n for n in vector["nodes"] if n["op"] == "greedy")["parameters"]["prompt"]])
            for token in tensors["greedy"]:
                assert token == np.argmax(v4.forward(np.array(text), w, c)["logits"][-1])
                text.append(token)
            ends = np.cumsum(tensors["packed.lengths"])
            parts = [tensors["packed.tokens"][a:b] for a, b in zip([0, *ends[:-1]], ends) if b > a]
            compare("packed.logits", np.concatenate([v4.forward(p, w, c)["logits"] for p in parts]), tensors["packed.logits"], "scaled", worst)
        for key, value in results.items():
            compare(f"{name}: {key}", value, tensors[key], "scaled", worst)
        if dump:
            suite_reader.write(dump / f"models/{name}/whole.safetensors", results)
        print(f"{name}: the whole model agrees, the largest difference is {max(worst)[0]:.1e} of the largest value ({max(worst)[1]}); "
              f"in chunks: {chunked:.1e}")


def documents(tensors):
    ends = np.cumsum(tensors["lengths"])
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends)]


def divergence(x, w, p, c):
    """The indexer's loss of one document and CSA layer whose attention reads x; the target is a constant (OPS["indexer_loss"])."""
    m, _, _ = c.layer(next(i for i, kind in enumerate(c.layer_types) if kind == v4.CSA))
    t = np.arange(len(x))
    latent, q = v4.queries(x, t, w, p, c, c.compress_rope)
    iq, head_weights = v4.index_queries(x, latent, t, w, p, c)
    inputs = {"q": q, "compressed": v4.compress_all(x, w, p + "compressor.", c, m, True, True), "index_q": iq,
              "index_keys": v4.compress_all(x, w, p + "indexer.compressor.", c, m, True, False), "index_weights": head_weights}
    entries = {"first_position": 0, "ratio": m, "k": c.index_topk}
    inputs["selected"] = OPS["index_topk"]({"q": iq, "keys": inputs["index_keys"], "weights": head_weights}, entries)["selected"]
    return OPS["indexer_loss"](inputs, {**entries, "scale": c.head_dim ** -0.5, "index_scale": 1.0, "target_includes_sink": False})["loss"].sum()


def check_training(suite):
    """Losses, and the slope of their weighted sum along a random direction of every parameter by itself."""
    vector = suite.vectors["trained"]
    config, w = suite.model(vector)
    c, tensors, worst = v4.Config(oracle_config(config, "float32")), suite.tensors(vector), []
    (node,) = vector["nodes"]
    weights = node["parameters"]
    w = {n: v.astype(int) if n.endswith("tid2eid") else v for n, v in w.items()}

    def cross_entropy(z, targets):
        kept = targets >= 0
        return (np.logaddexp.reduce(z, 1) - z[np.arange(len(z)), targets])[kept].sum()

    def model_losses(w):
        token = mtp = 0.0
        for d in documents(tensors):
            full = v4.forward(tensors["tokens"][d], w, c)
            token += cross_entropy(full["logits"], tensors["targets"][d])
            mtp += cross_entropy(full["mtp_logits"], tensors["second_targets"][d][:-1])
        return token, mtp

    read, plain = [], v4.attend_all                                  # what the CSA layers read

    def watched(x, w, p, c, index, selected):
        if c.overlaps(index):
            read.append((x, p))
        return plain(x, w, p, c, index, selected)

    v4.attend_all = watched
    token, mtp = model_losses(w)
    v4.attend_all = plain

    def indexer_loss(w):
        return sum(divergence(x, w, p, c) for x, p in read)

    for name, value in (("loss.token", token), ("loss.mtp", mtp), ("loss.indexer", indexer_loss(w))):
        compare(name, value, tensors[name], "scaled", worst)
    random = np.random.default_rng(1)
    count = 0
    for name in node["outputs"].values():
        if not name.startswith("grad."):
            continue
        own = name.removeprefix("grad.")
        parts = [own] if own in w else [own.replace("experts.", f"experts.{e}.", 1) for e in range(config["n_routed_experts"])]
        gradient = tensors[name].reshape(len(parts), *w[parts[0]].shape) if "wo_a" not in own else tensors[name].reshape(1, *w[own].shape)
        directions = random.choice([-1.0, 1.0], gradient.shape)

        def total(step):
            moved = {**w, **{part: w[part] + step * along for part, along in zip(parts, directions)}}
            if ".indexer." in own:
                return weights["indexer"] * indexer_loss(moved)     # a selection has no slope
            token, mtp = model_losses(moved)
            return weights["token"] * token + weights["mtp"] * mtp

        h = 2.0 ** -20                                                # small: the clamp has corners
        slope = (8 * (total(h) - total(-h)) - (total(2 * h) - total(-2 * h))) / (12 * h)
        unit = np.abs(gradient).sum()
        e = abs(slope - (gradient * directions).sum()) / unit
        assert e <= 1e-5, (name, slope, (gradient * directions).sum(), e)
        worst.append((e, name))
        count += 1
    print(f"trained: the losses and {count} gradients agree with differences, the largest error is {max(worst)[0]:.1e} ({max(worst)[1]})")


def check_peer(suite):
    import torch
    import transformers
    vector = suite.vectors["mixed"]
    config, w = suite.model(vector)
    tensors, keys = suite.tensors(vector), oracle_config(config, "float32")
    yarn = keys["rope_parameters"]
    drop = ("rope_parameters", "numerics", "qk_rope_head_dim", "num_hash_layers", "rope_theta", "compress_rope_theta", "model_type", "topk_method")
    main = {"rope_type": "default", "rope_theta": config["rope_theta"], "partial_rotary_factor": keys["partial_rotary_factor"]}
    compress = {**yarn, "rope_theta": config["compress_rope_theta"], "partial_rotary_factor": keys["partial_rotary_factor"], "attention_factor": 1.0}
    peer = transformers.DeepseekV4Config(**{k: v for k, v in keys.items() if k not in drop}, rope_parameters={"main": main, "compress": compress})
    peer._attn_implementation = peer._experts_implementation = "eager"
    model = transformers.DeepseekV4ForCausalLM(peer).double().eval()
    own = {b: a for a, b in v4.TOP.items()}
    state = {}
    for name, value in w.items():
        if name.startswith("mtp."):
            continue
        if name in own:
            state[own[name]] = value
            continue
        layer, inner = name.removeprefix("layers.").split(".", 1)
        if inner.startswith("ffn.experts."):
            continue
        (theirs,) = [a for a, b in v4.RENAMED.items() if b == inner]
        state[f"model.layers.{layer}.{theirs}"] = value
    for layer in range(config["num_hidden_layers"]):
        p = f"layers.{layer}.ffn.experts."
        experts = range(config["n_routed_experts"])
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.stack([np.concatenate([w[f"{p}{e}.w1.weight"], w[f"{p}{e}.w3.weight"]]) for e in experts])
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = np.stack([w[f"{p}{e}.w2.weight"] for e in experts])
    target = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in state.items():
            assert target[name].shape == value.shape, (name, target[name].shape, value.shape)
            target[name].copy_(torch.from_numpy(np.array(value)))
    unset = [n for n, _ in model.named_parameters() if n not in state]
    assert not unset, unset
    with torch.no_grad():
        out = model(torch.from_numpy(tensors["tokens"].astype(np.int64))[None], output_hidden_states=True, use_cache=False)
    worst = {}
    for i, streams in enumerate(out.hidden_states[:-1]):
        key = "embed" if i == 0 else f"layers.{i - 1}.hc_ffn.streams"
        worst[key] = error(streams[0].numpy(), tensors[key], "scaled")
    worst["logits"] = error(out.logits[0].numpy(), tensors["logits"], "scaled")
    print(f"peer transformers {transformers.__version__}, PyTorch {torch.__version__}:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    # Its rotary tables, routing weights and norms are float32 whatever the model's type is.
    assert max(worst.values()) < 1e-5, worst


def main():
    arguments = sys.argv[1:]
    dump = pathlib.Path(arguments[arguments.index("--write") + 1]) if "--write" in arguments else None
    if not arguments or arguments[0].startswith("-"):
        sys.exit(__doc__)
    suite = Suite(arguments[0])
    check_ops(suite, dump)
    check_models(suite, dump)
    check_training(suite)
    if "--peer" in arguments:
        check_peer(suite)


if __name__ == "__main__":
    main()
