// SPDX-License-Identifier: Apache-2.0
/// All that a training step keeps between its forward and its backward pass, in memory that the caller owns.
#pragma once

#include <dsv4/blocks/attention_context.hpp>
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/blocks/moe.hpp>
#include <dsv4/config/recompute.hpp>
#include <dsv4/core/expects.hpp>
#include <dsv4/exec/byte_count.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

/// What a training step computes besides the loss of the next token.
struct training_options {
  bool mtp = false;  ///< the multi-token-prediction block runs
  attention_training attention;
};

/// `R` says what is kept. Views of one forward pass: give their memory back only after its backward pass.
///
/// Numbers per token, with the names of docs/notation.md, L layers, g output groups of rank r, a query rank
/// q:
///   streams           n D for every R.streams_every-th of the 2 L sublayers, and once for the last
///   each sublayer     (2 + n) n + D
///   attention         q + (2 H + 1) C + H + g r;   CSA 4 C + C / m more, HCA 2 C + C / m;
///                     k_index where there is something to select; indexer's loss: J c + J + 4 c + c / m + 1
///   feed-forward      E + 2 k + 2 (k + 1) I
///   head              n + D
/// Attention and feed-forward are not kept with R.sublayers. dsv4/cost/training_memory.hpp has this in bytes.
template <model_config C, class T, recompute_policy R = recompute::nothing, space S = space::host>
struct training_context {
  static_assert(R.streams_every >= 1, "recompute_policy.streams_every must be at least 1");
  static constexpr int layers = C.num_hidden_layers();

  /// A row of layers: the trunk, or the multi-token-prediction block.
  struct stack {
    int first_layer = 0, sublayers = 0;
    std::vector<tensor_view<T, S>> streams;  // (N, n, D) each: before every R.streams_every-th sublayer
    tensor_view<T, S> last;                  // (N, n, D), after the last sublayer
    std::vector<hyper_connection_context<T, S>> sites;  // of every sublayer
    hyper_connection_context<T, S> head_site;
    matrix_view<T, S> hidden;  // (N, D), normalised: what the vocabulary's head reads
  };

  training_options options;
  std::vector<attention_segment<T, S>> segments;  ///< the documents
  std::int64_t rows = 0;
  stack trunk, mtp;
  std::vector<attention_context<T, S>> attention;  ///< of every layer; views are empty with R.sublayers
  std::vector<moe_context<T, S>> ffn;
  std::vector<vector_view<T, S>> indexer_losses;  // (N) of every layer that has one

  /// A context for rows [offsets[d], offsets[d + 1]) of documents d, in `memory`: a workspace or a
  /// byte_count.
  template <class Memory>
  static training_context take(Memory& memory, std::span<const std::int64_t> offsets,
                               const training_options& options) {
    training_context c;
    c.options = options;
    expect(!offsets.empty() && offsets.front() == 0, "training_context", "offsets", "to begin with 0",
           offsets.empty() ? -1 : offsets.front());
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
      expect(offsets[d] <= offsets[d + 1], "training_context",
             numbered{"offsets[", static_cast<std::int64_t>(d) + 1, "]"}, numbered{"at least ", offsets[d]},
             offsets[d + 1]);
      c.segments.push_back({nullptr, 0, offsets[d], offsets[d + 1] - offsets[d]});
    }
    c.rows = offsets.back();
    const bool mtp = options.mtp && C.num_nextn_predict_layers > 0;
    const int all = layers + (mtp ? 1 : 0);
    for (int i = 0; i < all; ++i) {
      c.attention.push_back(attention_of(memory, c, i, R.sublayers));
      c.ffn.push_back(R.sublayers ? moe_context<T, S>{} : moe_context<T, S>::take(memory, C.moe, c.rows));
      const bool indexed = options.attention.indexer_loss && C.kind(i) == attention_kind::csa;
      using dsv4::take;
      c.indexer_losses.push_back(indexed ? take<T>(memory, c.rows) : vector_view<T, S>{});
      c.attention.back().indexer_losses = c.indexer_losses.back();
    }
    c.trunk = stack_of(memory, c.rows, 0, layers);
    if (mtp) c.mtp = stack_of(memory, c.rows, layers, 1);
    return c;
  }

  /// What `take` would take, in bytes.
  static std::int64_t bytes(std::span<const std::int64_t> offsets, const training_options& options) {
    byte_count<S> count;
    take(count, offsets, options);
    return count.bytes;
  }

  /// A context of one layer's attention: the kept one, or room for one in `memory` (empty: only its
  /// description).
  template <class Memory>
  static attention_context<T, S> attention_of(Memory& memory, const training_context& c, int layer,
                                              bool empty) {
    if (!empty)
      return attention_context<T, S>::take(memory, C.attention, C.kind(layer), c.options.attention,
                                           std::span<const attention_segment<T, S>>(c.segments), c.rows);
    attention_context<T, S> description;
    description.kind = C.kind(layer);
    return description;
  }

 private:
  template <class Memory>
  static stack stack_of(Memory& memory, std::int64_t rows, int first_layer, int count) {
    using dsv4::take;
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    stack s;
    s.first_layer = first_layer;
    s.sublayers = 2 * count;
    for (int i = 0; i < s.sublayers; ++i) {
      if (i % R.streams_every == 0) s.streams.push_back(take<T>(memory, rows, n, width));
      s.sites.push_back(hyper_connection_context<T, S>::take(memory, C.hyper_connection, rows, width));
    }
    s.last = take<T>(memory, rows, n, width);
    s.head_site = hyper_connection_context<T, S>::take_collapse(memory, C.hyper_connection, rows);
    s.hidden = take<T>(memory, rows, width);
    return s;
  }
};

}  // namespace dsv4
