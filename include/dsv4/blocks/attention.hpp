// SPDX-License-Identifier: Apache-2.0
/// The attention sublayer: sliding window, CSA and HCA share everything but where compressed entries come
/// from.
#pragma once

#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/blocks/attention_context.hpp>
#include <dsv4/blocks/kv_compressor.hpp>
#include <dsv4/config/numerics.hpp>
#include <dsv4/exec/branch.hpp>
#include <dsv4/ops/activation_linear.hpp>
#include <dsv4/ops/index_topk.hpp>
#include <dsv4/ops/indexer_loss.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/norm_rope.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <cmath>
#include <cstddef>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

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
  linear_matrix q_a;                                // (q_lora_rank, hidden)
  vector_view<T, S> q_norm;                         // (q_lora_rank)
  linear_matrix q_b;                                // (heads * head_dim, q_lora_rank)
  linear_matrix kv;                                 // (head_dim, hidden)
  vector_view<T, S> kv_norm;                        // (head_dim)
  vector_view<T, S> sinks;                          // (heads)
  weight_stack<T, typename stored::linear, S> o_a;  // (groups, o_lora_rank, heads * head_dim / groups)
  linear_matrix o_b;                                // (hidden, groups * o_lora_rank)
  compressor_parameters<T, S, typename stored::wide> compressor;  // CSA and HCA
  indexer_parameters<T, Q, S> indexer;                            // CSA
};

/// By which the scores of the lightning indexer are scaled; only its loss needs to know.
inline double index_scale(const attention_config& a) {
  return 1 / std::sqrt(double(a.index_n_heads) * double(a.index_head_dim));
}

