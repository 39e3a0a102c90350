// SPDX-License-Identifier: Apache-2.0
/// The whole model: embedding, layers, head, and the multi-token-prediction block.
#pragma once

#include <dsv4/config/numerics.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/sequence_state.hpp>
#include <dsv4/ops/broadcast_add.hpp>
#include <dsv4/ops/embedding.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

/// Which rows of a call get logits.
enum class logit_rows {
  none,
  last,  ///< the last token of every segment
  all,
};

/// A DeepSeek-V4 model of configuration `C`, scalar type `T`, with the round-trips of `Q`. Stateless:
/// weights, states and scratch memory are the caller's.
template <model_config C, class T = float, numerics_config Q = numerics::float32, space S = space::host>
struct transformer {
  static_assert(valid<C>());
  static constexpr model_config config = C;
  using scalar = T;
  using parameters = parameter_store<C, T, Q, S>;
  using stored = storage_types<T, Q>;
  using state = sequence_state<C, T, S>;

  /// The next `tokens` of one sequence.
  struct segment {
    state* sequence;
    std::int64_t tokens;
  };

  struct inputs {
    std::span<const segment> segments;          ///< their tokens follow one another; every state occurs once
    vector_view<const std::int32_t, S> tokens;  // (N)
    logit_rows rows = logit_rows::last;
  };
  struct outputs {
    matrix_view<T, S> logits;   // (N, V), (segments with tokens, V) or empty, as `rows` says
    tensor_view<T, S> streams;  // (N, n, D), the residual streams after the last layer; empty: not wanted
  };
  struct no_observer {
    void operator()(int, tensor_view<const T, S>) const {}
  };

  /// How many rows of logits a call makes.
  static std::int64_t logit_count(std::span<const segment> segments, logit_rows rows) {
    std::int64_t n = 0;
    for (const segment& s : segments)
      n += rows == logit_rows::all ? s.tokens : rows == logit_rows::last ? s.tokens > 0 : 0;
    return n;
  }

  /// Extends every segment's state by its tokens. One call is a prefill, a chunk of one, a decode step, or a
  /// batch of any of these. `observe(layer, streams)` sees the residual streams (N, n, D) before each layer
  /// and, as layer num_hidden_layers(), after the last. Throws contract_error for token ids outside the
  /// vocabulary or extents that do not fit, before any state has changed.
  template <policy P, class Observer = no_observer>
  static void forward(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
                      const inputs& in, const outputs& out, const Observer& observe = {}) {
    const workspace_scope scope(w);
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    const std::int64_t rows = count_rows(in.segments);
    expect_extent("transformer::forward", "tokens", in.tokens.extent[0], rows);
    if (in.rows != logit_rows::none) {
      expect_extent("transformer::forward", "logits rows", out.logits.extent[0],
                    logit_count(in.segments, in.rows));
      expect_extent("transformer::forward", "logits columns", out.logits.extent[1], C.vocab_size);
    }
    if (out.streams.data) expect_extent("transformer::forward", "streams rows", out.streams.extent[0], rows);
    if (rows == 0) return;

    const auto x = out.streams.data ? out.streams : take<T>(w, rows, n, width);
    embedding<T, S, typename stored::wide>::forward(p, {in.tokens, weights.embed}, {x});
    for (const segment& s : in.segments)
      for (int i = 0; i < C.num_hidden_layers(); ++i)
        s.sequence->cache(i).reserve(p, s.sequence->length() + s.tokens, s.sequence->length());
    for (int i = 0; i < C.num_hidden_layers(); ++i) {
      observe(i, tensor_view<const T, S>(x));
      const auto segments = attention_segments(in.segments, i);
      layer(p, w, weights.layers[static_cast<std::size_t>(i)], segments, in.tokens, x);
    }
    observe(C.num_hidden_layers(), tensor_view<const T, S>(x));
    for (const segment& s : in.segments)
      s.sequence->set_lengths(s.sequence->length() + s.tokens, s.sequence->mtp_length());

    head(p, w, weights, weights.head_site, weights.norm, in, x, out.logits);
  }

