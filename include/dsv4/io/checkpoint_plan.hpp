// SPDX-License-Identifier: Apache-2.0
/// What loading a checkpoint would read and how much memory running it takes, from its headers alone.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checkpoint_layout.hpp>
#include <dsv4/io/safetensors_index.hpp>
#include <dsv4/model/sequence_state.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv4::io {

/// A tensor that will be read, and from where.
struct planned_tensor {
  tensor_spec spec;
  std::uint64_t bytes;
  std::string file;
};

/// Sizes in bytes.
struct checkpoint_plan {
  std::vector<planned_tensor> tensors;  ///< in the model's order
  std::uint64_t read = 0;               ///< of all tensors
  std::uint64_t experts = 0;            ///< of routed experts among them
  std::int64_t owned = 0;               ///< memory for weights in the scalar type, and tables
  std::int64_t mapped = 0;              ///< narrow weights, used where the files are mapped
};

namespace detail {
inline bool is_expert(std::string_view name) { return name.find(".experts.") != std::string_view::npos; }
}  // namespace detail

/// Holds the headers of a checkpoint against the layout that `C` and `Q` ask for. Throws format_error for a
/// tensor that is missing, that nothing reads, or of another dtype or shape.
template <model_config C, class T, numerics_config Q>
checkpoint_plan plan_checkpoint(const safetensors_checkpoint& source) {
  checkpoint_plan plan;
  for_each_tensor<C, T, Q>([&](const tensor_spec& spec) {
    const std::string item = "tensor \"" + spec.name + "\"", where = source.path().string();
    const tensor_info* found = source.find(spec.name);
    if (!found) found = source.find("model." + spec.name);
    if (!found) throw format_error(where, item, describe(spec.dtype, spec.shape), "none");
    const bool norm_in_full =
        spec.dtype == dtype::bf16 && found->dtype == dtype::f32 && spec.name.ends_with("norm.weight");
    if ((found->dtype != spec.dtype && !norm_in_full) || found->shape != spec.shape)
      throw format_error(where, item, describe(spec.dtype, spec.shape), describe(found->dtype, found->shape));
    const std::uint64_t bytes = found->size_bytes();
    plan.read += bytes;
    if (detail::is_expert(spec.name)) plan.experts += bytes;
    plan.tensors.push_back(
        {{found->name, found->dtype, spec.shape}, bytes, source.file_of(found->name).filename().string()});
  });
  if (plan.tensors.size() != source.tensor_count()) {
    std::map<std::string_view, bool> known;
    for (const auto& t : plan.tensors) known[t.spec.name] = true;
    for (const auto& shard : source.shards())
      for (const auto& t : shard.tensors())
        if (!known.contains(t.name))
          throw format_error(source.path().string(), "tensor \"" + t.name + "\"", "a weight of this model",
                             describe(t.dtype, t.shape) + " that nothing reads");
  }
  model_parameters<T, Q> views;
  for_each_parameter<C>(views, [&]<class V>(const parameter_info& info, V&) {
    using W = detail::weight_storage_t<V>;
    std::int64_t count = 1;
    for (std::int64_t e : info.shape) count *= e;
    if constexpr (block_format<W>) {
      detail::for_each_part(info, [&](const std::string&, std::int64_t rows, std::int64_t columns, auto) {
        plan.mapped += W::bytes(rows, columns);
      });
    } else if constexpr (std::is_same_v<W, bf16> && !std::is_same_v<T, bf16>) {
      plan.mapped += count * 2;
    } else {
      plan.owned += count * static_cast<std::int64_t>(sizeof(W));
    }
  });
  return plan;
}

/// Bytes that the caches of a sequence of `tokens` tokens hold, in a model of scalar type `T`.
template <model_config C, class T>
std::int64_t cache_bytes(std::int64_t tokens) {
  std::int64_t sum = 0;
  for (int i = 0; i < C.num_hidden_layers() + C.num_nextn_predict_layers; ++i)
    sum += attention_cache<T>::bytes(C.attention, C.kind(i), tokens);
  return sum;
}

/// The names of the numerics that checkpoints come in, for messages and options.
inline constexpr std::string_view numerics_names[] = {"float32", "bf16", "mxfp4_experts_only", "v4_released",
                                                      "v4_released_base"};

/// Calls `f.operator()<Q>()` for the numerics called `name`. Throws contract_error for another name.
template <class F>
decltype(auto) with_numerics(std::string_view name, const F& f) {
  if (name == "float32") return f.template operator()<numerics::float32>();
  if (name == "bf16") return f.template operator()<numerics::bf16>();
  if (name == "mxfp4_experts_only") return f.template operator()<numerics::mxfp4_experts_only>();
  if (name == "v4_released") return f.template operator()<numerics::v4_released>();
  if (name == "v4_released_base") return f.template operator()<numerics::v4_released_base>();
  std::string known;
  for (const auto n : numerics_names) known += (known.empty() ? "" : ", ") + std::string(n);
  throw contract_error("with_numerics", "name", known, name);
}

/// The name of the numerics whose weights a checkpoint holds, from the dtypes of an expert and a projection.
/// Throws format_error for a combination that none has.
inline std::string_view detect_numerics(const safetensors_checkpoint& source) {
  const auto type_of = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      for (const char* prefix : {"", "model."})
        if (const auto* t = source.find(std::string(prefix) + name)) return t->dtype;
    throw format_error(source.path().string(), "tensor \"" + std::string(*names.begin()) + "\"",
                       "it, to tell the formats of the weights by", "none");
  };
  const dtype expert = type_of({"layers.0.ffn.experts.0.w1.weight", "layers.0.mlp.experts.gate_up_proj"});
  const dtype linear = type_of({"layers.0.attn.wq_a.weight", "layers.0.self_attn.q_a_proj.weight"});
  const auto real = [](dtype t) { return t == dtype::f32 || t == dtype::f64; };
  if (expert == dtype::i8 && linear == dtype::f8_e4m3) return "v4_released";
  if (expert == dtype::f8_e4m3 && linear == dtype::f8_e4m3) return "v4_released_base";
  if (expert == dtype::i8 && real(linear)) return "mxfp4_experts_only";
  if (expert == dtype::bf16 && linear == dtype::bf16) return "bf16";
  if (real(expert) && real(linear)) return "float32";
  throw format_error(source.path().string(), "formats of the weights",
                     "experts and projections in I8 (FP4) and F8_E4M3, F8_E4M3 and F8_E4M3, BF16 or F32",
                     std::string(dtype_name(expert)) + " and " + std::string(dtype_name(linear)));
}

}  // namespace dsv4::io