/// y = attention(x), x already normalised (docs/blocks/attention.md). Prefill, chunks and decode are
/// this same code: a segment attends to what its cache holds and to its own earlier rows, then extends the
/// cache. So is training, where segments are whole documents without caches, and `context` keeps what
/// attention_backward needs; an empty y then is not computed. y is not x.
template <attention_config A, numerics_config Q, class T, space S, policy P, class Context = std::nullptr_t>
void attention(const P& p, basic_workspace<S>& w, const attention_parameters<T, Q, S>& parameters,
               double norm_eps, std::span<const attention_segment<T, S>> segments, matrix_view<const T, S> x,
               matrix_view<T, S> y, [[maybe_unused]] Context context = nullptr) {
  if (segments.empty()) return;
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "attention");
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  using projection = activation_linear<T, S, typename stored::linear, X>;
  using projection_pair = activation_linear_pair<T, S, typename stored::linear, X>;
  using wide_projection = linear<T, S, typename stored::wide>;
  constexpr bool training = !std::is_null_pointer_v<Context>;
  attention_context<T, S> keep;
  if constexpr (training) keep = *context;
  const attention_kind kind = training ? keep.kind : segments.front().cache->kind();
  const bool csa = kind == attention_kind::csa, compressed = kind != attention_kind::sliding;
  const bool indexes = training ? keep.indexes : csa;
  const std::int64_t rows = x.extent[0], heads = A.num_attention_heads, dim = A.head_dim, groups = A.o_groups;
  const std::int64_t index_heads = A.index_n_heads, index_dim = A.index_head_dim;
  const rope_frequencies frequencies = layer_rope_frequencies(A, kind);
  const double scale = 1 / std::sqrt(double(dim));

  // A result goes where the context keeps it, else to scratch; what changes a kept one writes elsewhere.
  const auto kept_or = [&](const auto& kept, auto... extents) {
    return kept.data ? kept : take<T>(w, extents...);
  };
  const auto beside = [&](const auto& result, auto... extents) {
    return training ? take<T>(w, extents...) : result;
  };

  // What is compressed, and what the indexer selects of it, beside the queries and the window.
  detail::branch<P, S> aside(
      p, w, compressed && !training && segments.size() == 1 && rows <= detail::rows_for_branches);
  // Projections of all rows at once.
  const auto raw_q_latent = kept_or(keep.q_latent, rows, A.q_lora_rank);
  const auto raw_q = kept_or(keep.q, rows, heads, dim);
  const auto raw_kv = kept_or(keep.kv, rows, dim);
  const auto q_latent = beside(raw_q_latent, rows, A.q_lora_rank);
  const auto q = beside(raw_q, rows, heads, dim);
  const auto kv = beside(raw_kv, rows, dim);
  projection_pair::forward(p, w, {x, parameters.q_a, parameters.kv}, {raw_q_latent, raw_kv});
  rms_norm<T, S>::forward(p, {raw_q_latent, parameters.q_norm, norm_eps}, {q_latent});
  tensor_view<T, S> raw_index_q, index_q;
  const auto flat_q = raw_q.reshape(rows, heads * dim);
  if (indexes) {
    raw_index_q = kept_or(keep.index_q, rows, index_heads, index_dim);
    index_q = beside(raw_index_q, rows, index_heads, index_dim);
    projection_pair::forward(p, w, {q_latent, parameters.q_b, parameters.indexer.q_b},
                             {flat_q, raw_index_q.reshape(rows, index_heads * index_dim)});
  } else {
    projection::forward(p, w, {q_latent, parameters.q_b}, {flat_q});
  }

  matrix_view<T, S> pool_kv, pool_gate, index_kv, index_gate, index_weights;
  const auto project = [&](const auto& compressor, const matrix_view<T, S>& kept_kv,
                           const matrix_view<T, S>& kept_gate) {
    const std::int64_t width = compressor.kv.extent[0];
    const std::pair out(kept_or(kept_kv, rows, width), kept_or(kept_gate, rows, width));
    activation_linear_pair<T, S, typename stored::wide>::forward(
        aside.policy(), w, {x, compressor.kv, compressor.gate}, {out.first, out.second});
    return out;
  };
  if (compressed) std::tie(pool_kv, pool_gate) = project(parameters.compressor, keep.pool_kv, keep.pool_gate);
  if (indexes) {
    std::tie(index_kv, index_gate) = project(parameters.indexer.compressor, keep.index_kv, keep.index_gate);
    index_weights = kept_or(keep.index_weights, rows, index_heads);
    wide_projection::forward(aside.policy(), {x, parameters.indexer.weights}, {index_weights});
    if (training)
      copy_rows<T, S>::forward(p, {raw_index_q.reshape(rows, index_heads * index_dim), 0, 0, rows},
                               {index_q.reshape(rows, index_heads * index_dim)});
  }
  const auto attended = kept_or(keep.o, rows, heads, dim);
  const auto o = beside(attended, rows, heads, dim);

  std::int64_t first_entry = 0;  // of a document, among those of all documents
  for (const auto& segment : segments) {
    const workspace_scope per_segment(w);
    const std::int64_t n = segment.rows, position = segment.position, end = position + n,
                       row = segment.first_row;
    if (training)
      expect(position == 0, "attention", "segment position", "0: documents are trained as a whole", position);
    if (n == 0) continue;
    const auto own_q = q.rows(row, n), own_o = attended.rows(row, n);
    const auto own_kv = kv.rows(row, n);
    const auto to_kv = kv_rounding<Q>(A.qk_rope_head_dim);
    const index_rounding<Q> to_index;

    // Entries that this segment completes are visible to it at once.
    std::int64_t ratio = 0;
    matrix_view<T, S> entries;
    matrix_view<std::int32_t, S> selected;
    /// The entries visible to the segment: those of the cache, or of the document.
    const auto compress_with = [&](const auto& compressor, bool overlap, const matrix_view<T, S>& kv_rows,
                                   const matrix_view<T, S>& gate_rows, auto cache,
                                   const matrix_view<T, S>& kept, const auto& round) {
      if (!training) {
        auto& own = segment.cache->*cache;
        compress<T, S>(aside.policy(), w, compressor, frequencies, norm_eps, overlap, position,
                       kv_rows.rows(row, n), gate_rows.rows(row, n), own, round);
        return own.entries.view();
      }
      const std::int64_t count = n / ratio, width = compressor.norm.extent[0];
      const auto pooled = kept.data ? kept.rows(first_entry, count) : take<T>(w, count, width);
      const auto fresh = take<T>(w, count, width);
      compress_pool<T, S>::forward(
          p, {kv_rows.rows(row, n), gate_rows.rows(row, n), compressor.position_bias, 0, 0, overlap},
          {pooled});
      finish_entries<T, S>(p, compressor, frequencies, norm_eps, 0, pooled, fresh, round);
      return fresh;
    };
    using caches = attention_cache<T, S>;
    matrix_view<T, S> index_keys;
    if (compressed) {
      ratio = A.compress_ratio(kind);
      entries =
          compress_with(parameters.compressor, csa, pool_kv, pool_gate, &caches::main, keep.pooled, to_kv);
    }
    if (indexes) {
      const auto own_index_q = index_q.rows(row, n);
      index_keys = compress_with(parameters.indexer.compressor, true, index_kv, index_gate, &caches::index,
                                 keep.index_pooled, to_index);
      aside.catch_up();  // with the queries
      rope<T, S>::forward(aside.policy(), {frequencies, position}, {own_index_q});
      to_index(aside.policy(), own_index_q.reshape(n * index_heads, index_dim));
      // Where every visible entry is kept there is nothing to select.
      if (attention_context<T, S>::selects(A, kind, keep.options, end)) {
        selected = keep.selected.data ? keep.selected.rows(row, n)
                                      : take<std::int32_t>(w, n, std::int64_t{A.index_topk});
        index_topk<T, S>::forward(aside.policy(),
                                  {own_index_q, index_keys, index_weights.rows(row, n), position, ratio},
                                  {selected});
      }
    }

    norm_rope<T, S>::forward(p, {raw_q.rows(row, n), {}, norm_eps, frequencies, position}, {own_q});
    norm_rope<T, S>::forward(
        p, {raw_kv.rows(row, n).reshape(n, 1, dim), parameters.kv_norm, norm_eps, frequencies, position},
        {own_kv.reshape(n, 1, dim)});
    to_kv(p, own_kv);

    // Window keys: the rows before this segment, then its own.
    const std::int64_t oldest = std::max<std::int64_t>(0, position - A.sliding_window + 1),
                       before = position - oldest;
    const bool ring_has_all = before > 0 && end - oldest <= segment.cache->window.capacity();
    auto local = own_kv;
    if (ring_has_all) {
      local = take<T>(w, end - oldest, dim);
      segment.cache->window.store(p, own_kv, position);
      segment.cache->window.load(p, oldest, end, local);
    } else if (before > 0) {
      local = take<T>(w, before + n, dim);
      segment.cache->window.load(p, oldest, position, local.rows(0, before));
      copy_rows<T, S>::forward(p, {own_kv, 0, before, n}, {local});
    }

    aside.join();
    sparse_attention<T, S>::forward(
        p,
        {own_q, local, entries, selected, parameters.sinks, position, oldest, A.sliding_window, ratio, scale},
        {own_o}, {keep.lse.data ? keep.lse.rows(row, n) : matrix_view<wide_scalar<T>, S>(), {}});
    if constexpr (training)
      if (keep.options.indexer_loss && keep.indexer_losses.data)
        indexer_loss<T, S>::forward(
            p,
            {own_q, entries, parameters.sinks, index_q.rows(row, n), index_keys, index_weights.rows(row, n),
             selected, 0, ratio, scale, index_scale(A), keep.options.target_includes_sink},
            {keep.indexer_losses.rows(row, n)});
    if (training) {
      copy_rows<T, S>::forward(p, {own_o.reshape(n, heads * dim), 0, 0, n},
                               {o.rows(row, n).reshape(n, heads * dim)});
      first_entry += ratio ? n / ratio : 0;
    } else if (!ring_has_all) {
      segment.cache->window.store(p, own_kv, position);
    }
    rope<T, S>::forward(p, {frequencies, position, 1, true}, {o.rows(row, n)});
  }

  const auto grouped =
      kept_or(keep.grouped, rows, groups * A.o_lora_rank).reshape(rows, groups, A.o_lora_rank);
  batched_linear<T, S, typename stored::linear>::forward(
      p, {o.reshape(rows, groups, heads * dim / groups), parameters.o_a}, {grouped});
  if (training && !y.data) return;
  projection::forward(p, w, {grouped.reshape(rows, groups * A.o_lora_rank), parameters.o_b}, {y});
}

}  // namespace dsv4
