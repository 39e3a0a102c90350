# SPDX-License-Identifier: Apache-2.0
"""Make golden files with the public peer: DeepseekV4ForCausalLM of transformers (5.17 or later, with PyTorch), on the CPU.

usage: peer_golden.py OUT_DIR [CASE...]        CASE in CASES; add your own there

Writes OUT_DIR/<case>.safetensors:
    param.*, buffer.*      what the model holds, under its own names (experts fused, ids as int32)
    tokens [B, T]          input; logits [B, T, V] its full forward; hidden.<i> the streams before layer i
    loss, grad.*           next-token cross-entropy and its gradients
    decode_logits          prefill of `prefill` tokens, then one at a time through the peer's cache: [B, T-prefill+1, V]
Metadata: config (JSON), prefill, seed, versions. strip_goldens.py reduces such files to what the repository keeps.
Random numbers differ between PyTorch versions: a case made again is another model, not the same bytes.
"""
import copy
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

import tensorfile

SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
SMALL = dict(vocab_size=80, hidden_size=48, moe_intermediate_size=24, num_attention_heads=4, num_key_value_heads=1,
             head_dim=32, q_lora_rank=20, num_experts_per_tok=2, n_routed_experts=6, n_shared_experts=1, sliding_window=6,
             o_groups=2, o_lora_rank=12, index_n_heads=12, index_head_dim=16, index_topk=4, partial_rotary_factor=0.25,
             hc_mult=4, swiglu_limit=10.0, max_position_embeddings=1024, compress_rates={CSA: 4, HCA: 16})
CASES = {
    "peer_small": dict(config=dict(layer_types=[SWA, CSA, HCA], mlp_layer_types=["hash_moe", "moe", "moe"]),
                       batch=2, length=50, prefill=21, seed=11),
    "peer_csa": dict(config=dict(layer_types=[CSA], mlp_layer_types=["moe"]), batch=1, length=40, prefill=7, seed=12),
}


def spread(name, shape, generator):
    """Values far from the peer's initialisation, where zeros and ones would hide a mistake."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.2 * noise
    if name.endswith(".scale") or name.endswith("hc_scale"):
        return 1 + 0.3 * noise
    if len(shape) == 1 or name.endswith("position_bias"):              # sinks, bases, ape
        return 0.5 * noise
    return noise / shape[-1] ** 0.5


def randomise(model, experts, generator):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(spread(name, parameter.shape, generator))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("tid2eid"):
                order = torch.rand((buffer.shape[0], experts), generator=generator).argsort(1)
                buffer.copy_(order[:, :buffer.shape[1]])


def decode(model, tokens, prefill):
    out = model(tokens[:, :prefill], use_cache=True)
    rows = [out.logits[:, -1]]
    for t in range(prefill, tokens.shape[1]):
        out = model(tokens[:, t:t + 1], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[:, -1])
    return torch.stack(rows, 1)


def as_array(tensor):
    array = tensor.detach().contiguous().numpy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def make(name, out):
    case = CASES[name]
    keys = {**SMALL, **case["config"], "num_hidden_layers": len(case["config"]["layer_types"])}
    config = DeepseekV4Config(**copy.deepcopy(keys))
    config._attn_implementation = config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(case["seed"])
    model = DeepseekV4ForCausalLM(config).float().eval()
    randomise(model, keys["n_routed_experts"], generator)
    tokens = torch.randint(0, keys["vocab_size"], (case["batch"], case["length"]), generator=generator)

    full = model(tokens, output_hidden_states=True, use_cache=False)
    loss = torch.nn.functional.cross_entropy(full.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    with torch.no_grad():
        steps = decode(model, tokens, case["prefill"])

    tensors = {"tokens": tokens, "logits": full.logits, "loss": loss.reshape(1), "decode_logits": steps}
    tensors |= {f"hidden.{i}": h for i, h in enumerate(full.hidden_states)}
    tensors |= {f"param.{n}": p for n, p in model.named_parameters()}
    tensors |= {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    tensors |= {f"buffer.{n}": b for n, b in model.named_buffers()}
    gap = (steps - full.logits[:, case["prefill"] - 1:]).abs().max().item()
    metadata = {"config": json.dumps(keys), "prefill": str(case["prefill"]), "seed": str(case["seed"]),
                "transformers": transformers.__version__, "torch": torch.__version__, "decode_vs_full_max_abs": str(gap)}
    path = out / f"{name}.safetensors"
    tensorfile.write(path, {n: as_array(t) for n, t in tensors.items()}, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, loss {loss.item():.6f}, decode against full {gap:.1e}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or CASES:
        make(name, out)
