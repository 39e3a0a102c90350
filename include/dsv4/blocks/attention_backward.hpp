// SPDX-License-Identifier: Apache-2.0
/// The backward of the attention sublayer, for whole documents: the steps of `attention` in reverse.
#pragma once

#include <dsv4/blocks/attention.hpp>
#include <dsv4/blocks/attention_context.hpp>
#include <dsv4/ops/activation.hpp>

#include <cstdint>
#include <span>

namespace dsv4 {

/// Gradients of attention's parameters: views in the scalar type, added to; empty ones are skipped.
template <class T, space S = space::host>
using attention_gradients = attention_parameters<T, numerics::float32, S>;

namespace detail {

/// What attention's forward pass computed by cheap steps, once more, and the views that its loops share.
template <attention_config A, numerics_config Q, class T, space S, policy P>
class attention_replay {
 public:
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;

  attention_replay(const P& p, basic_workspace<S>& w, const attention_parameters<T, Q, S>& parameters,
                   double norm_eps, const attention_context<T, S>& context)
      : p_(p),
        w_(w),
        parameters_(parameters),
        norm_eps_(norm_eps),
        context_(context),
        rows_(context.kv.extent[0]),
        frequencies(layer_rope_frequencies(A, context.kind)),
        ratio(A.compress_ratio(context.kind)) {}

  /// The input of q_b and of the indexer's queries.
  storage_matrix<const X, S> q_latent() {
    const auto y = take<T>(w_, rows_, A.q_lora_rank);
    rms_norm<T, S>::forward(p_, {context_.q_latent, parameters_.q_norm, norm_eps_}, {y});
    return as_activation<X>(p_, w_, y);
  }
  /// Queries of a segment, rotated.
  tensor_view<T, S> q(const attention_segment<T, S>& s) {
    const std::int64_t heads = A.num_attention_heads, dim = A.head_dim, n = s.rows;
    const auto y = take<T>(w_, n, heads, dim);
    norm_rope<T, S>::forward(p_, {context_.q.rows(s.first_row, n), {}, norm_eps_, frequencies, 0}, {y});
    return y;
  }
  /// Window keys of a segment, as attention saw them.
  matrix_view<T, S> kv(const attention_segment<T, S>& s) {
    const auto y = take<T>(w_, s.rows, A.head_dim);
    const auto raw = context_.kv.rows(s.first_row, s.rows).reshape(s.rows, 1, A.head_dim);
    norm_rope<T, S>::forward(p_, {raw, parameters_.kv_norm, norm_eps_, frequencies, 0},
                             {y.reshape(s.rows, 1, A.head_dim)});
    to_kv(p_, y);
    return y;
  }
  /// Compressed entries of a segment, from `first_entry` on in the context.
  matrix_view<T, S> entries(const attention_segment<T, S>& s, std::int64_t first_entry) {
    if (ratio == 0) return {};
    const auto y = take<T>(w_, s.rows / ratio, A.head_dim);
    finish_entries<T, S>(p_, parameters_.compressor, frequencies, norm_eps_, 0,
                         context_.pooled.rows(first_entry, y.extent[0]), y, to_kv);
    return y;
  }
  /// Index queries of a segment, rotated and rounded.
  tensor_view<T, S> index_q(const attention_segment<T, S>& s) {
    const std::int64_t heads = A.index_n_heads, dim = A.index_head_dim, n = s.rows;
    const auto y = take<T>(w_, n, heads, dim);
    copy_rows<T, S>::forward(p_, {context_.index_q.rows(s.first_row, n).reshape(n, heads * dim), 0, 0, n},
                             {y.reshape(n, heads * dim)});
    rope<T, S>::forward(p_, {frequencies, 0}, {y});
    to_index(p_, y.reshape(n * heads, dim));
    return y;
  }
  matrix_view<T, S> index_keys(const attention_segment<T, S>& s, std::int64_t first_entry) {
    const auto y = take<T>(w_, s.rows / ratio, A.index_head_dim);
    finish_entries<T, S>(p_, parameters_.indexer.compressor, frequencies, norm_eps_, 0,
                         context_.index_pooled.rows(first_entry, y.extent[0]), y, to_index);
    return y;
  }
  /// The entries selected for a segment's queries; empty where all are attended.
  matrix_view<std::int32_t, S> selected(const attention_segment<T, S>& s) const {
    if (!attention_context<T, S>::selects(A, context_.kind, context_.options, s.rows)) return {};
    return context_.selected.rows(s.first_row, s.rows);
  }
  /// The gradient of index vectors before rounding, from that after it.
  void unrotate_index(matrix_view<T, S> d) {
    if constexpr (Q.index_fp4)
      if (d.extent[0] > 0) hadamard<T, S>::backward(p_, w_, {}, {d}, {d});
  }

 private:
  static constexpr auto to_kv = kv_rounding<Q>(A.qk_rope_head_dim);
  static constexpr index_rounding<Q> to_index{};

