// SPDX-License-Identifier: Apache-2.0
/// What the attention sublayer keeps from its forward pass for its backward pass, in memory that the caller
/// owns.
#pragma once

#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/config/model_config.hpp>
#include <dsv4/exec/byte_count.hpp>
#include <dsv4/numeric/widen.hpp>

#include <cstdint>
#include <span>

namespace dsv4 {

/// How attention is trained.
struct attention_training {
  bool dense = false;                 ///< every visible entry is attended: the time before sparse attention
  bool indexer_loss = false;          ///< the lightning indexer is trained
  bool target_includes_sink = false;  ///< see indexer_loss
};

/// The next `rows` tokens of one sequence: rows [first_row, first_row + rows) of the batch. In training a
/// segment is a document from its first token on, and has no cache.
template <class T, space S = space::host>
struct attention_segment {
  attention_cache<T, S>* cache;
  std::int64_t position;  ///< of the first token
  std::int64_t first_row;
  std::int64_t rows;
};

/// The results of matrix products and of attention. Norms, rotations and rounding are cheaper to do again
/// than to keep.
template <class T, space S = space::host>
struct attention_context {
  attention_kind kind = attention_kind::sliding;
  attention_training options;
  bool indexes =
      false;  ///< the indexer runs: to be trained, or because a document has entries to select from

  matrix_view<T, S> q_latent;             // (N, q_lora_rank), before its norm
  tensor_view<T, S> q;                    // (N, heads, head_dim), before its norm
  matrix_view<T, S> kv;                   // (N, head_dim), before its norm
  matrix_view<T, S> pool_kv, pool_gate;   // (N, D or 2D)
  matrix_view<T, S> pooled;               // (entries of all documents, head_dim), before their norm
  tensor_view<T, S> o;                    // (N, heads, head_dim), before the inverse rotation
  matrix_view<wide_scalar<T>, S> lse;     // (N, heads)
  matrix_view<T, S> grouped;              // (N, groups * o_lora_rank)
  matrix_view<std::int32_t, S> selected;  // (N, index_topk), where there is something to select

  // With indexer_loss only.
  tensor_view<T, S> index_q;               // (N, index heads, index dim), not rotated
  matrix_view<T, S> index_weights;         // (N, index heads)
  matrix_view<T, S> index_kv, index_gate;  // (N, 2 index dim)
  matrix_view<T, S> index_pooled;          // (entries, index dim), before their norm
  vector_view<T, S> indexer_losses;        // (N), if the caller wants them; not part of `take`

  /// Whether a document of `tokens` tokens has more entries than are attended.
  static bool selects(const attention_config& a, attention_kind kind, const attention_training& options,
                      std::int64_t tokens) {
    return kind == attention_kind::csa && !options.dense && tokens / a.csa_compress_ratio > a.index_topk;
  }

  /// A context for `segments`, all rows of which are `rows`, in `memory`: a workspace, or a byte_count.
  template <class Memory>
  static attention_context take(Memory& memory, const attention_config& a, attention_kind kind,
                                const attention_training& options,
                                std::span<const attention_segment<T, S>> segments, std::int64_t rows) {
    using dsv4::take;
    attention_context c;
    c.kind = kind;
    c.options = options;
    c.options.indexer_loss = options.indexer_loss && kind == attention_kind::csa;
    const std::int64_t heads = a.num_attention_heads, dim = a.head_dim, ratio = a.compress_ratio(kind);
    std::int64_t entries = 0;
    bool selects_any = false;
    for (const auto& s : segments) {
      entries += ratio ? s.rows / ratio : 0;
      selects_any = selects_any || selects(a, kind, options, s.rows);
    }
    c.indexes = c.options.indexer_loss || selects_any;
    c.q_latent = take<T>(memory, rows, a.q_lora_rank);
    c.q = take<T>(memory, rows, heads, dim);
    c.kv = take<T>(memory, rows, dim);
    if (kind != attention_kind::sliding) {
      const std::int64_t width = kind == attention_kind::csa ? 2 * dim : dim;
      c.pool_kv = take<T>(memory, rows, width);
      c.pool_gate = take<T>(memory, rows, width);
      c.pooled = take<T>(memory, entries, dim);
    }
    c.o = take<T>(memory, rows, heads, dim);
    c.lse = take<wide_scalar<T>>(memory, rows, heads);
    c.grouped = take<T>(memory, rows, std::int64_t{a.o_groups} * a.o_lora_rank);
    if (selects_any) c.selected = take<std::int32_t>(memory, rows, a.index_topk);
    if (c.options.indexer_loss) {
      c.index_q = take<T>(memory, rows, a.index_n_heads, a.index_head_dim);
      c.index_weights = take<T>(memory, rows, a.index_n_heads);
      c.index_kv = take<T>(memory, rows, 2 * a.index_head_dim);
      c.index_gate = take<T>(memory, rows, 2 * a.index_head_dim);
      c.index_pooled = take<T>(memory, entries, a.index_head_dim);
    }
    return c;
  }
};

}  // namespace dsv4
