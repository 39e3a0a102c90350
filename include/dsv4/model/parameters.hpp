// SPDX-License-Identifier: Apache-2.0
/// Every weight of a model: views, their names and shapes in one table, and the storage behind them.
#pragma once

#include <dsv4/blocks/attention.hpp>
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/blocks/moe.hpp>
#include <dsv4/config/validate.hpp>
#include <dsv4/core/hash.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace dsv4 {

template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct layer_parameters {
  hyper_connection_parameters<T, S> attention_site, ffn_site;
  vector_view<T, S> attention_norm, ffn_norm;  // (D)
  attention_parameters<T, Q, S> attention;
  moe_parameters<T, Q, S> ffn;
};

/// The multi-token-prediction block: a layer of its own between two projections and a head of its own.
template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct mtp_parameters {
  weight_matrix<T, typename storage_types<T, Q>::linear, S> e_proj, h_proj;  // (D, D)
  vector_view<T, S> enorm, hnorm, norm;                                      // (D)
  layer_parameters<T, Q, S> layer;
  hyper_connection_parameters<T, S> head_site;
};

template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct model_parameters {
  weight_matrix<T, typename storage_types<T, Q>::wide, S> embed;  // (V, D)
  std::vector<layer_parameters<T, Q, S>> layers;
  hyper_connection_parameters<T, S> head_site;
  vector_view<T, S> norm;                                        // (D)
  weight_matrix<T, typename storage_types<T, Q>::wide, S> head;  // (V, D)
  mtp_parameters<T, Q, S> mtp;
};

/// Where a weight lives in a released checkpoint, and how it is initialised.
struct parameter_info {
  std::string name;  ///< the released name; of a stack of experts, with '*' for the expert's number
  std::vector<std::int64_t> shape;  ///< as the model holds it; experts are stacked on the first axis
};

namespace detail {
template <model_config C, class T, numerics_config Q, space S>
class parameter_visitor {
 public:
  template <class F>
  static void model(model_parameters<T, Q, S>& m, F& f) {
    constexpr std::int64_t d = C.hidden_size, n = C.hyper_connection.hc_mult, v = C.vocab_size;
    m.layers.resize(static_cast<std::size_t>(C.num_hidden_layers()));
    visit(f, "embed.weight", m.embed, v, d);
    for (int i = 0; i < C.num_hidden_layers(); ++i)
      layer(m.layers[static_cast<std::size_t>(i)], "layers." + std::to_string(i) + ".", C.kind(i),
            C.hashed(i), f);
    site(m.head_site, "hc_head_", n, 1, f);
    visit(f, "norm.weight", m.norm, d);
    visit(f, "head.weight", m.head, v, d);
    if constexpr (C.num_nextn_predict_layers > 0) {
      visit(f, "mtp.0.e_proj.weight", m.mtp.e_proj, d, d);
      visit(f, "mtp.0.h_proj.weight", m.mtp.h_proj, d, d);
      visit(f, "mtp.0.enorm.weight", m.mtp.enorm, d);
      visit(f, "mtp.0.hnorm.weight", m.mtp.hnorm, d);
      visit(f, "mtp.0.norm.weight", m.mtp.norm, d);
      layer(m.mtp.layer, "mtp.0.", attention_kind::sliding, false, f);
      site(m.mtp.head_site, "mtp.0.hc_head_", n, 1, f);
    }
  }

 private:
  template <class F, class V, class... I>
  static void visit(F& f, std::string name, V& v, I... shape) {
    static_assert(sizeof...(I) == std::extent_v<decltype(v.extent)>);
    f(parameter_info{std::move(name), {static_cast<std::int64_t>(shape)...}}, v);
  }

  template <class F>
  static void site(hyper_connection_parameters<T, S>& h, const std::string& prefix, std::int64_t rows,
                   std::int64_t segments, F& f) {
    visit(f, prefix + "fn", h.fn, rows, std::int64_t{C.hyper_connection.hc_mult} * C.hidden_size);
    visit(f, prefix + "base", h.base, rows);
    visit(f, prefix + "scale", h.scale, segments);
  }

  template <class F>
  static void compressor(compressor_parameters<T, S, typename storage_types<T, Q>::wide>& c,
                         const std::string& prefix, std::int64_t dim, std::int64_t ratio, bool overlap,
                         F& f) {
    const std::int64_t width = dim * (overlap ? 2 : 1);
    visit(f, prefix + "wkv.weight", c.kv, width, C.hidden_size);
    visit(f, prefix + "wgate.weight", c.gate, width, C.hidden_size);
    visit(f, prefix + "ape", c.position_bias, ratio, width);
    visit(f, prefix + "norm.weight", c.norm, dim);
  }