  const P& p_;
  basic_workspace<S>& w_;
  const attention_parameters<T, Q, S>& parameters_;
  double norm_eps_;
  const attention_context<T, S>& context_;
  std::int64_t rows_;

 public:
  const rope_frequencies frequencies;
  const std::int64_t ratio;
};

}  // namespace detail

/// The gradients of the indexer by its own loss, `dloss` (N) being that loss's upstream gradient per row. Its
/// inputs are detached: nothing flows back into the model. The context must have been made with indexer_loss.
template <attention_config A, numerics_config Q, class T, space S, policy P>
void indexer_backward(const P& p, basic_workspace<S>& w, const attention_parameters<T, Q, S>& parameters,
                      double norm_eps, std::span<const attention_segment<T, S>> segments,
                      matrix_view<const T, S> x, const attention_context<T, S>& context,
                      vector_view<const T, S> dloss, const attention_gradients<T, S>& gradients) {
  if (!context.options.indexer_loss || x.extent[0] == 0) return;
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "indexer_backward");
  using stored = storage_types<T, Q>;
  detail::attention_replay<A, Q, T, S, P> replay(p, w, parameters, norm_eps, context);
  const std::int64_t rows = x.extent[0], heads = A.index_n_heads, dim = A.index_head_dim;
  const auto dq = take<T>(w, rows, heads, dim);
  const auto dweights = take<T>(w, rows, heads), dkv = take<T>(w, rows, 2 * dim),
             dgate = take<T>(w, rows, 2 * dim);
  std::int64_t first_entry = 0;
  for (const auto& s : segments) {
    if (s.rows == 0) continue;
    const workspace_scope per_segment(w);
    const std::int64_t row = s.first_row, n = s.rows, count = n / replay.ratio;
    const auto dkeys = take<T>(w, count, dim);
    indexer_loss<T, S>::backward(
        p, w,
        {replay.q(s), replay.entries(s, first_entry), parameters.sinks, replay.index_q(s),
         replay.index_keys(s, first_entry), context.index_weights.rows(row, n), replay.selected(s), 0,
         replay.ratio, 1 / std::sqrt(double(A.head_dim)), index_scale(A),
         context.options.target_includes_sink},
        {dloss.rows(row, n)}, {dq.rows(row, n), dkeys, dweights.rows(row, n)});
    replay.unrotate_index(dq.rows(row, n).reshape(n * heads, dim));
    replay.unrotate_index(dkeys);
    rope<T, S>::backward(p, w, {replay.frequencies, 0}, {dq.rows(row, n)}, {dq.rows(row, n)});
    compress_backward<T, S>(p, w, parameters.indexer.compressor, replay.frequencies, norm_eps, true,
                            context.index_kv.rows(row, n), context.index_gate.rows(row, n),
                            context.index_pooled.rows(first_entry, count), dkeys,
                            gradients.indexer.compressor, dkv.rows(row, n), dgate.rows(row, n));
    first_entry += count;
  }
  using projection = linear<T, S, typename stored::linear, typename stored::activation>;
  using wide_projection = linear<T, S, typename stored::wide>;
  projection::backward(p, w, {replay.q_latent(), parameters.indexer.q_b}, {dq.reshape(rows, heads * dim)},
                       {{}, gradients.indexer.q_b});
  wide_projection::backward(p, w, {x, parameters.indexer.weights}, {dweights},
                            {{}, gradients.indexer.weights});
  wide_projection::backward(p, w, {x, parameters.indexer.compressor.kv}, {dkv},
                            {{}, gradients.indexer.compressor.kv});
  wide_projection::backward(p, w, {x, parameters.indexer.compressor.gate}, {dgate},
                            {{}, gradients.indexer.compressor.gate});
}