  /// Drafts: from the trunk's `streams` (N, n, D) of positions t and the tokens of positions t + 1, the
  /// logits of position t + 2 (docs/blocks/mtp.md). Segments continue at their state's mtp_length(),
  /// which must stay within length(). `out.streams` are the block's own.
  template <policy P>
  static void draft(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
                    const inputs& in, tensor_view<const T, S> streams,
                    const outputs& out) requires(C.num_nextn_predict_layers > 0) {
    const workspace_scope scope(w);
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    constexpr int index = C.num_hidden_layers();
    using projection = linear<T, S, typename stored::linear, typename stored::activation>;
    const std::int64_t rows = count_rows(in.segments);
    expect_extent("transformer::draft", "tokens", in.tokens.extent[0], rows);
    expect_extent("transformer::draft", "streams rows", streams.extent[0], rows);
    if (in.rows != logit_rows::none)
      expect_extent("transformer::draft", "logits rows", out.logits.extent[0],
                    logit_count(in.segments, in.rows));
    for (const segment& s : in.segments)
      expect(s.sequence->mtp_length() + s.tokens <= s.sequence->length(), "transformer::draft",
             "segment tokens", numbered{"at most ", s.sequence->length() - s.sequence->mtp_length()},
             s.tokens);
    if (rows == 0) return;

    const auto x = out.streams.data ? out.streams : take<T>(w, rows, n, width);
    const auto e = take<T>(w, rows, 1, width), projected = take<T>(w, rows, 1, width);
    const auto normed = take<T>(w, rows * n, width);
    embedding<T, S, typename stored::wide>::forward(p, {in.tokens, weights.embed}, {e});
    rms_norm<T, S>::forward(p, {e.reshape(rows, width), weights.mtp.enorm, C.rms_norm_eps},
                            {e.reshape(rows, width)});
    projection::forward(
        p, {as_activation<typename stored::activation>(p, w, e.reshape(rows, width)), weights.mtp.e_proj},
        {projected.reshape(rows, width)});
    rms_norm<T, S>::forward(p, {streams.reshape(rows * n, width), weights.mtp.hnorm, C.rms_norm_eps},
                            {normed});
    projection::forward(p, {as_activation<typename stored::activation>(p, w, normed), weights.mtp.h_proj},
                        {x.reshape(rows * n, width)});
    broadcast_add<T, S>::forward(p, {projected.reshape(rows, width)}, {x});

    const auto segments = attention_segments(in.segments, index);
    layer(p, w, weights.mtp.layer, segments, in.tokens, x);
    for (const segment& s : in.segments)
      s.sequence->set_lengths(s.sequence->length(), s.sequence->mtp_length() + s.tokens);
    head(p, w, weights, weights.mtp.head_site, weights.mtp.norm, in, x, out.logits);
  }

 private:
  static std::int64_t count_rows(std::span<const segment> segments) {
    std::int64_t rows = 0;
    for (const segment& s : segments) {
      expect(s.tokens >= 0, "transformer", "segment tokens", "not negative", s.tokens);
      rows += s.tokens;
    }
    return rows;
  }

  static std::vector<attention_segment<T, S>> attention_segments(std::span<const segment> segments,
                                                                 int index) {
    std::vector<attention_segment<T, S>> result;
    std::int64_t row = 0;
    for (const segment& s : segments) {
      result.push_back({&s.sequence->cache(index), s.sequence->position(index), row, s.tokens});
      row += s.tokens;
    }
    return result;
  }

  template <policy P>
  static void layer(const P& p, basic_workspace<S>& w, const layer_parameters<T, Q, S>& weights,
                    std::span<const attention_segment<T, S>> segments,
                    vector_view<const std::int32_t, S> tokens, tensor_view<T, S> x) {
    hyper_connection_site<C.hyper_connection, T, S>(
        p, w, weights.attention_site, weights.attention_norm, C.rms_norm_eps, x, [&](auto u, auto v) {
          attention<C.attention, Q, T, S>(p, w, weights.attention, C.rms_norm_eps, segments, u, v);
        });
    hyper_connection_site<C.hyper_connection, T, S>(
        p, w, weights.ffn_site, weights.ffn_norm, C.rms_norm_eps, x,
        [&](auto u, auto v) { moe<C.moe, Q, T, S>(p, w, weights.ffn, tokens, u, v); });
  }

  /// Logits of the wanted rows of x.
  template <policy P>
  static void head(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
                   const hyper_connection_parameters<T, S>& site, vector_view<T, S> norm, const inputs& in,
                   tensor_view<const T, S> x, matrix_view<T, S> logits) {
    if (in.rows == logit_rows::none) return;
    const workspace_scope scope(w);
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    auto wanted = x;
    if (in.rows == logit_rows::last) {
      const auto last = take<T>(w, logits.extent[0], n, width);
      std::int64_t end = 0, kept = 0;
      for (const segment& s : in.segments) {
        end += s.tokens;
        if (s.tokens > 0)
          copy_rows<T, S>::forward(p, {x.reshape(x.extent[0], n * width), end - 1, kept++, 1},
                                   {last.reshape(last.extent[0], n * width)});
      }
      wanted = last;
    }
    const auto y = take<T>(w, wanted.extent[0], width);
    hyper_connection_head<C.hyper_connection, T, S>(p, w, site, norm, C.rms_norm_eps, wanted, y);
    linear<T, S, typename stored::wide>::forward(p, {y, weights.head}, {logits});
  }
};

}  // namespace dsv4
