// SPDX-License-Identifier: Apache-2.0
/// The attention sublayer: sliding window, CSA and HCA share everything but where compressed entries come
/// from.
#pragma once

#include <dsv4/blocks/activation.hpp>
#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/blocks/kv_compressor.hpp>
#include <dsv4/config/numerics.hpp>
#include <dsv4/ops/index_topk.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <cmath>
#include <span>

namespace dsv4 {

template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct indexer_parameters {
  using stored = storage_types<T, Q>;
  weight_matrix<T, typename stored::linear, S> q_b;    // (index_n_heads * index_head_dim, q_lora_rank)
  weight_matrix<T, typename stored::wide, S> weights;  // (index_n_heads, hidden)
  compressor_parameters<T, S, typename stored::wide> compressor;
};

template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct attention_parameters {
  using stored = storage_types<T, Q>;
  using linear_matrix = weight_matrix<T, typename stored::linear, S>;
  linear_matrix q_a;                               // (q_lora_rank, hidden)
  vector_view<T, S> q_norm;                        // (q_lora_rank)
  linear_matrix q_b;                               // (heads * head_dim, q_lora_rank)
  linear_matrix kv;                                // (head_dim, hidden)
  vector_view<T, S> kv_norm;                       // (head_dim)
  vector_view<T, S> sinks;                         // (heads)
  weight_stack<T, typename stored::linear, S> o_a;   // (groups, o_lora_rank, heads * head_dim / groups)
  linear_matrix o_b;                               // (hidden, groups * o_lora_rank)
  compressor_parameters<T, S, typename stored::wide> compressor;  // CSA and HCA
  indexer_parameters<T, Q, S> indexer;                            // CSA
};

/// The next `rows` tokens of one sequence: rows [first_row, first_row + rows) of the batch.
template <class T, space S = space::host>
struct attention_segment {
  attention_cache<T, S>* cache;
  std::int64_t position;  ///< of the first token
  std::int64_t first_row;
  std::int64_t rows;
};

/// y = attention(x), x already normalised (specification, sections 5 to 7). Prefill, chunks and decode are
/// this same code: a segment attends to what its cache holds and to its own earlier rows, then extends the
/// cache.
template <attention_config A, numerics_config Q, class T, space S, policy P>
void attention(const P& p, basic_workspace<S>& w, const attention_parameters<T, Q, S>& parameters, double norm_eps,
               std::span<const attention_segment<T, S>> segments, matrix_view<const T, S> x,
               matrix_view<T, S> y) {
  if (segments.empty()) return;
  const workspace_scope scope(w);
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  using projection = linear<T, S, typename stored::linear, X>;
  using wide_projection = linear<T, S, typename stored::wide>;
  const attention_kind kind = segments.front().cache->kind();
  const bool csa = kind == attention_kind::csa, compressed = kind != attention_kind::sliding;
  const std::int64_t rows = x.extent[0], heads = A.num_attention_heads, dim = A.head_dim, groups = A.o_groups;
  const std::int64_t index_heads = csa ? A.index_n_heads : 0, index_dim = csa ? A.index_head_dim : 0;
  const rope_frequencies frequencies = layer_rope_frequencies(A, kind);
  const double scale = 1 / std::sqrt(double(dim));

  // Projections of all rows at once.
  const auto q_latent = take<T>(w, rows, A.q_lora_rank);
  const auto q = take<T>(w, rows, heads, dim), o = take<T>(w, rows, heads, dim);
  const auto kv = take<T>(w, rows, dim);
  const auto x_in = as_activation<X>(p, w, x);
  projection::forward(p, {x_in, parameters.q_a}, {q_latent});
  rms_norm<T, S>::forward(p, {q_latent, parameters.q_norm, norm_eps}, {q_latent});
  const auto q_latent_in = as_activation<X>(p, w, q_latent);
  projection::forward(p, {q_latent_in, parameters.q_b}, {q.reshape(rows, heads * dim)});
  rms_norm<T, S>::forward(p, {q.reshape(rows * heads, dim), {}, norm_eps}, {q.reshape(rows * heads, dim)});
  projection::forward(p, {x_in, parameters.kv}, {kv});
  rms_norm<T, S>::forward(p, {kv, parameters.kv_norm, norm_eps}, {kv});

  matrix_view<T, S> pool_kv, pool_gate, index_kv, index_gate, index_weights;
  tensor_view<T, S> index_q;
  const auto project = [&](const auto& weight) {
    const auto out = take<T>(w, rows, weight.extent[0]);
    wide_projection::forward(p, {x, weight}, {out});
    return out;
  };
  if (compressed) {
    pool_kv = project(parameters.compressor.kv);
    pool_gate = project(parameters.compressor.gate);
  }
  if (csa) {
    index_kv = project(parameters.indexer.compressor.kv);
    index_gate = project(parameters.indexer.compressor.gate);
    index_weights = project(parameters.indexer.weights);
    index_q = take<T>(w, rows, index_heads, index_dim);
    projection::forward(p, {q_latent_in, parameters.indexer.q_b},
                        {index_q.reshape(rows, index_heads * index_dim)});
  }

  for (const auto& segment : segments) {
    const workspace_scope per_segment(w);
    attention_cache<T, S>& cache = *segment.cache;
    const std::int64_t n = segment.rows, position = segment.position, end = position + n,
                       row = segment.first_row;
    if (n == 0) continue;
    const auto own_q = q.rows(row, n), own_o = o.rows(row, n);
    const auto own_kv = kv.rows(row, n);
    rope<T, S>::forward(p, {frequencies, position}, {own_q});
    rope<T, S>::forward(p, {frequencies, position}, {own_kv.reshape(n, 1, dim)});
    const auto to_kv = [&](matrix_view<T, S> rows_) {
      if constexpr (Q.kv_fp8) store_kv<T, S>(p, A.qk_rope_head_dim, rows_);
    };
    const auto to_index = [&](matrix_view<T, S> vectors) {
      if constexpr (Q.index_fp4) store_index<T, S>(p, vectors);
    };
    to_kv(own_kv);

    // Window keys: the rows before this segment, then its own.
    const std::int64_t oldest = std::max<std::int64_t>(0, position - A.sliding_window + 1),
                       before = position - oldest;
    auto local = own_kv;
    if (before > 0) {
      local = take<T>(w, before + n, dim);
      cache.window.load(p, oldest, position, local.rows(0, before));
      copy_rows<T, S>::forward(p, {own_kv, 0, before, n}, {local});
    }

    // Entries that this segment completes are visible to it at once.
    std::int64_t ratio = 0;
    matrix_view<T, S> entries;
    matrix_view<std::int32_t, S> selected;
    if (compressed) {
      compress<T, S>(p, w, parameters.compressor, frequencies, norm_eps, csa, position,
                     pool_kv.rows(row, n), pool_gate.rows(row, n), cache.main, to_kv);
      ratio = A.compress_ratio(kind);
      entries = cache.main.entries.view();
    }
    if (csa) {
      const auto own_index_q = index_q.rows(row, n);
      rope<T, S>::forward(p, {frequencies, position}, {own_index_q});
      to_index(own_index_q.reshape(n * index_heads, index_dim));
      compress<T, S>(p, w, parameters.indexer.compressor, frequencies, norm_eps, true, position,
                     index_kv.rows(row, n), index_gate.rows(row, n), cache.index, to_index);
      // Where every visible entry is kept there is nothing to select.
      if (end / ratio > A.index_topk) {
        selected = take<std::int32_t>(w, n, std::int64_t{A.index_topk});
        index_topk<T, S>::forward(
            p, {own_index_q, cache.index.entries.view(), index_weights.rows(row, n), position, ratio},
            {selected});
      }
    }
    sparse_attention<T, S>::forward(
        p,
        {own_q, local, entries, selected, parameters.sinks, position, oldest, A.sliding_window, ratio, scale},
        {own_o});
    rope<T, S>::forward(p, {frequencies, position, 1, true}, {own_o});
    cache.window.store(p, own_kv, position);
  }

  const auto grouped = take<T>(w, rows, groups, A.o_lora_rank);
  batched_linear<T, S, typename stored::linear>::forward(
      p, {o.reshape(rows, groups, heads * dim / groups), parameters.o_a}, {grouped});
  projection::forward(
      p, {as_activation<X>(p, w, grouped.reshape(rows, groups * A.o_lora_rank)), parameters.o_b}, {y});
}

}  // namespace dsv4