  template <class F>
  static void layer(layer_parameters<T, Q, S>& l, const std::string& prefix, attention_kind kind, bool hashed,
                    F& f) {
    constexpr attention_config a = C.attention;
    constexpr moe_config e = C.moe;
    constexpr std::int64_t d = C.hidden_size, mixes = C.hyper_connection.mixes(),
                           inner = e.moe_intermediate_size;
    constexpr std::int64_t heads_dim = std::int64_t{a.num_attention_heads} * a.head_dim, groups = a.o_groups;
    visit(f, prefix + "attn_norm.weight", l.attention_norm, d);
    visit(f, prefix + "ffn_norm.weight", l.ffn_norm, d);
    site(l.attention_site, prefix + "hc_attn_", mixes, 3, f);
    site(l.ffn_site, prefix + "hc_ffn_", mixes, 3, f);

    const std::string attn = prefix + "attn.";
    visit(f, attn + "wq_a.weight", l.attention.q_a, a.q_lora_rank, d);
    visit(f, attn + "q_norm.weight", l.attention.q_norm, a.q_lora_rank);
    visit(f, attn + "wq_b.weight", l.attention.q_b, heads_dim, a.q_lora_rank);
    visit(f, attn + "wkv.weight", l.attention.kv, a.head_dim, d);
    visit(f, attn + "kv_norm.weight", l.attention.kv_norm, a.head_dim);
    visit(f, attn + "attn_sink", l.attention.sinks, a.num_attention_heads);
    visit(f, attn + "wo_a.weight", l.attention.o_a, groups, a.o_lora_rank, heads_dim / groups);
    visit(f, attn + "wo_b.weight", l.attention.o_b, d, groups * a.o_lora_rank);
    const bool csa = kind == attention_kind::csa;
    if (kind != attention_kind::sliding)
      compressor(l.attention.compressor, attn + "compressor.", a.head_dim, a.compress_ratio(kind), csa, f);
    if (csa) {
      visit(f, attn + "indexer.wq_b.weight", l.attention.indexer.q_b,
            std::int64_t{a.index_n_heads} * a.index_head_dim, a.q_lora_rank);
      visit(f, attn + "indexer.weights_proj.weight", l.attention.indexer.weights, a.index_n_heads, d);
      compressor(l.attention.indexer.compressor, attn + "indexer.compressor.", a.index_head_dim,
                 a.csa_compress_ratio, true, f);
    }

    const std::string ffn = prefix + "ffn.";
    visit(f, ffn + "gate.weight", l.ffn.gate, e.n_routed_experts, d);
    if (hashed)
      visit(f, ffn + "gate.tid2eid", l.ffn.tid2eid, C.vocab_size, e.num_experts_per_tok);
    else
      visit(f, ffn + "gate.bias", l.ffn.gate_bias, e.n_routed_experts);
    visit(f, ffn + "experts.*.w1.weight", l.ffn.experts.w1, e.n_routed_experts, inner, d);
    visit(f, ffn + "experts.*.w2.weight", l.ffn.experts.w2, e.n_routed_experts, d, inner);
    visit(f, ffn + "experts.*.w3.weight", l.ffn.experts.w3, e.n_routed_experts, inner, d);
    visit(f, ffn + "shared_experts.w1.weight", l.ffn.shared_w1, inner, d);
    visit(f, ffn + "shared_experts.w2.weight", l.ffn.shared_w2, d, inner);
    visit(f, ffn + "shared_experts.w3.weight", l.ffn.shared_w3, inner, d);
  }
};

/// Whether a weight's view is one of the scalar type or of a table.
template <class T, class V>
inline constexpr bool owned_view = false;
template <class T, class U, int R, space S>
inline constexpr bool owned_view<T, view<U, R, S>> = std::is_same_v<U, T> || std::is_same_v<U, std::int32_t>;
}  // namespace detail

/// Calls f(parameter_info, view&) for every weight of the model, in a fixed order. The views may still be
/// empty; they are a `view` of T, const bf16 or std::int32_t, a block_scaled_matrix<const F> or a
/// block_scaled_stack<const F>.
template <model_config C, class T, numerics_config Q, space S, class F>
void for_each_parameter(model_parameters<T, Q, S>& parameters, F&& f) {
  static_assert(valid<C>());
  detail::parameter_visitor<C, T, Q, S>::model(parameters, f);
}

