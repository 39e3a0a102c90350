# SPDX-License-Identifier: Apache-2.0
"""Make the golden files small enough for the repository.

usage: strip_goldens.py IN_DIR OUT_DIR

Every *.safetensors of IN_DIR is written to OUT_DIR without
  grad.*                  gradients (large, and checked by finite differences instead),
  buffer.*rotary_emb*     frequency tables (a function of the configuration),
  hidden.0                the embedding rows, copied n_hc times: param.model.embed_tokens.weight[tokens],
  hidden.<last>           the input of the head; `logits` is that times param.lm_head.weight,
  part of hidden.<i>      in files with more than two layers: the first CUT tokens of the first sequence are kept.
Whatever is kept is bit-identical, and so is the metadata. The script re-reads what it wrote and checks this.
"""
import pathlib
import sys

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


def main(source, target):
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for path in sorted(source.glob("*.safetensors")):
        tensors, metadata = tensorfile.read(path)
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
    print(f"{'total':26} {total} bytes = {total / 2**20:.3f} MiB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
