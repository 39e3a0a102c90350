// SPDX-License-Identifier: Apache-2.0
/// What the tensors of a model are called: after the weight that made them, or else after what they are.
#pragma once

#include "recorder.hpp"

#include <string>
#include <string_view>

namespace conformance {

/// "layers.1.attn.wq_b" -> "layers.1.attn."
inline std::string parent(std::string_view name) { return std::string(name.substr(0, name.rfind('.') + 1)); }

/// The name of an op's result in a model. `prefix` is "" for the trunk and "mtp.0." for the drafting block.
inline std::string model_tensor_name(const node& n, const std::string& role, const std::string& prefix) {
  const auto input = [&](std::string_view r) { return std::string(n.input(r)); };
  const auto without = [](std::string name, std::string_view part, std::string_view by = "") {
    if (const auto at = name.find(part); at != std::string::npos) name.replace(at, part.size(), by);
    return name;
  };
  const auto stem = [](const std::string& weight) {  // without ".weight" at its end
    return weight.ends_with(".weight") ? weight.substr(0, weight.size() - 7) : weight;
  };
  const std::string& op = n.op;
  if (op == "embedding") return prefix + "embed";
  if (op == "broadcast_add") return prefix + "input";
  if (op == "linear" || op == "batched_linear" || op == "grouped_linear") {
    const std::string weight = input("weight");
    if (weight == "head.weight") return prefix + "logits";
    if (weight.ends_with("_fn")) return without(weight, "_fn", ".z");
    return without(stem(weight), "*.");
  }
  if (op == "rms_norm") {
    const std::string weight = input("weight");
    return weight.empty() ? parent(input("x")) + "q_head_norm" : stem(weight);
  }
  if (op == "hyper_connection_gates") return without(input("base"), "_base", ".") + role;
  if (op == "hyper_connection_collapse") return parent(input("pre")) + "collapse";
  if (op == "hyper_connection_expand") return parent(input("comb")) + "streams";
  if (op == "compress_pool") return parent(input("bias")) + "pool";
  if (op == "sparse_attention") return parent(input("sinks")) + "o";
  if (op == "index_topk") return parent(input("q")) + role;
  if (op == "route") return parent(input("logits")) + (role == "experts" ? "chosen" : role);
  if (op == "expert_dispatch") return parent(input("experts")) + role;
  if (op == "expert_combine")
    return parent(parent(input("y")).substr(0, parent(input("y")).size() - 1)) + "y";
  if (op == "swiglu") return parent(input("gate")) + "h";
  if (op == "quantise") return input("x") + (role == "code" ? ".fp8" : ".fp8_scale");
  const std::string x = input("x"), at = parent(x), last = x.substr(at.size());
  if (op == "rope") {
    if (last == "q_head_norm" || last == "wq_b") return at + "q_rope";
    if (last == "kv_norm") return at + "kv_rope";
    if (last == "o") return at + "o_unrope";
    return at + "rope";  // entries
  }
  const bool query = last.starts_with("q_");
  if (op == "hadamard") return at + (query ? "q_hadamard" : "hadamard");
  if (op == "round_trip")
    return last == "kv_rope" ? at + "kv_fp8" : last == "rope" ? at + "fp8" : at + (query ? "q_fp4" : "fp4");
  throw dsv4::contract_error("model_tensor_name", "op", "an op that models use", op);
}

/// Shapes that ops see flattened, as (tokens, parts, channels), and keys, which have one head, without it.
inline void unflatten(const std::string& name, tensor& t, std::int64_t tokens) {
  for (std::string_view end : {"q_head_norm", "hnorm", "h_proj", "q_hadamard", "q_fp4"})
    if (name.ends_with(end) && t.shape.size() == 2 && tokens > 0 && t.shape[0] > tokens)
      t.shape = {tokens, t.shape[0] / tokens, t.shape[1]};
  if (name.ends_with("rope") && t.shape.size() == 3 && t.shape[1] == 1) t.shape = {t.shape[0], t.shape[2]};
}

/// What the axes of a model's tensor count, more exactly than its op knows.
inline std::string model_axes(std::string_view name, const tensor& t, std::string axes) {
  const auto replace = [&](std::string_view what, std::string_view by) {
    if (const auto at = axes.find(what); at != std::string::npos) axes.replace(at, what.size(), by);
  };
  const bool projection = name.ends_with(".wkv") || name.ends_with(".wgate");
  if (axes.starts_with("row ")) replace("row", name.ends_with(".experts.h") ? "pair" : "token");
  if (name.find("compressor.") != std::string_view::npos && !projection) replace("token", "entry");
  if (t.shape.size() == 2) replace(" head", "");
  if (t.shape.size() == 3 && (axes == "token channel" || axes == "entry channel"))
    replace("channel", "part channel");
  return axes;
}

}  // namespace conformance