/// The weights of a model of configuration `C`, with the memory behind them. Weights in the scalar type and
/// tables are owned; narrower ones start empty, and are bound to memory that the store keeps (`allocate`,
/// `keep`): their own, or a mapped file's. Move-only.
template <model_config C, class T, numerics_config Q = numerics::float32, space S = space::host>
class parameter_store {
 public:
  /// All owned weights zero.
  parameter_store() {
    std::int64_t reals = 0, integers = 0;
    for_each_owned([&]<class U, int R>(const parameter_info& info, view<U, R, S>&) {
      std::int64_t n = 1;
      for (std::int64_t e : info.shape) n *= e;
      (std::is_same_v<U, T> ? reals : integers) += padded(n);
    });
    reals_ = buffer<T, S>(reals);
    integers_ = buffer<std::int32_t, S>(integers);
    reals = integers = 0;
    for_each_owned([&]<class U, int R>(const parameter_info& info, view<U, R, S>& v) {
      U* base;
      std::int64_t& offset = std::is_same_v<U, T> ? reals : integers;
      if constexpr (std::is_same_v<U, T>)
        base = reals_.data();
      else
        base = integers_.data();
      std::int64_t step = 1;
      v.data = base + offset;
      for (int axis = R - 1; axis >= 0; --axis) {
        v.extent[axis] = info.shape[static_cast<std::size_t>(axis)];
        v.stride[axis] = step;
        step *= v.extent[axis];
      }
      offset += padded(step);
    });
  }

  const model_parameters<T, Q, S>& views() const { return views_; }
  model_parameters<T, Q, S>& views() { return views_; }

  /// All that is owned in the scalar type, one weight behind the other, each padded to a cache line.
  vector_view<T, S> reals() { return {reals_.data(), reals_.size()}; }

  /// Zeroed memory that lives as long as the store, for weights to be bound to.
  template <class U>
  U* allocate(std::int64_t count) {
    auto block = std::make_shared<buffer<U, S>>(count);
    U* data = block->data();
    bytes_ += count * static_cast<std::int64_t>(sizeof(U));
    kept_.push_back(std::move(block));
    return data;
  }
  /// Keeps what bound weights point into, such as a mapped file, alive.
  void keep(std::shared_ptr<const void> owner) { kept_.push_back(std::move(owner)); }

  /// Bytes of owned and allocated memory: mapped files are not in it.
  std::int64_t bytes() const {
    return bytes_ + reals_.size() * static_cast<std::int64_t>(sizeof(T)) +
           integers_.size() * static_cast<std::int64_t>(sizeof(std::int32_t));
  }

 private:
  /// Rows start on cache lines.
  static constexpr std::int64_t padded(std::int64_t n) { return (n + 15) / 16 * 16; }

  template <class F>
  void for_each_owned(const F& f) {
    for_each_parameter<C>(views_, [&]<class V>(const parameter_info& info, V& v) {
      if constexpr (detail::owned_view<T, V>) f(info, v);
    });
  }

  buffer<T, S> reals_;
  buffer<std::int32_t, S> integers_;
  model_parameters<T, Q, S> views_;
  std::vector<std::shared_ptr<const void>> kept_;
  std::int64_t bytes_ = 0;
};

/// Fills every weight from its released name and `seed` alone, so that programs in any language can agree on
/// a model without a file. Element i has r = 2^-23 (splitmix64(fnv1a64(name) + seed + i) >> 40) - 1, uniform
/// in [-1, 1); norms are 1 + r / 5, sinks, position biases and mHC bases r / 2, mHC scales 1 + 0.3 r, router
/// biases r / 10, matrices r sqrt(3 / in); a hash table sends token t, slot j to expert (t k + j) mod E.
template <model_config C, class T, numerics_config Q>
void initialise_by_name(parameter_store<C, T, Q>& store, std::uint64_t seed = 0) {
  static_assert(
      storage_types<T, Q>::plain,
      "dsv4: only weights in the scalar type are initialised; quantise_parameters makes narrow ones");
  for_each_parameter<C>(store.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    const std::string_view name = info.name;
    if constexpr (!std::is_same_v<U, T>) {
      for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = static_cast<U>(i % C.moe.n_routed_experts);
    } else {
      const double in = double(v.extent[R - 1]);
      const auto value = [&](double r) {
        if (name.ends_with("norm.weight")) return 1 + 0.2 * r;
        if (name.ends_with("attn_sink") || name.ends_with(".ape") || name.ends_with("_base")) return 0.5 * r;
        if (name.ends_with("_scale")) return 1 + 0.3 * r;
        if (name.ends_with("gate.bias")) return 0.1 * r;
        return r * std::sqrt(3 / in);
      };
      const std::size_t star = name.find('*');
      const std::int64_t parts = star == std::string_view::npos ? 1 : v.extent[0], count = v.size() / parts;
      for (std::int64_t e = 0; e < parts; ++e) {
        std::string own(name);
        if (star != std::string_view::npos) own.replace(star, 1, std::to_string(e));
        const std::uint64_t key = detail::fnv1a64(own) + seed;
        for (std::int64_t i = 0; i < count; ++i) {
          const double r =
              double(detail::splitmix64(key + static_cast<std::uint64_t>(i)) >> 40) * 0x1p-23 - 1;
          v.data[e * count + i] = T(static_cast<float>(value(r)));
        }
      }
    }
  });
}

}  // namespace dsv4
