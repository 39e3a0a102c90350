# SPDX-License-Identifier: Apache-2.0
"""Make the golden files small enough for the repository.

usage: strip_goldens.py IN_DIR OUT_DIR

Every *.safetensors of IN_DIR is written to OUT_DIR without
  grad.*                  gradients: golden_gradients.safetensors keeps PROJECTIONS numbers of each instead,
  buffer.*rotary_emb*     frequency tables (a function of the configuration),
  hidden.0                the embedding rows, copied n_hc times: param.model.embed_tokens.weight[tokens],
  hidden.<last>           the input of the head; `logits` is that times param.lm_head.weight,
  part of hidden.<i>      in files with more than two layers: the first CUT tokens of the first sequence are kept.
Whatever is kept is bit-identical, and so is the metadata. The script re-reads what it wrote and checks this.
"""
import pathlib
import sys

import numpy as np

import tensorfile


def kept(name, layers):
    if name.startswith("grad.") or (name.startswith("buffer.") and "rotary_emb" in name):
        return False
    if name.startswith("hidden."):
        i = int(name.split(".")[1])
        return 0 < i < layers
    return True


CUT = 52


def cut(name, tensor, layers):
    return tensor[:1, :CUT] if name.startswith("hidden.") and layers > 2 else tensor


PROJECTIONS = 6


def splitmix64(x):
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def project(name, gradient):
    """[sum_i sign_j(i) g_i for j < PROJECTIONS] + [sqrt(sum_i g_i^2)], sign_j(i) by bit j of a hash of name and i."""
    g = gradient.astype(np.float64).ravel()
    with np.errstate(over="ignore"):
        bits = splitmix64(np.uint64(fnv1a64(name)) + np.arange(g.size, dtype=np.uint64))
    signs = [1.0 - 2.0 * (bits >> np.uint64(j) & np.uint64(1)) for j in range(PROJECTIONS)]
    return [float(sign @ g) for sign in signs] + [float(np.sqrt(g @ g))]


def projections(tensors):
    """One row for each param.*, in the order of their names; NaN where the peer gives no gradient."""
    names = sorted(n[len("param."):] for n in tensors if n.startswith("param."))
    none = [float("nan")] * (PROJECTIONS + 1)
    rows = [project(n, tensors["grad." + n]) if "grad." + n in tensors else none for n in names]
    return np.asarray(rows, np.float32)


def main(source, target):
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    gradients = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors, metadata = tensorfile.read(path)
        gradients[path.stem] = projections(tensors)
        layers = max(int(n.split(".")[1]) for n in tensors if n.startswith("hidden."))
        subset = {n: cut(n, t, layers) for n, t in tensors.items() if kept(n, layers)}
        out = target / path.name
        tensorfile.write(out, subset, metadata)
        again, meta = tensorfile.read(out)
        assert meta == metadata and again.keys() == subset.keys()
        for name, tensor in again.items():
            old = cut(name, tensors[name], layers)
            assert tensor.dtype == old.dtype and tensor.shape == old.shape and tensor.tobytes() == old.tobytes(), name
        size = out.stat().st_size
        total += size
        hidden = sorted(n for n in subset if n.startswith("hidden."))
        print(f"{path.name:26} {path.stat().st_size:8} -> {size:8} bytes, {len(subset)} of {len(tensors)} tensors, {' '.join(hidden)}")
    out = target / "golden_gradients.safetensors"
    tensorfile.write(out, gradients, {})
    total += out.stat().st_size
    print(f"{'total':26} {total} bytes = {total / 2**20:.3f} MiB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