/// dx = and parameters' gradients +=, from dy: x and dy are (N, hidden), x as `attention` read it. Selection
/// has no gradient; the indexer's are indexer_backward's.
template <attention_config A, numerics_config Q, class T, space S, policy P>
void attention_backward(const P& p, basic_workspace<S>& w, const attention_parameters<T, Q, S>& parameters,
                        double norm_eps, std::span<const attention_segment<T, S>> segments,
                        matrix_view<const T, S> x, const attention_context<T, S>& context,
                        matrix_view<const T, S> dy, const attention_gradients<T, S>& gradients,
                        matrix_view<T, S> dx) {
  if (x.extent[0] == 0) return;
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "attention_backward");
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  using projection = linear<T, S, typename stored::linear, X>;
  using wide_projection = linear<T, S, typename stored::wide>;
  detail::attention_replay<A, Q, T, S, P> replay(p, w, parameters, norm_eps, context);
  const std::int64_t rows = x.extent[0], heads = A.num_attention_heads, dim = A.head_dim, groups = A.o_groups;
  const std::int64_t ratio = replay.ratio;
  const bool csa = context.kind == attention_kind::csa;
  const auto d_o = take<T>(w, rows, heads, dim);

  {  // y = o_b grouped,   grouped = o_a o
    const workspace_scope outputs(w);
    const auto dgrouped = take<T>(w, rows, groups * A.o_lora_rank), o = take<T>(w, rows, heads * dim);
    projection::backward(p, w, {as_activation<X>(p, w, context.grouped), parameters.o_b}, {dy},
                         {dgrouped, gradients.o_b});
    copy_rows<T, S>::forward(p, {context.o.reshape(rows, heads * dim), 0, 0, rows}, {o});
    for (const auto& s : segments)
      rope<T, S>::forward(p, {replay.frequencies, 0, 1, true},
                          {o.rows(s.first_row, s.rows).reshape(s.rows, heads, dim)});
    batched_linear<T, S, typename stored::linear>::backward(
        p, w, {o.reshape(rows, groups, heads * dim / groups), parameters.o_a},
        {dgrouped.reshape(rows, groups, A.o_lora_rank)},
        {d_o.reshape(rows, groups, heads * dim / groups), gradients.o_a});
  }

  // Attention, the entries that it saw, and the rotations around it.
  const auto dq = take<T>(w, rows, heads, dim);
  const auto dkv = take<T>(w, rows, dim);
  matrix_view<T, S> dpool_kv, dpool_gate;
  if (ratio) {
    dpool_kv = take<T>(w, rows, context.pool_kv.extent[1]);
    dpool_gate = take<T>(w, rows, context.pool_kv.extent[1]);
  }
  std::int64_t first_entry = 0;
  for (const auto& s : segments) {
    if (s.rows == 0) continue;
    const workspace_scope per_segment(w);
    const std::int64_t row = s.first_row, n = s.rows, count = ratio ? n / ratio : 0;
    const auto own_do = d_o.rows(row, n), own_dq = dq.rows(row, n);
    const auto own_dkv = dkv.rows(row, n);
    const auto dentries = ratio ? take<T>(w, count, dim) : matrix_view<T, S>();
    rope<T, S>::backward(p, w, {replay.frequencies, 0, 1, true}, {own_do}, {own_do});
    sparse_attention<T, S>::backward(
        p, w,
        {replay.q(s), replay.kv(s), replay.entries(s, first_entry), replay.selected(s), parameters.sinks, 0,
         0, A.sliding_window, ratio, 1 / std::sqrt(double(dim))},
        {context.lse.rows(row, n), context.o.rows(row, n)}, {own_do},
        {own_dq, own_dkv, dentries, gradients.sinks});
    rope<T, S>::backward(p, w, {replay.frequencies, 0}, {own_dq}, {own_dq});
    const auto dkv_heads = own_dkv.reshape(n, 1, dim);
    rope<T, S>::backward(p, w, {replay.frequencies, 0}, {dkv_heads}, {dkv_heads});
    if (ratio)
      compress_backward<T, S>(p, w, parameters.compressor, replay.frequencies, norm_eps, csa,
                              context.pool_kv.rows(row, n), context.pool_gate.rows(row, n),
                              context.pooled.rows(first_entry, count), dentries, gradients.compressor,
                              dpool_kv.rows(row, n), dpool_gate.rows(row, n));
    first_entry += count;
  }

  // Norms, then projections; x has several readers, the first one overwrites dx.
  const auto x_in = as_activation<X>(p, w, x);
  const auto dq_rows = dq.reshape(rows * heads, dim);
  rms_norm<T, S>::backward(p, w, {context.q.reshape(rows * heads, dim), {}, norm_eps}, {dq_rows},
                           {dq_rows, {}});
  const auto dq_latent = take<T>(w, rows, A.q_lora_rank);
  projection::backward(p, w, {replay.q_latent(), parameters.q_b}, {dq.reshape(rows, heads * dim)},
                       {dq_latent, gradients.q_b});
  rms_norm<T, S>::backward(p, w, {context.q_latent, parameters.q_norm, norm_eps}, {dq_latent},
                           {dq_latent, gradients.q_norm});
  projection::backward(p, w, {x_in, parameters.q_a}, {dq_latent}, {dx, gradients.q_a});
  rms_norm<T, S>::backward(p, w, {context.kv, parameters.kv_norm, norm_eps}, {dkv}, {dkv, gradients.kv_norm});
  projection::backward(p, w, {x_in, parameters.kv}, {dkv}, {dx, gradients.kv, true});
  if (ratio) {
    wide_projection::backward(p, w, {x, parameters.compressor.kv}, {dpool_kv},
                              {dx, gradients.compressor.kv, true});
    wide_projection::backward(p, w, {x, parameters.compressor.gate}, {dpool_gate},
                              {dx, gradients.compressor.gate, true});
  }
}

}  // namespace dsv4
